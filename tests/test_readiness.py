"""`/readyz` says where each saver works and how its servers are, now; 503 unless it works where it should."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.telemetry import readiness
from glasspoint.telemetry.http import serve_telemetry, telemetry_app
from states import open_saver

CHECK_SECONDS = readiness._CHECK_SECONDS


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer than a kubelet waits."""
    monkeypatch.setattr(readiness, "_CHECK_SECONDS", 30.0)
    monkeypatch.setattr("glasspoint.lifecycle._SIGN_OF_LIFE_SECONDS", 2.0)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


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
    assert await ask(served) == (503, {"ready": False, "savers": []})


async def test_a_saver_in_its_tier_is_ready(
    served: httpx.AsyncClient, registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    async with open_saver(
        database, redis_url, telemetry=create_telemetry(registry=registry, saver_name="chat")
    ):
        status, found = await ask(served)
        [saver] = found["savers"]
        assert (status, found["ready"]) == (200, True)
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
        }
    assert (await ask(served))[0] == 503, "it was closed"


async def test_it_says_which_server_does_not_answer(
    served: httpx.AsyncClient,
    registry: CollectorRegistry,
    postgres: EmbeddedPostgres,
    database: str,
    own_redis: EmbeddedRedis,
) -> None:
    """The status is the tier's: a process in the tier `cached` serves what it can."""
    async with open_saver(database, own_redis.url, telemetry=create_telemetry(registry=registry)):
        own_redis.freeze()
        status, found = await ask(served)
        assert (status, found["savers"][0]["l1"], found["savers"][0]["l2"]) == (200, "unavailable", "ok")
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
            200,
            "unavailable",
            "unavailable",
        )


async def test_a_loop_that_is_held_up_is_no_reason_to_wait(
    registry: CollectorRegistry, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kubelet waits one second: within that the answer is there, and says that the loop has no time."""
    monkeypatch.setattr(readiness, "_CHECK_SECONDS", CHECK_SECONDS)
    with serve_telemetry(0, registry=registry) as server, ThreadPoolExecutor(1) as elsewhere:
        async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)):
            asking = elsewhere.submit(httpx.get, f"{server.url}/readyz", timeout=30)
            response = asking.result()  # until then the loop is held up, as by a node that computes
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
        vitals = kept[0].vitals
        await kept[0].close()
        kept[0]._telemetry.opened(vitals)  # as if nobody had closed it

    await asyncio.to_thread(asyncio.run, open_and_forget())
    transport = httpx.ASGITransport(telemetry_app(registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as app:
        assert (await app.get("/readyz")).json()["savers"][0]["check"] == "no answer"


@pytest.mark.parametrize(("tiers", "status"), [(("cached",), 503), (("cached", "memory"), 200)])
async def test_other_tiers_are_ready_if_a_setting_says_so(
    tiers: tuple[str, ...], status: int, registry: CollectorRegistry, database: str, redis_url: str
) -> None:
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver:
        saver.vitals.tier = "memory"
        with serve_telemetry(0, registry=registry, ready_tiers=tiers) as server:
            response = await asyncio.to_thread(httpx.get, f"{server.url}/readyz")
    assert response.status_code == status
    assert response.json()["savers"][0]["tier"] == "memory"


async def test_head_has_the_status_and_no_body(served: httpx.AsyncClient) -> None:
    response = await served.head("/readyz")
    assert (response.status_code, response.content) == (503, b"")
