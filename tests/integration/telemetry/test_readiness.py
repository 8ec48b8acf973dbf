"""`/readyz` says whether a process can serve writes now, where each saver works, and how its servers are."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row
from redis.asyncio import Redis

from databases import with_tables
from glasspoint import CachedPostgresSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry import readiness
from glasspoint.telemetry.http import serve_telemetry, telemetry_app
from states import open_saver
from steps import until

CHECK_SECONDS = readiness._CHECK_SECONDS


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer than a kubelet waits."""
    monkeypatch.setattr(readiness, "_CHECK_SECONDS", 30.0)
    monkeypatch.setattr("glasspoint.savers.opening._SIGN_OF_LIFE_SECONDS", 2.0)


@pytest.fixture(params=["thread", "app"])
async def served(
    request: pytest.FixtureRequest, registry: CollectorRegistry
) -> AsyncIterator[httpx.AsyncClient]:
    """Over a real socket from a thread, or the ASGI app on the saver's own loop."""
    if request.param == "app":
        transport = httpx.ASGITransport(telemetry_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as app:
            yield app
    else:
        with serve_telemetry(0, registry=registry) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
                yield http


async def ask(served: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    response = await served.get("/readyz")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    return response.status_code, response.json()


async def test_a_process_without_a_saver_is_not_ready(served: httpx.AsyncClient) -> None:
    assert await ask(served) == (503, {"ready": False, "degraded": False, "savers": []})


async def test_a_saver_in_its_tier_is_ready(
    served: httpx.AsyncClient, registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    async with open_saver(
        database, redis_url, telemetry=create_telemetry(registry=registry, saver_name="chat")
    ):
        status, found = await ask(served)
        [saver] = found["savers"]
        assert (status, found["ready"], found["degraded"]) == (200, True, False)
        assert before <= datetime.fromisoformat(saver.pop("since")) <= datetime.now(UTC)
        assert len(saver.pop("epoch")) > 40
        assert re.fullmatch(r"[0-9a-f]{12}\.[0-9a-f]{16}", saver.pop("identity"))
        assert saver == {
            "saver": "chat",
            "tier": "cached",
            "l1": "ok",
            "l2": "ok",
            "breaker": "closed",
            "journal": 0,
            "quarantined": 0,
            "ready": True,
            "degraded": False,
        }
    assert (await ask(served))[0] == 503, "it was closed"


async def test_it_says_which_server_does_not_answer(
    served: httpx.AsyncClient,
    registry: CollectorRegistry,
    postgres: EmbeddedPostgres,
    database: str,
    own_redis: EmbeddedRedis,
) -> None:
    """Without Redis it serves all that it has to, slower; without PostgreSQL no write."""
    async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)):
        own_redis.freeze()
        status, found = await ask(served)
        assert (status, found["savers"][0]["l1"], found["savers"][0]["l2"]) == (200, "unavailable", "ok")
        assert (found["ready"], found["degraded"]) == (True, True)
        own_redis.kill()
        async with await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as admin:
            await admin.execute("ALTER DATABASE test ALLOW_CONNECTIONS false")
            try:
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'test'"
                )
                status, found = await ask(served)
            finally:
                await admin.execute("ALTER DATABASE test ALLOW_CONNECTIONS true")
        assert (status, found["savers"][0]["l1"], found["savers"][0]["l2"]) == (
            503,
            "unavailable",
            "unavailable",
        )
        assert (found["ready"], found["degraded"]) == (False, True)


