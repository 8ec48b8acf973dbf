// The demo's part: buttons that break something, and a chat with its agent. Both need the key that the demo printed with its address.

import { el, mark, say } from "./dom.js";
import { SERVERS, short, took } from "./words.js";

const KEY = "glasspoint-token";
const THREAD = "glasspoint-thread";
const MOST_LINES = 60;
const NO_KEY =
  "This page was opened without the demo's key, so it can only watch. Open the address that the demo printed, with all that follows the #.";
const IDEAS = ["내 이름은 철수야", "내 이름이 뭐라고 했지?", "My name is Ada", "What is my name?"];

// Takes the key out of the address, where it would stand in the history and on screenshots.
export function takeKey() {
  const found = /^#token=([\w.~-]{1,200})$/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEY, found[1]);
  history.replaceState(null, "", location.pathname + location.search);
}

export class Demo {
  #parts;
  #open;
  #turnOf;
  #buttons = new Map();
  #answers = [];
  #press = 0;
  #thread = sessionStorage.getItem(THREAD) ?? newThread();

  // `open(trace_id, title)` shows a turn; `turnOf(trace_id)` is what is known of it.
  constructor(parts, open, turnOf) {
    this.#parts = parts;
    this.#open = open;
    this.#turnOf = turnOf;
    parts.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#say(parts.text.value);
    });
    parts.fresh.addEventListener("click", () => {
      this.#thread = newThread();
      this.#answers = [];
      parts.log.replaceChildren();
      this.#greet();
      parts.text.focus();
    });
    for (const idea of IDEAS)
      parts.ideas.append(
        el("button", { type: "button", class: "small", text: idea, on: { click: () => this.#say(idea) } }),
      );
    this.#greet();
  }

  begin({ actions = [], chat = false }) {
    const { demo, chatSection, faults, groups } = this.#parts;
    demo.hidden = !chat && !actions.length;
    chatSection.hidden = !chat;
    faults.hidden = !actions.length;
    mark(document.body, "class", demo.hidden ? "" : "with-demo");
    this.#buttons.clear();
    const byGroup = new Map();
    actions
      .slice(0, 40)
      .forEach((action) => byGroup.set(action.group ?? "", [...(byGroup.get(action.group ?? "") ?? []), action]));
    groups.replaceChildren(
      ...[...byGroup].map(([group, found]) =>
        el(
          "div",
          { class: "fault-group" },
          el("h3", { text: short(group, 40) }),
          ...found.map((action) => this.#button(action)),
        ),
      ),
    );
    if (!sessionStorage.getItem(KEY)) say(this.#parts.said, NO_KEY);
  }

  // Words of the demo for the state of each button, such as `stopped`.
  states(states) {
    for (const [name, { state, button }] of this.#buttons) {
      const said = states?.[name];
      say(state, typeof said === "string" ? short(said, 40) : "");
      mark(button, "data-state", typeof said === "string" && said ? "told" : "none");
    }
  }

  // What is known of a turn arrives after its answer.
  turnsChanged() {
    this.#answers = this.#answers.filter(({ trace, note }) => {
      const turn = this.#turnOf(trace);
      if (!turn) return true;
      const reads = Object.entries(turn.reads ?? {})
        .filter(([, number]) => number > 0)
        .map(([server]) => SERVERS.get(server) ?? server);
      say(
        note,
        `${took(turn.ms / 1000)}${reads.length ? `, state read from ${reads.join(" and ")}` : ", nothing to read yet"}`,
      );
      this.#parts.log.scrollTop = this.#parts.log.scrollHeight;
      return false;
    });
  }

  #button({ name, label, hint, doing }) {
    const state = el("span", { class: "state" });
    const button = el(
      "button",
      { type: "button", on: { click: () => this.#act(name, button, doing ?? `${label} …`) } },
      el("b", {}, el("bdi", { text: short(label, 80) }), state),
      el("span", { class: "hint", text: short(hint, 200) }),
    );
    this.#buttons.set(name, { state, button });
    return button;
  }

  // Of several presses, the newest one is told of: its answer may come before that of an older one.
  async #act(name, button, doing) {
    if (button.getAttribute("aria-disabled") === "true") return;
    mark(button, "aria-disabled", "true");
    const press = (this.#press += 1);
    const tell = (text, level) => {
      if (press !== this.#press) return;
      say(this.#parts.said, short(text, 300));
      mark(this.#parts.said, "data-level", level);
    };
    tell(doing, "none");
    const answer = await post(`live/actions/${encodeURIComponent(name)}`, {});
    mark(button, "aria-disabled", "false");
    tell(answer.said ?? answer.error, answer.error ? "error" : "good");
  }

  async #say(text) {
    const { text: box, form } = this.#parts;
    const said = text.trim();
    if (!said || form.getAttribute("aria-busy") === "true") return;
    mark(form, "aria-busy", "true");
    box.value = "";
    this.#line("you", said);
    const waiting = this.#line("agent waiting", "…");
    const answer = await post("live/chat", { thread: this.#thread, text: said });
    mark(form, "aria-busy", "false");
    waiting.remove();
    const line = this.#line(answer.error ? "agent failed" : "agent", short(answer.text ?? answer.error, 2000));
    if (answer.note) line.append(el("p", { class: "why", text: short(answer.note, 500) }));
    if (answer.trace_id) {
      const note = el("span", { class: "soft" });
      const trace = String(answer.trace_id);
      line.append(
        el(
          "div",
          { class: "turn-link" },
          el("button", {
            type: "button",
            class: "small",
            text: "Show this turn",
            on: { click: () => this.#open(trace, "Your turn") },
          }),
          " ",
          note,
        ),
      );
      this.#answers.push({ trace, note });
      this.turnsChanged();
    }
    this.#parts.log.scrollTop = this.#parts.log.scrollHeight;
    this.#parts.log.scrollIntoView({ block: "nearest" }); // who has pressed buttons has scrolled it away
  }

  #line(kind, text) {
    const line = el(
      "div",
      { class: kind },
      el("span", { class: "unseen", text: kind === "you" ? "You: " : "Agent: " }),
      el("bdi", { text }),
    );
    const { log } = this.#parts;
    log.append(line);
    while (log.childElementCount > MOST_LINES) log.firstElementChild.remove();
    log.scrollTop = log.scrollHeight;
    return line;
  }

  #greet() {
    this.#line(
      "note",
      "Tell the agent your name. Then break something below, and ask for it: what it answers comes from the checkpointer alone.",
    );
  }
}

function newThread() {
  const letters = crypto.getRandomValues(new Uint8Array(6));
  const thread = `you-${[...letters].map((each) => "abcdefghijkmnpqrstuvwxyz"[each % 24]).join("")}`;
  sessionStorage.setItem(THREAD, thread);
  return thread;
}

async function post(path, body) {
  const token = sessionStorage.getItem(KEY);
  if (!token) return { error: NO_KEY };
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Glasspoint-Token": token },
      body: JSON.stringify(body),
      credentials: "omit",
      cache: "no-store",
    });
    const text = (await response.text()).slice(0, 20_000);
    try {
      const answer = JSON.parse(text);
      return response.ok || answer.error ? answer : { error: `It was refused (${response.status}).` };
    } catch {
      return { error: text || `It was refused (${response.status}).` };
    }
  } catch {
    return { error: "The process does not answer." };
  }
}
