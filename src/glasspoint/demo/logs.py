"""Keeps the demo's log lines, to show them in their place instead of on stderr amid the picture."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["EXPORT_LOGGERS", "kept_warnings"]

EXPORT_LOGGERS = ("opentelemetry", "glasspoint.telemetry")
# LangChain warns if a run is cancelled before its tracer knows it, which Ctrl-C can do.
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
