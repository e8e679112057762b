// The traces: filters, the list of what matches, and what is open beside it. All of its state is in the address.

import { $, count, h, number, spaced } from "./dom.js";
import { EMPTY, SORTS, Search, hits } from "./filter.js";
import { List } from "./list.js";
import { MODES } from "./tokens.js";
import { compare, counterpart, siblings, single, verdict } from "./traceview.js";

const LAYOUTS = { one: single, siblings, compare };

// How many characters, up to the last slash, all of the ids begin with.
function sharedStart(ids) {
  const start = ids[0]?.slice(0, ids[0].lastIndexOf("/") + 1) || "";
  return ids.every((id) => id.startsWith(start)) ? start.length : 0;
}

export class Browser {
  constructor(table, remember) {
    Object.assign(this, {
      table,
      remember,
      search: new Search(table),
      filter: { ...EMPTY },
      row: null,
      other: null,
      mode: table.size && this.hasTokens(table) ? "logp" : "plain",
      layout: "one",
      drawing: 0,
    });
    this.shared = sharedStart(table.words.problem || []);
    this.list = new List({ draw: (row) => this.item(row), choose: (row) => this.open(row) });
    this.found = h("output", { class: "found-count", "aria-live": "polite" });
    this.detail = h("div", { class: "detail", tabindex: "-1", "aria-label": "The open trace" });
    this.form = this.controls();
    this.modes = h(
      "div",
      { class: "segmented", role: "group", "aria-label": "Colour tokens by" },
      ...Object.entries(MODES).map(([name, mode]) =>
        h(
          "button",
          { type: "button", "data-mode": name, "aria-keyshortcuts": mode.key, onclick: () => this.colour(name) },
          h("kbd", {}, mode.key),
          mode.label,
        ),
      ),
    );
    this.layouts = h(
      "div",
      { class: "segmented", role: "group", "aria-label": "Show" },
      ...[
        ["one", "", "one"],
        ["siblings", "s", "siblings"],
        ["compare", "c", "compare"],
      ].map(([name, key, label]) =>
        h(
          "button",
          { type: "button", "data-layout": name, "aria-keyshortcuts": key || null, onclick: () => this.arrange(name) },
          key ? h("kbd", {}, key) : null,
          label,
        ),
      ),
    );
    this.element = h(
      "div",
      { class: "view traces" },
      h("aside", { "aria-label": "Filters and list" }, this.form, this.list.element),
      h(
        "section",
        { class: "reader", "aria-label": "Trace" },
        h("div", { class: "toolbar" }, this.modes, this.layouts),
        this.detail,
      ),
    );
  }

  hasTokens(table) {
    return table.runs.some((run) => run.head.scales);
  }

