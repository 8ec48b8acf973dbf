"""Turns events into spans: one for each call of the saver, and below it one for each round trip.

Only the OpenTelemetry API is used here. Without an SDK, or in a trace that is not sampled, a call costs at
most one non-recording span, and its steps cost nothing. Spans hold neither content of the state nor
credentials.

A call stands below what caused it: `causes` says how that is found. What no caller waits for (`quiet`) has
spans only if it fails. A round trip is one span, this one: the instrumentations of Redis and psycopg are
suppressed in it, otherwise a service graph would count it twice.
"""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from glasspoint._version import __version__
from glasspoint.telemetry.causes import Recent, causes, is_of_a_run, node_in
from glasspoint.telemetry.conversation import (
    end_span,
    link_to_writer,
    recorded_turn_around,
    to_store,
    turn_around,
)
from glasspoint.telemetry.events import (
    BackgroundTaskFailed,
    BreakerChanged,
    EpochChanged,
    Event,
    Forked,
    IdentityChanged,
    InterruptStored,
    L1Availability,
    L2Retried,
    Observer,
    Operation,
    PoolWaited,
    Quarantined,
    SaverStatus,
    ServerMoved,
    Step,
    TierChanged,
)
from glasspoint.telemetry.quiet import is_quiet, without_instrumentations
from glasspoint.telemetry.thread_ids import shown_as

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, TracerProvider

    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.thread_ids import ThreadIds

__all__ = ["Tracing"]

_DRAIN = "drain"

ACQUIRE_WAITED_SECONDS = 0.001
"""The shortest wait for a connection that gets a span of its own."""

# The names of OpenTelemetry's database conventions for a step: statement -> (operation, collection).
_STATEMENTS = {
    "select": ("SELECT", "checkpoints"),
    "put": ("INSERT", "checkpoints"),
    "put_writes": ("INSERT", "checkpoint_writes"),
    "import": ("INSERT", "checkpoints"),
    "relate": ("SELECT", "checkpoints"),
    "delete_thread": ("DELETE", "checkpoints"),
    "delete_for_runs": ("DELETE", "checkpoints"),
    "copy_thread": ("INSERT", "checkpoints"),
    "prune": ("DELETE", "checkpoints"),
    "prune_find": ("SELECT", "checkpoints"),
    "prune_count": ("SELECT", "checkpoints"),
    "prune_older_than": ("DELETE", "checkpoints"),
    "list": ("SELECT", "checkpoints"),
    "list_threads": ("SELECT", "checkpoints"),
    "get_tuple": ("SELECT", "checkpoints"),
    "delta_history": ("SELECT", "checkpoint_writes"),
    "journal": ("INSERT", "glasspoint_l1_journal"),
}


