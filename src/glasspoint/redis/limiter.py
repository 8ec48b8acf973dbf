"""The limiter: bounds the calls to one Redis that are under way. The others wait, without an error.

A client of redis-py has a maximum number of connections (100 by default), and raises an error if a call needs
one more. That is no outage of Redis. And more connections would not help: a Redis runs one command at a time,
and results that arrive all at once arrive late. So a call waits for a slot. Its timeout begins when it has
one, because the length of the queue says nothing about Redis.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.exceptions import MaxConnectionsError, ResponseError

from glasspoint.redis.timeouts import answered_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis, RedisCluster

    from glasspoint.model.generics import ResultT

__all__ = ["Limiter", "connections_of", "when_connected"]

# The first and the longest pause before a client without a free connection is asked again. redis-py gives no
# notice when a connection becomes free.
_PAUSES_SECONDS = 0.001, 0.016


class Limiter:
    """A fixed number of slots for calls. The calls without a slot wait, first come, first served."""

    def __init__(self, at_once: int, *, timeout_seconds: float) -> None:
        """Set the number of slots.

        Args:
            at_once: The number of slots.
            timeout_seconds: How long a call may take, once it has a slot. The wait for a slot may take the
                same time before; or twice that, if other calls get results from Redis meanwhile.
        """
        self.at_once = at_once
        self._slots = asyncio.Semaphore(at_once)
        self._timeout = timeout_seconds
        self._answers = 0

    async def run(self, ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        """Wait for a slot, and await `ask(*args)`.

        Raises:
            TimeoutError: There was no slot or no result in time: see the constructor.
            Exception: The error of `ask`. After a `MaxConnectionsError`, `ask` is called again instead.
        """
        if self._slots.locked():
            before = self._answers
            with answered_within(self._timeout, once_more=lambda: self._answers != before):
                await self._slots.acquire()
        else:
            await self._slots.acquire()  # takes no time
        try:
            with answered_within(self._timeout):
                try:
                    result = await ask(*args)
                except MaxConnectionsError:
                    result = await when_connected(ask, *args)
        except ResponseError:
            self._answers += 1
            raise
        finally:
            self._slots.release()
        self._answers += 1
        return result


async def when_connected(ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
    """Await `ask(*args)`, and repeat that while the client has no free connection.

    The application may use the same client, and hold its connections. Without a connection nothing was sent,
    so repeating is safe.
    """
    pause, longest = _PAUSES_SECONDS
    while True:
        try:
            return await ask(*args)
        except MaxConnectionsError:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)


def connections_of(redis: Redis | RedisCluster, *, most: int) -> int:
    """Return how many of a client's connections (of a cluster: to one node) may be used at once.

    That is all but one, which is left for pings, and at most `most`.
    """
    pool = getattr(redis, "connection_pool", None)
    limit = getattr(redis, "connection_kwargs", {}).get("max_connections") if pool is None else None
    limit = getattr(pool, "max_connections", limit)
    return max(1, min(most, limit - 1)) if isinstance(limit, int) else most
