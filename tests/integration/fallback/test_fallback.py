"""The fallback chain goes on when servers are lost, says so at each step, and brings everything back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

import preforked
from chains import chain, settings_of
from conformance_suite import ALL, check_conformance
from databases import with_tables
from glasspoint import (
    CachedPostgresSaver,
    FallbackSaver,
    MemorySaver,
    create_redis_checkpointer,
    create_telemetry,
    get_checkpointer,
)
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    L2UnavailableError,
    RedisUnavailableError,
    SaverClosedError,
)
from glasspoint.fallback.draining import Drainer, Round
from glasspoint.redis.permissions import COMMANDS
from outages import chat
from states import config_of, exact, open_upstream, value_of
from steps import Thread, drain, readyz, seeded_dice, until

# Redis writes before it acknowledges: a process that is killed has lost nothing. Only the disk comes later.
DURABLE = ("--appendonly", "yes", "--appendfsync", "no")


@dataclass
class Note:
    """A type of an application's own."""

    text: str


@pytest.fixture
def durable_redis() -> Iterator[EmbeddedRedis]:
    """A Redis that comes back with what it acknowledged."""
    with EmbeddedRedis() as server:
        server.stop()
        server.start(*DURABLE)
        yield server


async def converse(saver: FallbackSaver, threads: range, text: str) -> None:
    """A turn in each thread, and a pending write with a path, which only a raw copy keeps in order."""
    graph = chat(saver)

    async def turn(number: int) -> None:
        config = config_of(f"thread {number}")
        await graph.ainvoke({"messages": [("user", text)]}, config)
        head = (await graph.aget_state(config)).config
        for task, path in (("b", "~2"), ("a", "~10"), ("c", "~1")):
            await saver.aput_writes(head, [("messages", f"{text} {task}")], task, path)
        await saver.aput_writes(head, [("__interrupt__", [f"{text}?"])], "a")

    await asyncio.gather(*map(turn, threads))


async def everything_in(saver: Any) -> dict[tuple[str, str], Any]:
    """Every checkpoint with its pending writes, in a form whose equality is strict."""
    found = {}
    async for each in saver.alist(None):
        configurable = each.config["configurable"]
        found[configurable["thread_id"], configurable["checkpoint_id"]] = exact(tuple(each))
    return found


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    value = value_of(registry, f"glasspoint_{name}", {"saver": "default", **labels})
    assert value is not None
    return value


def tiers(registry: CollectorRegistry) -> list[str]:
    return [t for t in ("cached", "redis", "memory") if sample(registry, "active_tier", tier=t)]


