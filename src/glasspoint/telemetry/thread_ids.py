"""How thread ids stand on spans: as they are, hashed, or not at all. They may name a person.

Hashed is SHA-256 without a key, its first 16 hexadecimal digits: whoever is asked about a thread can find its
traces (`printf %s ID | sha256sum | cut -c1-16`), in every service alike, and no key has to be kept and
handed around. It hides ids from those who look at traces; it does not hide one that can be guessed (a phone
number) from somebody who tries them all. For that there is `none`.
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
        ConfigurationError: There is no such way.
    """
    word: str = given if given is not None else os.environ.get(VARIABLE) or "plain"
    for known in get_args(ThreadIds):
        if word == known:
            return known  # type: ignore[no-any-return]
    name = "thread_ids" if given is not None else VARIABLE
    raise ConfigurationError(f"{name} is none of {', '.join(get_args(ThreadIds))}: choose one of them.")


def shown_as(way: ThreadIds) -> Callable[[str], str | None]:
    """Return what makes of a thread id what spans show; `None`: nothing is shown.

    Example:
        >>> shown_as("hashed")("42")
        '73475cb40a568e8d'
    """
    return {"plain": _plain, "hashed": _hashed, "none": _nothing}[way]


def _plain(thread_id: str) -> str | None:
    return thread_id


def _hashed(thread_id: str) -> str | None:
    # A lone surrogate is no UTF-8, and such an id is refused only later.
    return hashlib.sha256(thread_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _nothing(thread_id: str) -> str | None:
    return None
