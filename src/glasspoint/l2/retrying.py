"""Repeats calls that failed for a passing reason.

Open this file when a call is repeated too often, or after the wrong pauses. `faults` says which are repeated.
"""

from __future__ import annotations

import asyncio
import logging
import random
from time import monotonic
from typing import TYPE_CHECKING

from glasspoint.errors import GlasspointError, L2DeadlineError
from glasspoint.l2.faults import certainly_unchanged, classify
from glasspoint.logs import get_logger
from glasspoint.telemetry.events import L2Retried

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.model.generics import ResultT
    from glasspoint.telemetry.events import Telemetry

__all__ = ["Retries"]

_log = get_logger("glasspoint.l2")

# Full jitter: many callers that lost their connections together must not come back together.
_BACK_OFF_SECONDS = 0.1
_LONGEST_BACK_OFF_SECONDS = 1.0
_DOUBLINGS_AT_MOST = 10

# A retry is logged as a warning if this long has passed without another one for the same reason.
_BURST_SECONDS = 10.0


class Retries:
    """Repeats calls that failed because of PostgreSQL or the connection to it."""

    def __init__(self, telemetry: Telemetry, *, seconds: float, can_reconnect: bool) -> None:
        """Keep the settings that all calls share.

        Args:
            telemetry: Receives an event for each retry.
            seconds: No attempt begins later than this after the first one.
            can_reconnect: Whether a pool exists that gives fresh connections.
        """
        self._telemetry = telemetry
        self._seconds = seconds
        self._can_reconnect = can_reconnect
        self._last: dict[str, float] = {}

    async def run(
        self,
        operation: str,
        call: Callable[[], Awaitable[ResultT]],
        *,
        failed: Callable[[Exception], object] = lambda exc: None,
        may_repeat: Callable[[], bool] = lambda: True,
        attempts: int | None = None,
    ) -> ResultT:
        """Await `call()`, and repeat it while that may help.

        Args:
            operation: The name of the operation, for the metrics.
            call: The call; it must be safe to repeat.
            failed: Called with the error of each failed attempt.
            may_repeat: Returns whether the attempt that has just failed may be repeated at all.
            attempts: The most attempts, however long they take. `None`: as many as fit into `seconds`.

        Returns:
            The result of the first attempt that succeeded.

        Raises:
            L2DeadlineError: Other transactions were in the way at every attempt.
            Exception: The error of the last attempt, if repeating it would not help.
        """
        deadline = monotonic() + self._seconds
        attempt, in_doubt = 1, False
        while True:
            try:
                return await call()
            except Exception as exc:
                failed(exc)
                in_doubt = in_doubt or not certainly_unchanged(exc)
                if not self._may_help(exc) or not may_repeat():
                    raise
                pause = _pause_after(attempt)
                is_last = monotonic() + pause >= deadline if attempts is None else attempt >= attempts
                if is_last:
                    if isinstance(exc, GlasspointError):
                        raise
                    raise _gave_up(exc, in_doubt=in_doubt) from exc
                self._tell(operation, exc)
            await asyncio.sleep(pause)
            attempt += 1

    def _may_help(self, error: BaseException) -> bool:
        fault = classify(error)
        return fault.reason is not None and (self._can_reconnect or not fault.fresh)

    def _tell(self, operation: str, error: Exception) -> None:
        fault = classify(error)
        assert fault.reason is not None
        self._telemetry.emit(L2Retried(operation, fault.reason))
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


def _pause_after(attempt: int) -> float:
    """Return how many seconds to wait after an attempt: drawn at random below a bound that doubles."""
    bound = _BACK_OFF_SECONDS * 2 ** min(attempt - 1, _DOUBLINGS_AT_MOST)
    return random.uniform(0, min(bound, _LONGEST_BACK_OFF_SECONDS))


def _gave_up(error: Exception, *, in_doubt: bool) -> L2DeadlineError:
    outcome = "Whether it was done is not known" if in_doubt else "Nothing was done"
    return L2DeadlineError(
        f"{outcome}: others kept the rows locked, or stood in the way otherwise, at every attempt "
        f"({type(error).__name__}). The call may be repeated."
    )
