"""Turns and agents, and one conversation turn by turn: pick it, see its turns, open a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashboards.boards.common import CARRIED, UIDS, board, text_box
from dashboards.boards.panels import About, Query, Spans, graph, spans, trace
from dashboards.boards.promql import metric, or_zero, quantile, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

__all__ = ["build"]

_THIS = 'span.gen_ai.conversation.id = "$conversation"'
_TURN = 'name =~ "invoke_agent.*"'
_CALL = 'name =~ "checkpoint[.][a-z_]+"'
_OUTCOMES = ("ok", "interrupted", "error", "cancelled")
_FORKS = ("shadows", "shadowed", "older_than_parent", "none")
_NO_TURNS = "where no process says what a turn is (`conversation_turn`, docs/telemetry.md, Turns)."
_HEIGHT = 6


def build() -> Dashboard:
    """Return the board."""
    return board(
        "Conversation",
        "How do turns go, by agent, and what happened in this conversation? Its turns, slow calls, misses,"
        " errors, and any trace of it.",
        {
            "": [_outcomes(), _durations(), _interrupts(), _forks(), _latest()],
            "Conversation $conversation": [_turns(), _wrong(), _slow(), _not_from_l1()],
            "Trace $trace": [_trace()],
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


def _outcomes() -> Panel:
    return graph(
        "Turns by outcome",
        About(
            "Turns of all conversations, a second, by how they ended. interrupted: with a question to the"
            " user.",
            "what your traffic is, hardly any error.",
            "errors: open failed turns below; Errors in it names what failed.",
            empty=_NO_TURNS,
        ),
        Query(f"sum by (outcome) ({rate(metric('turns_total'))})", "{{outcome}}", names=_OUTCOMES),
        unit="ops",
        width=6,
        height=_HEIGHT,
        stacked=True,
    )


def _durations() -> Panel:
    return graph(
        "Turn duration by agent (p95)",
        About(
            "How long turns took that ended well, by agent: 95 % of them no longer. Models and tools are part"
            " of it. The points are single turns; each opens its trace.",
            "level, for each agent.",
            "compare with Overview › Read latency and Write latency: if those are as before, the time goes"
            " into models and tools.",
            empty=_NO_TURNS,
        ),
        Query(quantile(0.95, "turn_duration_seconds", ("agent",), outcome="ok"), "{{agent}}", exemplars=True),
        unit="s",
        width=6,
        height=_HEIGHT,
    )


def _interrupts() -> Panel:
    return graph(
        "Interrupts raised and resumed",
        About(
            "Questions of graphs to their users (raised), and answers to them (resumed), an hour.",
            "as many resumed as raised, in the long run.",
            "raised without resumed: users do not answer, or the answers do not reach the graph.",
        ),
        Query(f"3600 * sum by (kind) ({rate(metric('interrupts_total'))})", "{{kind}}"),
        unit="short",
        width=6,
        height=_HEIGHT,
    )


def _forks() -> Panel:
    links = f"3600 * sum by (reason) ({rate(metric('traceparents_ignored_total'))})"
    return graph(
        "Forked threads and broken links",
        About(
            "An hour: runs that wrote to a thread that another run had written to meanwhile, by whose answer"
            " is lost; and links to the turn before that cannot be used.",
            "none.",
            "forks: the log names thread and checkpoints. Let one run of a thread begin after the other has"
            " ended; set the clock of a machine that is behind. Links: somebody else writes"
            " `glasspoint_traceparent` into the metadata.",
        ),
        Query(
            or_zero(f"3600 * sum by (kind) ({rate(metric('forks_total', outcome='stored'))})", "kind"),
            "{{kind}}",
            names=_FORKS,
        ),
        Query(f"3600 * sum({rate(metric('forks_total', outcome='refused'))})", "refused"),
        Query(links, "link: {{reason}}"),
        unit="short",
        width=6,
        height=_HEIGHT,
    )


def _latest() -> Panel:
    return spans(
        "Latest turns",
        About(
            "The newest turns of all conversations that were traced: click on a conversation's id to see it"
            " below, or type it at the top.",
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
        height=_HEIGHT,
    )


def _turns() -> Panel:
    return spans(
        "Turns",
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
        width=12,
        height=_HEIGHT,
    )


def _wrong() -> Panel:
    return spans(
        "Errors and retries",
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
        width=12,
        height=_HEIGHT,
    )


def _slow() -> Panel:
    return spans(
        "Slow calls",
        About(
            "Calls of the checkpointer that took longer than `Slow from`, with the server that answered.",
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
        height=_HEIGHT,
    )


def _not_from_l1() -> Panel:
    return spans(
        "Reads that were no hits",
        About(
            "Reads that went to PostgreSQL (or, in a lower tier, elsewhere), and what Redis had said.",
            "the first turn's read, and one after a long pause.",
            "one a turn: entries do not live until the next. See Cache-aside › Redis: keys expired and"
            " evicted.",
            empty="where Redis has answered all of them.",
        ),
        Spans(
            f'{{ name = "checkpoint.get_tuple" && {_THIS} && span.glasspoint.served_by != "l1" }}'
            " | select(span.glasspoint.l1.result, span.glasspoint.served_by, span.glasspoint.bytes)"
        ),
        links=_to_trace(),
        width=12,
        height=_HEIGHT,
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
        height=10,
    )


def _to_trace(conversation: str = "${conversation:percentencode}") -> dict[str, tuple[str, str]]:
    return {"name": ("Show its trace below", _address(conversation, "${__data.fields.traceIdHidden}"))}


def _address(conversation: str, trace_id: str = "") -> str:
    kept = "&".join(f"${{{name}:queryparam}}" for name in (*CARRIED, "slow"))
    chosen = f"var-conversation={conversation}&var-trace={trace_id}"
    return f"/d/{UIDS['Conversation']}?${{__url_time_range}}&{kept}&{chosen}"
