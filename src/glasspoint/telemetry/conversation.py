"""The span around one turn of a conversation, and its link to the previous turn.

Each turn is a trace of its own; hours may lie between two turns, and another process may run the next one.
The checkpoints connect them: a put stores the `traceparent` of the turn that writes (see
`model.traceparent`), and the first read of the next turn finds it. Time travel reads an old checkpoint, so
the link leads to the turn that wrote that checkpoint.

A turn is also counted, with or without an SDK: `TurnEnded` goes to the telemetry of the first saver that the
turn calls. Without such a call, it goes to the telemetry that was created last.

Only the OpenTelemetry API is used here: without an SDK, a turn costs one span that records nothing.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import ref

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from glasspoint._version import __version__
from glasspoint.errors import ConfigurationError
from glasspoint.model import traceparent
from glasspoint.telemetry import content, thread_ids
from glasspoint.telemetry.events import InterruptStored, Observer, TurnEnded, failures

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.trace import Span, TracerProvider

    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Event, Operation, TurnOutcome
    from glasspoint.telemetry.thread_ids import ThreadIds

__all__ = [
    "ConversationTurn",
    "TurnWatch",
    "conversation_in",
    "end_span",
    "link_to_writer",
    "recorded_turn_around",
    "to_store",
    "turn_around",
]

_TURN = context.create_key("glasspoint-turn")

# The thread id of the turn that begins: a sampler needs it, also if the span does not show it.
_CONVERSATION = context.create_key("glasspoint-conversation")

# Shows in which context a turn was entered: every other context refuses its token.
_entered: ContextVar[ConversationTurn | None] = ContextVar("glasspoint-turn-entered", default=None)

# Thread -> the turn of it that has begun last in this process, as long as it is under way. Every call asks
# whether there is any: a plain dictionary knows that ten times as fast as a `WeakValueDictionary`.
_under_way: dict[str, ref[ConversationTurn]] = {}

_Link = tuple[SpanContext, dict[str, str]]
"""The target and the attributes of a link."""


class ConversationTurn:
    """The span of one turn, for `with` and for `async with`; see `glasspoint.conversation_turn`."""

    def __init__(
        self,
        thread_id: str,
        agent_name: str | None,
        *,
        turn_number: int | None,
        tracer_provider: TracerProvider | None,
        thread_ids_shown: ThreadIds | None,
        provider_name: str = "langgraph",
        capture_content: bool | None = None,
        emit: Callable[[Event], None] | None = None,
        emit_otherwise: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Take the facts about the turn that the span shows.

        Args:
            thread_ids_shown: How the span shows the thread id; if `None`, as the environment says.
            provider_name: Who provides the model: `gen_ai.provider.name`.
            capture_content: Whether `record_input` and `record_output` record; if `None`, as the environment
                says.
            emit: Emits the end of the turn; if `None`, the telemetry of the first saver that is called does.
            emit_otherwise: Emits the end of a turn that calls no saver.
        """
        self.thread_id = thread_id
        self.span: Span = trace.INVALID_SPAN
        self.is_over = False
        self.emit = emit
        """Emits the end of the turn. `None`: no saver was called yet."""
        self._emit_otherwise = emit_otherwise
        self._started = 0.0
        self._waiting: set[str] = set()
        self._agent_name = agent_name
        self._provider_name = provider_name
        self._captures_content = content.is_asked_for(capture_content)
        self._turn_number = turn_number
        self._tracer_provider = tracer_provider
        self._thread_ids = thread_ids_shown
        self._context: _TurnContext | None = None
        self._token: Any = None
        self._entered: Token[ConversationTurn | None] | None = None
        self._own_span_ids: frozenset[int] = frozenset()
        self.has_read = False

    def __enter__(self) -> Span:
        if self._context is not None:
            raise RuntimeError("This turn was entered before: call conversation_turn again for another one.")
        self.span = self._start()
        around = _current_turn()
        self._own_span_ids = frozenset({self.span.get_span_context().span_id}) | (
            around._own_span_ids if around is not None else frozenset()
        )
        inside = context.set_value(_TURN, self, trace.set_span_in_context(self.span))
        self._context = _TurnContext(inside, around=context.get_current())
        self._token = context.attach(self._context)
        self._entered = _entered.set(self)
        _under_way[self.thread_id] = ref(self, partial(_forget, self.thread_id))
        self._started = perf_counter()
        return self.span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.is_over = True
        if _turn_of(self.thread_id) is self:
            _under_way.pop(self.thread_id, None)
        try:
            outcome = self._outcome(error)
            end_span(self.span, None if outcome == "interrupted" else error)
            self._count(outcome)
        except Exception as exc:
            failures.report("conversation_turn", exc, "spans")
        # A stream that was not read to its end is closed by the event loop, in a copy of the context. The
        # context in which the turn was entered cannot be changed from there. So the turn's context object
        # itself becomes the one that was current before the turn.
        if _current_turn() is self and self._is_here():
            context.detach(self._token)
        elif self._context is not None:
            self._context.is_over = True
        self._token = self._entered = None  # both refer to the context before the turn

    async def __aenter__(self) -> Span:
        return self.__enter__()

    @property
    def context(self) -> Context | None:
        """The OpenTelemetry context inside the turn; `None` before it has begun."""
        return self._context

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def record_input(self, messages: object) -> None:
        """Record what the user has said, if the application asks for content: see `conversation_turn`.

        Args:
            messages: A text, a message of LangChain's, or a list of messages in any form that LangChain
                converts, such as `("user", "hello")`.
        """
        self._record(content.input_attributes, messages)

    def record_output(self, messages: object) -> None:
        """Record what the agent has answered, as `record_input` does."""
        self._record(content.output_attributes, messages)

    def _record(self, attributes_of: Callable[[object], dict[str, str]], messages: object) -> None:
        if not self._captures_content or not self.span.is_recording():
            return
        try:
            self.span.set_attributes(attributes_of(messages))
        except Exception as exc:  # a form that LangChain does not know; no turn fails because of telemetry
            failures.report("conversation_turn", exc, "spans")

    def _is_here(self) -> bool:
        """Whether this is the context in which the turn was entered, and not a copy of it. Call this once."""
        try:
            assert self._entered is not None
            _entered.reset(self._entered)
        except ValueError:
            return False
        return True

    def hears(self, event: InterruptStored) -> None:
        """Remember which tasks wait for an answer.

        An answer also goes to the tasks around its own: their ids are in the namespace.
        """
        if event.kind == "raised":
            self._waiting.add(event.task_id)
        else:
            around = (part.rpartition(":")[2] for part in event.scope.checkpoint_ns.split("|"))
            self._waiting.difference_update((event.task_id, *around))

    def _count(self, outcome: TurnOutcome) -> None:
        seconds = perf_counter() - self._started
        found = self.span.get_span_context()
        trace_id = trace.format_trace_id(found.trace_id) if found.trace_flags.sampled else None
        emit = self.emit or self._emit_otherwise
        emit(TurnEnded(self._agent_name, outcome, seconds, trace_id))

    def _outcome(self, error: BaseException | None) -> TurnOutcome:
        if error is None:
            return "interrupted" if self._waiting else "ok"
        if not isinstance(error, Exception):  # cancelled, a stream that is not read to its end, Ctrl-C
            return "cancelled"
        from langgraph.errors import GraphInterrupt

        return "interrupted" if isinstance(error, GraphInterrupt) else "error"

    def owns(self, writer: traceparent.Writer) -> bool:
        """Whether the writer is this turn, or a turn around it."""
        return writer.span_id in self._own_span_ids

    def goes_on_from(self, writer: _Link | None) -> None:
        """Link this turn's span to the previous turn.

        Only the first call counts: LangGraph first reads the checkpoint that it continues from. In time
        travel it reads the newest checkpoint, too, but later.

        Args:
            writer: The link to the turn that wrote the checkpoint; `None` if that turn is not known.
        """
        if not self.has_read:
            self.has_read = True
            if writer is not None:
                self.span.add_link(*writer)

    def _start(self) -> Span:
        try:
            tracer = trace.get_tracer("glasspoint", __version__, self._tracer_provider)
            return tracer.start_span(
                "invoke_agent" if self._agent_name is None else f"invoke_agent {self._agent_name}",
                kind=SpanKind.INTERNAL,
                context=context.set_value(_CONVERSATION, self.thread_id),
                attributes=self._attributes(),
            )
        except Exception as exc:
            failures.report("conversation_turn", exc, "spans")
            # Spans inside the turn are then children of the span around the turn.
            return trace.NonRecordingSpan(trace.get_current_span().get_span_context())

    def _attributes(self) -> dict[str, Any]:
        try:
            way = thread_ids.choose(self._thread_ids)
        except ConfigurationError:  # a wrong setting must neither fail the turn nor reveal the thread id
            way = "none"
        thread_id = thread_ids.shown_as(way)(self.thread_id)
        known = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": self._provider_name,
            "gen_ai.agent.name": self._agent_name,
            "gen_ai.conversation.id": thread_id,
            "session.id": thread_id,
            "glasspoint.turn": self._turn_number,
        }
        return {key: value for key, value in known.items() if value is not None}


