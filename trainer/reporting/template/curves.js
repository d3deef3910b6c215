// Curves of every metric, grouped by prefix; drawn when they come into view.

const FIRST = ["val-core", "val-aux", "critic", "gauges", "self_distillation", "actor", "rollout", "reward", "response_length"];
const ENDS = ["_low", "_high"]; // of a metric's interval, which is drawn behind its curve

/** The names of all runs' metrics by prefix, what people look at first coming first. */
function metricsByPrefix() {
  const all = new Set(DATA.runs.flatMap((run) => Object.keys(run.curves)));
  const names = [...all].filter((name) => !ENDS.some((end) => name.endsWith(end) && all.has(name.slice(0, -end.length)))).sort();
  const groups = new Map();
  for (const name of names) {
    const prefix = name.includes("/") ? name.slice(0, name.indexOf("/")) : "other";
    groups.set(prefix, [...(groups.get(prefix) || []), name]);
  }
  const rank = (prefix) => (FIRST.includes(prefix) ? FIRST.indexOf(prefix) : FIRST.length);
  return [...groups].sort((one, other) => rank(one[0]) - rank(other[0]) || one[0].localeCompare(other[0]));
}

/** The curve of a metric for every run: [steps, values] or null. */
const curvesOf = (name) => DATA.runs.map((run) => run.curves[name] || null);

function curvesTab() {
  const filter = el("input", { type: "search", placeholder: "metric", "aria-label": "Show metrics whose name has",
    className: "filter", autocomplete: "off" });
  const groups = metricsByPrefix().map(([prefix, names]) => {
    const cards = names.map((name) => ({ name, node: chart(name) }));
    const node = el("details", { open: true, className: "metrics" },
      el("summary", {}, prefix, el("small", {}, ` ${names.length}`)),
      el("div", { className: "charts" }, cards.map((card) => card.node)));
    return { node, cards };
  });
  filter.addEventListener("input", () => {
    const asked = filter.value.trim().toLowerCase();
    for (const { node, cards } of groups) {
      for (const card of cards) card.node.hidden = !card.name.toLowerCase().includes(asked);
      node.hidden = cards.every((card) => card.node.hidden);
    }
  });
  return el("section", {}, el("div", { className: "bar" }, filter, legend()), groups.map((group) => group.node));
}

const drawing = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    drawing.unobserve(entry.target);
    entry.target.draw();
  }
}, { rootMargin: "300px" });

/** A metric's card: name, figures under the pointer (at first the last ones), and the curves. */
function chart(name) {
  const curves = curvesOf(name);
  const told = el("p", { className: "told" });
  const slash = name.indexOf("/");
  const label = [el("span", { className: "faint" }, breakable(name.slice(0, slash + 1))), breakable(name.slice(slash + 1))];
  const node = el("figure", { className: "chart", title: name }, el("figcaption", {}, label), told,
    el("div", { className: "plot" }));
  const [low, high] = ENDS.map((end) => DATA.runs[0].curves[name + end]);
  node.draw = () => draw(node.lastChild, told, curves, curves[0] && low && high ? [low, high] : []);
  drawing.observe(node);
  return node;
}

/** The smallest and largest of all curves' steps (0) or values (1). */
function extent(curves, part) {
  let low = Infinity, high = -Infinity;
  for (const curve of curves) {
    for (const value of curve ? curve[part] : []) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return [low, high];
}

/** Draws the runs' curves; `band` has the two ends of the run's own interval, or nothing. */
function draw(plot, told, curves, band) {
  const [first, last] = extent(curves, 0);
  const [low, high] = extent([...curves, ...band], 1);
  const x = (step) => (last === first ? 150 : 4 + 292 * (step - first) / (last - first));
  const y = (value) => (high === low ? 50 : 96 - 92 * (value - low) / (high - low));
  const lines = curves.map((curve, run) => curve && svg("path", { class: `line run${run % 6}`, d: path(curve, x, y) }));
  const rule = svg("path", { class: "rule", d: "" });
  const area = band.length ? [svg("path", { class: "band run0", d: between(band, curves[0][0], x, y) })] : [];
  // The run itself is drawn last, over the others.
  const figure = svg("svg", { viewBox: "0 0 300 100", preserveAspectRatio: "none", "aria-hidden": "true" },
    ...area, rule, ...lines.filter(Boolean).reverse());
  plot.append(figure, el("span", { className: "high" }, short(high, 3)), el("span", { className: "low" }, short(low, 3)),
    el("span", { className: "from" }, String(first)), el("span", { className: "to" }, `step ${last}`));
  const tell = (step) => told.replaceChildren(...readings(curves, step));
  tell(last);
  plot.addEventListener("pointermove", (event) => {
    const box = figure.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, ((event.clientX - box.left) / box.width - 4 / 300) * 300 / 292));
    const step = nearest(curves, first + share * (last - first));
    rule.setAttribute("d", `M${x(step)} 0V100`);
    tell(step);
  });
  plot.addEventListener("pointerleave", () => {
    rule.setAttribute("d", "");
    tell(last);
  });
}

/** A curve as a path; few points are dots too. */
function path([steps, values], x, y) {
  const points = steps.map((step, index) => `${x(step).toFixed(1)} ${y(values[index]).toFixed(1)}`);
  return "M" + points.join("L") + (points.length < 12 ? points.map((point) => `M${point}h.01`).join("") : "");
}

/** What lies between two curves, as a path; a step without both of them parts it. */
function between([low, high], steps, x, y) {
  const [lows, highs] = [low, high].map(([at, values]) => new Map(at.map((step, index) => [step, values[index]])));
  const pieces = [[]];
  for (const step of steps) {
    if (lows.has(step) && highs.has(step)) pieces.at(-1).push(step); else pieces.push([]);
  }
  const along = (piece, values) => piece.map((step) => `${x(step).toFixed(1)} ${y(values.get(step)).toFixed(1)}`);
  return pieces.filter((piece) => piece.length)
    .map((piece) => `M${[...along(piece, lows), ...along(piece, highs).reverse()].join("L")}Z`).join("");
}

/** The place in a sorted list of the entry nearest to a step. */
function placeOf(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

/** The measured step nearest to a place on the axis. */
function nearest(curves, step) {
  const found = curves.filter(Boolean).map(([steps]) => steps[placeOf(steps, step)]);
  return found.reduce((one, other) => (Math.abs(one - step) <= Math.abs(other - step) ? one : other));
}

/** Each run's value at a step, or where it was not measured then, the nearest one with its own step. */
function readings(curves, step) {
  return curves.flatMap((curve, run) => {
    if (!curve) return [];
    const place = placeOf(curve[0], step);
    const where = curve[0][place] === step ? "" : ` @${curve[0][place]}`;
    return [el("span", { className: `key run${run % 6}` }, short(curve[1][place]), el("small", {}, where)), " "];
  }).concat(el("small", {}, `step ${step}`));
}
