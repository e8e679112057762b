// What the run was, its last figures, its curves, and behaviours over time.

import { chart, forgetCharts } from "./charts.js";
import { count, h, number, percent, spaced, wilson } from "./dom.js";

// Title, name in training, name in an evaluation; in the order in which they are read.
const MAIN = [
  ["Reward", "reward", "reward"],
  ["Accuracy", "accuracy", "accuracy"],
  ["Length, tokens", "completions/mean_length", "mean_length"],
  ["Cut off by the length limit, share", "completions/clipped_ratio", "clipped_ratio"],
  ["Entropy, nats a token", "entropy", "entropy"],
  ["KL to the reference", "kl", "kl"],
  ["Clipped tokens, share", "clip_ratio/region_mean", null],
  ["Groups with no signal, share", "frac_reward_zero_std", null],
  ["Spread of reward in a group", "reward_std", null],
  ["Sampler against trainer, mean |Δ log p|", "sampling/sampling_logp_difference/mean", null],
  ["Loss", "loss", "loss"],
  ["Gradient norm", "grad_norm", null],
  ["Learning rate", "learning_rate", null],
  ["Seconds a step", "step_time", null],
  ["Tokens a second", "perf/step_tokens_per_second", null],
];

const evaluations = (metrics, suffix) =>
  suffix === null
    ? []
    : Object.keys(metrics).filter((name) => name.startsWith("eval/") && name.split("/").slice(2).join("/") === suffix);

function series(run, runs, name, label, extra, bands) {
  const { metrics } = run.head;
  const which = runs.indexOf(run);
  const band =
    bands ||
    (metrics[`${name}_low`]
      ? { step: metrics.step, low: metrics[`${name}_low`], high: metrics[`${name}_high`] }
      : null);
  const at = (side) => band && metrics.step.map((step) => band[side][band.step.indexOf(step)] ?? NaN);
  return {
    label: runs.length > 1 ? `${run.letter.toUpperCase()} ${label}` : label,
    style: `run${which} ${extra}`,
    step: metrics.step,
    value: metrics[name],
    low: at("low"),
    high: at("high"),
  };
}

function lines(runs, train, suffix) {
  return runs.flatMap((run) => {
    const { metrics, bands } = run.head;
    const evals = evaluations(metrics, suffix);
    const own = train in metrics ? [series(run, runs, train, "train", "train", bands?.[train])] : [];
    return [
      ...own,
      ...evals.map((name) => series(run, runs, name, evals.length > 1 ? name.split("/")[1] : "eval", "eval dots")),
    ];
  });
}

const drawable = (found) => found.some((line) => line.value.some(Number.isFinite));

export function overview(runs) {
  forgetCharts();
  const view = h("div", { class: "view overview" }, ...runs.map((run) => about(run, runs)));
  const all = new Set(runs.flatMap((run) => Object.keys(run.head.metrics)));
  const used = new Set(["step"]);
  const shown = [];
  const parts = [...all].filter((name) => /^rewards\/.+\/mean$/.test(name)).map((name) => name.slice(8, -5));
  const main = [...MAIN];
  main.splice(
    2,
    0,
    ...parts
      .filter((part) => part !== "accuracy")
      .map((part) => [`Reward part: ${part}`, `rewards/${part}/mean`, part]),
  );
  for (const [title, train, suffix] of main) {
    const found = lines(runs, train, suffix);
    if (!drawable(found)) continue;
    used.add(train);
    for (const run of runs)
      for (const name of evaluations(run.head.metrics, suffix))
        [name, `${name}_low`, `${name}_high`].forEach((own) => used.add(own));
    shown.push(chart(title, train, found, /^Accuracy|no signal/.test(title) ? [0, 1] : null));
  }
  if (shown.length) view.append(h("section", { class: "charts", "aria-label": "Curves" }, ...shown));
  const rest = [...all].filter(
    (name) =>
      !used.has(name) &&
      drawable(runs.filter((run) => name in run.head.metrics).map((run) => ({ value: run.head.metrics[name] }))),
  );
  if (rest.length) {
    const box = h("div", { class: "charts" });
    const more = h("details", { class: "more" }, h("summary", {}, `All other metrics (${rest.length})`), box);
    more.addEventListener("toggle", () => {
      if (box.childElementCount) return;
      const having = (name) => runs.filter((run) => name in run.head.metrics);
      box.append(
        ...rest.map((name) =>
          chart(
            name,
            name,
            having(name).map((run) => series(run, runs, name, "", name.startsWith("eval/") ? "eval dots" : "train")),
          ),
        ),
      );
    });
    view.append(more);
  }
  return view;
}

function about(run, runs) {
  const { head } = run;
  const facts = head.about.flatMap(([name, text]) => [
    h("dt", {}, name),
    h("dd", { class: name === "command" ? "command" : null }, text),
  ]);
  return h(
    "section",
    { class: "about" },
    h(
      "h2",
      {},
      runs.length > 1 ? h("span", { class: `letter run${runs.indexOf(run)}` }, run.letter.toUpperCase()) : null,
      " ",
      head.name,
    ),
    figures(run),
    h(
      "details",
      { class: "facts" },
      h(
        "summary",
        {},
        head.about
          .filter(([name]) => ["model", "environment", "code", "machine"].includes(name))
          .map(([, text]) => text)
          .join("  ·  ") || "About this run",
      ),
      h("dl", {}, ...facts),
    ),
    head.notes.map((note) => h("p", { class: "note" }, note)),
  );
}

