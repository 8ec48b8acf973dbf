"""The timeline: rare events of all savers in one list, so that one sees what followed what.

Events of every call are not rare, and cost only a look into a table here. Of an event that comes very often
(10,000 threads are drained), the lines of one second are one line with their sum, or how often it came.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from glasspoint.telemetry.events import (
    RETIRED,
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

__all__ = ["Kind", "Level", "Said", "Timeline", "line_of"]

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


_NOUN = re.compile(r"\{(\w+)\}")


class Said(NamedTuple):
    """A line. With an amount, its text has one noun in braces, which is counted: `{thread}`: 3 threads."""

    kind: Kind
    level: Level
    text: str
    amount: int | None = None


@dataclass(slots=True)
class _Line:
    number: int
    at: float
    kind: str
    level: str
    saver: str | None
    text: str
    amount: int | None = None
    times: int = 1

    def as_dict(self) -> dict[str, Any]:
        return {
            "at": round(self.at, 3),
            "kind": self.kind,
            "level": self.level,
            "saver": self.saver,
            "text": self.text if self.amount is None else _NOUN.sub(self._counted, self.text),
            "times": self.times if self.amount is None else 1,
        }

    def _counted(self, noun: re.Match[str]) -> str:
        return f"{self.amount:,} {noun[1]}{'' if self.amount == 1 else 's'}"


class Timeline:
    """The last lines. Any thread may add to it and read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[_Line] = deque(maxlen=LINES)
        self._last = 0
        self._read_to = 0

    def add(
        self, kind: str, level: str, text: str, amount: int | None = None, *, saver: str | None = None
    ) -> int:
        """Add a line, or count it with an equal one of the last second that no page has seen yet.

        Args:
            kind: Its kind.
            level: Its level.
            text: What happened.
            amount: How many: the text has a noun in braces then. Amounts of equal lines are added up.
            saver: The name of the saver.

        Returns:
            The number of the line.
        """
        now, text = time(), _bounded(text)
        with self._lock:
            for before in reversed(self._lines):
                if before.number <= self._read_to or now - before.at > _TOGETHER_SECONDS:
                    break
                if (before.kind, before.level, before.saver, before.text) == (kind, level, saver, text):
                    before.times += 1
                    before.amount = None if before.amount is None else before.amount + (amount or 0)
                    return before.number
            self._last += 1
            self._lines.append(_Line(self._last, now, kind, level, saver, text, amount))
            return self._last

    def complete(self, number: int, kind: str, level: str, text: str) -> None:
        """Say how something has ended that a line has said to begin.

        While no page has seen that line, the text replaces its text, and it keeps its place, before all that
        followed from it. Otherwise this is a line of its own.

        Args:
            number: What `add` has returned.
            kind: The kind, if it is a line of its own.
            level: The level.
            text: The text.
        """
        with self._lock:
            line = next((each for each in reversed(self._lines) if each.number == number), None)
            if line is not None and line.number > self._read_to and line.times == 1:
                line.level, line.text = level, _bounded(text)
                return
        self.add(kind, level, text)

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


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def line_of(event: Event) -> Said | None:
    """Return the line for an event. `None`: the event is not rare, or shown elsewhere.

    Example:
        >>> line_of(EpochChanged()).text
        'Redis is another server process than before: nothing older is believed'
    """
    tell = _LINES.get(type(event))
    return tell(event) if tell is not None else None


