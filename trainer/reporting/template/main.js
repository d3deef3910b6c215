// The page: tabs, theme, keys.

const TABS = { curves: curvesTab, validation: validationTab, time: timeTab, settings: settingsTab, rollouts: rolloutsTab };
const sections = {};
let current = null;

function rolloutsTab() {
  if (!ROLLOUTS.length) return el("section", {}, el("p", {}, "No rollouts lie in this run's folder."));
  list.onselect = (rollout, scroll) => {
    remember(`rollouts/${rollout.id}`);
    showGroup(rollout, scroll);
  };
  const section = el("section", { className: "browser" }, listPane(), pane);
  const notes = DATA.notes.map((note) => el("p", { className: "faint" }, inline(note)));
  return el("div", {}, notes.length ? el("div", { className: "notes" }, notes) : null, section);
}

/** Opens a tab; it is made when it is first opened. */
function open(name, id = null) {
  const fresh = !sections[name];
  if (fresh) {
    sections[name] = el("div", { className: "tab", role: "tabpanel" }, TABS[name]());
    document.getElementById("main").append(sections[name]);
  }
  for (const [other, section] of Object.entries(sections)) section.hidden = other !== name;
  for (const button of document.getElementById("tabs").children) {
    button.setAttribute("aria-selected", String(button.dataset.tab === name));
  }
  current = name;
  hideTip();
  if (name !== "rollouts" || !ROLLOUTS.length) return remember(name);
  if (fresh) refilter();
  const wanted = (id && named(id)) || list.selected || ROLLOUTS.find((rollout) => rollout.recorded) || ROLLOUTS[0];
  select(wanted, Boolean(id));
}

let remembering;

/** Puts the place into the address, so that it can be passed on; not at every step of a held key, which browsers refuse. */
function remember(place) {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    try {
      history.replaceState(null, "", "#" + encodeURI(place));
    } catch { /* an address that may not change is no loss */ }
  }, 200);
}

function fromAddress() {
  let place = "";
  try {
    place = decodeURI(location.hash.slice(1));
  } catch { /* not one of ours */ }
  const name = place.split("/")[0];
  open(Object.hasOwn(TABS, name) ? name : "curves", place.includes("/") ? place.slice(place.indexOf("/") + 1) : null);
}

// ------------------------------------------------------------------ theme and keys

const dark = () => (document.documentElement.dataset.theme
  ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("mopd-theme", theme);
  } catch { /* some browsers keep nothing for files */ }
}

const KEYS = [
  ["1 \u2026 5", "curves, validation, time, settings, rollouts", null],
  ["j  \u2193", "next rollout", () => move(1)], ["k  \u2191", "previous rollout", () => move(-1)],
  ["l  \u2192", "next group", () => moveGroup(1)], ["h  \u2190", "previous group", () => moveGroup(-1)],
  ["i", "into the response: \u2190 \u2192 by token, Esc out", focusTokens],
  ["/", "filter what is open", focusFilter], ["t", "light or dark", () => setTheme(dark() ? "light" : "dark")],
  ["?", "these keys", showHelp], ["Esc", "leave a field, close this", null],
];
const ARROWS = { ArrowDown: "j", ArrowUp: "k", ArrowRight: "l", ArrowLeft: "h" };
const IN_LIST = "jkhl";

function focusFilter() {
  const field = sections[current].querySelector("input[type=search]");
  if (field) field.focus();
}

function showHelp() {
  const dialog = document.getElementById("help");
  if (dialog.open) return dialog.close();
  dialog.replaceChildren(el("h2", {}, "Keys"),
    el("dl", {}, KEYS.flatMap(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("p", { className: "faint" }, `Written ${DATA.written}. Divergence and likeliest tokens are recorded for the first groups of a step.`),
    el("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  hideTip();
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const tabs = Object.keys(TABS);
  const key = ARROWS[event.key] || event.key;
  if (IN_LIST.includes(key) && (current !== "rollouts" || document.getElementById("help").open)) return;
  const entry = KEYS.find(([keys, , action]) => action && keys.split(/\s+/).includes(key));
  if (!entry && !tabs[Number(key) - 1]) return;
  event.preventDefault();
  if (entry) entry[2]();
  else open(tabs[Number(key) - 1]);
}

function begin() {
  const [own] = DATA.runs;
  document.getElementById("title").append(inline(own.name), el("small", {}, ` ${own.method}`));
  document.getElementById("tabs").append(...Object.keys(TABS).map((name) => {
    const button = el("button", { type: "button", role: "tab", onclick: () => open(name) }, name[0].toUpperCase() + name.slice(1));
    button.dataset.tab = name;
    return button;
  }));
  document.getElementById("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
  document.getElementById("keys").addEventListener("click", showHelp);
  document.addEventListener("keydown", pressed);
  document.addEventListener("scroll", placeTip, { capture: true, passive: true });
  window.addEventListener("resize", placeTip);
  window.addEventListener("hashchange", fromAddress);
  try {
    const theme = localStorage.getItem("mopd-theme");
    if (theme) document.documentElement.dataset.theme = theme;
  } catch { /* as above */ }
  fromAddress();
}

begin();
