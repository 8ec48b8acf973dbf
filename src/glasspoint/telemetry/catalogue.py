"""Lists every metric and span: its name, the question that it answers, and a query that asks the question.

This is a public contract: dashboards, alerts and users' own queries depend on these names. The metrics are
built from `METRICS`, tests compare every span with `SPANS`, and the tables of `docs/telemetry.md` come from
both (`make generate`). Data only: no Prometheus, no OpenTelemetry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["COULD_BE_HITS", "METRICS", "SPANS", "Metric", "MetricKind", "Query", "SpanKind", "Spans"]

COULD_BE_HITS = "hit|miss|busy|incomplete|unavailable"
"""The results of reads that count for the hit ratio, as a pattern. Not in it: reads of what PostgreSQL does
not have either, of older checkpoints, and of scopes that are not cached."""

MetricKind = Literal["counter", "gauge", "histogram", "summary", "info"]
SpanKind = Literal["client", "internal"]


@dataclass(frozen=True, slots=True)
class Query:
    """A question, and its query: in PromQL for metrics, in TraceQL for spans."""

    question: str
    text: str


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of metrics.

    Attributes:
        name: The name in Prometheus, without `glasspoint_`; a counter's name with `_total`.
        labels: The labels besides `saver`, which all metrics have.
        help: The help text in `/metrics`.
        answers: The question that it answers.
        queries: Example queries; at least one of them names this metric.
    """

    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    help: str
    answers: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Spans:
    """A group of similar spans.

    Attributes:
        prefix: The common beginning of their names.
        names: The rest of each name.
        when: When such a span is made.
        attributes: The attributes that it may have, besides those of all spans (see `docs/telemetry.md`).
    """

    prefix: str
    names: tuple[str, ...]
    kind: SpanKind
    when: str
    attributes: tuple[str, ...]
    queries: tuple[Query, ...] = ()


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "operation_duration_seconds",
            "histogram",
            ("operation", "outcome"),
            "Time that callers of the checkpointer waited.",
            "how long callers wait",
            (
                Query(
                    "How long do callers wait, at the 99th percentile?",
                    "histogram_quantile(0.99, sum by (le, operation)"
                    " (rate(glasspoint_operation_duration_seconds_bucket[5m])))",
                ),
                Query(
                    "What share of calls fails?",
                    'sum(rate(glasspoint_operation_duration_seconds_count{outcome="error"}[5m]))'
                    " / sum(rate(glasspoint_operation_duration_seconds_count[5m]))",
                ),
                Query(
                    "Does pruning run, and how long do its batches take?",
                    "histogram_quantile(0.95, sum by (le)"
                    " (rate(glasspoint_operation_duration_seconds_bucket"
                    '{operation="prune_older_than"}[1h])))',
                ),
            ),
        ),
        Metric(
            "read_duration_seconds",
            "histogram",
            ("served_by", "result"),
            "Time of reads of one checkpoint that succeeded, by the server that had it.",
            "how long hits take, how long misses (PostgreSQL had it), and how long all `other` reads",
            (
                Query(
                    "How much faster is a hit than a miss? (95th percentile of each)",
                    "histogram_quantile(0.95, sum by (le, served_by, result)"
                    ' (rate(glasspoint_read_duration_seconds_bucket{result=~"hit|miss"}[5m])))',
                ),
            ),
        ),
        Metric(
            "last_success_timestamp_seconds",
            "gauge",
            ("operation",),
            "When such a call succeeded last in this process, in seconds since 1970; 0: never.",
            "does anything succeed at all: failures without a success are an outage",
            (
                Query(
                    "For how long has no write succeeded, while writes fail? (seconds)",
                    "time() - max by (job, saver)"
                    ' (glasspoint_last_success_timestamp_seconds{operation="put"})'
                    " and on (job, saver) sum by (job, saver) (increase("
                    'glasspoint_operation_duration_seconds_count{operation="put", outcome="error"}[1m])) > 0',
                ),
            ),
        ),
        Metric(
            "l1_reads_total",
            "counter",
            ("result",),
            "Reads by what L1 (Redis) answered; hit ratio = hit / those that could have been hits.",
            "hit ratio = hit / (hit + miss + busy + incomplete + unavailable); why the rest were not hits",
            (
                Query(
                    "What share of the reads that Redis could answer does it answer?",
                    'sum(rate(glasspoint_l1_reads_total{result="hit"}[5m]))'
                    f' / sum(rate(glasspoint_l1_reads_total{{result=~"{COULD_BE_HITS}"}}[5m]))',
                ),
                Query(
                    "Why not the others?",
                    'sum by (result) (rate(glasspoint_l1_reads_total{result!="hit"}[5m]))',
                ),
            ),
        ),
        Metric(
            "l1_warm_ups_total",
            "counter",
            ("result",),
            "Entries stored in L1 after a miss, or why not.",
            "does warm-up work, and what keeps a miss from being stored: `overtaken`, `fenced`: a write; "
            "`not_first`: another reader was faster",
            (
                Query(
                    "Do writes keep misses from being stored?",
                    'sum by (result) (rate(glasspoint_l1_warm_ups_total{result=~"overtaken|fenced"}[5m]))',
                ),
            ),
        ),
        Metric(
            "l1_warm_up_duration_seconds",
            "histogram",
            (),
            "Time to store an entry after a miss.",
            "what warming up costs",
            (
                Query(
                    "What does warming up cost?",
                    "rate(glasspoint_l1_warm_up_duration_seconds_sum[5m])"
                    " / rate(glasspoint_l1_warm_up_duration_seconds_count[5m])",
                ),
            ),
        ),
        Metric(
            "write_through_duration_seconds",
            "histogram",
            ("operation", "tier"),
            "Time that writes spent on each tier.",
            "where a write's time goes",
            (
                Query(
                    "Which tier makes writes slow?",
                    "histogram_quantile(0.95, sum by (le, tier)"
                    " (rate(glasspoint_write_through_duration_seconds_bucket[5m])))",
                ),
            ),
        ),
        Metric(
            "write_through_total",
            "counter",
            ("operation", "l1"),
            "Writes acknowledged by PostgreSQL, by how L1 was told.",
            "`announced`: the first of a burst, readers go to PostgreSQL; `covered`: a further one, Redis is "
            "not asked; `contested`: another writer was there, or the intent was lost, L1 will not follow; "
            "`discarded`: the entry was forgotten; `journalled`: Redis was not told, the journal was; "
            "`skipped`: there is no cache; `bypassed`: a run's subgraph, which is not cached",
            (
                Query("How is L1 told?", "sum by (l1) (rate(glasspoint_write_through_total[5m]))"),
                Query(
                    "Was Redis not told of a write? (see the window in [reliability.md](reliability.md))",
                    'increase(glasspoint_write_through_total{l1="journalled"}[1h]) > 0',
                ),
            ),
        ),
        Metric(
            "bursts_total",
            "counter",
            ("end",),
            "Bursts of writes to one scope, by how they ended.",
            "did L1 follow L2. `applied`: L1 has what L2 has; `kept`: none of the writes belongs to the "
            "image; `discarded`: L1 could not follow; `contested`: another writer was there, or the intent "
            "was lost; `lost`: Redis was not told, or something was left in doubt; `error`: Redis did not "
            "answer",
            (Query("Does L1 follow L2?", "sum by (end) (rate(glasspoint_bursts_total[5m]))"),),
        ),
        Metric(
            "burst_writes",
            "histogram",
            (),
            "Writes of a burst that has ended.",
            "how many writes share an announcement in Redis",
            (
                Query(
                    "How many writes has a burst?",
                    "sum(rate(glasspoint_burst_writes_sum[5m]))"
                    " / sum(rate(glasspoint_burst_writes_count[5m]))",
                ),
            ),
        ),
        Metric(
            "entry_bytes",
            "histogram",
            ("direction", "operation"),
            "Size of a whole state, as serialised, before compression.",
            "how large states are (`get_tuple`: states that are read; `commit`: states that a burst has "
            "written whole)",
            (
                Query(
                    "How large are the states?",
                    "histogram_quantile(0.95, sum by (le) (rate(glasspoint_entry_bytes_bucket[1h])))",
                ),
            ),
        ),
        Metric(
            "write_bytes",
            "summary",
            ("operation",),
            "Size of what a write sends to PostgreSQL, as serialised.",
            "how much writes send (`put`: the checkpoint and the channels that have changed; `put_writes`)",
            (
                Query(
                    "How much does a write send to PostgreSQL? (bytes)",
                    "sum by (operation) (rate(glasspoint_write_bytes_sum[5m]))"
                    " / sum by (operation) (rate(glasspoint_write_bytes_count[5m]))",
                ),
            ),
        ),
        Metric(
            "serde_duration_seconds",
            "summary",
            ("direction",),
            "Time to serialise (write) or deserialise (read) a state.",
            "what (de)serialising costs",
            (
                Query(
                    "How much time goes into deserialising?",
                    'rate(glasspoint_serde_duration_seconds_sum{direction="read"}[5m])',
                ),
            ),
        ),
        Metric(
            "l1_epoch_changes_total",
            "counter",
            (),
            "Redis restarts and failovers seen.",
            "Redis restarts and failovers seen",
            (
                Query(
                    "Was Redis restarted, or did it fail over?",
                    "increase(glasspoint_l1_epoch_changes_total[1h])",
                ),
            ),
        ),
        Metric(
            "l1_identity_changes_total",
            "counter",
            ("reason",),
            "Times that PostgreSQL was not what the cache was filled from.",
            "what made the cache start anew: another `database`, a `timeline`, a `crash`, a `restart`, a "
            "table that was `truncated`, a slot's move that was `called_off`, another Redis (`generation`)",
            (
                Query(
                    "Was PostgreSQL replaced, restored or set back?",
                    "increase(glasspoint_l1_identity_changes_total"
                    '{reason!~"generation|restart|called_off"}[1h]) > 0',
                ),
            ),
        ),
        Metric(
            "foreign_writes_total",
            "counter",
            ("table",),
            "Entries dropped because other software wrote to PostgreSQL.",
            "other software wrote; the cache followed",
            (
                Query(
                    "Does other software write to the tables?",
                    "sum by (table) (rate(glasspoint_foreign_writes_total[5m]))",
                ),
            ),
        ),
        Metric(
            "forks_total",
            "counter",
            ("kind", "outcome"),
            "Puts that forked their thread, so that an answer is not seen any more.",
            "answers that are lost because two runs wrote to one thread at once (`shadows`: the other run's "
            "answer is not seen; `shadowed`: this one's is not), or because a clock is behind "
            "(`older_than_parent`); `refused`: the checkpoint was not stored (`on_fork`)",
            (
                Query(
                    "Are answers lost? (the log names thread and checkpoints)",
                    'sum by (kind) (increase(glasspoint_forks_total{outcome="stored"}[1h])) > 0',
                ),
            ),
        ),
        Metric(
            "l2_asynchronous_commit",
            "gauge",
            (),
            "1 if PostgreSQL acknowledges writes that a crash can lose.",
            "can a crash of PostgreSQL lose acknowledged writes (`synchronous_commit` is not `on`)",
            (Query("Can a crash lose acknowledged writes?", "glasspoint_l2_asynchronous_commit == 1"),),
        ),
        Metric(
            "l2_unbounded_statements",
            "gauge",
            (),
            "1 if PostgreSQL lets a statement run for longer than the intent of its write lasts.",
            "can the statement of a killed process take effect unnoticed (no `statement_timeout`, or one "
            "longer than the write's deadline)",
            (Query("Can a late statement go unnoticed?", "glasspoint_l2_unbounded_statements == 1"),),
        ),
        Metric(
            "l1_breaker_open",
            "gauge",
            (),
            "1 while L1 (Redis) is left alone.",
            "is Redis being left alone",
            (Query("Is Redis left alone?", "glasspoint_l1_breaker_open == 1"),),
        ),
        Metric(
            "l1_breaker_transitions_total",
            "counter",
            ("to",),
            "Times that L1 (Redis) was left alone, probed and asked again.",
            "how many outages, and do the probes get through",
            (
                Query(
                    "How often was it left alone?",
                    'increase(glasspoint_l1_breaker_transitions_total{to="open"}[1h])',
                ),
            ),
        ),
        Metric(
            "l1_journal_pending",
            "gauge",
            (),
            "Entries that L1 (Redis) is yet to be told to drop.",
            "entries that Redis is yet to be told to drop; counted every 10 s while Redis stays away",
            (
                Query(
                    "Is the journal swept? (more than 0 for minutes: nobody reaches both servers)",
                    "min_over_time(glasspoint_l1_journal_pending[5m]) > 0",
                ),
            ),
        ),
        Metric(
            "l1_quarantined_scopes",
            "gauge",
            (),
            "Scopes whose key L1 (Redis) refuses, and which PostgreSQL alone answers for.",
            "conversations that Redis refuses, while it serves the others",
            (
                Query(
                    "Are single conversations without a cache? (the log names thread and reason)",
                    "max_over_time(glasspoint_l1_quarantined_scopes[10m]) > 0",
                ),
            ),
        ),
        Metric(
            "l1_invalidations_total",
            "counter",
            ("source",),
            "Entries dropped, by what asked for it.",
            "entries dropped for another reason than a write",
            (
                Query(
                    "How many entries go because their conversation was deleted?",
                    'rate(glasspoint_l1_invalidations_total{source="delete"}[5m])',
                ),
                Query(
                    "Does somebody change what is in Redis? (or: have all processes one signing key?)",
                    'increase(glasspoint_l1_invalidations_total{source="tampered"}[1h]) > 0',
                ),
            ),
        ),
        Metric(
            "l1_audits_total",
            "counter",
            ("verdict",),
            "Hits compared with PostgreSQL, by what was found.",
            "a share of the hits, compared with PostgreSQL after they were answered: is the cache true",
            (
                Query(
                    "Is the cache true? (anything above 0 is worth a call)",
                    'increase(glasspoint_l1_audits_total{verdict="stale"}[1h]) > 0',
                ),
            ),
        ),
        Metric(
            "fallback_events_total",
            "counter",
            ("from_tier", "to_tier", "reason"),
            "Changes of tier, promotion included.",
            "every change of tier, promotion included",
            (
                Query(
                    "Did a process fall to a lower tier?",
                    'increase(glasspoint_fallback_events_total{reason!="recovered"}[1h]) > 0',
                ),
            ),
        ),
        Metric(
            "active_tier",
            "gauge",
            ("tier",),
            "1 for the tier that is in use.",
            "where we are now",
            (
                Query("Where are we now?", "glasspoint_active_tier == 1"),
                Query(
                    "Is a process in a lower tier for long?",
                    'min_over_time(glasspoint_active_tier{tier!="cached"}[10m]) == 1',
                ),
            ),
        ),
        Metric(
            "drained_checkpoints_total",
            "counter",
            ("from_tier",),
            "Checkpoints moved from a lower tier to a higher one.",
            "what came back after an outage",
            (Query("What came back after an outage?", "increase(glasspoint_drained_checkpoints_total[1h])"),),
        ),
        Metric(
            "drained_threads_total",
            "counter",
            ("result",),
            "Threads of a lower tier, by what became of them.",
            "`continued`: it goes on from what PostgreSQL has; `new`: PostgreSQL had nothing; `set_aside`: "
            "it does not go on from what PostgreSQL has, and is a thread of its own (the log names both); "
            "`refused`: it cannot be moved, and stays; `lost`: Redis has lost what was acknowledged "
            "last, at a failover or a restart (the log names it)",
            (
                Query(
                    "Which conversations of an outage need a look?",
                    'increase(glasspoint_drained_threads_total{result=~"set_aside|refused|lost"}[1h]) > 0',
                ),
            ),
        ),
        Metric(
            "undrained_threads",
            "gauge",
            ("tier",),
            "Threads that were found in a lower tier, and are not in PostgreSQL yet.",
            "what is at risk now; a process counts them every 30 s at most",
            (
                Query(
                    "How many conversations are not in PostgreSQL yet?",
                    "max by (tier) (glasspoint_undrained_threads)",
                ),
            ),
        ),
        Metric(
            "undrained_checkpoints",
            "gauge",
            ("tier",),
            "Checkpoints that were found in a lower tier, and are not in PostgreSQL yet.",
            "how much is at risk: one long conversation is more than ten new ones",
            (
                Query(
                    "How many checkpoints are not in PostgreSQL yet?",
                    "max by (tier) (glasspoint_undrained_checkpoints)",
                ),
            ),
        ),
        Metric(
            "retention_last_success_timestamp_seconds",
            "gauge",
            (),
            "When a run of the retention succeeded last, in any process, in seconds since 1970; 0: never.",
            "is old history still removed (`CHECKPOINT_RETENTION`); a run is due an hour after the last one",
            (
                Query(
                    "For how long has no run of the retention succeeded? (seconds)",
                    "time() - max(glasspoint_retention_last_success_timestamp_seconds)",
                ),
            ),
        ),
        Metric(
            "retention_pruned_total",
            "counter",
            ("table",),
            "Rows that the retention has removed.",
            "what the retention removes; what somebody removes by `glasspoint prune` is not in it",
            (
                Query(
                    "How much does the retention remove a day?",
                    "sum by (table) (increase(glasspoint_retention_pruned_total[1d]))",
                ),
            ),
        ),
        Metric(
            "retention_runs_total",
            "counter",
            ("result",),
            "Runs of the retention, by how they ended.",
            "`succeeded`; `failed`: PostgreSQL or Redis did not do its part (the log says which); `lost`: "
            "the process could not renew its lease in time, and another one goes on",
            (
                Query(
                    "Do runs of the retention fail?",
                    'sum by (result) (increase(glasspoint_retention_runs_total{result!="succeeded"}[1d]))',
                ),
            ),
        ),
        Metric(
            "l2_retries_total",
            "counter",
            ("operation", "reason"),
            "Calls to PostgreSQL that were tried again.",
            "calls to PostgreSQL that were tried again",
            (
                Query(
                    "Does PostgreSQL hiccup, and how?",
                    "sum by (reason) (increase(glasspoint_l2_retries_total[5m]))",
                ),
            ),
        ),
        Metric(
            "pool_connections",
            "gauge",
            ("state",),
            "PostgreSQL connections of the pool.",
            "PostgreSQL connections",
            (
                Query(
                    "Is the pool the bottleneck?",
                    'glasspoint_pool_connections{state="in_use"}'
                    " / ignoring(state) glasspoint_pool_max_connections",
                ),
            ),
        ),
        Metric(
            "pool_max_connections",
            "gauge",
            (),
            "PostgreSQL connections allowed.",
            "saturation = in_use / max",
            (
                Query(
                    "How many connections may all processes together open?",
                    "sum(glasspoint_pool_max_connections)",
                ),
            ),
        ),
        Metric(
            "pool_requests_waiting",
            "gauge",
            (),
            "Callers that wait for a PostgreSQL connection now.",
            "the queue for a connection: every caller, also those that go in one statement",
            (Query("Does anybody wait for a connection?", "glasspoint_pool_requests_waiting"),),
        ),
        Metric(
            "pool_wait_seconds",
            "histogram",
            (),
            "Time spent waiting for a PostgreSQL connection, also in vain.",
            "time spent waiting for a connection, also by callers that got none",
            (
                Query(
                    "How long do calls wait for one?",
                    "histogram_quantile(0.99, sum by (le) (rate(glasspoint_pool_wait_seconds_bucket[5m])))",
                ),
            ),
        ),
        Metric(
            "pool_timeouts_total",
            "counter",
            (),
            "Callers for which no PostgreSQL connection came free in time.",
            "calls that got none in time, each of them",
            (Query("Does one come too late?", "increase(glasspoint_pool_timeouts_total[5m])"),),
        ),
        Metric(
            "pool_connections_lost_total",
            "counter",
            (),
            "PostgreSQL connections found broken by the pool.",
            "connections that the pool found broken",
            (Query("Do connections break?", "increase(glasspoint_pool_connections_lost_total[5m])"),),
        ),
        Metric(
            "redis_pool_connections",
            "gauge",
            ("state",),
            "Redis connections of the client.",
            "Redis connections",
            (Query("How many connections to Redis?", "sum by (state) (glasspoint_redis_pool_connections)"),),
        ),
        Metric(
            "storage_bytes",
            "gauge",
            ("table",),
            "Size of a table with its indexes and TOAST, looked at once a minute.",
            "what grows, before the disk is full",
            (
                Query("How large are the tables?", "max by (table) (glasspoint_storage_bytes)"),
                Query(
                    "What will fill the disk? (bytes a day, as of the last six hours)",
                    "86400 * sum by (table) (deriv((max by (table) (glasspoint_storage_bytes))[6h:5m]))",
                ),
            ),
        ),
        Metric(
            "storage_rows",
            "gauge",
            ("table",),
            "Rows of a table as PostgreSQL estimates them, looked at once a minute.",
            "is it more rows, or larger ones",
            (
                Query(
                    "How large is a row?",
                    "max by (table) (glasspoint_storage_bytes) / max by (table) (glasspoint_storage_rows)",
                ),
            ),
        ),
        Metric(
            "turns_total",
            "counter",
            ("agent", "outcome"),
            "Turns of conversations, by agent and by how they ended.",
            "how many turns there are, and how they end; only those that the application wraps in "
            "`conversation_turn`",
            (
                Query(
                    "What share of turns fails, by agent?",
                    'sum by (agent) (rate(glasspoint_turns_total{outcome="error"}[5m]))'
                    " / sum by (agent) (rate(glasspoint_turns_total[5m]))",
                ),
                Query(
                    "How many turns a second, by agent?",
                    "sum by (agent) (rate(glasspoint_turns_total[5m]))",
                ),
                Query(
                    "What share of turns ends with a question to the user?",
                    'sum(rate(glasspoint_turns_total{outcome="interrupted"}[1h]))'
                    " / sum(rate(glasspoint_turns_total[1h]))",
                ),
            ),
        ),
        Metric(
            "turn_duration_seconds",
            "histogram",
            ("agent", "outcome"),
            "Time from the start of a turn to its end.",
            "how long users wait for an answer",
            (
                Query(
                    "How long do users wait, at the 95th percentile?",
                    "histogram_quantile(0.95, sum by (le, agent)"
                    ' (rate(glasspoint_turn_duration_seconds_bucket{outcome="ok"}[5m])))',
                ),
                Query(
                    "What share of a turn's time goes into the checkpointer?",
                    "sum(rate(glasspoint_operation_duration_seconds_sum[5m]))"
                    " / sum(rate(glasspoint_turn_duration_seconds_sum[5m]))",
                ),
            ),
        ),
        Metric(
            "interrupts_total",
            "counter",
            ("kind",),
            "Questions of graphs to their users (interrupts), and the answers to them.",
            "`raised`: a question was stored; `resumed`: the task that asked has received its answer and "
            "gone on; see [Interrupts](#interrupts)",
            (
                Query(
                    "How many questions wait for an answer, of those asked in the last day?",
                    'sum(increase(glasspoint_interrupts_total{kind="raised"}[1d]))'
                    ' - sum(increase(glasspoint_interrupts_total{kind="resumed"}[1d]))',
                ),
            ),
        ),
        Metric(
            "background_task_failures_total",
            "counter",
            ("task",),
            "Errors that nobody foresaw in background tasks, which go on.",
            "bugs in what nobody waits for; the log names each kind once",
            (
                Query(
                    "Does a background task fail? (anything above 0 is worth a bug report)",
                    "sum by (task) (increase(glasspoint_background_task_failures_total[1h])) > 0",
                ),
            ),
        ),
        Metric(
            "telemetry_dropped_total",
            "counter",
            ("what",),
            "What telemetry itself has lost in this process.",
            "can the metrics and traces be relied on. `metrics`, `spans`: telemetry failed, or spans could "
            "not be sent (counted one by one, if `configure_telemetry` has set up the exporter); `events`: "
            "an observer of your own failed. Every saver of a process shows the same number",
            (
                Query(
                    "Does telemetry lose anything? (the log says what failed)",
                    "max by (job, instance, what) (increase(glasspoint_telemetry_dropped_total[15m])) > 0",
                ),
            ),
        ),
        Metric(
            "traceparents_ignored_total",
            "counter",
            ("reason",),
            "Reads that found the span that wrote the checkpoint in a form that cannot be used.",
            "stored links to the turn before that cannot be used: who else writes there",
            (
                Query(
                    "Does somebody write into the metadata what looks like our link and is none?",
                    "increase(glasspoint_traceparents_ignored_total[1h]) > 0",
                ),
            ),
        ),
        Metric(
            "info",
            "info",
            ("version", "langgraph", "postgres", "redis", "database"),
            "Versions of what works together here, and the name of the database.",
            "what works together here, and in which database",
            (Query("What runs here?", "glasspoint_info"),),
        ),
    )
}

