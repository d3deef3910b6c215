// The response by token: how far student and teacher are apart, and under the pointer what either would have said.

const tip = document.getElementById("tip");
const OTHER = DATA.runs[0].settings["actor_rollout_ref.actor.policy_loss.loss_mode"] === "dpo" ? "reference" : "teacher";
const PARTS = 1000;

/** The token of which the tip tells, and the response that it stands in. */
let looked = null;

const NO_ROOM = "left out of this page for want of room; --step shows them";

/** A response; `tokens` has what is told of it by token, and the likeliest tokens of its group or null; or is null. */
function response({ output }, rollout, tokens) {
  if (!tokens || !tokens.told.chance) {
    const note = rollout.recorded ? el("p", { className: "scale faint" }, `Divergences and likeliest tokens: ${NO_ROOM}.`) : null;
    return el("div", {}, el("pre", { className: "response", dir: "auto" }, seen(output)), note);
  }
  const { told, lists } = tokens;
  const texts = told.pieces || told.chance.map((_, at) => `[${at + 1}]`);
  const values = told.divergence || told.chance.map(() => null);
  const own = lists ? lists.rollouts[rollout.index] : null;
  const nodes = texts.map((text, at) => token(text, values[at], at, Boolean(told.divergence)));
  const text = el("pre", { className: "response tokens", dir: "auto", tabIndex: 0 }, nodes);
  text.setAttribute("aria-label", "Response by token; left and right go from one to the next");
  text.setAttribute("aria-describedby", "tip");
  attend(text, (node) => card_of(Number(node.dataset.token), texts, told, own, lists));
  const missing = told.pieces ? null : el("p", { className: "faint" },
    "The run's tokenizer was not found: tokens are shown by their number.");
  return el("div", {}, text, missing, told.divergence ? scale(told.divergence) : null);
}

function scale(divergence) {
  const values = divergence.filter((value) => value !== null);
  const mean = values.length ? values.reduce((one, other) => one + other, 0) / values.length : null;
  return el("p", { className: "scale faint" }, `divergence of student and ${OTHER} at the token: 0 `,
    el("span", { className: "ramp" }), ` ${short(DATA.scale)} nats or more \u00b7 mean ${short(mean)}, `,
    `largest ${short(values.length ? Math.max(...values) : null)}`);
}

/** A token on a ground that is the stronger the more student and teacher disagree: by the root, up to the scale. */
function token(text, value, at, compared) {
  const node = el("span", { className: compared && value === null ? "token none" : "token" }, text === "" ? "\u2205" : seen(text));
  node.dataset.token = at;
  const strength = value === null ? 0 : Math.sqrt(Math.min(1, Math.max(0, value) / DATA.scale));
  if (strength > 0.01) node.style.setProperty("--strength", `${(80 * strength).toFixed(1)}%`);
  return node;
}

// ------------------------------------------------------------------ what is told of a token

function card_of(at, texts, told, own, lists) {
  const value = told.divergence ? told.divergence[at] : undefined, chance = told.chance[at];
  const apart = value === undefined ? "" : value === null ? "divergence: not a number \u00b7 " : `divergence ${short(value)} nats \u00b7 `;
  const columns = own ? [["student", "student"], ["teacher", OTHER]].filter(([side]) => own[side])
    .map(([side, title]) => likely(title, own[side], at, lists.table)) : [];
  const instead = `likeliest tokens: ${told.likeliest ? NO_ROOM : "not recorded"}`;
  return [el("div", { className: "sampled" }, el("code", {}, seen(JSON.stringify(texts[at]))),
    el("span", {}, ` token ${at + 1} of ${texts.length}`)),
  el("div", {}, apart, `\u25b8\u00a0sampled with probability ${chance === null ? "unknown" : short(chance)}`),
  columns.length ? el("div", { className: "likely" }, columns) : el("small", {}, instead)];
}

/** One side's likeliest tokens; the sampled one is marked. */
function likely(title, side, at, table) {
  const count = side.ids.length / side.sampled.length, sampled = side.sampled[at];
  const rows = [];
  for (let place = 0; place < count; place++) {
    const id = side.ids[at * count + place], parts = side.chances[at * count + place];
    if (id < 0) continue;
    const name = table[id];
    const row = el("li", { className: place === sampled ? "own" : "" },
      el("code", {}, typeof name === "string" ? seen(JSON.stringify(name)) : `#${name}`), el("span", {}, chanceText(parts)));
    row.style.setProperty("--share", `${Math.max(0, parts) / PARTS * 100}%`);
    rows.push(row);
  }
  const beside = !rows.length ? "this token does not count in the loss" : sampled < 0 ? "the sampled token is none of these" : null;
  return el("div", {}, el("h5", {}, title), el("ol", {}, rows), beside ? el("small", {}, beside) : null);
}

const chanceText = (parts) => (parts < 0 ? "\u2013" : parts === 0 ? "<\u20090.1\u00a0%" : `${(100 * parts / PARTS).toFixed(1)}\u00a0%`);

// ------------------------------------------------------------------ pointer, finger, keys

/** Has the tip tell of the tokens in `text`: under the pointer, where a finger taps, and by keys once it has the focus. */
function attend(text, tell) {
  let current = 0;
  const show = (node) => {
    hideTip();
    looked = { node, text };
    node.classList.add("looked");
    tip.replaceChildren(...tell(node));
    tip.hidden = false;
    placeTip();
  };
  const nodeOf = (event) => (event.target.closest ? event.target.closest("[data-token]") : null);
  text.addEventListener("pointerover", (event) => (nodeOf(event) ? show(nodeOf(event)) : hideTip()));
  text.addEventListener("pointerleave", hideTip);
  text.addEventListener("pointerdown", (event) => { if (nodeOf(event)) current = Number(nodeOf(event).dataset.token); });
  text.addEventListener("click", (event) => { if (nodeOf(event)) show(nodeOf(event)); });
  text.addEventListener("focus", () => { if (text.children.length) show(text.children[current]); });
  text.addEventListener("blur", hideTip);
  text.addEventListener("keydown", (event) => {
    const last = text.children.length - 1;
    const goal = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") text.blur();
    if (goal === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    current = Math.min(last, Math.max(0, goal));
    text.children[current].scrollIntoView({ block: "nearest" });
    show(text.children[current]);
  });
}

/** Puts the tip below its token, or above it where there is no room; away where the token is out of sight. */
function placeTip() {
  if (!looked) return;
  const box = looked.node.getClientRects()[0] || looked.node.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const around = looked.text.getBoundingClientRect();
  if (!looked.node.isConnected || box.bottom < around.top || box.top > around.bottom) return hideTip();
  const width = document.documentElement.clientWidth;
  const below = box.bottom + own.height + 8 < window.innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, width - own.width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 4 : Math.max(8, box.top - own.height - 4)}px`;
}

function hideTip() {
  if (looked) looked.node.classList.remove("looked");
  looked = null;
  tip.hidden = true;
}

/** Goes into the open response, token by token. */
function focusTokens() {
  const text = pane.querySelector(".response.tokens");
  if (text) text.focus();
}
