"""A turn of a conversation: the span around it, and its link to the turn before.

Turns are traces of their own, hours and processes apart. What connects them is in the checkpoints: a put
stores the `traceparent` of the turn that writes (see `model.traceparent`), and the first read of the
next turn finds it. Time travel reads an old checkpoint, so the link leads to the turn that wrote that one.

Only the OpenTelemetry API is used here: without an SDK, a turn costs one span that records nothing.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags

from glasspoint._version import __version__
from glasspoint.errors import ConfigurationError
from glasspoint.model import traceparent
from glasspoint.telemetry import thread_ids
from glasspoint.telemetry.events import failures

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.trace import Span, TracerProvider

    from glasspoint.telemetry.events import Operation
    from glasspoint.telemetry.thread_ids import ThreadIds

__all__ = ["ConversationTurn", "end_span", "link_to_writer", "to_store"]

_TURN = context.create_key("glasspoint-turn")

# Tells where a turn was entered: its token is refused anywhere else.
_entered: ContextVar[ConversationTurn | None] = ContextVar("glasspoint-turn-entered", default=None)

_Link = tuple[SpanContext, dict[str, str]]
"""Where a link leads, and what it says."""


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
    ) -> None:
        """Take what the span says of the turn.

        Args:
            thread_ids_shown: How the thread id stands on the span; as the environment says if `None`.
        """
        self.thread_id = thread_id
        self.span: Span = trace.INVALID_SPAN
        self._agent_name = agent_name
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
        return self.span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            end_span(self.span, error)
        except Exception as exc:
            failures.report("conversation_turn", exc)
        # A stream that nobody read to its end is closed elsewhere: the event loop does it, in a copy of the
        # context. What is current where the turn was entered cannot be changed from here. So the turn's own
        # context becomes what was current before.
        if _current_turn() is self and self._is_here():
            context.detach(self._token)
        elif self._context is not None:
            self._context.is_over = True
        self._token = self._entered = None  # they hold what was current before

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _is_here(self) -> bool:
        """Whether this is where the turn was entered, and not a copy of it. May be asked once."""
        try:
            assert self._entered is not None
            _entered.reset(self._entered)
        except ValueError:
            return False
        return True

    def owns(self, writer: traceparent.Writer) -> bool:
        """Whether this turn, or one around it, is what wrote."""
        return writer.span_id in self._own_span_ids

    def goes_on_from(self, writer: _Link | None) -> None:
        """Link this turn's span to the turn before.

        The first checkpoint that it reads tells: LangGraph begins with the one that it goes on from. In time
        travel it reads the newest one, too, but later.

        Args:
            writer: `None` if nobody knows who wrote it.
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
                attributes=self._attributes(),
            )
        except Exception as exc:
            failures.report("conversation_turn", exc)
            # What happens inside stands under the span around it then.
            return trace.NonRecordingSpan(trace.get_current_span().get_span_context())

    def _attributes(self) -> dict[str, Any]:
        try:
            way = thread_ids.choose(self._thread_ids)
        except ConfigurationError:  # no reason for a conversation to fail, but one not to tell who talks
            way = "none"
        thread_id = thread_ids.shown_as(way)(self.thread_id)
        known = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": self._agent_name,
            "gen_ai.conversation.id": thread_id,
            "session.id": thread_id,
            "glasspoint.turn": self._turn_number,
        }
        return {key: value for key, value in known.items() if value is not None}


class _TurnContext(Context):
    """What is current in a turn. After the turn it may become what was current around the turn."""

    def __init__(self, values: Context, *, around: Context) -> None:
        super().__init__(values)
        self.is_over = False
        # Abandoned turns, one after the other, are no chain.
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
        span: The put's.

    Returns:
        `None` if nobody could ever look at it, because it is not sampled.
    """
    turn = _turn_of(operation)
    found = (turn.span if turn is not None else span).get_span_context()
    if not found.is_valid or not found.trace_flags.sampled:
        return None
    ids = f"{trace.format_trace_id(found.trace_id)}-{trace.format_span_id(found.span_id)}"
    return f"00-{ids}-{TraceFlags.SAMPLED:02x}"


def link_to_writer(span: Span, operation: Operation) -> None:
    """Link the turn under way, else the span of the read, to what wrote the checkpoint that was read.

    A turn is linked by what it reads of its conversation's root namespace: a subgraph's memory may be older
    than the turn before. What was written in this very turn, or in the read's own trace, is not linked.
    """
    if operation.scope is None or operation.checkpoint_id is None:
        return
    turn = _turn_of(operation)
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


def end_span(span: Span, error: BaseException | None) -> None:
    """End a span. Of an error its class is told; its text may quote what was said."""
    if error is not None:
        kind = type(error)
        span.set_attribute("error.type", f"{kind.__module__}.{kind.__qualname__}")
        outcome = "cancelled" if isinstance(error, asyncio.CancelledError) else "error"
        span.set_status(StatusCode.ERROR, outcome)
    span.end()


def _current_turn() -> ConversationTurn | None:
    found = context.get_value(_TURN)
    return found if isinstance(found, ConversationTurn) else None


def _turn_of(operation: Operation) -> ConversationTurn | None:
    """The turn under way, if it is one of the conversation that the call is about.

    What goes on in the background after its turn has ended belongs to none.
    """
    turn = _current_turn()
    if turn is None or operation.scope is None or turn.thread_id != operation.scope.thread_id:
        return None
    return turn if turn.span.is_recording() else None
