"""A password that nothing may show, and all that could show it."""

from __future__ import annotations

import traceback

# Two halves, so that a piece is found too; put together here, so that no source line in a traceback shows it.
PASSWORD = "".join(("hunt", "ing", "lod", "ges"))
HALVES = (PASSWORD[:7], PASSWORD[7:])


def shown(error: BaseException) -> str:
    """All that a log or a terminal can show of an error, its chain included."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)