async def test_the_whole_way_down_and_up(
    own_postgres: EmbeddedPostgres,
    durable_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PostgreSQL down -> redis; Redis down -> memory; PostgreSQL up -> cached; Redis up -> drained, too."""
    caplog.set_level(logging.WARNING, "glasspoint")
    url = own_postgres.create_database("new")
    own_postgres.stop()
    async with chain(url, durable_redis.url, registry) as saver:
        assert (saver.tier, tiers(registry)) == ("redis", ["redis"])
        assert "Fallback from tier cached to redis (postgres_unavailable)" in caplog.text
        status, found = await readyz(registry)
        assert (status, found["tier"], found["redis"], found["degraded"]) == (200, "redis", "ok", True)
        await converse(saver, range(10), "one")
        await converse(saver, range(10), "two")
        in_redis = await everything_in(saver)
        assert len(in_redis) == 60

        durable_redis.kill()
        await converse(saver, range(5, 15), "three")
        assert (saver.tier, tiers(registry)) == ("memory", ["memory"])
        assert "Fallback from tier redis to memory (redis_unavailable)" in caplog.text
        status, found = await readyz(registry)
        assert (status, found["tier"], found["degraded"]) == (200, "memory", True)
        in_memory = await everything_in(saver)
        assert len(in_memory) == 30

        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert tiers(registry) == ["cached"]
        await until(lambda: "Promoted from tier memory to cached" in caplog.text)
        status, found = await readyz(registry)
        assert (status, found["tier"], found["l1"], found["l2"]) == (200, "cached", "unavailable", "ok")
        assert sample(registry, "drained_checkpoints_total", from_tier="memory") == 30
        await converse(saver, range(13, 17), "four")

        durable_redis.start(*DURABLE)
        await until(lambda: sample(registry, "drained_checkpoints_total", from_tier="redis") == 60)
        await until(lambda: saver._chain.whole)
        through_the_chain = await everything_in(saver)
    async with open_upstream(url) as upstream:
        in_postgres = await everything_in(upstream)
    assert in_postgres == through_the_chain
    assert in_postgres.items() >= in_redis.items()
    # What began anew in memory stands beside what Redis has of the same threads.
    both = {f"thread {number}" for number in range(5, 10)}
    assert in_postgres.items() >= {key: each for key, each in in_memory.items() if key[0] not in both}.items()
    aside = {id_: thread_id for thread_id, id_ in in_postgres if "set aside" in thread_id}
    assert aside.keys() == {id_ for thread_id, id_ in in_memory if thread_id in both}
    assert all(aside[id_].startswith(thread_id) for thread_id, id_ in in_memory if thread_id in both)
    assert len(in_postgres) == 60 + 30 + 12
    for change, times in (
        (("cached", "redis", "postgres_unavailable"), 1),
        (("redis", "memory", "redis_unavailable"), 1),
        (("memory", "cached", "recovered"), 1),
        (("redis", "cached", "recovered"), 0),
    ):
        labels = dict(zip(("from_tier", "to_tier", "reason"), change, strict=True))
        assert sample(registry, "fallback_events_total", **labels) == times


# ------------------------------------------------------------------ runs under way


class Told(MessagesState):
    """What was said, and a channel that no step changes."""

    topics: list[str]


class Slow:
    """A graph whose node can be held, to do something in the middle of a run."""

    def __init__(self, saver: Any) -> None:
        self.arrived, self.go_on = asyncio.Event(), asyncio.Event()
        builder = StateGraph(Told)

        async def think(state: Told) -> dict[str, Any]:
            self.arrived.set()
            await self.go_on.wait()
            return {"messages": [("ai", f"{len(state['messages'])} so far")]}

        builder.add_node("think", think)
        builder.add_node("then", lambda state: {"messages": [("ai", "and that is all")]})
        builder.add_edge(START, "think").add_edge("think", "then").add_edge("then", END)
        self.graph = builder.compile(checkpointer=saver)

    async def run(self, thread_id: str) -> asyncio.Task[Any]:
        said = {"messages": [("user", "hello")], "topics": ["weather"]}
        # Each step is stored before the next begins: when the node is held, all before it is.
        call = self.graph.ainvoke(said, config_of(thread_id), durability="sync")  # type: ignore[call-overload]
        running = asyncio.create_task(call)
        await self.arrived.wait()
        return running


async def test_sixteen_conversations_go_on_through_a_promotion(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """None fails, none loses a turn, whether the promotion comes before, in or after its writes."""
    url = own_postgres.create_database("new")
    own_postgres.stop()
    async with chain(url, durable_redis.url, registry) as saver:
        graph, over = chat(saver), asyncio.Event()

        async def talk(number: int) -> int:
            turns = 0
            while not over.is_set():
                turns += 1
                said = {"messages": [("user", f"turn {turns}")]}
                state = await graph.ainvoke(said, config_of(f"thread {number}"))
                texts = [m.content for m in state["messages"] if m.type == "human"]
                assert texts == [f"turn {n}" for n in range(1, turns + 1)]
                await asyncio.sleep(
                    0.02
                )  # the answer is read; else the drain runs after threads that run away
            return turns

        talking = [asyncio.create_task(talk(number)) for number in range(16)]
        await until(lambda: sample_of_puts(registry) > 50, seconds=60)
        own_postgres.start()
        await until(lambda: saver.tier == "cached" or any(each.done() for each in talking), seconds=60)
        puts = sample_of_puts(registry)
        await until(lambda: sample_of_puts(registry) > puts + 50, seconds=60)
        over.set()
        turns = await asyncio.gather(*talking)
        assert tiers(registry) == ["cached"]
    async with open_upstream(url) as upstream:
        for number, taken in enumerate(turns):
            history = [each async for each in upstream.alist(config_of(f"thread {number}"))]
            steps = [each.metadata["step"] for each in history]
            assert steps == list(range(3 * taken - 2, -2, -1)), "each checkpoint once, none is missing"


def sample_of_puts(registry: CollectorRegistry) -> float:
    labels = {"saver": "default", "operation": "put", "outcome": "ok"}
    return value_of(registry, "glasspoint_operation_duration_seconds_count", labels) or 0.0


async def test_a_run_that_loses_redis_in_the_middle_goes_on_with_its_whole_state(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    """It writes only what changed; what did not stands in the Redis that is lost."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with chain(url, durable_redis.url) as saver:
        slow = Slow(saver)
        running = await slow.run("42")
        durable_redis.kill()
        slow.go_on.set()
        state = await running
        assert saver.tier == "memory"
        found = await slow.graph.aget_state(config_of("42"))
        assert found.values == state
        assert state["topics"] == ["weather"]
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert (await slow.graph.aget_state(config_of("42"))).values == state
        durable_redis.start(*DURABLE)
        await until(lambda: saver._chain.whole)
        history = [each.metadata["step"] async for each in slow.graph.aget_state_history(config_of("42"))]  # type: ignore[index]
        assert history == [2, 1, 0, -1]


async def test_a_run_that_is_promoted_in_the_middle_goes_on(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    durable_redis.kill()
    async with chain(url, durable_redis.url) as saver:
        assert saver.tier == "memory"
        slow = Slow(saver)
        running = await slow.run("42")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        slow.go_on.set()
        state = await running
        assert (await slow.graph.aget_state(config_of("42"))).values == state
        assert len([each async for each in saver.alist(config_of("42"))]) == 4


async def test_a_thread_that_begins_at_the_last_moment_is_not_left_behind(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the lower tier was found empty, and the saver is about to be promoted."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    late = Thread("late")
    putting: list[asyncio.Task[None]] = []
    async with chain(url, durable_redis.url) as saver:
        whole = Drainer.round

        async def drain_and_be_met(self: Drainer, *tiers: Any) -> Round:
            done = await whole(self, *tiers)
            if done.is_empty and not putting and not saver._chain._gate._open.is_set():
                putting.append(asyncio.create_task(late.put(saver)))
                await asyncio.wait(putting, timeout=0.2)
            return done

        monkeypatch.setattr(Drainer, "round", drain_and_be_met)
        await converse(saver, range(2), "one")
        own_postgres.start()
        await until(lambda: saver.tier == "cached" and putting)
        await putting[0]
        assert await late.turn(saver) == 1


async def test_what_a_lower_tier_replaced_is_replaced_above(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    """A task's interrupt was stored above, and answered below, after a fall."""
    telemetry = create_telemetry(registry=registry)
    thread = Thread("a")
    async with (
        MemorySaver(telemetry=telemetry) as lower,
        CachedPostgresSaver.from_conn_string(database, redis_url=redis_url, telemetry=telemetry) as upper,
    ):
        await upper.setup()
        await thread.put(upper)
        for saver, value in ((upper, "asked"), (lower, "answered")):
            await saver.aput_writes(thread.newest, [("__resume__", value)], "task")
            await saver.aput_writes(thread.newest, [("messages", value)], "task")
        await thread.turn(upper)
        await drain(lower, upper)
        found = await upper.aget_tuple(thread.config)
        assert found is not None
        assert found.pending_writes == [("task", "__resume__", "answered"), ("task", "messages", "asked")]


# ------------------------------------------------------------------ several processes


async def test_a_process_that_learns_late_goes_after_its_threads(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    """Another process has drained them: this one never looked, and must not go on in Redis by itself."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with (
        chain(url, durable_redis.url, probe_interval=1000) as late,
        chain(url, durable_redis.url) as early,
    ):
        await converse(late, range(3), "one")
        own_postgres.start()
        await until(lambda: early.tier == "cached")
        assert late.tier == "redis"
        await converse(early, range(3), "two")
        await converse(late, range(3), "three")
        assert late.tier == "cached"
        await until(lambda: late._chain._rising is None)
        assert await everything_in(late) == await everything_in(early)
    async with open_upstream(url) as upstream:
        assert len(await everything_in(upstream)) == 3 * 9


async def test_ten_processes_drain_at_once_and_nothing_is_lost(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    registries = [CollectorRegistry() for _ in range(10)]
    async with contextlib.AsyncExitStack() as stack:
        savers = [
            await stack.enter_async_context(chain(url, durable_redis.url, registry, pool_max_size=4))
            for registry in registries
        ]
        for number, saver in enumerate(savers):
            await converse(saver, range(number, number + 2), "one")
        in_redis = await everything_in(savers[0])
        own_postgres.start()
        await until(lambda: all(saver.tier == "cached" for saver in savers))
        assert await everything_in(savers[-1]) == in_redis
    drained = sum(sample(r, "drained_checkpoints_total", from_tier="redis") for r in registries)
    assert drained == len(in_redis)


WORKER = """
import asyncio
from glasspoint import get_checkpointer

async def main():
    async with get_checkpointer() as saver:
        print(saver.tier)

asyncio.run(main())
"""


def run_worker(
    postgres_url: str, redis_url: str, code: str = WORKER, **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "POSTGRES_URL": postgres_url, "REDIS_URL": redis_url, **variables}
    return preforked.run(code, env={**env, "CHECKPOINT_PROBE_INTERVAL": "0.1"}, timeout=60)


def test_ten_processes_start_at_once_on_an_empty_database(empty_database: str, redis_url: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        workers = list(pool.map(lambda _: run_worker(empty_database, redis_url), range(10)))
    assert [(worker.stdout, worker.returncode) for worker in workers] == [("cached\n", 0)] * 10, workers


DRAINER = """
import asyncio, os
from glasspoint import get_checkpointer
from glasspoint.fallback import draining
from glasspoint.savers.cached import CachedPostgresSaver

draining._LEASE_SECONDS = 0.2
whole = CachedPostgresSaver.import_checkpoints
left = int(os.environ["DIE_AFTER"])

async def import_checkpoints(self, items, **options):
    global left
    left -= 1
    if not left:
        await whole(self, items[:1], **options)
        os.kill(os.getpid(), 9)
    return await whole(self, items, **options)

CachedPostgresSaver.import_checkpoints = import_checkpoints

async def main():
    async with get_checkpointer() as saver:
        print(saver.tier, flush=True)

asyncio.run(main())
"""


@pytest.mark.dice
async def test_a_drain_that_is_killed_is_taken_up_again(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    """SIGKILL after any checkpoint: the next start finishes it; nothing is lost, nothing doubled."""
    dice = seeded_dice()
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with chain(url, durable_redis.url) as saver:
        await converse(saver, range(16), "one")
        in_redis = await everything_in(saver)
    own_postgres.start()
    for _ in range(3):
        die_after = str(dice.randrange(1, 6))
        killed = await asyncio.to_thread(run_worker, url, durable_redis.url, DRAINER, DIE_AFTER=die_after)
        assert killed.returncode == -signal.SIGKILL
    async with open_upstream(url) as upstream:
        assert 0 < len(await everything_in(upstream)) <= len(in_redis)
    async with chain(url, durable_redis.url) as saver:
        assert saver.tier == "cached", "what was left was drained before the first call"
        assert await everything_in(saver) == in_redis
    async with open_upstream(url) as upstream:
        assert await everything_in(upstream) == in_redis


async def test_postgres_is_lost_again_in_the_middle_of_the_drain(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasspoint.fallback.draining._LEASE_SECONDS", 0.2)
    monkeypatch.setattr("glasspoint.fallback.draining._MARKER_SECONDS", 0.2)
    url = with_tables(own_postgres)
    own_postgres.stop()
    imported = asyncio.Event()
    whole = CachedPostgresSaver.import_checkpoints

    async def import_some(self: CachedPostgresSaver, items: Any, **options: Any) -> int:
        answer = await whole(self, items, **options)
        if not imported.is_set():
            imported.set()
            own_postgres.stop()
        return answer

    async with chain(url, durable_redis.url, write_deadline=1.0, pool_timeout=1.0) as saver:
        await converse(saver, range(6), "one")
        in_redis = await everything_in(saver)
        monkeypatch.setattr(CachedPostgresSaver, "import_checkpoints", import_some)
        own_postgres.start()
        await imported.wait()
        await until(lambda: saver._chain._rising is None)
        assert saver.tier == "redis"
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert await everything_in(saver) == in_redis


# ------------------------------------------------------------------ doors and bad input


async def test_without_fallbacks_the_start_fails(durable_redis: EmbeddedRedis) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/none"
    with pytest.raises(L2UnavailableError):
        async with chain(nowhere, durable_redis.url, fallbacks=()):
            pass


async def set_password(server: EmbeddedRedis, password: str) -> None:
    async with Redis.from_url(server.url) as admin:
        await admin.config_set("requirepass", password)


async def test_a_redis_that_refuses_does_not_stop_a_start_that_postgresql_can_serve(
    database: str, own_redis: EmbeddedRedis, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "glasspoint")
    thread = Thread("a")
    async with Redis.from_url(own_redis.url) as admin:
        await admin.config_set("requirepass", "right")
        url = own_redis.url.replace("//", "//:wrong@")
        async with chain(database, url, registry) as saver:
            assert saver.tier == "cached"
            errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
            assert len(errors) == 1
            assert "Redis refuses this user or password" in errors[0]
            assert "The tier redis cannot be used as it is configured" in caplog.text
            await thread.put(saver)
            assert await thread.turn(saver) == 1
            status, found = await readyz(registry)
            assert (status, found["l1"], found["l2"]) == (200, "unavailable", "ok")
            assert sample(registry, "l1_breaker_open") == 1
            await admin.config_set("requirepass", "wrong")
            await until(lambda: saver._chain.whole)

            async def is_a_hit() -> bool:
                assert await thread.turn(saver) == 1
                return bool(sample_of_hits(registry))

            await until(is_a_hit)
            assert sample(registry, "l1_breaker_open") == 0


def sample_of_hits(registry: CollectorRegistry) -> float:
    labels = {"saver": "default", "result": "hit"}
    return value_of(registry, "glasspoint_l1_reads_total", labels) or 0.0


async def test_a_user_of_the_cache_alone_is_enough_to_start_in_cached(
    database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rights do not suffice to look for what the tier redis may have left; that is said."""
    rules = ["on", ">secret", "~glasspoint:*", *(f"+{name}" for name in COMMANDS)]
    async with Redis.from_url(own_redis.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "app", *rules)
        async with chain(database, own_redis.url.replace("//", "//app:secret@")) as saver:
            assert saver.tier == "cached"
            thread = Thread("a")
            await thread.put(saver)
            assert await thread.turn(saver) == 1
            said = [each for each in caplog.messages if "cannot be used as it is configured" in each]
            assert len(said) == 1
            await admin.execute_command("ACL", "SETUSER", "app", "+@all")
            await until(lambda: saver._chain.whole)


CACHED_IS_OPEN = "CachedPostgresSaver initialized (Redis L1 + PostgreSQL L2)"
REDIS_IS_OPEN = "RedisSaver initialized (full history in Redis)"


async def test_the_log_names_the_saver_that_is_in_use_and_no_other(
    own_postgres: EmbeddedPostgres, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The chain also opens savers to look for what they hold, and to try whether a tier can be had."""
    caplog.set_level(logging.INFO, "glasspoint")
    url = with_tables(own_postgres)

    def said() -> list[str]:
        return [each for each in caplog.messages if "initialized" in each]

    async with chain(url, redis_url) as saver:
        await until(lambda: saver._chain.whole)
    assert said() == [CACHED_IS_OPEN]
    caplog.clear()
    own_postgres.stop()
    async with chain(url, redis_url) as saver:
        assert said() == [REDIS_IS_OPEN]
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert said() == [REDIS_IS_OPEN, CACHED_IS_OPEN]
    caplog.clear()
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with await create_redis_checkpointer(redis_url, telemetry=telemetry):
        assert said() == [REDIS_IS_OPEN]
    async with CachedPostgresSaver.from_conn_string(url, redis_url=redis_url, telemetry=telemetry):
        assert said() == [REDIS_IS_OPEN, CACHED_IS_OPEN]


async def test_without_postgresql_a_redis_that_refuses_is_an_error(own_redis: EmbeddedRedis) -> None:
    """It does not fall to memory: the tier redis is there, and misconfigured."""
    nowhere = "postgresql://postgres@127.0.0.1:1/none"
    await set_password(own_redis, "right")
    for given in ("", ":wrong@", "nobody:right@"):
        url = own_redis.url.replace("//", f"//{given}")
        with pytest.raises(ConfigurationError, match=r"The tier redis cannot be used .* REDIS_URL") as caught:
            async with chain(nowhere, url):
                pass
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("missing", ["POSTGRES_URL", "REDIS_URL"])
async def test_a_missing_url_is_an_error_that_names_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", "postgresql://postgres@127.0.0.1:1/none")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigurationError, match=f"{missing} is not set"):
        async with get_checkpointer():
            pass


async def test_it_prunes_postgresql_and_nothing_else(own_postgres: EmbeddedPostgres, redis_url: str) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with chain(url, redis_url) as saver:
        await saver.setup()  # as code for other savers does
        await converse(saver, range(2), "one")
        with pytest.raises(L2UnavailableError, match="the tier 'redis', without PostgreSQL"):
            await saver.aprune_older_than(timedelta(seconds=1))
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert (await saver.aprune_older_than(timedelta(days=1))).checkpoints == 0


async def test_a_closed_chain_says_so(database: str, redis_url: str) -> None:
    async with chain(database, redis_url) as saver:
        pass
    await saver.close()
    with pytest.raises(SaverClosedError):
        await saver.aget_tuple(config_of("a"))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("glasspoint")]


async def test_redis_alone_below_and_it_is_lost_too(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    """There is nothing to fall to: calls fail, and say why, until PostgreSQL is back."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with chain(url, durable_redis.url, fallbacks=("redis",)) as saver:
        await converse(saver, range(3), "one")
        in_redis = await everything_in(saver)
        durable_redis.kill()
        with pytest.raises(RedisUnavailableError):
            await saver.aget_tuple(config_of("thread 1"))
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await converse(saver, range(3, 6), "two")
        durable_redis.start(*DURABLE)
        await until(lambda: saver._chain.whole)
        assert (await everything_in(saver)).items() >= in_redis.items()


def test_a_synchronous_chain(database: str, redis_url: str) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())
    with get_checkpointer(settings_of(database, redis_url), telemetry=telemetry) as saver:
        saver.setup()
        graph = chat(saver)
        for said, answer in (("one", "1 so far"), ("two", "3 so far")):
            state = graph.invoke({"messages": [("user", said)]}, config_of("42"))
            assert state["messages"][-1].content == answer


async def test_a_clone_with_another_serializer_works_in_every_tier(
    own_postgres: EmbeddedPostgres, durable_redis: EmbeddedRedis
) -> None:
    """LangGraph clones a checkpointer with `with_allowlist`; the clone falls and rises with the original."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    strict = JsonPlusSerializer(allowed_msgpack_modules=[("nobody", "Nothing")])
    async with chain(url, durable_redis.url, serde=strict) as saver:
        clone = saver.with_allowlist([(Note.__module__, Note.__name__)])
        assert clone is not saver
        thread = Thread("a")
        for tier in ("redis", "cached"):
            await until(lambda tier=tier: clone.tier == tier)  # type: ignore[misc, attr-defined]
            await thread.put(clone, note=Note(tier))
            for reader, sees in ((clone, Note), (saver, dict)):
                found = await reader.aget_tuple(thread.config)
                assert found is not None
                assert type(found.checkpoint["channel_values"]["note"]) is sees
            if tier == "redis":
                own_postgres.start()


@pytest.mark.parametrize("tier", ["cached", "redis", "memory"])
@pytest.mark.parametrize("capability", ALL)
async def test_conforms_in_every_tier(tier: str, capability: str, database: str, redis_url: str) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/none"

    @asynccontextmanager
    async def opened() -> AsyncIterator[FallbackSaver]:
        postgres_url = database if tier == "cached" else nowhere
        other_redis_url = "redis://127.0.0.1:1/0" if tier == "memory" else redis_url
        async with chain(postgres_url, other_redis_url, probe_interval=1000) as saver:
            assert saver.tier == tier
            yield saver

    await check_conformance(capability, "FallbackSaver", opened)
