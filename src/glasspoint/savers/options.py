"""Keyword options of the public constructors and factories: their names, their types, and their check.

Open this file to add an option. Type checkers and the checks at run time (an unknown name, a wrong value)
read these `TypedDict`s, so an option needs no other check. The types are in `model.option_types`. At the end,
functions make options of the settings in the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from glasspoint.coherence.last_used import LastUsed
from glasspoint.l2.target import Target
from glasspoint.model.option_types import (
    Age,
    Bytes,
    FewConnections,
    KeyPrefix,
    ManyConnections,
    PasswordSource,
    RedisMode,
    Schema,
    Seconds,
    Serde,
    Share,
    SigningKey,
    SigningKeyBytes,
    Timeout,
    Uses,
)
from glasspoint.telemetry.events import Telemetry

if TYPE_CHECKING:
    from glasspoint.settings import Settings

__all__ = [
    "CachedOptions",
    "OpenCachedOptions",
    "OpenRedisOptions",
    "PoolOptions",
    "RedisOptions",
    "RedisSaverOptions",
    "access_options",
    "service_options",
    "trial_options",
]


class CachedOptions(TypedDict, total=False):
    """Keyword arguments of `CachedPostgresSaver`, which its constructor explains."""

    serde: Serde | None
    cache_ttl: Seconds
    key_prefix: KeyPrefix
    l1_timeout_seconds: Timeout
    write_deadline_seconds: Timeout
    on_l1_outage: Literal["degrade", "raise"]
    sweep_interval_seconds: Timeout
    audit_ratio: Share
    l1_signing_key: SigningKey | None
    l1_compression: Literal["off", "zstd"]
    l1_compression_min_bytes: Bytes
    foreign_writes: Literal["watch", "ignore"]
    on_fork: Literal["count", "raise"]
    retention: Age | None
    last_used: LastUsed | None
    telemetry: Telemetry | None


class PoolOptions(TypedDict, total=False):
    """Keyword arguments of `CachedPostgresSaver.create` for the pool of connections."""

    pool_min_size: FewConnections
    pool_max_size: ManyConnections
    pool_timeout_seconds: Timeout
    connect_timeout_seconds: Timeout
    prepare_threshold: Uses | None
    schema: Schema | None
    password: PasswordSource | None


class OpenCachedOptions(CachedOptions, PoolOptions, total=False):
    """Keyword arguments of `CachedPostgresSaver.create` and `from_conn_string`, which `create` explains."""

    redis_mode: RedisMode


class _RedisOptions(TypedDict, total=False):
    serde: Serde | None
    key_prefix: KeyPrefix
    timeout_seconds: Timeout
    telemetry: Telemetry | None
    target: Target | None
    signing_key: SigningKeyBytes | None


class RedisSaverOptions(_RedisOptions, total=False):
    """Keyword arguments of `RedisSaver`, which its constructor explains."""

    ttl: Seconds | None


class RedisOptions(_RedisOptions, total=False):
    """Keyword arguments of `create_redis_checkpointer`, which the constructor of `RedisSaver` explains."""

    redis_mode: RedisMode


class OpenRedisOptions(RedisOptions, total=False):
    """Keyword arguments of `RedisSaver.create` and `from_conn_string`."""

    ttl: Seconds | None


def access_options(settings: Settings) -> OpenCachedOptions:
    """Return how a saver accesses the servers: the same for the service and for commands."""
    key = settings.l1_signing_key
    return {
        "prepare_threshold": settings.prepare_threshold,
        "connect_timeout_seconds": settings.connect_timeout,
        "pool_timeout_seconds": settings.pool_timeout,
        "l1_timeout_seconds": settings.l1_timeout,
        "write_deadline_seconds": settings.write_deadline,
        "l1_signing_key": None if key is None else key.get_secret_value(),
        "foreign_writes": settings.foreign_writes,
        "redis_mode": settings.redis_mode,
        "schema": settings.postgres_schema,
        "password": settings.postgres_password,
    }


def service_options(settings: Settings) -> OpenCachedOptions:
    """Return all options of the service's saver, but for its serializer and telemetry."""
    return {
        **access_options(settings),
        "cache_ttl": settings.cache_ttl,
        "key_prefix": settings.key_prefix,
        "on_l1_outage": settings.on_l1_outage,
        "on_fork": settings.on_fork,
        "retention": settings.retention,
        "sweep_interval_seconds": settings.sweep_interval,
        "audit_ratio": settings.audit_ratio,
        "l1_compression": settings.l1_compression,
        "l1_compression_min_bytes": settings.l1_compression_min_bytes,
        "pool_min_size": settings.pool_min_size,
        "pool_max_size": settings.pool_max_size,
    }


def trial_options(settings: Settings) -> OpenCachedOptions:
    """Return the options of a saver that tries whether the service's would work.

    It removes nothing that is old, opens no connection in advance, and takes the key prefix as an argument.
    """
    options = service_options(settings)
    for name in ("key_prefix", "retention", "pool_min_size"):
        del options[name]  # type: ignore[misc]
    return options
