"""A deadline that psycopg keeps, whatever state the server is in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["within"]

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
