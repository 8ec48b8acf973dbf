// The charts, one below the other, on one axis of time; and beside each of them its figures in words.

import { colour, el, mark } from "./dom.js";
import { striking } from "./events.js";
import { LEFT, Lanes, MOST_MARKS, RIGHT } from "./lanes.js";
import { Words, poolInWords, readTimesInWords, readsInWords, writeTimesInWords, writesInWords } from "./told.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";
import { READS, WRITES, rate, time } from "./words.js";

const HAIR = uPlot.sync("time");
const MARKED = new Set(["fault", "tier", "breaker", "epoch"]);
const CARRIED_SECONDS = 10;
const SHORTEST_SECONDS = 60;

export const WINDOWS = [
  [60, "1 min"],
  [300, "5 min"],
  [900, "15 min"],
];

// What a strip shows: `lines` are [column, name, colour, dash]; `stack` columns lie upon each other.
const STRIPS = [
  {
    name: "reads",
    title: "Reads a second",
    stack: [...READS].map(([key, [label, , ink]]) => [`read:${key}`, label, ink]),
    words: readsInWords,
  },
  {
    name: "read-times",
    title: "How long reads take",
    log: true,
    words: readTimesInWords,
    lines: [
      ["hit50", "hit p50", "l1", []],
      ["hit99", "hit p99", "l1", [2, 3]],
      ["miss50", "miss p50", "l2", []],
      ["miss99", "miss p99", "l2", [2, 3]],
    ],
  },
  {
    name: "writes",
    title: "Writes a second",
    stack: [...WRITES].map(([key, [label, , ink]]) => [`write:${key}`, label, ink]),
    words: writesInWords,
  },
  {
    name: "write-times",
    title: "How long writes take",
    log: true,
    words: writeTimesInWords,
    lines: [
      ["write50", "p50", "announced", []],
      ["write99", "p99", "announced", [2, 3]],
    ],
  },
  {
    name: "pool",
    title: "PostgreSQL's pool",
    words: poolInWords,
    lines: [
      ["inUse", "in use", "l2", []],
      ["max", "most", "ink-soft", [6, 4]],
      ["waiting", "waiting", "failed", [2, 3]],
    ],
    fill: "inUse",
  },
];

export class Strips {
  #holder;
  #figures = null;
  #events = [];
  #seconds = 300;
  #end = 0;
  #rows = [];
  #strips = [];
  #lanes;
  #lookedAt = null;
  #hovered = null;
  #changed = () => {};

