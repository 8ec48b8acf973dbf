"""Keeps the background work of savers out of traces: sweeps, audits, probes, the opening, and the like.

Nobody waits for such work, so its spans would each be a trace of its own: more than half of the traces of a
small conversation. If it fails, `tracing` records that.
"""

from __future__ import annotations

import contextvars
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["is_quiet", "quiet", "quiet_context", "without_instrumentations"]


def quiet_context() -> contextvars.Context:
    """Return an empty context in which neither savers nor instrumentations record spans, for a task."""
    empty = contextvars.Context()
    empty.run(context.attach, without_instrumentations(Context()))
    return empty


@contextmanager
def quiet() -> Iterator[None]:
    """Record no spans in the block: it opens a saver, or looks whether its servers respond."""
    token = context.attach(without_instrumentations(context.get_current()))
    try:
        yield
    finally:
        context.detach(token)


def is_quiet() -> bool:
    """Whether this is such a context, or one in which the application has suppressed instrumentations."""
    return not is_instrumentation_enabled()


def without_instrumentations(given: Context) -> Context:
    """Return an OpenTelemetry context with the values of another one, instrumentations suppressed."""
    return Context({**given, **_suppressing()})


@cache
def _suppressing() -> Mapping[str, Any]:
    """Return the values with which instrumentations are suppressed: the instrumentations own their names."""

    def found() -> Mapping[str, Any]:
        with suppress_instrumentation():
            return dict(context.get_current())

    return contextvars.Context().run(found)
