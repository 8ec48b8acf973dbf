"""A deadline that psycopg keeps, whatever state the server is in."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from glasspoint.errors import L2DeadlineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

__all__ = ["answered_within", "give_up", "within"]

_GRACE_SECONDS = 0.5


class within:
    """Cancel what runs in this block after so many seconds, and half a second later once more.

    A statement that is cancelled asks the server to end it, and waits for the answer: up to ten seconds when
    the server is frozen, or behind a firewall that swallows everything. The second time psycopg closes the
    connection and returns at once.

    Otherwise as `asyncio.timeout`, two of which would do the same at twice the cost.

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
        # What is left then was somebody else's cancellation.
        if left <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _cancel(self) -> None:
        self._cancels += 1
        self._task.cancel()
        if self._cancels == 1:
            self._timer = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._cancel)


def give_up(task: asyncio.Task[Any]) -> None:
    """Cancel a task that nobody waits for any more; and once more every half second, until it has ended.

    Why once is not enough: see `within`.
    """
    if not task.done():
        task.cancel()
        asyncio.get_running_loop().call_later(_GRACE_SECONDS, give_up, task)


@asynccontextmanager
async def answered_within(seconds: float, otherwise: str) -> AsyncIterator[None]:
    """As `within`, with an error of ours.

    Raises:
        L2DeadlineError: The time is up; `otherwise` is what it says.
    """
    try:
        async with within(seconds):
            yield
    except TimeoutError as exc:
        if isinstance(exc, L2DeadlineError):
            raise
        raise L2DeadlineError(otherwise) from exc
