"""RedisSaver: the full history of every thread on plain Redis data types, for any Redis-compatible server.

Each step is one script on all keys of a thread. So a step is done completely or not at all, and a thread
expires as a whole. `history/scripts/prelude.lua` describes the keys; the calls are in `history/saver.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from redis.asyncio import RedisCluster

from glasspoint.errors import RedisRefusedError, RedisUnavailableError
from glasspoint.history.in_redis import RedisHistory
from glasspoint.history.keys import Keyspace
from glasspoint.history.saver import HistorySaver
from glasspoint.history.steps import Steps
from glasspoint.logs import get_logger
from glasspoint.model.option_types import Seconds, check_options, checks_options, names_of, seconds_of
from glasspoint.model.sync_methods import Opening
from glasspoint.model.urls import address_text
from glasspoint.redis.client import (
    TIMEOUTS_TO_CONNECT,
    address_of,
    check_redis_or_cluster,
    close_client,
    database_of,
    eviction_of,
    follow_sentinels,
)
from glasspoint.redis.detection import connect_redis
from glasspoint.redis.signature import Signer
from glasspoint.savers.options import OpenRedisOptions, RedisSaverOptions
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import SaverStatus, ThreadDrained
from glasspoint.telemetry.quiet import quiet, quiet_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from langgraph.checkpoint.serde.base import SerializerProtocol
    from redis.asyncio import Redis

    from glasspoint.history.interface import Holding
    from glasspoint.l2.target import Target
    from glasspoint.telemetry.events import Telemetry

__all__ = ["RedisSaver"]

_log = get_logger("glasspoint")

_TIMEOUT_SECONDS = 2.0

# How long Redis may take to respond to a health check.
_SIGN_OF_LIFE_SECONDS = 0.5

# How long to wait before a new master that does not answer is asked again for what was acknowledged.
_LOSSES_PAUSE_SECONDS = 0.25

# How often a saver that is used looks whether the same servers have its threads; and at most how often.
_LOOK_SECONDS = 10.0
_SHORTEST_LOOK_SECONDS = 1.0

# The Redis servers whose eviction was logged, each with how it evicts. A fallback chain opens many savers,
# and must not log that each time.
_named: set[tuple[object, str]] = set()


class RedisSaver(HistorySaver):
    """A LangGraph checkpointer on Redis alone. Every step is traced and counted.

    It returns what `AsyncPostgresSaver` returns after the same calls. It is as durable as its Redis: use it
    as a tier to fall back on, or for conversations that may be lost. Redis must not evict. If it has evicted
    a part of a thread, calls raise `ThreadDamagedError` instead of returning an incomplete state.

    Every method may raise:

    - `RedisUnavailableError`: Redis did not respond. It may have done a write, which may be repeated.
    - `RedisRefusedError`: Redis is full or read-only, or a value is larger than its `proto-max-bulk-len`;
      nothing was stored. Or this user has lost a right.
    - `ThreadMovedError`: the thread is being drained into another store, or was drained.
    - `ThreadDamagedError`: Redis has lost a part of the thread.
    - `InvalidConfigError`: the config has no thread id, or an id that cannot be stored.
    - `SaverClosedError`: the saver was closed.

    Example:
        ```python
        async with RedisSaver.from_conn_string(REDIS_URL, ttl=86400) as saver:
            graph = builder.compile(checkpointer=saver)
            await graph.ainvoke(inputs, {"configurable": {"thread_id": "42"}})
        ```
    """

    @checks_options(RedisSaverOptions)
    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        serde: SerializerProtocol | None = None,
        ttl: Seconds | None = 86400,
        key_prefix: str = "glasspoint",
        timeout_seconds: Seconds = _TIMEOUT_SECONDS,
        telemetry: Telemetry | None = None,
        target: Target | None = None,
        signing_key: bytes | None = None,
    ) -> None:
        """Make a saver from a Redis client, which the caller closes.

        Lengths of time are numbers of seconds, or `timedelta`s.

        Args:
            redis: A `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`, made without `decode_responses`.
                Its server must not evict: give it the `maxmemory-policy` `noeviction`.
            serde: Serialises the values. By default, the serializer of LangGraph's savers.
            ttl: Seconds (> 0) that a thread stays after its last use; reading is a use, too. `None`: for
                ever.
            key_prefix: The beginning of every key.
            timeout_seconds: How long a step may wait for Redis before it fails. If 32 other steps are under
                way, it first waits for a slot, at most twice as long.
            telemetry: Receives all events: see `create_telemetry`. By default, metrics go to the process's
                Prometheus registry, and spans to its OpenTelemetry provider.
            target: The PostgreSQL that the threads belong to, for a fallback chain of your own. The threads
                of a target have keys of their own. If one of them is evicted as a whole, it is damaged, not
                unknown. By default, the threads belong to no PostgreSQL.
            signing_key: At least 16 secret bytes, the same in every process. Then everything is signed, and a
                read of anything without a valid signature raises `ThreadTamperedError`. By default, nothing
                is signed.

        Raises:
            ConfigurationError: An argument cannot be used. If its type is wrong, or an option does not exist,
                the error is a `TypeError`, too.
        """
        check_redis_or_cluster(redis)
        telemetry = telemetry or create_telemetry()
        target_id = target.id if target is not None else ""
        self._key_prefix = key_prefix
        self._is_in_part = False
        self._steps = Steps(
            redis,
            telemetry,
            key_prefix=key_prefix,
            timeout_seconds=seconds_of(timeout_seconds),
            when_done=self._look_if_due,
        )
        self._reign: object = None  # of the servers that have what was acknowledged; `None`: not asked yet
        self._is_looking = False
        self._looked_at = monotonic()
        self._redis_history = RedisHistory(
            self._steps,
            Keyspace(key_prefix, target=target_id, in_cluster=isinstance(redis, RedisCluster)),
            telemetry,
            ttl_seconds=None if ttl is None else seconds_of(ttl),
            signer=Signer(signing_key, f"fallback:{target_id}") if signing_key is not None else None,
        )
        status = SaverStatus(
            pool=None,
            redis=self._steps.client,
            tier="redis",
            addresses={"redis": address_of(redis)},
            databases={"redis": str(database_of(redis))},
        )
        super().__init__(self._redis_history, status, telemetry, serde)
        self._lifetime.ends.append(self._steps.close)
        self.client = redis
        """The client that this saver was made with."""
        self._ttl_seconds = None if ttl is None else seconds_of(ttl)
        follow_sentinels(redis, self._master_named, context=quiet_context())

    @classmethod
    async def create(cls, redis: Redis | RedisCluster | str, **options: Unpack[OpenRedisOptions]) -> Self:
        """Open a saver, and check that Redis responds. Close the saver with `close`.

        Args:
            redis: A URL (`redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…`, `redis+cluster://…`),
                or a client, which the caller closes.
            options: The keyword arguments of the constructor, and `redis_mode` (`"auto"`): what the URL leads
                to. `"auto"`: what its scheme says; a plain URL may lead to one server, or to a node of a
                cluster. `"single"`: one server. `"cluster"`: a plain URL names nodes of a cluster.
                `"sentinel"`: a plain URL names sentinels, and the service as its path.

        Raises:
            ConfigurationError: The URL or the client cannot be used, or an option is out of its range.
            RedisUnavailableError: Redis cannot be reached.
            RedisRefusedError: Redis refuses this user or password, or the user lacks a right; the message
                names the commands and the rule to add.
        """
        check_options(f"{cls.__name__}.create", options, OpenRedisOptions)
        return await cls._open(redis, options, in_part=False)

    @classmethod
    async def create_in_part(cls, redis: str, **options: Unpack[OpenRedisOptions]) -> Self:
        """Open a saver for a process that works in the tier above, and looks for threads here.

        In a cluster, one of its nodes must respond. The other masters are met when a thread of theirs is.

        Args:
            redis: See `create`.
            options: See `create`.

        Raises:
            GlasspointError: The same errors as from `create`.
        """
        return await cls._open(redis, options, in_part=True)

    @classmethod
    async def _open(
        cls, redis: Redis | RedisCluster | str, options: OpenRedisOptions, *, in_part: bool
    ) -> Self:
        mode = options.get("redis_mode", "auto")
        names = names_of(RedisSaverOptions)
        own = cast("RedisSaverOptions", {name: value for name, value in options.items() if name in names})
        async with AsyncExitStack() as opened:
            if isinstance(redis, str):
                timeout = seconds_of(options.get("timeout_seconds", _TIMEOUT_SECONDS))
                with quiet():
                    redis = await connect_redis(
                        redis, timeout_seconds=TIMEOUTS_TO_CONNECT * timeout, mode=mode, step_seconds=timeout
                    )
                opened.push_async_callback(close_client, redis)
            saver = cls(redis, **own)
            try:
                with quiet():
                    await saver._meet(in_part=in_part)
            except BaseException:
                await saver.close()
                raise
            saver._lifetime.owned = opened.pop_all()
            saver._lifetime.end_with_loop(cls.__name__)
        saver.status.announce(lambda: _log.info("RedisSaver initialized (full history in Redis)"))
        return saver

    @classmethod
    def from_conn_string(cls, redis_url: str, **options: Unpack[OpenRedisOptions]) -> Opening[Self]:
        """Open a saver for the length of a block: `async with`, or `with` for synchronous callers.

        Args:
            redis_url: Where Redis is: see `create`.
            options: The same keyword arguments as for `create`.

        Raises:
            GlasspointError: The same errors as from `create`.
        """
        check_options(f"{cls.__name__}.from_conn_string", options, OpenRedisOptions)
        return Opening(lambda: cls.create(redis_url, **options), reopens=isinstance(redis_url, str))

    async def _meet(self, *, in_part: bool) -> None:
        await self._steps.find_servers()
        self._is_in_part = in_part and len(self.lists) > 1
        if self._is_in_part:
            return
        await self.ping()
        await self._steps.check_permissions()
        self._reign = await self._steps.reign()
        self.status.versions["redis"] = self._steps.version
        await self._redis_history.meet()
        self._warn_of_eviction(await self._steps.memory())

    async def ping(self) -> None:
        """Check that Redis responds, in a cluster that each master does.

        Raises:
            RedisUnavailableError: It does not respond within `timeout_seconds`.
            RedisRefusedError: It refuses this user or password.
        """
        with self._lifetime.call():
            await self._redis_history.ping()

    async def check_rights(self) -> None:
        """Check that the user of Redis has the rights that this saver needs.

        Raises:
            RedisUnavailableError: Redis does not respond within `timeout_seconds`.
            RedisRefusedError: A right is missing. The message names the commands and the rule to add.
        """
        with self._lifetime.call():
            await self._steps.check_permissions()

    @property
    def lists_made(self) -> Mapping[str, bytes]:
        """The times at which the lists of threads, as this saver has seen them, were made in Redis.

        For a saver with a target. Without the lists of which this saver has put no thread: Redis cannot lose
        anything there.
        """
        return self._redis_history.lists_made if self.threads_written else {}

    async def expect_lists(self, made: Mapping[str, bytes]) -> None:
        """Expect the lists of threads that a closed saver of this process has seen.

        If Redis has other lists, threads were lost: see `look_for_losses`. A saver that was opened in part
        does not look now.

        Args:
            made: `lists_made` of the closed saver.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        if made:
            self._redis_history.expect_lists(made)
            if not self._is_in_part:
                await self.look_for_losses()

    @property
    def lists(self) -> Sequence[str]:
        """The names of the lists of threads, of a saver with a target: in a cluster, there are several."""
        return self._redis_history.lists

    def list_of(self, thread_id: str) -> str:
        """Return the name of the list that names a thread."""
        return self._redis_history.list_of(thread_id)

    async def holds(self, thread_id: str | None) -> Holding:
        """Return which threads the list of a thread names, for a process that works in the tier above.

        For a saver with a target.

        Args:
            thread_id: The thread to look for. `None`: any; all lists are looked at.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        with self._lifetime.call():
            return await self._redis_history.holds(thread_id)

    async def look_for_losses(self) -> bool:
        """Tell whether Redis has lost threads, or may have lost some. A thread that was moved is not lost.

        A thread is lost, too, if the end of it is: at a failover, or when Redis restarted with older files.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        with self._lifetime.call():
            await self._redis_history.look_at_lists()
            await self._look_at_acknowledged()
        return self._redis_history.has_lost_lists or self._redis_history.acknowledged.shortened > 0

    async def thread_ids(self, *, only_reads: bool = False) -> AsyncIterator[str]:
        """Yield the id of every thread that has data here: see `DrainableSaver.thread_ids`.

        After a failover or a restart, Redis is first asked for what was acknowledged: a thread that is
        drained cannot be asked about any more.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        with self._lifetime.call():
            await self._look_at_acknowledged()
        async for thread_id in super().thread_ids(only_reads=only_reads):
            yield thread_id

    async def expect_acknowledged(self, earlier: RedisSaver) -> None:
        """Expect what an earlier saver of this process has acknowledged. What is missing is logged.

        A saver that was opened in part does not look now.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        self._redis_history.acknowledged.expect(earlier._redis_history.acknowledged)
        self._reign = earlier._reign
        if not self._is_in_part:
            with self._lifetime.call():
                await self._look_at_acknowledged()

    def _master_named(self, address: tuple[str, int]) -> None:
        """Follow the sentinels to a master."""
        self._server_moved("redis", address)
        if self._lifetime.is_open:
            self._redis_history.acknowledged.moved()
            self._lifetime.in_background(self._find_losses())

    async def _find_losses(self) -> None:
        """Look for losses until the new master has answered."""
        while self._lifetime.is_open:
            with suppress(RedisUnavailableError, RedisRefusedError):
                await self._look_at_acknowledged()
                return
            await asyncio.sleep(_LOSSES_PAUSE_SECONDS)

    def _look_if_due(self) -> None:
        """Look for losses now and then, and soon if another server may have taken over."""
        pause = _SHORTEST_LOOK_SECONDS if self._steps.is_doubted else _LOOK_SECONDS
        if monotonic() < self._looked_at + pause or self._is_looking or not self._lifetime.is_open:
            return
        self._is_looking = True
        self._lifetime.in_background(self._look_once())

    async def _look_once(self) -> None:
        try:
            with suppress(RedisUnavailableError, RedisRefusedError):  # one of the next steps leads to a look
                await self._look_at_acknowledged()
        finally:
            self._looked_at = monotonic()
            self._is_looking = False

    async def _look_at_acknowledged(self) -> None:
        """If other servers than before have the threads now, ask them for what was acknowledged."""
        acknowledged = self._redis_history.acknowledged
        if acknowledged.is_empty:
            return
        began = monotonic()
        with quiet():
            reign = await self._steps.reign()
        if self._reign not in (None, reign):
            acknowledged.moved()
        elif acknowledged.is_checked:
            acknowledged.settle(began)
        self._reign = reign
        if acknowledged.is_checked:
            return
        for _ in await acknowledged.check(
            self._redis_history.untouched(), name=self._server_name(), ttl_seconds=self._ttl_seconds
        ):
            self._telemetry.emit(ThreadDrained("lost"))

    def _server_name(self) -> str:
        if isinstance(self.client, RedisCluster):
            return "the cluster"
        host, port = self.status.addresses["redis"]
        return address_text(host or "", port or 0)

    def _warn_of_eviction(self, nodes: list[dict[str, Any]]) -> None:
        how = "; ".join(sorted({found for node in nodes if (found := eviction_of(node)) is not None}))
        redis = (self.status.addresses["redis"], how)
        if not how or redis in _named:
            return
        _named.add(redis)
        _log.warning(
            "Redis may evict conversations (%s). A thread that loses a part cannot be read any more. Give "
            "this Redis the maxmemory-policy noeviction, or use another one.",
            how,
        )

    async def _check(self) -> dict[str, str]:
        try:
            with quiet():
                async with asyncio.timeout(_SIGN_OF_LIFE_SECONDS):
                    await self.ping()
                    with self._lifetime.call():
                        await self._redis_history.look_at_lists()
                    # What a failover has lost is past: this Redis serves writes.
                    return {"redis": "lost" if self._redis_history.has_lost_lists else "ok"}
        except Exception:
            return {"redis": "unavailable"}
