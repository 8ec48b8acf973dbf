"""Log lines of the demo: kept and shown where they belong, instead of running into the picture on stderr."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["EXPORT_LOGGERS", "kept_warnings"]

EXPORT_LOGGERS = ("opentelemetry", "glasspoint.telemetry")
# LangChain warns when a run is cancelled before its tracer knew of it: Ctrl-C does that.
_SAVER_LOGGERS = ("glasspoint", "psycopg", "langchain_core")


class _Keeper(logging.Handler):
    def __init__(self, kept: deque[str]) -> None:
        super().__init__(logging.WARNING)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())  # libpq's messages have several lines
        self._kept.append(f"{record.levelname} {record.name}: {message}")


@contextmanager
def kept_warnings(*, capacity: int, of: Iterable[str] = _SAVER_LOGGERS) -> Iterator[deque[str]]:
    """Collect what is logged at WARNING and above meanwhile, the newest `capacity` lines of it.

    Args:
        capacity: How many lines are kept.
        of: The loggers; by default those that the saver, its pool and LangChain speak through.
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
