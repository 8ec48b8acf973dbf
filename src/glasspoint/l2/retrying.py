"""Calls that are tried again: when, how often, and who is told."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from glasspoint.errors import GlasspointError, L2DeadlineError
from glasspoint.l2.faults import certainly_unchanged, classify
from glasspoint.telemetry.events import L2Retried
from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.telemetry.events import Telemetry

__all__ = ["Retries"]

_log = get_logger("glasspoint.l2")

_Answer = TypeVar("_Answer")

# Full jitter: many callers who lost their connections at once must not come back at once.
_BACK_OFF_SECONDS = 0.1
_LONGEST_BACK_OFF_SECONDS = 1.0

# After so long without a retry, the next one is news again, and logged.
_BURST_SECONDS = 10.0


class Retries:
    """Tries calls again that PostgreSQL, or the way to it, has failed; see `faults` for which."""

    def __init__(self, telemetry: Telemetry, *, seconds: float, can_reconnect: bool) -> None:
        """Args:
        telemetry: Who is told of every retry.
        seconds: No attempt begins later than this after the first.
        can_reconnect: Whether there is a pool, to give fresh connections.
        """
        self._telemetry = telemetry
        self._seconds = seconds
        self._can_reconnect = can_reconnect
        self._last: dict[str, float] = {}

    async def run(
        self,
        operation: str,
        call: Callable[[], Awaitable[_Answer]],
        *,
        failed: Callable[[Exception], object] = lambda exc: None,
        may_repeat: Callable[[], bool] = lambda: True,
        attempts: int | None = None,
    ) -> _Answer:
        """Call, and again, if that may help.

        Args:
            operation: What is done, for the metrics.
            failed: Told of each attempt that failed.
            may_repeat: Whether the one that failed just now may be repeated at all.
            attempts: So many at most, however long they take, instead of for so many seconds.

        Raises:
            L2DeadlineError: Others stood in the way until the time was up.
        """
        started = monotonic()
        in_doubt = False
        try:
            return await call()
        except Exception as exc:
            failed(exc)
            if not self._may_help(exc) or not may_repeat():
                raise
            in_doubt = not certainly_unchanged(exc)
            first: Exception | None = exc

        async def again() -> _Answer:
            nonlocal first, in_doubt
            if first is not None:
                error, first = first, None
                raise error
            try:
                return await call()
            except Exception as exc:
                failed(exc)
                in_doubt = in_doubt or not certainly_unchanged(exc)
                raise

        left = self._seconds - (monotonic() - started)
        try:
            return await AsyncRetrying(
                retry=retry_if_exception(lambda exc: self._may_help(exc) and may_repeat()),
                stop=stop_before_delay(left) if attempts is None else stop_after_attempt(attempts),
                wait=wait_random_exponential(multiplier=_BACK_OFF_SECONDS, max=_LONGEST_BACK_OFF_SECONDS),
                before_sleep=lambda state: self._tell(operation, state),
                reraise=True,
            )(again)
        except Exception as exc:
            if isinstance(exc, GlasspointError) or not self._may_help(exc):
                raise
            outcome = "Whether it was done is not known" if in_doubt else "Nothing was done"
            raise L2DeadlineError(
                f"{outcome}: others kept the rows locked, or stood in the way otherwise, at every attempt "
                f"({type(exc).__name__}). The call may be repeated."
            ) from exc

    def _may_help(self, error: BaseException) -> bool:
        fault = classify(error)
        return fault.reason is not None and (self._can_reconnect or not fault.fresh)

    def _tell(self, operation: str, state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        fault = classify(error)
        assert fault.reason is not None
        self._telemetry.note(L2Retried(operation, fault.reason))
        now = monotonic()
        in_burst = now - self._last.get(fault.reason, -_BURST_SECONDS) < _BURST_SECONDS
        self._last[fault.reason] = now
        _log.log(
            logging.DEBUG if in_burst else logging.WARNING,
            "L2 (PostgreSQL): %s (%s) during %s: it is tried again%s. Callers wait longer; nothing is lost. "
            "More of this kind is counted in glasspoint_l2_retries_total, and not logged.",
            fault.says,
            type(error.__cause__ or error).__name__,
            operation,
            ", on a fresh connection" if fault.fresh else "",
        )
