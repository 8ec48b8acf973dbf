"""Finds the span below which a call of the saver belongs: of the node, the graph or the run that caused it.

LangGraph does not call the saver from the node that has written something, but from its own loop, when the
task has ended. So the current span at a call is the span around the graph, not the node's. And if a graph
that runs synchronously has parallel tasks, there is no current span at all: LangGraph stores the writes of a
task in a callback, in the thread that has run the task, outside of every context. This is where a call then
belongs, in this order:

- below the span of the task whose writes are stored, if `graph_spans` has seen it;
- below the span of the subgraph: the config names the run of the node that it runs in, openinference's
  instrumentation knows the span of a run that is under way, and one graph is under way directly below it;
- below the span of the graph: of the only one under way directly below the current span;
- below the current span;
- if there is none: below the turn of this thread that is under way in this process;
- else below the first call of the same run, which the config shows by an object that all calls of one run
  share (`RunControl`), also those of its subgraphs.

Open this file when a call stands below the wrong span. docs/tracing.md says what LangGraph makes possible.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from opentelemetry.trace import SpanContext

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from glasspoint.telemetry.events import Operation

__all__ = ["Causes", "Recent", "TaskSpan", "causes", "is_of_a_run", "node_in"]

_KeyT = TypeVar("_KeyT")
_ValueT = TypeVar("_ValueT")

_REMEMBERED = 4096

# LangGraph's path of a task that a node runs for its edges. A task of `Send` names no node.
_PULLED = re.compile(r"~__pregel_pull, (.+)", re.DOTALL)

_OPENINFERENCE = "openinference.instrumentation.langchain"


class TaskSpan(NamedTuple):
    """The span of a task, the name of its node, and the step of the checkpoint that the task began from."""

    span: SpanContext
    node: str
    step: int | None = None


class Recent(Generic[_KeyT, _ValueT]):
    """A dictionary that forgets its oldest items. Any thread may use it."""

    def __init__(self, at_most: int = _REMEMBERED) -> None:
        self._at_most = at_most
        self._items: OrderedDict[_KeyT, _ValueT] = OrderedDict()
        self._lock = Lock()

    def put(self, key: _KeyT, value: _ValueT) -> None:
        """Store an item as the newest."""
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            if len(self._items) > self._at_most:
                self._items.popitem(last=False)

    def get(self, key: _KeyT) -> _ValueT | None:
        """Return an item, `None` if it is not known."""
        return self._items.get(key)

    def pop(self, key: _KeyT) -> None:
        """Forget an item."""
        with self._lock:
            self._items.pop(key, None)


class Causes:
    """The spans of this process that calls may belong below, the newest few thousand."""

    def __init__(self) -> None:
        self.tasks: Recent[str, TaskSpan] = Recent()
        self._under_way: Recent[int, tuple[int, SpanContext]] = Recent()
        self._below: dict[int, set[int]] = {}
        self._lock = Lock()
        self._runs: Recent[int, tuple[object, SpanContext]] = Recent()

    def began(self, span: SpanContext, parent_id: int) -> None:
        """Learn that a graph, a node, a model, … is under way, directly below another span."""
        self._under_way.put(span.span_id, (parent_id, span))
        with self._lock:
            self._below.setdefault(parent_id, set()).add(span.span_id)
            while len(self._below) > _REMEMBERED:  # spans that never ended
                self._below.pop(next(iter(self._below)))

    def ended(self, span_id: int, parent_id: int) -> None:
        """Learn that it is over."""
        self._under_way.pop(span_id)
        with self._lock:
            if (siblings := self._below.get(parent_id)) is not None:
                siblings.discard(span_id)
                if not siblings:
                    del self._below[parent_id]

    def of(self, operation: Operation, current: SpanContext) -> SpanContext | None:
        """Return the span that caused a call, if it is known to be another one than the current span.

        Args:
            operation: The call.
            current: The current span; it may be invalid.
        """
        task = self.tasks.get(operation.task_id) if operation.task_id is not None else None
        if task is not None and _fits(task.span, current):
            return task.span
        around = _span_of_the_run_around(operation.config)
        if around is not None and _fits(around, current):
            return self.graph_below(around) or around
        return self.graph_below(current) if current.is_valid else None

    def first_of_run(self, config: RunnableConfig | None) -> SpanContext | None:
        """Return the span of the first call of the same run, if that call is known."""
        control = _control_in(config)
        known = self._runs.get(id(control)) if control is not None else None
        return known[1] if known is not None else None

    def is_first_of_run(self, config: RunnableConfig | None, span: SpanContext) -> None:
        """Learn the span of the first call of a run."""
        control = _control_in(config)
        if control is not None:
            self._runs.put(id(control), (control, span))  # holds the object, so that its id stays its own

    def graph_below(self, current: SpanContext) -> SpanContext | None:
        """Return the span of the graph that is under way directly below a span, if only one is."""
        with self._lock:
            below = self._below.get(current.span_id, ())
            ids = tuple(below) if len(below) == 1 else ()
        known = self._under_way.get(ids[0]) if ids else None
        return known[1] if known is not None else None


causes = Causes()
"""Those of the whole process."""


def is_of_a_run(config: RunnableConfig | None) -> bool:
    """Tell whether LangGraph calls in a run of a graph, and not the application itself (`aget_state`)."""
    return _control_in(config) is not None


def node_in(task_path: str) -> str | None:
    """Return the name of the node in the path of a task, `None` if the path does not name one.

    Example:
        >>> node_in("~__pregel_pull, answer")
        'answer'
        >>> node_in("~__pregel_push, 0000000000")
    """
    found = _PULLED.fullmatch(task_path)
    return found[1] if found is not None else None


def _fits(found: SpanContext, current: SpanContext) -> bool:
    """Whether a span may be the parent: it is in the current trace, or there is no current trace."""
    return not current.is_valid or found.trace_id == current.trace_id


def _span_of_the_run_around(config: RunnableConfig | None) -> SpanContext | None:
    run_id = getattr(config.get("callbacks"), "parent_run_id", None) if config is not None else None
    if run_id is None or (module := sys.modules.get(_OPENINFERENCE)) is None:
        return None
    instrumentor = module.LangChainInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        return None
    span: Any = instrumentor.get_span(run_id)
    context = span.get_span_context() if span is not None else None
    return context if isinstance(context, SpanContext) and context.is_valid else None


def _control_in(config: RunnableConfig | None) -> object | None:
    configurable = config.get("configurable") if config is not None else None
    runtime = configurable.get("__pregel_runtime") if isinstance(configurable, dict) else None
    return getattr(runtime, "control", None)
