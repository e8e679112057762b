// A list of any length, of which only the rows in sight are in the document.

import { h } from "./dom.js";

export const ROW = 54;

export class List {
  constructor({ draw, choose }) {
    Object.assign(this, { draw, choose, rows: [], current: -1, drawn: new Map() });
    this.space = h("div", { class: "space" });
    this.element = h("div", { class: "list", role: "listbox", "aria-label": "Traces", tabindex: "0" }, this.space);
    this.element.addEventListener("scroll", () => this.refresh(), { passive: true });
    new ResizeObserver(() => this.refresh()).observe(this.element);
    this.space.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.choose(Number(item.dataset.row));
    });
  }

  // Shows `rows`, numbers of traces, in this order.
  fill(rows) {
    this.rows = rows;
    this.space.style.height = `${rows.length * ROW}px`;
    this.space.replaceChildren();
    this.drawn.clear();
    this.refresh();
  }

  // Marks a trace as the one that is open; `reveal` scrolls to it.
  select(row, reveal = true) {
    this.current = row;
    const at = this.rows.indexOf(row);
    if (reveal && at >= 0) {
      const { scrollTop, clientHeight } = this.element;
      if (at * ROW < scrollTop) this.element.scrollTop = at * ROW;
      else if ((at + 1) * ROW > scrollTop + clientHeight) this.element.scrollTop = (at + 1) * ROW - clientHeight;
    }
    for (const item of this.drawn.values()) item.setAttribute("aria-selected", Number(item.dataset.row) === row);
    this.refresh();
  }

  refresh() {
    const { scrollTop, clientHeight } = this.element;
    const from = Math.max(0, Math.floor(scrollTop / ROW) - 4);
    const to = Math.min(this.rows.length, Math.ceil((scrollTop + clientHeight) / ROW) + 4);
    for (const [at, item] of this.drawn) {
      if (at >= from && at < to) continue;
      item.remove();
      this.drawn.delete(at);
    }
    for (let at = from; at < to; at++) {
      if (this.drawn.has(at)) continue;
      const row = this.rows[at];
      const item = h(
        "div",
        {
          role: "option",
          id: `option-${row}`,
          "data-row": row,
          "aria-selected": row === this.current,
          "aria-setsize": this.rows.length,
          "aria-posinset": at + 1,
        },
        ...this.draw(row),
      );
      item.style.top = `${at * ROW}px`;
      this.space.append(item);
      this.drawn.set(at, item);
    }
    const shown = document.getElementById(`option-${this.current}`);
    if (shown) this.element.setAttribute("aria-activedescendant", shown.id);
    else this.element.removeAttribute("aria-activedescendant");
  }
}
