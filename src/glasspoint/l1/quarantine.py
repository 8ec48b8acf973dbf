"""Quarantine: the scopes whose key Redis refuses, while it serves others. State only, no I/O.

    a scope enters     when Redis refuses a step for its key alone
    while it is in     PostgreSQL answers its reads. BEGIN leaves no intent, so each write adds a row to the
                       journal. Only the sweeper's DROP is sent to Redis.
    a scope leaves     when a DROP succeeds that was sent after the last write that Redis did not receive

Time alone never ends quarantine: an image from before those writes may still stand under the key, and would
be read. Each process has its own quarantine. A new process puts the same scopes into quarantine in its first
sweep of the journal, before it reads an entry from Redis.
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

# With more scopes, the fault is not one of single keys: then no scope is trusted.
_MOST = 10_000


class OneKeyError(L1Error):
    """Redis refuses the key of one scope. Other scopes are not concerned."""


@dataclass(slots=True)
class _Case:
    """A scope in quarantine. Moments are those of `Quarantine.now`.

    Attributes:
        suspected_at: The moment of the last write that Redis did not receive.
        tried: The moment when its DROP was last refused.
    """

    suspected_at: int
    tried: int


class Quarantine:
    """The quarantined scopes of one process."""

    def __init__(self, telemetry: Telemetry, *, most: int = _MOST) -> None:
        """Begin without any scope.

        Args:
            telemetry: Receives an event for each scope that enters.
            most: The maximum number of scopes.
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
        """Put a scope into quarantine.

        Args:
            reason: The fault, for the log.

        Returns:
            Whether the scope is in quarantine. `False`: quarantine is full.
        """
        if len(self._cases) >= self._most:
            return False
        self._cases[scope] = _Case(self.now(), self.now())
        self._telemetry.emit(Quarantined(reason))
        self._say(scope, reason)
        return True

    def suspect(self, scope: Scope) -> bool:
        """Record a write to a scope that Redis did not receive.

        Returns:
            Whether the scope is in quarantine, so that no other scope is concerned.
        """
        case = self._cases.get(scope)
        if case is None:
            return False
        case.suspected_at = self.now()
        return True

    def now(self) -> int:
        """Return a moment later than all before. Moments are counted, not timed."""
        self._now += 1
        return self._now

    def longest_untried(self) -> list[Scope]:
        """Return all scopes, in the order of their last refused DROP, oldest first."""
        return sorted(self._cases, key=lambda scope: self._cases[scope].tried)

    def refused_again(self, scope: Scope, *, is_sweep: bool) -> None:
        """Record another refused step of a scope in quarantine.

        Args:
            is_sweep: Whether the step was the sweeper's DROP; otherwise it was sent before the scope entered.
        """
        if is_sweep:
            self._cases[scope].tried = self.now()
        else:
            self.suspect(scope)

    def release(self, scope: Scope, dropped: int) -> bool:
        """Release a scope whose DROP has succeeded.

        Args:
            dropped: A moment before the DROP was sent.

        Returns:
            Whether the scope is released. `False`: Redis did not receive a write that was made since then.
        """
        case = self._cases.get(scope)
        if case is not None and case.suspected_at > dropped:
            return False
        if self._cases.pop(scope, None) is not None and not self._cases:
            _log.info("Quarantine is over: L1 (Redis) has dropped the entries of all scopes that were in it.")
        return True

    def _say(self, scope: Scope, reason: str) -> None:
        # Not a line for each scope: an ACL key pattern may exclude many threads, and fill the disk.
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
