// The list of events, in words.

import { el, say } from "./dom.js";
import { KINDS, LEVELS, short, time } from "./words.js";

const SHOWN = 200;
// A breaker that is open tries Redis again and again: two lines, with a number, say as much as two hundred.
const LOOKED_BACK = 4;
const AGAIN_SECONDS = 30;

// The lines that begin something: what is said again within half a minute is left out.
export function striking(lines, kinds) {
  const last = new Map();
  return lines.filter((line) => {
    if (!kinds.has(line.kind)) return false;
    const before = last.get(saidBy(line)) ?? -Infinity;
    last.set(saidBy(line), line.at);
    return line.at - before > AGAIN_SECONDS;
  });
}

export class Events {
  #list;
  #nothing;

  constructor(list, nothing) {
    this.#list = list;
    this.#nothing = nothing;
  }

  // All that is kept, oldest first.
  replace(lines) {
    this.#list.replaceChildren();
    this.add(lines);
  }

  add(lines) {
    for (const line of lines.slice(-SHOWN)) {
      const same = [...this.#list.children]
        .slice(0, LOOKED_BACK)
        .find((each) => each.said === saidBy(line) && line.at - each.at < AGAIN_SECONDS);
      if (same) again(same, line);
      else this.#list.prepend(item(line));
    }
    while (this.#list.childElementCount > SHOWN) this.#list.lastElementChild.remove();
    this.#nothing.hidden = this.#list.childElementCount > 0;
  }
}

function item({ at, kind, level, saver, text, times = 1 }) {
  const [sign, said] = LEVELS.get(level) ?? LEVELS.get("info");
  const name = LEVELS.has(level) ? level : "info";
  const made = el(
    "li",
    { class: `event ${name}` },
    el("time", { text: time(at) }),
    el("i", { text: sign, role: "img", "aria-label": said }),
    el("b", {}, el("bdi", { text: short(KINDS.get(kind) ?? kind, 40) })),
    el("span", { class: "said" }, el("bdi", { text: short(text, 600) }), el("span", { class: "times", text: times > 1 ? `${times} times` : "" })),
    saver && saver !== "default" ? el("bdi", { class: "saver", text: short(saver, 60) }) : null,
  );
  made.said = saidBy({ kind, saver, text });
  made.times = times;
  made.at = at;
  return made;
}

const saidBy = ({ kind, saver, text }) => JSON.stringify([kind, saver, text]);

function again(made, { at, times = 1 }) {
  made.times += times;
  made.at = at;
  say(made.querySelector(".times"), `${made.times} times, last at ${time(at)}`);
}
