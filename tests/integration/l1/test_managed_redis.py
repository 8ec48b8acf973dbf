"""What managed services of Redis refuse or hide: the cache works without it, or its absence is named.

`docs/compatibility.md` says which service refuses what. None of them is tried: the fake refuses the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from glasspoint import create_telemetry
from glasspoint.cli.check import run_checks
from glasspoint.embedded import EmbeddedRedis
from glasspoint.l1 import epoch
from glasspoint.redis.permissions import COMMANDS
from managed_redis import NOT_PERMITTED, UNKNOWN, ManagedRedis
from redis_users import USER, allow
from replication import follow, promote
from states import counts, numbered_id, open_saver
from steps import Thread, keys_of, settled, until

REFUSED = {"ACL", "BGSAVE", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "MONITOR", "ROLE", "SELECT"}
"""What several services refuse."""


@pytest.fixture
async def service(own_redis: EmbeddedRedis) -> AsyncIterator[ManagedRedis]:
    async with ManagedRedis(own_redis).opened() as service:
        yield service


def hits(registry: CollectorRegistry) -> Counter[str]:
    return counts(registry, "glasspoint_l1_reads_total", "result")


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# ------------------------------------------------------------------ refused, and not needed


@pytest.mark.parametrize("refusal", [UNKNOWN, NOT_PERMITTED], ids=["unknown", "not permitted"])
async def test_the_cache_works_without_the_commands_that_services_refuse(
    refusal: str, database: str, service: ManagedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    service.refused, service.refusal = REFUSED | {"SCAN", "UNLINK"}, refusal
    registry, thread = CollectorRegistry(), Thread("a")
    async with open_saver(database, service.url, telemetry=create_telemetry(registry=registry)) as saver:
        await thread.put(saver)
        await thread.put_writes(saver, "x")
        await settled(saver)
        assert await thread.turn(saver) == 1
        assert hits(registry) == {"hit": 1}
        await saver.adelete_thread("a")
        assert await Thread("a").turn(saver) is None
    assert "CLIENT" in service.seen, "the client asks, and goes on without"
    assert "CONFIG" not in service.seen
    assert not [line for line in lines_of(caplog) if "Redis" in line]


async def test_behind_such_a_service_nothing_is_stale_after_a_restart_and_a_failover(
    database: str, own_redis: EmbeddedRedis, service: ManagedRedis
) -> None:
    service.refused = REFUSED
    registry, thread = CollectorRegistry(), Thread("a")
    async with open_saver(database, service.url, telemetry=create_telemetry(registry=registry)) as saver:
        await thread.put(saver)
        await settled(saver)
        own_redis.save_snapshot()
        await thread.put(saver)
        await settled(saver)
        own_redis.kill()
        own_redis.start()
        assert await _has_image(own_redis, 1), "the past stands in Redis again"
        assert await thread.turn(saver) == 2
        await until(lambda: _has_image(own_redis, 2))
        with EmbeddedRedis() as replica:
            await follow(replica, own_redis)
            await promote(replica)
            await thread.put(saver)
            await settled(saver)
            assert await _has_image(replica, 2)
            service.switch(replica)
            assert await thread.turn(saver) == 3


# ------------------------------------------------------------------ refused or hidden, and needed

MISSING: dict[str, tuple[Callable[[ManagedRedis], Any], str]] = {
    "no run_id": (lambda service: service.hidden.add("run_id"), "tells no run_id (INFO server). "),
    "no master_replid": (
        lambda service: service.hidden.add("master_replid"),
        "tells no master_replid (INFO replication). ",
    ),
    "neither": (
        lambda service: service.hidden.update(("run_id", "master_replid")),
        "tells no run_id (INFO server) and no master_replid (INFO replication). ",
    ),
    "zeros": (
        lambda service: service.zeros.add("master_replid"),
        "tells no master_replid (INFO replication). ",
    ),
    "not in scripts": (
        lambda service: setattr(service, "scripts_may_ask", False),
        "does not let a script run INFO",
    ),
    "no INFO": (lambda service: service.refused.add("INFO"), "may not run INFO. "),
    "no SCRIPT": (lambda service: service.refused.add("SCRIPT"), "may not run SCRIPT LOAD. "),
    "no EVALSHA": (lambda service: service.refused.add("EVALSHA"), "may not run EVALSHA. "),
}


@pytest.mark.parametrize("missing", MISSING)
async def test_without_what_it_needs_there_is_no_cache_and_the_log_names_it(
    missing: str, database: str, service: ManagedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    refuse, said = MISSING[missing]
    refuse(service)
    registry, thread = CollectorRegistry(), Thread("a")
    async with open_saver(database, service.url, telemetry=create_telemetry(registry=registry)) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        assert not hits(registry)["hit"]
        [line] = [each for each in lines_of(caplog) if "refuses to be the cache" in each]
        assert said in line
        assert not saver._l1.breaker.is_closed
        findings = [each async for each in run_checks(database, service.url, timeout_seconds=30.0)]
        details = [each.detail for each in findings if each.status == "failed"]
        assert any(said in each for each in details), details

        service.refused, service.hidden, service.zeros, service.scripts_may_ask = set(), set(), set(), True

        async def is_hit() -> bool:
            assert await thread.turn(saver) == 1
            return bool(hits(registry)["hit"])

        assert await until(is_hit), "no restart is needed"


async def test_a_user_whose_scripts_may_not_run_info_is_told_so(
    database: str, any_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's own words, of both versions: its ACL refuses INFO inside a script."""
    await allow(any_redis, "~glasspoint:*", *(f"+{name}" for name in COMMANDS if name != "info"))
    async with ManagedRedis(any_redis).opened() as service:
        service.answers_info = True
        thread, url = Thread("a"), service.url.replace("//", f"//{USER}:secret@")
        async with open_saver(database, url) as saver:
            await thread.put(saver)
            assert await thread.turn(saver) == 1
    [line] = [each for each in lines_of(caplog) if "refuses to be the cache" in each]
    assert "does not let a script run INFO" in line
    assert "may not run" not in line, "no rule for the user is named, because none helps"


