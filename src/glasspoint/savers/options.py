"""Keyword options of the public constructors and factories: their names, their types, and their check.

Open this file to add an option. Type checkers and the checks at run time (an unknown name, a wrong value)
read these `TypedDict`s, so an option needs no other check. The types are in `model.option_types`.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from glasspoint.coherence.last_used import LastUsed
from glasspoint.l2.target import Target
from glasspoint.model.option_types import (
    Age,
    Bytes,
    FewConnections,
    KeyPrefix,
    ManyConnections,
    PasswordSource,
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

__all__ = [
    "CachedOptions",
    "OpenCachedOptions",
    "OpenRedisOptions",
    "RedisOptions",
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


class OpenCachedOptions(CachedOptions, total=False):
    """Keyword arguments of `CachedPostgresSaver.create` and `from_conn_string`, which `create` explains."""

    pool_min_size: FewConnections
    pool_max_size: ManyConnections
    pool_timeout_seconds: Timeout
    connect_timeout_seconds: Timeout
    prepare_threshold: Uses | None
    schema: Schema | None
    password: PasswordSource | None


class RedisOptions(TypedDict, total=False):
    """Keyword arguments of `create_redis_checkpointer`, which the constructor of `RedisSaver` explains."""

    serde: Serde | None
    key_prefix: KeyPrefix
    timeout_seconds: Timeout
    telemetry: Telemetry | None
    target: Target | None
    signing_key: SigningKeyBytes | None


class OpenRedisOptions(RedisOptions, total=False):
    """Keyword arguments of `RedisSaver.create` and `from_conn_string`."""

    ttl: Seconds | None