class TurnWatch(Observer):
    """Tells the turn under way what its savers do."""

    def operation_started(self, operation: Operation) -> None:
        """Let the turn be counted where its first call is counted."""
        if _entered.get() is None and not _under_way:
            return
        turn = turn_around(operation.scope)
        if turn is not None and turn.emit is None:
            turn.emit = operation.emit

    def emitted(self, event: Event) -> None:
        """Tell the turn of questions and answers; other events do not concern it."""
        if isinstance(event, InterruptStored):
            turn = turn_around(event.scope)
            if turn is not None:
                turn.hears(event)


class _TurnContext(Context):
    """The OpenTelemetry context of a turn. After the turn it can act as the context around the turn."""

    def __init__(self, values: Context, *, around: Context) -> None:
        super().__init__(values)
        self.is_over = False
        # Skips an abandoned turn, so that many of them in a row do not make a chain.
        if isinstance(around, _TurnContext) and around.is_over:
            around = around._around
        self._around: Context = around

    def get(self, key: str, default: Any = None) -> Any:
        return self._around.get(key, default) if self.is_over else super().get(key, default)

    def copy(self) -> dict[str, object]:
        return self._around.copy() if self.is_over else super().copy()


def to_store(span: Span, operation: Operation) -> str | None:
    """Return the traceparent that a put stores: of the turn under way, else of the put's own span.

    Args:
        span: The span of the put.
        operation: The put.

    Returns:
        The traceparent; `None` if the span is not sampled, because then no link could lead to it.
    """
    turn = recorded_turn_around(operation.scope)
    found = (turn.span if turn is not None else span).get_span_context()
    if not found.is_valid or not found.trace_flags.sampled:
        return None
    ids = f"{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}"
    return f"00-{ids}-{TraceFlags.SAMPLED:02x}"


