"""Is it well? The board to open first: rate, errors, duration; utilisation, saturation; what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.boards.colours import BAD, GOOD, NEUTRAL, WARNING
from dashboards.boards.common import board, drill_down
from dashboards.boards.panels import About, Query, figures, graph, states
from dashboards.boards.promql import (
    burn_rate,
    cpu,
    hit_ratio,
    metric,
    or_zero,
    pool_in_use,
    quantile,
    rate,
    share,
)
from dashboards.objectives import BURN_RATES, OBJECTIVES, READ_AVAILABILITY, READ_LATENCY, WRITE_LATENCY

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

    from dashboards.objectives import Objective

__all__ = ["TIERS", "build"]

TIERS = {
    0: ("none", NEUTRAL),
    1: ("cached", GOOD),
    2: ("redis", WARNING),
    3: ("memory", BAD),
}
"""How a tier stands in a query's answer -> what it is called."""

_READ = {"operation": "get_tuple"}
_WRITE = {"operation": "=~put|put_writes"}
_CALLS = "operation_duration_seconds"
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_TO_CACHE = (drill_down("Cache-aside"),)
_TO_SATURATION = (drill_down("Saturation and storage"),)


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Overview",
        "Is it well? Rate, errors and duration of the checkpointer's calls; hit ratio, CPU and connections;"
        " and what changed.",
        {
            "": [
                *(_tier(), _ratio_of_hits(), _slowest_reads(), _slowest_writes(), _errors()),
                *(_last_success(), _instances()),
            ],
            "Rate and errors": [_requests(), _failures(), _budgets()],
            "Duration": [_hits_and_misses(), _reads(), _writes()],
            "Utilisation and saturation": [_cpu(), _pool()],
            "Tiers and events": [_tiers(), _undrained(), _events()],
        },
    )


def _active_tier() -> str:
    tiers = (f"{number} * {metric('active_tier', tier=TIERS[number][0])}" for number in (1, 2, 3))
    return " or ".join(tiers)


def _tier() -> Panel:
    return figures(
        "Tier",
        About(
            "The lowest tier in which one of the chosen savers works. cached: PostgreSQL with Redis in front"
            " of it. redis: Redis alone. memory: the process alone.",
            "cached.",
            "see below when it fell, and whether PostgreSQL answers (Saturation and storage). In redis a"
            " checkpoint is as durable as that Redis; in memory it is gone with the process.",
        ),
        Query(f"max({_active_tier()})", "tier"),
        unit="none",
        width=3,
        steps=[(0, NEUTRAL)],
        texts=TIERS,
        sparkline=False,
        links=_TO_SATURATION,
    )


def _ratio_of_hits() -> Panel:
    return figures(
        "Hit ratio",
        About(
            "Hits, as a share of the reads that Redis could have answered: not those for a given checkpoint"
            " (historical), of a scope that is not cached (bypassed), or of a new thread (absent).",
            "above 80 %.",
            "Cache-aside › Reads by result says what the other reads met.",
        ),
        Query(hit_ratio(), "hits"),
        unit="percentunit",
        width=3,
        decimals=1,
        steps=[(0, BAD), (0.5, WARNING), (0.8, GOOD)],
        no_value="no reads",
        links=_TO_CACHE,
    )


def _slowest_reads() -> Panel:
    return _slowest("Read latency (p99)", READ_LATENCY, _READ, "a hit takes a millisecond or two")


def _slowest_writes() -> Panel:
    return _slowest("Write latency (p99)", WRITE_LATENCY, _WRITE, "a write waits for PostgreSQL's disk")


def _slowest(title: str, objective: Objective, calls: dict[str, str], usual: str) -> Panel:
    bound = objective.within_seconds or 0.0
    return figures(
        title,
        About(
            f"99 % of the calls took no longer, failed ones included; {usual}.",
            f"below {bound:g} s: the objective is {objective.target:.0%} within it.",
            "open a slow point of the graph below: its trace says where the time went.",
        ),
        Query(quantile(0.99, _CALLS, **calls), "p99"),
        unit="s",
        width=3,
        steps=[(0, GOOD), (bound / 2, WARNING), (bound, BAD)],
        no_value="no calls",
        links=_TO_SATURATION,
    )


def _errors() -> Panel:
    failed = or_zero(f"sum({rate(metric(_CALLS, 'count', outcome='error'))})")
    return figures(
        "Error ratio",
        About(
            "Errors, as a share of all calls that were not cancelled by the caller.",
            f"0. The objective for reads and writes is {READ_AVAILABILITY.target:.1%} without error.",
            "see below which operation fails; the log has a WARNING with the reason.",
        ),
        Query(
            share(f"({failed})", f"sum({rate(metric(_CALLS, 'count', outcome='=~ok|error'))})"),
            "failed calls",
        ),
        unit="percentunit",
        width=3,
        decimals=2,
        steps=[(0, GOOD), (0.0001, WARNING), (1 - READ_AVAILABILITY.target, BAD)],
        no_value="no calls",
    )


