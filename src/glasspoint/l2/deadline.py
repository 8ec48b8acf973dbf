"""Deadlines for statements of psycopg, which hold even if the server is frozen.

Open this file when a call takes longer than its timeout.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from glasspoint.errors import L2DeadlineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

__all__ = ["answered_within", "explained", "give_up", "is_late", "within"]

_GRACE_SECONDS = 0.5

# The message of a cancellation by `within`.
_LATE = "the time is up"


class within:
    """Cancel the block after so many seconds, and once more half a second later.

    A cancelled statement asks the server to end it, and waits for the reply. This takes up to ten seconds if
    the server is frozen, or if a firewall drops all packets. After the second cancellation, psycopg closes
    the connection and returns at once.

    Otherwise this works like `asyncio.timeout`. Two nested timeouts would do the same at twice the cost.

    Raises:
        TimeoutError: The time is up.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._cancels = 0

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._cancel)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._cancels:
            return
        for _ in range(self._cancels):
            left = self._task.uncancel()
        # A cancellation that is left now came from elsewhere: this is no timeout.
        if left <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _cancel(self) -> None:
        self._cancels += 1
        self._task.cancel(_LATE)
        if self._cancels == 1:
            self._timer = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._cancel)


def is_late(error: BaseException) -> bool:
    """Tell whether an error is the cancellation by `within`, at the end of its time."""
    return isinstance(error, asyncio.CancelledError) and error.args == (_LATE,)


def explained(error: BaseException | None, text: str) -> str:
    """Return the text of an error, after what was noted on its causes (`BaseException.add_note`).

    A note says what a caller waited for when its time was up: the reason comes before the deadline.
    """
    notes: list[str] = []
    while error is not None:
        notes = [*getattr(error, "__notes__", ()), *notes]
        error = error.__cause__
    return " ".join([*notes, text])


def give_up(task: asyncio.Task[Any]) -> None:
    """Cancel a task that nobody waits for any more, and repeat it every half second until the task has ended.

    `within` says why one cancellation is not enough.
    """
    if not task.done():
        task.cancel()
        asyncio.get_running_loop().call_later(_GRACE_SECONDS, give_up, task)


@asynccontextmanager
async def answered_within(seconds: float, otherwise: str) -> AsyncIterator[None]:
    """Do as `within` does, but raise an error of ours.

    Raises:
        L2DeadlineError: The time is up. Its text is `otherwise`, after what was waited for, if that is known.
    """
    try:
        async with within(seconds):
            yield
    except TimeoutError as exc:
        if isinstance(exc, L2DeadlineError):
            raise
        raise L2DeadlineError(explained(exc, otherwise)) from exc
