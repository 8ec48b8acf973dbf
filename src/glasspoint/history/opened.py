"""Opens and closes a saver on a history, and counts its calls in between."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Self

from glasspoint.errors import SaverClosedError
from glasspoint.history.interface import History
from glasspoint.model.home import Home
from glasspoint.model.sync_methods import SyncFace
from glasspoint.telemetry.background import heeding_cancellation, run_to_the_end
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
    """A saver on a history that is opened and closed. `HistorySaver` adds reads and writes."""

    def __init__(
        self, history: History, vitals: Vitals, telemetry: Telemetry, serde: SerializerProtocol | None
    ) -> None:
        """Take the history and its surroundings.

        Args:
            history: The history to read and write.
            vitals: The status of the saver, for metrics and health checks.
            telemetry: Receives all events.
            serde: Serialises the values. By default, the serializer of LangGraph's savers.
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
        """The state of the saver and its server, as metrics and health checks read it."""
        return self._lifetime.vitals

    def close(self) -> Awaitable[None]:
        """Finish the calls that are under way, and close what this saver has opened. May be called twice.

        On the saver's event loop, await the result. Everywhere else, the saver is closed when this returns.
        """
        return self._close_on_either_face(self._lifetime.close, done=not self._lifetime.is_open)

    async def ping(self) -> None:
        """Check that the saver works."""
        raise NotImplementedError

    async def _check(self) -> dict[str, str]:
        """Return the state of the servers, for `/readyz`."""
        return {}

    @contextmanager
    def _call(self, name: str, scope: Scope | None) -> Iterator[Operation]:
        """Wrap a call of the saver."""
        with self._lifetime.call(), self._telemetry.operation(name, scope) as operation:
            operation.tier = operation.served_by = self._served_by
            yield operation


class Lifetime:
    """The calls of a saver, and what `close` closes. The clones of `with_allowlist` share it."""

    def __init__(self, home: Home, telemetry: Telemetry, vitals: Vitals) -> None:
        self.end_of_loop: EndOfLoop | None = None
        self._home = home
        self.owned = AsyncExitStack()
        self.vitals = vitals
        self._telemetry = telemetry
        self._calls = 0
        self._closed = False
        self._idle = asyncio.Event()  # set when the saver is closed and nothing is under way
        telemetry.opened(vitals)

    @property
    def is_open(self) -> bool:
        """Whether `close` was not called yet."""
        return not self._closed

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

    def _look(self) -> None:
        if self._closed and not self._calls:
            self._idle.set()

    async def close(self) -> None:
        """Wait for the calls under way, then close what was opened here.

        The wait ends, because all calls have timeouts. If the caller is cancelled meanwhile, everything is
        closed all the same: no connection stays open.
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
