"""Redis Sentinel: three real sentinels, a master and its replica, under everything that happens to them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic, sleep
from typing import Any

import pytest
import redis as sync_redis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from redis.exceptions import ResponseError

from chains import chain
from databases import with_tables
from glasspoint import CachedPostgresSaver, RedisSaver, create_telemetry
from glasspoint.cli.browsing import Browser
from glasspoint.cli.check import run_checks
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ConfigurationError, GlasspointError, RedisRefusedError, RedisUnavailableError
from glasspoint.redis import sentinels as sentinels_module
from glasspoint.redis.client import address_of, look_again, open_redis
from glasspoint.redis.sentinels import SentinelPool, Sentinels
from places import DOCS
from sentinels import SERVICE, Group, Sentinel, sentinel_url
from states import counts, exact, open_saver, open_upstream
from steps import Thread, hits_at_last, readyz, until

SECRET = "hush-hush"

# How long a read may miss what was acknowledged (docs/reliability.md), on a busy machine.
WINDOW_SECONDS = 3.0


@pytest.fixture(scope="module")
def _group() -> Iterator[Group]:
    with Group() as group:
        yield group


@pytest.fixture
def group(_group: Group) -> Group:
    _group.heal()
    return _group


class Watched:
    """A saver, and what it counts."""

    def __init__(self, saver: CachedPostgresSaver, registry: CollectorRegistry) -> None:
        self.saver = saver
        self.registry = registry

    @property
    def reign(self) -> str:
        return "" if self.saver._l1.server is None else self.saver._l1.server.reign

    async def hits(self, thread: Thread) -> bool:
        before = counts(self.registry, "glasspoint_l1_reads_total", "result")["hit"]
        assert await thread.turn(self.saver) == thread.number
        return counts(self.registry, "glasspoint_l1_reads_total", "result")["hit"] > before


@asynccontextmanager
async def watched(database: str, url: str, **options: Any) -> AsyncIterator[Watched]:
    registry = CollectorRegistry()
    options = {"sweep_interval_seconds": 0.1, "l1_timeout_seconds": 2.0, **options}
    async with open_saver(database, url, telemetry=create_telemetry(registry=registry), **options) as saver:
        yield Watched(saver, registry)


def run_id(server: EmbeddedRedis) -> str:
    with server._client() as client:
        return str(client.info("server")["run_id"])


def sentinels_of(redis: Any) -> Sentinels:
    assert isinstance(redis.connection_pool, SentinelPool)
    return redis.connection_pool.sentinel_manager


@contextmanager
def all_frozen(sentinels: list[Sentinel]) -> Iterator[None]:
    for each in sentinels:
        each.freeze()
    try:
        yield
    finally:
        for each in sentinels:
            each.thaw()


# ------------------------------------------------------------------ the master


async def test_the_master_is_the_cache_and_its_address_is_shown(group: Group, database: str) -> None:
    thread = Thread("a")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
    async with open_saver(database, group.url, telemetry=telemetry) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        assert saver.status.addresses["l1"] == address_of(saver.status.redis)
        assert address_of(saver.status.redis) == ("127.0.0.1", group.master.port)
    ports = {
        (span.attributes or {}).get("server.port")
        for span in exporter.get_finished_spans()
        if (span.attributes or {}).get("db.system.name") == "redis"
    }
    assert ports == {group.master.port}


# ------------------------------------------------------------------ a failover


@pytest.mark.parametrize("how", ["the master dies", "the sentinels are asked to"])
async def test_a_failover_under_reads_and_writes_loses_nothing_and_is_followed(
    how: str, group: Group, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads = [Thread(f"thread {number}") for number in range(4)]
    acknowledged: list[list[tuple[float, int]]] = [[(monotonic(), 0)] for _ in threads]
    is_over = False
    old, new = group.master, group.replica

    async def write(one: Watched, number: int) -> None:
        while not is_over:
            await threads[number].put(one.saver)
            acknowledged[number].append((monotonic(), threads[number].number))
            await asyncio.sleep(0.02)

    async def read(one: Watched, number: int) -> None:
        while not is_over:
            began = monotonic()
            found = await threads[number].turn(one.saver) or 0
            old_enough = [turn for at, turn in acknowledged[number] if at < began - WINDOW_SECONDS]
            assert found >= max(old_enough, default=0)
            await asyncio.sleep(0.02)

    async with watched(database, group.url) as first, watched(database, group.url) as second:
        before = first.reign
        assert before.startswith(run_id(old))
        working = [
            asyncio.ensure_future(work)
            for number in range(len(threads))
            for work in (write(first, number), read(first, number), read(second, number))
        ]
        await until(lambda: all(thread.number > 10 for thread in threads))
        if how == "the master dies":
            old.kill()
            await asyncio.to_thread(group.wait_for, new)
        else:
            await asyncio.to_thread(group.fail_over)
        for one in (first, second):
            await until(lambda one=one: one.reign.startswith(run_id(new)))  # type: ignore[misc]
        since = [thread.number for thread in threads]
        await until(lambda: all(thread.number > at + 10 for thread, at in zip(threads, since, strict=True)))
        is_over = True
        await asyncio.gather(*working)
        for one in (first, second):
            for thread in threads:
                await hits_at_last(new.url, lambda one=one, thread=thread: one.hits(thread))  # type: ignore[misc]
            assert counts(one.registry, "glasspoint_l1_epoch_changes_total", "saver")["default"] >= 1
            assert address_of(one.saver.status.redis) == ("127.0.0.1", new.port)
            assert one.saver.status.addresses["l1"] == ("127.0.0.1", new.port)
        async with open_upstream(database) as upstream:
            for thread in threads:
                ours = await second.saver.aget_tuple(thread.config)
                theirs = await upstream.aget_tuple(thread.config)
                assert ours is not None
                assert theirs is not None
                assert exact(ours.checkpoint) == exact(theirs.checkpoint)
                assert theirs.checkpoint["channel_values"]["turn"] == thread.number
    assert any(f"another master of '{SERVICE}': 127.0.0.1:{new.port}" in each for each in caplog.messages)


async def test_a_process_that_still_follows_the_old_master_follows_another_process(
    group: Group, database: str
) -> None:
    """After a planned failover the old master lives on for seconds, and takes writes."""
    thread = Thread("a")
    async with watched(database, group.url) as late:
        await thread.put(late.saver)
        assert await late.hits(thread)
        await asyncio.to_thread(group.fail_over)
        async with watched(database, group.url) as early:
            assert early.reign.startswith(run_id(group.master))
            await thread.put(early.saver)
            await until(lambda: late.reign.startswith(run_id(group.master)))
            await until(lambda: late.hits(thread))
            assert await thread.turn(early.saver) == 2


async def test_a_connection_to_a_former_master_does_not_come_back(group: Group) -> None:
    redis: Any = open_redis(group.url, timeout_seconds=2)
    async with redis:
        pool = redis.connection_pool
        held = await pool.get_connection()
        assert held.port == group.master.port
        await asyncio.to_thread(group.fail_over)
        other = await pool.get_connection()
        assert other.port == group.master.port
        await pool.release(other)
        await pool.release(held)
        assert not held.is_connected
        assert {(await pool.get_connection()).port for _ in range(2)} == {group.master.port}


async def test_a_demoted_master_is_unavailable_until_the_sentinels_name_a_master(
    group: Group, database: str
) -> None:
    thread = Thread("a")
    demoted = group.master
    async with watched(database, group.url) as one:
        await thread.put(one.saver)
        assert await one.hits(thread)
        with demoted._client() as client, group.replica._client() as other:
            other.replicaof("NO", "ONE")
            client.replicaof("127.0.0.1", group.replica.port)

        async def is_noticed() -> bool:
            assert await thread.turn(one.saver) == 1
            return await _is_unavailable(one.saver)

        await until(is_noticed)
        await thread.put(one.saver)
        assert await thread.turn(one.saver) == 2
        with demoted._client() as client:
            client.replicaof("NO", "ONE")
        await until(lambda: one.hits(thread))


async def _is_unavailable(saver: CachedPostgresSaver) -> bool:
    return bool((await saver._check())["l1"] == "unavailable")


# ------------------------------------------------------------------ sentinels that are away


async def test_sentinels_that_are_away_at_the_start_are_waited_for_in_the_background(
    group: Group, database: str
) -> None:
    thread = Thread("a")
    for each in group.sentinels:
        each.kill()
    async with watched(database, group.url) as one:
        await thread.put(one.saver)
        assert not await one.hits(thread)
        assert await _is_unavailable(one.saver)
        assert (await readyz(one.registry))[0] == 200
        for each in group.sentinels:
            each.start()
        await until(lambda: one.hits(thread))
        await until(lambda: _is_available(one.saver))


async def _is_available(saver: CachedPostgresSaver) -> bool:
    return bool((await saver._check())["l1"] == "ok")


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_sentinels_the_known_master_goes_on(how: str, group: Group, database: str) -> None:
    thread = Thread("a")
    async with watched(database, group.url) as one:
        await thread.put(one.saver)
        assert await one.hits(thread)
        for each in group.sentinels:
            if how == "killed":
                each.kill()
            else:
                each.freeze()
        for _ in range(3):
            await look_again(one.saver.status.redis)  # so that new connections are needed
            await thread.put(one.saver)
            assert await one.hits(thread)
        assert one.saver._parts.breaker.state == "closed"


async def test_one_sentinel_that_hangs_is_not_waited_for(group: Group) -> None:
    redis: Any = open_redis(group.url, timeout_seconds=600, step_seconds=1200)
    async with redis:
        with all_frozen(group.sentinels[:2]):
            async with asyncio.timeout(30):
                assert await redis.ping()
        assert sentinels_of(redis).master == ("127.0.0.1", group.master.port)


async def test_sentinels_that_hang_open_the_breaker(group: Group, database: str) -> None:
    thread = Thread("a")
    with all_frozen(group.sentinels):
        async with watched(database, group.url, l1_timeout_seconds=0.2) as one:
            assert one.saver._parts.breaker.state != "closed", "opening has asked once"
            for _ in range(3):
                await thread.put(one.saver)
                assert await thread.turn(one.saver) == thread.number


async def test_connections_that_are_made_together_share_a_round(group: Group) -> None:
    redis: Any = open_redis(group.url, timeout_seconds=5)
    async with redis:
        await asyncio.gather(*(redis.ping() for _ in range(20)))
        assert sentinels_of(redis)._round < 20


async def test_a_sentinel_that_is_behind_the_times_is_not_followed_back(
    group: Group, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(group.fail_over)
    new = ("127.0.0.1", group.master.port)
    # It names a server that the group does not watch, because the group would tell it the news there.
    old = own_redis
    with Sentinel(f"sentinel monitor {SERVICE} 127.0.0.1 {old.port} 1") as behind:
        await until(lambda: behind.masters()[SERVICE]["flags"] == "master")
        redis: Any = open_redis(sentinel_url(behind, *group.sentinels), timeout_seconds=5)
        async with redis:
            sentinels = sentinels_of(redis)
            with all_frozen([behind]):
                assert await sentinels.discover_master(SERVICE) == new
            for _ in range(10):
                assert await sentinels.discover_master(SERVICE) == new
            with all_frozen(group.sentinels):
                found = await sentinels.discover_master(SERVICE)
            assert found == ("127.0.0.1", old.port), "nobody else answers"
    assert any("only an older failover" in each for each in caplog.messages)


@pytest.fixture
def leading(own_redis: EmbeddedRedis) -> Iterator[tuple[Sentinel, Sentinel, EmbeddedRedis, EmbeddedRedis]]:
    """A sentinel in the middle of a failover that it leads, another one, the former and the new master.

    A second replica does not let itself be reconfigured, so the failover goes on.
    """
    former = own_redis
    with EmbeddedRedis() as new, EmbeddedRedis() as stubborn:
        for each in (new, stubborn):
            with each._client() as client:
                client.replicaof("127.0.0.1", former.port)
        with stubborn._client() as client:
            client.execute_command("CONFIG", "SET", "replica-priority", "0")  # never promoted
            client.execute_command("ACL", "SETUSER", "default", "-slaveof", "-replicaof")
        watches = f"sentinel monitor {SERVICE} 127.0.0.1"
        with Sentinel(
            f"{watches} {former.port} 1",
            f"sentinel failover-timeout {SERVICE} 600000",
            *(f"sentinel known-replica {SERVICE} 127.0.0.1 {each.port}" for each in (new, stubborn)),
        ) as leader:
            _wait_for(lambda: _starts_failover(leader))
            _wait_for(lambda: leader.masters()[SERVICE].get("failover-state") == "reconf_slaves")
            epoch = leader.masters()[SERVICE]["config-epoch"]
            with Sentinel(f"{watches} {new.port} 1", f"sentinel config-epoch {SERVICE} {epoch}") as other:
                _wait_for(lambda: other.masters()[SERVICE]["flags"] == "master")
                yield leader, other, former, new


def _wait_for(condition: Callable[[], bool]) -> None:
    ends_at = monotonic() + 60
    while not condition():
        assert monotonic() < ends_at
        sleep(0.02)


def _starts_failover(sentinel: Sentinel) -> bool:
    try:
        sentinel.command("SENTINEL", "FAILOVER", SERVICE)
    except ResponseError:  # it has not heard of a good replica yet
        return False
    return True


async def test_a_sentinel_that_leads_a_failover_is_not_followed_back_to_the_former_master(
    leading: tuple[Sentinel, Sentinel, EmbeddedRedis, EmbeddedRedis], caplog: pytest.LogCaptureFixture
) -> None:
    """It has the number of the new master already, and still names the former one, for seconds."""
    leader, other, former, new = leading
    state = leader.masters()[SERVICE]
    assert state["port"] == former.port
    assert state["config-epoch"] == other.masters()[SERVICE]["config-epoch"]
    redis: Any = open_redis(sentinel_url(leader, other), timeout_seconds=10)
    async with redis:
        sentinels = sentinels_of(redis)
        with all_frozen([leader]):
            assert await sentinels.discover_master(SERVICE) == ("127.0.0.1", new.port)
        for _ in range(10):
            assert await sentinels.discover_master(SERVICE) == ("127.0.0.1", new.port)
            await sentinels.look()
            assert sentinels.master == ("127.0.0.1", new.port)
        assert sentinels.is_failing_over
        with all_frozen([other]):
            await sentinels.look()
            assert await sentinels.discover_master(SERVICE) == ("127.0.0.1", new.port)
    assert not [each for each in caplog.messages if "name another master" in each]


async def test_a_look_finds_the_master_of_the_newest_failover_although_others_are_behind(
    group: Group, own_redis: EmbeddedRedis
) -> None:
    with Sentinel(f"sentinel monitor {SERVICE} 127.0.0.1 {own_redis.port} 1") as behind:
        await until(lambda: behind.masters()[SERVICE]["flags"] == "master")
        await asyncio.to_thread(group.fail_over)
        redis: Any = open_redis(sentinel_url(behind, *group.sentinels), timeout_seconds=10)
        async with redis:
            sentinels = sentinels_of(redis)
            with all_frozen(group.sentinels):
                assert await sentinels.discover_master(SERVICE) == ("127.0.0.1", own_redis.port)
            await until(lambda: _follows(sentinels, group.master))
            with all_frozen(group.sentinels):
                await sentinels.look()  # the only answer is older
            assert sentinels.master == ("127.0.0.1", group.master.port)


async def _follows(sentinels: Sentinels, server: EmbeddedRedis) -> bool:
    await sentinels.look()
    return sentinels.master == ("127.0.0.1", server.port)


# ------------------------------------------------------------------ a service that nobody knows


async def test_a_wrong_service_is_said_at_opening_with_those_that_there_are(
    group: Group, database: str
) -> None:
    url = sentinel_url(*group.sentinels, service="mymistress")
    with pytest.raises(ConfigurationError, match=rf"no service 'mymistress'\. They know: '{SERVICE}'"):
        await CachedPostgresSaver.create(database, url)
    with pytest.raises(RedisRefusedError, match=rf"no service 'mymistress'\. They know: '{SERVICE}'"):
        await RedisSaver.create(url)


async def test_a_sentinel_that_does_not_know_the_service_yet_stops_no_start(
    group: Group, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    with Sentinel() as sentinel:
        async with watched(database, sentinel_url(sentinel)) as one:
            assert any(f"know no service '{SERVICE}'" in each for each in caplog.messages)
            await thread.put(one.saver)
            assert not await one.hits(thread)
            with pytest.raises(RedisUnavailableError, match="know no service"):
                await RedisSaver.create(sentinel_url(sentinel))
            sentinel.command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", group.master.port, 1)
            await until(lambda: one.hits(thread))


# ------------------------------------------------------------------ the tier redis


async def replicated(server: EmbeddedRedis) -> None:
    """Wait until the replica has everything."""

    def is_so() -> bool:
        with server._client() as client:
            return bool(client.execute_command("WAIT", 1, 1000))

    await until(is_so)


async def until_it_reads(saver: Any, thread: Thread, *, failing: type[Exception]) -> None:
    """Wait until a read returns the first checkpoint. Until then, it may fail in one way."""

    async def goes_on() -> bool:
        try:
            return await thread.turn(saver) == 1
        except failing:
            return False

    await until(goes_on)


async def test_a_redis_saver_follows_a_failover(group: Group) -> None:
    thread = Thread("a")
    old, new = group.master, group.replica
    async with await RedisSaver.create(group.url) as saver:
        await thread.put(saver)
        await replicated(old)
        old.kill()
        await asyncio.to_thread(group.wait_for, new)

        await until_it_reads(saver, thread, failing=RedisUnavailableError)
        await thread.put(saver)
        assert await thread.turn(saver) == 2
        assert saver.status.addresses["redis"] == ("127.0.0.1", new.port)


async def test_a_redis_saver_leaves_a_former_master_that_goes_on_taking_writes(group: Group) -> None:
    """After a planned failover, the former master takes writes for ten seconds, and then forgets them."""
    thread = Thread("a")
    async with await RedisSaver.create(group.url) as saver:
        await thread.put(saver)
        await replicated(group.master)
        _, new = await asyncio.to_thread(group.fail_over_and_keep_the_former_master)

        async def is_left() -> bool:
            await thread.put(saver)
            return saver.status.addresses["redis"] == ("127.0.0.1", new.port)

        await until(is_left)
        await thread.put(saver)
        async with await RedisSaver.create(new.url) as other:
            assert await thread.turn(other) == thread.number


async def test_a_redis_saver_that_was_idle_asks_the_sentinels_before_its_next_call(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels_module, "_WATCHED_SECONDS", 0.0)
    monkeypatch.setattr(sentinels_module, "_LOOK_SECONDS", 0.0)
    thread = Thread("a")
    async with await RedisSaver.create(group.url) as saver:
        await thread.put(saver)
        await replicated(group.master)
        _, new = await asyncio.to_thread(group.fail_over_and_keep_the_former_master)
        pool = saver.status.redis.connection_pool
        assert isinstance(pool, SentinelPool)
        await until(lambda: pool._watching is None or pool._watching.done())
        pool._looked_at = float("-inf")
        await thread.put(saver)
        async with await RedisSaver.create(new.url) as other:
            assert await thread.turn(other) == 2


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """No saver asks the sentinels by itself."""
    monkeypatch.setattr(sentinels_module, "_LOOK_SECONDS", 3600.0)


async def look(saver: RedisSaver) -> None:
    await sentinels_of(saver.status.redis).look()


@pytest.mark.usefixtures("seldom")
async def test_what_a_failover_has_lost_is_counted_and_named(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    kept, shorter, gone, deleted, asked = map(Thread, ("kept", "shorter", "gone", "deleted", "asked"))
    async with await RedisSaver.create(
        group.url, telemetry=create_telemetry(registry=registry), timeout_seconds=10
    ) as saver:
        for thread in (kept, shorter, deleted, asked):
            await thread.put(saver)
        await kept.put_writes(saver, "there")
        await replicated(group.master)
        await asyncio.to_thread(group.fail_over_and_keep_the_former_master)
        for thread in (shorter, gone, deleted):
            await thread.put(saver)
        await asked.put_writes(saver, "a question")
        await saver.adelete_thread("deleted")
        assert not await saver.look_for_losses()

        await look(saver)
        assert await saver.look_for_losses()
        await until(lambda: counts(registry, "glasspoint_drained_threads_total", "result")["lost"] == 3)
        assert await shorter.turn(saver) == 1, "so it is"
        assert (await saver._check())["redis"] == "ok", "it serves writes"
    [line] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "lacks the end of 3 of the 4 threads" in line.getMessage()
    assert all(f"'{each.thread_id}'" in line.getMessage() for each in (shorter, gone, asked))
    assert not any(f"'{each.thread_id}'" in line.getMessage() for each in (kept, deleted))


@pytest.mark.usefixtures("seldom")
async def test_a_failover_that_loses_nothing_is_reported_as_none(
    group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    thread = Thread("a")
    async with await RedisSaver.create(group.url) as saver:
        await thread.put(saver)
        await thread.put_writes(saver, "there")
        await replicated(group.master)
        await asyncio.to_thread(group.fail_over_and_keep_the_former_master)
        await look(saver)
        assert not await saver.look_for_losses()
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


@pytest.mark.usefixtures("seldom")
async def test_the_way_up_says_what_a_failover_has_lost(
    group: Group, own_postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    url, key = with_tables(own_postgres), "a signing key for this test"
    thread = Thread("a")
    own_postgres.stop()
    async with chain(url, group.url, l1_signing_key=key, connect_timeout=1.0) as saver:
        assert saver.tier == "redis"
        await thread.put(saver)
        await replicated(group.master)
        await asyncio.to_thread(group.fail_over_and_keep_the_former_master)
        await thread.put(saver)
        lower = saver._chain.saver
        assert isinstance(lower, RedisSaver)
        await look(lower)
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(lambda: "Promoted from tier redis" in caplog.text)
        assert await thread.turn(saver) == 1
    assert "lacks the end of 1 of the 1 threads" in caplog.text
    assert "but Redis may have lost threads that were written there" in caplog.text
    assert "everything that was written meanwhile is there" not in caplog.text


@pytest.mark.usefixtures("seldom")
async def test_a_write_that_a_former_master_refuses_is_made_on_the_new_one(group: Group) -> None:
    thread = Thread("a")
    async with await RedisSaver.create(group.url, timeout_seconds=10) as saver:
        await thread.put(saver)
        await replicated(group.master)
        former, new = await asyncio.to_thread(group.fail_over_and_keep_the_former_master)
        with former._client() as client:
            client.config_set("min-replicas-to-write", 1)
            await until(lambda: client.info("replication")["connected_slaves"] == 0)
        await thread.put(saver)  # NOREPLICAS
        async with await RedisSaver.create(new.url) as other:
            assert await thread.turn(other) == 2


async def test_a_master_without_replicas_refuses_at_once_if_no_other_one_is_named(group: Group) -> None:
    async with await RedisSaver.create(group.url, timeout_seconds=600) as saver:
        with group.master._client() as client:
            client.config_set("min-replicas-to-write", 2)
        async with asyncio.timeout(60):
            with pytest.raises(RedisRefusedError, match="fewer replicas"):
                await Thread("a").put(saver)


async def test_for_a_redis_saver_a_demoted_master_is_unavailable(group: Group) -> None:
    thread = Thread("a")
    demoted = group.master
    async with await RedisSaver.create(group.url) as saver:
        await thread.put(saver)
        with demoted._client() as client:
            client.replicaof("127.0.0.1", group.replica.port)
        with pytest.raises(RedisUnavailableError):
            await thread.put(saver)
        with demoted._client() as client:
            client.replicaof("NO", "ONE")


async def test_what_the_tier_redis_holds_is_drained_after_a_failover(
    group: Group, own_postgres: EmbeddedPostgres
) -> None:
    thread = Thread("a")
    old, new = group.master, group.replica
    url = own_postgres.url
    key = "a signing key for this test"
    async with chain(url, group.url, l1_signing_key=key) as saver:
        assert saver.tier == "cached"
    own_postgres.stop()
    async with chain(url, group.url, l1_signing_key=key, connect_timeout=1.0, redis_timeout=2.0) as saver:
        assert saver.tier == "redis"
        await thread.put(saver)
        await replicated(old)
        old.kill()
        await asyncio.to_thread(group.wait_for, new)

        await until_it_reads(saver, thread, failing=GlasspointError)
        own_postgres.start()

        async def is_up() -> bool:
            async with open_upstream(url) as upstream:
                return await thread.turn(upstream) == 1

        await until(is_up)


# ------------------------------------------------------------------ passwords and commands


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[EmbeddedRedis, Sentinel]]:
    """A master and a sentinel that ask for passwords of their own."""
    master = EmbeddedRedis()
    master.start("--requirepass", f"{SECRET}-master")
    try:
        with Sentinel(
            f"requirepass {SECRET}-sentinel",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1",
            f"sentinel auth-pass {SERVICE} {SECRET}-master",
        ) as sentinel:
            yield master, sentinel
    finally:
        master.close()


@pytest.mark.parametrize("wrong", ["", "master", "sentinel"])
async def test_master_and_sentinels_have_passwords_of_their_own_that_are_never_shown(
    wrong: str, guarded: tuple[EmbeddedRedis, Sentinel], database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    _, sentinel = guarded
    words = {of: f"{SECRET}-{of}{'-not' if wrong == of else ''}" for of in ("master", "sentinel")}
    url = sentinel_url(sentinel, user=f":{words['master']}@", query=f"?sentinel_password={words['sentinel']}")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = create_telemetry(registry=CollectorRegistry(), tracer_provider=provider)
    thread = Thread("a")
    shown = ""
    async with open_saver(database, url, telemetry=telemetry) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
        assert await _is_unavailable(saver) == bool(wrong)
    async for finding in run_checks(database, url, timeout_seconds=30):
        shown += f"{finding.name}: {finding.detail}\n"
        if finding.name == "Redis":
            assert (finding.status == "ok") == (not wrong), finding
    async with Browser.open(database, url, options={}) as browser:
        shown += str(await browser.show("a", None, namespace=""))
    if wrong:
        with pytest.raises(GlasspointError) as caught:
            await RedisSaver.create(url)
        shown += str(caught.value)
    shown += "".join(str(span.to_json()) for span in exporter.get_finished_spans())
    assert SECRET not in shown + caplog.text


async def test_a_user_of_the_sentinels_needs_what_the_documentation_lists(
    group: Group, database: str
) -> None:
    page = (DOCS / "rights.md").read_text("utf-8")
    [rule] = re.findall(r"^ACL SETUSER sentinel_reader on >PASSWORD (.*)$", page, re.MULTILINE)
    thread = Thread("a")
    with Sentinel(f"sentinel monitor {SERVICE} 127.0.0.1 {group.master.port} 1") as sentinel:
        await until(lambda: sentinel.masters()[SERVICE]["flags"] == "master")
        sentinel.command("ACL", "SETUSER", "sentinel_reader", "on", ">word", *rule.split())
        query = "?sentinel_username=sentinel_reader&sentinel_password=word"
        async with watched(database, sentinel_url(sentinel, query=query)) as one:
            await thread.put(one.saver)
            assert await one.hits(thread)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("no password", "refuses this user or password. Correct sentinel_username and sentinel_password"),
        (
            "another password",
            "refuses this user or password. Correct sentinel_username and sentinel_password",
        ),
        ("no right", "SENTINEL MASTERS. Give the user of sentinel_username the right +sentinel|masters"),
        ("no sentinel", "is no sentinel, but a Redis server. Name the sentinels in the Redis URL"),
    ],
)
async def test_sentinels_that_refuse_are_named_with_what_to_change(
    wrong: str, says: str, guarded: tuple[EmbeddedRedis, Sentinel], group: Group, database: str
) -> None:
    _, sentinel = guarded
    if wrong == "no right":
        address, word = ("127.0.0.1", sentinel.port), f"{SECRET}-sentinel"
        with sync_redis.Redis(*address, password=word, protocol=2) as client:
            client.execute_command("ACL", "SETUSER", "nobody", "on", ">word", "+ping")
    url = {
        "no password": sentinel_url(sentinel),
        "another password": sentinel_url(sentinel, query="?sentinel_password=guessed"),
        "no right": sentinel_url(sentinel, query="?sentinel_username=nobody&sentinel_password=word"),
        "no sentinel": sentinel_url(group.master),
    }[wrong]
    with pytest.raises(RedisRefusedError, match=re.escape(says)):
        await RedisSaver.create(url)
    findings = [each async for each in run_checks(database, url, timeout_seconds=30)]
    [finding] = [each for each in findings if each.name == "Redis"]
    assert finding.status == "failed"
    assert says in finding.detail
    assert "that the server is up" not in finding.detail


async def test_check_says_how_the_master_was_found(group: Group, database: str) -> None:
    async def found() -> Any:
        findings = [each async for each in run_checks(database, group.url, timeout_seconds=30)]
        return next(each for each in findings if each.name == "Redis")

    finding = await found()
    assert finding.status == "ok"
    assert (
        f"at 127.0.0.1:{group.master.port}, database 0; the master of '{SERVICE}' now: 3 of 3"
        in finding.detail
    )
    gone = group.sentinels[2]
    gone.kill()
    finding = await found()
    assert finding.status == "warning"
    assert "2 of 3 sentinel(s) name it" in finding.detail
    assert f"127.0.0.1:{gone.port} does not answer" in finding.detail


async def test_browse_finds_an_entry_through_the_sentinels(group: Group, database: str) -> None:
    thread = Thread("a")
    async with open_saver(database, group.url) as saver:
        await thread.put(saver)
        assert await thread.turn(saver) == 1
    async with Browser.open(database, group.url, options={}) as browser:
        assert "'hit'" in str(await browser.show("a", None, namespace=""))
