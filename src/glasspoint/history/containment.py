"""PostgreSQL's operator `@>` for jsonb, which LangGraph's argument `filter` stands for. Pure, no I/O."""

from __future__ import annotations

from typing import Any

__all__ = ["contains"]


def contains(whole: Any, part: Any) -> bool:
    """Tell whether one JSON value contains another, as `whole::jsonb @> part::jsonb` does, inside objects.

    An object is contained if the other one has each of its keys, with a value that contains its value. An
    array is contained if each of its elements is contained in some element of the other one. `true` is not a
    number; `1` and `1.0` are the same.

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
