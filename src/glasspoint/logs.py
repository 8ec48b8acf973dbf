"""Log lines that lead to the trace they belong to.

A line that is written while a sampled span is the current one ends with `trace_id=…`, and its record has the
same as an attribute, for those who log JSON. Elsewhere lines are as they are.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["Throttle", "TracedLogger", "get_logger"]

_THROTTLE_SECONDS = 60.0


class TracedLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that names the trace, where there is one."""

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
    """At most one log line in so many seconds, for what may happen with every call.

    Attributes:
        seconds: The least time between two lines.
    """

    def __init__(self, seconds: float = _THROTTLE_SECONDS) -> None:
        """Take how often a line may be logged.

        Args:
            seconds: The least time between two lines.
        """
        self.seconds = seconds
        self._logged_at = float("-inf")
        self._since = 0

    def due(self) -> int:
        """Say that there is something to log.

        Returns:
            How often that was so since the last line, this time counted; 0: log nothing.
        """
        self._since += 1
        now = monotonic()
        if now - self._logged_at < self.seconds:
            return 0
        since, self._since, self._logged_at = self._since, 0, now
        return since
