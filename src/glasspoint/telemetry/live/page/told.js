// The figures of a moment in words, beside their chart. `end` is the row behind the moment.

import { el, say } from "./dom.js";
import { READS, WRITES, count, percent, rate, took } from "./words.js";

// Writes words into elements that stay, so that once a second only texts change.
export class Words {
  #holder;
  #kept = new Map();
  #used = new Set();

  constructor(holder) {
    this.#holder = holder;
  }

  get text() {
    return [...this.#used]
      .map((key) => this.#kept.get(key))
      .filter((each) => !each.hidden && each.localName !== "div")
      .map((each) => each.textContent)
      .join("; ");
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
    const made = this.#at(key, () =>
      el(
        "p",
        { class: "item", title: hint ?? "" },
        el("i", { class: `c-${ink}${dashed ? " dashed" : ""}`, "aria-hidden": "true" }),
        el("b"),
        el("span"),
      ),
    );
    say(made.children[1], value);
    say(made.children[2], label);
  }
}

function resultsInWords(words, figures, end, prefix, names) {
  const found = [...names].map(([key, [label, hint, ink]]) => ({
    key,
    label,
    hint,
    ink,
    value: figures.mean(`${prefix}:${key}`, end),
  }));
  const total = found.reduce((sum, { value }) => sum + (value || 0), 0);
  words.share(found.map(({ key, value, ink }) => [key, value, ink]));
  for (const { key, label, hint, ink, value } of found) {
    if (value > 0) words.item(key, total ? percent(value / total) : "–", `${label} · ${rate(value)}/s`, ink, hint);
  }
  return total;
}

export function readsInWords(words, figures, end) {
  words.big(percent(figures.mean("hitRatio", end)), "hit ratio");
  if (!resultsInWords(words, figures, end, "read", READS)) words.item("none", "", "no read", "ink-soft");
}

export function readTimesInWords(words, figures, end) {
  const pair = (name) => [took(figures.recent(`${name}50`, end)), took(figures.recent(`${name}99`, end))];
  const [hit, hitWorst] = pair("hit"),
    [miss, missWorst] = pair("miss");
  words.item("hit50", hit, "hit, p50: half are faster", "l1");
  words.item("hit99", hitWorst, "hit, p99: 99 of 100 are faster", "l1", "", true);
  words.item("miss50", miss, "miss, p50", "l2");
  words.item("miss99", missWorst, "miss, p99", "l2", "", true);
}

export function writesInWords(words, figures, end) {
  words.big(rate(figures.mean("writes", end)), "writes a second");
  resultsInWords(words, figures, end, "write", WRITES);
  const journal = figures.rows[end - 1]?.get("journal");
  if (journal > 0) words.item("journal", count(journal), "rows in the journal, for Redis to forget", "failed");
}

export function writeTimesInWords(words, figures, end) {
  words.item("write50", took(figures.recent("write50", end)), "p50: half are faster", "announced");
  words.item("write99", took(figures.recent("write99", end)), "p99: 99 of 100 are faster", "announced", "", true);
}

export function poolInWords(words, figures, end) {
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
