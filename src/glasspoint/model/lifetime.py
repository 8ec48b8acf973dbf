"""From the opening of a saver to its end: which calls and tasks are under way, and what is closed.

Open this file when `close` returns too early, does not return, or leaves a connection open. It works in this
order: no new call begins; the background tasks stop; the calls under way end; what they have left is ended;
what the saver has opened is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any

from glasspoint.errors import SaverClosedError
from glasspoint.model.cancellation import heeding_cancellation, run_to_the_end
from glasspoint.model.home import EndOfLoop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from glasspoint.model.generics import ItemT, ResultT
    from glasspoint.model.home import Home

__all__ = ["Lifetime"]

# The maximum number of follow-ups. A warm-up is one: it holds one state in memory until Redis has it, or
# until a step's timeout. It takes about 1 ms. So while Redis responds, only 30,000 misses a second would
# reach this number.
_FOLLOW_UPS_AT_ONCE = 32


class Lifetime:
    """The calls and tasks of a saver, and what `close` closes. The clones of `with_allowlist` share it.

    Attributes:
        stops: End the background tasks. They are awaited first, one after the other.
        ends: End what the calls have left. They are awaited when no call is under way.
        owned: Closes what was opened for this saver. It is closed last.
    """

    def __init__(
        self, home: Home, *, ended: Callable[[], object], background: Callable[[], Context] = Context
    ) -> None:
        """Begin.

        Args:
            home: The process and the event loop of the saver.
            ended: Called when no call is under way any more, before `owned` is closed; also after an error.
            background: Returns the context for work that no caller waits for.
        """
        self.stops: list[Callable[[], Awaitable[object]]] = []
        self.ends: list[Callable[[], Awaitable[object]]] = []
        self.owned = AsyncExitStack()
        self._home = home
        self._ended = ended
        self._background = background
        self._end_of_loop: EndOfLoop | None = None
        self._calls = 0
        self._settling: set[asyncio.Task[Any]] = set()
        self._following: set[asyncio.Task[Any]] = set()  # those of `_settling` that no call waits for
        self._closed = False
        self._idle = asyncio.Event()  # set when the saver is closed and nothing is under way

    @property
    def is_open(self) -> bool:
        """Whether `close` was not called yet."""
        return not self._closed

    def end_with_loop(self, what: str) -> None:
        """Close the saver when its event loop ends, if it was not closed before.

        Args:
            what: The name of the saver in the warning.
        """
        self._end_of_loop = EndOfLoop(what, self)

    def check_open(self) -> None:
        """Raise an error if the saver is closed, or is used in the wrong process or on the wrong loop."""
        if self._closed:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")
        self._home.check()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wrap a call of the saver. `close` waits for calls that have begun; later ones raise an error."""
        self.check_open()
        self._calls += 1
        try:
            with heeding_cancellation():
                yield
        finally:
            self._calls -= 1
            self._look()

    async def each(self, items: AsyncGenerator[ItemT, None]) -> AsyncIterator[ItemT]:
        """Wrap a generator: each item that it fetches is a call.

        Between two items no call is under way, so `close` does not wait for a caller that abandons its loop.
        """
        async with aclosing(items):
            while True:
                with self.call():
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item

    async def settle(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run work to its end, even if the caller is cancelled: it must not be left half done."""
        return await asyncio.shield(self._to_the_end(asyncio.create_task(work)))

    async def follow_up(self, work: Coroutine[Any, Any, object]) -> None:
        """Run work after a call, in the call's trace. The call does not wait for it; `close` does.

        If `_FOLLOW_UPS_AT_ONCE` are running, the call waits for its own: a slow Redis must not fill the
        memory.

        Args:
            work: The work. It raises nothing, and has a deadline.
        """
        if len(self._following) >= _FOLLOW_UPS_AT_ONCE:
            await work
            return
        task = self._to_the_end(asyncio.create_task(work))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def followed_up(self) -> None:
        """Wait until the work that `follow_up` has started so far is done."""
        if self._following:
            await asyncio.wait(set(self._following))

    def in_background(self, work: Coroutine[Any, Any, None], context: Context | None = None) -> None:
        """Run work that no caller waits for. `close` waits for it, so it must have a deadline.

        Args:
            work: The work.
            context: The context that it runs in. By default one that belongs to no trace.
        """
        if not self._home.is_in_this_process:  # the parent's loop is run in a forked child
            work.close()
            return
        self._to_the_end(asyncio.create_task(work, context=context or self._background()))

    async def close(self) -> None:
        """Wait for the work under way, then close what was opened for this saver. May be called twice.

        The wait ends, because all work has a deadline. If the caller is cancelled meanwhile, everything is
        closed all the same: no connection stays open.
        """
        if self._closed:
            return
        self._closed = True
        if self._end_of_loop is not None:
            self._end_of_loop.dismiss()
        self._look()
        await run_to_the_end(self._close())

    # ---------------------------------------------------------------- helpers

    def _to_the_end(self, task: asyncio.Task[ResultT]) -> asyncio.Task[ResultT]:
        self._settling.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._settling.discard(task)
        self._look()

    def _look(self) -> None:
        if self._closed and not self._calls and not self._settling:
            self._idle.set()

    async def _close(self) -> None:
        try:
            for stop in self.stops:
                await stop()
            await self._idle.wait()
            for end in self.ends:
                await end()
        finally:
            self._ended()
            await self.owned.aclose()