async def test_what_is_hidden_from_the_next_server_only_is_named_too(
    database: str, service: ManagedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with open_saver(database, service.url) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        with EmbeddedRedis() as other:
            service.hidden.add("master_replid")
            service.switch(other)
            await thread.put(saver)
            assert await thread.turn(saver) == 2
            assert await until(lambda: any("tells no master_replid" in line for line in lines_of(caplog)))


# ------------------------------------------------------------------ why there is no cache with less


@pytest.mark.parametrize(("identity", "read"), [("both ids", 2), ("run_id alone", 1)])
async def test_the_run_id_alone_would_bring_a_lost_write_s_past_back(
    identity: str,
    read: int,
    database: str,
    own_redis: EmbeddedRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server is demoted, loses a write that its replica did not have, and is promoted again.

    No process has seen its replica reign, so nothing but `master_replid` tells. The read is stale for as long
    as the entry lives, and so is the cache that knew `run_id` alone: Glasspoint has none then.
    """
    if identity == "run_id alone":
        reign, guard = epoch._reign, epoch._guard
        monkeypatch.setattr(
            epoch,
            "_reign",
            lambda server, replication, config_epoch="": reign(
                server, {**replication, "master_replid": "the same"}, config_epoch
            ),
        )
        monkeypatch.setattr(
            epoch,
            "_guard",
            lambda section, field, value: guard("server", "run_id", "") if field == "master_replid" else "",
        )
    thread = Thread("a")
    async with open_saver(database, own_redis.url) as saver:
        with EmbeddedRedis() as replica:
            await thread.put(saver)
            await settled(saver)
            await follow(replica, own_redis)
            assert await _has_image(replica, 1)
            await promote(replica)  # from here on it misses what is written
            await thread.put(saver)
            await settled(saver)
            assert await thread.turn(saver) == 2
            await follow(own_redis, replica)
            assert not await _has_image(own_redis, 2), "or this test shows nothing"
            await promote(own_redis)
            assert await _has_image(own_redis, 1)
            assert await thread.turn(saver) == read


async def _has_image(server: EmbeddedRedis, number: int) -> bool:
    found = {fields[b"id"].decode() for fields in (await keys_of(server.url)).values() if b"id" in fields}
    return numbered_id(number) in found
