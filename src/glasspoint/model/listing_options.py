"""Checks the arguments of `alist` before a server is asked, so that all tiers refuse the same calls."""

from __future__ import annotations

import json
from typing import Any

from glasspoint.errors import ConfigurationError

__all__ = ["check_limit", "plain_filter"]


def plain_filter(given: dict[str, Any] | None) -> dict[str, Any]:
    """Return a filter as PostgreSQL sees it after parsing JSON: tuples are lists, and all keys are text.

    Args:
        given: The content that the metadata must have; `None` or `{}`: any.

    Raises:
        ConfigurationError: The filter is not a dict, cannot be written as JSON, or PostgreSQL cannot hold it.
    """
    if not given:
        return {}
    if not isinstance(given, dict):
        raise ConfigurationError(f"The filter is of the type {type(given).__name__}: pass a dict.")
    try:
        text = json.dumps(given, allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            "The filter holds a lone surrogate, which is not valid Unicode text: no metadata hold it."
        ) from None
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError(
            "The filter cannot be written as JSON: pass texts, numbers, booleans, lists and dicts, and of "
            "other values what the metadata hold, str(…) of a UUID for example."
        ) from None
    if "\\u0000" in text.replace("\\\\", ""):
        raise ConfigurationError(
            "The filter holds a NUL character, which PostgreSQL cannot store: no metadata do."
        )
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def check_limit(limit: int | None) -> None:
    """Refuse a negative limit.

    Raises:
        ConfigurationError: The limit is negative.
    """
    if limit is not None and limit < 0:
        raise ConfigurationError(f"limit is {limit}: it must not be negative.")
