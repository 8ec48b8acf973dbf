// The picture: caller, Redis (L1), PostgreSQL (L2), and what flows between them.
//
// Boxes, edges and figures are SVG. The dots are on a canvas above it, which costs the browser little. At up to three calls a second, one
// dot is one call; above that, dots grow slower than calls. Someone who asked for less motion gets the figures alone.

import { colour, el, mark, say, svg } from "./dom.js";
import { gaveNone } from "./state.js";
import { count, percent, rate, took } from "./words.js";

const WIDE = 700;
const TIGHT = 390;
const LONG = 800;
const MOST_DOTS = 90;
const FAST = 340,
  SLOW = 190;
// Thirty pictures a second are smooth enough, and cost half of sixty.
const FRAME_MS = 25;

// A route is what a dot runs along; its colour and its shape say what it is.
const SHAPES = {
  hit: ["l1", "circle"],
  miss: ["l2", "diamond"],
  warm: ["warm", "ring"],
  write: ["announced", "square"],
  announce: ["announced", "ring"],
};

function wide(width) {
  const height = 296,
    box = { y: 2, h: 282 };
  const caller = { x: 1, y: box.y, w: 128, h: box.h };
  const l2 = { x: width - 151, y: box.y, w: 150, h: box.h };
  const l1 = { x: Math.round((caller.x + caller.w + l2.x - 164) / 2), y: box.y, w: 164, h: 150 };
  const left = caller.x + caller.w,
    right = l2.x,
    middle = l1.x + l1.w / 2;
  const [ask, back, answer, write] = [52, 84, 182, 240];
  return {
    width,
    height,
    caller,
    l1,
    l2,
    lanes: {
      read: lane([left, ask], [l1.x, ask], [left + 14, ask - 16, "start"]),
      hit: lane([l1.x, back], [left, back], [left + 14, back + 21, "start"]),
      miss: lane([l1.x + l1.w, ask], [right, ask], [l1.x + l1.w + 14, ask - 16, "start"]),
      warm: lane([right, back], [l1.x + l1.w, back], [l1.x + l1.w + 14, back + 21, "start"]),
      answer: lane([right, answer], [left, answer], [left + 14, answer + 19, "start"]),
      write: { ...lane([left, write], [middle, write], [left + 14, write + 19, "start"]), bare: true },
      onward: lane([middle, write], [right, write], [middle, write, "start"]),
      announce: lane([middle, write], [middle, l1.y + l1.h], [middle + 12, write - 34, "start"]),
    },
  };
}

// A way between two points, and where its figures stand: x, y and the side of the text.
function lane(from, to, label) {
  return { points: [from, to], label };
}

function tall(width) {
  const caller = { x: 1, y: 1, w: width - 2, h: 74 };
  const l1 = { x: 1, y: 198, w: Math.round(width * 0.54), h: 104 };
  const l2 = { x: 1, y: 424, w: width - 2, h: 78 };
  const [ask, back, answer, write] = [14, width * 0.3, width * 0.65, width - 16].map(Math.round);
  const under = caller.y + caller.h,
    below = l1.y + l1.h,
    crossing = l1.y + 46;
  return {
    width,
    height: 504,
    caller,
    l1,
    l2,
    lanes: {
      read: lane([ask, under], [ask, l1.y], [ask + 10, under + 46, "start"]),
      hit: lane([back, l1.y], [back, under], [back + 10, under + 46, "start"]),
      miss: lane([ask, below], [ask, l2.y], [ask + 10, below + 46, "start"]),
      warm: lane([back, l2.y], [back, below], [back + 10, below + 46, "start"]),
      answer: lane([answer, l2.y], [answer, under], [answer + 7, under + 46, "start"]),
      write: { ...lane([write, under], [write, crossing], [write - 9, below + 46, "end"]), bare: true },
      onward: lane([write, crossing], [write, l2.y], [write, crossing, "end"]),
      announce: lane([write, crossing], [l1.x + l1.w, crossing], [write - 9, crossing + 18, "end"]),
    },
  };
}

export class Picture {
  #holder;
  #svg = svg("svg", { role: "img" });
  #canvas = el("canvas", { "aria-hidden": "true" });
  #note = el("p", { class: "picture-note" });
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #plan = null;
  #parts = {};
  #routes = {};
  #flows = new Map();
  #dots = [];
  #before = 0;
  #frame = 0;
  #seen = true;
  #held = false;

