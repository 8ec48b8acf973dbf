// The charts, one below the other, on one axis of time; and beside each of them its figures in words.

import { colour, el, mark, say, svg } from "./dom.js";
import { striking } from "./events.js";
import uPlot from "./vendor/uplot/uPlot.esm.js";
import { KINDS, READS, WRITES, count, percent, rate, time, took } from "./words.js";

const LEFT = 56, RIGHT = 28;
const HAIR = uPlot.sync("time");
const LANES = [
  ["tier", "Tier", []],
  ["breaker", "Breaker", []],
  ["faults", "Faults", ["fault", "story"]],
  ["cache", "Epoch", ["epoch", "identity", "quarantine"]],
  ["journal", "Journal", ["journal", "drain"]],
  ["other", "Other", ["fork", "foreign_writes", "retention", "saver"]],
];
const LANE_OF = new Map(LANES.flatMap(([lane, , kinds]) => kinds.map((kind) => [kind, lane])));
const MARKED = new Set(["fault", "tier", "breaker", "epoch"]);
const MOST_MARKS = 200;
const CARRIED_SECONDS = 10;
const SHORTEST_SECONDS = 60;

export const WINDOWS = [[60, "1 min"], [300, "5 min"], [900, "15 min"]];

// What a strip shows: `lines` are [column, name, colour, dash]; `stack` columns lie upon each other.
const STRIPS = [
  { name: "reads", title: "Reads a second", stack: [...READS].map(([key, [label, , ink]]) => [`read:${key}`, label, ink]), words: readsInWords },
  {
    name: "read-times", title: "How long reads take", log: true, words: readTimesInWords,
    lines: [["hit50", "hit p50", "l1", []], ["hit99", "hit p99", "l1", [2, 3]], ["miss50", "miss p50", "l2", []], ["miss99", "miss p99", "l2", [2, 3]]],
  },
  { name: "writes", title: "Writes a second", stack: [...WRITES].map(([key, [label, , ink]]) => [`write:${key}`, label, ink]), words: writesInWords },
  { name: "write-times", title: "How long writes take", log: true, words: writeTimesInWords, lines: [["write50", "p50", "announced", []], ["write99", "p99", "announced", [2, 3]]] },
  { name: "pool", title: "PostgreSQL's pool", words: poolInWords, lines: [["inUse", "in use", "l2", []], ["max", "most", "ink-soft", [6, 4]], ["waiting", "waiting", "failed", [2, 3]]], fill: "inUse" },
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
    const marks = striking(this.#events.filter((line) => line.at > from), MARKED).slice(-MOST_MARKS);
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
    const laid = stack.map(([column]) => this.#figures.column(this.#rows, column).map((value, n) => (value === null ? null : (sums[n] += value))));
    return laid.reverse();
  }

  #build(strip) {
    const words = el("div", { class: "strip-words" });
    const plot = el("div", { class: "plot", role: "img" });
    const element = el("section", { class: `strip ${strip.name}`, "aria-label": strip.title }, el("div", { class: "strip-side" }, el("h3", { text: strip.title }), words), plot);
    this.#holder.append(element);
    return { ...strip, element, plot, said: new Words(words), chart: null };
  }

  #draw(strip, data) {
    const ordered = strip.lines ?? [...strip.stack].reverse();
    const series = ordered.map(([column, label, ink, dash]) => strip.stack
      ? { label, stroke: () => colour(ink), fill: () => colour(ink), width: 0, points: { show: false } }
      : { label, stroke: () => colour(ink), width: 2, dash, points: { show: false }, fill: strip.fill === column ? () => colour("wash") : undefined });
    const grid = { stroke: () => colour("grid"), width: 1 };
    const axis = { stroke: () => colour("ink-soft"), font: "11px system-ui, sans-serif", grid, ticks: { show: false } };
    strip.chart = new uPlot(
      {
        width: Math.max(120, strip.plot.clientWidth), height: strip.log ? 128 : 112,
        padding: [8, RIGHT, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false }, sync: { key: HAIR.key } },
        scales: {
          x: { time: true, range: (u) => [u.from ?? data[0][0] ?? 0, u.until ?? data[0].at(-1) ?? 1] },
          y: strip.log ? { distr: 3, range: (_, low, high) => decades(low, high) } : { range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.12)] },
        },
        axes: [
          { ...axis, size: 22, space: 66, values: (_, splits) => splits.map(time) },
          { ...axis, size: LEFT, space: strip.log ? 14 : 28, ...(strip.log ? { filter: (_, splits) => splits.map((value) => (decade(value) ? value : null)) } : {}), values: (_, splits) => splits.map((value) => (value === null ? "" : strip.log ? decade(value) : rate(value))) },
        ],
        series: [{}, ...series],
        hooks: { draw: [drawMarks], setCursor: [(u) => this.#pointed(u)] },
      },
      data, strip.plot,
    );
    strip.plot.addEventListener("pointerenter", () => { this.#hovered = strip.chart; });
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
    for (const { chart } of this.#strips) chart?.setCursor({ left: at === null ? -10 : chart.valToPos(at, "x"), top: at === null ? -10 : 5 }, false);
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
  let last = null, since = 0;
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

// Bands of tier and breaker, and a mark for each event.
class Lanes {
  #side = el("div", { class: "strip-side" });
  #svg = svg("svg", { role: "img" });
  #plot = el("div", { class: "plot lanes" });
  #last = null;
  #hair = svg("line", { class: "hair", visibility: "hidden" });

  constructor(holder) {
    this.#side.append(el("h3", { text: "What happened" }), el("p", { class: "hint", text: "Bands show the tier and the breaker. A mark is an event: point at it, or read the list of events below." }));
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
    const width = Math.max(120, this.#plot.clientWidth), lane = 24, height = LANES.length * lane + 4;
    const right = width - RIGHT;
    const x = (at) => LEFT + ((at - from) / (until - from)) * (right - LEFT);
    mark(this.#svg, "width", String(width));
    mark(this.#svg, "height", String(height));
    const drawn = [];
    LANES.forEach(([, name], n) => {
      const y = n * lane;
      drawn.push(svg("text", { class: "lane-name", x: LEFT - 8, y: y + 16, "text-anchor": "end", text: name }), svg("line", { class: "lane-line", x1: LEFT, x2: right, y1: y + 12, y2: y + 12 }));
    });
    drawn.push(...bands(rows, (row) => row.tier, x, 0, until), ...bands(rows, (row) => row.breaker, x, lane, until));
    const shown = events.filter((line) => line.at >= from && line.at <= until + 2).slice(-MOST_MARKS);
    for (const line of shown) {
      const name = line.kind === "tier" || line.kind === "breaker" ? line.kind : LANE_OF.get(line.kind) ?? "other";
      const y = LANES.findIndex(([each]) => each === name) * lane + 12;
      if (name !== "tier" && name !== "breaker") drawn.push(pin(line, Math.min(right, x(line.at)), y));
    }
    mark(this.#hair, "y1", "0");
    mark(this.#hair, "y2", String(height));
    this.#svg.replaceChildren(...drawn, this.#hair);
    const last = rows.at(-1);
    mark(this.#svg, "aria-label", `Tier ${last?.tier ?? "unknown"}, breaker ${last?.breaker ?? "unknown"}; ${shown.length} events in this time, which the list of events has in words.`);
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
      found.push(svg("rect", { class: `band ${value}`, x: left, y: y + 3, width: right - left, height: 18, rx: 3 }, svg("title", { text: said })));
      if (right - left > 7 * said.length + 10) found.push(svg("text", { class: "band-name", x: left + 6, y: y + 16, text: said }));
    }
    start = n;
  }
  return found;
}

function pin({ at, level, kind, text }, x, y) {
  const shapes = {
    error: () => svg("path", { d: `M${x - 5} ${y - 5}L${x + 5} ${y + 5}M${x + 5} ${y - 5}L${x - 5} ${y + 5}`, class: "cross" }),
    warning: () => svg("path", { d: `M${x} ${y - 7}L${x + 7} ${y + 5}H${x - 7}z` }),
    good: () => svg("path", { d: `M${x - 6} ${y}L${x - 2} ${y + 5}L${x + 6} ${y - 5}`, class: "tick" }),
  };
  return svg("g", { class: `pin ${["good", "warning", "error"].includes(level) ? level : "info"}` },
    svg("title", { text: `${time(at)} ${KINDS.get(kind) ?? kind}: ${text}` }), (shapes[level] ?? (() => svg("circle", { cx: x, cy: y, r: 5 })))());
}

// ---- in words --------------------------------------------------------------------------------------------

// Writes words into elements that stay, so that once a second only texts change.
class Words {
  #holder;
  #kept = new Map();
  #used = new Set();

  constructor(holder) {
    this.#holder = holder;
  }

  get text() {
    return [...this.#used].map((key) => this.#kept.get(key)).filter((each) => !each.hidden && each.localName !== "div").map((each) => each.textContent).join("; ");
  }

  begin() {
    this.#used.clear();
  }

  finish() {
    for (const [key, element] of this.#kept) element.hidden = !this.#used.has(key);
  }

  #at(key, make) {
    this.#used.add(key);
    if (!this.#kept.has(key)) {
      const made = make();
      this.#kept.set(key, made);
      this.#holder.append(made);
    }
    return this.#kept.get(key);
  }

  big(value, unit) {
    const made = this.#at("big", () => el("p", { class: "big" }, el("b"), el("span")));
    say(made.firstChild, value);
    say(made.lastChild, unit);
  }

  share(parts) {
    const made = this.#at("share", () => el("div", { class: "share", "aria-hidden": "true" }));
    parts.forEach(([key, value, ink], n) => {
      const piece = made.children[n] ?? made.appendChild(el("i", { class: `c-${ink}`, "data-key": key }));
      piece.style.flexGrow = String(Number.isFinite(value) ? value : 0);
      piece.hidden = !(value > 0);
    });
  }

  item(key, value, label, ink, hint, dashed) {
    const made = this.#at(key, () => el("p", { class: "item", title: hint ?? "" }, el("i", { class: `c-${ink}${dashed ? " dashed" : ""}`, "aria-hidden": "true" }), el("b"), el("span")));
    say(made.children[1], value);
    say(made.children[2], label);
  }
}

function resultsInWords(words, figures, end, prefix, names) {
  const found = [...names].map(([key, [label, hint, ink]]) => ({ key, label, hint, ink, value: figures.mean(`${prefix}:${key}`, end) }));
  const total = found.reduce((sum, { value }) => sum + (value || 0), 0);
  words.share(found.map(({ key, value, ink }) => [key, value, ink]));
  for (const { key, label, hint, ink, value } of found) {
    if (value > 0) words.item(key, total ? percent(value / total) : "–", `${label} · ${rate(value)}/s`, ink, hint);
  }
  return total;
}

function readsInWords(words, figures, end) {
  words.big(percent(figures.mean("hitRatio", end)), "hit ratio");
  if (!resultsInWords(words, figures, end, "read", READS)) words.item("none", "", "no read", "ink-soft");
}

function readTimesInWords(words, figures, end) {
  const pair = (name) => [took(figures.recent(`${name}50`, end)), took(figures.recent(`${name}99`, end))];
  const [hit, hitWorst] = pair("hit"), [miss, missWorst] = pair("miss");
  words.item("hit50", hit, "hit, p50: half are faster", "l1");
  words.item("hit99", hitWorst, "hit, p99: 99 of 100 are faster", "l1", "", true);
  words.item("miss50", miss, "miss, p50", "l2");
  words.item("miss99", missWorst, "miss, p99", "l2", "", true);
}

function writesInWords(words, figures, end) {
  words.big(rate(figures.mean("writes", end)), "writes a second");
  resultsInWords(words, figures, end, "write", WRITES);
  const journal = figures.rows[end - 1]?.get("journal");
  if (journal > 0) words.item("journal", count(journal), "rows in the journal, for Redis to forget", "failed");
}

function writeTimesInWords(words, figures, end) {
  words.item("write50", took(figures.recent("write50", end)), "p50: half are faster", "announced");
  words.item("write99", took(figures.recent("write99", end)), "p99: 99 of 100 are faster", "announced", "", true);
}

function poolInWords(words, figures, end) {
  const row = figures.rows[end - 1];
  const of = (name) => row?.get(name) ?? NaN;
  if (!Number.isFinite(of("max"))) {
    words.item("none", "", "no pool of connections to PostgreSQL", "ink-soft");
    return;
  }
  words.item("inUse", count(of("inUse")), "connections in use", "l2");
  words.item("max", count(of("max")), "may be open", "ink-soft", "", true);
  words.item("waiting", count(of("waiting")), "calls wait for one", "failed", "", true);
}
