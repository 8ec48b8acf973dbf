"""Limits and words for reading `/metrics` of other processes: the live page and `glasspoint top` share them.

Open this file when one of the two shows another process as not answering, or to change what both say then.
The two ask with different clients: the page in a thread of its own with what Python has, the command with
httpx. All texts are predicates, to be said after the name of the process: "b does not answer: …".
"""

from __future__ import annotations

import os
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ACCEPTED",
    "LONGEST_BYTES",
    "NOT_OURS",
    "NO_METRICS",
    "NO_NEWS",
    "TOO_LONG",
    "is_late",
    "refused",
    "unreachable",
]

ACCEPTED = "text/plain; version=0.0.4"
"""What the requests accept: the text format that `figures.TextReader` reads."""

LONGEST_BYTES = 16_000_000
"""The bound of an answer. A process has about 50 kB of metrics for each of its savers, and those of other
software."""

NO_NEWS = "has not answered yet"
NO_METRICS = "answers, but with something that is no Prometheus metrics"
NOT_OURS = "answers, but shows no metrics of Glasspoint's"
TOO_LONG = f"answers with more than {LONGEST_BYTES // 1_000_000} MB"


def is_late(timeout_seconds: float) -> str:
    """Say that no answer came in time."""
    return f"does not answer within {timeout_seconds:g} s"


def refused(status: int) -> str:
    """Say that the answer had another status than 200.

    Example:
        >>> refused(404)
        'answers with the status 404 (Not Found)'
    """
    try:
        return f"answers with the status {status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return f"answers with the status {status}"


def unreachable(error: BaseException, *, foreign: bool = True) -> str:
    """Say why a connection failed: what the operating system says, if it says anything.

    Args:
        error: What was raised.
        foreign: Whether the text of an error that is not the system's may be shown. It may hold what the
            other process has sent.
    """
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno is not None:
            # The resolver's numbers are others; and asyncio puts words of its own before the system's.
            said = str(each.strerror if isinstance(each, socket.gaierror) else os.strerror(each.errno))
            return f"does not answer: {said[:1].lower()}{said[1:]}"
    return f"does not answer: {(str(error) if foreign else '') or type(error).__name__}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        reason = getattr(error, "reason", None)  # of urllib's
        if isinstance(reason, BaseException):
            error = reason
        elif isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = error.__cause__ or error.__context__
