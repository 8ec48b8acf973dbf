"""Telemetry: turns the events that the core emits into metrics and spans."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from weakref import ref

from prometheus_client import REGISTRY

from glasspoint.model.scope import validate_thread_id
from glasspoint.telemetry import thread_ids as _thread_ids
from glasspoint.telemetry.conversation import ConversationTurn, TurnWatch
from glasspoint.telemetry.events import Telemetry
from glasspoint.telemetry.live.watch import Watch
from glasspoint.telemetry.metrics import Metrics
from glasspoint.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.events import Event
    from glasspoint.telemetry.thread_ids import ThreadIds

__all__ = ["ConversationTurn", "Telemetry", "conversation_turn", "create_telemetry"]

# The telemetry that was created last: it counts the turns that call no saver.
_latest: deque[ref[Telemetry]] = deque(maxlen=1)


def create_telemetry(
    *,
    saver_name: str = "default",
    registry: CollectorRegistry | None = None,
    tracer_provider: TracerProvider | None = None,
    thread_ids: ThreadIds | None = None,
) -> Telemetry:
    """Create the object that a saver reports to.

    Args:
        saver_name: The `saver` label on every metric; savers of one name are counted together.
        registry: The Prometheus registry, by default the process's own. Savers may share one.
        tracer_provider: The provider of spans, by default the process's own. None is configured here:
            without an OpenTelemetry SDK in the process, spans cost next to nothing and are not sent.
        thread_ids: How spans, and log lines about forks, show thread ids: `"plain"`; `"hashed"`, the first
            16 digits of their SHA-256; `"none"`, not at all. By default the value of
            `CHECKPOINT_TELEMETRY_THREAD_IDS`, else plain.

    Raises:
        ConfigurationError: `thread_ids` has another value; the name cannot be a label; or other code has
            registered metrics with our names in the registry.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> create_telemetry(saver_name="docs", registry=CollectorRegistry()).saver_name
        'docs'
    """
    way = _thread_ids.choose(thread_ids)
    observers = (
        Tracing(tracer_provider, thread_ids=way),
        Metrics(saver_name, registry),
        TurnWatch(),
        Watch.of(REGISTRY if registry is None else registry).observer(saver_name),
    )
    telemetry = Telemetry(saver_name, observers, show_thread=_thread_ids.shown_as(way))
    _latest.append(ref(telemetry))
    return telemetry


def conversation_turn(
    thread_id: str,
    agent_name: str | None = None,
    *,
    turn_number: int | None = None,
    provider_name: str = "langgraph",
    capture_content: bool | None = None,
    telemetry: Telemetry | None = None,
) -> ConversationTurn:
    """Wrap one turn of a conversation: `with`, or `async with`, around the call of the graph.

    All spans of the block stand under one span, `invoke_agent <agent_name>`. This span is linked to the
    previous turn: the turn that wrote the checkpoint that the graph continues from, however long ago and in
    whatever process. The link needs no request to a server.

    The turn is counted in `glasspoint_turns_total` and `glasspoint_turn_duration_seconds`, also without an
    OpenTelemetry SDK: as `ok`; as `interrupted` if the graph waits for an answer of its user
    (`interrupt()`); as `cancelled` if the block was left by a cancellation, by a stream that was not read to
    its end, or by Ctrl-C; as `error` if another exception left it.

    Args:
        thread_id: The conversation, as in the graph's config.
        agent_name: The agent that answers: one of a few names of your own, because it labels metrics.
        turn_number: The number of the turn, if the application counts turns.
        provider_name: Who provides the model that answers, in the words of OpenTelemetry's conventions
            (`openai`, `anthropic`, …): the span's `gen_ai.provider.name`.
        capture_content: Whether the turn's `record_input` and `record_output` record what was said. By
            default only if `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` is `true`.
        telemetry: The saver's telemetry. If it was created with a `tracer_provider` or with `thread_ids`, the
            turn then uses the same ones. By default the process's own provider, and thread ids as
            `CHECKPOINT_TELEMETRY_THREAD_IDS` says; the turn is counted where the calls of its first saver
            are counted, and without a call where the telemetry created last counts.

    Returns:
        A context manager. Entering it returns the OpenTelemetry span, for attributes of your own.

    Raises:
        InvalidConfigError: `thread_id` is empty, not a string, or cannot be the id of a thread.

    Example:
        >>> with conversation_turn("42", agent_name="concierge") as span:
        ...     span.is_recording()  # there is no SDK here
        False
    """
    tracing = (
        next((each for each in telemetry.observers if isinstance(each, Tracing)), None) if telemetry else None
    )
    return ConversationTurn(
        validate_thread_id(thread_id),
        agent_name,
        turn_number=turn_number,
        provider_name=provider_name,
        capture_content=capture_content,
        tracer_provider=tracing.tracer_provider if tracing else None,
        thread_ids_shown=tracing.thread_ids if tracing else None,
        emit=telemetry.emit if telemetry else None,
        emit_otherwise=_emit_by_the_latest,
    )


def _emit_by_the_latest(event: Event) -> None:
    latest = _latest[0]() if _latest else None
    if latest is not None:
        latest.emit(event)
