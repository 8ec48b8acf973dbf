"""What runs full: the pool, PostgreSQL behind it, and its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders.dashboard import CustomVariable
from grafana_foundation_sdk.models.dashboard import VariableOption

from dashboards.boards.colours import BAD, GOOD, NEUTRAL, WARNING
from dashboards.boards.common import board, databases, exporter, text_box
from dashboards.boards.panels import About, Query, figures, graph, states
from dashboards.boards.promql import metric, or_zero, pool_in_use, postgres, quantile, rate, share
from dashboards.objectives import DISK_GIB

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

__all__ = ["build"]

_TEN_YEARS_DAYS = 3650

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
        "What runs full, and when: the pool of connections, PostgreSQL behind it, and its disk.",
        {
            "": [_busiest(), _waiting(), _slowest_wait(), _timeouts(), _days_left(), _size()],
            "The pool": [_in_use(), _queue(), _wait(), _trouble()],
            "PostgreSQL itself": [
                _sessions(),
                _transactions(),
                _longest(),
                _rows_changed(),
                _buffers(),
                _spilled(),
                _commits(),
            ],
            "Storage": [_tables(), _growth(), _rows(), _databases()],
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


def _busiest() -> Panel:
    return figures(
        "Busiest pool",
        About(
            "Connections in use, as a share of those allowed, in the process where it is highest.",
            "below 80 %.",
            "see whether statements take long (PostgreSQL itself) or there are just many:"
            " `CHECKPOINT_POOL_MAX_SIZE`, or more processes; all pools together have to fit into"
            " PostgreSQL's max_connections.",
        ),
        Query(f"max({pool_in_use()})", "in use"),
        unit="percentunit",
        decimals=0,
        steps=[(0, GOOD), (0.8, WARNING), (0.95, BAD)],
        no_value="no pool",
    )


def _waiting() -> Panel:
    return figures(
        "Callers that wait",
        About(
            "How many calls wait for a connection at this moment, in all processes.",
            "0, or a handful for a moment.",
            "above 0 all the time: the pool is too small for what is asked of it. See Busiest pool.",
        ),
        Query(f"sum({metric('pool_requests_waiting')})", "waiting"),
        unit="none",
        decimals=0,
        steps=[(0, GOOD), (1, WARNING), (20, BAD)],
    )


def _slowest_wait() -> Panel:
    return figures(
        "Waits, 99 % within",
        About(
            "The 99th percentile of the time until a call had its connection.",
            "a millisecond or less: the connection was there, and only looked at.",
            "tens of milliseconds: calls queue. The trace of a slow turn has a span checkpoint.l2.acquire"
            " then.",
        ),
        Query(quantile(0.99, "pool_wait_seconds"), "p99"),
        unit="s",
        steps=[(0, GOOD), (0.05, WARNING), (1, BAD)],
        no_value="no calls",
    )


def _timeouts() -> Panel:
    return figures(
        "No connection in time",
        About(
            "Calls that got no connection before their time was over, and failed for that; in the time"
            " shown.",
            "0.",
            "each was an error for somebody. The pool is exhausted, or PostgreSQL lets nobody in.",
        ),
        Query(or_zero(f"sum(increase({metric('pool_timeouts_total')}[$__range]))"), "timeouts"),
        unit="none",
        decimals=0,
        steps=[(0, GOOD), (0.5, BAD)],
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
            " in the time chosen there. Only these tables count: WAL, other databases and bloat need their"
            " room, too.",
            "more than a month.",
            "prune: `glasspoint prune --older-than 30d`; docs/maintenance.md says how to schedule it. A"
            " larger disk takes longer to get.",
        ),
        Query(days, "days"),
        unit="d",
        decimals=0,
        steps=[(0, BAD), (7, WARNING), (30, GOOD)],
        texts={_TEN_YEARS_DAYS: ("over 10 years", GOOD)},
        no_value="no sizes",
        sparkline=False,
    )


def _size() -> Panel:
    return figures(
        "Size of the tables",
        About(
            "What the checkpoints take on PostgreSQL's disk, with their indexes.",
            "what your conversations need: Storage, below, says which table it is.",
            "prune, or keep large things outside the state.",
        ),
        Query(f"sum({_SIZES})", "size"),
        unit="bytes",
        decimals=1,
        steps=[(0, NEUTRAL)],
        no_value="no sizes",
    )


def _in_use() -> Panel:
    return graph(
        "Connections in use, of those allowed",
        About(
            "How full the pool of each process is.",
            "below the dashed lines, 80 % and 95 %.",
            "all processes at once: PostgreSQL is slow. One alone: it gets more than its share of the calls.",
        ),
        Query(pool_in_use(), "{{instance}} {{saver}}"),
        unit="percentunit",
        share=True,
        limits=[(0, NEUTRAL), (0.8, WARNING), (0.95, BAD)],
    )


def _queue() -> Panel:
    return graph(
        "Connections, and who waits for one",
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
    )


def _wait() -> Panel:
    percentiles = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return graph(
        "Time until a call had its connection",
        About(
            "How long calls waited for a connection: half, 95 % and 99 % of them no longer than this.",
            "a millisecond or less.",
            "it is part of what callers wait (Overview), so raise the pool's size before it shows there.",
        ),
        *(Query(quantile(q, "pool_wait_seconds"), name) for name, q in percentiles.items()),
        unit="s",
    )


def _trouble() -> Panel:
    retries = or_zero(f"60 * sum by (reason) ({rate(metric('l2_retries_total'))})", "reason")
    return graph(
        "Timeouts, lost connections, retries",
        About(
            "A minute: calls that got no connection, connections that the pool found broken, and calls to"
            " PostgreSQL that were tried again, by reason.",
            "nothing. Now and then a lost connection: servers and proxies close idle ones.",
            "lost ones without end: something between closes them; see the pool's idle time in"
            " docs/reliability.md, which also says what each reason means. Timeouts are errors for somebody.",
        ),
        Query(f"60 * sum({rate(metric('pool_timeouts_total'))})", "timeouts"),
        Query(f"60 * sum({rate(metric('pool_connections_lost_total'))})", "lost"),
        Query(retries, "retried: {{reason}}"),
        unit="opm",
    )


def _sessions() -> Panel:
    return graph(
        "Sessions",
        About(
            "Who is connected to PostgreSQL, by what they do, and how many it lets in.",
            "idle and active; well below the limit.",
            "near the limit nobody else gets in: fewer processes, smaller pools, or PgBouncer. Idle in"
            " transaction: somebody holds locks and does nothing; it is not Glasspoint's way.",
        ),
        Query(f"sum by (state) ({_pg('stat_activity_count')})", "{{state}}"),
        Query(f"sum({postgres('settings_max_connections')})", "limit"),
        unit="none",
        width=8,
    )


def _transactions() -> Panel:
    return graph(
        "Transactions a second",
        About(
            "Transactions that were committed, and that were rolled back.",
            "hardly any rolled back.",
            "rolled back ones in number: errors of somebody's, see the log of PostgreSQL.",
        ),
        Query(f"sum({rate(_pg('stat_database_xact_commit'))})", "committed"),
        Query(f"sum({rate(_pg('stat_database_xact_rollback'))})", "rolled_back"),
        unit="ops",
        width=8,
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
        width=8,
    )


def _rows_changed() -> Panel:
    return graph(
        "Rows a second",
        About(
            "Rows that were inserted, updated and deleted. A checkpoint is a row, and so is each value that"
            " changed in it and each pending write.",
            "inserts follow the writes; deletes come with pruning.",
            "inserts without end and no deletes: nobody prunes. See Days until full.",
        ),
        *(
            Query(f"sum({rate(_pg(f'stat_database_tup_{what}'))})", what)
            for what in ("inserted", "updated", "deleted")
        ),
        unit="ops",
        width=6,
    )


def _buffers() -> Panel:
    hit, read = (f"sum({rate(_pg(f'stat_database_blks_{what}'))})" for what in ("hit", "read"))
    return graph(
        "Blocks found in memory",
        About(
            "Blocks that PostgreSQL found in its own memory, of all that it needed.",
            "above 99 %.",
            "a fall makes reads slow that Redis does not answer: shared_buffers, or states that grew.",
        ),
        Query(share(hit, f"({hit} + {read})"), "found"),
        unit="percentunit",
        share=True,
        width=6,
        calcs=("min", "mean", "lastNotNull"),
    )


def _spilled() -> Panel:
    return graph(
        "Deadlocks and conflicts",
        About(
            "A minute: deadlocks that PostgreSQL ended, and queries that recovery cancelled on a replica.",
            "none. Glasspoint retries a call that met one.",
            "deadlocks come from other work on the same tables, such as migrations or pruning by hand.",
        ),
        Query(f"60 * sum({rate(_pg('stat_database_deadlocks'))})", "deadlocks"),
        Query(f"60 * sum({rate(_pg('stat_database_conflicts'))})", "conflicts"),
        unit="opm",
        width=6,
    )


def _commits() -> Panel:
    return states(
        "Acknowledged writes",
        About(
            "Whether a write that PostgreSQL has acknowledged to a saver survives a crash or a failover:"
            " durable, if `synchronous_commit` is on or remote_apply on the saver's connections. And whether"
            " the statement of a killed process ends in time: `statement_timeout` is at most the write's"
            " deadline.",
            "durable throughout.",
            "at risk: set `synchronous_commit` to on, for the role or in the pool that is passed in. Nothing"
            " is lost as long as PostgreSQL does not crash. Late statements: set `statement_timeout`, too.",
        ),
        Query(
            f"max by (instance, saver) ({metric('l2_asynchronous_commit')})"
            f" + 2 * max by (instance, saver) ({metric('l2_unbounded_statements')})",
            "{{instance}} {{saver}}",
        ),
        texts=_COMMITS,
        width=6,
    )


def _tables() -> Panel:
    return graph(
        "Size of each table",
        About(
            "Bytes on the disk, with indexes. All processes of a saver see the same tables, so each counts"
            " once.",
            "slopes that you expect.",
            "checkpoint_blobs: values of channels, mostly messages. checkpoint_writes: pending writes."
            " Pruning shortens all of them; the space goes to new rows first.",
        ),
        Query(_SIZES, "{{saver}} {{table}}"),
        unit="bytes",
        stacked=True,
        calcs=("min", "max", "lastNotNull"),
    )


def _growth() -> Panel:
    return graph(
        "Growth a day",
        About(
            "How fast each table grows, drawn on to a day from the time chosen at the top.",
            "level, or none where old checkpoints are pruned.",
            "a table that grows faster than its conversations: larger states, see Entry sizes on"
            " Cache-aside.",
        ),
        Query(f"86400 * clamp_min({_GROWTH}, 0)", "{{saver}} {{table}}"),
        unit="bytes",
        stacked=True,
    )


def _rows() -> Panel:
    return graph(
        "Rows of each table",
        About(
            "About how many rows there are: PostgreSQL's own estimate, as good as its last look at the"
            " table.",
            "slopes as those of the sizes.",
            "rows without bytes: many small states. glasspoint_l1_journal should be empty but for moments.",
        ),
        Query(f"max by (saver, table) ({metric('storage_rows')})", "{{saver}} {{table}}"),
        unit="short",
        calcs=("min", "max", "lastNotNull"),
    )


def _databases() -> Panel:
    return graph(
        "Size of the databases",
        About(
            "Whole databases, whoever's tables are in them.",
            "as the sum of the tables above.",
            "far more than that: somebody else's tables, or rows that are dead and not yet cleaned up.",
        ),
        Query(f"sum by (datname) ({_pg('database_size_bytes')})", "{{datname}}"),
        unit="bytes",
        calcs=("min", "max", "lastNotNull"),
    )


def _pg(name: str) -> str:
    return postgres(name, datname="=~$database")
