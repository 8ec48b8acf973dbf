"""Log lines that lead to the trace they belong to.

A line that is written while a sampled span is the current one ends with `trace_id=…`, and its record has the
same as an attribute, for those who log JSON. Elsewhere lines are as they are.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["TracedLogger", "get_logger"]


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