  // `changed(at)` is called when another moment is pointed at; `null`: the figures are those of now.
  constructor(holder, changed) {
    this.#holder = holder;
    this.#changed = changed;
    this.#lanes = new Lanes(holder);
    for (const strip of STRIPS) this.#strips.push(this.#build(strip));
    new ResizeObserver(() => this.#fit()).observe(holder);
  }

  set seconds(seconds) {
    this.#seconds = seconds;
  }

  set events(lines) {
    this.#events = lines;
  }

  get moments() {
    return this.#rows;
  }

  // Points at a moment, from outside.
  look(at) {
    this.#lookedAt = at;
    this.#pointAgain();
    this.#sayAll();
  }

  show(figures) {
    this.#figures = figures;
    const now = figures.rows.at(-1)?.at ?? Date.now() / 1000;
    // A page that has just been opened does not show minutes of nothing.
    const from = Math.max(now - this.#seconds, Math.min(now - SHORTEST_SECONDS, figures.rows[0]?.at ?? now));
    this.#rows = figures.rows.filter((row) => row.at >= from - 1);
    this.#end = figures.rows.length;
    const x = this.#rows.map((row) => row.at);
    this.#lanes.show(this.#rows, this.#events, from, now);
    const marks = striking(
      this.#events.filter((line) => line.at > from),
      MARKED,
    ).slice(-MOST_MARKS);
    for (const strip of this.#strips) {
      const data = [x, ...this.#columns(strip)];
      if (!strip.chart) this.#draw(strip, data);
      const { chart } = strip;
      chart.from = from;
      chart.until = now;
      chart.marks = marks;
      chart.setData(data);
    }
    if (!this.#hovered) this.#pointAgain();
    this.#sayAll();
  }

  // Another theme has other colours.
  repaint() {
    for (const strip of this.#strips) strip.chart?.redraw(false);
    if (this.#figures) this.show(this.#figures);
  }

  #columns({ stack, lines, log }) {
    if (lines) return lines.map(([column]) => (log ? carried : same)(this.#figures.column(this.#rows, column)));
    const sums = new Array(this.#rows.length).fill(0);
    const laid = stack.map(([column]) =>
      this.#figures.column(this.#rows, column).map((value, n) => (value === null ? null : (sums[n] += value))),
    );
    return laid.reverse();
  }

  #build(strip) {
    const words = el("div", { class: "strip-words" });
    const plot = el("div", { class: "plot", role: "img" });
    const element = el(
      "section",
      { class: `strip ${strip.name}`, "aria-label": strip.title },
      el("div", { class: "strip-side" }, el("h3", { text: strip.title }), words),
      plot,
    );
    this.#holder.append(element);
    return { ...strip, element, plot, said: new Words(words), chart: null };
  }

  #draw(strip, data) {
    const ordered = strip.lines ?? [...strip.stack].reverse();
    const series = ordered.map(([column, label, ink, dash]) =>
      strip.stack
        ? { label, stroke: () => colour(ink), fill: () => colour(ink), width: 0, points: { show: false } }
        : {
            label,
            stroke: () => colour(ink),
            width: 2,
            dash,
            points: { show: false },
            fill: strip.fill === column ? () => colour("wash") : undefined,
          },
    );
    const grid = { stroke: () => colour("grid"), width: 1 };
    const axis = { stroke: () => colour("ink-soft"), font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
    strip.chart = new uPlot(
      {
        width: Math.max(120, strip.plot.clientWidth),
        height: strip.log ? 128 : 112,
        padding: [8, RIGHT, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false }, sync: { key: HAIR.key } },
        scales: {
          x: { time: true, range: (u) => [u.from ?? data[0][0] ?? 0, u.until ?? data[0].at(-1) ?? 1] },
          y: strip.log
            ? { distr: 3, range: (_, low, high) => decades(low, high) }
            : { range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.12)] },
        },
        axes: [
          { ...axis, size: 22, space: 66, values: (_, splits) => splits.map(time) },
          {
            ...axis,
            size: LEFT,
            space: strip.log ? 14 : 28,
            ...(strip.log ? { filter: (_, splits) => splits.map((value) => (decade(value) ? value : null)) } : {}),
            values: (_, splits) =>
              splits.map((value) => (value === null ? "" : strip.log ? decade(value) : rate(value))),
          },
        ],
        series: [{}, ...series],
        hooks: { draw: [drawMarks], setCursor: [(u) => this.#pointed(u)] },
      },
      data,
      strip.plot,
    );
    strip.plot.addEventListener("pointerenter", () => {
      this.#hovered = strip.chart;
    });
    strip.plot.addEventListener("pointerleave", () => {
      this.#hovered = null;
      this.#changed(null);
      this.look(null);
    });
  }

  // The pointer is over a chart; uPlot moves the hairs of the others.
  #pointed(chart) {
    if (!this.#hovered || chart !== this.#hovered) return;
    const at = this.#rows[chart.cursor.idx ?? -1]?.at ?? null;
    if (at === this.#lookedAt) return;
    this.#lookedAt = at;
    this.#lanes.hair(at);
    this.#changed(at);
    this.#sayAll();
  }

  #pointAgain() {
    const at = this.#lookedAt;
    for (const { chart } of this.#strips)
      chart?.setCursor({ left: at === null ? -10 : chart.valToPos(at, "x"), top: at === null ? -10 : 5 }, false);
    this.#lanes.hair(at);
  }

  #sayAll() {
    if (!this.#figures) return;
    const at = this.#lookedAt;
    const end = at === null ? this.#end : this.#end - this.#rows.filter((row) => row.at > at).length;
    for (const strip of this.#strips) {
      strip.said.begin();
      strip.words(strip.said, this.#figures, end);
      strip.said.finish();
      mark(strip.plot, "aria-label", `${strip.title}: ${strip.said.text}`);
    }
  }

  #fit() {
    for (const { chart, plot } of this.#strips) {
      const width = plot.clientWidth;
      if (chart && width > 0 && width !== chart.width) chart.setSize({ width, height: chart.height });
    }
    this.#lanes.fit();
  }
}

const same = (values) => values;

// A time is known only of seconds in which something happened: it stays for ten more, then the line ends.
function carried(values) {
  let last = null,
    since = 0;
  return values.map((value) => {
    since = value === null ? since + 1 : 0;
    last = value ?? (since > CARRIED_SECONDS ? null : last);
    return last;
  });
}

// ---- axes and marks --------------------------------------------------------------------------------------

function decades(low, high) {
  const floor = Number.isFinite(low) && low > 0 ? low : 1e-4;
  const ceiling = Number.isFinite(high) && high > 0 ? high : 1e-2;
  const from = 10 ** Math.floor(Math.log10(floor));
  return [from, Math.max(from * 10, 10 ** Math.ceil(Math.log10(ceiling)))];
}

function decade(value) {
  const power = Math.log10(value);
  if (Math.abs(power - Math.round(power)) > 1e-6) return "";
  return value < 0.9 ? `${Number((1000 * value).toPrecision(1))} ms` : `${Number(value.toPrecision(1))} s`;
}

const inkOf = (level) => ({ good: "good", warning: "warning", error: "failed" })[level] ?? "ink-soft";

function drawMarks(chart) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const { at, level } of chart.marks ?? []) {
    const x = Math.round(chart.valToPos(at, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.strokeStyle = colour(inkOf(level));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
