"""LangGraph's own conformance suite passes on `RedisSaver` and on `MemorySaver`, all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from conformance_suite import ALL, check_conformance
from glasspoint import MemorySaver, RedisSaver, create_telemetry
from redis_tier import SIGNED

pytestmark = pytest.mark.usefixtures("checkpoint_format")


@pytest.mark.parametrize("options", [{}, SIGNED], ids=["alone", "of a target, signed"])
@pytest.mark.parametrize("capability", ALL)
async def test_redis_conforms(capability: str, options: dict[str, Any], redis_url: str) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with Redis.from_url(redis_url) as redis:
        await redis.script_flush()
        await check_conformance(
            capability,
            "RedisSaver",
            lambda: RedisSaver.from_conn_string(redis_url, telemetry=telemetry, **options),
        )


@pytest.mark.parametrize("capability", ALL)
async def test_redis_conforms_behind_a_sentinel(
    capability: str, behind_a_sentinel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No process works in a tier above, so nobody has to hear of the first thread.
    monkeypatch.setattr("glasspoint.history.in_redis.HEARD_SECONDS", 0.0)
    telemetry = create_telemetry(registry=CollectorRegistry())
    await check_conformance(
        capability,
        "RedisSaver behind a sentinel",
        lambda: RedisSaver.from_conn_string(behind_a_sentinel, telemetry=telemetry, **SIGNED),
    )


@pytest.mark.parametrize("capability", ALL)
async def test_memory_conforms(capability: str) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())

    @asynccontextmanager
    async def opened() -> AsyncIterator[MemorySaver]:
        async with MemorySaver(telemetry=telemetry) as saver:
            yield saver

    await check_conformance(capability, "MemorySaver", opened)
