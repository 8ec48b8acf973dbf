"""The timeline: rare events of all savers in one list, so that one sees what followed what.

Events of every call are not rare, and cost only a look into a table here. Of an event that comes very often
(10,000 threads are drained), the lines of one second are one line with a number.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from glasspoint.telemetry.events import (
    Audited,
    BackgroundTaskFailed,
    BreakerChanged,
    Drained,
    EpochChanged,
    ForeignWrites,
    Forked,
    IdentityChanged,
    Invalidated,
    L1Availability,
    Quarantined,
    RetentionPruned,
    RetentionRan,
    ThreadDrained,
    TierChanged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from glasspoint.telemetry.events import Event

__all__ = ["Kind", "Level", "Timeline", "line_of"]

Kind = Literal[
    "tier",
    "breaker",
    "epoch",
    "identity",
    "journal",
    "drain",
    "quarantine",
    "fork",
    "foreign_writes",
    "retention",
    "saver",
    "fault",
    "story",
]
Level = Literal["info", "good", "warning", "error"]

LINES = 500
"""The number of lines that are kept."""

_TOGETHER_SECONDS = 1.0
_LONGEST = 500


class _Said(NamedTuple):
    kind: Kind
    level: Level
    text: str


@dataclass(slots=True)
class _Line:
    number: int
    at: float
    kind: str
    level: str
    saver: str | None
    text: str
    times: int = 1

    def as_dict(self) -> dict[str, Any]:
        text = self.text if self.times == 1 else f"{self.text} ({self.times} times)"
        return {
            "at": round(self.at, 3),
            "kind": self.kind,
            "level": self.level,
            "saver": self.saver,
            "text": text,
        }


class Timeline:
    """The last lines. Any thread may add to it and read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[_Line] = deque(maxlen=LINES)
        self._last = 0
        self._read_to = 0

    def add(self, kind: str, level: str, text: str, *, saver: str | None = None) -> None:
        """Add a line, or count it with an equal one of the last second that no page has seen yet."""
        now, text = time(), text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        with self._lock:
            for before in reversed(self._lines):
                if before.number <= self._read_to or now - before.at > _TOGETHER_SECONDS:
                    break
                if (before.kind, before.level, before.saver, before.text) == (kind, level, saver, text):
                    before.times += 1
                    return
            self._last += 1
            self._lines.append(_Line(self._last, now, kind, level, saver, text))

    def since(self, number: int, *, at_most: int | None = None) -> tuple[list[dict[str, Any]], int]:
        """Return the lines after a number, and the number of the last one.

        Args:
            number: The number of the last line that the caller has; 0 if it has none.
            at_most: The number of the last line to return; by default the last of all.
        """
        with self._lock:
            last = self._last if at_most is None else at_most
            self._read_to = max(self._read_to, last)
            return [each.as_dict() for each in self._lines if number < each.number <= last], last

    def forget_the_parent(self) -> None:
        """In a child after a fork, begin anew: what the parent has seen did not happen here."""
        self._lock = threading.Lock()
        self._lines.clear()


def line_of(event: Event) -> tuple[Kind, Level, str] | None:
    """Return the line for an event: kind, level, text. `None`: the event is not rare, or shown elsewhere.

    Example:
        >>> line_of(EpochChanged())
        ('epoch', 'warning', 'Redis is another server process than before: nothing older is believed')
    """
    tell = _LINES.get(type(event))
    said = tell(event) if tell is not None else None
    return None if said is None else (said.kind, said.level, said.text)


_BREAKER: Mapping[str, _Said] = {
    "closed": _Said("breaker", "good", "breaker closed: Redis is used again"),
    "open": _Said("breaker", "warning", "breaker open: PostgreSQL answers alone"),
}
_DRAINED: Mapping[str, _Said] = {
    "continued": _Said("drain", "good", "thread drained: it continues what PostgreSQL had"),
    "new": _Said("drain", "good", "thread drained: it is new in PostgreSQL"),
    "set_aside": _Said("drain", "warning", "thread set aside: it does not continue what PostgreSQL had"),
    "refused": _Said("drain", "error", "thread refused: it cannot be drained"),
}
_FORKS: Mapping[str, str] = {
    "shadows": "it hides what another run has written",
    "shadowed": "it is hidden by what another run has written",
    "older_than_parent": "it is older than its parent, because a clock is behind",
}


def _breaker(event: BreakerChanged) -> _Said | None:
    said = _BREAKER.get(event.state)
    if said is None:
        return None
    return said._replace(text=f"{said.text} ({event.reason})") if event.reason else said


def _tier(event: TierChanged) -> _Said:
    level: Level = "good" if event.reason == "recovered" else "warning"
    reason = event.reason.replace("_", " ")
    return _Said("tier", level, f"tier {event.from_tier} → {event.to_tier}: {reason}")


def _availability(event: L1Availability) -> _Said:
    if event.available:
        return _Said("breaker", "good", "Redis answers")
    return _Said("breaker", "warning", f"Redis does not answer ({event.reason})")


def _fork(event: Forked) -> _Said:
    stored = "" if event.is_stored else ", and was not stored"
    return _Said("fork", "warning", f"a put forked its thread: {_FORKS[event.kind]}{stored}")


def _foreign(event: ForeignWrites) -> _Said:
    return _Said(
        "foreign_writes",
        "info",
        f"other software wrote to {event.table}: {event.scopes} scopes dropped from Redis",
    )


def _pruned(event: RetentionPruned) -> _Said | None:
    if not (event.checkpoints or event.writes or event.blobs):
        return None
    return _Said("retention", "info", f"retention removed {event.checkpoints} checkpoints")


def _retention(event: RetentionRan) -> _Said:
    level: Level = "good" if event.result == "succeeded" else "warning"
    return _Said("retention", level, f"a run of the retention {event.result}")


def _failed(event: BackgroundTaskFailed) -> _Said:
    error = f" ({type(event.error).__name__})" if event.error is not None else ""
    return _Said("saver", "error", f"the background task {event.task} failed{error}; it goes on")


def _audited(event: Audited) -> _Said | None:
    return _Said("saver", "error", "a hit was stale: see the runbook") if event.verdict == "stale" else None


def _invalidated(event: Invalidated) -> _Said | None:
    if event.source != "tampered":
        return None
    return _Said("saver", "warning", "an entry in Redis was not written by Glasspoint, and was dropped")


_LINES: Mapping[type, Callable[[Any], _Said | None]] = {
    TierChanged: _tier,
    BreakerChanged: _breaker,
    L1Availability: _availability,
    EpochChanged: lambda event: _Said(
        "epoch", "warning", "Redis is another server process than before: nothing older is believed"
    ),
    IdentityChanged: lambda event: _Said(
        "identity", "warning", f"PostgreSQL's identity changed ({event.reason}): nothing older is believed"
    ),
    Drained: lambda event: _Said(
        "drain", "good", f"{event.checkpoints} checkpoints drained from {event.from_tier}"
    ),
    ThreadDrained: lambda event: _DRAINED[event.result],
    Quarantined: lambda event: _Said(
        "quarantine", "warning", f"a scope is in quarantine: Redis refuses its key ({event.reason})"
    ),
    Forked: _fork,
    ForeignWrites: _foreign,
    RetentionPruned: _pruned,
    RetentionRan: _retention,
    BackgroundTaskFailed: _failed,
    Audited: _audited,
    Invalidated: _invalidated,
}
