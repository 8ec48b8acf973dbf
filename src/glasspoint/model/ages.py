"""Ages as people write them, such as `30d`."""

from __future__ import annotations

import re
from datetime import timedelta

__all__ = ["HOW_TO_WRITE_AN_AGE", "age_as_text", "parse_age"]

HOW_TO_WRITE_AN_AGE = "write a number greater than 0 and a unit: 90m, 12h, 30d, 2w"

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_age(text: str) -> timedelta | None:
    """Return the length of an age, `None` if the text is not an age.

    Example:
        >>> parse_age("30d")
        datetime.timedelta(days=30)
    """
    found = re.fullmatch(r"(\d{1,9})([mhdw])", text.strip(), re.ASCII)
    if found is None or int(found[1]) == 0:
        return None
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        return timedelta.max


def age_as_text(age: timedelta) -> str:
    """Return an age as the settings write it, as a whole number of the largest unit possible.

    Weeks are not used, because most people write `30d`. An age that is no multiple of a minute is in seconds.

    Example:
        >>> age_as_text(timedelta(hours=1)), age_as_text(timedelta(days=30))
        ('1h', '30d')
    """
    for unit in ("d", "h", "m"):
        count, rest = divmod(age, timedelta(**{_UNITS[unit]: 1}))
        if count and not rest:
            return f"{count}{unit}"
    return f"{age.total_seconds():.15g}s"