_BREAKER: Mapping[str, Said] = {
    "closed": Said("breaker", "good", "breaker closed: Redis is used again"),
    "open": Said("breaker", "warning", "breaker open: PostgreSQL answers instead"),
}
_DRAINED: Mapping[str, Said] = {
    "continued": Said("drain", "good", "{thread} drained: one history with what the tier above had", 1),
    "new": Said("drain", "good", "{thread} drained: new in the tier above", 1),
    "set_aside": Said(
        "drain", "warning", "{thread} set aside: the tier above has another history of the same name", 1
    ),
    "refused": Said("drain", "error", "{thread} refused: cannot be drained, see the log", 1),
    "lost": Said("drain", "error", "{thread} shorter: Redis has lost acknowledged writes, see the log", 1),
}
_IDENTITIES: Mapping[str, str] = {
    "database": "this is another PostgreSQL database than before",
    "timeline": "PostgreSQL was promoted, or recovered to an earlier moment",
    "crash": "PostgreSQL has crashed, and recovered",
    "restart": "PostgreSQL was restarted",
    "truncated": "a table of PostgreSQL was emptied, or the signing key renewed",
    "called_off": "the move of a slot of the Redis Cluster was called off",
    "generation": "PostgreSQL has noted which Redis is its cache now",
}
_FORKS: Mapping[str, str] = {
    "shadows": "it hides what another run has written",
    "shadowed": "it is hidden by what another run has written",
    "older_than_parent": "it is older than its parent, because a clock is behind",
}


def _breaker(event: BreakerChanged) -> Said | None:
    said = _BREAKER.get(event.state)
    if said is None:
        return None
    if event.reason == RETIRED:
        return said._replace(text="breaker closed: another master has the slots now")
    return said._replace(text=f"{said.text} ({event.reason})") if event.reason else said


def _tier(event: TierChanged) -> Said:
    level: Level = "good" if event.reason == "recovered" else "warning"
    reason = event.reason.replace("_", " ")
    return Said("tier", level, f"tier {event.from_tier} → {event.to_tier}: {reason}")


def _availability(event: L1Availability) -> Said:
    if event.available:
        return Said("breaker", "good", "Redis answers")
    return Said("breaker", "warning", f"Redis does not answer ({event.reason})")


def _fork(event: Forked) -> Said:
    stored = "" if event.is_stored else ", and was not stored"
    return Said("fork", "warning", f"a put forked its thread: {_FORKS[event.kind]}{stored}")


def _foreign(event: ForeignWrites) -> Said:
    return Said(
        "foreign_writes",
        "info",
        f"other software wrote to {event.table}: {event.scopes} scopes dropped from Redis",
    )


def _pruned(event: RetentionPruned) -> Said | None:
    if not (event.checkpoints or event.writes or event.blobs):
        return None
    return Said("retention", "info", f"retention removed {event.checkpoints} checkpoints")


def _retention(event: RetentionRan) -> Said:
    level: Level = "good" if event.result == "succeeded" else "warning"
    return Said("retention", level, f"a run of the retention {event.result}")


def _failed(event: BackgroundTaskFailed) -> Said:
    error = f" ({type(event.error).__name__})" if event.error is not None else ""
    return Said("saver", "error", f"the background task {event.task} failed{error}; it goes on")


def _audited(event: Audited) -> Said | None:
    return Said("saver", "error", "a hit was stale: see the runbook") if event.verdict == "stale" else None


def _invalidated(event: Invalidated) -> Said | None:
    if event.source != "tampered":
        return None
    return Said("saver", "warning", "an entry in Redis was not written by Glasspoint, and was dropped")


_LINES: Mapping[type, Callable[[Any], Said | None]] = {
    TierChanged: _tier,
    BreakerChanged: _breaker,
    L1Availability: _availability,
    EpochChanged: lambda event: Said(
        "epoch", "warning", "Redis is another server process than before: nothing older is believed"
    ),
    IdentityChanged: lambda event: Said(
        "identity",
        "warning",
        f"{_IDENTITIES.get(event.reason, event.reason)}: nothing that was cached before is believed",
    ),
    Drained: lambda event: Said(
        "drain", "good", f"{{checkpoint}} drained from {event.from_tier}", event.checkpoints
    ),
    ThreadDrained: lambda event: _DRAINED[event.result],
    Quarantined: lambda event: Said(
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