class Tracing(Observer):
    """Observes savers for OpenTelemetry."""

    drops = "spans"

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, thread_ids: ThreadIds = "plain"
    ) -> None:
        """Take the provider, and how spans show thread ids.

        Args:
            tracer_provider: The provider of spans; the process's own if `None`.
            thread_ids: How spans show thread ids.
        """
        self.tracer_provider = tracer_provider
        self.thread_ids = thread_ids
        self._shown = shown_as(thread_ids)
        self._tracer = trace.get_tracer("glasspoint", __version__, tracer_provider)
        self._addresses: dict[str, dict[str, Any]] = {"l1": {}, "l2": {}, "redis": {}}
        self._checkpoint_steps: Recent[str, int] = Recent()
        """Checkpoint -> its step, for the calls that store writes to it."""
        self._nodes: Recent[str, str] = Recent()
        """Task -> its node."""
        self._steps: dict[str, tuple[str, SpanKind, dict[str, Any]]] = {}
        """Step -> its span's name, its span's kind, and the attributes that all such spans share."""
        self._has_sdk = True
        """Whether the process had an SDK at the last call. If not, round trips need no further check."""

    def operation_started(self, operation: Operation) -> None:
        """Start the call's span and make it the current one."""
        self._has_sdk = self.tracer_provider is not None or not isinstance(
            trace.get_tracer_provider(), trace.ProxyTracerProvider
        )
        if not self._has_sdk:
            return
        current = trace.get_current_span()
        if _is_left_out(current) or is_quiet():
            return
        around = _context_around(operation, current.get_span_context())
        span = self._tracer.start_span(
            f"checkpoint.{operation.name}",
            context=around,
            attributes=self._scope_attributes(operation.scope),
        )
        self._has_sdk = span is not trace.INVALID_SPAN
        if not self._has_sdk:
            return
        # Also if it is not sampled: otherwise instrumentations' spans would begin traces of their own.
        operation.trace = (span, context.attach(trace.set_span_in_context(span, around)))
        if not trace.get_current_span(around).get_span_context().is_valid:
            causes.is_first_of_run(operation.config, span.get_span_context())
        if span.is_recording():
            if operation.task_id is not None and (node := node_in(operation.task_path)) is not None:
                self._nodes.put(operation.task_id, node)
            if operation.step is not None and operation.checkpoint_id is not None:
                self._checkpoint_steps.put(operation.checkpoint_id, operation.step)
            span_context = span.get_span_context()
            if span_context.trace_flags.sampled:
                operation.trace_id = trace.format_trace_id(span_context.trace_id)
            if operation.name == "put":
                operation.traceparent = to_store(span, operation)

    def operation_ended(self, operation: Operation) -> None:
        """Write the facts of the call on its span, and end it."""
        if operation.trace is None:
            if operation.outcome == "error" and self._has_sdk and is_quiet():
                self._record_failure(operation)
            return
        span, token = operation.trace
        try:
            if span.is_recording():
                self._complete(span, operation)
        finally:
            context.detach(token)

    def step_started(self, step: Step) -> None:
        """Start a round trip's span if its call is recorded. A warm-up may start after its call has ended."""
        if not self._has_sdk:
            return
        current = trace.get_current_span()
        if not _is_recorded(current):
            if not current.get_span_context().is_valid and not is_quiet():
                # A chain looks into its lower tier before the call. An instrumentation would begin a trace.
                inside = without_instrumentations(context.get_current())
                step.trace = (trace.INVALID_SPAN, context.attach(inside))
            return
        if step.name == _DRAIN and is_quiet():  # shown at its end, if it has moved anything
            return
        name, kind, attributes = self._steps.get(step.name) or self._meet(step.name)
        # A chain looks into its lower tier before the call, so below the turn and not in the graph.
        graph = causes.graph_below(current.get_span_context())
        span = self._tracer.start_span(
            name,
            context=None if graph is None else trace.set_span_in_context(trace.NonRecordingSpan(graph)),
            kind=kind,
            attributes=self._scope_attributes(step.scope) | attributes,
        )
        if step.batch_size > 1:
            span.set_attribute("db.operation.batch.size", step.batch_size)
        if step.at is not None:  # a node of a cluster
            span.set_attributes(_address(*step.at))
        inside = trace.set_span_in_context(span)
        if kind is SpanKind.CLIENT:
            inside = without_instrumentations(inside)
        step.trace = (span, context.attach(inside))

    def step_ended(self, step: Step) -> None:
        """End a round trip's span."""
        if step.trace is None:
            if step.facts and self._has_sdk and is_quiet():
                self._record_in_background(step)
            return
        span, token = step.trace
        try:
            span.set_attributes(_attributes_of(step))
            if step.result is not None:
                span.set_attribute("glasspoint.result", step.result)
            if step.error is not None and (sqlstate := _sqlstate_of(step.error)):
                span.set_attribute("db.response.status_code", sqlstate)
            end_span(span, step.error)
        finally:
            context.detach(token)

    def emitted(self, event: Event) -> None:
        """Show a wait for a connection as a span, and other events as events on the current span."""
        current = trace.get_current_span()
        if isinstance(event, BackgroundTaskFailed):
            self._record_background_failure(event)
        elif isinstance(event, ServerMoved):
            known = self._addresses[event.server].get("db.namespace")
            database = {} if known is None else {"db.namespace": known}
            self._addresses[event.server] = {**_address(*event.address), **database}
            self._steps.clear()
        if not current.is_recording():
            return
        if isinstance(event, PoolWaited):
            if event.seconds >= ACQUIRE_WAITED_SECONDS or event.error is not None:
                self._record_wait(event)
        elif isinstance(event, InterruptStored):
            if event.is_new:
                self._record_interrupt(event, current)
        elif isinstance(event, EpochChanged):
            current.add_event("glasspoint.l1.epoch_changed")
        elif isinstance(event, IdentityChanged):
            current.add_event("glasspoint.l1.identity_changed", {"reason": event.reason})
        elif isinstance(event, BreakerChanged):
            current.add_event(
                "glasspoint.l1.breaker", {"glasspoint.state": event.state, "reason": event.reason}
            )
        elif isinstance(event, Quarantined):
            current.add_event("glasspoint.l1.quarantine", {"reason": event.reason})
        elif isinstance(event, Forked):
            current.add_event("glasspoint.fork", _of_fork(event))
        elif isinstance(event, L2Retried):
            current.add_event("glasspoint.l2.retry", {"reason": event.reason})
        elif isinstance(event, TierChanged):
            tiers = {"glasspoint.from_tier": event.from_tier, "glasspoint.to_tier": event.to_tier}
            current.add_event("glasspoint.fallback", {**tiers, "reason": event.reason})
        elif isinstance(event, L1Availability):
            name = "glasspoint.l1.available" if event.available else "glasspoint.l1.unavailable"
            current.add_event(name, {"reason": event.reason})

    def opened(self, status: SaverStatus) -> None:
        """Learn the addresses of the servers."""
        for tier, (host, port) in status.addresses.items():
            self._addresses[tier] = _address(host, port)
        for tier, database in status.databases.items():
            self._addresses[tier] = {**self._addresses[tier], "db.namespace": database}
        self._steps.clear()

    def _complete(self, span: Span, operation: Operation) -> None:
        step = self._step_of(operation)
        known = {
            "langgraph.checkpoint.id": operation.checkpoint_id,
            "langgraph.checkpoint.step": step,
            "langgraph.node": self._node_of(operation.task_id),
            "langgraph.task.id": operation.task_id,
            "langgraph.task.path": operation.task_path or None,
            "langgraph.checkpoint.source": operation.source,
            "glasspoint.l1.result": operation.l1_result or operation.l1_write,
            "glasspoint.served_by": operation.served_by,
            "glasspoint.tier": operation.tier,
            "glasspoint.bytes": operation.bytes_read or operation.bytes_written,
        }
        span.set_attributes({key: value for key, value in known.items() if value is not None})
        if operation.name == "get_tuple":
            link_to_writer(span, operation)
        end_span(span, operation.error)

    def _step_of(self, operation: Operation) -> int | None:
        checkpoint_id, step = operation.checkpoint_id, operation.step
        if checkpoint_id is None:
            return step
        if step is None:
            known = self._checkpoint_steps.get(checkpoint_id)
            if known is None and operation.task_id is not None:
                # LangGraph may store a task's writes before the checkpoint that the task began from.
                task = causes.tasks.get(operation.task_id)
                known = task.step if task is not None else None
            return known
        if operation.name == "get_tuple":
            self._checkpoint_steps.put(checkpoint_id, step)
        return step

    def _node_of(self, task_id: str | None) -> str | None:
        if task_id is None:
            return None
        if (known := causes.tasks.get(task_id)) is not None and known.node:
            return known.node
        return self._nodes.get(task_id)

    def _record_wait(self, waited: PoolWaited) -> None:
        now = time_ns()
        span = self._tracer.start_span(
            "checkpoint.l2.acquire",
            attributes=self._scope_attributes(waited.scope),
            start_time=now - int(waited.seconds * 1e9),
        )
        if waited.error is not None and (sqlstate := _sqlstate_of(waited.error)):
            span.set_attribute("db.response.status_code", sqlstate)
        end_span(span, waited.error, at=now)

    def _record_interrupt(self, event: InterruptStored, current: Span) -> None:
        """Show a question or an answer on the turn; without a turn, on the call that stores it."""
        turn = recorded_turn_around(event.scope)
        known = {
            "langgraph.node": self._node_of(event.task_id),
            "langgraph.task.id": event.task_id,
            "langgraph.checkpoint.ns": event.scope.checkpoint_ns,
        }
        name = "glasspoint.interrupt" if event.kind == "raised" else "glasspoint.resume"
        (current if turn is None else turn.span).add_event(
            name, {key: value for key, value in known.items() if value is not None}
        )

    def _record_failure(self, operation: Operation) -> None:
        """Show a call in the background that has failed."""
        now = time_ns()
        span = self._tracer.start_span(
            f"checkpoint.{operation.name}",
            attributes=self._scope_attributes(operation.scope),
            start_time=now - int(operation.seconds * 1e9),
        )
        if span.is_recording():
            span.set_attribute("glasspoint.tier", operation.tier)
        end_span(span, operation.error, at=now)

    def _record_in_background(self, step: Step) -> None:
        """Show a step of background work that has something to tell."""
        now = time_ns()
        span = self._tracer.start_span(
            f"checkpoint.{step.name}",
            attributes=self._scope_attributes(step.scope) | _attributes_of(step),
            start_time=now - int(step.seconds * 1e9),
        )
        end_span(span, step.error, at=now)

    def _record_background_failure(self, failed: BackgroundTaskFailed) -> None:
        if self._has_sdk:
            span = self._tracer.start_span(
                "checkpoint.background", attributes={"glasspoint.task": failed.task}
            )
            end_span(span, failed.error)

    def _meet(self, step_name: str) -> tuple[str, SpanKind, dict[str, Any]]:
        tier, _, what = step_name.partition(".")
        attributes: dict[str, Any] = {}
        kind = SpanKind.INTERNAL
        if tier in self._addresses:
            kind = SpanKind.CLIENT
            attributes |= self._addresses[tier]
        if tier in ("l1", "redis"):
            attributes["db.system.name"] = "redis"
            if what == "scan":
                attributes["db.operation.name"] = "SCAN"
            else:
                attributes |= {"db.operation.name": "EVALSHA", "db.stored_procedure.name": what}
        elif tier == "l2":
            operation, collection = _STATEMENTS[what]
            attributes |= {
                "db.system.name": "postgresql",
                "db.operation.name": operation,
                "db.collection.name": collection,
            }
        met = self._steps[step_name] = (f"checkpoint.{step_name}", kind, attributes)
        return met

    def _scope_attributes(self, scope: Scope | None) -> dict[str, Any]:
        if scope is None:
            return {}
        attributes = {"langgraph.checkpoint.ns": scope.checkpoint_ns}
        thread_id = self._shown(scope.thread_id)
        if thread_id is not None:
            attributes["gen_ai.conversation.id"] = thread_id
        return attributes


