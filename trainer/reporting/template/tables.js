// Validation, time per phase, settings.

/** `val-core/<source>/acc/<metric>` in its parts; a source may hold slashes. */
function heldOut() {
  const sources = new Map();
  for (const name of new Set(DATA.runs.flatMap((run) => Object.keys(run.curves)))) {
    const match = /^val-core\/(.*)\/acc\/([^/]+)$/.exec(name);
    if (match) sources.set(match[1], [...(sources.get(match[1]) || []), { metric: match[2], curves: curvesOf(name) }]);
  }
  return sources;
}

function validationTab() {
  const sources = heldOut();
  if (!sources.size) return el("section", {}, el("p", {}, "Nothing was validated in this run."));
  const parts = [...sources].map(([source, metrics]) => [
    el("h2", {}, inline(source)), beforeAndAfter(metrics), el("h3", {}, "By step"), byStep(metrics)]);
  return el("section", { className: "prose" }, legend(),
    el("p", { className: "faint" }, "Held-out quality, in per cent."), parts);
}

/** First and last figure of every metric and run. */
function beforeAndAfter(metrics) {
  const rows = metrics.flatMap(({ metric, curves }) => curves.flatMap((curve, run) => {
    if (!curve) return [];
    const [steps, values] = curve;
    const first = values[0], last = values[values.length - 1];
    const best = values.indexOf(Math.max(...values));
    return [{ className: run ? "" : "own", cells: [metric, inline(DATA.runs[run].name, `key run${run % 6}`),
      `${(100 * first).toFixed(1)} @${steps[0]}`, `${(100 * last).toFixed(1)} @${steps[steps.length - 1]}`,
      (last < first ? "\u2212" : "+") + Math.abs(100 * (last - first)).toFixed(1),
      `${(100 * values[best]).toFixed(1)} @${steps[best]}`] }];
  }));
  return table(["metric", "run", "first", "last", "gain", "best"], rows, 2);
}

function byStep(metrics) {
  const columns = metrics.flatMap(({ metric, curves }) =>
    curves.flatMap((curve, run) => (curve ? [{ metric, run, values: new Map(curve[0].map((step, at) => [step, curve[1][at]])) }] : [])));
  const steps = [...new Set(columns.flatMap((column) => [...column.values.keys()]))].sort((one, other) => one - other);
  const heads = ["step", ...columns.map(({ metric, run }) => el("span", { className: `key run${run % 6}`, title: DATA.runs[run].name }, metric))];
  return table(heads, steps.map((step) => [String(step), ...columns.map(({ values }) =>
    values.has(step) ? (100 * values.get(step)).toFixed(1) : "")]));
}

/** Phases of a step, in order; those within another (learn/forward) come with their parent. */
function phasesOf(run) {
  const names = Object.keys(run.times.total).filter((name) => name !== "step");
  // update_actor is what the actor itself needs within learn.
  const inner = (name) => name.includes("/") || name === "update_actor";
  const outer = names.filter((name) => !inner(name));
  return { outer, inner: names.filter(inner) };
}

const PHASES = ["sample", "verify", "redraw", "context", "learn", "publish", "validate", "remember", "save"];
const phaseClass = (name) => `phase${PHASES.includes(name) ? PHASES.indexOf(name) : 9}`;

