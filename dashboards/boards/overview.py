"""Is it well? The board to open first; what it shows in red leads to the one that says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.boards.colours import BAD, GOOD, NEUTRAL, WARNING
from dashboards.boards.common import board, drill_down
from dashboards.boards.panels import About, Query, figures, graph, states, versions
from dashboards.boards.promql import burn_rate, hit_ratio, metric, or_zero, pool_in_use, quantile, rate, share
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
_FORKS = ("shadows", "shadowed", "older_than_parent", "none")
_CALLS = "operation_duration_seconds"
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

_TO_CACHE = (drill_down("Cache-aside"),)
_TO_SATURATION = (drill_down("Saturation and storage"),)


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Overview",
        "Is it well? Tier, hit ratio, latencies, errors, error budgets, and what changed.",
        {
            "": [
                *(_tier(), _hit_ratio(), _slowest_reads(), _slowest_writes(), _errors(), _processes()),
                *(_burning(), _states_read(), _pool(), _stale(), _journal()),
            ],
            "How long callers wait": [_reads(), _writes()],
            "What they ask for, and what goes wrong": [
                *(_calls(), _failures(), _budgets(), _last_success(), _dropped())
            ],
            "What changed": [
                *(
                    _changes(),
                    _tiers(),
                    _undrained(),
                    _forks(),
                    _retention(),
                    _retention_rows(),
                    _hit_ratio_over_time(),
                    _runs_here(),
                )
            ],
        },
    )


def _last_success() -> Panel:
    name = "last_success_timestamp_seconds"
    return graph(
        "Time since the last success",
        About(
            "How long ago a read and a write of a checkpoint have last succeeded, in any process.",
            "seconds under traffic; it grows while nobody calls.",
            "it grows and calls fail: nothing gets through. See Saturation and storage.",
        ),
        *(
            Query(f"time() - (max({metric(name, operation=operation)}) > 0)", word)
            for operation, word in (("get_tuple", "reads"), ("put", "writes"))
        ),
        unit="s",
    )


def _dropped() -> Panel:
    name = "telemetry_dropped_total"
    return graph(
        "What telemetry has lost",
        About(
            "A minute: metrics and spans that are missing because telemetry itself failed, or because the"
            " collector took no spans.",
            "nothing.",
            "spans: is the collector up? The log says what failed.",
        ),
        Query(f"60 * sum by (what) (max by (instance, what) ({rate(metric(name))}))", "{{what}}"),
        unit="opm",
    )


def _active_tier() -> str:
    tiers = (f"{number} * {metric('active_tier', tier=TIERS[number][0])}" for number in (1, 2, 3))
    return " or ".join(tiers)


def _tier() -> Panel:
    return figures(
        "Tier",
        About(
            "The lowest tier in which one of the chosen savers works: cached is PostgreSQL with Redis before"
            " it; redis is Redis alone; memory is the process alone.",
            "cached. In redis a checkpoint is as durable as that Redis, in memory it is gone with the"
            " process.",
            "find out below when it fell and why, and see whether PostgreSQL answers (Saturation and"
            " storage). It comes back by itself, and what was written meanwhile is drained into PostgreSQL.",
        ),
        Query(f"max({_active_tier()})", "tier"),
        unit="none",
        steps=[(0, NEUTRAL)],
        texts=TIERS,
        sparkline=False,
        links=_TO_SATURATION,
    )


def _hit_ratio() -> Panel:
    return figures(
        "Reads that Redis answers",
        About(
            "Hits, as a share of the reads that could be hits: not of new conversations, older checkpoints or"
            " scopes that are not cached.",
            "above 80 %, if conversations have more than a few turns: only the first read of each must miss.",
            "Cache-aside says what the other reads met: a miss (expired, evicted, flushed), a write under"
            " way, or no Redis at all.",
        ),
        Query(hit_ratio(), "hits"),
        unit="percentunit",
        decimals=1,
        steps=[(0, BAD), (0.5, WARNING), (0.8, GOOD)],
        no_value="no reads",
        links=_TO_CACHE,
    )


def _slowest_reads() -> Panel:
    return _slowest("Reads, 99 % within", READ_LATENCY, _READ, "a hit takes a millisecond or two")


def _slowest_writes() -> Panel:
    return _slowest("Writes, 99 % within", WRITE_LATENCY, _WRITE, "a write waits for PostgreSQL's disk")


def _slowest(title: str, objective: Objective, calls: dict[str, str], usual: str) -> Panel:
    bound = objective.within_seconds or 0.0
    return figures(
        title,
        About(
            f"The 99th percentile of what callers waited, failed calls included; {usual}.",
            f"below {bound:g} s: the objective is {objective.target:.0%} within it.",
            "open a slow point of the graph below: the trace behind it says where the time went. Waiting for"
            " a connection is on Saturation and storage.",
        ),
        Query(quantile(0.99, _CALLS, **calls), "p99"),
        unit="s",
        steps=[(0, GOOD), (bound / 2, WARNING), (bound, BAD)],
        no_value="no calls",
        links=_TO_SATURATION,
    )


def _errors() -> Panel:
    failed = or_zero(f"sum({rate(metric(_CALLS, 'count', outcome='error'))})")
    return figures(
        "Calls that fail",
        About(
            "Errors, as a share of all calls that were not cancelled by the caller.",
            f"0. The objective for reads and writes is {READ_AVAILABILITY.target:.1%} without error.",
            "see below which operation fails; the log has a WARNING with the reason, the traces have status"
            " = error.",
        ),
        Query(
            share(f"({failed})", f"sum({rate(metric(_CALLS, 'count', outcome='=~ok|error'))})"),
            "failed calls",
        ),
        unit="percentunit",
        decimals=2,
        steps=[(0, GOOD), (0.0001, WARNING), (1 - READ_AVAILABILITY.target, BAD)],
        no_value="no calls",
    )


def _processes() -> Panel:
    up = 'up{job=~"$job",instance=~"$instance"}'
    return figures(
        "Processes scraped",
        About(
            "How many of the chosen processes answer Prometheus, and how many do not.",
            "none down.",
            "see whether the process runs, and whether Prometheus reaches its port: its page of targets has"
            " the error.",
        ),
        Query(f"sum({up})", "up"),
        Query(f"count({up}) - sum({up})", "down"),
        unit="none",
        steps=[(0, GOOD), (1, BAD)],
        sparkline=False,
        plain=["up"],
    )


def _burning() -> Panel:
    return figures(
        "Error budgets, burned in the last hour",
        About(
            "How many times faster than planned each objective's allowance was used up in the last hour: at"
            " 1 it lasts 30 days, at 14.4 two days.",
            "below 1.",
            "above 14.4 somebody should be called; above 6 it is for today. The graph below shows since"
            " when.",
        ),
        *(Query(burn_rate(each, "1h"), each.name) for each in OBJECTIVES),
        unit="none",
        decimals=1,
        width=8,
        steps=_burn_steps(),
        no_value="no calls",
    )


def _burn_steps() -> list[tuple[float, str]]:
    slow, fast, _ = BURN_RATES
    return [(0, GOOD), (slow, WARNING), (fast, BAD)]


def _states_read() -> Panel:
    return figures(
        "States read a minute",
        About(
            "How often a conversation's state is asked for. LangGraph does so once a turn, and once for each"
            " subgraph with a memory of its own; `get_state` does so, too. So it is about the turns, and"
            " never fewer; there is no metric of turns (the traces have them: Conversation).",
            "what your traffic is.",
            "a fall without a reason means that nobody gets through to the agents.",
        ),
        Query(f"60 * sum({rate(metric(_CALLS, 'count', **_READ))})", "reads a minute"),
        unit="none",
        decimals=0,
        steps=[(0, NEUTRAL)],
        links=(drill_down("Conversation"),),
    )


def _pool() -> Panel:
    return figures(
        "Busiest pool",
        About(
            "Connections to PostgreSQL that are in use, as a share of those allowed, in the process where it"
            " is highest.",
            "below 80 %.",
            "Saturation and storage says who waits, for how long, and what PostgreSQL does.",
        ),
        Query(f"max({pool_in_use()})", "in use"),
        unit="percentunit",
        decimals=0,
        steps=[(0, GOOD), (0.8, WARNING), (0.95, BAD)],
        no_value="no pool",
        links=_TO_SATURATION,
    )


def _stale() -> Panel:
    return figures(
        "Stale audits",
        About(
            "Hits that were compared with PostgreSQL afterwards and were not what stands there, in the time"
            " shown.",
            "0, always: it would mean that a conversation was answered from an older state.",
            "the log has an ERROR with thread, checkpoint and what differs; report it. The entry was dropped"
            " already.",
        ),
        Query(f"sum(increase({metric('l1_audits_total', verdict='stale')}[$__range]))", "stale"),
        unit="none",
        decimals=0,
        steps=[(0, GOOD), (0.5, BAD)],
        sparkline=False,
        links=_TO_CACHE,
    )


def _journal() -> Panel:
    return figures(
        "Journal",
        About(
            "Entries that Redis is yet to be told to drop: writes that it could not be told of when they"
            " were made.",
            "0, or more only while Redis is away.",
            "more than 0 for minutes: no process reaches both servers. See Cache-aside.",
        ),
        Query(f"max({metric('l1_journal_pending')})", "pending"),
        unit="none",
        decimals=0,
        steps=[(0, GOOD), (1, WARNING)],
        links=_TO_CACHE,
    )


def _runs_here() -> Panel:
    columns = {
        "instance": "Process",
        "saver": "Saver",
        "version": "Glasspoint",
        "langgraph": "LangGraph",
        "postgres": "PostgreSQL",
        "redis": "Redis",
    }
    return versions(
        "What runs here",
        About(
            "The versions that work together in each process.",
            "the same everywhere, but while you deploy.",
            "when something changed and nothing else did: it was one of these.",
        ),
        Query(f"max by ({', '.join(columns)}) ({metric('info')})", "{{instance}}"),
        columns=columns,
        width=24,
        height=6,
    )


def _reads() -> Panel:
    return _waits("Reads", "aget_tuple", READ_LATENCY, _READ)


def _writes() -> Panel:
    return _waits("Writes", "aput and aput_writes", WRITE_LATENCY, _WRITE)


def _waits(title: str, calls: str, objective: Objective, of: dict[str, str]) -> Panel:
    bound = objective.within_seconds or 0.0
    return graph(
        title,
        About(
            f"How long callers of {calls} waited: half, 95 % and 99 % of them no longer than this. The"
            " points are single calls; each opens its trace.",
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


def _calls() -> Panel:
    return graph(
        "Calls a second",
        About(
            "What callers ask for, by operation.",
            "a turn of a small graph is one read and a handful of writes.",
            "many `list` calls mean that somebody pages through histories, which Redis cannot answer.",
        ),
        Query(f"sum by (operation) ({rate(metric(_CALLS, 'count'))})", "{{operation}}"),
        unit="ops",
        width=8,
        stacked=True,
    )


def _failures() -> Panel:
    return graph(
        "Errors a second",
        About(
            "Calls that raised, by operation.",
            "none.",
            "the log says what failed, to which server; the Conversation board has the traces of it.",
        ),
        Query(
            or_zero(f"sum by (operation) ({rate(metric(_CALLS, 'count', outcome='error'))})", "operation"),
            "{{operation}}",
            names=("none",),
        ),
        unit="ops",
        width=8,
        stacked=True,
    )


def _budgets() -> Panel:
    _, fast, page = BURN_RATES
    return graph(
        "How fast the error budgets burn",
        About(
            "The burn rate of each objective, over the hour before.",
            "below 1; the dashed lines are 1, 6 and 14.4.",
            f"above {page:g} the month's allowance is gone in two days; above {fast:g}, in five.",
        ),
        *(Query(burn_rate(each, "1h"), each.name) for each in OBJECTIVES),
        unit="none",
        width=8,
        limits=[(0, NEUTRAL), *zip(BURN_RATES, (NEUTRAL, WARNING, BAD), strict=True)],
    )


def _changes() -> Panel:
    def happened(selector: str, name: str) -> Query:
        return Query(or_zero(f"sum(increase({selector}[$__range]))"), name)

    return figures(
        "Events in the time shown",
        About(
            "How often each of these happened. They also stand as marks on the graphs: tier, breaker, epoch,"
            " identity.",
            "all 0. A new epoch is Redis restarted or failed over, a new identity PostgreSQL set back,"
            " replaced or crashed: the cache begins anew, and nothing else.",
            "look at what the graphs did at the marks. Retries were ridden out; timeouts were errors for"
            " somebody; an error in the background is a bug, which the log names.",
        ),
        happened(metric("fallback_events_total", reason="!=recovered"), "falls to a lower tier"),
        happened(metric("fallback_events_total", reason="recovered"), "recoveries"),
        happened(metric("drained_checkpoints_total"), "checkpoints drained"),
        happened(metric("drained_threads_total", result="=~set_aside|refused"), "threads aside or refused"),
        happened(metric("l1_breaker_transitions_total", to="open"), "Redis left alone"),
        happened(metric("l1_epoch_changes_total"), "new epochs"),
        happened(metric("l1_identity_changes_total", reason="!=generation"), "new identities"),
        happened(metric("write_through_total", l1="journalled"), "writes in the journal"),
        happened(metric("l2_retries_total"), "retries on PostgreSQL"),
        happened(metric("pool_timeouts_total"), "no connection in time"),
        happened(metric("pool_connections_lost_total"), "connections broken"),
        happened(metric("background_task_failures_total"), "errors in the background"),
        unit="none",
        decimals=0,
        width=24,
        steps=[(0, GOOD), (0.5, WARNING)],
        sparkline=False,
    )


def _tiers() -> Panel:
    return states(
        "Tier of each process",
        About(
            "In which tier each saver worked, and since when.",
            "cached throughout.",
            "all at once: the server is the cause. One alone: its own network or settings.",
        ),
        Query(f"max by (instance, saver) ({_active_tier()})", "{{instance}} {{saver}}"),
        texts=TIERS,
    )


def _undrained() -> Panel:
    return graph(
        "Conversations that are not in PostgreSQL yet",
        About(
            "Threads that were found in a lower tier, of all processes.",
            "0, and back to 0 within a minute after an outage.",
            "it stays: PostgreSQL refuses them. The log names each and says why; `glasspoint check` names"
            " those in Redis.",
        ),
        Query(f"max by (saver, tier) ({metric('undrained_threads')})", "{{saver}} {{tier}}"),
        unit="short",
    )


def _forks() -> Panel:
    return graph(
        "Answers that are not seen any more",
        About(
            "Runs that wrote to a thread that another run had written to meanwhile, an hour, by whose"
            " answer is lost.",
            "none.",
            "the log names thread and checkpoints. Let one run of a thread begin after the other has ended;"
            " set the clock of a machine that is behind.",
        ),
        Query(
            or_zero(f"3600 * sum by (kind) ({rate(metric('forks_total', outcome='stored'))})", "kind"),
            "{{kind}}",
            names=_FORKS,
        ),
        Query(or_zero(f"3600 * sum({rate(metric('forks_total', outcome='refused'))})"), "refused"),
        unit="short",
        stacked=True,
    )


def _retention() -> Panel:
    return graph(
        "Since the retention last succeeded",
        About(
            "How long ago a run that removes old checkpoints succeeded, in any process.",
            "below an hour, but for the time that a run takes.",
            "it grows: runs fail, or no process lives for long enough. The log says why a run failed.",
            empty="where CHECKPOINT_RETENTION is not set, or no run has succeeded yet.",
        ),
        Query(
            f"time() - max by (saver) ({metric('retention_last_success_timestamp_seconds')} > 0)", "{{saver}}"
        ),
        unit="s",
    )


def _retention_rows() -> Panel:
    return graph(
        "What the retention removes, an hour",
        About(
            "Rows that runs of the retention have removed, by table, and runs that did not succeed.",
            "as much as is written, in the long run; no run fails.",
            "runs fail: the log says why. Nothing is removed, and nothing fails: see how long ago a run"
            " succeeded.",
        ),
        Query(f"3600 * sum by (table) ({rate(metric('retention_pruned_total'))})", "{{table}}"),
        Query(
            f"3600 * sum by (result) ({rate(metric('retention_runs_total', result='!=succeeded'))})",
            "runs that {{result}}",
        ),
        unit="short",
        width=24,
    )


def _hit_ratio_over_time() -> Panel:
    return graph(
        "Reads that Redis answers, over time",
        About(
            "Hits, as a share of the reads that could be hits, of each saver and of all together.",
            "level, and back within minutes after a mark.",
            "a step down after a new epoch or an eviction heals by itself; a slow fall means entries expire"
            " or are evicted before the next turn: see Redis itself on Cache-aside.",
        ),
        Query(hit_ratio(), "hits, all savers"),
        Query(hit_ratio(" by (saver)"), "{{saver}}"),
        unit="percentunit",
        width=24,
        share=True,
        calcs=("min", "mean", "lastNotNull"),
        links=_TO_CACHE,
    )
