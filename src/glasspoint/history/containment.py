"""PostgreSQL's `@>` for jsonb, which LangGraph's `filter` means. Pure, no I/O."""

from __future__ import annotations

from typing import Any

__all__ = ["contains"]


def contains(whole: Any, part: Any) -> bool:
    """Tell whether one JSON value contains another, as `whole::jsonb @> part::jsonb` does, inside objects.

    Every key of an object must be there, and contain its value; every element of an array must be contained
    in some element. `true` is no number, `1` and `1.0` are the same.

    Example:
        >>> contains({"a": [1, {"b": 2, "c": 3}], "d": 4}, {"a": [{"b": 2.0}]})
        True
    """
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and contains(whole[k], v) for k, v in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(e, p) for e in whole) for p in part)
    if isinstance(part, bool) or isinstance(whole, bool) or part is None:
        return whole is part
    return type(whole) is not dict and type(whole) is not list and bool(whole == part)
