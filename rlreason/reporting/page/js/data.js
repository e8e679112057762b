// The runs' data out of the page: payloads are deflated and base64, arrays are little-endian.

const KINDS = {
  f64: Float64Array,
  f32: Float32Array,
  i32: Int32Array,
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
};

async function payload(id) {
  const element = document.getElementById(id);
  if (!element) return null;
  const letters = atob(element.textContent);
  element.remove();
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// What is only needed once a trace is opened.
const LATER = new Set([
  "token",
  "token_id",
  "piece",
  "piece_bytes",
  "trained",
  "token/logp",
  "token/surprise",
  "token/entropy",
  "token/advantage",
]);

export class Run {
  static async open(letter) {
    const raw = await payload(`${letter}/head`);
    if (raw === null) return null;
    const run = new Run();
    run.letter = letter;
    run.head = JSON.parse(new TextDecoder().decode(raw));
    run.size = run.head.traces;
    run.arrays = {};
    for (const name of Object.keys(run.head.types || {})) {
      if (!LATER.has(name)) run.arrays[name] = await run.array(name);
    }
    run.readTexts();
    return run;
  }

  async array(name) {
    return new KINDS[this.head.types[name]](await payload(`${this.letter}/${name}`));
  }

  readTexts() {
    this.texts = new Array(this.size);
    this.lower = new Array(this.size);
    this.spanStart = new Int32Array(this.size + 1);
    this.tokenStart = new Int32Array(this.size + 1);
    if (!this.size) return;
    const { text, text_bytes, spans, tokens, kept } = this.arrays;
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    for (let i = 0, at = 0; i < this.size; i++) {
      this.texts[i] = decoder.decode(text.subarray(at, (at += text_bytes[i])));
      this.lower[i] = this.texts[i].toLowerCase();
      this.spanStart[i + 1] = this.spanStart[i] + spans[i];
      this.tokenStart[i + 1] = this.tokenStart[i] + (kept[i] ? tokens[i] : 0);
    }
    delete this.arrays.text;
  }

  // The arrays of tokens, all of them at the first call.
  tokens() {
    this.tokenArrays ||= (async () => {
      const names = Object.keys(this.head.types).filter((name) => LATER.has(name));
      const found = {};
      for (const name of names) found[name] = await this.array(name);
      found.pieceStart = new Int32Array(found.piece_bytes.length + 1);
      found.piece_bytes.forEach((length, i) => (found.pieceStart[i + 1] = found.pieceStart[i] + length));
      return found;
    })();
    return this.tokenArrays;
  }
}

// The traces of all runs, laid end to end. Words are coded anew, by one dictionary for all runs.
export class Table {
  constructor(runs) {
    this.runs = runs;
    this.size = runs.reduce((sum, run) => sum + run.size, 0);
    this.run = new Uint8Array(this.size);
    this.local = new Int32Array(this.size);
    let at = 0;
    runs.forEach((run, r) => {
      for (let i = 0; i < run.size; i++, at++) {
        this.run[at] = r;
        this.local[at] = i;
      }
    });
    const withTraces = runs.filter((run) => run.size);
    this.words = {};
    this.columns = {};
    const names = new Set(withTraces.flatMap((run) => Object.keys(run.arrays)));
    for (const name of names) {
      const worded = withTraces.some((run) => name in run.head.words);
      if (worded) this.merge(name);
      else if (withTraces.every((run) => !(name in run.arrays) || run.arrays[name].length === run.size))
        this.join(name);
    }
    this.parts = [...names].filter((name) => name.startsWith("part/")).map((name) => name.slice(5));
    this.rules = withTraces[0]?.head.behaviours || [];
    this.behaviours = this.rules.map((own) => own.name);
    this.shows = new Uint32Array(this.size);
    for (let i = 0; i < this.size; i++) for (const span of this.spansOf(i)) this.shows[i] |= 1 << span.index;
    this.keys = new Map();
    for (let i = 0; i < this.size; i++) this.keys.set(this.key(i), i);
  }

  join(name) {
    const kind = this.runs.find((run) => name in run.arrays).arrays[name].constructor;
    const found = new kind(this.size);
    let at = 0;
    for (const run of this.runs) {
      if (name in run.arrays) found.set(run.arrays[name], at);
      else found.fill(NaN, at, at + run.size);
      at += run.size;
    }
    this.columns[name] = found;
  }

  merge(name) {
    const codes = new Map();
    const words = [];
    const found = new Int32Array(this.size);
    let at = 0;
    for (const run of this.runs) {
      if (!run.size) continue;
      const ours = run.head.words[name].map((word) => {
        if (!codes.has(word)) codes.set(word, words.push(word) - 1);
        return codes.get(word);
      });
      for (const code of run.arrays[name]) found[at++] = code < 0 ? -1 : ours[code];
    }
    this.words[name] = words;
    this.columns[name] = found;
  }

  // The word of a row in a column of words; null where there is none.
  word(name, row) {
    const code = this.columns[name][row];
    return code < 0 ? null : this.words[name][code];
  }

  text(row) {
    return this.runs[this.run[row]].texts[this.local[row]];
  }

  lower(row) {
    return this.runs[this.run[row]].lower[this.local[row]];
  }

  spansOf(row) {
    const run = this.runs[this.run[row]];
    const { span_name, span_start, span_end } = run.arrays;
    const found = [];
    for (let k = run.spanStart[this.local[row]]; k < run.spanStart[this.local[row] + 1]; k++) {
      found.push({ name: this.behaviours[span_name[k]], index: span_name[k], start: span_start[k], end: span_end[k] });
    }
    return found;
  }

  // What names a trace in a link.
  key(row) {
    const { step, group, sample } = this.columns;
    return [this.runs[this.run[row]].letter, this.word("split", row), step[row], group[row], sample[row]].join(".");
  }

  siblings(row) {
    const { step, split, group, sample } = this.columns;
    const found = [];
    for (let i = 0; i < this.size; i++) {
      if (this.run[i] === this.run[row] && step[i] === step[row] && split[i] === split[row] && group[i] === group[row])
        found.push(i);
    }
    return found.sort((a, b) => sample[a] - sample[b]);
  }

  sameProblem(row) {
    const { problem, step, sample } = this.columns;
    const found = [];
    for (let i = 0; i < this.size; i++) if (problem[i] === problem[row]) found.push(i);
    return found.sort((a, b) => this.run[a] - this.run[b] || step[a] - step[b] || sample[a] - sample[b]);
  }
}