def _context_around(operation: Operation, current: SpanContext) -> Context:
    """Return the context that a call belongs in: the current one, if nothing is known to be nearer."""
    around = context.get_current()
    cause = causes.of(operation, current)
    if not current.is_valid and operation.scope is not None and is_of_a_run(operation.config):
        # Perhaps LangGraph has called from a callback, outside of every context.
        if (turn := turn_around(operation.scope)) is not None and turn.context is not None:
            around, current = turn.context, turn.span.get_span_context()
        elif cause is None:
            cause = causes.first_of_run(operation.config)
    if cause is None or (current.is_valid and cause.trace_id != current.trace_id):
        return around
    return trace.set_span_in_context(trace.NonRecordingSpan(cause), around)


def _attributes_of(step: Step) -> dict[str, str | int]:
    return {f"glasspoint.{name}": value for name, value in step.facts.items()}


def _sqlstate_of(error: BaseException) -> str | None:
    """Return what PostgreSQL has said, of an error or of what caused it."""
    found: BaseException | None = error
    while found is not None:
        sqlstate = getattr(found, "sqlstate", None)
        if isinstance(sqlstate, str):
            return sqlstate
        found = found.__cause__
    return None


def _of_fork(fork: Forked) -> dict[str, Any]:
    known = {
        "glasspoint.kind": fork.kind,
        "glasspoint.outcome": "stored" if fork.is_stored else "refused",
        "glasspoint.parent_checkpoint_id": fork.parent_id,
        "glasspoint.newer_checkpoint_id": fork.other_id,
    }
    return {key: value for key, value in known.items() if value is not None}


def _is_recorded(around: trace.Span) -> bool:
    """Tell whether the call around a step is or was recorded: a burst's COMMIT comes after its last write."""
    return around.is_recording() or around.get_span_context().trace_flags.sampled


def _is_left_out(around: trace.Span) -> bool:
    """Tell whether a call inside this span needs no span of its own.

    The span around it in this process (a turn, a request) is not sampled. So the call is not sampled either,
    and asking the SDK would only take time.
    """
    context_ = around.get_span_context()
    return (
        context_.is_valid
        and not context_.trace_flags.sampled
        and not context_.is_remote
        and not around.is_recording()
    )


def _address(host: str | None, port: int | None) -> dict[str, Any]:
    return {k: v for k, v in (("server.address", host), ("server.port", port)) if v}
