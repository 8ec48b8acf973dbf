// The state in one sentence, the tiers, and the chips.

import { el, mark, say } from "./dom.js";
import { worst } from "./figures.js";
import { TIERS, bytes, count, percent, plural, rate, short, time, took } from "./words.js";

// [level, sentence] for the moment behind `end`.
export function headline(figures, end, found) {
  if (found && found.tier === null)
    return ["none", "No saver is open in this process. Once one is, its reads and writes appear here."];
  if (!found || !figures.hadTraffic)
    return ["none", "No traffic yet. Reads and writes of the checkpointer appear here as they happen."];
  const mean = (name) => figures.mean(name, end);
  const row = figures.rows[end - 1];
  const tier = row?.tier ?? "cached";
  const mixed =
    typeof found.tier === "object" &&
    found.tier !== null &&
    Object.values(found.tier).filter((each) => each > 0).length > 1;
  const where = mixed
    ? ` Not all agree: ${Object.entries(found.tier)
        .filter(([, each]) => each > 0)
        .map(([name, each]) => `${count(each)} in ${short(name, 20)}`)
        .join(", ")}.`
    : "";
  const undrained = Object.values(found.undrained_threads ?? {}).reduce((sum, each) => sum + (Number(each) || 0), 0);
  if (tier === "memory")
    return [
      "error",
      `PostgreSQL and Redis are away. The process itself keeps the conversations until one of them is back.${where}`,
    ];
  if (tier === "redis") {
    const back = undrained ? ` ${plural(undrained, "conversation")} will be brought back to PostgreSQL.` : "";
    return ["error", `PostgreSQL is away. Conversations go on in Redis.${back}${where}`];
  }
  if (row?.breaker === "open" && figures.answersInPart(end))
    return ["warning", `A part of Redis does not answer. PostgreSQL answers for it: slower, and nothing is lost.${where}`];
  if (row?.breaker === "open" || mean("read:unavailable") > 0)
    return ["warning", `Redis does not answer. PostgreSQL answers alone: slower, and nothing is lost.${where}`];
  const failed = Object.entries(found.errors ?? {}).map(([name, each]) => `${short(name, 30)} ${rate(each)}`);
  if (gaveNone(figures, end))
    return [
      "error",
      `PostgreSQL gives no connection. What Redis has is still read; all else waits, and then fails: ${rate(mean("errors"))} calls a second.${where}`,
    ];
  if (mean("errors") > 0.05)
    return [
      "error",
      `Calls fail: ${rate(mean("errors"))} a second${failed.length ? ` (now ${failed.join(", ")})` : ""}.${where}`,
    ];
  if (mean("waiting") >= 1)
    return ["warning", `Calls wait for a connection to PostgreSQL: ${count(Math.round(mean("waiting")))} now.${where}`];
  const reads = mean("reads"),
    writes = mean("writes"),
    ratio = mean("hitRatio");
  if (!(reads > 0) && !(writes > 0)) return ["none", `Quiet: no read and no write now.${where}`];
  const hit = figures.recent("hit50", end),
    miss = figures.recent("miss50", end);
  const beside = [
    Number.isFinite(hit) ? `Redis answers in ${took(hit)}` : "",
    Number.isFinite(miss) ? `PostgreSQL in ${took(miss)}` : "",
  ].filter(Boolean);
  const served = Number.isFinite(ratio) ? `, hit ratio ${percent(ratio)}` : "";
  return [
    "good",
    `${rate(reads)} reads a second${served}${beside.length ? `: ${beside.join(", ")}` : ""}. ${rate(writes)} writes a second.${where}`,
  ];
}

// Calls fail, and callers wait although the pool may open more connections: PostgreSQL gives it none.
export function gaveNone(figures, end) {
  const rows = figures.rows.slice(Math.max(0, end - 3), end);
  return (
    figures.mean("errors", end) > 0.05 &&
    rows.some((row) => row.get("waiting") > 0) &&
    rows.every((row) => row.tier === "cached" && row.get("inUse") + row.get("idle") < row.get("max"))
  );
}