  controls() {
    const { table } = this;
    const change = () => this.update();
    const choice = (name, label, options) =>
      h(
        "label",
        {},
        h("span", {}, label),
        h(
          "select",
          { name, onchange: change },
          h("option", { value: "" }, "any"),
          ...options.map(([value, text]) => h("option", { value }, text)),
        ),
      );
    const words = (name) => (table.words[name] || []).map((word) => [word, word]);
    const entry = (name, label, properties) =>
      h("input", {
        name,
        "aria-label": label,
        placeholder: label,
        autocomplete: "off",
        spellcheck: "false",
        oninput: change,
        ...properties,
      });
    const fields = [
      h(
        "div",
        { class: "search" },
        entry("q", "Search in texts", { type: "search", "aria-keyshortcuts": "/" }),
        h(
          "label",
          { class: "regex", title: "Read the search as a regular expression" },
          h("input", { type: "checkbox", name: "regex", "aria-label": "Regular expression", onchange: change }),
          ".*",
        ),
      ),
      h("p", { class: "error", role: "alert", hidden: true }),
      h(
        "div",
        { class: "fields" },
        table.runs.length > 1
          ? choice(
              "run",
              "run",
              table.runs.map((run) => [run.letter, `${run.letter.toUpperCase()} ${run.head.name}`]),
            )
          : null,
        choice("split", "split", words("split")),
        choice("correct", "verdict", [
          ["right", "right"],
          ["wrong", "wrong"],
          ["none", "no verdict"],
        ]),
        choice("status", "status", words("status")),
        choice("finish", "finish", words("finish")),
        choice(
          "behaviour",
          "behaviour",
          table.behaviours.map((name) => [name, spaced(name)]),
        ),
        h(
          "label",
          {},
          h("span", {}, "problem"),
          entry("problem", "any", { "aria-label": "Problem", list: "problems" }),
          h(
            "datalist",
            { id: "problems" },
            ...(table.words.problem || []).slice(0, 2000).map((id) => h("option", { value: id })),
          ),
        ),
        h(
          "fieldset",
          {},
          h("legend", {}, "step"),
          entry("from", "from", { inputmode: "numeric", "aria-label": "From step" }),
          "–",
          entry("to", "to", { inputmode: "numeric", "aria-label": "To step" }),
        ),
        h(
          "fieldset",
          {},
          h("legend", {}, "reward"),
          entry("low", "low", { inputmode: "decimal", "aria-label": "Lowest reward" }),
          "–",
          entry("high", "high", { inputmode: "decimal", "aria-label": "Highest reward" }),
        ),
        h(
          "label",
          {},
          h("span", {}, "sort by"),
          h(
            "select",
            { name: "sort", onchange: change },
            ...Object.entries(SORTS).flatMap(([column, name]) => [
              h("option", { value: column }, `${name} ↑`),
              h("option", { value: `-${column}` }, `${name} ↓`),
            ]),
          ),
        ),
      ),
      h(
        "div",
        { class: "counted" },
        this.found,
        h("button", { type: "button", class: "link", onclick: () => this.clear() }, "clear filters"),
      ),
    ];
    return h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() }, ...fields);
  }

  clear() {
    this.filter = { ...EMPTY };
    this.show();
    this.apply();
  }

  // The form's state becomes the filter.
  update() {
    for (const field of this.form.elements)
      if (field.name)
        this.filter[field.name] = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value.trim();
    this.apply();
  }

  // The filter's state becomes the form.
  show() {
    for (const field of this.form.elements) {
      if (!field.name) continue;
      if (field.type === "checkbox") field.checked = this.filter[field.name] !== "";
      else field.value = this.filter[field.name] ?? "";
    }
  }

  apply() {
    const began = performance.now();
    const rows = this.search.rows(this.filter);
    this.list.fill(rows);
    const took = performance.now() - began;
    this.found.textContent = `${count(rows.length)} of ${count(this.table.size)} traces`;
    this.found.title = `in ${number(took)} ms`;
    this.found.dataset.count = rows.length;
    this.found.dataset.milliseconds = took;
    const error = this.form.querySelector(".error");
    error.textContent = this.search.error;
    error.hidden = !this.search.error;
    if (!rows.includes(this.row)) this.row = rows.length ? rows[0] : null;
    this.list.element.scrollTop = 0;
    this.redraw();
  }

  item(row) {
    const { table } = this;
    const { step, reward, correct, tokens } = table.columns;
    const [name, sign] = verdict(correct[row]);
    const text = table.text(row);
    return [
      h(
        "div",
        { class: "line" },
        table.runs.length > 1
          ? h("span", { class: `letter run${table.run[row]}` }, table.runs[table.run[row]].letter.toUpperCase())
          : null,
        h("span", { class: `verdict ${name}`, "aria-label": name === "none" ? "no verdict" : name, role: "img" }, sign),
        h("span", { class: "id" }, table.word("problem", row).slice(this.shared)),
        h("span", { class: "num" }, `${table.word("split", row) === "train" ? "" : "eval · "}step ${step[row]}`),
        h("span", { class: "num reward" }, number(reward[row])),
        h("span", { class: "num" }, `${tokens[row]} tok`),
      ),
      h("div", { class: "snippet" }, ...this.snippet(text)),
    ];
  }

  snippet(text) {
    const flat = (part) => part.replace(/\s+/g, " ");
    const [first] = this.filter.q ? hits(this.filter, text.slice(0, 20000)) : [];
    if (!first) return [flat(text.slice(0, 160))];
    const from = Math.max(0, first[0] - 30);
    return [
      `${from ? "…" : ""}${flat(text.slice(from, first[0]))}`,
      h("mark", {}, flat(text.slice(...first))),
      flat(text.slice(first[1], first[1] + 120)),
    ];
  }

  open(row) {
    [this.row, this.layout] = [row, "one"];
    this.redraw();
    this.detail.scrollTop = 0;
  }

  move(by) {
    const { rows } = this.list;
    if (!rows.length) return;
    const at = rows.indexOf(this.row);
    this.row = rows[Math.max(0, Math.min(rows.length - 1, at + by))];
    this.redraw();
    this.detail.scrollTop = 0;
  }

  colour(mode) {
    this.mode = mode;
    this.redraw();
  }

  arrange(layout) {
    this.layout = this.layout === layout ? "one" : layout;
    this.redraw();
  }

  async redraw() {
    const { table } = this;
    for (const button of this.modes.children) button.setAttribute("aria-pressed", button.dataset.mode === this.mode);
    for (const button of this.layouts.children)
      button.setAttribute("aria-pressed", button.dataset.layout === this.layout);
    this.list.select(this.row);
    $("tip").hidden = true;
    const turn = ++this.drawing;
    const state = { mode: this.mode, filter: this.filter, row: this.row, other: this.other };
    const acts = { siblings: (row) => this.open(row), compare: (side, row) => this.choose(side, row) };
    const made =
      this.row === null
        ? h("p", { class: "note empty" }, table.size ? "No trace matches these filters." : "There are no traces.")
        : await LAYOUTS[this.layout](table, this.row, state, acts[this.layout]);
    if (turn !== this.drawing) return; // another trace was opened meanwhile
    this.detail.replaceChildren(made);
    this.detail.dataset.drawn = turn;
    this.remember();
  }

  choose(side, row) {
    if (side === "row") {
      this.other ??= counterpart(this.table, this.row);
      if (this.other === row) this.other = this.row;
    }
    this[side] = row;
    this.redraw();
  }

  // The state as the part of an address after #traces, and back.
  link() {
    const found = new URLSearchParams();
    for (const [name, value] of Object.entries(this.filter)) if (value !== EMPTY[name]) found.set(name, value);
    if (this.row !== null) found.set("t", this.table.key(this.row));
    if (this.mode !== "logp") found.set("colour", this.mode);
    if (this.layout !== "one") found.set("show", this.layout);
    if (this.layout === "compare" && this.other !== null) found.set("with", this.table.key(this.other));
    return found.toString();
  }

  follow(address) {
    const given = new URLSearchParams(address);
    this.filter = { ...EMPTY };
    for (const name of Object.keys(EMPTY)) if (given.has(name)) this.filter[name] = given.get(name);
    if (!(this.filter.sort.replace("-", "") in SORTS)) this.filter.sort = EMPTY.sort;
    if (given.get("colour") in MODES) this.mode = given.get("colour");
    this.layout = given.get("show") in LAYOUTS ? given.get("show") : "one";
    this.row = this.table.keys.get(given.get("t")) ?? null;
    this.other = this.table.keys.get(given.get("with")) ?? null;
    this.show();
    this.apply();
    this.list.select(this.row);
  }
}
