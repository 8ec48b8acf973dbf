"""The `traceparent` in a checkpoint's stored metadata: which turn wrote it. Pure, no OpenTelemetry.

If a call belongs to a sampled trace, the saver stores its traceparent with the caller's metadata, under a
reserved key. The saver removes that key from all that it returns, so callers see the same as with LangGraph's
own savers. The format is W3C Trace Context, version 00.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["KEY", "MAX_LENGTH", "Unusable", "Writer", "is_asked_for", "parse", "problem_of", "without"]

KEY = "glasspoint_traceparent"
"""The reserved key of the metadata. A caller's own value under this key is dropped."""

MAX_LENGTH = 55
"""The length of a traceparent in characters. A longer text is not parsed."""

Unusable = Literal["malformed", "too_long"]

_FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_SAMPLED = 0x01


class Writer(NamedTuple):
    """The span that a checkpoint was written in.

    Attributes:
        sampled: Whether the span was recorded. If not, a link to it would lead nowhere.
    """

    trace_id: int
    span_id: int
    sampled: bool


def without(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without the reserved key; the same object, if it does not hold the key."""
    if KEY not in metadata:
        return metadata
    return {key: value for key, value in metadata.items() if key != KEY}


def is_asked_for(filter: Mapping[str, Any] | None) -> bool:
    """Whether a filter names the reserved key. For callers, no checkpoint has this key."""
    return bool(filter) and KEY in (filter or {})


def parse(text: object) -> Writer | None:
    """Parse a stored traceparent; `None` if it cannot be used: see `problem_of`.

    Example:
        >>> parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").sampled
        True
        >>> parse("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01")
    """
    found = _matched(text)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    return Writer(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & _SAMPLED))


def problem_of(text: object) -> Unusable | None:
    """Return why a stored traceparent cannot be used, `None` if it can.

    Example:
        >>> problem_of("00-" + "f" * 1000)
        'too_long'
    """
    if isinstance(text, str) and len(text) > MAX_LENGTH:
        return "too_long"
    return None if _matched(text) is not None else "malformed"


def _matched(text: object) -> re.Match[str] | None:
    return _FORM.fullmatch(text) if isinstance(text, str) and len(text) <= MAX_LENGTH else None
