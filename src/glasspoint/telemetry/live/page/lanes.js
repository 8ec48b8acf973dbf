// What happened, above the charts and on their axis of time: bands of tier and breaker, and a mark for each event.

import { el, mark, svg } from "./dom.js";
import { KINDS, time } from "./words.js";

// The room left and right of every chart, so that a moment is at one place in all of them.
export const LEFT = 56;
export const RIGHT = 28;
export const MOST_MARKS = 200;

const LANES = [
  ["tier", "Tier", []],
  ["breaker", "Breaker", []],
  ["faults", "Faults", ["fault", "story"]],
  ["cache", "Cache", ["epoch", "identity", "quarantine"]],
  ["journal", "Journal", ["journal", "drain"]],
  ["other", "Other", ["fork", "foreign_writes", "retention", "saver"]],
];
const LANE_OF = new Map(LANES.flatMap(([lane, , kinds]) => kinds.map((kind) => [kind, lane])));

export class Lanes {
  #side = el("div", { class: "strip-side" });
  #svg = svg("svg", { role: "img" });
  #plot = el("div", { class: "plot lanes" });
  #last = null;
  #hair = svg("line", { class: "hair", visibility: "hidden" });

  constructor(holder) {
    this.#side.append(
      el("h3", { text: "What happened" }),
      el("p", {
        class: "hint",
        text: "Bands show the tier and the breaker. A mark is an event: point at it, or read the list of events below.",
      }),
    );
    this.#plot.append(this.#svg);
    holder.append(el("section", { class: "strip what", "aria-label": "What happened" }, this.#side, this.#plot));
  }

  fit() {
    if (this.#last) this.show(...this.#last);
  }

  hair(at) {
    if (!this.#last || at === null) {
      mark(this.#hair, "visibility", "hidden");
      return;
    }
    const [, , from, until] = this.#last;
    const x = String(LEFT + ((at - from) / (until - from)) * (this.#plot.clientWidth - LEFT - RIGHT));
    mark(this.#hair, "x1", x);
    mark(this.#hair, "x2", x);
    mark(this.#hair, "visibility", "visible");
  }

  show(rows, events, from, until) {
    this.#last = [rows, events, from, until];
    const width = Math.max(120, this.#plot.clientWidth),
      lane = 24,
      height = LANES.length * lane + 4;
    const right = width - RIGHT;
    const x = (at) => LEFT + ((at - from) / (until - from)) * (right - LEFT);
    mark(this.#svg, "width", String(width));
    mark(this.#svg, "height", String(height));
    const drawn = [];
    LANES.forEach(([, name], n) => {
      const y = n * lane;
      drawn.push(
        svg("text", { class: "lane-name", x: LEFT - 8, y: y + 16, "text-anchor": "end", text: name }),
        svg("line", { class: "lane-line", x1: LEFT, x2: right, y1: y + 12, y2: y + 12 }),
      );
    });
    drawn.push(...bands(rows, (row) => row.tier, x, 0, until), ...bands(rows, (row) => row.breaker, x, lane, until));
    const shown = events.filter((line) => line.at >= from && line.at <= until + 2).slice(-MOST_MARKS);
    for (const line of shown) {
      const name = line.kind === "tier" || line.kind === "breaker" ? line.kind : (LANE_OF.get(line.kind) ?? "other");
      const y = LANES.findIndex(([each]) => each === name) * lane + 12;
      if (name !== "tier" && name !== "breaker") drawn.push(pin(line, Math.min(right, x(line.at)), y));
    }
    mark(this.#hair, "y1", "0");
    mark(this.#hair, "y2", String(height));
    this.#svg.replaceChildren(...drawn, this.#hair);
    const last = rows.at(-1);
    mark(
      this.#svg,
      "aria-label",
      `Tier ${last?.tier ?? "unknown"}, breaker ${last?.breaker ?? "unknown"}; ${shown.length} events in this time, which the list of events has in words.`,
    );
  }
}

function bands(rows, valueOf, x, y, until) {
  const found = [];
  let start = 0;
  for (let n = 1; n <= rows.length; n += 1) {
    if (n < rows.length && valueOf(rows[n]) === valueOf(rows[start])) continue;
    const value = valueOf(rows[start]);
    const end = n < rows.length ? rows[n].at : until;
    const [left, right] = [Math.max(LEFT, x(rows[start].at)), x(end)];
    if (value !== null && right > left) {
      const said = value.replace("_", "-");
      found.push(
        svg(
          "rect",
          { class: `band ${value}`, x: left, y: y + 3, width: right - left, height: 18, rx: 3 },
          svg("title", { text: said }),
        ),
      );
      if (right - left > 7 * said.length + 10)
        found.push(svg("text", { class: "band-name", x: left + 6, y: y + 16, text: said }));
    }
    start = n;
  }
  return found;
}

function pin({ at, level, kind, text }, x, y) {
  const shapes = {
    error: () =>
      svg("path", { d: `M${x - 5} ${y - 5}L${x + 5} ${y + 5}M${x + 5} ${y - 5}L${x - 5} ${y + 5}`, class: "cross" }),
    warning: () => svg("path", { d: `M${x} ${y - 7}L${x + 7} ${y + 5}H${x - 7}z` }),
    good: () => svg("path", { d: `M${x - 6} ${y}L${x - 2} ${y + 5}L${x + 6} ${y - 5}`, class: "tick" }),
  };
  return svg(
    "g",
    { class: `pin ${["good", "warning", "error"].includes(level) ? level : "info"}` },
    svg("title", { text: `${time(at)} ${KINDS.get(kind) ?? kind}: ${text}` }),
    (shapes[level] ?? (() => svg("circle", { cx: x, cy: y, r: 5 })))(),
  );
}
