"""Asks a server that a plain URL leads to what it is: one server, a node of a Redis Cluster, or a sentinel.

Open this when a saver opens the wrong client for a URL. A URL whose scheme or mode names a cluster or
sentinels is not asked about. A server that does not answer counts as one server: the first step that reaches
it meets the same question again (`permissions`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from glasspoint.errors import ConfigurationError
from glasspoint.redis.client import close_client, open_redis
from glasspoint.redis.location import locate
from glasspoint.redis.permissions import mode_of, needs_service
from glasspoint.redis.sentinels import services_of
from glasspoint.redis.timeouts import answered_within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis, RedisCluster

    from glasspoint.model.option_types import RedisMode

__all__ = ["connect_redis", "opened_redis"]


async def connect_redis(
    url: object, *, timeout_seconds: float, mode: RedisMode = "auto", step_seconds: float | None = None
) -> Redis | RedisCluster:
    """Open a client for a URL of Redis, and find out what a plain URL leads to.

    Args:
        url: See `client.open_redis`.
        timeout_seconds: See `client.open_redis`.
        mode: What the URL leads to. `auto`: what its scheme says; a plain URL may lead to one server or to a
            node of a cluster. `single`: a plain URL must lead to one server.
        step_seconds: How long the answer may take; by default `timeout_seconds`.

    Raises:
        ConfigurationError: The URL cannot be understood, contradicts the mode, or leads to a sentinel; or to
            a node of a cluster in the mode `single`.
    """
    redis: Any = open_redis(url, timeout_seconds=timeout_seconds, mode=mode, step_seconds=step_seconds)
    if locate(url, mode).kind != "single":
        return redis  # type: ignore[no-any-return]
    try:
        found, services = await _ask(redis, step_seconds or timeout_seconds)
        if found == "sentinel":
            raise ConfigurationError(needs_service(services, redis))
        if found == "cluster" and mode == "single":
            raise ConfigurationError(
                "This server is a node of a Redis Cluster, but CHECKPOINT_REDIS_MODE (redis_mode) is single. "
                "Set it to cluster or auto, or use a server with cluster-enabled no."
            )
    except BaseException:
        await close_client(redis)
        raise
    if found != "cluster" or "path" in redis.connection_pool.connection_kwargs:  # a unix socket
        return redis  # type: ignore[no-any-return]
    await close_client(redis)
    return open_redis(url, timeout_seconds=timeout_seconds, mode="cluster", step_seconds=step_seconds)


@asynccontextmanager
async def opened_redis(
    url: object, *, timeout_seconds: float, mode: RedisMode = "auto"
) -> AsyncIterator[Redis | RedisCluster]:
    """Open a client as `connect_redis` does, for the length of a block.

    `async with` of the client of a cluster would ask all nodes for a list of commands: each must respond, and
    needs a right for that.
    """
    redis = await connect_redis(url, timeout_seconds=timeout_seconds, mode=mode)
    try:
        yield redis
    finally:
        await close_client(redis)


async def _ask(redis: Redis, seconds: float) -> tuple[str, list[str]]:
    """Return the mode of a server, and the services that it knows if it is a sentinel."""
    try:
        with answered_within(seconds):
            mode = mode_of(await redis.info("server"))
            masters = await services_of(redis) if mode == "sentinel" else {}
    except (RedisError, OSError, TimeoutError):
        return "", []
    return mode, sorted(masters)
