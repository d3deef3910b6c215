// The list of rollouts: filters, and only the rows that are in view.

const ROW = 30;
const BEYOND = 10;
const MARKS = { right: "\u2713", wrong: "\u2717", unknown: "?" };

/** Every rollout, in the order of the report. */
const ROLLOUTS = DATA.groups.flatMap((group, at) => group.rollouts.map((rollout, index) => ({ ...rollout, group, at, index })));

const list = { shown: [], rows: [], selected: null, onselect: () => {}, words: null };

function verdict(status) {
  return el("span", { className: `verdict ${status}`, title: status }, MARKS[status]);
}

function listPane() {
  const steps = [...new Set(DATA.groups.map((group) => group.step))];
  const sources = [...new Set(DATA.groups.map((group) => group.source))].sort();
  list.step = choice("step", [["", "all steps"], ...steps.map((step) => [String(step), `step ${step}`])]);
  list.source = choice("data source", [["", "all sources"], ...sources.map((source) => [source, source])]);
  list.verdict = choice("verdict", [["", "all verdicts"], ["right", "right"], ["wrong", "wrong"], ["unknown", "unknown"]]);
  list.recorded = el("input", { type: "checkbox" });
  list.search = el("input", { type: "search", className: "filter", placeholder: "text or name", autocomplete: "off",
    "aria-label": "Show rollouts whose prompt, response, feedback, teacher prompt or name has" });
  list.count = el("p", { className: "faint count", "aria-live": "polite" });
  list.inner = el("div", { className: "rows" });
  list.frame = el("div", { className: "list", tabIndex: 0, role: "listbox", "aria-label": "Rollouts" }, list.inner);
  for (const control of [list.step, list.source, list.verdict, list.recorded]) control.addEventListener("change", refilter);
  let pause;
  list.search.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(refilter, 150); });
  list.frame.addEventListener("scroll", () => requestAnimationFrame(paint), { passive: true });
  new ResizeObserver(() => requestAnimationFrame(paint)).observe(list.frame);
  const recorded = ROLLOUTS.some((rollout) => rollout.recorded)
    ? el("label", { title: "Rollouts of which the divergence of every token was recorded" }, list.recorded, " by token") : null;
  return el("aside", {}, el("div", { className: "bar filters" }, list.search, list.step, list.source, list.verdict, recorded),
    list.count, list.frame);
}

function choice(name, options) {
  return el("select", { "aria-label": name }, options.map(([value, label]) => el("option", { value }, seen(label))));
}

/** What the search looks at, for every rollout; everything is unpacked once. */
async function wordsOf() {
  const bodies = await Promise.all(DATA.groups.map((_, at) => unpacked(at)));
  return ROLLOUTS.map(({ id, at, index, group }) => {
    const body = bodies[at], rollout = body.rollouts[index];
    return [id, group.row, body.input, rollout.output, rollout.feedback, teacherText(rollout, body)].join("\n").toLowerCase();
  });
}

async function refilter() {
  const asked = list.search.value.toLowerCase();
  if (asked && !list.words) {
    list.count.textContent = "reading \u2026";
    list.words = await wordsOf();
    if (asked !== list.search.value.toLowerCase()) return;
  }
  list.shown = ROLLOUTS.filter((rollout, number) =>
    (!list.step.value || String(rollout.group.step) === list.step.value) &&
    (!list.source.value || rollout.group.source === list.source.value) &&
    (!list.verdict.value || rollout.status === list.verdict.value) &&
    (!list.recorded.checked || rollout.recorded) &&
    (!asked || list.words[number].includes(asked)));
  list.rows = [];
  let group = null;
  for (const rollout of list.shown) {
    if (rollout.group !== group) list.rows.push({ head: rollout.group });
    group = rollout.group;
    rollout.row = list.rows.push(rollout) - 1;
  }
  list.inner.style.height = `${list.rows.length * ROW}px`;
  const groups = list.rows.length - list.shown.length;
  list.count.textContent = `${plural(list.shown.length, "rollout")} of ${ROLLOUTS.length.toLocaleString("en")}, in ${plural(groups, "group")}`;
  if (list.selected && list.shown.includes(list.selected)) reveal(list.selected.row);
  paint();
}

/** Draws the rows that are in view, and a few beyond. */
function paint() {
  const first = Math.max(0, Math.floor(list.frame.scrollTop / ROW) - BEYOND);
  const last = Math.min(list.rows.length, Math.ceil((list.frame.scrollTop + list.frame.clientHeight) / ROW) + BEYOND);
  const nodes = [];
  for (let number = first; number < last; number++) {
    const node = list.rows[number].head ? headRow(list.rows[number].head) : rolloutRow(list.rows[number]);
    node.style.top = `${number * ROW}px`;
    nodes.push(node);
  }
  list.inner.replaceChildren(...nodes);
}

function headRow(group) {
  const right = group.rollouts.filter((rollout) => rollout.status === "right").length;
  return el("div", { className: "row head", role: "presentation" },
    el("span", { className: "where" }, `step ${group.step}`), el("span", { className: "text" }, inline(group.prompt)),
    el("span", { className: "faint" }, `${right}/${group.rollouts.length}`));
}

function rolloutRow(rollout) {
  const chosen = rollout === list.selected;
  const node = el("div", { className: `row${chosen ? " chosen" : ""}`, role: "option", id: chosen ? "chosen" : "",
    onclick: () => select(rollout) },
  verdict(rollout.status), el("span", { className: "name" }, inline(rollout.id)),
  el("span", { className: "text" }, inline(rollout.text)),
  el("span", { className: "faint" }, rollout.recorded ? "\u25cf " : "", `${rollout.length}`));
  node.setAttribute("aria-selected", String(chosen));
  return node;
}

/** Scrolls the list no further than is needed to show a row. */
function reveal(number) {
  const top = number * ROW, room = list.frame.clientHeight;
  if (top < list.frame.scrollTop + ROW) list.frame.scrollTop = top - ROW;
  else if (top + 2 * ROW > list.frame.scrollTop + room) list.frame.scrollTop = top + 2 * ROW - room;
}

/** Opens a rollout; `scroll` to its response unless nobody has asked for it. */
function select(rollout, scroll = true) {
  list.selected = rollout;
  if (list.shown.includes(rollout)) reveal(rollout.row);
  list.frame.setAttribute("aria-activedescendant", "chosen");
  paint();
  list.onselect(rollout, scroll);
}

/** The next (1) or previous (-1) rollout of the list. */
function move(by) {
  const place = list.shown.indexOf(list.selected);
  const next = place < 0 ? (by > 0 ? 0 : list.shown.length - 1) : place + by;
  if (list.shown[next]) select(list.shown[next]);
}

/** The first shown rollout of the next or previous group. */
function moveGroup(by) {
  if (!list.selected) return move(by);
  const heads = list.shown.filter((rollout, place) => !place || rollout.group !== list.shown[place - 1].group);
  const next = by > 0 ? heads.find((head) => head.at > list.selected.at)
    : heads.findLast((head) => head.at < list.selected.at);
  if (next) select(next);
}

const named = (id) => ROLLOUTS.find((rollout) => rollout.id === id);
