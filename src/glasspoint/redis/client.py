"""Opens the Redis client with short timeouts, or checks a client that the caller brings.

`location` says which URLs there are. `detection` asks a server that a plain URL leads to what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from glasspoint.errors import ConfigurationError
from glasspoint.model.cancellation import run_to_the_end
from glasspoint.redis.location import EXAMPLES, locate
from glasspoint.redis.sentinels import SentinelPool, Sentinels, open_master

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Context

    from glasspoint.model.option_types import RedisMode
    from glasspoint.redis.location import Location

__all__ = [
    "TIMEOUTS_TO_CONNECT",
    "address_of",
    "check_redis",
    "check_redis_or_cluster",
    "close_client",
    "database_of",
    "eviction_of",
    "follow_sentinels",
    "look_after_refusal",
    "look_again",
    "master_of",
    "open_redis",
]

# More than a saver uses at once: callers wait in the saver's limiter (see `Turns`), which raises no error.
# Fewer than redis-py's 100, because all processes share the server's `maxclients`, and idle connections are
# not closed.
_MAX_CONNECTIONS = 64

_CLUSTER_RETRIES = 3

TIMEOUTS_TO_CONNECT = 4
"""redis-py's timeout for connecting, as a multiple of the saver's own timeout. The step that needs the
connection has a shorter timeout, which allows for a blocked event loop. redis-py's timeout does not allow for
that, so it must not end first."""


def open_redis(
    url: object, *, timeout_seconds: float, mode: RedisMode = "auto", step_seconds: float | None = None
) -> Redis | RedisCluster:
    """Open a client for a URL of Redis. It does not connect yet: see also `detection.connect_redis`.

    Args:
        url: The URL of Redis, in one of the forms of `location`. Its query may hold options of redis-py,
            which override those set here.
        timeout_seconds: The timeout for connecting.
        mode: What the URL leads to. `auto`: what its scheme says.
        step_seconds: The time in which a call must be done, so that questions to sentinels take half of it
            at most; by default `timeout_seconds`.

    Raises:
        ConfigurationError: The URL cannot be understood, or contradicts the mode. The message does not repeat
            the URL, which may hold a password.
    """
    location = locate(url, mode)
    options = {
        # No timeout for responses: each step has a timeout of its own already (see `Contact`).
        "socket_timeout": None,
        "socket_connect_timeout": timeout_seconds,
        "max_connections": _MAX_CONNECTIONS,
        # One immediate retry, on a fresh connection, because the server may have closed an idle one. That
        # is safe, because every step may run twice. More retries would cost more than asking PostgreSQL.
        "retry": Retry(NoBackoff(), 1),
    }
    open_kind = {"single": _open_single, "sentinel": _open_sentinel, "cluster": _open_cluster}
    try:
        redis = open_kind[location.kind](location, options, (step_seconds or timeout_seconds) / 2)
        if isinstance(redis, Redis):
            # An unknown option shows here.
            redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except Exception as exc:
        raise ConfigurationError(
            f"The Redis URL cannot be understood ({type(exc).__name__}): it must look like "
            f"{EXAMPLES[location.kind]}, with no options in its query but those of redis-py."
        ) from None
    return check_redis_or_cluster(redis)


def _open_single(location: Location, options: dict[str, Any], _: float) -> Redis:
    redis: Redis = Redis.from_url(location.url, **options)
    return redis


def _open_sentinel(location: Location, options: dict[str, Any], seconds: float) -> Redis:
    sentinels = Sentinels(
        location.hosts,
        location.service,
        timeout_seconds=seconds,
        sentinel_options=location.sentinel_options,
        options={**options, **location.options},
    )
    for sentinel in sentinels.sentinels:
        sentinel.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    return open_master(sentinels)


def _open_cluster(location: Location, options: dict[str, Any], _: float) -> RedisCluster:
    # A retry of the client of a cluster asks again where the key is, so that it finds a promoted node.
    options["retry"] = Retry(NoBackoff(), _CLUSTER_RETRIES)
    nodes = [ClusterNode(host, port) for host, port in location.hosts]
    return RedisCluster(startup_nodes=nodes, **{**options, **location.options})


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


async def close_client(redis: Redis | RedisCluster) -> None:
    """Close a client and its connections, also if the caller is cancelled meanwhile.

    redis-py's own closing breaks off then, and leaves connections open.
    """
    await run_to_the_end(redis.aclose())


def address_of(redis: Redis | RedisCluster) -> tuple[str | None, int | None]:
    """Return the host (or the socket's path) and the port that a client connects to.

    For a cluster, these are the host and the port of its first startup node; with sentinels, those of the
    master that they named last.
    """
    if isinstance(redis, RedisCluster):
        node = next(iter(redis.nodes_manager.startup_nodes.values()), None)
        return (node.host, int(node.port)) if node else (None, None)
    pool = redis.connection_pool
    if isinstance(pool, SentinelPool):
        return pool.sentinel_manager.master or (None, None)
    if isinstance(pool, SentinelConnectionPool):
        return pool.master_address or (None, None)
    kwargs = redis.connection_pool.connection_kwargs
    return kwargs.get("host") or kwargs.get("path"), kwargs.get("port")


def follow_sentinels(
    redis: Redis | RedisCluster, call: Callable[[tuple[str, int]], object], *, context: Context
) -> None:
    """Ask the sentinels once a second while the client is used, and follow the master that they name.

    A client that follows no sentinels is left as it is, and so is one that the caller has made with the
    `Sentinel` of redis-py.

    Args:
        redis: The client.
        call: Called with the host and the port whenever another master is named, the first one too.
        context: The context of the task that asks the sentinels.
    """
    pool = getattr(redis, "connection_pool", None)
    if isinstance(pool, SentinelPool):
        pool.sentinel_manager.moved.append(call)
        pool.watch_in(context)


def master_of(redis: Redis | RedisCluster) -> tuple[str, int] | None:
    """Return the host and the port of the master that the sentinels named last; `None` without sentinels."""
    pool = getattr(redis, "connection_pool", None)
    return pool.sentinel_manager.master if isinstance(pool, SentinelPool) else None


async def look_after_refusal(
    redis: Redis | RedisCluster, by: tuple[str, int] | None, *, ends_at: float
) -> bool:
    """Ask the sentinels, after a server has refused a command as a former master does.

    Args:
        redis: The client.
        by: The result of `master_of` before the command.
        ends_at: When to give up, on the clock `time.monotonic`.

    Returns:
        Whether to try again. `False` without sentinels.
    """
    pool = getattr(redis, "connection_pool", None)
    if by is None or not isinstance(pool, SentinelPool):
        return False
    return await pool.sentinel_manager.look_after_refusal(by, ends_at=ends_at)


async def look_again(redis: Redis | RedisCluster) -> bool:
    """Ask the sentinels for the master before the next command.

    Returns:
        Whether the client follows sentinels. If not, nothing was done.
    """
    pool = getattr(redis, "connection_pool", None)
    if isinstance(pool, SentinelPool):
        await pool.look_again()
    elif isinstance(pool, SentinelConnectionPool):  # of a client that the caller brings
        await pool.disconnect(inuse_connections=False)
    return isinstance(pool, SentinelConnectionPool)


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
