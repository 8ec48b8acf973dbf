"""How a saver on a history is closed, and what it holds meanwhile."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Self

from glasspoint.errors import SaverClosedError
from glasspoint.history.interface import History
from glasspoint.model.home import Home
from glasspoint.model.sync_methods import SyncFace
from glasspoint.telemetry.background import run_to_the_end
from glasspoint.telemetry.events import Vitals

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
    from types import TracebackType

    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.history.beginning import Beginning
    from glasspoint.model.generics import ItemT
    from glasspoint.model.home import EndOfLoop
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Operation, Served, Telemetry

__all__ = ["Lifetime", "OpenedSaver"]


class OpenedSaver(SyncFace):
    """A history, opened and closed; `HistorySaver` reads and writes it."""

    def __init__(
        self, history: History, vitals: Vitals, telemetry: Telemetry, serde: SerializerProtocol | None
    ) -> None:
        """Take the history, and what belongs to it.

        Args:
            history: What to read and write.
            vitals: What there is to say of the saver.
            telemetry: Who is told of everything.
            serde: How values are serialised; by default as LangGraph's savers do it.
        """
        super().__init__(serde=serde)
        self.home = Home(self)
        vitals.loop, vitals.check, vitals.reopen = self.home.loop, self._check, self.home.reopen
        self._telemetry = telemetry
        self._served_by: Served = "memory" if vitals.tier == "memory" else "redis"
        self._history = history
        self._beginning: Beginning | None = None
        self._written: OrderedDict[str, None] = OrderedDict()
        self._lifetime = Lifetime(self.home, telemetry, vitals)

    async def __aenter__(self) -> Self:
        self._lifetime.check_open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def vitals(self) -> Vitals:
        """Its moving parts, for whoever wants to look at them."""
        return self._lifetime.vitals

    def close(self) -> Awaitable[None]:
        """Wait for what is under way, and close what this saver opened itself. May be called twice.

        On the saver's event loop it is to be awaited; elsewhere it is done when this returns.
        """
        return self._close_on_either_face(self._lifetime.close, done=not self._lifetime.is_open)

    async def ping(self) -> None:
        """Check that it works."""
        raise NotImplementedError

    async def _check(self) -> dict[str, str]:
        """How the servers are, for `/readyz`."""
        return {}

    @contextmanager
    def _call(self, name: str, scope: Scope | None) -> Iterator[Operation]:
        """Wrap a call of the saver."""
        with self._lifetime.call(), self._telemetry.operation(name, scope) as operation:
            operation.tier = operation.served_by = self._served_by
            yield operation


class Lifetime:
    """What a saver holds, from opening to closing; the clones of `with_allowlist` share it."""

    def __init__(self, home: Home, telemetry: Telemetry, vitals: Vitals) -> None:
        self.end_of_loop: EndOfLoop | None = None
        self._home = home
        self.owned = AsyncExitStack()
        self.vitals = vitals
        self._telemetry = telemetry
        self._calls = 0
        self._closed = False
        self._idle = asyncio.Event()  # set once closed, and nothing is under way
        telemetry.opened(vitals)

    @property
    def is_open(self) -> bool:
        """Whether `close` was not called yet."""
        return not self._closed

    def check_open(self) -> None:
        """Raise `SaverClosedError` after `close`; another error in a wrong process, or on a wrong loop."""
        if self._closed:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")
        self._home.check()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wrap a call: not after `close`, which waits until all that have begun are answered."""
        self.check_open()
        self._calls += 1
        task = asyncio.current_task()
        cancels = task.cancelling() if task else 0
        try:
            yield
            # redis-py waits with `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that
            # comes as the wait is over.
            if task and task.cancelling() > cancels:
                raise asyncio.CancelledError
        finally:
            self._calls -= 1
            self._look()

    async def each(self, items: AsyncGenerator[ItemT, None]) -> AsyncIterator[ItemT]:
        """Wrap what is fetched bit by bit: each fetch is a call.

        What the caller does in between is none, so that `close` does not wait for a loop that nobody goes on
        with.
        """
        async with aclosing(items):
            while True:
                with self.call():
                    try:
                        item = await anext(items)
                    except StopAsyncIteration:
                        return
                yield item

    def _look(self) -> None:
        if self._closed and not self._calls:
            self._idle.set()

    async def close(self) -> None:
        """Wait for what is under way, then close what was opened here.

        Timeouts bound the wait. All of it is closed, also if the caller is cancelled meanwhile: no connection
        stays open.
        """
        if self._closed:
            return
        self._closed = True
        if self.end_of_loop is not None:
            self.end_of_loop.dismiss()
        self._look()
        await run_to_the_end(self._close())

    async def _close(self) -> None:
        try:
            await self._idle.wait()
        finally:
            self._telemetry.closed(self.vitals)
            await self.owned.aclose()
