"""Registries as people have them: shared, taken, emptied, dropped; and scrapes at any moment."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from redis.asyncio import Redis

from databases import with_tables
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry import metrics
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.collectors import READ_AT_SCRAPE, SaverCollector
from glasspoint.telemetry.http import serve_telemetry
from states import make_pool, open_saver
from steps import Thread, away, until

# Without the setting, a saver has no retention to speak of.
ALWAYS = set(READ_AT_SCRAPE) - {"retention_last_success_timestamp_seconds"}

PROMTOOL = shutil.which("promtool")


def stored_by(saver: CachedPostgresSaver) -> Any:
    """What a scrape says of the tables, once they were looked at."""
    assert saver.status.storage is not None
    return saver.status.storage()


def sample_names(registry: CollectorRegistry, saver: str) -> set[str]:
    """Of which metrics of the catalogue this saver has samples."""
    found = set()
    for family in registry.collect():
        for sample in family.samples:
            if sample.labels.get("saver") == saver:
                found.add(sample.name.removeprefix("glasspoint_"))
    return found


# ------------------------------------------------------------------ two savers, one registry


async def test_two_savers_share_a_registry(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    one, two = (create_telemetry(saver_name=name, registry=registry) for name in ("one", "two"))
    async with open_saver(database, redis_url, telemetry=one, pool_max_size=2) as saver:
        async with open_saver(database, redis_url, telemetry=two, pool_max_size=3) as other:
            for each in (saver, other):
                await until(partial(stored_by, each))
                await Thread(each.status.tier + str(id(each))).put(each)
            for name, size in (("one", 2), ("two", 3)):
                assert sample_names(registry, name) >= ALWAYS
                assert registry.get_sample_value("glasspoint_pool_max_connections", {"saver": name}) == size
                labels = {"saver": name, "operation": "put", "outcome": "ok"}
                assert registry.get_sample_value("glasspoint_operation_duration_seconds_count", labels) == 1
        assert "storage_bytes" in sample_names(registry, "one")
        assert "storage_bytes" not in sample_names(registry, "two"), "it is closed"


async def test_savers_of_one_name_add_up_but_look_at_one_database(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    labels = {"saver": "default", "table": "glasspoint_l1_journal"}
    async with (
        open_saver(database, redis_url, telemetry=telemetry, pool_max_size=2) as one,
        open_saver(database, redis_url, telemetry=telemetry, pool_max_size=3) as two,
        await psycopg.AsyncConnection.connect(database) as conn,
    ):
        for saver in (one, two):
            await until(partial(stored_by, saver))
        row = await (await conn.execute("SELECT pg_total_relation_size('glasspoint_l1_journal')")).fetchone()
        assert row is not None
        assert registry.get_sample_value("glasspoint_storage_bytes", labels) == row[0]
        assert registry.get_sample_value("glasspoint_pool_max_connections", {"saver": "default"}) == 5


async def test_savers_on_one_pool_and_one_client_have_it_once(empty_database: str, redis_url: str) -> None:
    registry = CollectorRegistry()

    def lost() -> float | None:
        return registry.get_sample_value("glasspoint_pool_connections_lost_total", {"saver": "default"})

    async with make_pool(empty_database, size=4) as pool, Redis.from_url(redis_url) as redis:
        savers = [
            CachedPostgresSaver(
                AsyncPostgresSaver(pool), redis, telemetry=create_telemetry(registry=registry)
            )
            for _ in range(2)
        ]
        await savers[0].setup()
        assert registry.get_sample_value("glasspoint_pool_max_connections", {"saver": "default"}) == 4
        [idle] = [
            registry.get_sample_value(
                "glasspoint_redis_pool_connections", {"saver": "default", "state": "idle"}
            )
        ]
        assert idle == len(redis.connection_pool._available_connections)
        before = lost() or 0
        conn = await pool.getconn()
        await conn.close()
        await pool.putconn(conn)
        assert lost() == before + 1
        for saver in savers:
            await saver.close()
            assert lost() == before + 1, "once, and it stays"


# ------------------------------------------------------------------ names that are taken


@pytest.mark.parametrize("name", METRICS)
def test_a_name_that_somebody_else_has_is_an_error_that_says_so(name: str) -> None:
    registry = CollectorRegistry()
    theirs = Gauge(f"glasspoint_{name}", "Theirs.", registry=registry)
    with pytest.raises(ConfigurationError, match=rf"glasspoint_{name}\b.*create_telemetry\(registry="):
        create_telemetry(registry=registry)
    assert [family.name for family in registry.collect()] == [f"glasspoint_{name}"], "nothing of ours is left"
    registry.unregister(theirs)
    create_telemetry(registry=registry)
    assert len(list(registry.collect())) == len(METRICS)


def test_glasspoint_imported_twice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    create_telemetry(registry=registry)
    monkeypatch.setattr(metrics.Families, "_of", weakref.WeakKeyDictionary())  # the other copy knows nothing
    with pytest.raises(ConfigurationError, match="imported twice"):
        create_telemetry(registry=registry)
    assert len(list(registry.collect())) == len(METRICS)


async def test_a_saver_with_default_telemetry_says_it_too_and_leaves_nothing_open(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry(auto_describe=True)
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    theirs = Counter("glasspoint_l1_reads", "Theirs.", registry=registry)
    with pytest.raises(ConfigurationError, match="glasspoint_l1_reads_total"):
        await CachedPostgresSaver.create(database, redis_url)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'test' AND pid <> pg_backend_pid()"

        async def connected() -> int:
            row = await (await conn.execute(query)).fetchone()
            assert row is not None
            return int(row[0])

        async def none() -> bool:
            return not await connected()

        await until(none)
    registry.unregister(theirs)
    saver = await CachedPostgresSaver.create(database, redis_url)
    await saver.close()
    assert "l1_reads_total" in sample_names(registry, "default")


@pytest.mark.parametrize("registry", ["default", 7, object()])
def test_what_is_no_registry_is_refused(registry: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a prometheus_client"):
        create_telemetry(registry=registry)


# ------------------------------------------------------------------ their lives


async def test_a_registry_that_describes_collects_nothing_for_it(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[SaverCollector] = []
    collect = SaverCollector.collect

    def noted(self: SaverCollector) -> Any:
        collected.append(self)
        return collect(self)

    monkeypatch.setattr(SaverCollector, "collect", noted)
    registry = CollectorRegistry(auto_describe=True)
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)):
        assert not collected
        assert ALWAYS - {"storage_bytes", "storage_rows"} <= sample_names(registry, "default")
        assert len(collected) == 1


def test_what_was_unregistered_is_there_again_with_the_next_saver() -> None:
    registry = CollectorRegistry()
    with create_telemetry(registry=registry).operation("get_tuple", None) as operation:
        operation.l1_result = "hit"
    for collector in list(registry._collector_to_names):
        registry.unregister(collector)
    assert not list(registry.collect())
    create_telemetry(registry=registry)
    labels = {"saver": "default", "result": "hit"}
    assert registry.get_sample_value("glasspoint_l1_reads_total", labels) == 1, "and nothing is forgotten"


async def test_a_registry_may_go_before_its_saver(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    gone = weakref.ref(registry)
    async with open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver:
        del registry
        gc.collect()
        assert gone() is None
        thread = Thread("a")
        await thread.put(saver)
        assert await thread.turn(saver) == 1


# ------------------------------------------------------------------ scrapes at any moment


@contextmanager
def scraped_all_the_time(registry: CollectorRegistry) -> Iterator[list[bytes]]:
    """Two threads scrape, until the end. What they raise is raised."""
    over = threading.Event()
    pages: list[bytes] = []

    def scrape() -> None:
        while not over.is_set():
            pages.append(generate_latest(registry))

    with ThreadPoolExecutor(2) as threads:
        scraping = [threads.submit(scrape) for _ in range(2)]
        try:
            yield pages
        finally:
            over.set()
        for each in scraping:
            each.result()


@pytest.mark.slow
async def test_savers_open_and_close_while_they_are_scraped(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    names = [f"saver {number}" for number in range(4)]

    async def come_and_go(name: str) -> None:
        for _ in range(3):
            telemetry = create_telemetry(saver_name=name, registry=registry)
            async with open_saver(database, redis_url, telemetry=telemetry, pool_max_size=2) as saver:
                await Thread(name).put(saver)
                before = len(pages)
                await until(lambda before=before: len(pages) > before + 2)  # type: ignore[misc]

    async with open_saver(database, redis_url):
        pass  # the tables are made
    with scraped_all_the_time(registry) as pages:
        await asyncio.gather(*(come_and_go(name) for name in names))
    for page in pages[:: max(1, len(pages) // 50)]:
        list(parse_text(page.decode()))  # raises if a page is cut or torn
    for name in names:
        # An open saver is on three pages at least, of perhaps thousands: a sample of the pages may miss it.
        shown = [page for page in pages if f'saver="{name}"'.encode() in page]
        assert shown, f"no page showed {name}"
        families = list(parse_text(shown[-1].decode()))
        assert any(sample.labels.get("saver") == name for family in families for sample in family.samples)


@pytest.mark.parametrize("outage", ["down", "frozen"])
async def test_a_scrape_waits_neither_for_a_server_nor_for_the_loop(
    outage: str, own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    """This thread is the loop's, and it waits here for the answer: nothing on the loop can have helped."""
    registry = CollectorRegistry()
    with serve_telemetry(0, registry=registry) as server:
        async with open_saver(
            with_tables(own_postgres), redis_url, telemetry=create_telemetry(registry=registry)
        ) as saver:
            await until(partial(stored_by, saver))
            saver._parts.sizes._ask_from = 0.0  # it is time for another look
            with away(own_postgres, outage):
                page = httpx.get(f"{server.url}/metrics").text  # noqa: ASYNC210
                assert saver._parts.sizes._looking
    for name in ("storage_bytes", "storage_rows", "pool_connections", "info"):
        assert f"\nglasspoint_{name}{{" in page


# ------------------------------------------------------------------ names that are odd


ODD = 'two\nlines, "quotes", back\\slash, \\n, {braces}, 대화\t\r é 🚀'


async def test_an_odd_name_is_encoded(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    telemetry = create_telemetry(saver_name=ODD, registry=registry)
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        await Thread("a").put(saver)
        text, openmetrics = generate_latest(registry).decode(), generate_openmetrics(registry).decode()
    for families in (parse_text(text), parse_openmetrics(openmetrics)):
        names = {sample.labels["saver"] for family in families for sample in family.samples}
        assert names == {ODD}
    if PROMTOOL is not None:  # lint warnings are no errors of the format
        checked = await asyncio.to_thread(
            subprocess.run,
            [PROMTOOL, "check", "metrics"],
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "error while linting" not in checked.stderr, checked.stderr


@pytest.mark.parametrize("name", ["", None, 7, b"bytes", "lone \ud800 surrogate", "nul \0 byte"])
def test_a_name_that_no_scrape_could_show_is_refused(name: Any) -> None:
    registry = CollectorRegistry()
    with pytest.raises(ConfigurationError, match="saver_name"):
        create_telemetry(saver_name=name, registry=registry)
