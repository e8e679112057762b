// One trace beside its list; its group's siblings; two traces of one problem.

import { h, number, spaced } from "./dom.js";
import { MODES, Trace, body, details, legend } from "./tokens.js";

export const verdict = (correct) => ({ 1: ["right", "✓"], 0: ["wrong", "✗"] })[correct] || ["none", "–"];

function mark(correct) {
  const [name, sign] = verdict(correct);
  return h(
    "span",
    { class: `verdict ${name}`, role: "img", "aria-label": name === "none" ? "no verdict" : name },
    sign,
  );
}

export function label(table, row) {
  const { step, group, sample, reward } = table.columns;
  const run = table.runs.length > 1 ? `${table.runs[table.run[row]].letter.toUpperCase()} · ` : "";
  const place = `${table.word("split", row)} · step ${step[row]} · group ${group[row]} #${sample[row]}`;
  return `${run}${place} · reward ${number(reward[row])}`;
}

function facts(table, row) {
  const c = table.columns;
  const own = [
    ["answer", table.word("answer", row) ?? "none"],
    ["gold", table.word("gold", row)],
    ["reward", number(c.reward[row])],
    ...table.parts.map((part) => [part, Number.isNaN(c[`part/${part}`][row]) ? null : number(c[`part/${part}`][row])]),
    ["advantage", Number.isNaN(c.advantage[row]) ? null : number(c.advantage[row])],
    ["tokens", number(c.tokens[row])],
    ["surprise", Number.isNaN(c.surprise[row]) ? null : number(c.surprise[row])],
    ["loss", Number.isNaN(c.loss[row]) ? null : number(c.loss[row])],
    ["status", table.word("status", row)],
    ["finish", table.word("finish", row)],
    ["generated in", Number.isNaN(c.generate_seconds[row]) ? null : `${number(c.generate_seconds[row])} s`],
  ];
  return h(
    "dl",
    { class: "trace-facts" },
    ...own
      .filter(([, value]) => value !== null)
      .map(([name, value]) =>
        h(
          "div",
          { class: name === "answer" || name === "gold" ? "literal" : null },
          h("dt", {}, name),
          h("dd", {}, value),
        ),
      ),
  );
}

function conversation(table, row) {
  const messages = JSON.parse(table.word("prompt", row) || "[]");
  const said = (list) =>
    list.map((message) =>
      h("div", { class: "message" }, h("h4", {}, message.role), h("div", { class: "said" }, message.content)),
    );
  const turns = table.word("turns", row);
  return [
    h("details", { class: "prompt", open: true }, h("summary", {}, "Prompt"), ...said(messages)),
    turns === null
      ? null
      : h("details", { class: "prompt" }, h("summary", {}, "The whole conversation"), ...said(JSON.parse(turns))),
  ];
}

function shown(trace) {
  const counts = new Map();
  for (const span of trace.spans)
    counts.set(span.name, { index: span.index, times: (counts.get(span.name)?.times || 0) + 1 });
  if (!counts.size) return null;
  const go = (event) => {
    const target = event.currentTarget
      .closest(".trace")
      .querySelector(`[data-behaviour="${CSS.escape(event.currentTarget.dataset.name)}"]`);
    target?.scrollIntoView({ block: "center" });
  };
  return h(
    "div",
    { class: "found", "aria-label": "Behaviours in this trace" },
    ...[...counts].map(([name, { index, times }]) =>
      h(
        "button",
        { type: "button", class: `chip shows b${index % 8}`, "data-name": name, onclick: go, title: "Show where" },
        times > 1 ? `${spaced(name)} × ${times}` : spaced(name),
      ),
    ),
  );
}

// Values along the trace, as a strip: where the colour sits, at a glance. A click goes there.
function strip(trace, mode, text) {
  if (mode === "plain" || trace.size < 40) return null;
  const bins = Math.min(trace.size, 160);
  const deepest = Array.from({ length: bins }, () => [0, ""]);
  for (const span of text.querySelectorAll("[data-i]")) {
    const found = /\b([np])([1-9])\b/.exec(span.className);
    const bin = Math.floor((Number(span.dataset.i) / trace.size) * bins);
    if (found && Number(found[2]) > deepest[bin][0]) deepest[bin] = [Number(found[2]), found[0]];
  }
  const go = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * trace.size;
    const spans = [...text.querySelectorAll("[data-i]")];
    spans.findLast((span) => Number(span.dataset.i) <= wanted)?.scrollIntoView({ block: "center" });
  };
  return h(
    "div",
    { class: "strip", "aria-hidden": true, title: "The whole trace; click to go there", onclick: go },
    ...deepest.map(([, level]) => h("i", { class: level || null })),
  );
}

function tokensOf(trace, mode, filter) {
  const text = h(
    "div",
    {
      class: "text",
      tabindex: "0",
      role: "group",
      "aria-label": "Text of the trace; left and right arrow read out tokens",
    },
    ...body(trace, mode, filter),
  );
  if (trace.size) inspect(text, trace);
  return text;
}

