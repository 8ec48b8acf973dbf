"""The functions that open a saver, with the fallback chain (`get_checkpointer`) or without."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from weakref import WeakSet

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import InstanceOf
from redis.asyncio import RedisCluster

from glasspoint.coherence.cluster_images import InCluster
from glasspoint.coherence.images import Images, OneRedis
from glasspoint.coherence.last_used import LastUsed
from glasspoint.errors import (
    ConfigurationError,
    L2DeadlineError,
    L2UnavailableError,
    RedisRefusedError,
    RedisUnavailableError,
)
from glasspoint.fallback.controller import Chain, Spec
from glasspoint.fallback.saver import FallbackSaver
from glasspoint.history.in_memory import MemoryHistory
from glasspoint.l2.target import Target, fallback_secret
from glasspoint.logs import get_logger
from glasspoint.model.option_types import PasswordSource, Seconds, Serde, check_options, check_values
from glasspoint.model.sync_methods import Opening
from glasspoint.redis.signature import secret_of
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.savers.memory_saver import MemorySaver
from glasspoint.savers.options import OpenCachedOptions, OpenRedisOptions, RedisOptions, service_options
from glasspoint.savers.redis_saver import RedisSaver
from glasspoint.settings import Settings
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import Telemetry

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol
    from pydantic import SecretStr
    from redis.asyncio import Redis

    from glasspoint.model.password import Password

__all__ = [
    "ChainOptions",
    "create_cached_postgres_checkpointer",
    "create_redis_checkpointer",
    "get_checkpointer",
]

_log = get_logger("glasspoint")

# What a fall to a tier means to users, for the log.
_MEANS_REDIS = (
    "Conversations are kept in Redis alone until PostgreSQL is back. They go on from their cached state; one "
    "that is not cached begins anew, and is set aside later if PostgreSQL holds a history of it. What is "
    "written now will be drained into PostgreSQL."
)
_MEANS_MEMORY = (
    "Conversations are kept in this process alone, and end with it. They begin anew: what the other tiers "
    "hold of them is not seen meanwhile. What is written now will be drained upwards when a server is back."
)


class ChainOptions(TypedDict, total=False):
    """Keyword arguments of `get_checkpointer`, which explains them."""

    settings: InstanceOf[Settings] | None
    serde: Serde | None
    telemetry: Telemetry | None
    postgres_password: PasswordSource | None


class _Memory:
    """The tier `memory` of one target. All chains of a process share it, on whatever event loop they work.

    LangGraph Server opens a chain for each of its loops (`BG_JOB_ISOLATED_LOOPS`), and the next turn of a
    conversation may run on another loop.
    """

    def __init__(self) -> None:
        self.history = MemoryHistory()
        self._savers: WeakSet[MemorySaver] = WeakSet()
        self._lock = threading.Lock()

    def open(self, **options: Any) -> MemorySaver:
        """Open a saver on the tier."""
        saver = MemorySaver(history=self.history, **options)
        with self._lock:
            if not any(each.status.active for each in self._savers):
                self.history.forget_moved()  # a chain that works here still has to follow moved threads
            self._savers.add(saver)
        return saver


# Process, target and key prefix -> the tier `memory`. The process is part of the key, because a child gets a
# copy of the parent's tiers at a fork().
_memories: dict[tuple[int, Target, str], _Memory] = {}

# The targets whose missing signature was logged.
_unsigned: set[Target] = set()


async def create_cached_postgres_checkpointer(
    conn_string: str, redis: Redis | RedisCluster | str, **options: Unpack[OpenCachedOptions]
) -> CachedPostgresSaver:
    """Open a `CachedPostgresSaver` on a pool of its own, and create the tables if they do not exist.

    The caller closes the saver (`await saver.close()`), and also the Redis client, if it passed one in.

    Args:
        conn_string: Where PostgreSQL is: `postgresql://…`, `postgres://…`, `postgresql+asyncpg://…`,
            `postgresql+psycopg://…` or libpq's `key=value` form.
        redis: Where Redis is: `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…`,
            `redis+cluster://…`; or a `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`.
        options: The keyword arguments of `CachedPostgresSaver.create`, for example `cache_ttl` (86400
            seconds) and `pool_max_size` (10).

    Raises:
        GlasspointError: The same errors as from `CachedPostgresSaver.create`.
    """
    check_options("create_cached_postgres_checkpointer", options, OpenCachedOptions)
    return await CachedPostgresSaver.create(conn_string, redis, **options)


async def create_redis_checkpointer(
    redis_url: str | Redis | RedisCluster, ttl: Seconds | None = 86400, **options: Unpack[RedisOptions]
) -> RedisSaver:
    """Open a `RedisSaver`, which keeps the whole history in Redis alone, on plain data types.

    The caller closes the saver (`await saver.close()`), and also the Redis client, if it passed one in.

    Args:
        redis_url: Where Redis is: `redis://…`, `rediss://…`, `unix://…`, `redis+sentinel://…`,
            `redis+cluster://…`; or a `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`.
        ttl: Seconds (> 0), or a `timedelta`, that a thread stays after its last use; reading is a use, too.
            `None`: for ever.
        options: The keyword arguments of `RedisSaver.create`, for example `key_prefix` ("glasspoint") and
            `timeout_seconds` (2.0).

    Raises:
        GlasspointError: The same errors as from `RedisSaver.create`.
    """
    check_options("create_redis_checkpointer", {"ttl": ttl, **options}, OpenRedisOptions)
    return await RedisSaver.create(redis_url, ttl=ttl, **options)


def get_checkpointer(
    settings: Settings | None = None,
    *,
    serde: SerializerProtocol | None = None,
    telemetry: Telemetry | None = None,
    postgres_password: Password | None = None,
) -> Opening[FallbackSaver]:
    """Open a saver with settings from the environment, and with the fallback chain.

    The saver works in the best tier that is available: PostgreSQL and Redis (`cached`), Redis alone
    (`redis`), or the memory of this process (`memory`). `CHECKPOINT_FALLBACKS` says which ones it may use.
    Each fallback is logged, counted and shown by `/readyz`; a task in the background goes back up. LangGraph
    Server takes this function as it is: `"checkpointer": {"path": …}`.

    Args:
        settings: By default, read from the environment: see `docs/settings.md`.
        serde: Serialises the values in all tiers. By default, LangGraph's serializer.
        telemetry: Receives all events: see `create_telemetry`. By default, metrics go to the process's
            Prometheus registry, and spans to its OpenTelemetry provider.
        postgres_password: A function that returns PostgreSQL's password, in place of the one in
            `POSTGRES_URL`. It may be asynchronous; a synchronous one runs in a thread. It is called before
            each new connection. It has priority over `CHECKPOINT_POSTGRES_PASSWORD_COMMAND`.

    Returns:
        An object that opens the saver. In a block: `async with get_checkpointer() as saver:`, or `with` for
        synchronous graphs. Without a block: `saver = await get_checkpointer()`, or
        `get_checkpointer().open()`.

    Raises:
        ConfigurationError: An argument has the wrong type. Or, on opening: a setting is missing or wrong, and
            the message names its variable.
        GlasspointError: On opening: no tier is available.
    """
    given = {
        "settings": settings,
        "serde": serde,
        "telemetry": telemetry,
        "postgres_password": postgres_password,
    }
    check_values(given, ChainOptions)
    return Opening(
        lambda: _open_chain(settings or Settings.from_environment(), serde, telemetry, postgres_password),
        reopens=True,
    )


async def _open_chain(
    settings: Settings,
    serde: SerializerProtocol | None,
    telemetry: Telemetry | None,
    postgres_password: Password | None,
) -> FallbackSaver:
    telemetry = telemetry or create_telemetry(thread_ids=settings.telemetry_thread_ids)
    tiers = _Tiers(settings, serde or JsonPlusSerializer(), telemetry.for_standby(), postgres_password)
    chain = Chain(tiers.specs(), telemetry, probe_seconds=settings.probe_interval)
    return await FallbackSaver.open(chain)


class _Tiers:
    """Opens the savers of the tiers of one chain."""

    def __init__(
        self,
        settings: Settings,
        serde: SerializerProtocol,
        telemetry: Telemetry,
        postgres_password: Password | None,
    ) -> None:
        self._settings = settings
        self._serde = serde
        self._telemetry = telemetry
        self._postgres_url = _required(settings.postgres_url, "POSTGRES_URL")
        self._redis_url = _required(settings.redis_url, "REDIS_URL")
        self._password = postgres_password or settings.postgres_password
        key = settings.l1_signing_key
        self._l1_signing_key = None if key is None else key.get_secret_value()
        self._target = Target.of(self._postgres_url, schema=settings.postgres_schema)
        place = os.getpid(), self._target, settings.key_prefix
        self._memory = _memories.setdefault(place, _Memory())
        self._last_redis: RedisSaver | None = None  # the last saver of the tier redis
        self._secrets: list[bytes | None] = []  # of the tier redis, once it was made: that takes a moment

    def specs(self) -> list[Spec]:
        """Return the tiers of the settings, best first."""
        lost_postgres = L2UnavailableError, L2DeadlineError
        specs = {
            "redis": Spec(
                "redis",
                self._open_redis,
                (RedisUnavailableError,),
                "redis_unavailable",
                _MEANS_REDIS,
                is_shared=True,
                open_to_look=self._look_into_redis,
            ),
            "memory": Spec(
                "memory",
                self._open_memory,
                (),
                "",
                _MEANS_MEMORY,
                is_shared=True,
                is_empty=lambda: self._memory.history.is_empty,
            ),
        }
        best = Spec("cached", self._open_cached, lost_postgres, "postgres_unavailable", "")
        return [best, *(specs[name] for name in self._settings.fallbacks)]

    async def _open_cached(self) -> CachedPostgresSaver:
        options: OpenCachedOptions = {
            **service_options(self._settings),
            "password": self._password,
            "last_used": await self._last_used(),
            "serde": self._serde,
            "telemetry": self._telemetry,
        }
        return await CachedPostgresSaver.create(self._postgres_url, self._redis_url, **options)

    async def _open_redis(self) -> RedisSaver:
        return await self._open_saver_in_redis(in_part=False)

    async def _look_into_redis(self) -> RedisSaver:
        """Open the tier redis to look into it, also if some masters of a cluster are away."""
        return await self._open_saver_in_redis(in_part=True)

    async def _open_saver_in_redis(self, *, in_part: bool) -> RedisSaver:
        create = RedisSaver.create_in_part if in_part else RedisSaver.create
        settings = self._settings
        if await self._secret() is None and self._target not in _unsigned:
            _unsigned.add(self._target)
            _log.warning(
                "The tier redis of %s is not signed: POSTGRES_URL has no password that stays the same, and "
                "CHECKPOINT_L1_SIGNING_KEY is not set. Somebody who can write to Redis can change what a "
                "conversation remembers during an outage, and run code in this process. And no conversation "
                "goes on from its cached state. Set the key.",
                self._target.name,
            )
        try:
            saver = await create(
                self._redis_url,
                ttl=settings.redis_ttl,
                key_prefix=settings.key_prefix,
                timeout_seconds=settings.redis_timeout,
                redis_mode=settings.redis_mode,
                target=self._target,
                signing_key=await self._secret(),
                serde=self._serde,
                telemetry=self._telemetry,
            )
        except RedisRefusedError as exc:
            raise ConfigurationError(
                f"The tier redis cannot be used as it is configured. {exc} Correct REDIS_URL, or the user's "
                "rights on the server."
            ) from exc
        try:
            saver.begin_from(await self._cached_states(saver), unknown=settings.fallback_unknown)
            if self._last_redis is not None:
                await saver.expect_lists(self._last_redis.lists_made)
                await saver.expect_acknowledged(self._last_redis)
        except BaseException:
            await saver.close()
            raise
        self._last_redis = saver
        return saver

    async def _open_memory(self) -> MemorySaver:
        saver = self._memory.open(serde=self._serde, telemetry=self._telemetry)
        saver.begin_from(None, unknown=self._settings.fallback_unknown)
        return saver

    async def _cached_states(self, saver: RedisSaver) -> Images | None:
        """Return the cached states that conversations can go on from, `None` if no record leads to them."""
        record = await self._last_used()
        if record is None:
            return None
        redis: Any = saver.client
        place: Any = InCluster if isinstance(redis, RedisCluster) else OneRedis
        return Images(
            place(
                redis,
                record,
                key_prefix=self._settings.key_prefix,
                timeout_seconds=self._settings.redis_timeout,
            ),
            self._telemetry,
        )

    async def _last_used(self) -> LastUsed | None:
        """Return the record that processes of this target leave in Redis, `None` if they cannot sign it."""
        secret = await self._secret() if "redis" in self._settings.fallbacks else None
        if secret is None:
            return None
        key_prefix = self._settings.key_prefix
        key = self._l1_signing_key
        signing_key = None if key is None else secret_of(key)
        return LastUsed(self._target.id, secret, key_prefix=key_prefix, signing_key=signing_key)

    async def _secret(self) -> bytes | None:
        """Return the secret that signs the tier redis, `None` if there is none."""
        if not self._secrets:
            self._secrets.append(
                await asyncio.to_thread(
                    fallback_secret,
                    self._postgres_url,
                    self._l1_signing_key,
                    schema=self._settings.postgres_schema,
                    password_rotates=self._password is not None,
                )
            )
        return self._secrets[0]


def _required(url: SecretStr | None, variable: str) -> str:
    if url is None:
        raise ConfigurationError(f"{variable} is not set: the checkpointer needs both PostgreSQL and Redis.")
    return url.get_secret_value()