def link_to_writer(span: Span, operation: Operation) -> None:
    """Link the turn under way, else the span of the read, to the writer of the checkpoint that was read.

    For a turn, only a read of the conversation's root namespace counts: a subgraph's memory may be older than
    the previous turn. A writer in this same turn, or in the read's own trace, is not linked.
    """
    if operation.scope is None or operation.checkpoint_id is None:
        return
    turn = recorded_turn_around(operation.scope)
    if turn is None:
        writer = traceparent.parse(operation.stored_traceparent)
        if writer is not None and writer.sampled and writer.trace_id != span.get_span_context().trace_id:
            span.add_link(*_link_to(writer, operation.checkpoint_id))
    elif not turn.has_read and not operation.scope.checkpoint_ns:
        writer = traceparent.parse(operation.stored_traceparent)
        if writer is not None and turn.owns(writer):
            return
        known = writer if writer is not None and writer.sampled else None
        turn.goes_on_from(_link_to(known, operation.checkpoint_id) if known is not None else None)


def _link_to(writer: traceparent.Writer, checkpoint_id: str) -> _Link:
    target = SpanContext(writer.trace_id, writer.span_id, True, TraceFlags(TraceFlags.SAMPLED))
    return target, {"glasspoint.link": "previous_turn", "langgraph.checkpoint.id": checkpoint_id}


def end_span(span: Span, error: BaseException | None, *, at: int | None = None) -> None:
    """End a span. It shows only the class of an error, because the text may quote messages.

    Args:
        span: The span.
        error: What it failed with, if it did.
        at: When it ended, in nanoseconds since 1970; by default now.
    """
    if error is not None:
        kind = type(error)
        span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
        outcome = "cancelled" if isinstance(error, asyncio.CancelledError) else "error"
        span.set_status(StatusCode.ERROR, outcome)
    span.end(at)


def conversation_in(around: Context | None) -> str | None:
    """Return the thread id of the turn that begins in this context, if one does."""
    found = context.get_value(_CONVERSATION, around)
    return found if isinstance(found, str) else None


def turn_around(scope: Scope | None) -> ConversationTurn | None:
    """Return the turn under way, sampled or not, to which a call on this scope belongs.

    It is the turn in which the call is made, if that is a turn of the same conversation. LangGraph makes some
    calls outside of every context, such as from a callback in another thread: then it is the turn of the
    conversation that is under way in this process. Background work that goes on after its turn has ended
    belongs to no turn.
    """
    if scope is None:
        return None
    entered = _entered.get()
    # A turn is over in its own context if its stream was closed elsewhere.
    turn = entered if entered is not None and not entered.is_over else _current_turn()
    if turn is None and entered is None:
        turn = _turn_of(scope.thread_id)
    return turn if turn is not None and not turn.is_over and turn.thread_id == scope.thread_id else None


def recorded_turn_around(scope: Scope | None) -> ConversationTurn | None:
    """Return the turn under way to which a call on this scope belongs, if its span is recorded."""
    turn = turn_around(scope)
    return turn if turn is not None and turn.span.is_recording() else None


def _turn_of(thread_id: str) -> ConversationTurn | None:
    found = _under_way.get(thread_id)
    return None if found is None else found()


def _forget(thread_id: str, gone: ref[ConversationTurn]) -> None:
    """Forget a turn that was abandoned, and that nothing refers to any more."""
    if _under_way.get(thread_id) is gone:
        del _under_way[thread_id]


def _current_turn() -> ConversationTurn | None:
    found = context.get_value(_TURN)
    return found if isinstance(found, ConversationTurn) else None
