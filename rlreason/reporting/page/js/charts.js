// Line charts over training steps, as SVG. All charts of a page share one crosshair.

import { h, number, svg } from "./dom.js";

const WIDTH = 340,
  HEIGHT = 168,
  LEFT = 46,
  RIGHT = 10,
  TOP = 8,
  BOTTOM = 22;

// Round numbers that divide a range into about `wanted` parts.
export function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

const charts = new Set();

export function forgetCharts() {
  charts.clear();
}

function pointAll(step) {
  for (const chart of charts) chart.point(step);
}

// One chart. `lines`: {label, style, step: [], value: [], low: [], high: []}, of which style is a class that sets the
// colour; "dots" among the classes marks each point. `range` fixes the y-axis, as [low, high].
export function chart(title, name, lines, range) {
  const drawn = lines.filter((line) => line.value.some((value) => value !== null && !Number.isNaN(value)));
  const steps = drawn.flatMap((line) => line.step);
  let [first, last] = [Math.min(...steps), Math.max(...steps)];
  if (first === last) [first, last] = [first - 1, last + 1];
  const known = drawn
    .flatMap((line) => [...line.value, ...(line.low || []), ...(line.high || [])])
    .filter(Number.isFinite);
  let [low, high] = range || [Math.min(...known), Math.max(...known)];
  if (!range) {
    if (low > 0 && low < 0.35 * high) low = 0;
    const room = low === high ? Math.abs(low) * 0.1 || 1 : (high - low) * 0.06;
    [low, high] = [low === 0 ? 0 : low - room, high + room];
  }
  const x = (step) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": spoken(title, drawn) });
  for (const tick of ticks(low, high, 4)) {
    root.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }),
      svg("text", { class: "tick", x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, number(tick)),
    );
  }
  for (const tick of ticks(first, last, 5).filter(Number.isInteger)) {
    root.append(svg("text", { class: "tick", x: x(tick), y: HEIGHT - 6, "text-anchor": "middle" }, String(tick)));
  }
  for (const line of drawn) {
    const points = line.step.map((step, i) => ({
      step,
      value: line.value[i],
      low: line.low?.[i],
      high: line.high?.[i],
    }));
    const there = points.filter((point) => Number.isFinite(point.value));
    const banded = there.filter((point) => Number.isFinite(point.low) && Number.isFinite(point.high));
    if (banded.length > 1) {
      const edge = [
        ...banded.map((p) => `${x(p.step)},${y(p.high)}`),
        ...banded.reverse().map((p) => `${x(p.step)},${y(p.low)}`),
      ];
      root.append(svg("polygon", { class: `band ${line.style}`, points: edge.join(" ") }));
    }
    if (there.length > 1)
      root.append(
        svg("polyline", {
          class: `line ${line.style}`,
          points: there.map((p) => `${x(p.step)},${y(p.value)}`).join(" "),
        }),
      );
    if (line.style.includes("dots") || there.length === 1) {
      for (const p of there)
        root.append(svg("circle", { class: `dot ${line.style}`, cx: x(p.step), cy: y(p.value), r: 2.6 }));
    }
  }
  const cross = svg("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  root.append(cross);
  const readout = h("div", { class: "readout" });
  const all = [...new Set(steps)].sort((a, b) => a - b);
  const self = {
    point(step) {
      const at =
        step === null
          ? null
          : all.reduce((best, own) => (Math.abs(own - step) < Math.abs(best - step) ? own : best), all[0]);
      cross.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at !== null) {
        cross.setAttribute("x1", x(at));
        cross.setAttribute("x2", x(at));
      }
      readout.replaceChildren(
        ...drawn.map((line) => reading(line, at)),
        at === null ? "" : h("span", { class: "at" }, `step ${at}`),
      );
    },
  };
  self.point(null);
  charts.add(self);
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * WIDTH;
    pointAll(first + ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (last - first));
  });
  root.addEventListener("pointerleave", () => pointAll(null));
  return h("figure", { class: "chart", "data-metric": name }, h("figcaption", { title: name }, title), root, readout);
}

// A line's value at a step, or its last one; an interval where there is one.
function reading(line, at) {
  let i = line.step.length - 1;
  if (at === null) while (i > 0 && !Number.isFinite(line.value[i])) i--;
  else i = line.step.indexOf(at);
  const value = i < 0 ? NaN : line.value[i];
  const low = line.low?.[i],
    high = line.high?.[i];
  return h(
    "span",
    { class: `key ${line.style}` },
    h("i", { "aria-hidden": true }),
    `${line.label} `,
    h("b", {}, number(value)),
    Number.isFinite(low) && Number.isFinite(high) ? h("small", {}, ` ${number(low, 2)} to ${number(high, 2)}`) : null,
  );
}

function spoken(title, lines) {
  const said = lines.map((line) => {
    const there = line.value.map((value, i) => [line.step[i], value]).filter(([, value]) => Number.isFinite(value));
    const [from, to] = [there[0], there[there.length - 1]];
    return `${line.label} from ${number(from[1])} at step ${from[0]} to ${number(to[1])} at step ${to[0]}`;
  });
  return `${title}: ${said.join("; ")}`;
}
