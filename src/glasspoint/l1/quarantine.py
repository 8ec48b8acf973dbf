"""Quarantine: the scopes whose key Redis refuses, while it serves the others. State only, no I/O.

    enters     a step was refused for this key alone, and was not the sweeper's doing
    is in it   reads are answered by PostgreSQL; BEGIN leaves no intent, so that each write makes a row in the
               journal; nothing but the sweeper's DROP is sent to Redis
    leaves     a DROP was confirmed that was sent after the last write that Redis was not told of

It never ends by time alone: an image from before those writes may still stand under the key, and would be
read. Each process has its own quarantine. A new one enters the same scopes when it sweeps the journal for the
first time, before it reads anything from Redis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glasspoint.errors import L1Error
from glasspoint.logs import Throttle, get_logger
from glasspoint.telemetry.events import Quarantined

if TYPE_CHECKING:
    from glasspoint.model.scope import Scope
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
        doubt: When the last write was made that Redis was not told of.
        tried: When its DROP was last refused.
    """

    doubt: int
    tried: int


class Quarantine:
    """The quarantined scopes of one process."""

    def __init__(self, telemetry: Telemetry, *, most: int = _MOST) -> None:
        """Begin without any scope.

        Args:
            telemetry: Receives an event for each scope that enters.
            most: The number of scopes from which on none more is taken in.
        """
        self._telemetry = telemetry
        self._most = most
        self._cases: dict[Scope, _Case] = {}
        self._now = 0
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
        self._cases[scope] = _Case(self.now(), self.now())
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
        case.doubt = self.now()
        return True

    def now(self) -> int:
        """Return a moment, later than any before: what happens here is counted, not timed."""
        self._now += 1
        return self._now

    def longest_untried(self) -> list[Scope]:
        """Return all scopes, the one first whose DROP was refused longest ago."""
        return sorted(self._cases, key=lambda scope: self._cases[scope].tried)

    def refused_again(self, scope: Scope, *, is_sweep: bool) -> None:
        """Say that a step on a scope that is in it was refused: the sweeper's DROP, or one sent before."""
        if is_sweep:
            self._cases[scope].tried = self.now()
        else:
            self.doubt(scope)

    def release(self, scope: Scope, dropped: int) -> bool:
        """Let a scope go, whose DROP was confirmed.

        Args:
            dropped: A moment before the DROP was sent.

        Returns:
            Whether it is out. `False`: a write was made since then that Redis was not told of.
        """
        case = self._cases.get(scope)
        if case is not None and case.doubt > dropped:
            return False
        if self._cases.pop(scope, None) is not None and not self._cases:
            _log.info("Quarantine is over: L1 (Redis) has dropped the entries of all scopes that were in it.")
        return True

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
