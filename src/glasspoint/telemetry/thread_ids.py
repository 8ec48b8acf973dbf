"""How spans show thread ids, which may name a person: as they are, hashed, or not at all.

`hashed` shows the first 16 hexadecimal digits of SHA-256, without a key. So anybody who knows a thread id can
find its traces, in every service alike (`printf %s ID | sha256sum | cut -c1-16`), and there is no key to keep
and share. It hides ids from people who look at traces. It does not hide an id that can be guessed, such as a
phone number, from somebody who tries all of them: use `none` for those.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Literal, get_args

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VARIABLE", "ThreadIds", "choose", "shown_as"]

ThreadIds = Literal["plain", "hashed", "none"]

VARIABLE = "CHECKPOINT_TELEMETRY_THREAD_IDS"

_DIGITS = 16


def choose(given: ThreadIds | None) -> ThreadIds:
    """Return how thread ids are shown: as given, else as the environment says, else plain.

    Raises:
        ConfigurationError: The value is none of `ThreadIds`.
    """
    word: str = given if given is not None else os.environ.get(VARIABLE) or "plain"
    for known in get_args(ThreadIds):
        if word == known:
            return known  # type: ignore[no-any-return]
    name = "thread_ids" if given is not None else VARIABLE
    raise ConfigurationError(f"{name} is none of {', '.join(get_args(ThreadIds))}: choose one of them.")


def shown_as(way: ThreadIds) -> Callable[[str], str | None]:
    """Return a function from a thread id to the text that spans show, or to `None` if they show nothing.

    Example:
        >>> shown_as("hashed")("42")
        '73475cb40a568e8d'
    """
    ways: dict[ThreadIds, Callable[[str], str | None]]
    ways = {"plain": str, "hashed": _hashed, "none": lambda thread_id: None}
    return ways[way]


def _hashed(thread_id: str) -> str:
    # A lone surrogate cannot be encoded in UTF-8, and an id with one is refused only later.
    return hashlib.sha256(thread_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
