"""The doors: functions that open a saver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasspoint.redis_saver import RedisSaver
from glasspoint.saver import CachedPostgresSaver

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

__all__ = ["create_cached_postgres_checkpointer", "create_redis_checkpointer"]


async def create_cached_postgres_checkpointer(
    conn_string: str, redis: Redis | str, **options: Any
) -> CachedPostgresSaver:
    """Open a `CachedPostgresSaver` on a pool of its own, and make the tables if they are not there.

    The caller closes it (`await saver.close()`), and the Redis client if it was a client that was passed in.

    Args:
        conn_string: PostgreSQL, as `postgresql://…`, `postgres://…`, `postgresql+asyncpg://…` or
            `postgresql+psycopg://…`.
        redis: A `redis.asyncio.Redis`, or a URL: `redis://…`, `rediss://…`, `unix://…`.
        options: As for `CachedPostgresSaver.create`: `cache_ttl` (86400) seconds, `pool_max_size` (10), …

    Raises:
        As `CachedPostgresSaver.create`.
    """
    return await CachedPostgresSaver.create(conn_string, redis, **options)


async def create_redis_checkpointer(
    redis: Redis | RedisCluster | str, ttl: float | None = 86400, **options: Any
) -> RedisSaver:
    """Open a `RedisSaver`: the whole history in Redis alone, on plain data types.

    The caller closes it (`await saver.close()`), and the Redis client if it was a client that was passed in.

    Args:
        redis: A `redis.asyncio.Redis` or `redis.asyncio.RedisCluster`, or a URL: `redis://…`, `rediss://…`,
            `unix://…`.
        ttl: Seconds (> 0) that a thread stays after its last use, reading included; `None` for ever.
        options: As for `RedisSaver.create`: `key_prefix` ("glasspoint"), `timeout_seconds` (2.0), …

    Raises:
        As `RedisSaver.create`.
    """
    return await RedisSaver.create(redis, ttl=ttl, **options)
