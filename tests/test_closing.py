"""Closing a saver closes its connections, also when whoever waits for it is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, RedisSaver, Settings, create_telemetry, get_checkpointer
from states import config_of
from steps import until

if TYPE_CHECKING:
    from glasspoint.demo.embedded import EmbeddedRedis

# More turns of the event loop than closing takes before its last answer is there.
_TURNS = 40


OTHERS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def opened(kind: str, postgres_url: str, redis_url: str) -> Any:
    telemetry = create_telemetry(registry=CollectorRegistry())
    match kind:
        case "CachedPostgresSaver":
            return await CachedPostgresSaver.create(postgres_url, redis_url, telemetry=telemetry)
        case "RedisSaver":
            return await RedisSaver.create(redis_url, telemetry=telemetry)
    settings = Settings(postgres_url=postgres_url, redis_url=redis_url)
    return await get_checkpointer(settings, telemetry=telemetry).__aenter__()


@pytest.mark.parametrize("kind", ["CachedPostgresSaver", "RedisSaver", "get_checkpointer"])
async def test_a_close_that_is_cancelled_leaves_no_connection_behind(
    kind: str, database: str, own_redis: EmbeddedRedis
) -> None:
    async with (
        Redis.from_url(own_redis.url) as redis,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
    ):

        async def connections() -> int:
            row = await (await conn.execute(OTHERS)).fetchone()
            assert row is not None
            return len(await redis.client_list()) - 1 + int(row[0])

        for turns in range(1, _TURNS):
            saver = await opened(kind, database, own_redis.url)
            await asyncio.gather(*(saver.aget_tuple(config_of(f"{number}")) for number in range(4)))
            assert await connections() > 0
            closing = asyncio.ensure_future(saver.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            await until(lambda: none(connections))


async def none(connections: Any) -> bool:
    return await connections() == 0