// Numbers of the token under the pointer, or at the arrow keys.
function inspect(text, trace) {
  const tip = document.getElementById("tip");
  const show = (span) => {
    tip.replaceChildren(...details(trace, Number(span.dataset.i)));
    tip.hidden = false;
    const box = span.getClientRects()[0] || span.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${box.bottom + own.height + 10 > innerHeight ? box.top - own.height - 6 : box.bottom + 6}px`;
  };
  const hide = () => {
    tip.hidden = true;
    text.querySelector(".at")?.classList.remove("at");
  };
  text.addEventListener("pointerover", (event) => {
    const span = event.target.closest("[data-i]");
    if (span) show(span);
    else hide();
  });
  text.addEventListener("pointerleave", hide);
  text.addEventListener("blur", hide);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const spans = [...text.querySelectorAll("[data-i]")];
    const at = spans.findIndex((span) => span.classList.contains("at"));
    const next = spans[Math.max(0, Math.min(spans.length - 1, at + (event.key === "ArrowRight" ? 1 : -1)))];
    spans[at]?.classList.remove("at");
    next.classList.add("at");
    next.scrollIntoView({ block: "nearest" });
    show(next);
    event.preventDefault();
  });
}

function heading(table, row) {
  const { step, group, sample, correct } = table.columns;
  const run = table.runs[table.run[row]];
  return h(
    "header",
    {},
    mark(correct[row]),
    h("h3", {}, table.word("problem", row)),
    h(
      "p",
      {},
      [
        table.runs.length > 1 ? run.head.name : null,
        table.word("split", row),
        `step ${step[row]}`,
        `group ${group[row]}`,
        `sample ${sample[row]}`,
      ]
        .filter(Boolean)
        .join(" · "),
    ),
  );
}

export async function single(table, row, state) {
  const trace = await Trace.open(table, row);
  const text = tokensOf(trace, state.mode, state.filter);
  return h(
    "article",
    { class: "trace", "data-key": table.key(row) },
    heading(table, row),
    facts(table, row),
    shown(trace),
    conversation(table, row),
    trace.size
      ? [legend(trace, state.mode), strip(trace, state.mode, text)]
      : h("p", { class: "note" }, "No tokens are kept for this trace; its text is shown plain."),
    trace.size && state.mode !== "plain" && !trace.has(state.mode)
      ? h("p", { class: "note" }, missing(state.mode))
      : null,
    text,
  );
}

function missing(mode) {
  return mode === "advantage"
    ? "This trace has no advantages: it was written by an evaluation, or before they were stored."
    : `This trace has no ${MODES[mode].label}: it is an evaluation's, or its group had no training signal.`;
}

async function column(table, row, state, head) {
  const trace = await Trace.open(table, row);
  const c = table.columns;
  return h(
    "article",
    { class: `trace column${row === state.row ? " current" : ""}`, "data-key": table.key(row) },
    head,
    h(
      "p",
      { class: "brief" },
      mark(c.correct[row]),
      h("b", {}, table.word("answer", row) ?? "no answer"),
      ` reward ${number(c.reward[row])}`,
      Number.isNaN(c.advantage[row]) ? "" : ` · advantage ${number(c.advantage[row])}`,
      ` · ${c.tokens[row]} tokens`,
      table.word("finish", row) === "length" ? " · cut off" : "",
    ),
    shown(trace),
    tokensOf(trace, state.mode, state.filter),
  );
}

export async function siblings(table, row, state, open) {
  const rows = table.siblings(row);
  const columns = await Promise.all(
    rows.map((own) =>
      column(
        table,
        own,
        state,
        h(
          "header",
          {},
          h(
            "button",
            { type: "button", class: "link", onclick: () => open(own) },
            `sample ${table.columns.sample[own]}`,
          ),
        ),
      ),
    ),
  );
  const trace = await Trace.open(table, row);
  const right = rows.filter((own) => table.columns.correct[own] === 1).length;
  return h(
    "div",
    { class: "beside" },
    heading(table, row),
    h(
      "p",
      { class: "brief" },
      `${rows.length} samples of one prompt, ${right} right · gold ${table.word("gold", row) ?? "not known"}`,
    ),
    conversation(table, row),
    legend(trace, state.mode),
    h("div", { class: "columns", "aria-label": "The group's samples" }, ...columns),
  );
}

// The trace that a comparison shows first: the same step of the other run, or else the step furthest away; of the same
// split and sample as far as possible.
export function counterpart(table, row) {
  const { split, step, sample } = table.columns;
  const others = table.sameProblem(row).filter((own) => own !== row);
  if (!others.length) return null;
  const elsewhere = others.some((own) => table.run[own] !== table.run[row]);
  const cost = (own) => {
    const away = Math.abs(step[own] - step[row]);
    const same = table.run[own] === table.run[row];
    return [elsewhere && same, split[own] !== split[row], same ? -away : away, sample[own] !== sample[row]].map(Number);
  };
  const order = (a, b) =>
    cost(a)
      .map((own, k) => own - cost(b)[k])
      .find((difference) => difference !== 0) || 0;
  return others.reduce((best, own) => (order(own, best) < 0 ? own : best));
}

export async function compare(table, row, state, choose) {
  const rows = table.sameProblem(row);
  const other =
    state.other !== null && table.columns.problem[state.other] === table.columns.problem[row]
      ? state.other
      : counterpart(table, row);
  const pick = (own, side) =>
    h(
      "select",
      {
        "aria-label": side === "row" ? "Left trace" : "Right trace",
        onchange: (event) => choose(side, Number(event.target.value)),
      },
      ...rows.map((each) => h("option", { value: String(each), selected: each === own }, label(table, each))),
    );
  if (other === null)
    return h(
      "div",
      { class: "beside" },
      heading(table, row),
      h("p", { class: "note" }, "No other trace is of this problem."),
    );
  const [left, right] = await Promise.all([
    column(table, row, state, h("header", {}, pick(row, "row"))),
    column(table, other, state, h("header", {}, pick(other, "other"))),
  ]);
  const trace = await Trace.open(table, row);
  return h(
    "div",
    { class: "beside" },
    heading(table, row),
    h(
      "p",
      { class: "brief" },
      `${rows.length} traces of this problem · gold ${table.word("gold", row) ?? "not known"}`,
    ),
    conversation(table, row),
    legend(trace, state.mode),
    h("div", { class: "columns two", "aria-label": "Two traces of this problem" }, left, right),
  );
}
