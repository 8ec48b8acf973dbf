"""The Redis client: opened with short timeouts, or checked when the caller brings one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from glasspoint.errors import ConfigurationError
from glasspoint.model.urls import split_url

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "TIMEOUTS_TO_CONNECT",
    "address_of",
    "check_redis",
    "check_redis_or_cluster",
    "database_of",
    "eviction_of",
    "open_redis",
]

_SCHEMES = ("redis", "rediss", "unix")
_EXAMPLE = "redis://user:password@host:6379/0"

# The path of a URL: nothing (the database 0), or a number.
_DATABASE = re.compile(r"/?|/[0-9]+/?")

# More than a saver ever uses at once (see `Turns`): callers wait in the saver, where it is no error. Fewer
# than redis-py's 100, because all processes share the server's `maxclients`, and none is closed when idle.
_MAX_CONNECTIONS = 64

TIMEOUTS_TO_CONNECT = 4
"""How many of its own timeouts a saver gives redis-py to connect. The step that wants the connection ends
that sooner, and heeds a blocked event loop; redis-py's timeout does not, so it must not come first."""


def open_redis(url: object, *, timeout_seconds: float) -> Redis:
    """Open a client for a `redis://`, `rediss://` or `unix://` URL; nothing is connected yet.

    Args:
        url: Where Redis is; options of redis-py may stand in its query, and win.
        timeout_seconds: For connecting.

    Raises:
        ConfigurationError: The URL cannot be understood. Its text is not repeated: it may hold a password.
    """
    parts = split_url(url, "Redis", _SCHEMES, _EXAMPLE)
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        # redis-py takes the database 0, or puts the digits of several parts together.
        raise ConfigurationError(
            f"The Redis URL names the database {parts.path[1:]!r}: it must be a whole number, as in "
            f"{_EXAMPLE}."
        )
    try:
        redis: Redis = Redis.from_url(
            str(url),
            # None for answers: each step has a timeout round it already, see `Cache`.
            socket_timeout=None,
            socket_connect_timeout=timeout_seconds,
            max_connections=_MAX_CONNECTIONS,
            # One more try at once, on a fresh connection: an idle one may have been closed by the server.
            # Every step may run twice; waiting longer than that costs more than asking PostgreSQL.
            retry=Retry(NoBackoff(), 1),
        )
        redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # an unknown option shows here
    except Exception as exc:
        raise ConfigurationError(
            f"The Redis URL cannot be understood ({type(exc).__name__}): it must look like {_EXAMPLE}, with "
            "no options in its query but those of redis-py."
        ) from None
    return check_redis(redis)


def check_redis(redis: object) -> Redis:
    """Return the client if the cache can work with it.

    Raises:
        ConfigurationError: It is not an asynchronous client of one Redis, or it decodes responses to text.
    """
    if not isinstance(redis, Redis):
        raise ConfigurationError(
            f"The Redis client must be a redis.asyncio.Redis (of one server, or from a Sentinel), not "
            f"{type(redis).__module__}.{type(redis).__name__}."
        )
    _check_bytes(redis.connection_pool.connection_kwargs)
    return redis


def check_redis_or_cluster(redis: object) -> Redis | RedisCluster:
    """Return the client if a store of full histories can work with it.

    Raises:
        ConfigurationError: It is not an asynchronous client, or it decodes responses to text.
    """
    if isinstance(redis, RedisCluster):
        _check_bytes(redis.connection_kwargs)
        return redis
    if not isinstance(redis, Redis):
        raise ConfigurationError(
            "The Redis client must be a redis.asyncio.Redis or a redis.asyncio.RedisCluster, not "
            f"{type(redis).__module__}.{type(redis).__name__}."
        )
    return check_redis(redis)


def address_of(redis: Redis | RedisCluster) -> tuple[str | None, int | None]:
    """Return the host (or the socket's path) and the port that a client connects to.

    Of a cluster, these are those of the first node that it was told of.
    """
    if isinstance(redis, RedisCluster):
        node = next(iter(redis.nodes_manager.startup_nodes.values()), None)
        return (node.host, int(node.port)) if node else (None, None)
    kwargs = redis.connection_pool.connection_kwargs
    return kwargs.get("host") or kwargs.get("path"), kwargs.get("port")


def database_of(redis: Redis | RedisCluster) -> object:
    """Return the number of the database that a client selects."""
    pool = getattr(redis, "connection_pool", None)
    return (getattr(pool, "connection_kwargs", {}).get("db") or 0) if pool is not None else 0


def eviction_of(memory: Mapping[str, Any]) -> str | None:
    """Return how a Redis may evict keys with an expiry, as its settings have it; `None` if it may not.

    Args:
        memory: What `INFO memory` says: a user needs fewer rights for it than for `CONFIG GET`.
    """
    limit, policy = int(memory.get("maxmemory") or 0), str(memory.get("maxmemory_policy") or "noeviction")
    if limit <= 0 or policy == "noeviction":
        return None
    return f"maxmemory {limit} bytes, maxmemory-policy {policy}"


def _check_bytes(connection_kwargs: Mapping[str, Any]) -> None:
    if connection_kwargs.get("decode_responses"):
        raise ConfigurationError(
            "The Redis client was made with decode_responses=True, but bytes are stored: make one without it "
            "for Glasspoint (redis.asyncio.Redis.from_url(url))."
        )
