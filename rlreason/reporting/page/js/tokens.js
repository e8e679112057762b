// The tokens of one trace: their texts, their numbers, and a text coloured by them.

import { h, number } from "./dom.js";
import { hits } from "./filter.js";

const NULL = 255;

// The colourings, by the key that chooses them. `low` and `high` say what the ends of the scale mean.
export const MODES = {
  plain: { key: "0", label: "plain" },
  logp: {
    key: "1",
    label: "log p",
    title: "How unlikely each token was to the policy: −log p, nats",
    low: "certain",
    high: "unlikely",
  },
  surprise: { key: "2", label: "surprise" },
  entropy: {
    key: "3",
    label: "entropy",
    title: "How open the choice was: entropy of the policy's next-token distribution, nats",
    low: "decided",
    high: "open",
  },
  advantage: {
    key: "4",
    label: "advantage",
    title: "What training credited each token with: its advantage",
    low: "discouraged",
    high: "encouraged",
  },
};

const AGAINST = {
  title: "How much more the policy prefers each token than the reference does: log p − log p of the reference, nats",
  low: "reference prefers",
  high: "policy prefers",
};
const ALONE = {
  title: "How surprising each token was, −log p, nats (no reference log-probabilities in this trace)",
  low: "expected",
  high: "surprising",
};

// Numbers of a trace, by token; null where a run does not have them.
export class Trace {
  static async open(table, row) {
    const run = table.runs[table.run[row]];
    const local = table.local[row];
    const trace = new Trace();
    Object.assign(trace, { table, row, text: table.text(row), spans: table.spansOf(row), cut: run.arrays.cut[local] });
    trace.from = run.tokenStart[local];
    trace.size = run.tokenStart[local + 1] - trace.from;
    trace.store = trace.size ? await run.tokens() : null;
    trace.scales = run.head.scales || {};
    trace.pieces = trace.size ? trace.clusters() : [];
    return trace;
  }

  // A token's value; NaN where it is not known.
  value(name, i) {
    const codes = this.store?.[`token/${name}`];
    const code = codes ? codes[this.from + i] : NULL;
    if (code === NULL) return NaN;
    const { scale, signed } = this.scales[name];
    const part = signed ? (code - 127) / 127 : code / 254;
    return Math.sign(part) * part * part * scale;
  }

  // The value that a colouring shows; −log p for both log p and a surprise without a reference.
  shown(mode, i) {
    if (mode === "surprise" && !this.referenced) return this.value("logp", i);
    return this.value(mode, i);
  }

  has(mode) {
    if (mode === "surprise") return this.has("logp");
    for (let i = 0; i < this.size; i++) if (!Number.isNaN(this.value(mode, i))) return true;
    return false;
  }

  get referenced() {
    this.reference ??= Array.from({ length: this.size }).some((_, i) => !Number.isNaN(this.value("surprise", i)));
    return this.reference;
  }

  scale(mode) {
    if (mode === "surprise") return this.referenced ? AGAINST : ALONE;
    return MODES[mode];
  }

  // Runs of tokens that end where a character ends: {text, from, to, start}, of tokens from..to, `start` in
  // the joint text.
  clusters() {
    const { token, piece, pieceStart } = this.store;
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const found = [];
    let open = [],
      from = 0,
      start = 0;
    for (let i = 0; i < this.size; i++) {
      const id = token[this.from + i];
      for (let k = pieceStart[id]; k < pieceStart[id + 1]; k++) open.push(piece[k]);
      if (i + 1 < this.size && unfinished(open)) continue;
      const text = decoder.decode(Uint8Array.from(open));
      found.push({ text, from, to: i + 1, start });
      start += text.length;
      [open, from] = [[], i + 1];
    }
    return found;
  }

  // Where the text stands in the tokens' joint text (negative: a part of it was put before the first token); null if
  // it does not.
  get offset() {
    const joint = this.pieces.map((piece) => piece.text).join("");
    const at = joint.lastIndexOf(this.text);
    if (at >= 0) return at;
    const opened = "<think>";
    return this.text.startsWith(opened) && joint.startsWith(this.text.slice(opened.length)) ? -opened.length : null;
  }
}

// Whether bytes end inside a UTF-8 character: a lead byte with fewer continuation bytes after it than it asks for.
function unfinished(bytes) {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back];
    if (byte >= 0xc0) return (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2) > back;
    if (byte < 0x80) return false;
  }
  return false;
}

// A value's colour class: p1 to p9 above 0, n1 to n9 below, by the square root of its share of `top`.
function shade(value, top) {
  if (!Number.isFinite(value) || !top) return "";
  const level = Math.min(9, Math.round(9 * Math.sqrt(Math.abs(value) / top)));
  return level ? (value < 0 ? `n${level}` : `p${level}`) : "";
}

// The value that gets the deepest colour: fixed for nats, so that traces can be compared; the run's largest otherwise.
export function top(trace, mode) {
  if (mode === "advantage") return trace.scales.advantage?.scale || 0;
  return mode === "entropy" ? 3 : 6;
}

function worst(trace, mode, piece) {
  let found = NaN;
  for (let i = piece.from; i < piece.to; i++) {
    const value = trace.shown(mode, i);
    if (!Number.isNaN(value) && !(Math.abs(value) <= Math.abs(found))) found = value;
  }
  return found;
}

