"""Looks, for a process in an upper tier, whether other processes have written to threads in a lower tier.

Such a thread must be moved up before a call above reads it: otherwise the call would see a shorter
conversation. So a call asks Redis whether the lower tier has any threads. All calls together ask at most
twice a second; in a Redis Cluster, twice a second about each of the lists of threads. The process that writes
the first thread there waits longer than that before it acknowledges the write
(`history.interface.HEARD_SECONDS`). So processes above know of every write that was acknowledged below.

If Redis does not respond, nothing is known, and calls go on without this. In a cluster, that concerns the
threads of the lists whose master does not respond.

The tier `memory` is looked into in the same way, because another chain of this process may work there, on
another event loop. To ask whether `memory` is empty costs nothing, so every call asks.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from glasspoint.errors import ConfigurationError, GlasspointError, RedisRefusedError
from glasspoint.history.interface import HEARD_SECONDS, Holding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.savers.memory_saver import MemorySaver
    from glasspoint.savers.redis_saver import RedisSaver

__all__ = ["Lookout"]

_CLEAR_SECONDS = HEARD_SECONDS - 0.1
"""How long the result "no thread stands there" is trusted."""

_PAUSE_SECONDS = 5.0
"""How long calls do not ask after Redis did not respond: a call that asks would wait for the timeout."""

_NOTHING = Holding(any=False, this=False, unused_seconds=0.0)


class Lookout:
    """Looks into one lower tier."""

    def __init__(
        self,
        open_saver: Callable[[], Awaitable[RedisSaver | MemorySaver]],
        *,
        is_empty: Callable[[], bool] | None = None,
    ) -> None:
        """Name the tier.

        Args:
            open_saver: Opens the tier's saver, which stays open until `close`.
            is_empty: Tells whether no thread stands there. `None`: Redis has to be asked.
        """
        self._open = open_saver
        self._is_empty = is_empty
        self._saver: RedisSaver | MemorySaver | None = None
        self._opening = asyncio.Lock()
        self._clear_until: dict[str, float] = {}  # the list of a thread -> how long it is not looked at
        self._paused_until = 0.0
        self.misconfigured: Exception | None = None
        """Why the tier cannot be looked into as it is configured."""

    def is_clear(self, thread_id: str) -> bool:
        """Tell whether a recent look found nothing in the list of this thread, or found nothing out."""
        if self._is_empty is not None:
            return self._is_empty()
        now, saver = monotonic(), self._saver
        if now < self._paused_until:
            return True
        return saver is not None and now < self._clear_until.get(saver.list_of(thread_id), 0.0)

    @property
    def saver(self) -> RedisSaver | MemorySaver:
        """The saver of the tier. Only after a look that found something."""
        assert self._saver is not None
        return self._saver

    async def look(self, thread_id: str | None) -> Holding:
        """Return which threads stand there: none, if Redis does not respond.

        Args:
            thread_id: The thread to look for. `None`: any.
        """
        if self._is_empty is not None and self._is_empty():
            return _NOTHING
        asked_at, saver = monotonic(), None
        try:
            saver = await self._opened()
            holding = await saver.holds(thread_id)
        except (GlasspointError, OSError) as exc:
            pause_until = monotonic() + _PAUSE_SECONDS
            if saver is None:
                self._paused_until = pause_until
            elif thread_id is not None or len(saver.lists) == 1:  # of several, nobody knows which one failed
                self._clear(saver, thread_id, until=pause_until)
            if isinstance(exc, ConfigurationError | RedisRefusedError):
                self.misconfigured = exc
            return _NOTHING
        if not holding.any:
            self._clear(saver, thread_id, until=asked_at + _CLEAR_SECONDS)
        return holding

    def _clear(self, saver: RedisSaver | MemorySaver, thread_id: str | None, *, until: float) -> None:
        for each in saver.lists if thread_id is None else [saver.list_of(thread_id)]:
            self._clear_until[each] = until

    async def _opened(self) -> RedisSaver | MemorySaver:
        async with self._opening:
            if self._saver is None:
                self._saver = await self._open()
            return self._saver

    async def close(self) -> None:
        """Close the saver of the tier."""
        saver, self._saver = self._saver, None
        if saver is not None:
            await saver.close()