export class Ladder {
  #rungs = new Map();

  constructor(list) {
    for (const [name, [text]] of TIERS) {
      const now = el("span", { class: "now" });
      const rung = el(
        "li",
        { class: `rung ${name}` },
        el("b", { text: name }),
        now,
        el("span", { class: "about", text }),
      );
      this.#rungs.set(name, { rung, now });
      list.append(rung);
    }
  }

  // `events` has since when; both may be unknown.
  show(found, events) {
    const tier = worst(found?.tier);
    const since = events.findLast((line) => line.kind === "tier")?.at;
    const counts = typeof found?.tier === "object" && found.tier !== null ? found.tier : null;
    for (const [name, { rung, now }] of this.#rungs) {
      const here = counts ? counts[name] > 0 : name === tier;
      mark(rung, "data-here", String(here));
      if (here) mark(rung, "aria-current", "true");
      else rung.removeAttribute("aria-current");
      const from = since && name === tier ? `, since ${time(since)}` : "";
      say(now, here ? (counts ? `now: ${count(counts[name])}` : `now${from}`) : "");
    }
  }
}

const CHIPS = [
  [
    "breaker",
    "Breaker",
    (f) =>
      ({
        closed: [
          "closed",
          "good",
          "Redis is asked. After several failures in a row the breaker would open, so that calls do not wait for a Redis that does not answer.",
        ],
        half_open: ["half open", "warning", "One call is let through, to see whether Redis answers again."],
        open: [
          "open",
          "error",
          "Redis, or a master of a Redis Cluster, has failed several times, so nothing is sent to it. PostgreSQL answers for it, and the breaker looks every moment whether it is back.",
        ],
      })[f.breaker] ?? ["none", "none", "There is no cache in this tier, so there is no breaker."],
  ],
  [
    "epoch",
    "Epoch",
    (f, events) => {
      const changes = f.epoch_changes ?? 0;
      const last = events.findLast((line) => line.kind === "epoch");
      return [
        changes ? `changed ${plural(changes, "time")}` : "unchanged",
        "good",
        `One run of the Redis server. After a restart or a failover a new epoch begins, and nothing that Redis holds from before is believed.${last ? ` The last one began at ${time(last.at)}.` : ""}`,
      ];
    },
  ],
  [
    "identity",
    "Identity",
    (f) =>
      f.identity
        ? [
            short(f.identity, 8),
            "good",
            `Which PostgreSQL the cached states belong to, as it is now: ${short(f.identity, 80)}. It changes after a restore, a failover or a crash, and then the cache begins anew. It has changed ${plural(f.identity_changes ?? 0, "time")}.`,
          ]
        : [
            f.no_identity_because
              ? "unknown"
              : f.identity_changes
                ? `changed ${plural(f.identity_changes, "time")}`
                : "not told",
            f.no_identity_because ? "warning" : "none",
            f.no_identity_because
              ? `Which PostgreSQL the cache belongs to could not be read: ${short(f.no_identity_because, 200)}`
              : "Which PostgreSQL the cached states belong to. Metrics do not tell it; the process itself does, when it serves this page.",
          ],
  ],
  [
    "bursts",
    "Open bursts",
    (f) =>
      f.open_bursts === null || f.open_bursts === undefined
        ? null
        : [
            count(f.open_bursts),
            "good",
            "Writes to one conversation that follow each other. While a burst is open, readers go to PostgreSQL; a moment after its last write, Redis gets the new state.",
          ],
  ],
  [
    "journal",
    "Journal",
    (f) => {
      const rows = f.journal_pending ?? 0;
      const grows = f.writes?.results?.journalled > 0;
      return [
        rows ? plural(rows, "row") : grows ? "grows" : "empty",
        rows || grows ? "warning" : "good",
        "What Redis still has to forget: a row for each write that it was not told of. PostgreSQL keeps the rows, and they are worked off as soon as Redis answers. They are counted every few seconds.",
      ];
    },
  ],
  [
    "quarantined",
    "Quarantined",
    (f) =>
      f.quarantined > 0
        ? [
            count(f.quarantined),
            "warning",
            "Conversations whose key Redis refuses, while it serves the others. PostgreSQL answers for them.",
          ]
        : null,
  ],
  [
    "undrained",
    "To be brought back",
    (f) => {
      const found = Object.entries(f.undrained_threads ?? {}).filter(([, number]) => number > 0);
      return found.length
        ? [
            found.map(([tier, number]) => `${count(number)} in ${short(tier, 20)}`).join(", "),
            "warning",
            "Conversations that were written in a lower tier and are not in PostgreSQL yet. They are moved there, thread by thread, when it is back.",
          ]
        : null;
    },
  ],
  [
    "forks",
    "Forks",
    (f) =>
      f.forks > 0
        ? [
            count(f.forks),
            "warning",
            "Two runs wrote to one conversation at once, so one of the two answers is not seen. The list of events names them.",
          ]
        : null,
  ],
  [
    "errors",
    "Failing calls",
    (f) => {
      const found = Object.entries(f.errors ?? {}).filter(([, number]) => number > 0);
      return found.length
        ? [
            `${rate(found.reduce((sum, [, number]) => sum + number, 0))}/s`,
            "error",
            `Calls that raise an error, a second: ${found.map(([name, number]) => `${short(name, 30)} ${rate(number)}`).join(", ")}.`,
          ]
        : null;
    },
  ],
  [
    "turns",
    "Turns",
    (f, _, mean) =>
      mean("turns") > 0 && f.turns
        ? [
            `${rate(mean("turns"))}/s`,
            "good",
            `Runs of the graph. Half take less than ${took(f.turns.p50)}, 99 of 100 less than ${took(f.turns.p99)}.`,
          ]
        : null,
  ],
  [
    "process",
    "Process",
    (f) =>
      f.process
        ? [
            `${percent(f.process.cpu)} · ${bytes(f.process.rss)}`,
            "good",
            "Processor time of this process, as a share of one core, and its memory.",
          ]
        : null,
  ],
];
const SIGNS = { good: "✓", warning: "!", error: "✕", none: "–" };

