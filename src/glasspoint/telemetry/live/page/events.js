// The list of events, in words.

import { el } from "./dom.js";
import { KINDS, LEVELS, short, time } from "./words.js";

const SHOWN = 200;

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
    for (const line of lines.slice(-SHOWN)) this.#list.prepend(item(line));
    while (this.#list.childElementCount > SHOWN) this.#list.lastElementChild.remove();
    this.#nothing.hidden = this.#list.childElementCount > 0;
  }
}

function item({ at, kind, level, saver, text }) {
  const [sign, said] = LEVELS.get(level) ?? LEVELS.get("info");
  const name = LEVELS.has(level) ? level : "info";
  return el("li", { class: `event ${name}` },
    el("time", { text: time(at) }), el("i", { text: sign, role: "img", "aria-label": said }),
    el("b", {}, el("bdi", { text: short(KINDS.get(kind) ?? kind, 40) })), el("bdi", { class: "text", text: short(text, 600) }),
    saver && saver !== "default" ? el("bdi", { class: "saver", text: short(saver, 60) }) : null);
}
