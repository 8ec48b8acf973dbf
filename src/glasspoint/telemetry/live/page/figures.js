// Keeps the figures of the last quarter of an hour, second by second, as rows of numbers.

import { READS, WRITES } from "./words.js";

export const KEPT = 900;
const RESULTS = [...READS.keys()];
const WROTE = [...WRITES.keys()];
const NAMES = [
  "reads",
  "hitRatio",
  "hits",
  "hit50",
  "hit99",
  "misses",
  "miss50",
  "miss99",
  "writes",
  "write50",
  "write99",
  "warm",
  "warm50",
  "warm99",
  "inUse",
  "idle",
  "max",
  "waiting",
  "journal",
  "turns",
  "turn50",
  "turn99",
  "cpu",
  "rss",
  "errors",
  "tier",
  "breaker",
  ...RESULTS.map((each) => `read:${each}`),
  ...WROTE.map((each) => `write:${each}`),
];
const COLUMN = new Map(NAMES.map((name, number) => [name, number]));
const TIERS = ["cached", "redis", "memory"];
const BREAKERS = ["closed", "half_open", "open"];

const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : NaN);

// A number a column; NaN where there is nothing.
class Row {
  constructor(at, found) {
    this.at = at;
    this.values = new Float64Array(NAMES.length).fill(NaN);
    if (!found || found.error !== undefined) return;
    const set = (name, value) => {
      this.values[COLUMN.get(name)] = number(value);
    };
    const { reads = {}, writes = {}, hit, miss, warm_ups: warm, pool, turns, process } = found;
    set("reads", reads.rate);
    set("hitRatio", reads.hit_ratio);
    set("hits", hit?.rate);
    set("hit50", hit?.p50);
    set("hit99", hit?.p99);
    set("misses", miss?.rate);
    set("miss50", miss?.p50);
    set("miss99", miss?.p99);
    set("writes", writes.rate);
    set("write50", writes.p50);
    set("write99", writes.p99);
    set("warm", warm?.rate);
    set("warm50", warm?.p50);
    set("warm99", warm?.p99);
    set("inUse", pool?.in_use);
    set("idle", pool?.idle);
    set("max", pool?.max);
    set("waiting", pool?.waiting);
    set("journal", found.journal_pending);
    set("turns", turns?.rate);
    set("turn50", turns?.p50);
    set("turn99", turns?.p99);
    set("cpu", process?.cpu);
    set("rss", process?.rss);
    set(
      "errors",
      Object.values(found.errors ?? {}).reduce((sum, each) => sum + (number(each) || 0), 0),
    );
    set("tier", TIERS.indexOf(worst(found.tier, TIERS)));
    set("breaker", BREAKERS.indexOf(found.breaker ?? ""));
    for (const name of RESULTS) set(`read:${name}`, reads.results?.[name] ?? 0);
    for (const name of WROTE) set(`write:${name}`, writes.results?.[name] ?? 0);
  }

  get(name) {
    return this.values[COLUMN.get(name)];
  }

  get tier() {
    return TIERS[this.get("tier")] ?? null;
  }

  get breaker() {
    return BREAKERS[this.get("breaker")] ?? null;
  }
}

// Where savers or processes differ, the tier is a count of each.
export function worst(tier, order = TIERS) {
  if (typeof tier === "string") return tier;
  const names = Object.keys(tier ?? {}).filter((name) => tier[name] > 0);
  return order.findLast((name) => names.includes(name)) ?? "";
}

export class Figures {
  constructor() {
    this.rows = [];
    this.latest = null;
  }

  add(at, found) {
    const last = this.rows.at(-1);
    if (last && at <= last.at) return;
    // What is missing is a gap in the lines, not a slope.
    if (last && at - last.at > 4) this.rows.push(new Row(last.at + 1, null));
    this.rows.push(new Row(at, found));
    this.latest = found;
    if (this.rows.length > KEPT) this.rows.splice(0, this.rows.length - KEPT);
  }

  // The server's own record of the time before; what this page has from earlier still stays.
  precede(history) {
    const first = history[0]?.at ?? Infinity;
    const last = history.at(-1)?.at ?? -Infinity;
    const before = this.rows.filter((row) => row.at < first);
    const after = this.rows.filter((row) => row.at > last);
    this.rows = [];
    for (const row of before) this.rows.push(row);
    if (before.length && first - before.at(-1).at > 4) this.rows.push(new Row(before.at(-1).at + 1, null));
    for (const each of history) this.rows.push(new Row(each.at, each.sum));
    for (const row of after) this.rows.push(row);
    if (this.rows.length > KEPT) this.rows.splice(0, this.rows.length - KEPT);
    this.latest ??= history.at(-1)?.sum ?? null;
  }

  column(rows, name) {
    const at = COLUMN.get(name);
    return rows.map((row) => (Number.isNaN(row.values[at]) ? null : row.values[at]));
  }

  // The mean of the last three seconds, so that a number can be read before it changes.
  mean(name, end = this.rows.length) {
    let sum = 0,
      seen = 0;
    for (const row of this.rows.slice(Math.max(0, end - 3), end)) {
      const value = row.get(name);
      if (!Number.isNaN(value)) {
        sum += value;
        seen += 1;
      }
    }
    return seen ? sum / seen : NaN;
  }

  // The newest number of the last ten seconds: times exist only for seconds in which something happened.
  recent(name, end = this.rows.length) {
    for (let n = end - 1; n >= Math.max(0, end - 10); n -= 1) {
      const value = this.rows[n].get(name);
      if (!Number.isNaN(value)) return value;
    }
    return NaN;
  }

  // A breaker was open for a whole second, in which Redis has answered all the same: so only a part of Redis
  // is left alone, which is a master of a cluster.
  answersInPart(end = this.rows.length) {
    const rows = this.rows.slice(Math.max(0, end - 4), end);
    return rows.some((row, n) => row.breaker === "open" && rows[n - 1]?.breaker === "open" && row.get("hits") > 0);
  }

  get hadTraffic() {
    return this.rows.some((row) => row.get("reads") > 0 || row.get("writes") > 0);
  }
}
