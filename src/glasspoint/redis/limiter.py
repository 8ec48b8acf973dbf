"""Turns: how many calls are on their way to one Redis at once; the others wait, and no error comes of it.

A client of redis-py has so many connections (100, unless told otherwise), and raises for whoever wants one
more. That is no outage, nor would more of them bring more: a Redis does one thing at a time, and answers that
come all at once come late. A call's timeout begins with its turn; how long the line is says nothing of Redis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import MaxConnectionsError, ResponseError

from glasspoint.redis.timeouts import answered_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis, RedisCluster

    from glasspoint.model.generics import ResultT

__all__ = ["Turns", "connections_of", "when_connected"]

# How soon a client without a connection left is asked again, at first and at last: it says nothing by itself.
_PAUSES_SECONDS = 0.001, 0.016


class Turns:
    """So many calls at once, the others in the order in which they came."""

    def __init__(self, at_once: int, *, timeout_seconds: float) -> None:
        """Take how many calls run at once.

        Args:
            at_once: How many.
            timeout_seconds: How long each may take, from its turn on. Its turn it awaits as long, if Redis
                answers nobody meanwhile, and otherwise twice as long.
        """
        self.at_once = at_once
        self._free = at_once
        self._line: deque[asyncio.Future[None]] = deque()
        self._timeout = timeout_seconds
        self._answers = 0

    async def run(self, ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        """Await `ask(*args)`, when it is its turn.

        Raises:
            TimeoutError: Its turn did not come, or no answer; see the constructor.
            Exception: What `ask` raises, but for a `MaxConnectionsError`: then it is called again.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait()
        try:
            with answered_within(self._timeout):
                try:
                    answer = await ask(*args)
                except MaxConnectionsError:
                    answer = await when_connected(ask, *args)
        except ResponseError:
            self._answers += 1
            raise
        finally:
            self._next()
        self._answers += 1
        return answer

    async def _wait(self) -> None:
        before, turn = self._answers, asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            with answered_within(self._timeout, once_more=lambda: self._answers != before):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._next()  # it came, and nobody is here to take it
            raise

    def _next(self) -> None:
        """Hand a turn on, or keep it for whoever comes."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


async def when_connected(ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
    """Await `ask(*args)`, again and again while the client has no connection left.

    Others may use the client, too. Nothing was sent then, so it may be sent still.
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

    All but one, which is left for whoever asks for a sign of life, and not more than `most`.
    """
    pool = getattr(redis, "connection_pool", None)
    limit = getattr(redis, "connection_kwargs", {}).get("max_connections") if pool is None else None
    limit = getattr(pool, "max_connections", limit)
    return max(1, min(most, limit - 1)) if isinstance(limit, int) else most