_DATABASE = ("db.system.name", "db.namespace", "db.operation.name", "server.address", "server.port")
_OF_REDIS = (*_DATABASE, "db.stored_procedure.name")
_OF_POSTGRES = (
    *_DATABASE,
    "db.collection.name",
    "db.operation.batch.size",
    "db.response.status_code",
)

SPANS: tuple[Spans, ...] = (
    Spans(
        "invoke_agent",
        (" <agent_name>", ""),
        "internal",
        "each turn, if the application says so: see Turns",
        (
            "gen_ai.operation.name",
            "gen_ai.provider.name",
            "gen_ai.agent.name",
            "session.id",
            "glasspoint.turn",
            "gen_ai.input.messages",
            "gen_ai.output.messages",
            "input.value",
            "input.mime_type",
            "output.value",
            "output.mime_type",
            "openinference.span.kind",
        ),
        (
            Query(
                "All turns of a conversation",
                '{ name =~ "invoke_agent.*" && span.gen_ai.conversation.id = "42" }',
            ),
            Query(
                "Slow turns, and their reads that Redis did not answer",
                '{ name =~ "invoke_agent.*" && duration > 5s }'
                ' >> { name = "checkpoint.get_tuple" && span.glasspoint.served_by = "l2" }',
            ),
            Query("Which turn came after this one?", '{ link:traceID = "0af7651916cd43dd8448eb211c80319c" }'),
            Query("Failed turns", '{ name =~ "invoke_agent.*" && status = error }'),
            Query("Turns that ended with a question to the user", '{ event:name = "glasspoint.interrupt" }'),
        ),
    ),
    Spans(
        "checkpoint.",
        (
            "get_tuple",
            "put",
            "put_writes",
            "list",
            "list_threads",
            "delta_history",
            "delete_thread",
            "delete_for_runs",
            "copy_thread",
            "prune",
            "prune_older_than",
            "relate",
            "import_checkpoints",
            "seal_thread",
            "retire_thread",
        ),
        "internal",
        "each call; of `prune_older_than` each batch: a run may take hours, and a span is seen when it ends",
        (
            "langgraph.checkpoint.id",
            "langgraph.checkpoint.step",
            "langgraph.checkpoint.source",
            "langgraph.node",
            "langgraph.task.id",
            "langgraph.task.path",
            "glasspoint.l1.result",
            "glasspoint.served_by",
            "glasspoint.tier",
            "glasspoint.bytes",
        ),
        (
            Query(
                "Why was this turn slow? (its calls, longest first)",
                '{ trace:id = "0af7651916cd43dd8448eb211c80319c" && name =~ "checkpoint[.][a-z_]+" }'
                " | select(span.glasspoint.served_by, span.glasspoint.l1.result)",
            ),
            Query(
                "What did the parallel branches of a node store?",
                '{ name = "checkpoint.put_writes" && span.langgraph.node = "search" }'
                " | select(span.langgraph.checkpoint.step, span.langgraph.task.id)",
            ),
            Query(
                "Reads of large states",
                '{ name = "checkpoint.get_tuple" && span.glasspoint.bytes > 1000000 }',
            ),
            Query(
                "Calls in a lower tier",
                '{ name =~ "checkpoint.*" && span.glasspoint.tier != "cached" }',
            ),
            Query(
                "Reads that came while a write was under way",
                '{ name = "checkpoint.get_tuple" && span.glasspoint.l1.result = "busy" }',
            ),
            Query(
                "Puts that forked their thread",
                '{ event:name = "glasspoint.fork" }',
            ),
            Query(
                "Calls that met a retry, a change of the breaker or of the tier",
                '{ event:name =~ "glasspoint.(l2.retry|l1.breaker|fallback)" }',
            ),
        ),
    ),
    Spans(
        "checkpoint.l1.",
        (
            "read",
            "peek",
            "refuse",
            "begin",
            "confirm",
            "commit",
            "abort",
            "drop",
            "clear",
            "warm_up",
        ),
        "client",
        "each round trip to Redis",
        _OF_REDIS,
        (
            Query("Slow answers of Redis", '{ name =~ "checkpoint.l1.*" && duration > 10ms }'),
            Query("Redis failed", '{ name =~ "checkpoint.l1.*" && status = error }'),
        ),
    ),
    Spans(
        "checkpoint.l2.",
        (
            "select",
            "put",
            "put_writes",
            "list",
            "list_threads",
            "get_tuple",
            "delta_history",
            "relate",
            "import",
            "journal",
        ),
        "client",
        "each statement",
        _OF_POSTGRES,
        (
            Query("Slow statements", '{ name =~ "checkpoint.l2.*" && kind = client && duration > 100ms }'),
            Query(
                "Writes that Redis was not told of",
                '{ name =~ "checkpoint.put.*" && span.glasspoint.l1.result = "journalled" }',
            ),
        ),
    ),
    Spans(
        "checkpoint.l2.",
        (
            "delete_thread",
            "delete_for_runs",
            "copy_thread",
            "prune",
            "prune_older_than",
            "prune_count",
            "prune_find",
        ),
        "client",
        "each transaction; the `l1.begin` of the scopes that it touches stand in it. `prune_count`: a dry"
        " run; `prune_find`: the next threads to look at, only inside a span of the application",
        _OF_POSTGRES,
        (Query("Long batches of pruning", '{ name = "checkpoint.l2.prune_older_than" && duration > 1s }'),),
    ),
    Spans(
        "checkpoint.redis.",
        (
            "put",
            "put_writes",
            "read",
            "load",
            "page",
            "metadata",
            "namespaces",
            "ancestors",
            "outline",
            "remove",
            "delete_thread",
            "runs",
            "import",
            "adopt",
            "seal",
            "strays",
            "retire",
            "threads",
            "holds",
            "relist",
            "scan",
        ),
        "client",
        "each round trip of `RedisSaver`",
        _OF_REDIS,
        (Query("What was done in the tier `redis`", '{ name =~ "checkpoint.redis.*" }'),),
    ),
    Spans(
        "checkpoint.l2.",
        ("acquire",),
        "internal",
        "a wait of 1 ms or more for a connection, and any wait that was in vain: then with its error",
        ("db.response.status_code",),
        (
            Query(
                "Turns in which the pool was the bottleneck",
                '{ name =~ "invoke_agent.*" } >> { name = "checkpoint.l2.acquire" && duration > 50ms }',
            ),
            Query(
                "Calls that got no connection",
                '{ name = "checkpoint.l2.acquire" && status = error }',
            ),
        ),
    ),
    Spans(
        "checkpoint.",
        ("announce_tier",),
        "internal",
        "in the tier `redis`, for the first thread there: a wait of up to 0.6 s, until all processes that "
        "work in the tier above have noticed",
        ("glasspoint.result",),
        (
            Query(
                "Calls that waited because their thread was the first in the tier `redis`",
                '{ name = "checkpoint.announce_tier" }',
            ),
        ),
    ),
    Spans(
        "checkpoint.",
        ("drain",),
        "internal",
        "each round in which threads of a lower tier were moved up; and in the trace of a call that waited"
        " until its own thread was up",
        ("glasspoint.from_tier", "glasspoint.to_tier", "glasspoint.threads", "glasspoint.checkpoints"),
        (
            Query(
                "What came back after an outage, and how long did it take?", '{ name = "checkpoint.drain" }'
            ),
            Query(
                "Turns that waited until their thread was moved up",
                '{ name =~ "invoke_agent.*" } >> { name = "checkpoint.drain" }',
            ),
        ),
    ),
    Spans(
        "checkpoint.",
        ("background",),
        "internal",
        "background work met an error that nobody foresaw; when it works, it has no spans",
        ("glasspoint.task",),
        (Query("What failed in the background?", '{ name = "checkpoint.background" }'),),
    ),
    Spans(
        "checkpoint.",
        ("warm_up",),
        "internal",
        "after a miss; it may end later than its read, which does not wait for it",
        ("glasspoint.result",),
        (
            Query(
                "Misses that a write overtook",
                '{ name = "checkpoint.warm_up" && span.glasspoint.result = "overtaken" }',
            ),
        ),
    ),
)
