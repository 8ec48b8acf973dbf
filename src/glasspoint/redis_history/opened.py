"""How a `RedisSaver` is opened and closed, and what it holds meanwhile."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from langgraph.checkpoint.base import BaseCheckpointSaver

from glasspoint.errors import ConfigurationError, SaverClosedError
from glasspoint.l1.client import address_of, check_redis_or_cluster, open_redis
from glasspoint.redis_history.history import History
from glasspoint.redis_history.keys import Keyspace
from glasspoint.redis_history.steps import Steps
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import Vitals

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from types import TracebackType

    from langgraph.checkpoint.serde.base import SerializerProtocol
    from redis.asyncio import Redis, RedisCluster

    from glasspoint.scope import Scope
    from glasspoint.telemetry.events import Operation, Telemetry

__all__ = ["OpenedRedisSaver"]

_log = logging.getLogger("glasspoint")

_Item = TypeVar("_Item")

_TIMEOUT_SECONDS = 2.0


class OpenedRedisSaver(BaseCheckpointSaver[str]):
    """A history in Redis, opened and closed; `RedisSaver` reads and writes it."""

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        serde: SerializerProtocol | None = None,
        ttl: float | None = 86400,
        key_prefix: str = "glasspoint",
        timeout_seconds: float = _TIMEOUT_SECONDS,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Put the parts together. What is passed in here, the caller closes.

        Args:
            redis: A `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`, made without `decode_responses`.
                Its server must not evict: give it the `maxmemory-policy` `noeviction`.
            serde: How values are serialised; by default as LangGraph's savers do it.
            ttl: Seconds (> 0) that a thread stays after its last use, reading included; `None` for ever.
            key_prefix: What every key begins with.
            timeout_seconds: After so long without an answer from Redis a step fails.
            telemetry: Who is told of everything, see `create_telemetry`; by default the process's Prometheus
                registry and OpenTelemetry provider.

        Raises:
            ConfigurationError: A part cannot be used as it is.
        """
        super().__init__(serde=serde)
        if ttl is not None and not ttl > 0:
            raise ConfigurationError(f"ttl is {ttl!r}: it must be greater than 0 seconds, or None for ever.")
        if not timeout_seconds > 0:
            raise ConfigurationError(
                f"timeout_seconds is {timeout_seconds!r}: it must be greater than 0 seconds."
            )
        check_redis_or_cluster(redis)
        self._telemetry = telemetry or create_telemetry()
        self._steps = Steps(redis, self._telemetry, timeout_seconds=timeout_seconds)
        self._history = History(self._steps, Keyspace(key_prefix), ttl_seconds=ttl)
        vitals = Vitals(pool=None, redis=redis, tier="redis", addresses={"redis": address_of(redis)})
        self._lifetime = _Lifetime(self._telemetry, vitals)

    @classmethod
    async def create(cls, redis: Redis | RedisCluster | str, **options: Any) -> Self:
        """Open a saver on a Redis that answers. Close it with `close`.

        Args:
            redis: A client, which the caller closes, or a URL: `redis://…`, `rediss://…`, `unix://…`.
            options: Keyword arguments of the constructor.

        Raises:
            ConfigurationError: The URL or the client cannot be used, or a setting is out of its range.
            RedisUnavailableError: Redis cannot be reached.
            RedisRefusedError: Redis refuses this user or password.
        """
        async with AsyncExitStack() as opened:
            if isinstance(redis, str):
                timeout = options.get("timeout_seconds", _TIMEOUT_SECONDS)
                redis = open_redis(redis, timeout_seconds=timeout)
                opened.push_async_callback(redis.aclose)
            saver = cls(redis, **options)
            try:
                await saver.ping()
                saver._lifetime.vitals.versions["redis"] = await saver._steps.server_version()
            except BaseException:
                await saver.close()
                raise
            saver._lifetime.owned = opened.pop_all()
        _log.info("RedisSaver initialized (full history in Redis)")
        return saver

    @classmethod
    @asynccontextmanager
    async def from_conn_string(cls, redis_url: str, **options: Any) -> AsyncIterator[Self]:
        """Open a saver for the length of a `with` block.

        Args:
            redis_url: Redis, as `redis://…`, `rediss://…` or `unix://…`.
            options: As for `create`.

        Raises:
            As `create`.
        """
        saver = await cls.create(redis_url, **options)
        try:
            yield saver
        finally:
            await saver.close()

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

    async def close(self) -> None:
        """Wait for what is under way, and close what this saver opened itself. May be called twice."""
        await self._lifetime.close()

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            RedisUnavailableError: It does not, within `timeout_seconds`.
            RedisRefusedError: It refuses this user or password.
        """
        with self._lifetime.call():
            await self._steps.ping()

    @contextmanager
    def _call(self, name: str, scope: Scope | None) -> Iterator[Operation]:
        """Wrap a call of the saver."""
        with self._lifetime.call(), self._telemetry.operation(name, scope) as operation:
            operation.tier = operation.served_by = "redis"
            yield operation


class _Lifetime:
    """What a saver holds, from opening to closing; the clones of `with_allowlist` share it."""

    def __init__(self, telemetry: Telemetry, vitals: Vitals) -> None:
        self.owned = AsyncExitStack()
        self._telemetry = telemetry
        self.vitals = vitals
        self._calls = 0
        self._closed = False
        self._idle = asyncio.Event()  # set once closed, and nothing is under way
        telemetry.opened(vitals)

    def check_open(self) -> None:
        """Raise `SaverClosedError` after `close`."""
        if self._closed:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")

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

    async def each(self, items: AsyncGenerator[_Item, None]) -> AsyncIterator[_Item]:
        """Wrap what is fetched bit by bit: each fetch is a call, and what the caller does in between is none,
        so that `close` does not wait for a loop that nobody goes on with."""
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
        """Wait for what is under way (its timeouts bound that), then close what was opened here."""
        if self._closed:
            return
        self._closed = True
        self._look()
        try:
            await self._idle.wait()
        finally:
            self._telemetry.closed(self.vitals)
            await self.owned.aclose()
