"""Loggers: a line carries the id of its trace, is limited in its rate, or is kept for a command to print.

If a sampled span is current, a line ends with `trace_id=…`, and its record has an attribute `trace_id`, for
JSON logs. Otherwise the line is unchanged.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping

__all__ = ["Throttle", "TracedLogger", "get_logger", "kept_warnings"]

_THROTTLE_SECONDS = 60.0

# LangChain warns when a run is cancelled before its tracer knew of it: Ctrl-C does that.
_SAVER_LOGGERS = ("glasspoint", "psycopg", "langchain_core")


class TracedLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that adds the id of the current trace, if a trace is sampled."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the trace id to a line that is about to be written."""
        context = trace.get_current_span().get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return msg, kwargs
        trace_id = trace.format_trace_id(context.trace_id)
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "trace_id": trace_id}
        return f"{msg} trace_id={trace_id}", kwargs


def get_logger(name: str) -> TracedLogger:
    """Return the logger of that name.

    Example:
        >>> get_logger("glasspoint").name
        'glasspoint'
    """
    return TracedLogger(logging.getLogger(name))


class Throttle:
    """Limits how often a line is logged, for what may happen with every call.

    Attributes:
        seconds: The minimum time between two lines.
    """

    def __init__(self, seconds: float = _THROTTLE_SECONDS) -> None:
        """Set how often a line may be logged.

        Args:
            seconds: The minimum time between two lines.
        """
        self.seconds = seconds
        self._logged_at = float("-inf")
        self._since = 0

    def due(self) -> int:
        """Count one occasion to log, and return whether to log it.

        Returns:
            0: log nothing. Otherwise the number of occasions since the last line, including this one.
        """
        self._since += 1
        now = monotonic()
        if now - self._logged_at < self.seconds:
            return 0
        since, self._since, self._logged_at = self._since, 0, now
        return since


class _Keeper(logging.Handler):
    def __init__(self, kept: deque[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())  # libpq's messages have several lines
        self._kept.append(f"{record.levelname} {record.name}: {message}")


@contextmanager
def kept_warnings(*, capacity: int, of: Iterable[str] = _SAVER_LOGGERS) -> Iterator[deque[str]]:
    """Keep the newest log lines at WARNING and above instead of printing them, until the block ends.

    Args:
        capacity: How many lines are kept.
        of: The names of the loggers; by default those of the saver, its pool and LangChain.
    """
    kept: deque[str] = deque(maxlen=capacity)
    keeper = _Keeper(kept)
    loggers = [(logger, logger.propagate) for logger in map(logging.getLogger, of)]
    for logger, _ in loggers:
        logger.addHandler(keeper)
        logger.propagate = False
    try:
        yield kept
    finally:
        for logger, propagate in loggers:
            logger.removeHandler(keeper)
            logger.propagate = propagate