def _last_success() -> Panel:
    age = f"time() - max by (operation) ({metric('last_success_timestamp_seconds')} > 0)"
    failed = (
        f"sum by (operation) (increase({metric(_CALLS, 'count', outcome='error')}[$__rate_interval])) > 0"
    )
    return figures(
        "Since the last success",
        About(
            "How long ago a read and a put succeeded last, in any of the chosen processes.",
            "seconds, as long as somebody talks. Grey: nobody talks, and nothing fails.",
            "above a minute while calls fail: an outage (alerts GlasspointReadsFail, GlasspointWritesFail).",
        ),
        Query(
            f'label_replace(({age}) and on (operation) ({failed}), "fails", " fails", "", "")'
            f" or ({age}) unless on (operation) ({failed})",
            "{{operation}}{{fails}}",
        ),
        unit="s",
        width=5,
        decimals=0,
        steps=[(0, GOOD), (60, NEUTRAL)],
        others={f"{name} fails": [(0, WARNING), (60, BAD)] for name in ("get_tuple", "put")},
        sparkline=False,
        no_value="none yet",
    )


def _instances() -> Panel:
    up = 'up{job=~"$job",instance=~"$instance"}'
    return figures(
        "Instances up and down",
        About(
            "How many of the chosen processes answer Prometheus, and how many do not.",
            "none down.",
            "see whether the process runs, and whether Prometheus reaches its port: its page Targets has the"
            " error.",
        ),
        Query(f"sum({up})", "up"),
        Query(f"count({up}) - sum({up})", "down"),
        unit="none",
        width=4,
        steps=[(0, GOOD), (1, BAD)],
        others={"up": [(0, BAD), (1, GOOD)]},
        sparkline=False,
    )


def _requests() -> Panel:
    return graph(
        "Requests by operation",
        About(
            "Calls of the checkpointer a second, by operation.",
            "what your traffic is: a turn of a small graph is one get_tuple and a handful of writes.",
            "a fall without a reason: nobody gets through to the agents. Many `list`: somebody pages through"
            " histories, which Redis cannot answer.",
        ),
        Query(f"sum by (operation) ({rate(metric(_CALLS, 'count'))})", "{{operation}}"),
        unit="reqps",
        stacked=True,
    )


def _failures() -> Panel:
    return graph(
        "Errors by operation",
        About(
            "Calls that raised, a second, by operation.",
            "none.",
            "the log says what failed, at which server; Conversation has the traces.",
        ),
        Query(
            or_zero(f"sum by (operation) ({rate(metric(_CALLS, 'count', outcome='error'))})", "operation"),
            "{{operation}}",
            names=("none",),
        ),
        unit="reqps",
        stacked=True,
    )


def _budgets() -> Panel:
    _, fast, page = BURN_RATES
    return graph(
        "Error budget burn rate (1 h)",
        About(
            "How many times faster than planned each objective's budget was used up in the hour before. At 1"
            " it lasts 30 days.",
            "below 1; the dashed lines are 1, 6 and 14.4.",
            f"above {page:g} the month's budget is gone in two days; above {fast:g}, in five.",
        ),
        *(Query(burn_rate(each, "1h"), each.name) for each in OBJECTIVES),
        unit="none",
        limits=[(0, NEUTRAL), *zip(BURN_RATES, (NEUTRAL, WARNING, BAD), strict=True)],
    )


def _hits_and_misses() -> Panel:
    name, results = "read_duration_seconds", ("hit", "miss")
    return graph(
        "Read latency: hit and miss",
        About(
            "How long reads took that Redis answered (hit), and those that PostgreSQL answered because Redis"
            " had nothing (miss). The points are single reads; each opens its trace.",
            "hits well below misses: that is what the cache is for.",
            "both slow: the process has no CPU left, or states are large (Cache-aside › State size). Hits"
            " slow: Redis, or the way to it. Misses slow: PostgreSQL, or the wait for a connection.",
        ),
        *(
            Query(
                quantile(q, name, ("result",), result="=~hit|miss"),
                f"{{{{result}}}} {word}",
                names=tuple(f"{result} {word}" for result in results),
                exemplars=word == "p99",
            )
            for word, q in (("p50", 0.5), ("p99", 0.99))
        ),
        unit="s",
        links=_TO_CACHE,
    )


def _reads() -> Panel:
    return _waits("Read latency", "get_tuple", READ_LATENCY, _READ)


def _writes() -> Panel:
    return _waits("Write latency", "put and put_writes", WRITE_LATENCY, _WRITE)