export class Chips {
  #chips = new Map();

  constructor(list) {
    for (const [key, name] of CHIPS) {
      const sign = el("i", { "aria-hidden": "true" }),
        value = el("b"),
        about = el("span", { class: "tip", role: "tooltip", id: `tip-${key}` });
      const button = el(
        "button",
        { type: "button", "aria-describedby": `tip-${key}` },
        sign,
        el("span", { text: name }),
        value,
      );
      const chip = el("li", { class: "chip", hidden: true }, button, about);
      // Escape hides what it says; it comes back with the next focus.
      button.addEventListener("keydown", (event) => {
        if (event.key === "Escape") mark(chip, "data-quiet", "true");
      });
      for (const event of ["blur", "pointerleave"])
        button.addEventListener(event, () => mark(chip, "data-quiet", "false"));
      // A tip at the right edge opens to the left.
      for (const event of ["focus", "pointerenter"])
        button.addEventListener(event, () =>
          mark(chip, "data-side", chip.offsetLeft + 320 > list.clientWidth ? "left" : "right"),
        );
      this.#chips.set(key, { chip, sign, value, about });
      list.append(chip);
    }
  }

  // `mean(name)` is the mean of a figure, as the picture shows it.
  show(found, events, mean) {
    for (const [key, , read] of CHIPS) {
      const { chip, sign, value, about } = this.#chips.get(key);
      const said = found ? read(found, events, mean) : null;
      chip.hidden = said === null;
      if (said === null) continue;
      const [text, level, more] = said;
      mark(chip, "data-level", level);
      say(sign, SIGNS[level]);
      say(value, text);
      say(about, more);
    }
  }
}