// The trace's text in its parts, thought and answer. Returns the elements; tokens carry their number in the trace.
export function body(trace, mode, filter) {
  const { text, spans } = trace;
  const offset = trace.size ? trace.offset : 0;
  const at = trace.cut;
  const joint = trace.size ? trace.pieces : words(text, spans, hits(filter, text), at);
  const marks = offset === null ? [] : hits(filter, text).map(([from, to]) => [from + offset, to + offset]);
  const shownSpans =
    offset === null ? [] : spans.map((span) => ({ ...span, start: span.start + offset, end: span.end + offset }));
  const colouring = trace.size && mode !== "plain";
  const limit = colouring ? top(trace, mode) : 0;
  const parts = { before: [], thought: [], answer: [], text: [] };
  const end = offset === null ? Infinity : offset + text.length;
  for (const piece of joint) {
    const place =
      offset === null
        ? "text"
        : piece.start < offset
          ? "before"
          : at < 0
            ? "text"
            : piece.start - offset < at
              ? "thought"
              : "answer";
    const classes = [];
    if (colouring) classes.push(shade(worst(trace, mode, piece), limit));
    if (trace.size && /\n/.test(piece.text)) classes.push("nl");
    if (piece.start >= end) classes.push("special");
    if (trace.size && /^<\|.*\|>$|^<\/?s>$/.test(piece.text)) classes.push("special");
    const stop = piece.start + piece.text.length;
    if (marks.some(([from, to]) => from < stop && to > piece.start)) classes.push("hit");
    const own = shownSpans.find((span) => span.start < stop && span.end > piece.start);
    if (own) classes.push(`shows b${own.index % 8}`);
    const given = trace.size && Number.isNaN(trace.value("logp", piece.from)) ? "given" : "";
    const element = h("span", { class: ["t", ...classes, given].filter(Boolean).join(" ") || null }, piece.text);
    if (own && own.start >= piece.start) element.dataset.behaviour = own.name;
    if (trace.size) element.dataset.i = piece.from;
    parts[place].push(element);
  }
  const opened = offset < 0 ? h("span", { class: "t given" }, text.slice(0, -offset)) : null;
  if (opened) (parts.thought.length ? parts.thought : parts.text).unshift(opened);
  const names = { before: "Earlier turns", thought: "Thought", answer: "Answer", text: "Text" };
  const filled = Object.entries(parts).filter(([, elements]) => elements.length);
  return filled.map(([name, elements]) =>
    h(
      "section",
      { class: `part ${name}`, "aria-label": names[name] },
      h("h4", {}, names[name]),
      h("div", { class: "tokens" }, ...elements),
    ),
  );
}

// A text without tokens, cut where something begins or ends.
function words(text, spans, marks, at) {
  const cuts = new Set([
    0,
    text.length,
    ...spans.flatMap((span) => [span.start, span.end]),
    ...marks.flat(),
    ...(at >= 0 ? [at] : []),
  ]);
  const sorted = [...cuts].sort((a, b) => a - b);
  return sorted.slice(0, -1).map((start, k) => ({ text: text.slice(start, sorted[k + 1]), start, from: 0, to: 0 }));
}

// What the pointer shows of the tokens that begin at `i`.
export function details(trace, i) {
  const piece = trace.pieces.find((own) => own.from === i);
  const { token, token_id, trained } = trace.store;
  const rows = [];
  for (let k = piece.from; k < piece.to; k++) {
    const logp = -trace.value("logp", k);
    const said = []; // two digits: more is not in a byte
    const add = (name, value, unit) => Number.isNaN(value) || said.push([name, `${number(value, 2)}${unit || ""}`]);
    add(
      trained[trace.from + k] ? "log p" : "log p (sampler)",
      logp,
      Number.isNaN(logp) ? "" : ` · p ${number(Math.exp(logp), 2)}`,
    );
    add("log p − reference", trace.value("surprise", k));
    add("entropy", trace.value("entropy", k));
    add("advantage", trace.value("advantage", k));
    if (!said.length) said.push(["", "not the policy's"]);
    rows.push(
      h(
        "div",
        { class: "tip-token" },
        h("b", {}, `token ${k + 1}`),
        h("small", {}, `id ${token_id[token[trace.from + k]]}`),
      ),
      ...said.map(([name, value]) => h("div", { class: "tip-row" }, h("span", {}, name), h("span", {}, value))),
    );
  }
  return [h("code", {}, JSON.stringify(piece.text)), ...rows];
}

export function legend(trace, mode) {
  if (mode === "plain" || !trace.size) return h("div", { class: "legend" });
  const scale = trace.scale(mode);
  const signed = mode === "advantage" || (mode === "surprise" && trace.referenced);
  const limit = top(trace, mode);
  const levels = [
    ...(signed ? [9, 8, 7, 6, 5, 4, 3, 2, 1].map((k) => `n${k}`) : []),
    "",
    ...[1, 2, 3, 4, 5, 6, 7, 8, 9].map((k) => `p${k}`),
  ];
  if (!limit) return h("div", { class: "legend" }, h("small", {}, "This run's traces do not have it."));
  return h(
    "div",
    { class: "legend", title: scale.title },
    h("span", {}, `${signed ? number(-limit) : 0} ${scale.low}`),
    h(
      "span",
      { class: "ramp", role: "img", "aria-label": scale.title },
      ...levels.map((level) => h("i", { class: level || null })),
    ),
    h("span", {}, `${scale.high} ${number(limit)}${mode === "advantage" ? "" : "+"}`),
  );
}
