"""Opens the Redis client with short timeouts, or checks a client that the caller brings."""

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

# The path of a URL: empty (database 0), or a number.
_DATABASE = re.compile(r"/?|/[0-9]+/?")

# More than a saver uses at once: callers wait in the saver's limiter (see `Turns`), which raises no error.
# Fewer than redis-py's 100, because all processes share the server's `maxclients`, and idle connections are
# not closed.
_MAX_CONNECTIONS = 64

TIMEOUTS_TO_CONNECT = 4
"""redis-py's timeout for connecting, as a multiple of the saver's own timeout. The step that needs the
connection has a shorter timeout, which allows for a blocked event loop. redis-py's timeout does not allow for
that, so it must not end first."""


def open_redis(url: object, *, timeout_seconds: float) -> Redis:
    """Open a client for a `redis://`, `rediss://` or `unix://` URL. It does not connect yet.

    Args:
        url: The URL of Redis. Its query may hold options of redis-py, which override those set here.
        timeout_seconds: The timeout for connecting.

    Raises:
        ConfigurationError: The URL cannot be understood. The message does not repeat the URL, which may hold
            a password.
    """
    parts = split_url(url, "Redis", _SCHEMES, _EXAMPLE)
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        # redis-py would silently use the database 0, or join the digits of several parts.
        raise ConfigurationError(
            f"The Redis URL names the database {parts.path[1:]!r}: it must be a whole number, as in "
            f"{_EXAMPLE}."
        )
    try:
        redis: Redis = Redis.from_url(
            str(url),
            # No timeout for responses: each step has a timeout of its own already (see `Cache`).
            socket_timeout=None,
            socket_connect_timeout=timeout_seconds,
            max_connections=_MAX_CONNECTIONS,
            # One immediate retry, on a fresh connection, because the server may have closed an idle one. That
            # is safe, because every step may run twice. More retries would cost more than asking PostgreSQL.
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
    """Return the client, if the cache can use it.

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
    """Return the client, if a store of full histories can use it.

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

    For a cluster, these are the host and the port of its first startup node.
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
    """Return the settings under which a Redis may evict keys with an expiry; `None` if it may not evict.

    Args:
        memory: The result of `INFO memory`. It needs fewer rights than `CONFIG GET`.
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
