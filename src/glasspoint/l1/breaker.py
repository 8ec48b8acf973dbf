"""The breaker: decides whether Redis is asked at all. A state machine without knowledge of Redis.

                 failures in a row               the delay is over, one probe goes out
        closed --------------------------> open ----------------------------------------> half_open
           ^                                ^                                              |    |
           |                                +------------- the probe failed ---------------+    |
           +------------------------------------------------ it succeeded ----------------------+

A breaker whose master has left the cluster is closed, too: `Breaker.retire`.

While the breaker is not closed, a step fails at once, without a request to Redis. Otherwise each call would
wait for the timeouts of a Redis that hangs. A probe does what a write does (`Cache.probe`), so a full Redis,
or a replica that takes no writes, does not pass it.
"""

from __future__ import annotations

import random
from time import monotonic
from typing import TYPE_CHECKING

from glasspoint.telemetry.events import RETIRED

if TYPE_CHECKING:
    from collections.abc import Callable

    from glasspoint.telemetry.events import BreakerState

__all__ = ["Breaker"]


class Breaker:
    """Opens after some failures in a row, then allows one probe at a time until a probe succeeds."""

    def __init__(
        self,
        *,
        failures: int = 3,
        delay_seconds: float = 0.25,
        max_delay_seconds: float = 2.0,
        clock: Callable[[], float] = monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),
        changed: Callable[[BreakerState, BreakerState, str], None] = lambda state, previous, reason: None,
    ) -> None:
        """Begin closed.

        Args:
            failures: The number of failures in a row that opens the breaker.
            delay_seconds: The delay before the first probe. It is multiplied by `jitter`, so that many
                processes do not probe at once. It doubles after each failed probe, and when the breaker opens
                again before a step has succeeded.
            max_delay_seconds: The maximum of that delay.
            clock: Returns the time in seconds. Only differences matter.
            jitter: Returns a factor for each delay, between 0 and 1.
            changed: Called after each transition with the new state, the state before, and the reason.
        """
        self._limit = failures
        self._first_delay = delay_seconds
        self._max_delay = max_delay_seconds
        self._clock = clock
        self._jitter = jitter
        self._changed = changed
        self.state: BreakerState = "closed"
        self._failures = 0
        self._delay = delay_seconds
        self._probe_at = 0.0
        self._is_retired = False

    @property
    def is_closed(self) -> bool:
        """Whether steps may go to Redis."""
        return self.state == "closed"

    @property
    def seconds_to_probe(self) -> float:
        """The time until a probe may be sent; 0 if it may be sent now, or if the breaker is not open."""
        return max(0.0, self._probe_at - self._clock()) if self.state == "open" else 0.0

    def failed(self, reason: str) -> None:
        """Count a failed step. A late failure, of a step sent before the breaker opened, does not count."""
        if self.state == "closed" and not self._is_retired:
            self._failures += 1
            if self._failures >= self._limit:
                self._open(reason)

    def succeeded(self) -> None:
        """Count a successful step. It does not close an open breaker; only a probe does."""
        if self.state == "closed":
            self._failures, self._delay = 0, self._first_delay

    def trip(self, reason: str) -> None:
        """Open at once, because a single failure of this kind is enough."""
        if self.state == "closed" and not self._is_retired:
            self._open(reason)

    def retire(self) -> None:
        """Close for ever, because nothing is asked any more: the master of a cluster has no slots now.

        A late failure, of a step that was sent before, does not open it.
        """
        self._is_retired = True
        if self.state != "closed":
            self._to("closed", RETIRED)

    def begin_probe(self) -> bool:
        """Return whether the caller must probe now. After the probe, the caller calls `end_probe`."""
        if self.state != "open" or self._clock() < self._probe_at:
            return False
        self._to("half_open", "probe")
        return True

    def end_probe(self, *, succeeded: bool, reason: str = "") -> None:
        """Record the result of the probe."""
        if self.state != "half_open":
            return
        if succeeded:
            self._failures = 0
            self._to("closed", "recovered")
        else:
            self._open(reason)

    def _open(self, reason: str) -> None:
        self._probe_at = self._clock() + self._delay * self._jitter()
        self._delay = min(2 * self._delay, self._max_delay)
        self._to("open", reason)

    def _to(self, state: BreakerState, reason: str) -> None:
        previous, self.state = self.state, state
        self._changed(state, previous, reason)
