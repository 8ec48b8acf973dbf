// What figures, results and states are called, in plain English. Everything that the page explains is here.

export const READS = new Map([
  ["hit", ["from Redis", "Redis had it (a hit).", "l1"]],
  ["redis", ["from Redis alone", "The tier is redis: PostgreSQL is away, and Redis holds the conversations.", "redis"]],
  ["memory", ["from memory", "The tier is memory: this process alone holds the conversations.", "memory"]],
  ["miss", ["a miss", "Redis had nothing. PostgreSQL answered, and the reader stored the answer in Redis.", "l2"]],
  ["busy", ["busy", "A write to this conversation was under way, so PostgreSQL was asked.", "busy"]],
  ["absent", ["new", "PostgreSQL has nothing either: a new conversation.", "absent"]],
  ["incomplete", ["incomplete", "What Redis had could not be used. PostgreSQL answered.", "incomplete"]],
  ["unavailable", ["Redis away", "Redis did not answer. PostgreSQL answered.", "failed"]],
  ["historical", ["historical", "An older checkpoint was asked for. Redis keeps the newest one only.", "historical"]],
  ["bypassed", ["not cached", "State of a subgraph within one run. It is never cached.", "bypassed"]],
]);

export const WRITES = new Map([
  [
    "announced",
    ["announced", "The first write of a burst. Readers are sent to PostgreSQL until the burst is over.", "announced"],
  ],
  ["covered", ["covered", "A further write of a burst. Redis is not asked: the announcement covers it.", "covered"]],
  [
    "contested",
    [
      "contested",
      "Another writer was there. Redis forgets the conversation, and the next read is a miss.",
      "contested",
    ],
  ],
  ["discarded", ["discarded", "Redis forgot the conversation, and the next read is a miss.", "historical"]],
  [
    "journalled",
    ["journalled", "Redis did not do its part. A row in PostgreSQL says what Redis has to forget.", "failed"],
  ],
  ["skipped", ["without cache", "There is no cache for this write.", "absent"]],
  ["bypassed", ["not cached", "State of a subgraph within one run. It is never cached.", "bypassed"]],
  ["redis", ["in Redis alone", "The tier is redis: PostgreSQL is away, and Redis holds the conversations.", "redis"]],
  ["memory", ["in memory", "The tier is memory: this process alone holds the conversations.", "memory"]],
  ["error", ["failed", "Neither Redis nor the journal was told, and the call failed.", "incomplete"]],
]);

export const TIERS = new Map([
  ["cached", ["PostgreSQL is the truth, and Redis its cache.", "good"]],
  ["redis", ["PostgreSQL is away: Redis keeps the conversations.", "warning"]],
  ["memory", ["Both are away: the process keeps the conversations.", "error"]],
]);

export const KINDS = new Map([
  ["tier", "Tier"],
  ["breaker", "Breaker"],
  ["epoch", "Epoch"],
  ["identity", "Identity"],
  ["journal", "Journal"],
  ["drain", "Drain"],
  ["quarantine", "Quarantine"],
  ["fork", "Fork"],
  ["foreign_writes", "Other software"],
  ["retention", "Retention"],
  ["saver", "Saver"],
  ["fault", "Fault"],
  ["story", "Demo"],
]);

export const LEVELS = new Map([
  ["info", ["•", "Information"]],
  ["good", ["✓", "Good"]],
  ["warning", ["!", "Warning"]],
  ["error", ["✕", "Error"]],
]);

export const SERVERS = new Map([
  ["l1", "Redis (L1)"],
  ["l2", "PostgreSQL (L2)"],
  ["redis", "Redis alone"],
  ["memory", "memory"],
]);

const plainNumber = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function rate(number) {
  if (!Number.isFinite(number)) return "–";
  if (number === 0) return "0";
  if (number < 0.05) return "< 0.1";
  return number < 9.95 ? number.toFixed(1) : plainNumber.format(number);
}

export const count = (number) => (Number.isFinite(number) ? plainNumber.format(number) : "–");

export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = 100 * share;
  if (value > 99 && value < 100) return `${Math.min(value, 99.9).toFixed(1)} %`;
  return value > 0 && value < 1 ? "< 1 %" : `${Math.round(value)} %`;
}

// Seconds, with the unit that suits.
export function took(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const ms = 1000 * seconds;
  if (ms < 1000) return `${ms < 1 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
  return seconds < 60
    ? `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`
    : `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

export function bytes(number) {
  return number < 1e9 ? `${(number / 1e6).toFixed(0)} MB` : `${(number / 1e9).toFixed(1)} GB`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const time = (at) => (Number.isFinite(at) && Math.abs(at) < 8e12 ? clock.format(new Date(1000 * at)) : "–");

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

// Names of outside are text of any length: a page that several hundred of them fill says no more.
export function short(text, most = 120) {
  const letters = String(text ?? "");
  return letters.length > most ? `${letters.slice(0, most - 1)}…` : letters;
}
