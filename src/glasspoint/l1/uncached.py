"""Reports why one scope is not cached, or not read from L1. State only, no I/O.

Open this file when a line of the log names one thread that PostgreSQL answers alone. Anybody who can write to
Redis, or stores a state that does not fit, could fill the disk with such lines. So each kind of line is
limited in its rate. (A scope whose key Redis refuses is in `quarantine`.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.logs import Throttle, get_logger
from glasspoint.telemetry.events import Invalidated

if TYPE_CHECKING:
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Telemetry

__all__ = ["UncachedReport"]

_log = get_logger("glasspoint.l1")


class UncachedReport:
    """The log lines of one cache about single scopes."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Begin without a line.

        Args:
            telemetry: Receives an event for each entry that was tampered with.
        """
        self._telemetry = telemetry
        self._tampered_lines = Throttle()
        self._unencodable_lines = Throttle()
        self._too_large_lines = Throttle()

    def tampered(self, scope: Scope, what: str) -> None:
        """Report an entry that somebody else has changed.

        Args:
            what: What is wrong with it.
        """
        self._telemetry.emit(Invalidated("tampered"))
        # Not a line for each event: otherwise anybody who can write to Redis could fill the disk.
        if not (since := self._tampered_lines.due()):
            return
        _log.warning(
            "An entry in L1 (Redis) was refused, of thread %r, namespace %r: %s. PostgreSQL answers, and the "
            "entry is replaced. Somebody who can write to this Redis changed it, unless another process has "
            "another l1_signing_key. (%d refused since the last such line; at most one in %d s.)",
            *scope,
            what,
            since,
            self._tampered_lines.seconds,
        )

    def cannot_encode(self, scope: Scope, exc: Exception) -> None:
        """Report a scope with a value that cannot be encoded for L1. L2 has it."""
        if since := self._unencodable_lines.due():
            _log.warning(
                "Thread %r, namespace %r is not cached in L1 (Redis): it cannot be encoded (%s). PostgreSQL "
                "has it. (%d since the last such line; at most one in %d s.)",
                *scope,
                type(exc).__name__,
                since,
                self._unencodable_lines.seconds,
            )

    def too_large(self, scope: Scope, size: int, *, timeout_seconds: float) -> None:
        """Report a step that is too large to be sent within the timeout.

        Args:
            size: The size of the step, in bytes.
            timeout_seconds: The timeout of a step.
        """
        if since := self._too_large_lines.due():
            _log.warning(
                "Thread %r, namespace %r is not cached in L1 (Redis) as it is now: its %.1f MB were not sent "
                "within %g s. PostgreSQL has them, and answers. Keep the state smaller, compress it "
                '(l1_compression="zstd"), or raise l1_timeout_seconds (CHECKPOINT_L1_TIMEOUT; a quarter of '
                "write_deadline_seconds at most). (%d since the last such line; at most one in %d s.)",
                *scope,
                size / 1e6,
                timeout_seconds,
                since,
                self._too_large_lines.seconds,
            )
