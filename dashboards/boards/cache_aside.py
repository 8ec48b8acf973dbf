"""What the cache does: how reads are answered, how writes reach both levels, is it true; and Redis itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.boards.colours import BAD, GOOD, WARNING
from dashboards.boards.common import board, exporter
from dashboards.boards.panels import About, Query, figures, graph
from dashboards.boards.promql import metric, or_zero, quantile, rate, redis, share

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

__all__ = ["build"]

_READ_RESULTS = ("hit", "miss", "busy", "incomplete", "unavailable", "historical", "bypassed", "absent")
_WARM_UPS = ("stored", "overtaken", "not_first", "fenced", "error")
_WRITE_RESULTS = (
    "announced",
    "covered",
    "contested",
    "discarded",
    "journalled",
    "skipped",
    "bypassed",
    "error",
)
_BURST_ENDS = ("applied", "kept", "discarded", "contested", "lost", "error")
_VERDICTS = ("consistent", "raced", "stale")
_BREAKER = {0: ("closed", GOOD), 1: ("open", BAD)}
_WIDTH = 6


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Cache-aside",
        "Does the cache earn its keep, and is it true? How reads are answered, how writes reach both levels,"
        " what audits find, and Redis itself.",
        {
            "": [_hit_latency(), _followed(), _stale(), _breaker(), _memory_used()],
            "Reads": [_reads(), _latencies(), _warm_ups(), _sizes()],
            "Writes": [_write_through(), _l1_told(), _l1_follows()],
            "Consistency": [_audits(), _invalidations(), _journal(), _breaker_changes()],
            "Redis": [_memory(), _removed(), _scripts()],
        },
        variables=[exporter("redis", "Redis", "redis_up")],
    )


def _hit_latency() -> Panel:
    return figures(
        "Hit latency (p99)",
        About(
            "99 % of the reads that Redis answered took no longer.",
            "a few milliseconds.",
            "see State size, Redis: script latency, and Overview › CPU by process.",
            empty="while there are no hits.",
        ),
        Query(quantile(0.99, "read_duration_seconds", result="hit"), "p99"),
        width=5,
        unit="s",
        steps=[(0, GOOD), (0.02, WARNING), (0.1, BAD)],
        no_value="no hits",
    )


def _followed() -> Panel:
    return figures(
        "Bursts applied",
        About(
            "Bursts of writes after which the entry in Redis holds what PostgreSQL holds, as a share of all.",
            "above 95 %; right after a new epoch fewer.",
            "see Bursts by end: discarded and contested cost a miss, lost mostly means that Redis does not"
            " answer.",
        ),
        Query(
            share(
                f"sum({rate(metric('bursts_total', end='=~applied|kept'))})",
                f"sum({rate(metric('bursts_total'))})",
            ),
            "applied",
        ),
        width=5,
        unit="percentunit",
        decimals=1,
        steps=[(0, BAD), (0.8, WARNING), (0.95, GOOD)],
        no_value="no writes",
    )


def _memory_used() -> Panel:
    return figures(
        "Redis: memory utilisation",
        About(
            "Memory that Redis holds, as a share of its `maxmemory`.",
            "below 80 %.",
            "at 100 % Redis evicts: more memory, or a shorter `CHECKPOINT_CACHE_TTL` (alert"
            " GlasspointRedisEvicts).",
            empty="without Redis' exporter, and where `maxmemory` is 0: no limit.",
        ),
        Query(f"max({redis('memory_used_bytes')} / ({redis('memory_max_bytes')} > 0))", "used"),
        unit="percentunit",
        decimals=0,
        steps=[(0, GOOD), (0.8, WARNING), (1, BAD)],
        no_value="no limit",
    )


def _reads() -> Panel:
    return graph(
        "Reads by result",
        About(
            "Reads a second by what Redis answered. Only a hit was served by Redis.",
            "mostly green. Purple is by design: time travel, scopes that are not cached. Grey (absent) are"
            " new threads.",
            "blue (miss): expired, evicted or flushed, see Redis below. Light blue (busy): somebody reads"
            " while the graph runs. Orange (incomplete): the entry cannot be used, see"
            " GlasspointEntriesTampered. Red (unavailable): Redis did not answer.",
        ),
        Query(f"sum by (result) ({rate(metric('l1_reads_total'))})", "{{result}}", names=_READ_RESULTS),
        unit="ops",
        width=_WIDTH,
        stacked=True,
    )


def _latencies() -> Panel:
    name, levels = "read_duration_seconds", ("l1", "l2")
    return graph(
        "Read latency by level",
        About(
            "How long reads took that Redis answered (l1) and that PostgreSQL answered (l2), and how long it"
            " takes to store an entry after a miss (warm-up; nobody waits for it). The points are single"
            " reads; each opens its trace.",
            "l1 well below l2.",
            "l1 high: State size, or Redis: script latency. l2 high: Saturation and storage.",
        ),
        *(
            Query(
                quantile(q, name, ("served_by",), served_by="=~l1|l2"),
                f"{{{{served_by}}}} {word}",
                names=tuple(f"{level} {word}" for level in levels),
                exemplars=word == "p95",
            )
            for word, q in (("p50", 0.5), ("p95", 0.95))
        ),
        Query(quantile(0.95, "l1_warm_up_duration_seconds"), "warm-up p95"),
        unit="s",
        width=_WIDTH,
    )


def _warm_ups() -> Panel:
    return graph(
        "Warm-ups by result",
        About(
            "What became of the state that a miss had read: stored in Redis, or why not.",
            "stored. overtaken (a write came between), not_first (another reader did it) and fenced (a burst"
            " is under way) cost nothing but one more miss.",
            "error: Redis answered the read and then no longer. Many overtaken: several writers on one"
            " conversation.",
        ),
        Query(f"sum by (result) ({rate(metric('l1_warm_ups_total'))})", "{{result}}", names=_WARM_UPS),
        unit="ops",
        width=_WIDTH,
        stacked=True,
    )


def _sizes() -> Panel:
    return graph(
        "State size",
        About(
            "How large the states are that are read: 50 % and 99 % of them no larger; and how much a write"
            " sends to PostgreSQL, on the mean.",
            "level: a conversation's state grows with its messages, and all of it is read at every turn.",
            "rising: trim or summarise messages, or keep large things outside the state. Above a megabyte"
            " Redis, the network and the CPU begin to feel it.",
        ),
        *(
            Query(quantile(q, "entry_bytes", operation="get_tuple"), word)
            for word, q in (("p50", 0.5), ("p99", 0.99))
        ),
        Query(
            share(
                *(f"sum by (operation) ({rate(metric('write_bytes', part))})" for part in ("sum", "count"))
            ),
            "sent by {{operation}}",
        ),
        unit="bytes",
        width=_WIDTH,
    )


def _write_through() -> Panel:
    name, levels = "write_through_duration_seconds", ("l1", "l2")
    return graph(
        "Write latency by level",
        About(
            "Where a write's time goes before the caller is answered: Redis (l1, the first write of a burst"
            " only), the statement in PostgreSQL (l2). The points are single writes; each opens its trace.",
            "l1 well below l2: it is the price of the cache.",
            "l2 high: PostgreSQL's disk or locks, see Saturation and storage. l1 high: Redis, or the way to"
            " it.",
        ),
        *(
            Query(
                quantile(q, name, ("tier",)),
                f"{{{{tier}}}} {word}",
                names=tuple(f"{level} {word}" for level in levels),
                exemplars=word == "p95",
            )
            for word, q in (("p50", 0.5), ("p95", 0.95))
        ),
        unit="s",
        width=8,
    )


def _stale() -> Panel:
    return figures(
        "Stale audits",
        About(
            "Hits that were compared with PostgreSQL afterwards and were not what stands there, in the time"
            " shown.",
            "0, always.",
            "the log has an ERROR with thread, checkpoint and what differs; report it. The entry was dropped"
            " already.",
        ),
        Query(f"sum(increase({metric('l1_audits_total', verdict='stale')}[$__range]))", "stale"),
        width=5,
        unit="none",
        decimals=0,
        steps=[(0, GOOD), (0.5, BAD)],
        sparkline=False,
    )


def _breaker() -> Panel:
    return figures(
        "Breaker",
        About(
            "Whether one of the chosen savers leaves Redis alone because it did not answer.",
            "closed.",
            "PostgreSQL answers meanwhile, more slowly. See whether Redis runs, and whether its network"
            " does; probes go out in the background, and it closes by itself.",
        ),
        Query(f"max({metric('l1_breaker_open')})", "breaker"),
        width=5,
        unit="none",
        steps=[(0, GOOD), (1, BAD)],
        texts=_BREAKER,
    )


def _l1_told() -> Panel:
    return graph(
        "Writes by L1 result",
        About(
            "Writes a second by how Redis was told of them. Announced: the first write of a burst, which"
            " sends readers to PostgreSQL. Covered: a further one, of which Redis is not told at once.",
            "covered, with some announced: several writes share one announcement.",
            "contested: another process writes to the same conversation; see whether that is meant."
            " Discarded: PostgreSQL left a write in doubt, and the entry was forgotten. Journalled: Redis did"
            " not do its part, and is told later. Skipped: there is no cache. Error: neither Redis nor the"
            " journal was told, and the caller knows.",
        ),
        Query(f"sum by (l1) ({rate(metric('write_through_total'))})", "{{l1}}", names=_WRITE_RESULTS),
        unit="ops",
        width=8,
        stacked=True,
    )


def _l1_follows() -> Panel:
    return graph(
        "Bursts by end",
        About(
            "Bursts of writes a second by what became of the entry in Redis when they ended.",
            "applied. Kept is right, too: no write of the burst belongs to the newest checkpoint.",
            "discarded: Redis could not follow, and the next read is a miss. Contested: another process wrote"
            " to the same conversation, and the next read is a miss. Lost: Redis was not told, or a write was"
            " left in doubt. Error: Redis did not answer at the end; reads of these conversations are busy"
            " for up to half a minute.",
        ),
        Query(f"sum by (end) ({rate(metric('bursts_total'))})", "{{end}}", names=_BURST_ENDS),
        unit="ops",
        width=8,
        stacked=True,
    )


def _audits() -> Panel:
    return graph(
        "Audits by verdict",
        About(
            "A sample of the hits, compared with PostgreSQL afterwards: audits a minute, by what was found.",
            "consistent; a raced one differed only because a write came between.",
            "a single stale one is worth a call: the log has an ERROR with what differs. At nothing at all,"
            " no hits are sampled: `audit_ratio`.",
        ),
        Query(f"60 * sum by (verdict) ({rate(metric('l1_audits_total'))})", "{{verdict}}", names=_VERDICTS),
        unit="opm",
        width=_WIDTH,
        stacked=True,
    )


def _invalidations() -> Panel:
    of = or_zero(f"60 * sum by (source) ({rate(metric('l1_invalidations_total'))})", "source")
    return graph(
        "Invalidations by source",
        About(
            "Entries that went for another reason than a write, a minute, by what asked for it. The journal's"
            " include those that other software wrote to, which are also shown by table.",
            "what is deleted, pruned or copied.",
            "journal: writes that Redis was not told of. Other software: it writes to the tables of"
            " PostgreSQL, and the cache follows; see whether that is meant. Audit: stale. Tampered: not"
            " signed with this saver's key; somebody else writes there, or not all processes have one key.",
        ),
        Query(of, "{{source}}", names=("tampered", "none")),
        Query(f"60 * sum by (table) ({rate(metric('foreign_writes_total'))})", "other software: {{table}}"),
        unit="opm",
        width=_WIDTH,
    )


def _journal() -> Panel:
    return graph(
        "Journal and quarantine",
        About(
            "Entries that Redis is yet to be told to drop. All processes look at one table. And the scopes in"
            " quarantine: Redis refuses their keys, and PostgreSQL alone answers for them.",
            "0, or more only while Redis is away.",
            "waiting for minutes with Redis up: no process reaches both servers. In quarantine: the log names"
            " thread and reason.",
        ),
        Query(f"max({metric('l1_journal_pending')})", "waiting"),
        Query(f"max({metric('l1_quarantined_scopes')})", "in quarantine"),
        unit="none",
        width=_WIDTH,
    )


def _breaker_changes() -> Panel:
    to = ("open", "half_open", "closed")
    return graph(
        "Breaker, epochs and identities",
        About(
            "How often Redis was left alone, probed and asked again; how often it was another process than"
            " before (new epochs); and how often PostgreSQL was not what the cache was filled from (new"
            " identity, by reason).",
            "nothing. After a restart of Redis: one new epoch for each process, closed as often as open, and"
            " a new identity with the reason generation.",
            "half_open again and again: the probes do not get through. open and closed in turns: Redis"
            " answers the probes, but not the calls. An epoch without a restart of yours: somebody else"
            " restarts it, or it failed over. A new identity for another reason than generation: PostgreSQL"
            " was set back, replaced or emptied, or it crashed; the log says what changed.",
        ),
        Query(
            f"sum by (to) (increase({metric('l1_breaker_transitions_total')}[$__rate_interval]))",
            "{{to}}",
            names=to,
        ),
        Query(f"sum(increase({metric('l1_epoch_changes_total')}[$__rate_interval]))", "new epochs"),
        Query(
            f"sum by (reason) (increase({metric('l1_identity_changes_total')}[$__rate_interval]))",
            "new identity: {{reason}}",
        ),
        unit="none",
        width=_WIDTH,
        bars=True,
        calcs=("max",),
    )


def _memory() -> Panel:
    return graph(
        "Redis: memory",
        About(
            "What Redis holds, what the machine gave it for that, and its limit (0: none).",
            "used below the limit, and resident not much above used.",
            "at the limit Redis evicts: more memory, a shorter `CHECKPOINT_CACHE_TTL`, compression. With"
            " noeviction writes to Redis fail instead.",
        ),
        Query(f"sum({redis('memory_used_bytes')})", "used"),
        Query(f"sum({redis('memory_used_rss_bytes')})", "resident"),
        Query(f"sum({redis('memory_max_bytes')})", "limit"),
        unit="bytes",
        width=8,
    )


def _removed() -> Panel:
    return graph(
        "Redis: keys expired and evicted",
        About(
            "Keys a minute that went because they had expired, and because memory was short.",
            "no evictions. Expired ones are conversations that went quiet.",
            "evictions make misses: see Redis: memory. Many expired, and misses with them: a longer"
            " `CHECKPOINT_CACHE_TTL`.",
        ),
        Query(f"60 * sum({rate(redis('expired_keys_total'))})", "expired"),
        Query(f"60 * sum({rate(redis('evicted_keys_total'))})", "evicted"),
        unit="opm",
        width=8,
    )


def _scripts() -> Panel:
    seconds, calls = (redis(f"commands_{what}total", cmd="evalsha") for what in ("duration_seconds_", ""))
    return graph(
        "Redis: script latency",
        About(
            "The mean time that Redis itself takes for a script. Redis does one thing at a time.",
            "below a tenth of a millisecond for states of some kilobytes.",
            "near a millisecond, large entries or a busy machine hold everybody up: see State size.",
        ),
        Query(share(f"sum({rate(seconds)})", f"sum({rate(calls)})"), "mean"),
        unit="s",
        width=8,
    )
