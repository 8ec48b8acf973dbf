"""A timeout for an answer of Redis that tells a silent Redis from an event loop that was busy elsewhere.

A loop that was blocked for longer than a timeout (by a long computation, or by sixty callers that each decode
a large state) finds two things at once when it goes on: the answer, which came long ago, and the timer, which
is up. `asyncio.timeout` lets the timer win, and Redis would be given up for what this process did.

So the time is taken in beats, each begun when the one before has been noticed: however late that is, a beat
counts as one. Between any two of them the loop looks at its sockets, and wakes whoever has an answer.
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
    """Cancel what runs in this block after so many seconds in which the event loop ran.

    On a loop that is never blocked it does what `asyncio.timeout` does, and costs less. Each time that the
    loop is blocked for longer than a tenth of the time, a tenth of it counts. So the block ends, whether or
    not Redis ever answers, after the time itself and twenty rounds of the loop at the latest (with
    `once_more`, twice that). A cancellation by somebody else stays one.

    Args:
        seconds: The time.
        once_more: Asked when it is up: whether to wait as long again. Not asked a second time.

    Raises:
        TimeoutError: The time is up.
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
            # redis-py sends with `asyncio.wait_for`. Before Python 3.12, that forgets a cancellation which
            # comes as the wait is over.
            if kind is None and self._task.cancelling() > self._cancelling:
                raise asyncio.CancelledError
            return
        # What is left after ours was somebody else's cancellation.
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
