// A group: its prompt, its responses, and of the chosen one everything: tokens, peers, teacher prompt.

const pane = el("article", { className: "group", tabIndex: -1 });
let asked = 0;

/** Shows the group of a rollout, with that rollout open; `scroll` to it unless nobody has asked for it. */
async function showGroup(rollout, scroll) {
  const ticket = ++asked;
  let body, told, lists;
  try {
    [body, told, lists] = await Promise.all([unpacked(rollout.at), byToken(rollout.at, 1), byToken(rollout.at, 2)]);
  } catch (error) {
    pane.replaceChildren(el("p", {}, `This group cannot be unpacked here (${error.message}); a newer browser can.`));
    return;
  }
  if (ticket !== asked) return;
  const { group } = rollout;
  const same = pane.dataset.group === String(rollout.at);
  const cards = group.rollouts.map((entry, index) =>
    card(ROLLOUTS.find((one) => one.at === rollout.at && one.index === index), body, told && { told: told[index], lists }, index === rollout.index));
  pane.replaceChildren(head(group), el("h3", {}, "Prompt"), el("pre", { className: "prompt", dir: "auto" }, seen(body.input)),
    el("p", { className: "faint" }, "Ground truth: ", el("code", {}, inline(body.truth))),
    el("h3", {}, `${plural(group.rollouts.length, "response")}, in sampling order`), ...cards);
  pane.dataset.group = String(rollout.at);
  hideTip();
  if (!same) pane.scrollTop = 0;
  if (scroll && (same || rollout.index)) cards[rollout.index].scrollIntoView({ block: "nearest" });
}

function head(group) {
  const counts = ["right", "wrong", "unknown"].map((status) =>
    [status, group.rollouts.filter((rollout) => rollout.status === status).length]).filter(([, count]) => count);
  return el("h2", {}, `Step ${group.step}, group `, inline(group.uid),
    el("small", {}, counts.map(([status, count]) => [" ", verdict(status), ` ${count} ${status}`]),
      " \u00b7 source ", inline(group.source), " \u00b7 row ", inline(group.row)));
}

/** One response; the chosen one in full. */
function card(rollout, body, tokens, chosen) {
  const told = body.rollouts[rollout.index];
  const score = rollout.score === null ? "no reward" : `reward ${short(rollout.score)}`;
  const title = el("button", { type: "button", className: "title", onclick: () => select(rollout) },
    verdict(rollout.status), el("b", {}, inline(rollout.id)),
    el("span", {}, `${rollout.status}, ${score} \u00b7 ${plural(rollout.length, "token")} \u00b7 ended by `, inline(told.finish),
      chosen ? [" \u00b7 policy ", inline(told.version)] : ""));
  title.setAttribute("aria-expanded", String(chosen));
  const feedback = told.feedback ? el("p", { className: "feedback" }, el("b", {}, "Feedback "),
    inline(chosen ? told.feedback : told.feedback.slice(0, 300))) : null;
  if (!chosen) {
    const text = el("p", { className: "brief", onclick: () => select(rollout) }, inline(told.output.slice(0, 500)));
    return el("section", { className: "card" }, title, text, feedback);
  }
  return el("section", { className: "card chosen" }, title, response(told, rollout, tokens), feedback, peers(told, rollout), teacher(told, rollout, body));
}

// ------------------------------------------------------------------ what the teacher saw

function peers(told, rollout) {
  if (!told.peers.length && !told.fallbacks.length) return null;
  const rows = told.peers.map((peer) => {
    const sibling = named(peer.rollout_id);
    const name = sibling
      ? el("button", { type: "button", className: "link", onclick: () => select(sibling) }, verdict(sibling.status), inline(peer.rollout_id))
      : inline(peer.rollout_id || "no rollout");
    return [el("span", { className: `slot ${slotClass(peer.slot)}` }, inline(peer.slot)), name, inline(peer.reason)];
  });
  return el("div", {}, el("h4", {}, "Peers that the teacher saw"),
    rows.length ? table(["slot", "rollout", "why this one"], rows, 3) : el("p", { className: "faint" }, "None."),
    told.fallbacks.length ? el("ul", { className: "fallbacks" }, told.fallbacks.map((text) => el("li", {}, "not shown: ", inline(text)))) : null);
}

const SLOTS = ["primary", "another", "failure", "control", "summary"];
const slotClass = (slot) => (SLOTS.includes(slot) ? slot : "other");

/** The text of a part of a teacher prompt: its own, or a whole response of the group. */
const partText = (part, body) => (typeof part === "string" ? part : part[2] ?? body.rollouts[part[1]].output);
const teacherText = (told, body) => (told.teacher || []).map((part) => partText(part, body)).join("");

function teacher(told, rollout, body) {
  if (told.teacher === null) {
    return el("div", {}, el("h4", {}, "Teacher prompt"), el("p", { className: "faint" }, told.usable
      ? "Not in the rollout file." : "None: this rollout had no usable view, so nothing was distilled from it."));
  }
  const parts = told.teacher.map((part) => {
    if (typeof part === "string") return el("span", {}, seen(part));
    const [slot, index] = part;
    const title = `${slot}: ${rollout.group.rollouts[index].id}`;
    return el("mark", { className: slotClass(slot), title }, seen(partText(part, body)));
  });
  let check = "As the run wrote it down, character by character; no hash was kept beside it.";
  if (told.hash) {
    check = told.hash.same ? `SHA-256 as the run kept it: ${told.hash.kept}`
      : `Its SHA-256 is not the one that the run kept (${told.hash.kept}): the file was changed.`;
  }
  return el("div", {}, el("h4", {}, "Teacher prompt"), el("pre", { className: "teacher", dir: "auto" }, parts),
    el("p", { className: told.hash && !told.hash.same ? "warning" : "faint" }, check));
}
