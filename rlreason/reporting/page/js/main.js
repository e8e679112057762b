// Opens the runs, shows the view that the address names, and listens to the keys.

import { Browser } from "./browser.js";
import { Run, Table } from "./data.js";
import { $, count, h } from "./dom.js";
import { behavioursView, overview } from "./overview.js";
import { MODES } from "./tokens.js";

const KEYS = [
  ["j  k", "next, previous trace"],
  ["/", "search in texts"],
  ["1  2  3  4", "colour tokens by log p, surprise, entropy, advantage"],
  ["0", "no colours"],
  ["s", "the group's samples side by side"],
  ["c", "compare with another step or run on the same problem"],
  ["← →", "in a text: read out its tokens one by one"],
  ["g o", "go to the overview"],
  ["g b", "go to behaviours"],
  ["g t", "go to traces"],
  ["d", "dark, light, or as the system has it"],
  ["Esc", "leave: this help, a field, side by side"],
];

const THEMES = ["auto", "light", "dark"];

function theme(wanted) {
  const root = document.documentElement;
  const now = THEMES.includes(wanted) ? wanted : "auto";
  if (now === "auto") root.removeAttribute("data-theme");
  else root.setAttribute("data-theme", now);
  $("theme").textContent = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" }[now];
  $("theme").dataset.theme = now;
  try {
    localStorage.setItem("rlreason-theme", now);
  } catch {
    // A page without storage forgets the choice.
  }
}

function stored() {
  try {
    return localStorage.getItem("rlreason-theme");
  } catch {
    return null;
  }
}

async function start() {
  theme(stored());
  $("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf($("theme").dataset.theme) + 1) % 3]));
  const runs = (await Promise.all(["a", "b"].map((letter) => Run.open(letter)))).filter(Boolean);
  document.body.classList.add(runs.length > 1 ? "two-runs" : "one-run");
  const table = new Table(runs);
  const main = $("main");
  let view = null;
  const remember = () => {
    if (view === "traces") history.replaceState(null, "", `#traces?${browser.link()}`);
  };
  const browser = table.size ? new Browser(table, remember) : null;
  const open = (behaviour) => {
    location.hash = `#traces?${new URLSearchParams({ behaviour })}`;
  };

  function go() {
    const [name, rest] = location.hash.slice(1).split(/\?(.*)/s);
    const wanted = ["overview", "behaviours", "traces"].includes(name) ? name : "overview";
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === wanted) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.body.dataset.view = wanted;
    const again = view === wanted;
    view = wanted;
    if (wanted === "traces" && browser) {
      if (!again) main.replaceChildren(browser.element);
      if (rest || browser.row === null) browser.follow(rest || "");
      else browser.redraw();
    } else if (wanted === "traces") main.replaceChildren(h("p", { class: "note empty" }, "This run has no traces."));
    else main.replaceChildren(wanted === "overview" ? overview(runs) : behavioursView(table, open));
    if (!again) scrollTo(0, 0);
  }

  addEventListener("hashchange", go);
  help();
  keys(() => (view === "traces" ? browser : null));
  go();
  $("status").textContent = `${count(table.size)} traces read`;
  document.body.dataset.ready = "yes";
}

function help() {
  const rows = KEYS.flatMap(([key, what]) => [
    h("dt", {}, ...key.split(/\s+/).map((each) => h("kbd", {}, each))),
    h("dd", {}, what),
  ]);
  const close = h("button", { type: "button", onclick: () => $("help").close() }, "Close");
  $("help").append(h("h2", { id: "help-title" }, "Keys"), h("dl", {}, ...rows), close);
  $("help-button").addEventListener("click", () => $("help").showModal());
}

function keys(browsing) {
  let before = "";
  addEventListener("keydown", (event) => {
    const last = before;
    before = event.key;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest?.("input, select, textarea");
    const browser = browsing();
    if (event.key === "Escape") {
      if ($("help").open) return; // the dialog closes itself
      if (field) field.blur();
      else if (browser && browser.layout !== "one") browser.arrange("one");
      return;
    }
    if (field || $("help").open) return;
    const views = { o: "overview", b: "behaviours", t: "traces" };
    const shading = Object.entries(MODES).find(([, mode]) => mode.key === event.key)?.[0];
    if (last === "g" && event.key in views) location.hash = `#${views[event.key]}`;
    else if (event.key === "?") $("help").showModal();
    else if (event.key === "d") $("theme").click();
    else if (!browser) return;
    else if (event.key === "j") browser.move(1);
    else if (event.key === "k") browser.move(-1);
    else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && event.target === browser.list.element)
      browser.move(event.key === "ArrowDown" ? 1 : -1);
    else if (event.key === "s") browser.arrange("siblings");
    else if (event.key === "c") browser.arrange("compare");
    else if (event.key === "/") browser.form.elements.q.focus();
    else if (shading) browser.colour(shading);
    else return;
    event.preventDefault();
  });
}

start().catch((error) => {
  $("status").textContent = `The page could not be shown: ${error.message}`;
  $("status").className = "error";
  throw error;
});
