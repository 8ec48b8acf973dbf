"""The demo's application after the story: one saver on the fallback chain, and all that talks through it.

It can be restarted, as a pod is. The new start opens the best tier that it can reach, and all conversations
go on there. This is how the demo falls to a lower tier: a process that runs in the tier `cached` never does.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from glasspoint import get_checkpointer
from glasspoint.demo.traffic import PEOPLE, Traffic
from glasspoint.errors import GlasspointError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from glasspoint import FallbackSaver, Settings
    from glasspoint.demo.telemetry import Observed
    from glasspoint.model.password import Password

__all__ = ["App"]

_log = logging.getLogger("glasspoint.demo")

_LAST_TURNS_SECONDS = 2.0
_OPEN_AGAIN_SECONDS = 1.0
_WAIT_FOR_SAVER_SECONDS = 15.0


class App:
    """Keeps the traffic going on a saver, until it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        observed: Observed,
        *,
        password: Password | None = None,
        people: int = PEOPLE,
        leaves_conversations: bool = False,
        cannot_start: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Take what the application works with.

        Args:
            settings: The settings of the saver.
            observed: The observability of the demo.
            password: Returns the password of PostgreSQL.
            people: How many people talk at the same time.
            leaves_conversations: Whether the conversations may stay on the servers at the end.
            cannot_start: Called with the reason if a restart fails; it is tried again every second.
        """
        self._settings = settings
        self._observed = observed
        self._password = password
        self._leaves_conversations = leaves_conversations
        self._cannot_start = cannot_start
        self.traffic = Traffic(observed, people=people)
        self._saver: FallbackSaver | None = None
        self._is_open = asyncio.Event()
        self._restart = asyncio.Event()
        self._turns: set[asyncio.Task[object]] = set()
        self._cut_off: set[asyncio.Task[object]] = set()

    @property
    def tier(self) -> str | None:
        """The tier that works now; `None` while the application starts."""
        return None if self._saver is None else self._saver.tier

    async def run(self) -> None:
        """Open the saver, and let all people talk. Cancel this to end it.

        Raises:
            GlasspointError: The first start fails.
        """
        saver = await self._open()
        while True:
            try:
                await self._serve(saver)
            finally:
                await saver.close()
            saver = await self._open_again()

    async def restart(self) -> str:
        """Restart the application, and return the tier that it works in then.

        Raises:
            GlasspointError: It has not started after 15 s. It goes on trying.
        """
        if self._is_open.is_set():  # else it is starting anyway
            self._is_open.clear()
            self._restart.set()
        return (await self._opened_saver()).tier

    @asynccontextmanager
    async def turn(self, thread_id: str) -> AsyncIterator[FallbackSaver]:
        """Run a turn of a conversation that is not the traffic's, in the block, on the saver that works now.

        Raises:
            GlasspointError: The application is restarting, and has not started after 15 s. Or it was
                restarted before the block has ended.
        """
        saver, task = await self._opened_saver(), asyncio.current_task()
        assert task is not None
        self._turns.add(task)
        self.traffic.adopt(thread_id)
        try:
            yield saver
        except asyncio.CancelledError:
            if task not in self._cut_off:
                raise
            task.uncancel()
            raise GlasspointError(
                "The application was restarted before it could answer: say it again."
            ) from None
        finally:
            self._turns.discard(task)
            self._cut_off.discard(task)

    async def _serve(self, saver: FallbackSaver) -> None:
        """Let all people talk on a saver, until a restart is asked for."""
        self.traffic.move_to(saver)
        self._saver = saver
        self._restart.clear()
        self._is_open.set()
        talking = asyncio.create_task(self.traffic.run(), name="demo traffic")
        asked = asyncio.create_task(self._restart.wait(), name="demo restart")
        try:
            await asyncio.wait({talking, asked}, return_when=asyncio.FIRST_COMPLETED)
            self.traffic.pause()
            await asyncio.wait({talking, *self._turns}, timeout=_LAST_TURNS_SECONDS)
        except asyncio.CancelledError:
            await self._end(talking, asked)
            if not self._leaves_conversations:
                await self._remove_conversations()
            raise
        finally:
            self._is_open.clear()
            self._saver = None
        await self._end(talking, asked)

    async def _end(self, *tasks: asyncio.Task[Any]) -> None:
        """End these tasks and all turns that still run."""
        self._cut_off |= self._turns
        ending = {*tasks, *self._turns}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _open(self) -> FallbackSaver:
        return await get_checkpointer(
            self._settings, telemetry=self._observed.telemetry, postgres_password=self._password
        )

    async def _open_again(self) -> FallbackSaver:
        while True:
            try:
                return await self._open()
            except Exception as error:  # any server may be in any state
                self._cannot_start(" ".join(str(error).split()))
                await asyncio.sleep(_OPEN_AGAIN_SECONDS)

    async def _opened_saver(self) -> FallbackSaver:
        """Return the saver that works now. Wait for it while the application starts."""
        try:
            async with asyncio.timeout(_WAIT_FOR_SAVER_SECONDS):
                await self._is_open.wait()
        except TimeoutError:
            raise GlasspointError("The application is still starting: try again in a moment.") from None
        assert self._saver is not None
        return self._saver

    async def _remove_conversations(self) -> None:
        try:
            await self.traffic.remove_conversations()
        except (GlasspointError, psycopg.Error, TimeoutError) as error:
            _log.warning("Not all conversations could be removed (%s).", type(error).__name__)
