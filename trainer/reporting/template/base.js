// What every part uses: the data, elements, and texts that nobody vouches for.
// Texts reach the page as text nodes alone; nothing here, or in any other part, parses markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PACKED = JSON.parse(document.getElementById("groups").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** An element with properties and children; a string among the children becomes a text node. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An SVG element with attributes. */
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Control characters, marks that turn the direction of text, invisible ones, and halves of surrogate pairs.
const UNSEEN = new RegExp(
  "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e" +
  "\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]|[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  "g");

/** A text as nodes in which nothing is invisible: what could deceive the eye is shown by its number. */
function seen(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    const code = match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    nodes.push(el("span", { className: "unseen", title: "a character that cannot be seen" }, "U+" + code));
    end = match.index + 1;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

/** A text on one line, as part of a sentence; its direction does not spread. */
const inline = (text, className = "") => el("bdi", { className }, seen(text));

/** A name that may be broken after a dot, a dash below, or a slash. */
const breakable = (name) => name.split(/(?<=[._/])/).flatMap((part) => [...seen(part), el("wbr")]);

/** A number in at most four significant digits. */
function short(value, digits = 4) {
  if (value === null || value === undefined) return "\u2013";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(digits - 2);
  return String(Number(value.toPrecision(digits)));
}

const percent = (share) => (100 * share).toFixed(1) + "\u00a0%";
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const opened = new Map();

/** Everything of a group but what is told by token, unpacked once. */
function unpacked(index) {
  if (!opened.has(index)) opened.set(index, inflated(PACKED[index][0]));
  return opened.get(index);
}

/** What is told of a group by token (part 1), and the likeliest tokens (2); null where the page has none. */
async function byToken(index, part) {
  return PACKED[index][part] ? inflated(PACKED[index][part]) : null;
}

async function inflated(base64) {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** A legend of the runs: this one first. */
function legend() {
  const entries = DATA.runs.map((run, index) =>
    el("span", { className: `key run${index % 6}`, title: run.folder }, inline(run.name), el("small", {}, ` ${run.method}`)));
  return el("p", { className: "legend" }, entries);
}

/** A table: cells are strings or nodes; all but the first `labels` columns are numbers. */
function table(heads, rows, labels = 1) {
  const cell = (tag) => (content, column) => el(tag, { className: column < labels ? "" : "number" }, content);
  return el("div", { className: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, heads.map(cell("th")))),
    el("tbody", {}, rows.map((row) => el("tr", { className: row.className || "" }, (row.cells || row).map(cell("td")))))));
}