// The last known value of what matters most, with its interval and step.
function figures(run) {
  const { metrics, bands } = run.head;
  const wanted = [];
  for (const name of Object.keys(metrics)) {
    const [kind, env, ...metric] = name.split("/");
    if (kind === "eval" && ["accuracy", "reward", "loss"].includes(metric.join("/")))
      wanted.push([name, `${metric.join("/")}, held-out ${env}`]);
  }
  wanted.sort(([, a], [, b]) => (a < b ? -1 : 1));
  wanted.push(
    ["accuracy", "accuracy, sampled"],
    ["reward", "reward, sampled"],
    ["completions/mean_length", "tokens a completion"],
    ["loss", "loss"],
    ["entropy", "entropy, nats"],
  );
  const made = wanted
    .filter(([name]) => name in metrics)
    .slice(0, 6)
    .map(([name, label]) => {
      const line = series(run, [run], name, "", "", bands?.[name]);
      let i = line.value.length - 1;
      while (i > 0 && !Number.isFinite(line.value[i])) i--;
      const first = line.value.findIndex(Number.isFinite);
      const interval = Number.isFinite(line.low?.[i])
        ? `${number(line.low[i], 2)} to ${number(line.high[i], 2)}`
        : null;
      return h(
        "div",
        { class: "figure" },
        h("b", {}, number(line.value[i])),
        h("span", { class: "label" }, label),
        h(
          "small",
          {},
          [interval, `step ${line.step[i]}`, first >= 0 && first !== i ? `from ${number(line.value[first])}` : null]
            .filter(Boolean)
            .join(" · "),
        ),
      );
    });
  if (run.size)
    made.push(
      h(
        "div",
        { class: "figure" },
        h("b", {}, count(run.size)),
        h("span", { class: "label" }, "traces"),
        h("small", {}, `${count(new Set(run.arrays.step).size)} steps`),
      ),
    );
  return h("div", { class: "figures" }, ...made);
}

// How often each behaviour shows, by step, and how those traces did.
export function behavioursView(table, open) {
  forgetCharts();
  const view = h("div", { class: "view behaviours" });
  if (!table.size) {
    view.append(h("p", { class: "note" }, "There are no traces to look for behaviours in."));
    return view;
  }
  const { step, correct, tokens } = table.columns;
  const times = table.behaviours.map((_, index) => table.shows.reduce((sum, bits) => sum + ((bits >>> index) & 1), 0));
  const shares = table.behaviours.map((name, index) => {
    if (!times[index]) return null;
    const found = table.runs.flatMap((run, r) =>
      ["train", "eval"]
        .map((kind) => {
          const counts = new Map();
          for (let i = 0; i < table.size; i++) {
            if (table.run[i] !== r || (table.word("split", i) === "train") !== (kind === "train")) continue;
            if (!counts.has(step[i])) counts.set(step[i], [0, 0]);
            const own = counts.get(step[i]);
            own[0] += (table.shows[i] >> index) & 1;
            own[1] += 1;
          }
          const steps = [...counts.keys()].sort((a, b) => a - b);
          const intervals = steps.map((at) => wilson(...counts.get(at)));
          return {
            label: table.runs.length > 1 ? `${run.letter.toUpperCase()} ${kind}` : kind,
            style: `run${r} ${kind}${kind === "eval" ? " dots" : ""}`,
            step: steps,
            value: steps.map((at) => counts.get(at)[0] / counts.get(at)[1]),
            low: intervals.map(([low]) => low),
            high: intervals.map(([, high]) => high),
          };
        })
        .filter((line) => line.step.length),
    );
    return chart(spaced(name), name, found);
  });
  const rows = table.behaviours.map((name, index) => {
    const sums = { with: [0, 0, 0, 0], without: [0, 0, 0, 0] }; // traces, judged, right, tokens
    for (let i = 0; i < table.size; i++) {
      const own = sums[(table.shows[i] >> index) & 1 ? "with" : "without"];
      own[0] += 1;
      own[1] += correct[i] >= 0;
      own[2] += correct[i] === 1;
      own[3] += tokens[i];
    }
    const cells = ["with", "without"].flatMap((side) => [
      percent(sums[side][2] / sums[side][1]),
      number(sums[side][3] / sums[side][0]),
    ]);
    return h(
      "tr",
      {},
      h(
        "th",
        { scope: "row" },
        h(
          "button",
          { type: "button", class: "link", onclick: () => open(name), title: "List these traces" },
          spaced(name),
        ),
        h("p", { class: "rule" }, table.rules[index].rule),
      ),
      h("td", {}, count(sums.with[0])),
      h("td", {}, percent(sums.with[0] / table.size)),
      ...[0, 2, 1, 3].map((k) => h("td", {}, cells[k])),
    );
  });
  view.append(
    ...[
      h(
        "p",
        { class: "lead" },
        "Share of traces that show each behaviour, by step, with 95 % intervals. They are found by rules that see ",
        "words, not thoughts: read some of the traces before you believe a curve.",
      ),
      h("section", { class: "charts", "aria-label": "Behaviours over time" }, ...shares),
      times.includes(0)
        ? h(
            "p",
            { class: "note absent" },
            `Not once in these traces: ${table.behaviours
              .filter((_, index) => !times[index])
              .map(spaced)
              .join(", ")}.`,
          )
        : null,
      h(
        "table",
        { class: "summary" },
        h(
          "caption",
          {},
          "All traces together. What goes together is not what causes: ",
          "long, hard problems invite both behaviours and errors.",
        ),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ...["behaviour", "traces", "share", "right with", "right without", "tokens with", "tokens without"].map(
              (name) => h("th", { scope: "col" }, name),
            ),
          ),
        ),
        h("tbody", {}, ...rows),
      ),
    ].filter(Boolean),
  );
  return view;
}
