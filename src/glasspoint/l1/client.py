"""The Redis client: opened with short timeouts, or checked when the caller brings one."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from glasspoint.errors import ConfigurationError
from glasspoint.urls import split_url

__all__ = ["address_of", "check_redis", "open_redis"]

_SCHEMES = ("redis", "rediss", "unix")
_EXAMPLE = "redis://user:password@host:6379/0"


def open_redis(url: object, *, timeout_seconds: float) -> Redis:
    """Open a client for a `redis://`, `rediss://` or `unix://` URL; nothing is connected yet.

    Args:
        url: Where Redis is; options of redis-py may stand in its query.
        timeout_seconds: For connecting.

    Raises:
        ConfigurationError: The URL cannot be understood. Its text is not repeated: it may hold a password.
    """
    split_url(url, "Redis", _SCHEMES, _EXAMPLE)
    try:
        redis: Redis = Redis.from_url(
            str(url),
            # None for answers: each step has a timeout round it already, see `Cache`.
            socket_timeout=None,
            socket_connect_timeout=timeout_seconds,
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
    if redis.connection_pool.connection_kwargs.get("decode_responses"):
        raise ConfigurationError(
            "The Redis client was made with decode_responses=True, but the cache stores bytes: make one "
            "without it for Glasspoint (redis.asyncio.Redis.from_url(url))."
        )
    return redis


def address_of(redis: Redis) -> tuple[str | None, int | None]:
    """Return the host (or the socket's path) and the port that a client connects to."""
    kwargs = redis.connection_pool.connection_kwargs
    return kwargs.get("host") or kwargs.get("path"), kwargs.get("port")
