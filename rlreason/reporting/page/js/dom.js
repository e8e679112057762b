// Elements and numbers. Every text goes in as a text node: what a model wrote is never read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export const $ = (id) => document.getElementById(id);

const counts = new Intl.NumberFormat("en");

export const count = (n) => counts.format(n);

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3)
    return value
      .toExponential(Math.max(0, digits - 2))
      .replace("e+", "e")
      .replace("-", "−");
  if (size >= 1000) return counts.format(Math.round(value)).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

export const spaced = (name) => name.replaceAll("_", " ");

export const percent = (share) =>
  Number.isNaN(share) ? "–" : `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;

// Wilson's interval of a share, 95 %.
export function wilson(hits, n) {
  if (!n) return [NaN, NaN];
  const z = 1.959964,
    p = hits / n,
    scale = 1 + (z * z) / n;
  const centre = p + (z * z) / (2 * n);
  const spread = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, (centre - spread) / scale), Math.min(1, (centre + spread) / scale)];
}
