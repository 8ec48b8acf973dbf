"""Finds the interrupts in what a task writes, and counts each of them once.

LangGraph stores a question that a node asks (`interrupt()`) as a write to `__interrupt__`, and the answers
that a task has received as a write to `__resume__`. It stores both more than once:

- A question in a subgraph is stored by the task that asks, and again by each task around it.
- A task that has not been answered asks the same question again when the graph is run again.
- The answers of a task are stored again with each further question, and when the task ends.

So a question is known by its id, and an answer by its task and its place in that task. Open this file when
`glasspoint_interrupts_total` differs from what an application counts. `docs/telemetry.md` says what a saver
cannot see.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from langgraph.checkpoint.serde.types import INTERRUPT, RESUME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from glasspoint.model.scope import Scope

__all__ = ["Interrupt", "InterruptKind", "KnownInterrupts", "interrupts_in"]

InterruptKind = Literal["raised", "resumed"]

# LangGraph's `NULL_TASK_ID`: the writes of the run itself, among them the value of `Command(resume=…)`. The
# task that receives this value stores it again.
_RUN = "00000000-0000-0000-0000-000000000000"

_KNOWN = 10_000


class Interrupt(NamedTuple):
    """A question that a task asks, or an answer that it has received.

    Attributes:
        kind: `raised`: a question. `resumed`: an answer.
        thread_id: The thread of the task.
        task_id: The task. Empty for a question that has an id of its own.
        id: The id of the question; for an answer, its place among the answers of the task.
    """

    kind: InterruptKind
    thread_id: str
    task_id: str
    id: str


def interrupts_in(scope: Scope, task_id: str, writes: Iterable[Sequence[Any]]) -> Sequence[Interrupt]:
    """Return the questions and answers in the writes of a task.

    Args:
        scope: The scope of the task.
        task_id: The id of the task.
        writes: Pairs of channel and value.
    """
    found: dict[Interrupt, None] = {}
    for channel, value in writes:
        if channel == INTERRUPT:
            questions = value if isinstance(value, list | tuple) else [value]
            for place, question in enumerate(questions):
                id_ = question.get("id") if isinstance(question, dict) else getattr(question, "id", None)
                own = ("", str(id_)) if id_ else (task_id, str(place))
                found[Interrupt("raised", scope.thread_id, *own)] = None
        elif channel == RESUME and task_id != _RUN:
            for place in range(len(value) if isinstance(value, list) else 1):
                found[Interrupt("resumed", scope.thread_id, task_id, str(place))] = None
    return tuple(found)


class KnownInterrupts:
    """The interrupts that were counted, the newest 10,000. Any thread may use it."""

    def __init__(self) -> None:
        self._is_counted: OrderedDict[Interrupt, bool] = OrderedDict()
        self._lock = Lock()

    def read(self, interrupts: Iterable[Interrupt]) -> None:
        """Learn of interrupts that were read: the process that stored them has counted them.

        This process still counts those that it stores at the moment, and those that it could not store.
        """
        with self._lock:
            for each in interrupts:
                self._meet(each, is_counted=True)

    def storing(self, interrupts: Iterable[Interrupt]) -> None:
        """Learn of interrupts before they are stored."""
        with self._lock:
            for each in interrupts:
                self._meet(each, is_counted=False)

    def stored(self, interrupt: Interrupt) -> bool:
        """Learn that an interrupt was stored, and return whether it has to be counted now."""
        with self._lock:
            was_counted, self._is_counted[interrupt] = self._is_counted.get(interrupt, False), True
            return not was_counted

    def _meet(self, interrupt: Interrupt, *, is_counted: bool) -> None:
        self._is_counted.setdefault(interrupt, is_counted)
        self._is_counted.move_to_end(interrupt)
        if len(self._is_counted) > _KNOWN:
            self._is_counted.popitem(last=False)
