"""Records single calls for the feed, while a page is open.

A call costs one append. It needs no lock, because the deques of Python are thread-safe. What does not fit is
overwritten, and counted: the newest calls of a batch are shown, and failed calls before others.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from operator import attrgetter
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.telemetry.events import Observer

if TYPE_CHECKING:
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Operation, Outcome, Telemetry

__all__ = ["BATCH", "Recorder"]

BATCH = 50
"""The number of calls that are shown at once."""

_LONGEST = 200


class _Facts(NamedTuple):
    """Attributes of `Operation`, under the same names."""

    name: str
    scope: Scope | None
    outcome: Outcome
    seconds: float
    l1_result: str | None
    l1_write: str | None
    served_by: str | None
    tier: str
    trace_id: str | None


_facts_of = attrgetter(*_Facts._fields)


class Recorder:
    """The calls since the last look."""

    def __init__(self) -> None:
        self._count = count(1)
        self._taken = 0
        self._calls: deque[tuple[int, float, _Calls, tuple[Any, ...], str | None]] = deque(maxlen=BATCH)
        self._failed: deque[tuple[int, float, _Calls, tuple[Any, ...], str | None]] = deque(maxlen=BATCH)

    def observer(self, telemetry: Telemetry) -> Observer:
        """Return an observer for one telemetry object."""
        return _Calls(self, telemetry)

    def add(self, calls: _Calls, operation: Operation) -> None:
        """Record a call that has ended. The operation is not kept: its error refers to frames."""
        error = operation.error
        if error is None:
            self._calls.append((next(self._count), time(), calls, _facts_of(operation), None))
        else:
            kind = type(error).__name__
            self._failed.append((next(self._count), time(), calls, _facts_of(operation), kind))

    def take(self) -> tuple[list[dict[str, Any]], int]:
        """Return the calls since the last look, newest last, and the number of those left out."""
        failed = [self._failed.popleft() for _ in range(len(self._failed))]
        found = [self._calls.popleft() for _ in range(len(self._calls))]
        room = max(0, BATCH - len(failed))
        kept = sorted([*failed, *(found[-room:] if room else ())])
        last = max((number for number, *_ in [*failed, *found]), default=self._taken)
        happened, self._taken = max(0, last - self._taken), max(last, self._taken)
        return [_as_dict(*each[1:]) for each in kept], max(0, happened - len(kept))


class _Calls(Observer):
    """Observes the calls of one saver."""

    def __init__(self, recorder: Recorder, telemetry: Telemetry) -> None:
        self._recorder = recorder
        self.saver = telemetry.saver_name
        self.shown = telemetry.show_thread

    def __lt__(self, other: object) -> bool:  # calls are sorted by their numbers, which all differ
        return False

    def operation_ended(self, operation: Operation) -> None:
        self._recorder.add(self, operation)


def _as_dict(at: float, calls: _Calls, facts: tuple[Any, ...], error: str | None) -> dict[str, Any]:
    call = _Facts._make(facts)
    scope = call.scope
    thread = calls.shown(scope.thread_id) if scope is not None else None
    return {
        "at": round(at, 3),
        "thread": _short(thread),
        "ns": _short(scope.checkpoint_ns) if scope is not None else "",
        "op": call.name,
        "result": call.l1_result or call.l1_write,
        "level": _level(call),
        "ms": round(1000 * call.seconds, 3),
        "outcome": call.outcome,
        "error": error,
        "saver": calls.saver,
        "trace_id": call.trace_id,
    }


def _level(call: _Facts) -> str | None:
    if call.served_by is not None:
        return call.served_by
    if call.outcome != "ok":
        return None
    return call.tier if call.tier != "cached" else "l2" if call.l1_write is not None else None


def _short(text: str | None) -> str | None:
    return text if text is None else text[:_LONGEST]  # as `spans` does, so that both name one conversation