async def l2_of(registry: CollectorRegistry) -> tuple[int, str, bool]:
    """The status, what is said of PostgreSQL, and whether that is degraded."""
    transport = httpx.ASGITransport(telemetry_app(registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as app:
        status, found = await ask(app)
    return status, found["savers"][0]["l2"], found["degraded"]


async def test_a_pool_whose_connections_are_all_in_use_is_busy_and_ready(
    registry: CollectorRegistry, own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    """Else all processes of a busy service would become unready at once. A server that is away is told."""
    url = with_tables(own_postgres)
    telemetry = create_telemetry(registry=registry)
    async with open_saver(url, redis_url, telemetry=telemetry, pool_max_size=1) as saver:

        async def is_ok() -> bool:
            return await l2_of(registry) == (200, "ok", False)

        await until(is_ok)
        # A session of somebody else goes on while the server turns new ones away.
        async with saver._l2.connections.connection(None) as held:
            await held.execute("SELECT 1")
            assert await l2_of(registry) == (200, "busy", False)
            async with await psycopg.AsyncConnection.connect(own_postgres.url, autocommit=True) as admin:
                await admin.execute("ALTER DATABASE test ALLOW_CONNECTIONS false")
                assert await l2_of(registry) == (200, "busy", False)
                await admin.execute("ALTER DATABASE test ALLOW_CONNECTIONS true")
            os.kill(own_postgres.pid, signal.SIGSTOP)
            try:
                assert await l2_of(registry) == (503, "unavailable", True)
            finally:
                os.kill(own_postgres.pid, signal.SIGCONT)
            assert await l2_of(registry) == (200, "busy", False)
            own_postgres.stop()
            assert await l2_of(registry) == (503, "unavailable", True)
        own_postgres.start()
        await until(is_ok)


async def test_a_saver_on_a_single_connection_is_busy_while_a_call_has_it(
    registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    connection = await psycopg.AsyncConnection.connect(
        database, autocommit=True, prepare_threshold=0, row_factory=dict_row
    )
    async with connection, Redis.from_url(redis_url) as redis:
        upstream = AsyncPostgresSaver(connection)
        saver = CachedPostgresSaver(upstream, redis, telemetry=create_telemetry(registry=registry))
        try:
            await saver.setup()
            async with upstream.lock:
                assert (await l2_of(registry))[:2] == (200, "busy")
            assert (await l2_of(registry))[0] == 200
        finally:
            await saver.close()


async def test_a_postgresql_that_takes_no_writes_is_not_ready(
    registry: CollectorRegistry, database: str, redis_url: str, postgres: EmbeddedPostgres
) -> None:
    """A primary that a failover has demoted, for example."""
    end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'test'"
    async with (
        await psycopg.AsyncConnection.connect(postgres.url, autocommit=True) as admin,
        open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)),
    ):
        await admin.execute("ALTER DATABASE test SET default_transaction_read_only = on")
        await admin.execute(end)
        assert await l2_of(registry) == (503, "read_only", True)
        await admin.execute("ALTER DATABASE test RESET default_transaction_read_only")
        await admin.execute(end)
        assert await l2_of(registry) == (200, "ok", False)


NOWHERE = "postgresql://postgres@127.0.0.1:1/none"


async def test_a_lower_tier_that_works_is_ready_and_degraded(
    served: httpx.AsyncClient, registry: CollectorRegistry, own_redis: EmbeddedRedis
) -> None:
    settings = Settings(postgres_url=NOWHERE, redis_url=own_redis.url, fallbacks="redis", probe_interval=1000)
    async with get_checkpointer(settings, telemetry=create_telemetry(registry=registry)):
        status, found = await ask(served)
        assert (status, found["ready"], found["degraded"]) == (200, True, True)
        assert (found["savers"][0]["tier"], found["savers"][0]["redis"]) == ("redis", "ok")
        own_redis.kill()
        status, found = await ask(served)
        assert (status, found["ready"], found["degraded"]) == (503, False, True)
        assert found["savers"][0]["redis"] == "unavailable"


async def test_the_memory_tier_is_ready_and_degraded(
    served: httpx.AsyncClient, registry: CollectorRegistry
) -> None:
    settings = Settings(postgres_url=NOWHERE, redis_url="redis://127.0.0.1:1/0", probe_interval=1000)
    async with get_checkpointer(settings, telemetry=create_telemetry(registry=registry)):
        status, found = await ask(served)
        assert (status, found["ready"], found["degraded"]) == (200, True, True)
        assert found["savers"][0]["tier"] == "memory"


async def test_a_loop_that_is_held_up_is_no_reason_to_wait(
    registry: CollectorRegistry, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet waits one second: within that the answer is there, and says that the loop has no time."""
    monkeypatch.setattr(readiness, "_CHECK_SECONDS", CHECK_SECONDS)
    with serve_telemetry(0, registry=registry) as server, ThreadPoolExecutor(1) as elsewhere:
        async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)):
            asking = elsewhere.submit(httpx.get, f"{server.url}/readyz", timeout=30)
            response = asking.result()  # until then the loop is held up, as by a node that computes
    assert response.status_code == 503
    assert response.json()["savers"][0]["check"] == "no answer"
    assert CHECK_SECONDS < 1


def test_a_saver_of_another_thread_s_loop_is_asked_there(
    registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    with (
        CachedPostgresSaver.from_conn_string(
            database, redis_url=redis_url, telemetry=create_telemetry(registry=registry)
        ),
        serve_telemetry(0, registry=registry) as server,
    ):
        found = httpx.get(f"{server.url}/readyz").json()
    assert (found["ready"], found["savers"][0]["l1"], found["savers"][0]["l2"]) == (True, "ok", "ok")


async def test_a_saver_whose_loop_has_ended_does_not_answer(
    registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    kept = []

    async def open_and_forget() -> None:
        kept.append(
            await CachedPostgresSaver.create(
                database, redis_url, telemetry=create_telemetry(registry=registry)
            )
        )
        status = kept[0].status
        await kept[0].close()
        kept[0]._telemetry.opened(status)  # as if nobody had closed it

    await asyncio.to_thread(asyncio.run, open_and_forget())
    transport = httpx.ASGITransport(telemetry_app(registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as app:
        assert (await app.get("/readyz")).json()["savers"][0]["check"] == "no answer"


@pytest.mark.parametrize(("tiers", "status"), [(("cached",), 503), (("cached", "memory"), 200)])
async def test_a_setting_narrows_the_tiers_that_are_ready(
    tiers: tuple[str, ...], status: int, registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver:
        saver.status.tier = "memory"
        with serve_telemetry(0, registry=registry, ready_tiers=tiers) as server:
            response = await asyncio.to_thread(httpx.get, f"{server.url}/readyz")
    assert response.status_code == status
    assert response.json()["savers"][0]["tier"] == "memory"


async def test_head_has_the_status_and_no_body(served: httpx.AsyncClient) -> None:
    response = await served.head("/readyz")
    assert (response.status_code, response.content) == (503, b"")


@pytest.mark.parametrize("tiers", ["cached", ["cahced"], (), None, [[]], 5])
@pytest.mark.parametrize("door", [partial(serve_telemetry, 0), telemetry_app], ids=["served", "mounted"])
def test_tiers_with_which_a_process_would_never_be_ready_are_refused(door: Any, tiers: Any) -> None:
    with pytest.raises(ConfigurationError, match="it must be one or more of 'cached', 'redis', 'memory'"):
        door(ready_tiers=tiers)
