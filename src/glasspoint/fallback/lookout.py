"""A process in the upper tier asks Redis whether other processes write to a lower tier.

A thread that others have written to below must come up before a call above is answered, or the call would see
a shorter conversation. So a call asks whether the tier names threads at all: at most twice a second, for all
calls together. A process that makes the tier name its first thread waits for longer than that before it
acknowledges anything (`history.interface.HEARD_SECONDS`). So the upper tier hears of all that
was acknowledged below.

If Redis does not answer, nothing is known, and calls go on without.

The tier `memory` is looked into in the same way, for another chain of this process may work there, on another
event loop. It costs nothing to ask whether it is empty, so that is asked each time.
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
"""How long the answer "no thread stands there" is believed."""

_PAUSE_SECONDS = 5.0
"""How long calls do not ask again after Redis did not answer, for a call that asks waits for the timeout."""

_NOTHING = Holding(any=False, this=False, unused_seconds=0.0)


class Lookout:
    """Looks into one lower tier."""

    def __init__(
        self,
        open_saver: Callable[[], Awaitable[RedisSaver | MemorySaver]],
        *,
        is_empty: Callable[[], bool] | None = None,
    ) -> None:
        """Take the tier that is looked into.

        Args:
            open_saver: Opens the tier; it stays open until `close`.
            is_empty: Tells whether no thread stands there. `None`: that has to be asked for.
        """
        self._open = open_saver
        self._is_empty = is_empty
        self._saver: RedisSaver | MemorySaver | None = None
        self._opening = asyncio.Lock()
        self._clear_until = 0.0
        self.misconfigured: Exception | None = None
        """Why the tier cannot be looked into as it is configured."""

    @property
    def is_clear(self) -> bool:
        """Whether it was seen just now that no thread stands there, or nothing can be seen."""
        return self._is_empty() if self._is_empty is not None else monotonic() < self._clear_until

    @property
    def saver(self) -> RedisSaver | MemorySaver:
        """The tier, once something was seen there."""
        assert self._saver is not None
        return self._saver

    async def look(self, thread_id: str) -> Holding:
        """Return what stands there, as far as Redis says.

        Args:
            thread_id: The thread to look for.
        """
        if self._is_empty is not None and self._is_empty():
            return _NOTHING
        asked_at = monotonic()
        try:
            holding = await (await self._opened()).holds(thread_id)
        except (GlasspointError, OSError) as exc:
            self._clear_until = monotonic() + _PAUSE_SECONDS
            if isinstance(exc, ConfigurationError | RedisRefusedError):
                self.misconfigured = exc
            return _NOTHING
        if not holding.any:
            self._clear_until = asked_at + _CLEAR_SECONDS
        return holding

    async def _opened(self) -> RedisSaver | MemorySaver:
        async with self._opening:
            if self._saver is None:
                self._saver = await self._open()
            return self._saver

    async def close(self) -> None:
        """Close it."""
        saver, self._saver = self._saver, None
        if saver is not None:
            await saver.close()
