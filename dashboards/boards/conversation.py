"""One conversation, turn by turn, from its traces: pick it, see its turns, open one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.boards.common import CARRIED, UIDS, board, text_box
from dashboards.boards.panels import About, Query, Spans, graph, span_graph, spans, trace
from dashboards.boards.promql import metric, quantile, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

__all__ = ["build"]

_THIS = 'span.gen_ai.conversation.id = "$conversation"'
_TURN = 'name =~ "invoke_agent.*"'
_CALL = 'name =~ "checkpoint[.][a-z_]+"'
_READ_RESULTS = ("hit", "miss", "absent", "busy", "historical", "bypassed", "incomplete", "unavailable")


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Conversation",
        "What happened in this conversation? Its turns, its slow calls, the reads that Redis did not answer,"
        " what went wrong, and any trace of it.",
        {
            "": [_latest()],
            "The conversation: $conversation": [_turns(), _slow(), _not_from_l1(), _wrong()],
            "The trace: $trace": [_trace()],
            "Everybody else, in the same time": [
                _turns_of_all(),
                _reads_of_all(),
                _results_of_all(),
                _links_ignored(),
            ],
        },
        variables=[
            text_box(
                "conversation",
                "Conversation",
                "",
                "Its thread id, as it stands on the spans: hashed, if CHECKPOINT_TELEMETRY_THREAD_IDS says so"
                " (printf %s ID | sha256sum | cut -c1-16).",
            ),
            text_box("slow", "Slow from", "50ms", "A call that takes longer is slow: 50ms, 1.5s."),
            text_box(
                "trace", "Trace", "", "The id of the trace that is shown below; a click on a turn sets it."
            ),
        ],
        # Whoever reads a table does not want it to move; and a search in traces costs more than a query.
        refresh="1m",
    )


def _latest() -> Panel:
    return spans(
        "Latest turns of anybody",
        About(
            "The newest turns that were traced: click on a conversation's id to see it below, or type it at"
            " the top.",
            "turns come in as people talk.",
            "nothing here: the application does not say what a turn is (`conversation_turn`,"
            " docs/telemetry.md, Turns), does not sample, or sends its traces elsewhere.",
        ),
        Spans(
            f"{{ {_TURN} }} | select(span.gen_ai.conversation.id, span.gen_ai.agent.name,"
            " span.glasspoint.turn, status)"
        ),
        links={
            "gen_ai.conversation.id": (
                "This conversation",
                _address(conversation="${__value.raw:percentencode}"),
            ),
            **_to_trace('${__data.fields["gen_ai.conversation.id"]:percentencode}'),
        },
    )


def _turns() -> Panel:
    return spans(
        "Its turns",
        About(
            "Every turn of the conversation in the time shown, newest first, with how long it took: click on"
            " a name to see its trace below, on a span's id to open it in Explore.",
            "one row for each time that somebody spoke.",
            "turns are missing: they were not sampled, or are older than what Tempo keeps. One is long: open"
            " it.",
            empty="until a conversation is chosen.",
        ),
        Spans(
            f"{{ {_TURN} && {_THIS} }} | select(span.gen_ai.agent.name, span.glasspoint.turn, status)",
            traces=100,
        ),
        links=_to_trace(),
    )


def _slow() -> Panel:
    return spans(
        "Its slow calls",
        About(
            "Calls of the checkpointer that took longer than `Slow from`, with where they were answered.",
            "none.",
            "open the trace: checkpoint.l2.acquire is the wait for a connection, checkpoint.l2… PostgreSQL,"
            " checkpoint.l1… Redis. All of it in between is the process itself.",
            empty="where no call of the conversation was slow.",
        ),
        Spans(
            f"{{ {_CALL} && {_THIS} && duration > $slow }} | select(span.glasspoint.served_by,"
            " span.glasspoint.l1.result, span.glasspoint.bytes)"
        ),
        links=_to_trace(),
        width=12,
    )


def _not_from_l1() -> Panel:
    return spans(
        "Its reads that Redis did not answer",
        About(
            "Reads that went to PostgreSQL (or, in a lower tier, elsewhere), and what Redis had said: miss,"
            " busy, historical, bypassed, incomplete, unavailable.",
            "the first turn's read, and one after a long pause.",
            "one a turn: entries do not live until the next. See evicted and expired on Cache-aside.",
            empty="where Redis has answered all of them.",
        ),
        Spans(
            f'{{ name = "checkpoint.get_tuple" && {_THIS} && span.glasspoint.served_by != "l1" }}'
            " | select(span.glasspoint.l1.result, span.glasspoint.served_by, span.glasspoint.bytes)"
        ),
        links=_to_trace(),
        width=12,
    )


def _wrong() -> Panel:
    return spans(
        "What went wrong in it",
        About(
            "Spans that failed, and calls that met a retry, a change of the breaker or of the tier.",
            "none.",
            "error.type says what it was; a retry without an error was ridden out, and cost only time.",
            empty="where nothing went wrong.",
        ),
        Spans(
            f'{{ {_THIS} && (status = error || event:name =~ "glasspoint.(l2.retry|l1.breaker|fallback)") }}'
            " | select(name, span.error.type, status)"
        ),
        links=_to_trace(),
    )


def _trace() -> Panel:
    return trace(
        "Trace",
        About(
            "All spans of the trace that was clicked on above, or whose id was typed at the top. A turn's"
            " link leads to the turn before.",
            "one read of a millisecond at the start, writes beside the model's work.",
            "look for the longest bar that has none below it: that is where the time went.",
            empty="until a trace is chosen; Grafana marks the panel meanwhile: a trace id is required.",
        ),
        "$trace",
    )


def _turns_of_all() -> Panel:
    return span_graph(
        "Turns a second",
        About(
            "Turns of all conversations, by whether they failed, as Tempo counts them: those that were"
            " sampled.",
            "what your traffic is, and no status error.",
            "open failed ones: What went wrong in it, above, for their conversation.",
            empty="if Tempo's metrics generator does not keep the newest spans (`local-blocks`).",
        ),
        f"{{ {_TURN} }} | rate() by (status)",
        unit="ops",
        width=6,
        height=8,
    )


def _reads_of_all() -> Panel:
    return graph(
        "Reads of all conversations",
        About(
            "How long the reads of all conversations took, in the same time. The points are single calls;"
            " each opens its trace.",
            "as this conversation's.",
            "all were slow: it is not this conversation. See Saturation and storage.",
        ),
        *(
            Query(
                quantile(q, "operation_duration_seconds", operation="get_tuple"),
                name,
                exemplars=name == "p99",
            )
            for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        ),
        unit="s",
        width=6,
        height=8,
    )


def _results_of_all() -> Panel:
    return graph(
        "Where all reads were served from",
        About(
            "Reads a second of all conversations, by what Redis answered.",
            "mostly green (hit).",
            "all were missed: Redis is the cause, see Cache-aside. Only this one: look at its pauses and its"
            " size.",
        ),
        Query(f"sum by (result) ({rate(metric('l1_reads_total'))})", "{{result}}", names=_READ_RESULTS),
        unit="ops",
        width=6,
        height=8,
        stacked=True,
    )


def _links_ignored() -> Panel:
    return graph(
        "Links to the turn before that cannot be used",
        About(
            "A minute: reads that found in a checkpoint what should name the turn that wrote it, and does"
            " not.",
            "none.",
            "somebody else writes `glasspoint_traceparent` into the metadata. The turn is there all the"
            " same; only its link to the one before is missing.",
        ),
        Query(f"60 * sum by (reason) ({rate(metric('traceparents_ignored_total'))})", "{{reason}}"),
        unit="opm",
        width=6,
        height=8,
    )


def _to_trace(conversation: str = "${conversation:percentencode}") -> dict[str, tuple[str, str]]:
    return {"name": ("Show its trace below", _address(conversation, "${__data.fields.traceIdHidden}"))}


def _address(conversation: str, trace_id: str = "") -> str:
    kept = "&".join(f"${{{name}:queryparam}}" for name in (*CARRIED, "slow"))
    chosen = f"var-conversation={conversation}&var-trace={trace_id}"
    return f"/d/{UIDS['Conversation']}?${{__url_time_range}}&{kept}&{chosen}"
