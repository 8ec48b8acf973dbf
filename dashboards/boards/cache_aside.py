"""What the cache does: where reads are served from and why, how writes reach both tiers, and Redis itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.boards.colours import BAD, GOOD, NEUTRAL, WARNING
from dashboards.boards.common import board, exporter
from dashboards.boards.panels import About, Query, figures, graph, heat
from dashboards.boards.promql import hit_ratio, mean, metric, or_zero, quantile, rate, redis, share

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

__all__ = ["build"]

_READ_RESULTS = ("hit", "miss", "absent", "busy", "historical", "bypassed", "incomplete", "unavailable")
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


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Cache-aside",
        "Does the cache earn its keep, and is it true? Where reads are served from, why not from Redis, how"
        " writes reach both tiers, what the audits find, and Redis itself.",
        {
            "": [_hits(), _refusals(), _followed(), _stale(), _breaker(), _memory_used()],
            "Reads": [_served_from(), _why_not(), _latencies(), _warm_ups(), _warm_up_cost()],
            "Writes": [_write_through(), _l1_told(), _l1_follows(), _burst_writes()],
            "Entries": [_sizes(), _serde(), _serde_cost()],
            "Is it true?": [_audits(), _invalidations(), _journal(), _breaker_changes()],
            "Redis itself": [_memory(), _removed(), _keyspace(), _clients(), _scripts(), _keys()],
        },
        variables=[exporter("redis", "Redis", "redis_up")],
    )


def _hits() -> Panel:
    return figures(
        "Reads that Redis answers",
        About(
            "Hits, as a share of the reads that could be hits.",
            "above 80 %, if conversations have more than a few turns.",
            "see below which answers took the hits' place.",
        ),
        Query(hit_ratio(), "hits"),
        unit="percentunit",
        decimals=1,
        steps=[(0, BAD), (0.5, WARNING), (0.8, GOOD)],
        no_value="no reads",
    )


def _refusals() -> Panel:
    return figures(
        "Warm-ups refused",
        About(
            "Misses that were not stored, because a write had begun meanwhile: of all, in the time shown.",
            "a few per cent. A refusal is the cache being careful, and costs one more miss.",
            "above a third, several writers work on one conversation at once: see whether that is meant.",
            empty="as long as nothing was warmed up.",
        ),
        Query(
            share(
                f"sum(increase({metric('l1_warm_ups_total', result='=~overtaken|fenced')}[$__range]))",
                f"sum(increase({metric('l1_warm_ups_total')}[$__range]))",
            ),
            "refused",
        ),
        unit="percentunit",
        decimals=1,
        steps=[(0, GOOD), (0.33, WARNING)],
        sparkline=False,
        no_value="no misses",
    )


def _followed() -> Panel:
    return figures(
        "Bursts that Redis followed",
        About(
            "Bursts of writes after which the entry in Redis holds what PostgreSQL holds, of all.",
            "above 95 %; right after a new epoch fewer.",
            "see Did L1 follow L2: discarded and contested cost a miss, lost mostly means that Redis does not"
            " answer.",
        ),
        Query(
            share(
                f"sum({rate(metric('bursts_total', end='=~applied|kept'))})",
                f"sum({rate(metric('bursts_total'))})",
            ),
            "followed",
        ),
        unit="percentunit",
        decimals=1,
        steps=[(0, BAD), (0.8, WARNING), (0.95, GOOD)],
        no_value="no writes",
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
        unit="none",
        steps=[(0, GOOD), (1, BAD)],
        texts=_BREAKER,
    )


def _memory_used() -> Panel:
    return figures(
        "Memory of Redis",
        About(
            "What Redis holds, all together.",
            "below its limit, which the graph at the bottom shows.",
            "at the limit Redis evicts, and entries go before their time: more memory, or a shorter"
            " `cache_ttl`.",
        ),
        Query(f"sum({redis('memory_used_bytes')})", "used"),
        unit="bytes",
        decimals=1,
        steps=[(0, NEUTRAL)],
        no_value="no exporter",
    )


def _served_from() -> Panel:
    return graph(
        "Where reads are served from",
        About(
            "Reads a second by what Redis answered. Only a hit was served by Redis; all others PostgreSQL"
            " has answered.",
            "mostly green. Purple is time travel, by design; light blue is a read that met a burst.",
            "blue (miss): expired, evicted or flushed. Grey (absent): PostgreSQL has nothing either. Orange"
            " (incomplete): what was there cannot be used. Red (unavailable): Redis did not answer.",
        ),
        Query(f"sum by (result) ({rate(metric('l1_reads_total'))})", "{{result}}", names=_READ_RESULTS),
        unit="ops",
        stacked=True,
    )


def _why_not() -> Panel:
    return graph(
        "Why the others were not hits",
        About(
            "Each answer but hit, as a share of all reads.",
            "misses below a fifth; busy, incomplete and unavailable near nothing.",
            "misses: compare with evicted and expired below. Busy: does somebody read while the graph runs?"
            " Incomplete: forks with `update_state`, or a signing key that not all processes have.",
        ),
        Query(
            f"sum by (result) ({rate(metric('l1_reads_total', result='!=hit'))})"
            f" / on() group_left() (sum({rate(metric('l1_reads_total'))}) > 0)",
            "{{result}}",
            names=_READ_RESULTS[1:],
        ),
        unit="percentunit",
    )


def _latencies() -> Panel:
    name, results = "read_duration_seconds", ("hit", "miss")
    return graph(
        "Read latency, hits and misses",
        About(
            "How long reads take that Redis answers (hit), and that PostgreSQL answers because Redis has"
            " nothing (miss): half and 95 % of them no longer than this.",
            "hits clearly below misses: the distance is what the cache saves.",
            "hits as slow as misses: Redis, or the way to it, is slow, or the states are large.",
            empty="while nothing is read.",
        ),
        *(
            Query(quantile(q, name, result=result), f"{result} {word}", exemplars=word == "p95")
            for result in results
            for word, q in (("p50", 0.5), ("p95", 0.95))
        ),
        unit="s",
        width=24,
    )


def _warm_ups() -> Panel:
    return graph(
        "Warm-ups",
        About(
            "What became of the state that a miss had read: stored; overtaken by a write, or fenced, because"
            " a burst of writes was under way; not the first reader to store it; or failed.",
            "stored.",
            "errors: Redis answered the read and then no longer. Many overtaken: several writers on one"
            " conversation. Many not_first: many readers of one cold conversation at once.",
        ),
        Query(f"sum by (result) ({rate(metric('l1_warm_ups_total'))})", "{{result}}", names=_WARM_UPS),
        unit="ops",
        stacked=True,
    )


def _warm_up_cost() -> Panel:
    name = "l1_warm_up_duration_seconds"
    return graph(
        "What warming up costs",
        About(
            "How long storing an entry after a miss takes. The reader who missed waits for it.",
            "a few milliseconds.",
            "compare with Entry sizes: a megabyte takes its time. Otherwise Redis is slow: see its scripts"
            " below.",
            empty="while nothing is warmed up.",
        ),
        Query(quantile(0.5, name), "p50"),
        Query(quantile(0.95, name), "p95"),
        unit="s",
    )


def _write_through() -> Panel:
    name, tiers = "write_through_duration_seconds", ("l1", "l2")
    return graph(
        "Write-through, tier by tier",
        About(
            "Where a write's time goes: what Redis is told before the caller is answered (green), the"
            " statement in PostgreSQL (blue). Dashed: 95 %, dots: half of them. The points are single writes;"
            " each opens its trace. Green has the first writes of bursts only: the others say nothing to"
            " Redis.",
            "green well below blue: Redis' share is the price of the cache.",
            "blue high: PostgreSQL's disk or locks, see Saturation and storage. Green high: Redis, or the"
            " way to it.",
        ),
        *(
            Query(
                quantile(q, name, ("tier",)),
                f"{{{{tier}}}} {word}",
                names=tuple(f"{tier} {word}" for tier in tiers),
                exemplars=word == "p95",
            )
            for word, q in (("p50", 0.5), ("p95", 0.95))
        ),
        unit="s",
    )


def _l1_told() -> Panel:
    return graph(
        "How L1 was told",
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
        stacked=True,
    )


def _l1_follows() -> Panel:
    return graph(
        "Did L1 follow L2?",
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
        stacked=True,
    )


def _burst_writes() -> Panel:
    return graph(
        "Writes a burst",
        About(
            "How many writes share one announcement, on the mean: the writes of a burst come within 50 ms of"
            " each other.",
            "several, while nodes are fast. Writes that wait for a model are bursts of their own.",
            "near 1 with fast nodes: Redis is not told (see Did L1 follow L2), or `durability` is `exit`,"
            " which writes once a turn.",
            empty="while nothing is written.",
        ),
        Query(
            mean("burst_writes"),
            "writes",
        ),
        unit="none",
    )


def _sizes() -> Panel:
    return heat(
        "Entry sizes",
        About(
            "How large the states are that are read, or written whole: each column a moment, brighter where"
            " more of them are.",
            "level: a conversation's state grows with its messages, and all of it is read at every turn.",
            "rising: trim or summarise messages, or keep large things outside the state. Above a megabyte"
            " Redis and the network begin to feel it.",
        ),
        Query(
            f"sum by (le) ({rate(metric('entry_bytes', 'bucket', operation='=~get_tuple|commit'))})", "{{le}}"
        ),
        unit="bytes",
        width=8,
    )


def _serde() -> Panel:
    return graph(
        "Time for (de)serialising",
        About(
            "The mean time that one state takes, to be written and to be read.",
            "below a millisecond for states of some kilobytes.",
            "it grows with the state: see Entry sizes. It is work of the process itself, in which nothing"
            " else happens.",
        ),
        *(
            Query(mean("serde_duration_seconds", direction=direction), direction)
            for direction in ("read", "write")
        ),
        unit="s",
        width=8,
    )


def _serde_cost() -> Panel:
    return graph(
        "Of a processor, for (de)serialising",
        About(
            "Seconds a second: what share of one processor goes into it, in the process where it is highest.",
            "below a tenth.",
            "near 1 the event loop has no time for anything else: smaller states, or more processes.",
        ),
        Query(f"max by (direction) ({rate(metric('serde_duration_seconds', 'sum'))})", "{{direction}}"),
        unit="percentunit",
        width=8,
    )


def _audits() -> Panel:
    return graph(
        "Audits",
        About(
            "A sample of the hits, compared with PostgreSQL afterwards: audits a minute, by what was found.",
            "consistent; a raced one differed only because a write came between.",
            "a single stale one is worth a call: the log has an ERROR with what differs. At nothing at all,"
            " no hits are sampled: `audit_ratio`.",
        ),
        Query(f"60 * sum by (verdict) ({rate(metric('l1_audits_total'))})", "{{verdict}}", names=_VERDICTS),
        unit="opm",
        width=6,
        stacked=True,
    )


def _invalidations() -> Panel:
    of = or_zero(f"60 * sum by (source) ({rate(metric('l1_invalidations_total'))})", "source")
    return graph(
        "Entries dropped",
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
        width=6,
    )


def _journal() -> Panel:
    return graph(
        "Journal",
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
        width=6,
    )


def _breaker_changes() -> Panel:
    to = ("open", "half_open", "closed")
    return graph(
        "Breaker and epochs",
        About(
            "How often Redis was left alone, probed and asked again; how often it was another process than"
            " before (new epochs); and how often PostgreSQL was not what the cache was filled from (new"
            " identity, by reason).",
            "nothing. After a restart of Redis: one new epoch for each process, closed as often as open, and"
            " a new identity with the reason generation.",
            "open and half_open in turns: the probes do not get through. An epoch without a restart of"
            " yours: somebody else restarts it, or it failed over. A new identity for another reason than"
            " generation: PostgreSQL was set back, replaced or emptied, or it crashed; the log says what"
            " changed.",
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
        width=6,
        bars=True,
        calcs=("max",),
    )


def _memory() -> Panel:
    return graph(
        "Memory",
        About(
            "What Redis holds, what the machine gave it for that, and its limit (0: none).",
            "used below the limit, and the machine's share not much above used.",
            "at the limit Redis evicts: more memory or a shorter `cache_ttl`. The policy should be one of"
            " `allkeys-…` or `volatile-…`: with noeviction writes to Redis fail.",
        ),
        Query(f"sum({redis('memory_used_bytes')})", "used"),
        Query(f"sum({redis('memory_used_rss_bytes')})", "resident"),
        Query(f"sum({redis('memory_max_bytes')})", "limit"),
        unit="bytes",
        width=8,
    )


def _removed() -> Panel:
    return graph(
        "Keys removed by Redis",
        About(
            "Keys a minute that went because they had expired, and because memory was short.",
            "no evictions. Expired ones are conversations that went quiet.",
            "evictions make misses: see Memory. Many expired, and misses with them: a longer `cache_ttl`.",
        ),
        Query(f"60 * sum({rate(redis('expired_keys_total'))})", "expired"),
        Query(f"60 * sum({rate(redis('evicted_keys_total'))})", "evicted"),
        unit="opm",
        width=8,
    )


def _keyspace() -> Panel:
    found, missed = (f"sum({rate(redis(f'keyspace_{what}_total'))})" for what in ("hits", "misses"))
    return graph(
        "Keys found",
        About(
            "Look-ups that found their key, as Redis counts them: each script makes several, and a write"
            " looks before it leaps, so this is not our hit ratio.",
            "level.",
            "a fall together with our hit ratio: keys are gone (flushed, evicted, expired). Without it:"
            " somebody else uses this Redis.",
        ),
        Query(share(found, f"({found} + {missed})"), "found"),
        unit="percentunit",
        share=True,
        width=8,
    )


def _clients() -> Panel:
    return graph(
        "Clients of Redis",
        About(
            "Connections to Redis, as it counts them, and ours by whether they are in use.",
            "level: connections are kept.",
            "rising without end: somebody does not close theirs. Ours in use all the time: Redis is slow, or"
            " far away.",
        ),
        Query(f"sum({redis('connected_clients')})", "connected"),
        Query(f"sum({redis('blocked_clients')})", "blocked"),
        Query(f"sum by (state) ({metric('redis_pool_connections')})", "ours, {{state}}"),
        unit="none",
        width=8,
    )


def _scripts() -> Panel:
    seconds, calls = (redis(f"commands_{what}total", cmd="evalsha") for what in ("duration_seconds_", ""))
    return graph(
        "Time of a script, in Redis",
        About(
            "The mean time that Redis itself takes for one of our scripts. Redis does one thing at a time.",
            "below a tenth of a millisecond for states of some kilobytes.",
            "near a millisecond, large entries or a busy machine hold everybody up: see Entry sizes.",
        ),
        Query(share(f"sum({rate(seconds)})", f"sum({rate(calls)})"), "mean"),
        unit="s",
        width=8,
    )


def _keys() -> Panel:
    return graph(
        "Keys",
        About(
            "How many keys Redis holds: one for each conversation that is cached, and those of others.",
            "as many as there are conversations within `cache_ttl`.",
            "a fall to nothing: flushed, or restarted. Its entries come back one by one as they are read.",
        ),
        Query(f"sum({redis('db_keys')})", "keys"),
        Query(f"sum({redis('db_keys_expiring')})", "with an end"),
        unit="none",
        width=8,
    )
