// The feed of calls: as many rows as can be read, which are used again and again.

import { el, mark, say } from "./dom.js";
import { READS, SERVERS, WRITES, count, short, time } from "./words.js";

const SHOWN = 100;
const KEPT = 400;
const DRAWN_EVERY_MS = 400;

export class Feed {
  #body;
  #said;
  #nothing;
  #open;
  #calls = [];
  #new = 0;
  #skipped = 0;
  #filter = "";
  #held = false;
  #paused = false;
  #pointed = false;
  #drawnAt = 0;
  #timer = 0;

  // `open(trace_id)` shows a turn.
  constructor({ body, said, nothing, filter, pause, open }) {
    this.#body = body;
    this.#said = said;
    this.#nothing = nothing;
    this.#open = open;
    filter.addEventListener("input", () => {
      this.#filter = filter.value;
      this.#redraw();
    });
    pause.addEventListener("click", () => {
      this.#paused = !this.#paused;
      mark(pause, "aria-pressed", String(this.#paused));
      say(pause, this.#paused ? "Go on" : "Pause calls");
      this.#redraw();
    });
    // Rows that move away below the pointer or the focus cannot be chosen.
    const table = body.closest("table");
    const point = (pointed) => () => {
      this.#pointed = pointed;
      this.#plan();
    };
    table.addEventListener("pointerenter", point(true));
    table.addEventListener("pointerleave", point(false));
    table.addEventListener("focusin", point(true));
    table.addEventListener("focusout", point(false));
    document.addEventListener("visibilitychange", () => this.#plan());
  }

  hold(held) {
    this.#held = held;
    this.#plan();
  }

  add(calls, skipped) {
    this.#skipped += skipped || 0;
    if (this.#paused) return;
    for (const call of calls) this.#calls.push(call);
    this.#new += calls.length;
    if (this.#calls.length > KEPT) this.#calls.splice(0, this.#calls.length - KEPT);
    this.#plan();
  }

  #plan() {
    this.#explain();
    if (this.#timer || this.#stopped || !this.#new) return;
    const wait = Math.max(0, this.#drawnAt + DRAWN_EVERY_MS - performance.now());
    this.#timer = setTimeout(() => {
      this.#timer = 0;
      if (!this.#stopped) this.#draw();
    }, wait);
  }

  get #stopped() {
    return this.#held || this.#pointed || this.#paused || document.hidden;
  }

  #explain() {
    const skipped = this.#skipped ? `${count(this.#skipped)} more were too many to show. ` : "";
    const why =
      this.#paused || this.#held ? "Paused." : this.#pointed ? "Held while you are in the table." : "Newest first.";
    say(this.#said, skipped + why);
  }

  #matches(call) {
    return !this.#filter || String(call.thread ?? "").includes(this.#filter);
  }

  #draw() {
    this.#drawnAt = performance.now();
    const fresh = this.#calls
      .slice(-this.#new)
      .filter((call) => this.#matches(call))
      .slice(-SHOWN);
    this.#new = 0;
    for (const call of fresh) this.#show(call);
    this.#nothing.hidden = this.#body.childElementCount > 0;
    this.#explain();
  }

  #redraw() {
    this.#body.replaceChildren();
    this.#new = 0;
    for (const call of this.#calls.filter((each) => this.#matches(each)).slice(-SHOWN)) this.#show(call);
    say(
      this.#nothing,
      this.#filter
        ? "No call of a thread with this in its name."
        : "No call yet. The calls of the checkpointer appear here as they happen.",
    );
    this.#nothing.hidden = this.#body.childElementCount > 0;
    this.#explain();
  }

  #show(call) {
    const row = this.#body.childElementCount < SHOWN ? this.#row() : this.#body.lastElementChild;
    const [at, thread, op, result, level, ms, turn] = row.children;
    say(at, time(call.at));
    say(thread.firstChild, call.thread === null || call.thread === undefined ? "–" : short(call.thread, 80));
    say(op.firstChild, short(call.op, 40));
    say(op.lastChild, call.ns ? short(call.ns, 60) : "");
    const failed = call.outcome && call.outcome !== "ok";
    say(
      result.firstChild,
      failed
        ? `${short(call.outcome, 20)}${call.error ? `: ${short(call.error, 60)}` : ""}`
        : short(call.result ?? "", 40),
    );
    mark(row, "class", failed ? "failed" : ["hit", "miss"].includes(call.result) ? call.result : "");
    const names = call.op === "put" || call.op === "put_writes" ? WRITES : READS;
    mark(result, "title", failed ? "" : (names.get(call.result)?.[1] ?? ""));
    say(level, SERVERS.get(call.level) ?? short(call.level ?? "", 20));
    say(ms, Number.isFinite(call.ms) ? call.ms.toFixed(call.ms < 10 ? 2 : call.ms < 100 ? 1 : 0) : "");
    turn.firstChild.hidden = !call.trace_id;
    turn.firstChild.value = call.trace_id ?? "";
    this.#body.prepend(row);
  }

  #row() {
    const button = el("button", {
      type: "button",
      class: "small",
      text: "Show",
      "aria-label": "Show the turn of this call",
      on: { click: (event) => this.#open(event.currentTarget.value) },
    });
    return el(
      "tr",
      {},
      el("td", { class: "at" }),
      el("td", { class: "who" }, el("bdi")),
      el("td", { class: "op" }, el("bdi"), el("bdi", { class: "ns" })),
      el("td", { class: "result" }, el("bdi")),
      el("td", { class: "level" }),
      el("td", { class: "number" }),
      el("td", { class: "show" }, button),
    );
  }
}