  constructor(holder) {
    this.#holder = holder;
    holder.append(this.#svg, this.#canvas, this.#note);
    new ResizeObserver(() => this.#lay()).observe(holder);
    new IntersectionObserver(([entry]) => {
      this.#seen = entry.isIntersecting;
      this.#wake();
    }).observe(holder);
    this.#calm.addEventListener("change", () => this.#wake());
    document.addEventListener("visibilitychange", () => this.#wake());
    this.#lay();
  }

  // Stops the dots, or lets them go on.
  hold(held) {
    this.#held = held;
    this.#wake();
  }

  // Shows the figures of a moment: `figures` is what is kept, `end` the row behind the moment.
  show(figures, end, found) {
    const mean = (name) => figures.mean(name, end);
    const recent = (name) => figures.recent(name, end);
    const row = figures.rows[end - 1];
    const tier = row?.tier ?? "cached";
    const away = mean("read:unavailable") || 0;
    const reads = mean("reads"),
      writes = mean("writes"),
      warm = mean("warm");
    const lower = tier === "cached" ? 0 : reads || 0;
    const hits = tier === "redis" ? lower : mean("hits") || mean("read:hit") || 0;
    const toL2 = Math.max(0, (reads || 0) - hits - (tier === "memory" ? lower : 0));
    const announced = mean("write:announced") || 0;
    const open = row?.breaker === "open";
    const inPart = open && figures.answersInPart(end);
    const redisAway = tier === "memory" || (open && !inPart) || (away > 0 && hits === 0);
    const givesNone = gaveNone(figures, end);
    const postgresAway = tier !== "cached" || givesNone;
    const roomy = this.#plan.width >= WIDE;
    const named = (number, unit) => (this.#plan.width < TIGHT ? [rate(number), unit] : [`${rate(number)} ${unit}`]);
    this.#label("read", named(reads, "reads/s"));
    this.#label("hit", [
      ...named(hits, tier === "redis" ? "answers/s" : "hits/s"),
      ...times(recent("hit50"), recent("hit99")),
    ]);
    const warmed = times(recent("warm50"), recent("warm99"));
    this.#label("warm", roomy ? [`${rate(warm)} warm-ups/s`, ...warmed] : [`${rate(warm)}/s`, "warm-ups", ...(this.#plan.width < TIGHT ? [] : warmed)]);
    const onward = away > 0 ? "go past Redis" : "go on";
    this.#label("miss", roomy ? [`${rate(toL2)}/s ${onward}`] : [`${rate(toL2)}/s`, ...onward.split(/ (?=past)/)]);
    this.#label(
      "answer",
      roomy
        ? [`${rate(toL2)} answers/s${this.#plan.width < LONG ? "" : " from PostgreSQL"}`, why(mean), times(recent("miss50"), recent("miss99")).join(" · ")]
        : [...named(toL2, "answers/s"), ...times(recent("miss50"), recent("miss99"))],
    );
    this.#label("write", [`${rate(writes)} writes/s`, times(recent("write50"), recent("write99"))].flat());
    this.#label(
      "announce",
      tier === "redis"
        ? ["kept in Redis"]
        : roomy
          ? [`${rate(announced)} announced/s`]
          : [`${rate(announced)}/s`, "announced"],
    );
    const flows = {
      hit: tier === "memory" ? 0 : hits,
      miss: postgresAway ? 0 : toL2,
      warm: postgresAway ? 0 : warm || 0,
      write: tier === "cached" && !givesNone ? writes || 0 : 0,
      announce: tier === "cached" ? announced : 0,
      kept: tier === "redis" ? writes || 0 : 0,
    };
    this.#flows = new Map(Object.entries(flows));
    for (const [lane, flow] of Object.entries({
      read: tier === "memory" ? 0 : reads || 0,
      hit: flows.hit,
      miss: flows.miss,
      warm: flows.warm,
      answer: flows.miss,
      write: tier === "memory" ? 0 : writes || 0,
      onward: flows.write,
      announce: flows.announce || flows.kept,
    })) {
      const part = this.#parts[lane];
      mark(
        part.line,
        "stroke-width",
        String(flow > 0 ? Math.min(6, 1.6 + Math.log10(1 + flow) * 1.6).toFixed(1) : 1.2),
      );
      mark(part.group, "class", flow > 0 ? `lane ${lane}` : `lane ${lane} still`);
    }
    const ratio = mean("hitRatio");
    this.#box("caller", false, {
      name: "Your graph",
      role: tier === "memory" ? "keeps all in memory" : "the caller",
      big: rate(mean("turns")),
      facts: ["turns/s", Number.isFinite(recent("turn50")) ? `p50 ${took(recent("turn50"))}` : ""],
    });
    this.#box("l1", redisAway, {
      name: "Redis",
      role:
        tier === "redis"
          ? "holds the conversations"
          : redisAway
            ? "L1 · does not answer"
            : inPart
              ? "L1 · a part is away"
              : "L1 · the cache",
      big: redisAway ? "away" : tier === "redis" ? "alone" : percent(ratio),
      facts: [redisAway ? "" : tier !== "redis" ? (roomy ? "hit ratio" : "hits") : roomy ? "PostgreSQL is away" : ""],
      share: redisAway || tier === "redis" ? NaN : ratio,
    });
    const inUse = row?.get("inUse"),
      max = row?.get("max"),
      waiting = row?.get("waiting");
    this.#box("l2", postgresAway, {
      name: "PostgreSQL",
      role: postgresAway ? "L2 · away" : "L2 · the truth",
      big: Number.isFinite(inUse) ? `${count(inUse)} of ${count(max)}` : "",
      facts: Number.isFinite(inUse) ? [roomy ? "connections in use" : "in use", `${count(waiting)} waiting`] : [],
      share: inUse / max,
    });
    mark(
      this.#svg,
      "aria-label",
      `${rate(reads)} reads a second, ${percent(ratio)} of them hits in Redis. ${rate(toL2)} a second are answered by PostgreSQL. ${rate(writes)} writes a second. ${rate(warm)} warm-ups a second.`,
    );
    say(
      this.#note,
      !figures.hadTraffic ? "" : this.#calm.matches ? "" : "A dot is a call; where there are many, a share of them.",
    );
    if (found === null) this.#flows.clear();
    this.#wake();
  }

  #lay() {
    const width = Math.floor(this.#holder.clientWidth);
    if (!width || width === this.#plan?.width) return;
    this.#plan = width >= WIDE ? wide(width) : tall(width);
    const { height, lanes } = this.#plan;
    mark(this.#svg, "viewBox", `0 0 ${width} ${height}`);
    mark(this.#svg, "width", String(width));
    mark(this.#svg, "height", String(height));
    const scale = Math.min(2, devicePixelRatio || 1);
    this.#canvas.width = width * scale;
    this.#canvas.height = height * scale;
    this.#canvas.style.width = `${width}px`;
    this.#canvas.style.height = `${height}px`;
    this.#canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
    const said = Object.fromEntries(Object.entries(this.#parts).map(([name, part]) => [name, part]));
    this.#parts = {};
    this.#svg.replaceChildren();
    for (const [name, lane] of Object.entries(lanes)) this.#addLane(name, lane, said[name]);
    for (const name of ["caller", "l1", "l2"]) this.#addBox(name, this.#plan[name], said[name]);
    const route = (...points) => measured(points.flat());
    const middle = lanes.announce.points[0];
    this.#routes = {
      hit: route(lanes.read.points, lanes.hit.points),
      miss: route(lanes.read.points, lanes.miss.points, lanes.answer.points),
      warm: route(lanes.warm.points),
      write: route(lanes.write.points, lanes.onward.points),
      announce: route(lanes.announce.points),
      kept: route([lanes.write.points[0], middle, lanes.announce.points[1]]),
    };
    this.#dots = [];
  }

  #addLane(name, { points, label: [x, y, anchor], bare }, before) {
    const line = svg("path", { d: `M${points.map(([a, b]) => `${a} ${b}`).join("L")}` });
    const [[x1, y1], [x2, y2]] = points.slice(-2);
    const turned = Math.round((Math.atan2(y2 - y1, x2 - x1) * 180) / Math.PI);
    const head = svg("path", {
      class: "head",
      d: "M-9 -5L0 0L-9 5z",
      transform: `translate(${x2} ${y2}) rotate(${turned})`,
    });
    const texts = [0, 1, 2, 3].map((n) =>
      svg("text", { x, y: y + n * 15, "text-anchor": anchor, class: n ? "soft" : "strong" }),
    );
    const group = svg("g", { class: `lane ${name} still` }, line, bare ? null : head, ...texts);
    this.#svg.append(group);
    this.#parts[name] = { group, line, texts };
    if (before) before.texts.forEach((text, n) => say(texts[n], text.textContent));
  }

  #addBox(name, { x, y, w, h }, before) {
    const flat = h < 110;
    const centre = x + w / 2;
    const rect = svg("rect", { x, y, width: w, height: h, rx: 12 });
    const at = (cls, tx, ty, anchor = "middle") => svg("text", { x: tx, y: ty, class: cls, "text-anchor": anchor });
    // Flat boxes have their names on the left and their figures on the right.
    const parts = flat
      ? {
          title: at("title", x + 40, y + 27, "start"),
          role: at("role", x + 40, y + 45, "start"),
          big: at("big", x + w - 14, y + (h > 90 ? 88 : 32), "end"),
          facts: [at("fact", h > 90 ? x + 40 : x + w - 14, h > 90 ? y + 86 : y + 51, h > 90 ? "start" : "end")],
        }
      : {
          title: at("title", centre, y + 50),
          role: at("role", centre, y + 68),
          big: at("big", centre, y + (name === "l1" ? 105 : 152)),
          facts: [0, 1, 2].map((n) => at("fact", centre, y + (name === "l1" ? 124 : 174) + n * 20)),
        };
    const bar =
      flat && name !== "l1"
        ? { x: x + 40, y: y + h - 18, w: w - 54 }
        : flat
          ? { x: x + 40, y: y + 55, w: w - 54 }
          : { x: x + 18, y: y + (name === "l1" ? 134 : 212), w: w - 36 };
    const track = svg("rect", { class: "track", x: bar.x, y: bar.y, width: bar.w, height: 6, rx: 3 });
    const fill = svg("rect", { class: "fill", x: bar.x, y: bar.y, width: 0, height: 6, rx: 3 });
    const drawn = name === "caller" ? [] : [track, fill];
    const group = svg(
      "g",
      { class: `box ${name}` },
      rect,
      ...(flat ? [glyph(name, x + 20, y + 26)] : [glyph(name, centre, y + 22)]),
      parts.title,
      parts.role,
      parts.big,
      ...parts.facts,
      ...drawn,
    );
    this.#svg.append(group);
    this.#parts[name] = { group, ...parts, fill, track, bar, rect: { x, y, w, h } };
    if (before) this.#box(name, before.away ?? false, before.said ?? {});
  }

  #box(name, away, said) {
    const part = this.#parts[name];
    part.away = away;
    part.said = said;
    mark(part.group, "class", away ? `box ${name} away` : `box ${name}`);
    say(part.title, said.name ?? "");
    say(part.role, said.role ?? "");
    say(part.big, said.big ?? "");
    const facts = (said.facts ?? []).filter(Boolean);
    if (part.facts.length === 1) say(part.facts[0], facts.join(" · "));
    else part.facts.forEach((fact, n) => say(fact, facts[n] ?? ""));
    const share = Number.isFinite(said.share) ? Math.max(0, Math.min(1, said.share)) : 0;
    mark(part.track, "visibility", Number.isFinite(said.share) ? "visible" : "hidden");
    mark(part.fill, "width", (part.bar.w * share).toFixed(1));
  }

  #label(name, lines) {
    this.#parts[name].texts.forEach((text, n) => say(text, lines[n] ?? ""));
  }

  // ---- the dots ------------------------------------------------------------------------------------------

  get #moves() {
    return (
      this.#seen &&
      !this.#held &&
      !document.hidden &&
      !this.#calm.matches &&
      (this.#dots.length > 0 || [...this.#flows.values()].some((flow) => flow > 0))
    );
  }

  #wake() {
    if (this.#calm.matches && this.#dots.length) {
      this.#dots = [];
      this.#draw();
    }
    if (this.#moves && !this.#frame) {
      this.#before = 0;
      this.#frame = requestAnimationFrame((now) => this.#step(now));
    }
  }

  #step(now) {
    this.#frame = 0;
    if (now - this.#before < FRAME_MS && this.#moves) {
      this.#frame = requestAnimationFrame((then) => this.#step(then));
      return;
    }
    const passed = this.#before ? Math.min(0.1, (now - this.#before) / 1000) : 0;
    this.#before = now;
    for (const [name, flow] of this.#flows) {
      const route = this.#routes[name];
      if (route && flow > 0 && this.#dots.length < MOST_DOTS && Math.random() < passed * dotsPerSecond(flow)) {
        this.#dots.push({
          name,
          route,
          at: 0,
          speed:
            (name === "hit" || name === "warm" || name === "announce" || name === "kept" ? FAST : SLOW) *
            (0.9 + 0.2 * Math.random()),
        });
      }
    }
    for (const dot of this.#dots) dot.at += dot.speed * passed;
    this.#dots = this.#dots.filter((dot) => dot.at < dot.route.length);
    this.#draw();
    if (this.#moves) this.#frame = requestAnimationFrame((then) => this.#step(then));
  }

  #draw() {
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, this.#plan.width, this.#plan.height);
    for (const dot of this.#dots) {
      const [x, y] = place(dot.route, dot.at);
      if (["caller", "l1", "l2"].some((name) => inside(this.#plan[name], x, y))) continue;
      const [name, shape] = SHAPES[dot.name === "kept" ? "write" : dot.name];
      context.fillStyle = context.strokeStyle = colour(name);
      context.beginPath();
      if (shape === "diamond") {
        context.moveTo(x, y - 6);
        context.lineTo(x + 6, y);
        context.lineTo(x, y + 6);
        context.lineTo(x - 6, y);
        context.closePath();
      } else if (shape === "square") context.rect(x - 4, y - 4, 8, 8);
      else context.arc(x, y, 4.5, 0, 7);
      if (shape === "ring") {
        context.fillStyle = colour("card");
        context.lineWidth = 2.5;
        context.fill();
        context.stroke();
      } else context.fill();
    }
  }
}

// Reads that could not be hits go on, too: the hit ratio does not count them.
function why(mean) {
  const [fresh, older, missed] = [mean("read:absent"), mean("read:historical"), mean("misses")];
  return [
    [missed, "missed"],
    [fresh, "new"],
    [older, "of older states"],
  ]
    .filter(([rated]) => rated > 0.05)
    .map(([rated, what]) => `${rate(rated)} ${what}`)
    .join(", ");
}

function times(p50, p99) {
  return Number.isFinite(p50) ? [`p50 ${took(p50)}`, `p99 ${took(p99)}`] : [];
}

const dotsPerSecond = (flow) => (flow <= 3 ? flow : Math.min(11, 3 + 2.1 * Math.log2(flow / 3)));

const inside = ({ x, y, w, h }, px, py) => px > x - 1 && px < x + w + 1 && py > y - 1 && py < y + h + 1;

// A way over points, with the length up to each of them.
function measured(points) {
  const lengths = [0];
  for (let n = 1; n < points.length; n += 1)
    lengths.push(lengths[n - 1] + Math.hypot(points[n][0] - points[n - 1][0], points[n][1] - points[n - 1][1]));
  return { points, lengths, length: lengths.at(-1) };
}

function place({ points, lengths }, at) {
  let n = 1;
  while (n < lengths.length - 1 && lengths[n] < at) n += 1;
  const part = (at - lengths[n - 1]) / (lengths[n] - lengths[n - 1] || 1);
  return [0, 1].map((axis) => points[n - 1][axis] + part * (points[n][axis] - points[n - 1][axis]));
}

function glyph(name, x, y) {
  const group = svg("g", { class: "glyph", transform: `translate(${x} ${y})` });
  if (name === "caller") {
    group.append(
      svg("path", { d: "M-5 -5L6 0L-5 6" }),
      ...[
        [-6, -5],
        [7, 0],
        [-6, 6],
      ].map(([cx, cy]) => svg("circle", { cx, cy, r: 3 })),
    );
  } else if (name === "l1") group.append(svg("path", { d: "M1 -8L-6 2H-1L-2 9L6 -2H1z" }));
  else
    group.append(
      svg("ellipse", { cx: 0, cy: -5, rx: 7, ry: 3 }),
      svg("path", { d: "M-7 -5V5A7 3 0 0 0 7 5V-5M-7 0A7 3 0 0 0 7 0" }),
    );
  return group;
}
