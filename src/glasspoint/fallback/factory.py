"""The functions that open a saver, with the fallback chain (`get_checkpointer`) or without."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from weakref import WeakSet

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import InstanceOf

from glasspoint.coherence.images import Images
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
from glasspoint.savers.options import OpenCachedOptions, OpenRedisOptions, RedisOptions
from glasspoint.savers.redis_saver import RedisSaver
from glasspoint.settings import Settings
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import Telemetry

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol
    from pydantic import SecretStr
    from redis.asyncio import Redis, RedisCluster

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
            if not any(each.vitals.active for each in self._savers):
                self.history.forget_moved()  # a chain that works here still has to follow moved threads
            self._savers.add(saver)
        return saver


# Process, target and key prefix -> the tier `memory`. The process is part of the key, because a child gets a
# copy of the parent's tiers at a fork().
_memories: dict[tuple[int, Target, str], _Memory] = {}

# The targets whose missing signature was logged.
_unsigned: set[Target] = set()


async def create_cached_postgres_checkpointer(
    conn_string: str, redis: Redis | str, **options: Unpack[OpenCachedOptions]
) -> CachedPostgresSaver:
    """Open a `CachedPostgresSaver` on a pool of its own, and create the tables if they do not exist.

    The caller closes the saver (`await saver.close()`), and also the Redis client, if it passed one in.

    Args:
        conn_string: Where PostgreSQL is: `postgresql://…`, `postgres://…`, `postgresql+asyncpg://…`,
            `postgresql+psycopg://…` or libpq's `key=value` form.
        redis: Where Redis is: `redis://…`, `rediss://…`, `unix://…`; or a `redis.asyncio.Redis`.
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
        redis_url: Where Redis is: `redis://…`, `rediss://…` or `unix://…`; or a `redis.asyncio.Redis` or
            `redis.asyncio.RedisCluster`.
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
    postgres_url = _required(settings.postgres_url, "POSTGRES_URL")
    redis_url = _required(settings.redis_url, "REDIS_URL")
    telemetry = telemetry or create_telemetry(thread_ids=settings.telemetry_thread_ids)
    shared: dict[str, Any] = {"serde": serde or JsonPlusSerializer(), "telemetry": telemetry.for_standby()}
    saver_options = settings.saver_options
    if postgres_password is not None:
        saver_options["password"] = postgres_password
    l1_signing_key, schema = saver_options["l1_signing_key"], settings.postgres_schema
    target = Target.of(postgres_url, schema=schema)
    opened_before: list[RedisSaver] = []  # the last saver of the tier redis
    secrets: list[bytes | None] = []  # of the tier redis, once it was opened: making it takes a moment

    async def secret() -> bytes | None:
        if not secrets:
            secrets.append(
                await asyncio.to_thread(
                    fallback_secret,
                    postgres_url,
                    l1_signing_key,
                    schema=schema,
                    password_rotates=saver_options["password"] is not None,
                )
            )
        return secrets[0]

    async def last_used() -> LastUsed | None:
        """Return the record that processes of this target leave in Redis, `None` if they cannot sign it."""
        shared_secret = await secret() if "redis" in settings.fallbacks else None
        if shared_secret is None:
            return None
        return LastUsed(
            target.id,
            shared_secret,
            key_prefix=settings.key_prefix,
            signing_key=None if l1_signing_key is None else secret_of(l1_signing_key),
        )

    async def open_cached() -> CachedPostgresSaver:
        return await CachedPostgresSaver.create(
            postgres_url,
            redis_url,
            cache_ttl=settings.cache_ttl,
            key_prefix=settings.key_prefix,
            on_l1_outage=settings.on_l1_outage,
            on_fork=settings.on_fork,
            retention=settings.retention,
            sweep_interval_seconds=settings.sweep_interval,
            last_used=await last_used(),
            audit_ratio=settings.audit_ratio,
            l1_compression=settings.l1_compression,
            l1_compression_min_bytes=settings.l1_compression_min_bytes,
            pool_min_size=settings.pool_min_size,
            pool_max_size=settings.pool_max_size,
            **saver_options,
            **shared,
        )

    async def open_redis() -> RedisSaver:
        if await secret() is None and target not in _unsigned:
            _unsigned.add(target)
            _log.warning(
                "The tier redis of %s is not signed: POSTGRES_URL has no password that stays the same, and "
                "CHECKPOINT_L1_SIGNING_KEY is not set. Somebody who can write to Redis can change what a "
                "conversation remembers during an outage, and run code in this process. And no conversation "
                "goes on from its cached state. Set the key.",
                target.name,
            )
        try:
            saver = await RedisSaver.create(
                redis_url,
                ttl=settings.redis_ttl,
                key_prefix=settings.key_prefix,
                timeout_seconds=settings.redis_timeout,
                target=target,
                signing_key=await secret(),
                **shared,
            )
        except RedisRefusedError as exc:
            raise ConfigurationError(
                f"The tier redis cannot be used as it is configured. {exc} Correct REDIS_URL, or the user's "
                "rights on the server."
            ) from exc
        record = await last_used()
        states = None
        if record is not None:
            states = Images(
                saver.vitals.redis,
                record,
                shared["telemetry"],
                key_prefix=settings.key_prefix,
                timeout_seconds=settings.redis_timeout,
            )
        saver.begin_from(states, unknown=settings.fallback_unknown)
        if opened_before:
            await saver.expect_list(opened_before.pop().list_made)
        opened_before.append(saver)
        return saver

    memory = _memories.setdefault((os.getpid(), target, settings.key_prefix), _Memory())

    async def open_memory() -> MemorySaver:
        saver = memory.open(**shared)
        saver.begin_from(None, unknown=settings.fallback_unknown)
        return saver

    specs = {
        "cached": Spec(
            "cached", open_cached, (L2UnavailableError, L2DeadlineError), "postgres_unavailable", ""
        ),
        "redis": Spec(
            "redis", open_redis, (RedisUnavailableError,), "redis_unavailable", _MEANS_REDIS, is_shared=True
        ),
        "memory": Spec(
            "memory",
            open_memory,
            (),
            "",
            _MEANS_MEMORY,
            is_shared=True,
            is_empty=lambda: memory.history.is_empty,
        ),
    }
    chain = Chain(
        [specs[name] for name in ("cached", *settings.fallbacks)],
        telemetry,
        probe_seconds=settings.probe_interval,
    )
    return await FallbackSaver.open(chain)


def _required(url: SecretStr | None, variable: str) -> str:
    if url is None:
        raise ConfigurationError(f"{variable} is not set: the checkpointer needs both PostgreSQL and Redis.")
    return url.get_secret_value()