function timeTab() {
  const own = DATA.runs[0];
  if (!own.times.steps) return el("section", {}, el("p", {}, "This run has told no times."));
  const { outer, inner } = phasesOf(own);
  const shown = [];
  for (const name of [...outer.sort((one, other) => PHASES.indexOf(one) - PHASES.indexOf(other)), "rest"]) {
    shown.push([name, false]);
    if (name === "learn") shown.push(...inner.map((part) => [part, true]));
  }
  const heads = ["phase", ...DATA.runs.flatMap((run, index) => [
    el("span", { className: `key run${index % 6}`, title: run.name }, "s"), "s/step", "share"])];
  const rows = [...shown, ["step", false]].map(([name, within]) => ({ className: name === "step" ? "own" : "", cells: [
    el("span", { className: within ? "within" : `key ${name === "step" ? "" : phaseClass(name)}` }, name === "step" ? "whole step" : name),
    ...DATA.runs.flatMap((run) => {
      const value = name === "rest" ? rest(run.times.total) : run.times.total[name];
      if (value === undefined) return ["", "", ""];
      return [short(value), short(value / run.times.steps), percent(value / run.times.total.step)];
    })] }));
  const every = own.times.every;
  const overlap = own.settings["trainer.overlap"] === "true"
    ? " In the overlapped loop, sampling and verifying are of the next step." : "";
  return el("section", { className: "prose" }, legend(),
    el("p", { className: "faint" }, "Seconds by metrics.jsonl, which leaves saving out. Indented phases are part of learn." + overlap),
    stack(own.times, outer), every > 1 ? el("p", { className: "faint" }, `Each column is the mean of ${every} steps.`) : null,
    table(heads, rows));
}

/** What of a step lies in no phase. */
const rest = (total) => Math.max(0, total.step - Object.keys(total).filter((name) =>
  name !== "step" && name !== "update_actor" && !name.includes("/")).reduce((sum, name) => sum + total[name], 0));

/** A column per step, of its phases. */
function stack(times, outer) {
  const count = times.columns.length;
  const top = Math.max(...times.seconds.step);
  const figure = svg("svg", { viewBox: `0 0 ${count} 100`, preserveAspectRatio: "none", class: "stack" });
  times.columns.forEach((step, column) => {
    let base = 100;
    for (const name of outer) {
      const height = 100 * times.seconds[name][column] / top;
      base -= height;
      figure.append(svg("rect", { x: column + 0.06, y: base, width: 0.88, height, class: phaseClass(name) }));
    }
  });
  const names = outer.map((name) => el("span", { className: `key ${phaseClass(name)}` }, name));
  return el("figure", { className: "times" }, el("p", { className: "legend" }, names), el("div", { className: "plot tall" }, figure,
    el("span", { className: "high" }, `${short(top)} s`), el("span", { className: "from" }, String(times.columns[0])),
    el("span", { className: "to" }, `step ${times.columns[count - 1]}`)));
}

function settingsTab() {
  const filter = el("input", { type: "search", placeholder: "setting", "aria-label": "Show settings that have",
    className: "filter", autocomplete: "off" });
  const only = el("input", { type: "checkbox" });
  const heads = ["", ...DATA.runs.map((run, index) => inline(run.name, `key run${index % 6}`))];
  const rows = [...settingRows("settings"), ...settingRows("facts")];
  const shown = table(heads, rows.map((row) => ({ className: row.differs ? "differs" : "", cells: row.cells })), 99);
  const lines = shown.querySelectorAll("tbody tr");
  const apply = () => rows.forEach((row, index) => {
    lines[index].hidden = (only.checked && !row.differs) || !row.text.includes(filter.value.trim().toLowerCase());
  });
  filter.addEventListener("input", apply);
  only.addEventListener("change", apply);
  const choice = DATA.runs.length > 1 ? el("label", {}, only, " only what differs") : null;
  return el("section", { className: "settings" }, el("div", { className: "bar" }, filter, choice),
    el("p", { className: "faint" }, "config.yaml, then manifest.json, as the run wrote them."), shown);
}

function settingRows(part) {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run[part])))];
  return keys.map((key) => {
    const values = DATA.runs.map((run) => run[part][key]);
    const cells = [el("code", { className: "name" }, breakable(key)), ...values.map((value) =>
      value === undefined ? "" : el("code", { className: "value" }, inline(value)))];
    return { cells, differs: new Set(values).size > 1, text: [key, ...values].join("\n").toLowerCase() };
  });
}
