"""A timeout for Redis that does not blame Redis when this process's event loop was blocked.

A long computation may block the event loop for longer than a timeout. So may sixty callers that each decode a
large state. When the loop runs again, two events are due: the result of Redis, which arrived long ago, and
the timer. With `asyncio.timeout` the timer wins. Redis would be given up, although this process was slow.

So the timeout is divided into ten beats. The timer of a beat starts when the loop has noticed the end of the
beat before. However late that is, one beat is counted. Between two beats the loop reads its sockets, and
wakes the tasks that have a result.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["answered_within"]

_BEATS = 10


class answered_within:
    """Cancel the code in this block after the timeout, not counting the time in which the loop was blocked.

    On a loop that is never blocked, this does the same as `asyncio.timeout`, and costs less. If the loop is
    blocked for longer than a tenth of the timeout, only a tenth counts. So the block always ends, even if
    Redis never responds: after the timeout and twenty rounds of the loop at the latest (with `once_more`,
    twice that). A cancellation from elsewhere stays a cancellation.

    Args:
        seconds: The timeout.
        once_more: Called when the timeout is over; returns whether to wait for the same time again. It is
            called only once.

    Raises:
        TimeoutError: The timeout is over.
    """

    __slots__ = ("_beat", "_beats", "_cancelling", "_is_up", "_loop", "_once_more", "_task", "_timer")

    def __init__(self, seconds: float, once_more: Callable[[], bool] | None = None) -> None:
        self._beat = seconds / _BEATS
        self._once_more = once_more

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._is_up = False
        self._beats = _BEATS
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._beat, self._tick)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._is_up:
            # redis-py sends with `asyncio.wait_for`. Before Python 3.12, it loses a cancellation that arrives
            # at the end of the wait.
            if kind is None and self._task.cancelling() > self._cancelling:
                raise asyncio.CancelledError
            return
        # Any cancellation that remains after ours came from elsewhere, and is not turned into a timeout.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _tick(self) -> None:
        self._beats -= 1
        if not self._beats and self._once_more is not None and self._once_more():
            self._beats, self._once_more = _BEATS, None
        if self._beats:
            self._timer = self._loop.call_later(self._beat, self._tick)
        else:
            self._is_up = True
            self._task.cancel()
