"""The tier `redis` of one target, signed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis, RedisCluster

from glasspoint import RedisSaver, create_telemetry
from glasspoint.l2.target import Target

TARGET = Target("db", "5432", "app")
KEY = b"sixteen bytes..!"


@asynccontextmanager
async def opened(redis: Redis | RedisCluster | str, **options: Any) -> AsyncIterator[RedisSaver]:
    options = SIGNED | options
    options.setdefault("telemetry", create_telemetry(registry=CollectorRegistry()))
    async with await RedisSaver.create(redis, **options) as saver:
        yield saver


SIGNED: dict[str, Any] = {"target": TARGET, "signing_key": KEY}