def _waits(title: str, calls: str, objective: Objective, of: dict[str, str]) -> Panel:
    bound = objective.within_seconds or 0.0
    return graph(
        title,
        About(
            f"How long callers of {calls} waited: 50 %, 95 % and 99 % of them no longer than this. The points"
            " are single calls; each opens its trace.",
            f"the solid line below the dashed one: {objective.target:.0%} within {bound:g} s is the"
            " objective.",
            "open a point above the rest: its trace says whether Redis, PostgreSQL or the wait for a"
            " connection took the time.",
        ),
        *(
            Query(quantile(q, _CALLS, **of), name, exemplars=name == "p99")
            for name, q in _PERCENTILES.items()
        ),
        unit="s",
        limits=[(0, NEUTRAL), (bound, BAD)],
    )


def _cpu() -> Panel:
    return graph(
        "CPU by process",
        About(
            "How many cores each process uses, by all that runs in it: the application's code, too.",
            "below 0.8. A Python process has one event loop, and so one core.",
            "near 1 all latencies rise together, while Redis and PostgreSQL stay fast: more processes,"
            " uvloop, smaller states (docs/scaling.md).",
            empty="where the registry that is scraped has no process collector, and with several workers"
            " behind one port (PROMETHEUS_MULTIPROC_DIR).",
        ),
        Query(cpu(), "{{instance}}"),
        width=12,
        unit="none",
        limits=[(0, NEUTRAL), (0.8, WARNING), (1, BAD)],
        links=_TO_SATURATION,
    )


def _pool() -> Panel:
    return graph(
        "Connection pool utilisation",
        About(
            "Connections to PostgreSQL that are in use, as a share of those allowed, in each process.",
            "below the dashed lines, 80 % and 95 %.",
            "Saturation and storage says who waits, for how long, and what PostgreSQL does.",
        ),
        Query(pool_in_use(), "{{instance}} {{saver}}"),
        width=12,
        unit="percentunit",
        share=True,
        limits=[(0, NEUTRAL), (0.8, WARNING), (0.95, BAD)],
        links=_TO_SATURATION,
    )


def _tiers() -> Panel:
    return states(
        "Tier by process",
        About(
            "In which tier each saver worked, and since when.",
            "cached throughout.",
            "all at once: the server is the cause. One alone: its own network or settings.",
        ),
        Query(f"max by (instance, saver) ({_active_tier()})", "{{instance}} {{saver}}"),
        texts=TIERS,
        width=6,
    )


def _undrained() -> Panel:
    return graph(
        "Undrained threads and checkpoints",
        About(
            "Threads that were found in a lower tier, and their checkpoints, of all processes: what is at"
            " risk now.",
            "0, and back to 0 within a minute after an outage.",
            "it stays: PostgreSQL refuses them. The log names each and says why; `glasspoint check` names"
            " those in Redis.",
        ),
        Query(f"max by (saver, tier) ({metric('undrained_threads')})", "{{saver}} {{tier}}: threads"),
        Query(f"max by (saver, tier) ({metric('undrained_checkpoints')})", "{{saver}} {{tier}}: checkpoints"),
        unit="short",
        width=6,
    )


def _events() -> Panel:
    def happened(selector: str, name: str) -> Query:
        return Query(or_zero(f"sum(increase({selector}[$__range]))"), name)

    return figures(
        "Events in the time shown",
        About(
            "How often each of these happened. Changes of tier, breaker, epoch and identity also stand as"
            " marks on the graphs.",
            "all 0. Recoveries, and the checkpoints drained by them, end an outage.",
            "each has its alert: docs/runbooks.md says what to do. Retries were ridden out; timeouts were"
            " errors for somebody.",
        ),
        happened(metric("fallback_events_total", reason="!=recovered"), "fallbacks"),
        happened(metric("fallback_events_total", reason="recovered"), "recoveries"),
        happened(metric("drained_checkpoints_total"), "checkpoints drained"),
        happened(
            metric("drained_threads_total", result="=~set_aside|refused|lost"),
            "threads aside, refused or lost",
        ),
        happened(metric("forks_total", outcome="stored"), "forks"),
        happened(metric("l1_breaker_transitions_total", to="open"), "breaker opened"),
        happened(metric("l1_epoch_changes_total"), "Redis epochs"),
        happened(metric("l1_identity_changes_total", reason="!=generation"), "PostgreSQL identities"),
        happened(metric("l1_audits_total", verdict="stale"), "stale audits"),
        happened(metric("l2_retries_total"), "retries"),
        happened(metric("pool_timeouts_total"), "pool timeouts"),
        happened(metric("background_task_failures_total"), "background errors"),
        unit="none",
        decimals=0,
        width=12,
        height=7,
        steps=[(0, GOOD), (0.5, WARNING)],
        others={name: [(0, NEUTRAL)] for name in ("recoveries", "checkpoints drained")},
        sparkline=False,
    )
