"""Background work: a bug does not end it.

An unexpected exception in a task that nothing awaits would end the task silently. Until a restart of the
process, the journal would not be swept, or the higher tiers would not be tried. So each background task
passes unexpected exceptions to a `BackgroundTask`, pauses for as long as that says, and goes on.

A server that does not answer is no such exception: each task expects and handles that itself.
"""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from glasspoint.logs import get_logger
from glasspoint.telemetry.events import BackgroundTaskFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from glasspoint.model.generics import ItemT, ResultT
    from glasspoint.telemetry.events import TaskName, Telemetry

__all__ = ["BackgroundTask", "for_each"]


_log = get_logger("glasspoint")

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 30.0

_FRAMES_NAMED = 3

_AT_ONCE = 16


class BackgroundTask:
    """The failures of one background task, and its pauses.

    Attributes:
        pause: Seconds until the next attempt; 0 while the task works.
    """

    def __init__(self, name: TaskName, telemetry: Telemetry | None, *, means: str) -> None:
        """Name the task.

        Args:
            name: The task's name in the log and in metrics.
            telemetry: Receives an event for each failure; if `None`, failures are only logged.
            means: What users lose while the task fails, as a sentence for the log.
        """
        self.pause = 0.0
        self._name = name
        self._telemetry = telemetry
        self._means = means
        self._logged: set[tuple[str, str]] = set()

    def failed(self, error: Exception) -> float:
        """Count an unexpected exception, and log it if it is the first of its kind.

        Only the error's class and the place where it was raised are logged: its text may quote a value.

        Returns:
            Seconds to pause before the next attempt: longer each time, until `worked` is called.
        """
        self.pause = min(max(_FIRST_PAUSE_SECONDS, 2 * self.pause), _LONGEST_PAUSE_SECONDS)
        if self._telemetry is not None:
            self._telemetry.emit(BackgroundTaskFailed(self._name, error))
        kind = (type(error).__qualname__, _places(error))
        if kind not in self._logged:
            self._logged.add(kind)
            _log.error(
                "The background task %s met an error that nobody foresaw (%s, at %s). %s It goes on after a "
                "pause; errors of this kind are only counted from now on. Please report a bug.",
                self._name,
                *kind,
                self._means,
            )
        return self.pause

    def worked(self) -> None:
        """Record that an attempt succeeded, so that the pause after the next failure is short again."""
        self.pause = 0.0


async def for_each(items: Sequence[ItemT], step: Callable[[ItemT], Awaitable[ResultT]]) -> list[ResultT]:
    """Run a step for every item, a few at a time, and return the results in the order of the items.

    Args:
        items: The items.
        step: Awaited with each item.

    Raises:
        Exception: The first error of a step. The steps that ran at the same time have ended by then.
    """
    results: list[ResultT] = []
    for start in range(0, len(items), _AT_ONCE):
        some = map(step, items[start : start + _AT_ONCE])
        for result in await asyncio.gather(*some, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            results.append(result)
    return results


def _places(error: Exception) -> str:
    """Name where an exception was raised, innermost first, as `file:line`."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES_NAMED:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames)) or "?"
