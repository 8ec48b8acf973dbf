"""Brings the calls of the live page, which come on other event loops, to the demo's own loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from glasspoint.errors import GlasspointError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["PageCalls"]

_Result = TypeVar("_Result")

_LONGEST_SECONDS = 90.0
_ENDS = "The demo ends."


class PageCalls:
    """Takes calls between `open` and `close`. They may come from any thread and any event loop.

    Attributes:
        refusal: What callers are told while no calls are taken; empty while they are.
    """

    def __init__(self, refusal: str) -> None:
        """Take no calls yet, and say why."""
        self.refusal = refusal
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Take calls from now on. They run on the running event loop."""
        self._loop, self.refusal = asyncio.get_running_loop(), ""

    def close(self) -> None:
        """Take no more calls. Those under way end with the loop's tasks."""
        self._loop, self.refusal = None, _ENDS

    async def run(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Run something on the demo's loop, and return its result.

        Raises:
            GlasspointError: No calls are taken now, or the demo ended before the work did.
        """
        loop = self._loop
        if loop is None:
            raise GlasspointError(self.refusal)
        coroutine = work()
        try:
            running = asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:  # the loop was closed just now
            coroutine.close()
            raise GlasspointError(_ENDS) from None
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the caller has left, and not the demo
                raise
            raise GlasspointError(_ENDS) from None
        except GlasspointError:  # some of them are TimeoutErrors, too
            raise
        except TimeoutError:
            raise GlasspointError("The demo did not do it in time: it goes on trying.") from None
