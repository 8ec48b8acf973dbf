"""What runs full: CPU, the connection pool, PostgreSQL behind it, and its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders.dashboard import CustomVariable
from grafana_foundation_sdk.models.dashboard import VariableOption

from dashboards.boards.colours import BAD, GOOD, NEUTRAL, WARNING
from dashboards.boards.common import board, databases, exporter, text_box
from dashboards.boards.panels import About, Query, figures, graph, states
from dashboards.boards.promql import cpu, metric, or_zero, pool_in_use, postgres, quantile, rate, share
from dashboards.objectives import DISK_GIB

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

__all__ = ["build"]

_TEN_YEARS_DAYS = 3650
_WIDTH = 6

_COMMITS = {
    0: ("durable", GOOD),
    1: ("at risk", BAD),
    2: ("late statements", BAD),
    3: ("at risk, late statements", BAD),
}

_SIZES = f"max by (saver, table) ({metric('storage_bytes')})"
_GROWTH = f"max by (saver, table) (deriv({metric('storage_bytes')}[$growth]))"


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Saturation and storage",
        "What runs full, and when: CPU, the connection pool, PostgreSQL behind it, and its disk.",
        {
            "": [
                *(_utilisation(), _waiting(), _slowest_wait(), _timeouts()),
                *(_postgres_up(), _days_left(), _retention_age()),
            ],
            "Processes": [_cpu(), _serde(), _lost(), _commits()],
            "Connection pool": [_connections(), _wait(), _trouble()],
            "PostgreSQL": [_sessions(), _transactions(), _longest(), _buffers()],
            "Storage": [_tables(), _databases(), _retention()],
        },
        variables=[
            exporter("postgres", "PostgreSQL", "pg_up"),
            databases(),
            text_box(
                "disk",
                "Disk (GiB)",
                str(DISK_GIB),
                "What PostgreSQL may fill: `Days until full` counts on it.",
            ),
            _growth_window(),
        ],
        span="now-3h",
    )


def _growth_window() -> CustomVariable:
    default = "6h"
    made = CustomVariable("growth").label("Growth over").values("1h,6h,1d,7d")
    made.description("How long growth is looked at, before it is drawn on into the future.")
    made.options(
        [VariableOption(selected=each == default, text=each, value=each) for each in ("1h", "6h", "1d", "7d")]
    )
    return made.current(VariableOption(selected=True, text=default, value=default))


def _utilisation() -> Panel:
    return figures(
        "Pool utilisation",
        About(
            "Connections in use, as a share of those allowed, in the process where it is highest.",
            "below 80 %.",
            "see whether statements take long (PostgreSQL, below) or there are just many:"
            " `CHECKPOINT_POOL_MAX_SIZE`, or more processes; all pools together have to fit into"
            " PostgreSQL's max_connections.",
        ),
        Query(f"max({pool_in_use()})", "in use"),
        unit="percentunit",
        width=3,
        decimals=0,
        steps=[(0, GOOD), (0.8, WARNING), (0.95, BAD)],
        no_value="no pool",
    )


def _waiting() -> Panel:
    return figures(
        "Callers waiting",
        About(
            "How many calls wait for a connection at this moment, in all processes.",
            "0, or a handful for a moment.",
            "above 0 all the time: the pool is too small for what is asked of it.",
        ),
        Query(f"sum({metric('pool_requests_waiting')})", "waiting"),
        unit="none",
        width=3,
        decimals=0,
        steps=[(0, GOOD), (5, WARNING), (20, BAD)],
    )


def _slowest_wait() -> Panel:
    return figures(
        "Pool wait (p99)",
        About(
            "99 % of the calls had their connection within this time; those that got none count, too.",
            "a millisecond or less: the connection was there, and only looked at.",
            "tens of milliseconds: calls queue. The trace of a slow turn has a span checkpoint.l2.acquire"
            " then.",
        ),
        Query(quantile(0.99, "pool_wait_seconds"), "p99"),
        unit="s",
        width=3,
        steps=[(0, GOOD), (0.05, WARNING), (1, BAD)],
        no_value="no calls",
    )


def _timeouts() -> Panel:
    return figures(
        "Pool timeouts",
        About(
            "Calls that failed because no connection came free in time; in the time shown.",
            "0.",
            "each was an error for somebody. The pool is exhausted, or PostgreSQL lets nobody in.",
        ),
        Query(or_zero(f"sum(increase({metric('pool_timeouts_total')}[$__range]))"), "timeouts"),
        unit="none",
        width=3,
        decimals=0,
        steps=[(0, GOOD), (0.5, BAD)],
        sparkline=False,
    )


def _postgres_up() -> Panel:
    return figures(
        "PostgreSQL up",
        About(
            "Whether the chosen exporters reach their servers.",
            "up.",
            "start it, or fail over (alert GlasspointPostgresDown).",
            empty="without PostgreSQL's exporter.",
        ),
        Query(f"min({postgres('up')})", "up"),
        unit="none",
        width=4,
        steps=[(0, BAD), (1, GOOD)],
        texts={0: ("down", BAD), 1: ("up", GOOD)},
        no_value="no exporter",
        sparkline=False,
    )


def _days_left() -> Panel:
    free = f"$disk * 1024^3 - sum({_SIZES})"
    # At least a byte a second, so that nothing is divided by zero: that is longer than anybody asks for.
    days = f"clamp_max(clamp_min(({free}) / clamp_min(sum({_GROWTH}), 1) / 86400, 0), {_TEN_YEARS_DAYS})"
    return figures(
        "Days until full",
        About(
            "When the disk is full (its size is at the top of the board), if the tables grow on as they did"
            " in the time chosen there. WAL, other databases and bloat need their room, too.",
            "more than a month.",
            "prune: `CHECKPOINT_RETENTION`, or `glasspoint prune --older-than 30d` (docs/maintenance.md).",
        ),
        Query(days, "days"),
        unit="d",
        width=4,
        decimals=0,
        steps=[(0, BAD), (7, WARNING), (30, GOOD)],
        texts={_TEN_YEARS_DAYS: ("over 10 years", GOOD)},
        no_value="no sizes",
        sparkline=False,
    )


def _retention_age() -> Panel:
    age = f"time() - max({metric('retention_last_success_timestamp_seconds')} > 0)"
    return figures(
        "Retention: last success",
        About(
            "How long ago a run that removes old checkpoints succeeded, in any process.",
            "below an hour, but for the time that a run takes.",
            "runs fail, or no process lives for long enough: see Retention by result, and the log.",
            empty="where CHECKPOINT_RETENTION is not set, or no run has succeeded yet.",
        ),
        Query(age, "age"),
        unit="s",
        width=4,
        decimals=0,
        steps=[(0, GOOD), (7200, WARNING), (28800, BAD)],
        no_value="not set",
        sparkline=False,
    )


def _cpu() -> Panel:
    return graph(
        "CPU by process",
        About(
            "How many cores each process uses, by all that runs in it. In most deployments it is what runs"
            " full first (docs/scaling.md).",
            "below 0.8: a Python process has one event loop, and so one core.",
            "near 1 all latencies rise together: more processes, uvloop, smaller states.",
            empty="where the registry that is scraped has no process collector, and with several workers"
            " behind one port (PROMETHEUS_MULTIPROC_DIR).",
        ),
        Query(cpu(), "{{instance}}"),
        unit="none",
        width=_WIDTH,
        limits=[(0, NEUTRAL), (0.8, WARNING), (1, BAD)],
    )


def _serde() -> Panel:
    return graph(
        "CPU for serialisation",
        About(
            "How many cores go into serialising (write) and deserialising (read) states, in the process where"
            " it is most.",
            "below 0.1.",
            "it grows with the state (Cache-aside › State size): trim messages, keep large things outside.",
        ),
        Query(f"max by (direction) ({rate(metric('serde_duration_seconds', 'sum'))})", "{{direction}}"),
        unit="none",
        width=_WIDTH,
    )


def _lost() -> Panel:
    window = "[$__rate_interval]"
    dropped = f"max by (instance, what) (increase({metric('telemetry_dropped_total')}{window}))"
    failed = f"sum by (task) (increase({metric('background_task_failures_total')}{window}))"
    return graph(
        "Telemetry losses and background errors",
        About(
            "What telemetry itself lost (metrics, spans, events of observers), and errors that nobody foresaw"
            " in background tasks.",
            "nothing.",
            "the log names each kind once: report it. Lost spans mostly mean that the collector does not"
            " answer.",
        ),
        Query(f"sum by (what) ({dropped})", "lost: {{what}}"),
        Query(failed, "failed: {{task}}"),
        unit="none",
        width=_WIDTH,
        bars=True,
        calcs=("max",),
    )


def _commits() -> Panel:
    return states(
        "Durability of commits",
        About(
            "Whether a write that PostgreSQL has acknowledged survives a crash or a failover"
            " (`synchronous_commit` is on or remote_apply), and whether the statement of a killed process"
            " ends in time (`statement_timeout` is at most the write's deadline).",
            "durable throughout.",
            "at risk: set `synchronous_commit` to on, for the role or in the pool that is passed in. Late"
            " statements: set `statement_timeout`, too.",
        ),
        Query(
            f"max by (instance, saver) ({metric('l2_asynchronous_commit')})"
            f" + 2 * max by (instance, saver) ({metric('l2_unbounded_statements')})",
            "{{instance}} {{saver}}",
        ),
        texts=_COMMITS,
        width=_WIDTH,
    )


def _connections() -> Panel:
    return graph(
        "Connections and callers waiting",
        About(
            "Connections of all pools by whether they are in use, how many are allowed, and the callers that"
            " wait.",
            "idle ones left, nobody waiting.",
            "waiting with idle ones left: the wait is for a new connection, and PostgreSQL is slow to let it"
            " in.",
        ),
        Query(f"sum by (state) ({metric('pool_connections')})", "{{state}}", names=("idle", "in_use")),
        Query(f"sum({metric('pool_requests_waiting')})", "waiting"),
        Query(f"sum({metric('pool_max_connections')})", "limit"),
        unit="none",
        width=8,
    )


def _wait() -> Panel:
    percentiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return graph(
        "Connection wait time",
        About(
            "How long calls waited for a connection, in vain, too: 50 %, 95 % and 99 % no longer than this.",
            "a millisecond or less.",
            "it is part of what callers wait (Overview): raise the pool's size before it shows there.",
        ),
        *(Query(quantile(q, "pool_wait_seconds"), name) for name, q in percentiles.items()),
        unit="s",
        width=8,
    )


def _trouble() -> Panel:
    retries = or_zero(f"60 * sum by (reason) ({rate(metric('l2_retries_total'))})", "reason")
    return graph(
        "Timeouts, lost connections, retries",
        About(
            "A minute: calls that got no connection, connections that the pool found broken, and calls to"
            " PostgreSQL that were tried again, by reason.",
            "nothing. Now and then a lost connection: servers and proxies close idle ones.",
            "lost ones without end: something between closes them; docs/reliability.md says what each reason"
            " means. Timeouts are errors for somebody.",
        ),
        Query(f"60 * sum({rate(metric('pool_timeouts_total'))})", "timeouts"),
        Query(f"60 * sum({rate(metric('pool_connections_lost_total'))})", "lost"),
        Query(retries, "retried: {{reason}}"),
        unit="opm",
        width=8,
    )


def _sessions() -> Panel:
    return graph(
        "Sessions by state",
        About(
            "Who is connected to PostgreSQL, by what they do, and how many it lets in.",
            "idle and active; well below the limit.",
            "near the limit nobody else gets in: fewer processes, smaller pools, or PgBouncer. Idle in"
            " transaction: somebody holds locks and does nothing; it is not Glasspoint's way.",
        ),
        Query(f"sum by (state) ({_pg('stat_activity_count')})", "{{state}}"),
        Query(f"sum({postgres('settings_max_connections')})", "limit"),
        unit="none",
        width=_WIDTH,
    )


def _transactions() -> Panel:
    return graph(
        "Transactions",
        About(
            "Transactions that were committed, and that were rolled back, a second; and deadlocks, a minute.",
            "hardly any rolled back, no deadlocks.",
            "rolled back ones in number: errors of somebody's, see the log of PostgreSQL. Deadlocks come from"
            " other work on the same tables, such as migrations.",
        ),
        Query(f"sum({rate(_pg('stat_database_xact_commit'))})", "committed"),
        Query(f"sum({rate(_pg('stat_database_xact_rollback'))})", "rolled_back"),
        Query(f"60 * sum({rate(_pg('stat_database_deadlocks'))})", "deadlocks a minute"),
        unit="none",
        width=_WIDTH,
    )


def _longest() -> Panel:
    return graph(
        "Longest transaction",
        About(
            "How long the oldest transaction has been open.",
            "seconds; a backup or a migration may take longer.",
            "hours: nothing that was deleted since is cleaned up, so tables grow. Find it in"
            " pg_stat_activity.",
        ),
        Query(f"max({_pg('stat_activity_max_tx_duration')})", "longest"),
        unit="s",
        width=_WIDTH,
    )


def _buffers() -> Panel:
    hit, read = (f"sum({rate(_pg(f'stat_database_blks_{what}'))})" for what in ("hit", "read"))
    return graph(
        "Buffer cache hit ratio",
        About(
            "Blocks that PostgreSQL found in its own memory, of all that it needed.",
            "above 99 %.",
            "a fall makes reads slow that Redis does not answer: shared_buffers, or states that grew.",
        ),
        Query(share(hit, f"({hit} + {read})"), "found"),
        unit="percentunit",
        share=True,
        width=_WIDTH,
        calcs=("min", "mean", "lastNotNull"),
    )


def _tables() -> Panel:
    return graph(
        "Table size by table",
        About(
            "Bytes on the disk, with indexes.",
            "slopes that you expect.",
            "checkpoint_blobs: values of channels, mostly messages. checkpoint_writes: pending writes."
            " Pruning shortens all of them; the space goes to new rows first.",
        ),
        Query(_SIZES, "{{saver}} {{table}}"),
        unit="bytes",
        width=8,
        stacked=True,
        calcs=("min", "max", "lastNotNull"),
    )


def _databases() -> Panel:
    return graph(
        "Database size",
        About(
            "The databases of the chosen savers, whoever's tables are in them.",
            "as the sum of the tables.",
            "far more than that: somebody else's tables, or rows that are dead and not yet cleaned up.",
        ),
        Query(f"sum by (datname) ({_pg('database_size_bytes')})", "{{datname}}"),
        unit="bytes",
        width=8,
        calcs=("min", "max", "lastNotNull"),
    )


def _retention() -> Panel:
    return graph(
        "Retention by result",
        About(
            "Rows that the retention has removed, an hour, by table; and runs that did not succeed.",
            "as much as is written, in the long run; no run fails.",
            "runs fail: the log says why.",
        ),
        Query(f"3600 * sum by (table) ({rate(metric('retention_pruned_total'))})", "{{table}}"),
        Query(
            f"3600 * sum by (result) ({rate(metric('retention_runs_total', result='!=succeeded'))})",
            "runs: {{result}}",
        ),
        unit="short",
        width=8,
    )


def _pg(name: str) -> str:
    return postgres(name, datname="=~$database")
