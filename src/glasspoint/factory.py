"""The doors: functions that open a saver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasspoint.saver import CachedPostgresSaver

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["create_cached_postgres_checkpointer"]


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
