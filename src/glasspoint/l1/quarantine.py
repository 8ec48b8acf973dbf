"""Quarantine: the scopes whose key Redis refuses, while it serves the others. State only, no I/O.

    enters     a step was refused for this key alone, and was not the sweeper's doing
    is in it   reads are answered by PostgreSQL; BEGIN leaves no intent, so that each write makes a row in the
               journal; nothing but the sweeper's DROP is sent to Redis
    leaves     a DROP was confirmed, in a sweep that began after the last write that Redis was not told of

It never ends by time alone: an image from before those writes may still stand under the key, and would be
read. Each process has its own quarantine. A new one enters the same scopes when it sweeps the journal for the
first time, before it reads anything from Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from glasspoint.errors import L1Error
from glasspoint.telemetry.events import Quarantined
from glasspoint.telemetry.logs import Throttle, get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from glasspoint.scope import Scope
    from glasspoint.telemetry.events import Telemetry

__all__ = ["OneKeyError", "Quarantine"]

_log = get_logger("glasspoint.l1")

# More than that, and it is not about single keys: then no scope is trusted.
_MOST = 10_000


class OneKeyError(L1Error):
    """Redis refuses the key of one scope; what is known of the others is as it was."""


@dataclass(slots=True)
class _Case:
    """A scope in quarantine.

    Attributes:
        doubts: How often a write was made meanwhile that Redis was not told of.
        tried_at: When its DROP was last sent.
    """

    doubts: int
    tried_at: float


class Quarantine:
    """The quarantined scopes of one process."""

    def __init__(self, telemetry: Telemetry, *, most: int = _MOST) -> None:
        """Args:
        telemetry: Receives an event for each scope that enters.
        most: The number of scopes from which on none more is taken in.
        """
        self._telemetry = telemetry
        self._most = most
        self._cases: dict[Scope, _Case] = {}
        self._doubts = 0  # never the same twice, also for a scope that leaves and enters again
        self._lines = Throttle()

    def __contains__(self, scope: object) -> bool:
        return scope in self._cases

    def __len__(self) -> int:
        return len(self._cases)

    def enter(self, scope: Scope, reason: str) -> bool:
        """Take a scope in.

        Args:
            reason: What Redis refuses, for the log.

        Returns:
            Whether it is in. `False`: there are too many already.
        """
        if len(self._cases) >= self._most:
            return False
        self._cases[scope] = _Case(self._next_doubt(), monotonic())
        self._telemetry.note(Quarantined(reason))
        self._say(scope, reason)
        return True

    def doubt(self, scope: Scope) -> bool:
        """Say that a write to a scope was made that Redis was not told of.

        Returns:
            Whether that concerns this scope alone, because it is in quarantine.
        """
        case = self._cases.get(scope)
        if case is None:
            return False
        case.doubts = self._next_doubt()
        return True

    def doubts(self) -> dict[Scope, int]:
        """Return what `release` must know, before the journal is looked at."""
        return {scope: case.doubts for scope, case in self._cases.items()}

    def longest_untried(self, scopes: Mapping[Scope, int]) -> list[Scope]:
        """Return those of these scopes that are still in it, the one first that was tried longest ago."""
        return sorted(self._cases.keys() & scopes.keys(), key=lambda scope: self._cases[scope].tried_at)

    def refused_again(self, scope: Scope, *, is_sweep: bool) -> None:
        """Say that a step on a scope that is in it was refused: the sweeper's DROP, or one sent before."""
        if is_sweep:
            self._cases[scope].tried_at = monotonic()
        else:
            self.doubt(scope)

    def release(self, scope: Scope, doubts: int) -> bool:
        """Let a scope go, whose DROP was confirmed.

        Args:
            doubts: Its doubts when the sweep began.

        Returns:
            Whether it is out. `False`: a write was made since then that Redis was not told of.
        """
        case = self._cases.get(scope)
        if case is not None and case.doubts != doubts:
            return False
        if self._cases.pop(scope, None) is not None and not self._cases:
            _log.info("Quarantine is over: L1 (Redis) has dropped the entries of all scopes that were in it.")
        return True

    def _next_doubt(self) -> int:
        self._doubts += 1
        return self._doubts

    def _say(self, scope: Scope, reason: str) -> None:
        # Not a line each: a key pattern that leaves out many threads would fill the disk.
        if not (since := self._lines.due()):
            return
        _log.warning(
            "Thread %r, namespace %r is in quarantine: L1 (Redis) refuses its key (%s). PostgreSQL answers "
            "for it, slower but complete, and its writes go into the journal, too. All others are cached as "
            "before, and this one is tried with each sweep. (%d entered since the last such line; at most "
            "one in %d s.)",
            *scope,
            reason,
            since,
            self._lines.seconds,
        )
