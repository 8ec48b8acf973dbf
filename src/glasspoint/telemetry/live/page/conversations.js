// Recent conversations: a line each, with a bar for each turn.

import { el } from "./dom.js";
import { SERVERS, plural, short, time, took } from "./words.js";

const MOST = 50;
const TURNS = 20;
const OUTCOMES = new Map([
  ["ok", ""],
  ["error", "failed"],
  ["interrupted", "waits for an answer"],
  ["cancelled", "cancelled"],
]);
const INTERRUPTS = new Map([
  ["raised", "asks its user"],
  ["resumed", "goes on with an answer"],
]);

export class Conversations {
  #list;
  #nothing;
  #open;
  #filter;
  #known = new Map();
  #waiting = new Map();
  #spans = true;
  #held = false;

  // `open(trace_id, title)` shows a turn; `filter(thread)` shows the calls of a thread.
  constructor({ list, nothing, open, filter }) {
    this.#list = list;
    this.#nothing = nothing;
    this.#open = open;
    this.#filter = filter;
    document.addEventListener("visibilitychange", () => this.#draw());
    for (const [event, held] of [
      ["focusin", true],
      ["focusout", false],
      ["pointerenter", true],
      ["pointerleave", false],
    ]) {
      list.addEventListener(event, () => {
        this.#held = held;
        this.#draw();
      });
    }
  }

  begin(spans) {
    this.#spans = spans;
    this.#known.clear();
    this.#waiting.clear();
    this.#list.replaceChildren();
    this.#nothing.hidden = false;
  }

  // The turn with this trace id, if a conversation has it.
  turn(trace) {
    for (const { turns } of this.#known.values()) {
      const found = turns.find((turn) => turn.trace_id === trace);
      if (found) return found;
    }
    return null;
  }

  add(conversations) {
    for (const each of conversations) {
      const key = String(each.thread);
      this.#waiting.set(key, each);
      this.#known.delete(key);
      this.#known.set(key, { turns: (each.turns ?? []).slice(-TURNS) });
    }
    for (const key of this.#known.keys()) {
      if (this.#known.size <= MOST) break;
      this.#known.delete(key);
      this.#waiting.delete(key);
    }
    this.#draw();
  }

  // What the pointer is at does not move.
  #draw() {
    if (document.hidden || this.#held) return;
    for (const [key, each] of this.#waiting) {
      const shown = [...this.#list.children].find((item) => item.key === key);
      const item = this.#item(each);
      item.key = key;
      shown?.remove();
      this.#list.prepend(item);
    }
    this.#waiting.clear();
    for (const item of [...this.#list.children]) if (!this.#known.has(item.key)) item.remove();
    this.#nothing.hidden = this.#list.childElementCount > 0;
  }

  #item({ thread, agent, turns = [], calls }) {
    const kept = turns.slice(-TURNS);
    const longest = Math.max(...kept.map((turn) => turn.ms), 1);
    const name = thread === null || thread === undefined ? "thread not shown" : short(thread, 80);
    const last = kept.at(-1);
    const about = last
      ? `${plural(last.number ?? kept.length, "turn")} · last at ${time(last.at)}`
      : plural(calls ?? 0, "call") + (this.#spans ? ", no turn seen" : "");
    const head = el(
      "div",
      { class: "conversation-head" },
      el("h3", {}, el("bdi", { text: name })),
      agent ? el("bdi", { class: "agent", text: short(agent, 60) }) : null,
      el("span", { class: "soft", text: about }),
      thread
        ? el("button", {
            type: "button",
            class: "small",
            text: "Its calls",
            "aria-label": `Its calls: those of ${name}`,
            on: { click: () => this.#filter(String(thread)) },
          })
        : null,
    );
    if (!kept.length) return el("li", { class: "without-turns" }, head);
    const bars = el("ol", { class: "turns" });
    kept.forEach((turn, n) => bars.append(this.#bar(turn, kept[n - 1], kept, longest, name)));
    return el("li", {}, head, bars);
  }

  #bar(turn, before, all, longest, name) {
    const reads = Object.entries(turn.reads ?? {}).filter(([, number]) => number > 0);
    const origin = turn.follows ? all.find((each) => each.trace_id === turn.follows) : null;
    const follows = !turn.follows
      ? "begins here"
      : before && turn.follows === before.trace_id
        ? "goes on from the turn before"
        : origin
          ? `goes on from turn ${origin.number}`
          : "goes on from a turn that is not shown";
    // A turn between may not be kept: a fork is certain only if the turn that it goes on from is shown.
    const forked = Boolean(origin) && Boolean(before) && turn.follows !== before.trace_id;
    const asked = (turn.interrupts ?? []).map((kind) => INTERRUPTS.get(kind) ?? short(kind, 20));
    const more = [
      ...reads.map(([server, number]) =>
        server === "none" ? plural(number, "failed read") : `${number} read from ${SERVERS.get(server) ?? short(server, 20)}`,
      ),
      OUTCOMES.get(turn.outcome) ?? short(turn.outcome, 20),
      ...asked,
      follows,
    ]
      .filter(Boolean)
      .join(", ");
    const number = String(turn.number ?? "?");
    const bar = el("span", { class: "turn-bar" });
    for (const [server, number] of reads.length ? reads : [["none", 1]]) {
      const piece = el("i", { class: `c-${["l1", "l2", "redis", "memory"].includes(server) ? server : "absent"}` });
      piece.style.flexGrow = String(number);
      bar.append(piece);
    }
    bar.style.height = `${Math.round(8 + 40 * Math.sqrt(Math.min(1, turn.ms / longest)))}px`;
    const sign =
      turn.outcome === "error" ? "✕" : turn.outcome === "interrupted" ? "?" : asked.length ? "↩" : forked ? "↰" : "";
    return el(
      "li",
      { class: `turn ${follows === "begins here" ? "first" : forked ? "fork" : ""}` },
      el(
        "button",
        {
          type: "button",
          title: `Turn ${number}, ${took(turn.ms / 1000)}, ${more}`,
          on: { click: () => this.#open(turn.trace_id, `Turn ${number} of ${name}`) },
        },
        el("span", { class: "column", "aria-hidden": "true" }, el("span", { class: "sign", text: sign }), bar),
        el("span", { class: "turn-number" }, el("span", { class: "unseen", text: "Turn " }), number),
        el("span", { class: "turn-took", text: brief(turn.ms) }),
        el("span", { class: "unseen", text: more }),
      ),
    );
  }
}

function brief(ms) {
  if (!Number.isFinite(ms)) return "–";
  return ms < 1000 ? `${ms.toFixed(ms < 9.95 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function key(element) {
  element.replaceChildren(
    ...[
      ["l1", "read from Redis"],
      ["l2", "read from PostgreSQL"],
      ["redis", "from Redis alone"],
      ["memory", "from memory"],
    ].map(([ink, text]) => el("span", {}, el("i", { class: `c-${ink}`, "aria-hidden": "true" }), text)),
    ...[
      ["✕", "failed"],
      ["?", "waits for an answer"],
      ["↩", "goes on with an answer"],
      ["↰", "fork: not from the turn before"],
    ].map(([sign, text]) => el("span", {}, el("b", { text: sign }), text)),
  );
}
