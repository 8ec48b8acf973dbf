"""The breaker: whether Redis is asked at all. A state machine that knows nothing of Redis.

                 failures in a row               the delay is over, one probe goes out
        closed --------------------------> open ----------------------------------------> half_open
           ^                                ^                                              |    |
           |                                +------------- the probe failed ---------------+    |
           +------------------------------------------------ it succeeded ----------------------+

While it is not closed, a step costs nothing: it fails without a word to Redis. A Redis that hangs would
otherwise cost every call its timeout, several times. A probe does what a write does (`Cache.probe`), so that
a Redis which is full, or a replica that takes no writes, does not pass it.
"""

from __future__ import annotations

import random
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from glasspoint.telemetry.events import BreakerState

__all__ = ["Breaker"]


class Breaker:
    """Opens after some failures in a row, and lets one probe through at a time until one succeeds."""

    def __init__(
        self,
        *,
        failures: int = 3,
        delay_seconds: float = 0.25,
        max_delay_seconds: float = 2.0,
        clock: Callable[[], float] = monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),
        changed: Callable[[BreakerState, str], None] = lambda state, reason: None,
    ) -> None:
        """Begin closed.

        Args:
            failures: After so many in a row it opens.
            delay_seconds: Before the first probe; times `jitter`, so that many processes do not probe at
                once. Doubled after each probe that fails, and whenever it opens again before a step has
                succeeded.
            max_delay_seconds: But never more than this.
            clock: Seconds; only differences count.
            jitter: A factor for each delay, between 0 and 1.
            changed: Called with the new state, and why, after each transition.
        """
        self._limit = failures
        self._first_delay = delay_seconds
        self._max_delay = max_delay_seconds
        self._clock = clock
        self._jitter = jitter
        self._changed = changed
        self._state: BreakerState = "closed"
        self._failures = 0
        self._delay = delay_seconds
        self._probe_at = 0.0

    @property
    def state(self) -> BreakerState:
        """Where it stands."""
        return self._state

    @property
    def is_closed(self) -> bool:
        """Whether steps may go to Redis."""
        return self._state == "closed"

    @property
    def seconds_to_probe(self) -> float:
        """How long until a probe may go out; 0 when it may."""
        return max(0.0, self._probe_at - self._clock()) if self._state == "open" else 0.0

    def failed(self, reason: str) -> None:
        """A step got no answer, or a refusal. Stragglers that were sent before it opened change nothing."""
        if self._state == "closed":
            self._failures += 1
            if self._failures >= self._limit:
                self._open(reason)

    def succeeded(self) -> None:
        """A step got its answer. Only a probe closes what is open."""
        if self._state == "closed":
            self._failures, self._delay = 0, self._first_delay

    def trip(self, reason: str) -> None:
        """Open at once: this failure is evidence enough."""
        if self._state == "closed":
            self._open(reason)

    def begin_probe(self) -> bool:
        """Return whether the caller is to probe now; if so, it says how that ended by `end_probe`."""
        if self._state != "open" or self._clock() < self._probe_at:
            return False
        self._to("half_open", "probe")
        return True

    def end_probe(self, *, succeeded: bool, reason: str = "") -> None:
        """The probe is over."""
        if self._state != "half_open":
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
        self._state = state
        self._changed(state, reason)
