// Which traces are listed, and in what order. Cheap conditions come first; texts are searched only in what is left.

export const EMPTY = {
  run: "",
  split: "",
  from: "",
  to: "",
  problem: "",
  correct: "",
  status: "",
  finish: "",
  behaviour: "",
  low: "",
  high: "",
  q: "",
  regex: "",
  sort: "step",
};

export const SORTS = {
  step: "step",
  reward: "reward",
  tokens: "length",
  surprise: "surprise",
  loss: "loss",
  advantage: "advantage",
};

export class Search {
  constructor(table) {
    this.table = table;
    this.orders = new Map();
    this.found = { key: null, hits: null };
    this.error = "";
  }

  // The rows that match, in order. `error` says what is wrong with a regular expression.
  rows(filter) {
    const matches = this.matches(filter);
    const order = this.order(filter.sort);
    const found = [];
    for (let k = 0; k < order.length; k++) if (matches[order[k]]) found.push(order[k]);
    return found;
  }

  matches(filter) {
    const { table } = this;
    const { step, split, problem, correct, status, finish, reward } = table.columns;
    const yes = new Uint8Array(table.size).fill(1);
    const keep = (test) => {
      for (let i = 0; i < yes.length; i++) if (yes[i] && !test(i)) yes[i] = 0;
    };
    if (filter.run !== "") {
      const wanted = table.runs.findIndex((run) => run.letter === filter.run);
      keep((i) => table.run[i] === wanted);
    }
    for (const [name, column] of [
      ["split", split],
      ["status", status],
      ["finish", finish],
    ]) {
      if (filter[name] === "") continue;
      const wanted = table.words[name].indexOf(filter[name]);
      keep((i) => column[i] === wanted);
    }
    for (const [name, column, sign] of [
      ["from", step, 1],
      ["to", step, -1],
      ["low", reward, 1],
      ["high", reward, -1],
    ]) {
      const bound = parseFloat(filter[name]);
      if (!Number.isNaN(bound)) keep((i) => sign * (column[i] - bound) >= 0);
    }
    if (filter.correct !== "") {
      const wanted = { right: 1, wrong: 0, none: -1 }[filter.correct];
      keep((i) => correct[i] === wanted);
    }
    if (filter.problem !== "") {
      const exact = table.words.problem.includes(filter.problem);
      const needle = filter.problem.toLowerCase();
      const wanted = table.words.problem.map((id) =>
        exact ? id === filter.problem : id.toLowerCase().includes(needle),
      );
      keep((i) => wanted[problem[i]]);
    }
    if (filter.behaviour !== "") {
      const bit = 1 << table.behaviours.indexOf(filter.behaviour);
      keep((i) => table.shows[i] & bit);
    }
    this.error = "";
    if (filter.q !== "") this.texts(filter, yes);
    return yes;
  }

  // Rows already ruled out are not searched; what was found is kept while the words stay the same.
  texts(filter, yes) {
    const key = `${filter.regex}\n${filter.q}`;
    if (this.found.key !== key) this.found = { key, hits: new Int8Array(yes.length) };
    const { hits } = this.found;
    const test = finder(filter);
    if (test instanceof Error) {
      this.error = test.message;
      yes.fill(0);
      return;
    }
    for (let i = 0; i < yes.length; i++) {
      if (!yes[i]) continue;
      if (!hits[i]) hits[i] = test(this.table, i) ? 1 : -1;
      yes[i] = hits[i] > 0 ? 1 : 0;
    }
  }

  order(sort) {
    if (!this.orders.has(sort))
      this.orders.set(sort, sorted(this.table.columns[sort.replace("-", "")], sort[0] === "-"));
    return this.orders.get(sort);
  }
}

// The rows by their values; equal ones stay in the run's order, and NaN comes last, whichever way. Numbers are sorted
// natively, then each row goes to its value's place: several times as fast as comparing rows.
function sorted(values, down) {
  const keys = Float64Array.from(values, (value) => (Number.isNaN(value) ? Infinity : down ? -value : value));
  const ranked = keys.slice().sort();
  const taken = new Int32Array(keys.length);
  const order = new Int32Array(keys.length);
  keys.forEach((key, row) => {
    let low = 0;
    for (let high = ranked.length; low < high;) {
      const middle = (low + high) >> 1;
      if (ranked[middle] < key) low = middle + 1;
      else high = middle;
    }
    order[low + taken[low]++] = row;
  });
  return order;
}

function finder(filter) {
  if (!filter.regex) {
    const needle = filter.q.toLowerCase();
    return (table, row) => table.lower(row).includes(needle);
  }
  try {
    const pattern = new RegExp(filter.q, "i");
    return (table, row) => pattern.test(table.text(row));
  } catch (error) {
    return error;
  }
}

// Where the words that are searched for stand in a text: [start, end] pairs, at most 200.
export function hits(filter, text) {
  if (filter.q === "") return [];
  let pattern;
  try {
    pattern = new RegExp(filter.regex ? filter.q : filter.q.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "gi");
  } catch {
    return [];
  }
  const found = [];
  for (const match of text.matchAll(pattern)) {
    if (match[0]) found.push([match.index, match.index + match[0].length]);
    if (found.length >= 200) break;
  }
  return found;
}
