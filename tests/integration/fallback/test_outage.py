"""A fallback chain forgets nothing: conversations go on, or are set aside by name."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt
from prometheus_client import CollectorRegistry
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from databases import with_tables
from delta_graph import make_graph as delta_graph
from glasspoint import (
    CachedPostgresSaver,
    FallbackSaver,
    MemorySaver,
    RedisSaver,
    create_telemetry,
)
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import (
    GlasspointError,
    L2UnavailableError,
    RedisUnavailableError,
    ThreadDamagedError,
    ThreadMovedError,
    ThreadTamperedError,
    ThreadUnknownError,
)
from glasspoint.fallback import branches as branches_module
from glasspoint.fallback import draining
from glasspoint.fallback.branches import Branches, NotStoredYetError, Placement
from glasspoint.history.interface import HEARD_SECONDS
from glasspoint.l1.cache import Cache
from glasspoint.model.identity import Identity
from glasspoint.model.lineage import SET_ASIDE, UNKNOWN_TIME, SetAside, mark_of
from glasspoint.model.scope import Scope
from outages import chat, drained, pod, said, say, threads_in
from places import DOCS
from states import config_of, numbered_id, open_upstream, value_of
from steps import Thread, drain, keys_in, readyz, settled, until

TURNS = ["turn 1", "turn 2"]


async def turns_and_an_outage(
    postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, *, redis_forgets: bool = False
) -> str:
    """Hold a conversation, and stop PostgreSQL; return the URL of the database."""
    url = with_tables(postgres)
    async with pod(url, redis_server.url) as saver:
        for text in TURNS:
            await say(saver, "42", text)
    postgres.stop()
    if redis_forgets:
        redis_server.flush()
    return url


async def test_a_hot_conversation_goes_on_through_an_outage(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    url = await turns_and_an_outage(own_postgres, own_redis)
    async with pod(url, own_redis.url, registry) as saver:
        assert saver.tier == "redis"
        assert await said(saver, "42") == TURNS
        await say(saver, "42", "during")
        assert await said(saver, "42") == [*TURNS, "during"]
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert await said(saver, "42") == [*TURNS, "during"]
    assert drained(registry) == {"continued": 1}
    assert await threads_in(url) == ["42"]
    async with open_upstream(url) as upstream:
        assert await said(upstream, "42") == [*TURNS, "during"]
        steps = [each.metadata["step"] async for each in upstream.alist(config_of("42"))]
    assert steps == list(range(3 * (len(TURNS) + 1) - 2, -2, -1)), "each checkpoint once, none is missing"


async def test_a_conversation_that_warmed_up_again_after_a_flush_goes_on_through_an_outage(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """What tells the keys of the cached states was flushed, too: it is stored again at the next look."""

    def hits() -> float:
        return value_of(registry, "glasspoint_l1_reads_total", {"saver": "default", "result": "hit"}) or 0.0

    url = with_tables(own_postgres)
    async with pod(url, own_redis.url, registry) as saver:
        for text in TURNS:
            await say(saver, "42", text)
        async with Redis.from_url(own_redis.url) as redis:
            await until(lambda: keys_in(redis, "*:last-used:*"))
            await redis.flushall()
            before = hits()
            while hits() == before:  # one reader at a time, who never waits for what it has warmed up
                assert await said(saver, "42") == TURNS
            await until(lambda: keys_in(redis, "*:last-used:*"))
        own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        assert saver.tier == "redis"
        assert await said(saver, "42") == TURNS


async def test_what_does_not_go_on_from_the_history_is_set_aside(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = await turns_and_an_outage(own_postgres, own_redis, redis_forgets=True)
    async with pod(url, own_redis.url, registry) as saver:
        assert await said(saver, "42") == []
        await say(saver, "42", "during")
        await say(saver, "43", "new")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert await said(saver, "42") == TURNS
        await say(saver, "42", "after")
    assert drained(registry) == {"set_aside": 1, "new": 1}
    async with open_upstream(url) as upstream:
        assert await said(upstream, "42") == [*TURNS, "after"]
        assert await said(upstream, "43") == ["new"]
        [aside] = set(await threads_in(url)) - {"42", "43"}
        assert aside.startswith("42 (set aside 2")
        assert await said(upstream, aside) == ["during"]
        noted = [each.metadata[SET_ASIDE]["thread_id"] async for each in upstream.alist(config_of(aside))]  # type: ignore[literal-required]
        assert set(noted) == {"42"}
    assert f"set aside as the thread {aside!r}" in caplog.text


def order(charged: list[str]) -> StateGraph[Any]:
    builder = StateGraph(MessagesState)

    def charge(state: MessagesState) -> dict[str, Any]:
        charged.append("charged")
        return {"messages": [("ai", "charged")]}

    def confirm(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("user", interrupt("send it?"))]}

    builder.add_node("charge", charge)
    builder.add_node("confirm", confirm)
    return builder.add_edge(START, "charge").add_edge("charge", "confirm").add_edge("confirm", END)


async def test_an_interrupted_run_is_resumed_where_it_stood(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url, charged = with_tables(own_postgres), list[str]()
    builder = order(charged)
    async with pod(url, own_redis.url) as saver:
        graph = builder.compile(checkpointer=saver)
        result = await graph.ainvoke({"messages": [("user", "one")]}, config_of("42"))
        assert result["__interrupt__"]
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        assert saver.tier == "redis"
        graph = builder.compile(checkpointer=saver)
        state = await graph.ainvoke(Command(resume="yes"), config_of("42"))
        assert [each.content for each in state["messages"]] == ["one", "charged", "yes"]
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
    assert charged == ["charged"]
    async with open_upstream(url) as upstream:
        values = (await builder.compile(checkpointer=upstream).aget_state(config_of("42"))).values
    assert [each.content for each in values["messages"]] == ["one", "charged", "yes"]


async def test_there_is_no_resuming_of_what_is_not_known(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url, charged = own_postgres.create_database("new"), list[str]()
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        graph = order(charged).compile(checkpointer=saver)
        with pytest.raises(ThreadUnknownError, match="nothing to resume"):
            await graph.ainvoke(Command(resume="yes"), config_of("42"), durability="sync")
        assert charged == []
    async with pod(url, own_redis.url, fallback_unknown="refuse") as saver:
        graph = order(charged).compile(checkpointer=saver)
        for durability in ("sync", "async", "exit"):
            with pytest.raises(ThreadUnknownError, match="is not known"):
                await graph.ainvoke(Command(resume="yes"), config_of("43"), durability=durability)
        assert charged == []


# ------------------------------------------------------------------ runs under way


class Held:
    """A graph whose node can be held, to do something in the middle of a run."""

    def __init__(self, saver: Any) -> None:
        self.arrived, self.go_on, self.times = asyncio.Event(), asyncio.Event(), 0
        builder = self._begin()
        builder.add_node("then", lambda state: {"messages": [("ai", "and that is all")]})
        self.graph = builder.compile(checkpointer=saver)

    @classmethod
    def within(cls, saver: Any, *, memory: bool | None) -> Held:
        """Hold a node of a subgraph, which asks something then."""
        held = cls(saver)
        builder = held._begin()
        builder.add_node("then", lambda state: {"messages": [("user", interrupt("send it?"))]})
        held.graph = outer(saver, builder.compile(checkpointer=memory))
        return held

    def _begin(self) -> StateGraph[Any]:
        async def think(state: MessagesState) -> dict[str, Any]:
            self.times += 1
            self.arrived.set()
            await self.go_on.wait()
            return {"messages": [("ai", "thought")]}

        builder = StateGraph(MessagesState)
        builder.add_node("think", think)
        return builder.add_edge(START, "think").add_edge("think", "then").add_edge("then", END)

    async def begin(self, thread_id: str, durability: Any) -> asyncio.Task[Any]:
        call = self.graph.ainvoke(
            {"messages": [("user", "during")]}, config_of(thread_id), durability=durability
        )
        running = asyncio.create_task(call)
        await self.arrived.wait()
        return running


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("of", ["this process", "another process"])
async def test_a_run_under_way_ends_in_its_branch(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, of: str, durability: str
) -> None:
    """`exit`: the run has read in a lower tier, and writes nothing before the tier above is in use."""
    url = await turns_and_an_outage(own_postgres, own_redis, redis_forgets=True)
    async with (
        pod(url, own_redis.url) as early,
        pod(url, own_redis.url, probe_interval=1000) as late,
    ):
        runner = early if of == "this process" else late
        held = Held(runner)
        running = await held.begin("42", durability)
        own_postgres.start()
        await until(lambda: early.tier == "cached")
        if runner is late and durability == "exit":
            await late._chain._climb()  # nothing of its own tells it
        assert await said(early, "42") == TURNS
        held.go_on.set()
        state = await running
        assert [each.content for each in state["messages"]] == ["during", "thought", "and that is all"]
        await say(early, "42", "after")
    async with open_upstream(url) as upstream:
        assert await said(upstream, "42") == [*TURNS, "after"]
        [aside] = set(await threads_in(url)) - {"42"}
        found = await chat(upstream).aget_state(config_of(aside))
        assert [each.content for each in found.values["messages"]] == ["during", "thought", "and that is all"]
        assert not found.next
        history = [each async for each in upstream.alist(config_of(aside))]
        assert len(history) == (1 if durability == "exit" else 4)
        assert history[-1].metadata[SET_ASIDE]["thread_id"] == "42", "it says where it belongs"  # type: ignore[literal-required]


async def test_a_first_put_after_its_writes_were_moved_makes_a_branch(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangGraph may store what a task wrote before the checkpoint, and that may have been drained by then."""
    url = await turns_and_an_outage(own_postgres, own_redis, redis_forgets=True)
    async with (
        pod(url, own_redis.url) as early,
        pod(url, own_redis.url, probe_interval=1000) as late,
    ):
        checkpoint = empty_checkpoint()
        config: Any = config_of("42", checkpoint_ns="")
        assert await late.aget_tuple(config) is None
        await late.aput_writes(
            config_of("42", checkpoint_ns="", checkpoint_id=checkpoint["id"]), [("messages", [])], "task"
        )
        own_postgres.start()
        await until(lambda: early.tier == "cached")

        async def tier_above() -> Any:
            return late._chain._specs[0], early._chain.saver

        monkeypatch.setattr(late._chain, "_tier_above", tier_above)  # it is on its way up
        await late.aput(config, checkpoint, {}, {})
        assert await said(early, "42") == TURNS
    assert len(await threads_in(url)) == 2


async def test_a_first_put_that_has_to_wait_is_a_first_one_still() -> None:
    """The thread above is sealed for a moment; the call is made again."""
    upper, thread = MemorySaver(), Thread("42")
    await thread.put(upper)
    branches, first = new_branches(), Placement(config_of("42"), puts="first")
    branches.switched(["42"])
    token = await upper.seal_thread("42", lease_seconds=60.0)
    with pytest.raises(ThreadMovedError):
        await branches.place(upper, first)
    assert await upper.seal_thread("42", lease_seconds=0.001, token=token)

    async def placed() -> str:
        try:
            found = await branches.place(upper, first)
        except ThreadMovedError:
            return ""
        return str(found["configurable"]["thread_id"])

    assert (await until(placed)).startswith("42 (set aside")


# ------------------------------------------------------------------ what PostgreSQL refuses

FULL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.mark.parametrize("tier", ["redis", "memory"])
async def test_a_full_disk_puts_the_promotion_off(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry, tier: str
) -> None:
    """PostgreSQL is back, and has no room for some seconds. The tier stays until all is there."""
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "first", "one")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(FULL)
    own_postgres.stop()
    if tier == "memory":
        own_redis.stop()
    async with pod(url, own_redis.url, registry) as saver:
        assert saver.tier == tier
        for number in range(5):
            await say(saver, f"thread {number}", "during")
        own_postgres.start()
        await until(lambda: undrained(registry, tier) == (5, 15))
        assert saver.tier == tier
        for number in range(5):
            assert await said(saver, f"thread {number}") == ["during"], "calls go on meanwhile"
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
            await conn.execute("DROP TRIGGER full_disk ON checkpoints")
        await until(lambda: saver.tier == "cached")
        assert [await said(saver, f"thread {number}") for number in range(5)] == [["during"]] * 5
        assert undrained(registry, tier) == (0, 0)
    assert drained(registry) == {"new": 5}


def labels(tier: str) -> dict[str, str]:
    return {"saver": "default", "tier": tier}


def undrained(registry: CollectorRegistry, tier: str) -> tuple[float | None, float | None]:
    """How many threads wait in a lower tier, and how many checkpoints."""
    threads, checkpoints = (
        value_of(registry, f"glasspoint_undrained_{what}", labels(tier))
        for what in ("threads", "checkpoints")
    )
    return threads, checkpoints


async def test_a_start_with_a_full_disk_goes_on_where_the_threads_are(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """The process before has died with threads in Redis, and PostgreSQL cannot take them yet."""
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "before")
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "during")
    own_postgres.start()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute(FULL)
        async with pod(url, own_redis.url) as saver:
            assert saver.tier == "redis"
            assert await said(saver, "42") == ["before", "during"]
            await say(saver, "42", "and on")
            await conn.execute("DROP TRIGGER full_disk ON checkpoints")
            await until(lambda: saver.tier == "cached")
            assert await said(saver, "42") == ["before", "during", "and on"]


@pytest.mark.parametrize("tier", ["redis", "memory"])
async def test_a_thread_that_can_never_be_stored_holds_up_nobody(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    tier: str,
) -> None:
    """A constraint that somebody has added to the table refuses it."""
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url):
        pass  # the tables are made
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute("ALTER TABLE checkpoints ADD CONSTRAINT nobody CHECK (thread_id <> 'never')")
    own_postgres.stop()
    if tier == "memory":
        own_redis.stop()
    never = "never"
    async with pod(url, own_redis.url, registry) as saver:
        await say(saver, never, "lost?")
        for number in range(5):
            await say(saver, f"thread {number}", "during")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert [await said(saver, f"thread {number}") for number in range(5)] == [["during"]] * 5
        assert undrained(registry, tier) == (1, 3)
        assert tier in saver._chain.saver.status.undrained
    assert drained(registry) == {"new": 5, "refused": 1}
    assert f"Thread {never!r} cannot be drained (CheckViolation)" in caplog.text
    if tier == "memory":
        assert "1 threads of the tier memory could not be drained, and are lost" in caplog.text


async def test_a_tier_between_that_refuses_a_thread_is_passed_by(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """Another process has drained this thread out of Redis already: for a minute Redis takes it no more.
    When PostgreSQL is back, `memory` is drained into that."""
    url = own_postgres.create_database("new")
    own_postgres.stop()
    own_redis.stop()
    async with pod(url, own_redis.url, registry, probe_interval=1000) as low:
        await say(low, "42", "in memory")
        own_redis.start()
        async with pod(url, own_redis.url) as other:
            await say(other, "42", "in redis")
            own_postgres.start()
            await until(lambda: other.tier == "cached")
        own_postgres.stop()
        climbing = asyncio.create_task(low._chain._climb())
        await until(lambda: value_of(registry, "glasspoint_undrained_threads", labels("memory")) == 1)
        own_postgres.start()
        with pytest.raises(GlasspointError, match="cached is back"):
            await climbing
        await low._chain._climb()
        assert low.tier == "cached"
        assert await said(low, "42") == ["in redis"]
    assert len(await threads_in(url)) == 2


async def test_a_call_that_passes_a_tier_by_sees_what_stands_there(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread has come from `memory` to Redis when PostgreSQL is back. The others go straight there."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    own_redis.stop()
    async with pod(url, own_redis.url, registry, probe_interval=1000) as low:
        await say(low, "42", "in memory")
        await say(low, "held up", "in memory")
        own_redis.start()
        async with pod(url, own_redis.url) as other:
            await say(other, "held up", "in redis")
            own_postgres.start()
            await until(lambda: other.tier == "cached")
        own_postgres.stop()
        climbing = asyncio.create_task(low._chain._climb())
        await until(lambda: value_of(registry, "glasspoint_undrained_threads", labels("memory")) == 1)
        await say(low, "42", "in redis")
        own_postgres.start()
        with pytest.raises(GlasspointError, match="cached is back"):
            await climbing
        seen, switch = [], low._chain._switch_while_calls_wait

        async def called(*args: Any, **more: Any) -> str | None:
            seen.append(await said(low, "42"))
            return await switch(*args, **more)

        monkeypatch.setattr(low._chain, "_switch_while_calls_wait", called)
        await low._chain._climb()
        assert low.tier == "cached"
        assert [*seen, await said(low, "42")] == [["in memory", "in redis"]] * 2


# ------------------------------------------------------------------ the cached state as a beginning


def outer(saver: Any, inner: CompiledStateGraph[Any]) -> CompiledStateGraph[Any]:
    """A graph of one node, which is a subgraph."""
    builder = StateGraph(MessagesState)
    builder.add_node("order", inner)
    return builder.add_edge(START, "order").add_edge("order", END).compile(checkpointer=saver)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_run_that_stands_in_a_subgraph_waits_for_postgresql(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, durability: Any
) -> None:
    """Only PostgreSQL has the subgraph's state, so its finished tasks would run again. Every process of the
    tier refuses the resume, also one that did not bring the thread there."""
    url, charged = with_tables(own_postgres), list[str]()

    async def resume(saver: Any) -> Any:
        graph = outer(saver, order(charged).compile())
        return await graph.ainvoke(Command(resume="yes"), config_of("42"), durability=durability)

    async with pod(url, own_redis.url) as saver:
        graph = outer(saver, order(charged).compile())
        await graph.ainvoke({"messages": [("user", "one")]}, config_of("42"), durability=durability)
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        assert saver.tier == "redis"
        assert await said(saver, "42") == ["one"], "the thread itself is cached"
    async with Redis.from_url(own_redis.url) as redis:
        for key in await redis.keys("*:2:*"):  # the cache, evicted
            await redis.delete(key)
    async with pod(url, own_redis.url) as saver:
        graph = outer(saver, order(charged).compile())
        for _ in range(2):
            with pytest.raises(ThreadUnknownError, match="stands in a subgraph"):
                await resume(saver)
        state = await graph.aget_state(config_of("42"))
        assert "glasspoint_from_cache" not in (state.metadata or {})
        with pytest.raises(ThreadUnknownError, match="stands in a subgraph"):
            await graph.aget_state(config_of("42"), subgraphs=True)
        assert charged == ["charged"]
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        found = await resume(saver)
        assert [each.content for each in found["messages"]] == ["one", "charged", "yes"]
    assert charged == ["charged"]
    assert await threads_in(url) == ["42"]
    async with open_upstream(url) as upstream:
        assert not [each async for each in upstream.alist(None) if "glasspoint_from_cache" in each.metadata]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_turn_that_begins_in_the_tier_redis_runs_its_subgraphs_there(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, durability: Any
) -> None:
    """Also of a cached conversation, and with an interrupt: the subgraph's state is in Redis then."""
    url, charged = with_tables(own_postgres), list[str]()

    async def turn(saver: Any, given: Any, thread_id: str) -> Any:
        graph = outer(saver, order(charged).compile())
        return await graph.ainvoke(given, config_of(thread_id), durability=durability)

    async with pod(url, own_redis.url) as saver:
        await turn(saver, {"messages": [("user", "one")]}, "42")
        await turn(saver, Command(resume="yes"), "42")
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        for thread_id in ("42", "43"):
            found = await turn(saver, {"messages": [("user", "two")]}, thread_id)
            assert found["__interrupt__"]
            graph = outer(saver, order(charged).compile())
            state = await graph.aget_state(config_of(thread_id), subgraphs=True)
            assert state.tasks[0].state.next == ("confirm",)  # type: ignore[union-attr]
            found = await turn(saver, Command(resume="yes"), thread_id)
            assert [each.content for each in found["messages"]][-3:] == ["two", "charged", "yes"]
    assert charged == ["charged"] * 3


async def test_a_subgraph_with_a_memory_goes_on_with_its_interrupt(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """Its state stands in a namespace of its own, without a task id: it is cached."""
    url, charged = with_tables(own_postgres), list[str]()
    async with pod(url, own_redis.url) as saver:
        graph = outer(saver, order(charged).compile(checkpointer=True))
        await graph.ainvoke({"messages": [("user", "one")]}, config_of("42"))
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        assert saver.tier == "redis"
        graph = outer(saver, order(charged).compile(checkpointer=True))
        state = await graph.ainvoke(Command(resume="yes"), config_of("42"))
        assert [each.content for each in state["messages"]] == ["one", "charged", "yes"]
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
    assert charged == ["charged"]
    assert await threads_in(url) == ["42"]


async def test_a_state_that_a_write_may_have_overtaken_is_no_beginning(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """PostgreSQL is lost in the middle of a write: it may have that write."""
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "first")
        intent = await saver._chain.saver._l1.begin(Scope("42", ""))  # type: ignore[union-attr]
        assert intent.name
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        assert await said(saver, "42") == []
        await say(saver, "42", "during")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert await said(saver, "42") == ["first"]
    assert drained(registry) == {"set_aside": 1}


async def test_a_branch_from_a_state_that_postgresql_has_left_is_set_aside(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """Redis was away for the last turn before the outage, and its state is older than PostgreSQL's."""
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url, sweep_interval=1000) as saver:
        await say(saver, "42", "first")
        cached = saver._chain.saver
        assert isinstance(cached, CachedPostgresSaver)
        await settled(cached)
        cached._parts.breaker.trip("test")
        cached._parts.breaker.begin_probe = lambda: False  # type: ignore[method-assign]  # Redis stays away for this process
        await say(saver, "42", "second")
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        assert await said(saver, "42") == ["first"]
        await say(saver, "42", "during")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert await said(saver, "42") == ["first", "second"]
        [aside] = set(await threads_in(url)) - {"42"}
        assert await said(saver, aside) == ["first", "during"]
    assert drained(registry) == {"set_aside": 1}


async def test_a_deleted_thread_does_not_come_back_from_its_cached_state(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "first")
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver, pod(url, own_redis.url) as other:
        assert await said(saver, "42") == ["first"]
        await saver.adelete_thread("42")
        assert await said(saver, "42") == []
        assert await said(other, "42") == []


async def test_the_record_names_new_keys_before_they_are_used(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL may be lost again just after a first write under these keys. Then the record must not lead
    to the state that is older than this write."""
    named: list[tuple[str, str]] = []
    identify = Cache.identify

    def watched(self: Cache, identity: Identity | None, **more: Any) -> None:
        if identity is not None:
            named.append((identity.generation, generation_in_record(own_redis)))
        identify(self, identity, **more)

    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "first")
        monkeypatch.setattr(Cache, "identify", watched)
        before = generation_in_record(own_redis)
        own_postgres.stop()
        own_postgres.start()
        await until(lambda: named)
    assert named[0][0] != before
    assert named[0][0] == named[0][1]


def generation_in_record(redis_server: EmbeddedRedis) -> str:
    with SyncRedis.from_url(redis_server.url) as redis:
        [key] = redis.keys("*:last-used:*")
        record: Any = redis.hget(key, "record")
    fields, _ = json.JSONDecoder().raw_decode(record.decode(errors="replace"))
    return str(fields["generation"])


@pytest.mark.parametrize(
    "change",
    ["another target", "another key", "a planted record", "no key"],
)
async def test_only_a_record_of_the_same_target_and_key_leads_to_cached_states(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, change: str
) -> None:
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "first")
    own_postgres.stop()
    options: dict[str, Any] = {}
    if change == "another target":
        url = url.replace("/test?", "/other?")
    elif change == "another key":
        options = {"l1_signing_key": "another key of the same length"}
    elif change == "no key":
        options = {"l1_signing_key": None}
    else:
        async with Redis.from_url(own_redis.url) as redis:
            [record] = await redis.keys("*last-used*")
            signed = await redis.hget(record, "record")
            await redis.hset(record, "record", signed.replace(b"generation", b"Generation"))  # type: ignore[union-attr, arg-type]
    async with pod(url, own_redis.url, **options) as saver:
        assert saver.tier == "redis"
        assert await said(saver, "42") == []


async def test_the_record_does_not_show_the_key_of_the_cache(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """The cache's key is PostgreSQL's. The processes share a password, which this server does not ask for."""
    url = with_tables(own_postgres).replace("postgres@", "postgres:geheim@")
    async with pod(url, own_redis.url, l1_signing_key=None) as saver:
        await say(saver, "42", "first")
    async with await psycopg.AsyncConnection.connect(url) as conn:
        [(key,)] = await (await conn.execute("SELECT signing_key FROM glasspoint_identity")).fetchall()
    async with Redis.from_url(own_redis.url) as redis:
        [record] = await redis.keys("*last-used*")
        stored = await redis.hget(record, "record")
    for spelling in (key, base64.b64encode(key), key.hex().encode()):
        assert spelling not in stored  # type: ignore[operator]
    own_postgres.stop()
    async with pod(url, own_redis.url, l1_signing_key=None) as saver:
        assert await said(saver, "42") == ["first"]
    other = url.replace("geheim", "another")
    async with pod(other, own_redis.url, l1_signing_key=None) as saver:
        with pytest.raises(ThreadTamperedError):
            await said(saver, "42")


async def test_redis_lost_as_well_sets_aside_what_begins_anew(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """From redis to memory: the conversation's state stands in Redis, and stays the thread's state."""
    url = with_tables(own_postgres)
    own_redis.stop()
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        for text in TURNS:
            await say(saver, "42", text)
        own_redis.kill()
        await say(saver, "42", "in memory")
        assert saver.tier == "memory"
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        own_redis.start("--appendonly", "yes", "--appendfsync", "always")
        await until(lambda: saver._chain.whole)
        assert await said(saver, "42") == TURNS
    assert drained(registry) == {"new": 1, "set_aside": 1}


async def test_a_way_up_that_is_given_up_is_nothing_that_a_caller_hears_of(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call has followed its thread to a saver that is closed by then: PostgreSQL was lost again."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with (
        pod(url, own_redis.url) as early,
        pod(url, own_redis.url, probe_interval=1000) as late,
    ):
        await say(early, "42", "during")
        own_postgres.start()
        await until(lambda: early.tier == "cached")
        closed, above = MemorySaver(), late._chain._tier_above
        await closed.close()
        given_up = iter([(late._chain._specs[0], closed)])

        async def tier_above() -> Any:
            return next(given_up, None) or await above()

        monkeypatch.setattr(late._chain, "_tier_above", tier_above)
        assert await said(late, "42") == ["during"]
        assert next(given_up, None) is None


async def test_a_thread_is_never_shorter_while_it_is_drained(database: str, redis_url: str) -> None:
    """A long thread takes several transactions: its newest state is in the first."""
    thread, seen = Thread("long"), list[int | None]()
    async with (
        MemorySaver() as lower,
        CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper,
    ):
        await upper.setup()
        for _ in range(250):
            await thread.put(lower)
        whole = upper.import_checkpoints

        async def look(items: Any, **options: Any) -> int:
            answer = await whole(items, **options)
            seen.append(await thread.turn(upper))
            return answer

        upper.import_checkpoints = look  # type: ignore[method-assign]
        moves = await drain(lower, upper)
        assert (moves.results, moves.checkpoints) == (["new"], 250)
        assert len([each async for each in upper.alist(thread.config)]) == 250
    assert len(seen) > 3
    assert set(seen) == {250}


async def test_a_start_waits_for_what_a_dead_process_has_sealed(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease lasts some seconds. Until then nobody may work without the thread."""
    monkeypatch.setattr("glasspoint.fallback.controller._LAST_DRAINS", 2)
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "during")
        tier = saver._chain.saver
        assert not isinstance(tier, CachedPostgresSaver)
        assert await tier.seal_thread("42", lease_seconds=1.5)
    own_postgres.start()
    async with pod(url, own_redis.url) as saver:
        assert saver.tier == "cached"
        assert await said(saver, "42") == ["during"]


async def test_a_way_up_is_given_up_while_another_process_keeps_a_thread_sealed(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasspoint.fallback.controller._LAST_DRAINS", 1)
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, probe_interval=1000) as saver:
        await say(saver, "42", "during")
        tier = saver._chain.saver
        assert not isinstance(tier, CachedPostgresSaver)
        token = await tier.seal_thread("42", lease_seconds=60.0)
        own_postgres.start()
        with pytest.raises(GlasspointError, match="not empty yet"):
            await saver._chain._climb()
        assert saver.tier == "redis"
        assert await tier.seal_thread("42", lease_seconds=0.001, token=token)
        await until(lambda: is_unsealed(tier, "42"))
        await saver._chain._climb()
        assert saver.tier == "cached"
        assert await said(saver, "42") == ["during"]


async def test_a_thread_that_is_deleted_while_a_lower_tier_is_away_is_named_in_the_log(
    database: str, own_redis: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    short: dict[str, Any] = {"redis_timeout": 0.3, "l1_timeout": 0.3, "probe_interval": 1000}
    async with pod(database, own_redis.url, **short) as saver:
        await say(saver, "42", "before")
        saver._chain._note_undrained(frozenset({"redis"}))
        own_redis.kill()
        await saver.adelete_thread("42")
    assert "Thread '42' was deleted, but not in the tier redis, which cannot be reached" in caplog.text


async def test_what_fails_at_the_start_leaves_nothing_open_and_closing_twice_at_once_closes_once(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*args: object, **options: object) -> None:
        raise LookupError("nobody foresaw it")

    async with pod(database, redis_url, probe_interval=1000) as saver:
        await asyncio.gather(saver.close(), saver.close())
        monkeypatch.setattr(type(saver._chain), "_drain_leftovers", fails)
    with pytest.raises(LookupError):
        async with pod(database, redis_url):
            pass


# ------------------------------------------------------------------ what a stranger found


async def test_a_start_with_a_read_only_postgresql_goes_on_where_the_threads_are(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """As after a failover that has demoted the primary."""
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "before")
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "during")
    own_postgres.start()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        await conn.execute("ALTER DATABASE test SET default_transaction_read_only = on")
        async with pod(url, own_redis.url) as saver:
            assert saver.tier == "redis"
            assert await said(saver, "42") == ["before", "during"]
            await say(saver, "42", "and on")
            await conn.execute("SET default_transaction_read_only = off")
            await conn.execute("ALTER DATABASE test RESET default_transaction_read_only")
            await until(lambda: saver.tier == "cached")
            assert await said(saver, "42") == ["before", "during", "and on"]


@pytest.mark.parametrize("durability", ["sync", "async"])
async def test_a_refused_resume_leaves_nothing_behind(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry, durability: Any
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        graph = order([]).compile(checkpointer=saver)
        for number in range(5):
            with pytest.raises(ThreadUnknownError):
                await graph.ainvoke(Command(resume="yes"), config_of(f"{number}"), durability=durability)
        assert [each async for each in saver.alist(None)] == []
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
    assert drained(registry) == {}
    assert await threads_in(url) == []


async def test_redis_that_has_lost_its_threads_is_said_and_not_ready(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        await say(saver, "42", "during")
        assert (await readyz(registry))[0] == 200
        async with Redis.from_url(own_redis.url) as redis:
            await redis.flushall()
        status, found = await readyz(registry)
        assert (status, found["redis"]) == (503, "lost")
        with pytest.raises(ThreadDamagedError):
            await said(saver, "42")
        assert "Redis has lost the list" in caplog.text
        own_postgres.start()
        await until(lambda: "Promoted from tier redis to cached" in caplog.text)
    assert "but Redis may have lost threads that were written there" in caplog.text
    assert "everything that was written meanwhile is there" not in caplog.text


async def test_a_redis_that_comes_back_empty_is_noticed_on_the_way_up_from_memory(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "during")
        own_redis.kill()
        await say(saver, "43", "in memory")
        assert saver.tier == "memory"
        own_redis.start()
        await until(lambda: saver.tier == "redis")
        assert await said(saver, "43") == ["in memory"]
        with pytest.raises(ThreadDamagedError):
            await said(saver, "42")


async def test_what_an_emptied_redis_refuses_is_drained_when_postgresql_is_back(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Redis may have lost the thread, so it takes no other branch of it from `memory`. PostgreSQL does."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        await say(saver, "42", "in redis")
        own_redis.kill()
        await say(saver, "42", "in memory")
        assert saver.tier == "memory"
        own_redis.start()
        await until(lambda: saver.tier == "redis")
        assert undrained(registry, "memory") == (1, 3)
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(lambda: undrained(registry, "memory") == (0, 0))
    assert len(await threads_in(url)) == 1
    assert "are lost with this process" not in caplog.text


async def test_a_process_without_the_key_refuses_what_is_signed(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver, pod(url, own_redis.url, l1_signing_key=None) as other:
        for text in ("one", "two"):
            await say(saver, "42", text)
        with pytest.raises(ThreadTamperedError, match="the process has none"):
            await said(other, "42")


async def test_a_deleted_thread_does_not_come_back_from_a_lower_tier(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """The process before has died with the thread in Redis, under another key: it cannot be drained."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, l1_signing_key="a key of long ago") as saver:
        await say(saver, "42", "during")
    own_postgres.start()
    async with pod(url, own_redis.url) as saver:
        assert saver._chain.saver.status.undrained_threads == {"redis": 1}
        assert saver._chain.saver.status.undrained_checkpoints == {"redis": 3}
        await saver.adelete_thread("42")
        await until(lambda: saver._chain.whole)
        assert saver._chain.saver.status.undrained_threads == {"redis": 0}
    async with Redis.from_url(own_redis.url) as redis:
        assert [key async for key in redis.scan_iter("*{42}*")] == []


# ------------------------------------------------------------------ further promises of the docs


async def test_looking_for_a_beginning_changes_nothing_in_the_cache(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """Neither a lease nor a lifetime: another process may need the entry when PostgreSQL is back."""
    url = await turns_and_an_outage(own_postgres, own_redis)
    async with Redis.from_url(own_redis.url) as redis:
        [key] = [key async for key in redis.scan_iter("glasspoint:3:*{42}*")]
        assert await redis.pexpire(key, 10**9)
        before, expires_at = await redis.hgetall(key), await pexpiretime(redis, key)
        async with pod(url, own_redis.url) as saver:
            assert await said(saver, "42") == TURNS
            assert await said(saver, "43") == []
        assert await redis.hgetall(key) == before
        assert abs(await pexpiretime(redis, key) - expires_at) < 1000
        assert [key] == [key async for key in redis.scan_iter("glasspoint:3:*{4*}*")]


async def pexpiretime(redis: Redis, key: bytes) -> int:
    """When a key expires, in milliseconds on the server's clock. (The command is newer than Redis 6.2.)"""
    seconds, microseconds = await redis.time()
    return int(seconds * 1000 + microseconds // 1000 + await redis.pttl(key))


async def test_a_state_that_needs_its_ancestors_is_no_beginning(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    """Delta channels are rebuilt from older checkpoints, which only PostgreSQL has."""
    url, config = with_tables(own_postgres), config_of("42")
    async with pod(url, own_redis.url) as saver:
        whole = await delta_graph(saver).ainvoke({"log": ["one"], "slow": ["one"]}, config)
    own_postgres.stop()
    async with pod(url, own_redis.url, registry) as saver:
        assert saver.tier == "redis"
        assert (await delta_graph(saver).aget_state(config)).values == {}
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        assert (await delta_graph(saver).aget_state(config)).values == whole


async def test_in_memory_a_thread_that_is_to_be_known_is_refused(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = await turns_and_an_outage(own_postgres, own_redis)
    own_redis.stop()
    async with pod(url, own_redis.url, fallback_unknown="refuse") as saver:
        assert saver.tier == "memory"
        with pytest.raises(ThreadUnknownError):
            await said(saver, "42")


@asynccontextmanager
async def one_above_and_one_below(
    postgres: EmbeddedPostgres, redis_server: EmbeddedRedis, *, probe_interval: float = 0.1, **more: Any
) -> AsyncIterator[tuple[FallbackSaver, FallbackSaver]]:
    """A process that works in `cached` through an outage, and one that started in it and stays in `redis`."""
    url = with_tables(postgres)
    async with pod(url, redis_server.url, probe_interval=probe_interval, **more) as above:
        for text in TURNS:
            await say(above, "42", text)
        postgres.stop()
        async with pod(url, redis_server.url, probe_interval=3600) as below:
            assert (above.tier, below.tier) == ("cached", "redis")
            yield above, below


@pytest.mark.parametrize("thread_id", ["42", "a new one"])
async def test_a_process_above_knows_what_another_one_acknowledged_below(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, thread_id: str
) -> None:
    before = TURNS if thread_id == "42" else []
    async with one_above_and_one_below(own_postgres, own_redis) as (above, below):
        own_postgres.start()
        await until_it_answers(above)
        cached = above._chain.saver
        assert isinstance(cached, CachedPostgresSaver)
        await settled(cached)
        assert await said(above, thread_id) == before  # it has just heard that nothing stands below
        await say(below, thread_id, "during")
        assert await said(above, thread_id) == [*before, "during"]
        await say(above, thread_id, "after")
        assert await said(above, thread_id) == [*before, "during", "after"]
        assert below.tier == "redis"


async def test_a_thread_below_that_another_process_keeps_sealed_is_waited_for_but_not_for_ever(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_above_and_one_below(own_postgres, own_redis) as (above, below):
        own_postgres.start()
        await until_it_answers(above)
        await say(below, "43", "during")
        tier = below._chain.saver
        assert not isinstance(tier, CachedPostgresSaver)
        token = await tier.seal_thread("43", lease_seconds=60.0)
        with monkeypatch.context() as hurried:
            hurried.setattr("glasspoint.fallback.controller._FOLLOW_SECONDS", 0.2)
            with pytest.raises(ThreadMovedError, match="keeps it sealed"):
                await said(above, "43")
        asked = asyncio.create_task(said(above, "43"))
        assert await tier.seal_thread("43", lease_seconds=0.5, token=token)
        assert await asked == ["during"]


async def until_it_answers(saver: FallbackSaver) -> None:
    async def answers() -> bool:
        try:
            await say(saver, "another", "hello")
        except GlasspointError:
            return False
        return True

    await until(answers)


async def test_without_postgresql_a_process_above_does_not_answer_for_a_thread_that_went_on_below(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    more = {"connect_timeout": 1.0, "pool_timeout": 1.0}
    async with one_above_and_one_below(own_postgres, own_redis, **more) as (above, below):
        assert await said(above, "42") == TURNS, "a hit"
        await say(below, "42", "during")
        with pytest.raises(L2UnavailableError):
            await said(above, "42")


async def test_what_a_dead_process_has_left_is_drained_by_one_that_was_above_all_the_time(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glasspoint.fallback.controller._LEFT_SECONDS", 0.2)
    async with one_above_and_one_below(own_postgres, own_redis) as (above, below):
        await say(below, "42", "during")
        await say(below, "43", "new")
        await below.close()
        own_postgres.start()

        async def all_there() -> bool:
            there = await threads_in(database_of(own_postgres))
            return there == ["42", "43"] and not await list_of_threads(own_redis)

        await until(all_there)
        assert await said(above, "42") == [*TURNS, "during"]


def database_of(server: EmbeddedPostgres) -> str:
    before, _, query = server.url.rpartition("/postgres")
    return f"{before}/test{query}"


async def list_of_threads(server: EmbeddedRedis) -> list[bytes]:
    async with Redis.from_url(server.url) as redis:
        (key,) = await redis.keys("*:fallback:*:threads")
        named: list[bytes] = await redis.zrangebyscore(key, "(0", "+inf")  # type: ignore[assignment]
        return named


@asynccontextmanager
async def cut_off(
    database: str, redis_url: str, *, checkpoints: int
) -> AsyncIterator[tuple[MemorySaver, CachedPostgresSaver, Thread]]:
    """Yield a lower tier, an upper tier, and a thread of which only the newest checkpoint was moved."""
    lower, thread = MemorySaver(), Thread("42")
    for _ in range(checkpoints):
        await thread.put(lower)
    items = [each async for each in lower.export_thread("42")]
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper:
        await upper.setup()
        await upper.import_checkpoints([items[-1]])
        yield lower, upper, thread


async def test_a_drain_that_was_cut_off_after_the_newest_checkpoint_goes_on_in_its_thread(
    database: str, redis_url: str
) -> None:
    """Its thread has gone on meanwhile, by more than one checkpoint."""
    async with cut_off(database, redis_url, checkpoints=4) as (lower, upper, thread):
        for _ in range(3):
            await thread.put(upper)
        await drain(lower, upper)
        steps = [each.metadata["step"] async for each in upper.alist(thread.config)]
    assert steps == [7, 6, 5, 4, 3, 2, 1]
    assert await threads_in(database) == ["42"]


async def test_of_a_drain_that_was_cut_off_only_what_came_after_it_is_set_aside(
    database: str, redis_url: str
) -> None:
    """Both the thread and the branch have gone on from what was moved: nothing stands twice."""
    async with cut_off(database, redis_url, checkpoints=3) as (lower, upper, thread):
        fork = thread.newest
        await thread.put(upper)
        thread.newest = fork
        await thread.put(lower)
        await drain(lower, upper)
        assert [each.metadata["step"] async for each in upper.alist(thread.config)] == [4, 3, 2, 1]
        [aside] = set(await threads_in(database)) - {"42"}
        assert [each.metadata["step"] async for each in upper.alist(config_of(aside))] == [5, 3]


async def test_a_branch_has_one_name_also_if_it_grows_between_two_drains(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run has fallen to the lower tier: its first checkpoint there names a parent that is not there."""
    lower, above, fallen = MemorySaver(), Thread("42"), Thread("42")
    fallen.number, fallen.newest = 10, config_of("42", checkpoint_id=numbered_id(10))
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper:
        await upper.setup()
        await above.put(upper)
        await fallen.put(lower)
        with monkeypatch.context() as patched:
            patched.setattr(upper, "import_checkpoints", but_the_answer_is_lost(upper.import_checkpoints))
            with pytest.raises(L2UnavailableError):
                await drain(lower, upper)
        await until(lambda: is_unsealed(lower, "42"))
        for _ in range(2):
            await fallen.put(lower)
        await drain(lower, upper)
        [aside] = set(await threads_in(database)) - {"42"}
        assert [each.metadata["step"] async for each in upper.alist(config_of(aside))] == [13, 12, 11]


async def test_a_process_that_stands_still_in_a_drain_brings_no_deleted_thread_back(
    database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seal expires, another process moves the thread, and its user deletes it."""
    lower, thread = MemorySaver(), Thread("42")
    monkeypatch.setattr(draining, "_LEASE_SECONDS", 0.05)
    await thread.put(lower)
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper:
        await upper.setup()
        relate = upper.relate

        async def meanwhile(*args: Any) -> Any:
            relation = await relate(*args)
            await until(lambda: is_unsealed(lower, "42"))
            monkeypatch.setattr(upper, "relate", relate)
            monkeypatch.setattr(draining, "_LEASE_SECONDS", 10.0)
            assert (await drain(lower, upper)).results == ["new"]
            await upper.adelete_thread("42")
            return relation

        monkeypatch.setattr(upper, "relate", meanwhile)
        assert (await drain(lower, upper)).results == []
        assert await threads_in(database) == []


@pytest.mark.parametrize("first", ["the whole", "the part"])
async def test_a_branch_of_which_a_part_comes_through_another_tier_is_set_aside_once(
    database: str, redis_url: str, first: str
) -> None:
    """A drain from memory into Redis was cut off after the newest checkpoint, and PostgreSQL came back."""
    lower, above, below = MemorySaver(), Thread("42"), Thread("42")
    below.number = 10
    async with (
        RedisSaver.from_conn_string(redis_url) as between,
        CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper,
    ):
        await upper.setup()
        await above.put(upper)
        for _ in range(3):
            await below.put(lower)
        items = [each async for each in lower.export_thread("42")]
        await between.import_checkpoints([items[-1]])
        for tier in (lower, between) if first == "the whole" else (between, lower):
            await drain(tier, upper)
        [aside] = set(await threads_in(database)) - {"42"}
        assert [each.metadata["step"] async for each in upper.alist(config_of(aside))] == [13, 12, 11]
        assert [each.metadata["step"] async for each in upper.alist(config_of("42"))] == [1]


async def test_two_processes_that_drain_one_thread_into_redis_at_once_store_two_branches(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were in `memory`, and both find nothing in Redis. One of the two is the thread's state then."""
    one, two = MemorySaver(), MemorySaver()
    async with RedisSaver.from_conn_string(redis_url) as upper:
        for lower, number in ((one, 0), (two, 10)):
            thread = Thread("42")
            thread.number = number
            for _ in range(3):
                await thread.put(lower)
        both, found, read = asyncio.Barrier(2), [], upper._history.read

        async def at_once(scope: Scope, checkpoint_id: str | None) -> Any:
            result = await read(scope, checkpoint_id)
            found.append(result)
            if (
                len(found) <= 4
            ):  # each of them relates the thread, and looks again before it imports the first
                await both.wait()
            return result

        monkeypatch.setattr(upper._history, "read", at_once)
        moves = await asyncio.gather(drain(one, upper), drain(two, upper))
        assert found[:4] == [None] * 4
        assert sorted(len(each.results) for each in moves) == [0, 1], "one of them has to look again"
        [late] = [lower for lower, each in zip((one, two), moves, strict=True) if not each.results]
        await until(lambda: is_unsealed(late, "42"))
        await drain(late, upper)
        stored = {
            thread_id: [each.metadata["step"] async for each in upper.alist(config_of(thread_id))]
            async for thread_id in upper.thread_ids()
        }
    assert sorted(stored.values()) == [[3, 2, 1], [13, 12, 11]]


def but_the_answer_is_lost(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def done(*args: Any, **kwargs: Any) -> None:
        await call(*args, **kwargs)
        raise L2UnavailableError("The connection is lost.")

    return done


async def is_unsealed(saver: Any, thread_id: str) -> bool:
    try:
        await saver.aget_tuple(config_of(thread_id))
    except ThreadMovedError:
        return False
    return True


def new_branches() -> Branches:
    return Branches(create_telemetry(registry=CollectorRegistry()))


def in_subgraph(run_stands_at: str, puts: str | None = None) -> Placement:
    config = config_of("42", "sub:1")
    config["configurable"]["checkpoint_map"] = {"": run_stands_at}
    return Placement(config, puts)


async def thread_of(branches: Branches, saver: Any, placement: Placement) -> str:
    """The thread that a call is sent to."""
    return str((await branches.place(saver, placement))["configurable"]["thread_id"])


async def test_the_first_put_of_a_subgraph_may_overtake_the_one_of_its_run(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    """Just after a promotion: it is no run that has begun in a tier that is lost."""
    branches, thread = Branches(create_telemetry(registry=registry)), Thread("42")
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper:
        await upper.setup()
        await thread.put(upper)
        branches.switched({"42"})
        within = in_subgraph(numbered_id(2), puts=numbered_id(3))
        with pytest.raises(NotStoredYetError):
            await branches.place(upper, within)
        await thread.put(upper)
        assert await branches.place(upper, within) is within.config
    assert drained(registry) == {}


async def test_a_subgraph_that_is_ahead_of_its_run_ends_in_the_branch_that_its_run_makes() -> None:
    upper = MemorySaver()
    await Thread("42").put(upper)
    branches, within = new_branches(), in_subgraph("first", puts="of the subgraph")
    branches.switched({"42"})
    with pytest.raises(NotStoredYetError):
        await branches.place(upper, within)
    aside = await thread_of(branches, upper, Placement(config_of("42"), puts="first"))
    assert aside != "42"
    assert await thread_of(branches, upper, within) == aside


async def test_subgraphs_that_are_stored_before_their_run_share_its_branch() -> None:
    """With `durability="exit"`. They do not wait for each other."""
    upper = MemorySaver()
    await Thread("42").put(upper)
    branches, some = new_branches(), [in_subgraph("the run", puts=each) for each in ("one", "two")]
    branches.switched({"42"})

    async def placed(each: Placement) -> str:
        with suppress(NotStoredYetError):
            return await thread_of(branches, upper, each)
        return ""

    with branches.putting(some[0]), branches.putting(some[1]):
        found = await asyncio.gather(*(until(partial(placed, each)) for each in some))
    run = Placement(config_of("42"), puts="the run")
    assert [await thread_of(branches, upper, run)] * 2 == found
    assert "42" not in found


async def test_a_subgraph_of_a_run_that_has_stored_nothing_yet_goes_with_the_branch_of_its_run() -> None:
    """With `durability="exit"`. The run has read its thread below, and what it read was set aside then."""
    upper, branches, before = MemorySaver(), new_branches(), empty_checkpoint()["id"]
    await Thread("42").put(upper)
    branches.add(SetAside("42", "a branch", datetime.now(UTC)), has_left=True)

    async def placed(run_stands_at: str) -> str:
        with suppress(NotStoredYetError):
            return await thread_of(branches, upper, calls[run_stands_at])
        return ""

    calls = {each: in_subgraph(each) for each in (before, empty_checkpoint()["id"])}
    found = [await until(partial(placed, each)) for each in calls]
    assert found == ["a branch", "42"]


async def test_what_a_task_of_a_lost_tier_writes_does_not_lead_its_run_into_the_thread() -> None:
    """The checkpoint of the task stands in the lost tier. The next put of the run makes the branch."""
    upper, branches = MemorySaver(), new_branches()
    await Thread("42").put(upper)
    branches.switched({"42"})
    writes = Placement(config_of("42", checkpoint_id=numbered_id(7)))

    async def placed() -> bool:
        with suppress(NotStoredYetError):
            return bool(await thread_of(branches, upper, writes))
        return False

    await until(placed)
    assert await thread_of(branches, upper, Placement(writes.config, puts=numbered_id(8))) != "42"


async def test_two_runs_that_began_below_with_nothing_have_a_branch_each() -> None:
    """LangGraph leaves the puts of a run that was cancelled to themselves, and the next turn begins."""
    upper = MemorySaver()
    await Thread("42").put(upper)
    branches = new_branches()
    branches.switched({"42"})
    placed = [await thread_of(branches, upper, Placement(config_of("42"), each)) for each in ("one", "two")]
    assert len({"42", *placed}) == 3


async def until_placed(branches: Branches, saver: Any, placement: Placement) -> str:
    """The thread that a call is sent to, when it waits no longer for a checkpoint."""

    async def placed() -> str:
        with suppress(NotStoredYetError):
            return await thread_of(branches, saver, placement)
        return ""

    found: str = await until(placed)
    return found


def aside_of(branches: Branches, name: str = "a branch", *ids: str) -> str:
    """Set a thread's branch aside, which has left the tier just now."""
    branches.add(SetAside("42", name, datetime.now(UTC)), ids, has_left=True)
    return name


@pytest.mark.parametrize("where", ["a branch", "another branch", "nowhere"])
async def test_a_subgraph_goes_where_the_checkpoint_stands_that_its_run_has_read(where: str) -> None:
    """With `durability="exit"`, what the run puts itself never comes before its subgraph's call."""
    upper, branches = MemorySaver(), new_branches()
    for name in "a branch", "another branch":
        aside_of(branches, name)
    beginning = Thread(where)
    await beginning.put(upper)
    branches.read_below("42", numbered_id(1))
    assert (await until_placed(branches, upper, in_subgraph(empty_checkpoint()["id"]))) == (
        "42" if where == "nowhere" else where
    )


@pytest.mark.parametrize("where", ["42", "a branch", "nowhere"])
async def test_the_next_put_of_a_subgraph_goes_where_its_last_one_went(where: str) -> None:
    """With `durability="exit"`, only the subgraph's own checkpoints are there."""
    upper, branches = MemorySaver(), new_branches()
    aside_of(branches)
    await Thread("42").put(upper)
    await Thread(where, "sub:1").put(upper)
    placement = in_subgraph(empty_checkpoint()["id"], puts=numbered_id(2))
    placement.config["configurable"]["checkpoint_id"] = numbered_id(1)
    assert (await until_placed(branches, upper, placement)) == ("42" if where == "nowhere" else where)


async def test_two_first_puts_at_a_time_of_which_one_makes_a_branch_or_finds_that_none_is_needed(
    database: str, redis_url: str
) -> None:
    upper, branches = MemorySaver(), new_branches()
    await Thread("42").put(upper)
    branches.switched({"42"})
    async with branches._making:  # as the first one has it
        second = asyncio.create_task(thread_of(branches, upper, Placement(config_of("42"), "two")))
        await until(lambda: branches._making._waiters)
        aside_of(branches)
    with pytest.raises(NotStoredYetError):
        await second
    async with CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as empty:
        branches = new_branches()
        branches.switched({"42"})
        found = await asyncio.gather(
            *(thread_of(branches, empty, Placement(config_of("42"), each)) for each in ("one", "two"))
        )
    assert found == ["42", "42"], "PostgreSQL has no other history of the thread"


async def test_of_branches_only_those_with_a_known_beginning_mark_their_checkpoints() -> None:
    branches = new_branches()
    branches.add(SetAside("42", "only its name", UNKNOWN_TIME))
    known = SetAside("42", "a branch", datetime.now(UTC))
    branches.add(known)
    assert branches.mark(config_of("42"), config_of("only its name")) == {}
    assert branches.mark(config_of("42"), config_of("a branch")) == mark_of(known)


async def test_a_branch_goes_on_in_a_tier_that_its_thread_has_left_for_another_place() -> None:
    """Only its own departure is one: of the thread, another part has gone elsewhere."""
    lower, branches = MemorySaver(), new_branches()
    await Thread("42").put(lower)
    aside = aside_of(branches, "a branch", numbered_id(1))
    token = await lower.seal_thread("42", lease_seconds=60.0)
    assert token is not None
    assert await lower.retire_thread("42", token, marker_seconds=60.0, moved_to="elsewhere")
    placement = Placement(config_of("42", checkpoint_id=numbered_id(1)), puts=numbered_id(2))
    assert await thread_of(branches, lower, placement) == aside


async def test_what_is_known_of_branches_is_bounded_in_time_and_of_reads_in_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upper, branches, now = MemorySaver(), new_branches(), monotonic()
    monkeypatch.setattr(branches_module, "monotonic", lambda: now)
    aside_of(branches)
    branches.switched({"43"})
    call = Placement(config_of("42"))
    assert await thread_of(branches, upper, call) == "42"
    assert branches.ids_of("42") == ["a branch"]
    now += branches_module.UNDER_WAY.total_seconds() + 1
    assert await thread_of(branches, upper, call) == "42"
    assert (branches.ids_of("42"), branches._of, branches._anew) == ([], {}, {})
    monkeypatch.setattr(branches_module, "_READ_THREADS_AT_MOST", 2)
    for each in "1", "2", "3":
        branches.read_below(each, None)
    assert list(branches._reads) == ["2", "3"]


async def test_what_a_lost_tier_had_of_a_thread_is_not_taken_for_what_the_next_one_has() -> None:
    """A run has gone on in the thread itself, beside a branch, in a tier that is lost then."""
    lost, upper, run = MemorySaver(), MemorySaver(), Thread("42")
    branches = new_branches()
    branches.add(SetAside("42", "a branch", datetime.now(UTC)))
    await run.put(lost)
    assert await thread_of(branches, lost, Placement(run.newest, puts=numbered_id(2))) == "42"
    await run.put(lost)
    other = Thread("42")
    other.number = 10
    await other.put(upper)
    branches.switched({"42"})
    assert await thread_of(branches, upper, Placement(run.newest, puts=numbered_id(3))) != "42"


async def test_what_a_tier_had_of_a_thread_is_not_taken_for_what_the_tier_above_has(
    database: str, redis_url: str
) -> None:
    """Another process has set aside what the tier had. This process has not come up yet, and follows."""
    run, other = Thread("42"), Thread("42")
    branches, other.number = new_branches(), 10
    branches.switched({"42"})
    async with (
        RedisSaver.from_conn_string(redis_url) as lower,
        CachedPostgresSaver.from_conn_string(database, redis_url=redis_url) as upper,
    ):
        await upper.setup()
        await other.put(upper)
        for _ in range(2):
            assert (
                await thread_of(branches, lower, Placement(run.newest, puts=numbered_id(run.number + 1)))
                == "42"
            )
            await run.put(lower)
        moves = await drain(lower, upper)
        [aside] = moves.set_aside_as
        branches.add(aside._replace(began_at=UNKNOWN_TIME))
        assert await thread_of(branches, upper, Placement(run.newest, puts=numbered_id(3))) == aside.thread_id


def test_a_branch_of_which_the_name_is_known_first_marks_its_checkpoints_later() -> None:
    branches, began_at = new_branches(), datetime.now(UTC)
    for time in (UNKNOWN_TIME, began_at):
        branches.add(SetAside("42", "a branch", time))
    assert SET_ASIDE in branches.mark(config_of("42"), config_of("a branch"))


async def test_a_call_that_waits_for_its_checkpoint_holds_up_no_switch(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangGraph may store what a task wrote before the checkpoint. Between the two, the tier is switched."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        chain, thread = saver._chain, Thread("42")
        await thread.put(saver)
        chain.branches.add(SetAside("42", "a branch", datetime.now(UTC)), [numbered_id(1)])
        put = thread.next_put(saver)
        looks, look = [], RedisSaver.has_checkpoint

        async def looked(self: RedisSaver, *args: Any) -> bool:
            looks.append(args)
            return await look(self, *args)

        monkeypatch.setattr(RedisSaver, "has_checkpoint", looked)
        written = config_of("42", checkpoint_id=numbered_id(2))
        writing = asyncio.create_task(saver.aput_writes(written, [("messages", "written")], "task"))
        await until(lambda: looks)
        async with asyncio.timeout(60):
            async with chain._gate.shut():
                putting = asyncio.create_task(saver.aput(*put))
                assert not writing.done()
            await asyncio.gather(writing, putting)
        found = await chain.saver.aget_tuple(config_of("a branch"))
        assert found is not None
        assert found.pending_writes == [("task", "messages", "written")]


async def test_a_tier_that_was_left_already_is_not_left_again(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """Many calls fail at once when Redis is lost. Only one of them has to wait for those under way."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, redis_timeout=0.3, l1_timeout=0.3) as saver:
        spec, _ = saver._chain._current
        own_redis.stop()
        await say(saver, "42", "in memory")
        async with asyncio.timeout(60), saver._chain._gate.passing():
            assert await saver._chain._fall(spec, RedisUnavailableError("It is lost."))


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("memory", [True, None])
async def test_after_a_thread_has_begun_below_its_subgraphs_stay_with_it(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, durability: Any, memory: bool | None
) -> None:
    """With `exit`, a subgraph is stored before the run that it belongs to."""
    url, charged = with_tables(own_postgres), list[str]()
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "below")
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        graph = outer(saver, order(charged).compile(checkpointer=memory))
        given: Any
        for given in ({"messages": [("user", "above")]}, Command(resume="yes")):
            state = await graph.ainvoke(given, config_of("42"), durability=durability)
        assert [each.content for each in state["messages"]][-3:] == ["above", "charged", "yes"]
    assert charged == ["charged"]
    assert await threads_in(url) == ["42"]


async def interrupted_above(held: Held, saver: Any, own_postgres: EmbeddedPostgres, durability: Any) -> None:
    """Begin a run in the lower tier. Its interrupt comes after its thread has moved up."""
    running = await held.begin("42", durability)
    own_postgres.start()
    await until(lambda: saver.tier == "cached")
    held.go_on.set()
    assert (await running)["__interrupt__"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("memory", [True, None])
async def test_a_run_under_way_ends_in_its_branch_with_its_subgraphs(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, durability: Any, memory: bool | None
) -> None:
    url = await turns_and_an_outage(own_postgres, own_redis, redis_forgets=True)
    async with pod(url, own_redis.url) as saver:
        held = Held.within(saver, memory=memory)
        await interrupted_above(held, saver, own_postgres, durability)
        assert await said(saver, "42") == TURNS
        [aside] = set(await threads_in(url)) - {"42"}
        of_thread = [
            each.config["configurable"]["checkpoint_ns"] async for each in saver.alist(config_of("42"))
        ]
        assert set(of_thread) == {""}
        found: Any = await held.graph.aget_state(config_of(aside), subgraphs=True)
        assert found.tasks[0].state.values["messages"][-1].content == "thought"
        state = await held.graph.ainvoke(Command(resume="yes"), config_of(aside))
        assert [each.content for each in state["messages"]] == ["during", "thought", "yes"]
    assert held.times == 1


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("memory", [True, None])
async def test_a_run_under_way_stays_in_the_thread_that_it_goes_on_from_with_its_subgraphs(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, durability: Any, memory: bool | None
) -> None:
    """The thread has begun below, and has moved up. So what a later turn says is in the thread, too."""
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "below")
        held = Held.within(saver, memory=memory)
        await interrupted_above(held, saver, own_postgres, durability)
        state = await held.graph.ainvoke(Command(resume="yes"), config_of("42"))
        texts = [each.content for each in state["messages"]]
        assert texts[-3:] == ["during", "thought", "yes"]
        found = await held.graph.aget_state(config_of("42"))
        assert [each.content for each in found.values["messages"]] == texts
    assert held.times == 1
    assert await threads_in(url) == ["42"]


async def test_a_run_under_way_goes_on_from_the_cached_state_in_a_tier_that_it_comes_to(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """It began in memory and followed its thread to PostgreSQL, which is lost again. So Redis is next."""
    url, checkpoint = with_tables(own_postgres), empty_checkpoint()
    async with pod(url, own_redis.url) as saver:
        await say(saver, "42", "before")
        config = (await chat(saver).aget_state(config_of("42"))).config
    own_postgres.stop()
    async with pod(url, own_redis.url) as saver:
        saver._chain.branches.switched({"42"})
        await saver.aput(config, checkpoint, {}, {})
        lower = saver._chain.saver
        assert isinstance(lower, RedisSaver)
        assert [each async for each in lower.thread_ids()] == ["42"]


async def test_a_refused_resume_leaves_nothing_behind_in_a_tier_that_the_process_has_fallen_to(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with pod(url, own_redis.url, redis_timeout=0.3, l1_timeout=0.3) as saver:
        assert await said(saver, "42") == []
        own_redis.stop()
        await say(saver, "another", "in memory")
        graph = order([]).compile(checkpointer=saver)
        with pytest.raises(ThreadUnknownError):
            await graph.ainvoke(Command(resume="yes"), config_of("42"), durability="sync")
        assert [each async for each in saver.alist(config_of("42"))] == []


async def test_a_run_of_a_known_thread_goes_on_in_memory_also_if_unknown_threads_are_refused(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    url = with_tables(own_postgres)
    async with pod(url, own_redis.url) as saver:
        await chat(saver).ainvoke({"messages": [("user", "before")]}, config_of("42"), durability="exit")
    own_postgres.stop()
    refusing: Any = {"fallback_unknown": "refuse", "redis_timeout": 0.3, "l1_timeout": 0.3}
    async with pod(url, own_redis.url, **refusing) as saver:
        held = Held(saver)
        running = await held.begin("42", "sync")
        own_redis.stop()
        held.go_on.set()
        state = await running
        assert saver.tier == "memory"
        assert [each.content for each in state["messages"]][-2:] == ["thought", "and that is all"]
        assert await said(saver, "42") == ["before", "during"]


@asynccontextmanager
async def in_memory_with_a_thread_in_redis(
    postgres: EmbeddedPostgres, redis_server: EmbeddedRedis
) -> AsyncIterator[tuple[str, FallbackSaver]]:
    """A process in the tier `memory`, whose servers are back. A closed process has left a thread in Redis.
    Yields the URL of the database, and the process."""
    url = with_tables(postgres)
    redis_server.stop()
    redis_server.start("--appendonly", "yes", "--appendfsync", "always")
    postgres.stop()
    async with pod(url, redis_server.url) as closed:
        await say(closed, "42", "in redis")
    redis_server.kill()
    async with pod(url, redis_server.url, probe_interval=1000) as saver:
        assert saver.tier == "memory"
        redis_server.start("--appendonly", "yes", "--appendfsync", "always")
        postgres.start()
        yield url, saver


async def test_what_a_closed_process_has_left_in_a_tier_that_was_passed_by_is_drained(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """Not a minute later: nobody works in Redis any more."""
    async with in_memory_with_a_thread_in_redis(own_postgres, own_redis) as (url, saver):
        await saver._chain._rise()
        assert saver.tier == "cached"
        assert await threads_in(url) == ["42"]


async def test_a_call_that_waits_while_a_tier_is_passed_by_sees_what_stands_there(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with in_memory_with_a_thread_in_redis(own_postgres, own_redis) as (_, saver):
        bring_up = saver._chain._bring_up

        async def and_switch(*args: Any) -> None:
            await bring_up(*args)
            if saver.tier == "memory":
                await saver._chain._climb()

        monkeypatch.setattr(saver._chain, "_bring_up", and_switch)
        assert await said(saver, "42") == ["in redis"]


async def test_a_call_of_a_branch_that_stands_below_brings_the_branch_up(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    """It came from memory into Redis, where the thread had something else. Then PostgreSQL was back."""
    branch = Thread("a branch")
    async with one_above_and_one_below(own_postgres, own_redis) as (above, below):
        for _ in range(2):
            await branch.put(below)
        own_postgres.start()
        await until_it_answers(above)
        above._chain.branches.add(SetAside("42", "a branch", datetime.now(UTC)), [numbered_id(2)])
        _, *checkpoint = branch.next_put(above)
        put: Any = above.aput
        await put(config_of("42", checkpoint_id=numbered_id(2)), *checkpoint)
        async with open_upstream(database_of(own_postgres)) as upstream:
            steps = [each.metadata["step"] async for each in upstream.alist(config_of("a branch"))]
        assert steps == [3, 2, 1]


@pytest.mark.parametrize("of", ["this process", "another process"])
async def test_a_run_of_a_branch_that_is_lost_for_now_ends_beside_the_history(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, of: str
) -> None:
    """The tier below is lost just when PostgreSQL is back: the run must not shadow what PostgreSQL has."""
    url = await turns_and_an_outage(own_postgres, own_redis, redis_forgets=True)
    lost: Any = {"redis_timeout": 0.3, "l1_timeout": 0.3}
    async with pod(url, own_redis.url, **lost) as one, pod(url, own_redis.url, **lost) as other:
        runner = one if of == "this process" else other
        await say(one, "42", "anew")
        held = Held(runner)
        running = await held.begin("42", "sync")
        own_redis.stop()
        own_postgres.start()
        await until(lambda: runner.tier == "cached")
        held.go_on.set()
        await running
        assert await said(runner, "42") == TURNS
        [aside] = set(await threads_in(url)) - {"42"}
        assert await said(runner, aside) == ["anew", "during"]


async def test_a_promotion_that_leaves_a_lost_tier_behind_never_says_that_all_is_there(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await turns_and_an_outage(own_postgres, own_redis)
    async with pod(url, own_redis.url, redis_timeout=0.3, l1_timeout=0.3) as saver:
        await say(saver, "42", "during")
        whole, close = [], RedisSaver.close

        async def closed(self: RedisSaver) -> None:
            whole.append(saver._chain.whole)
            await close(self)

        monkeypatch.setattr(RedisSaver, "close", closed)
        own_redis.stop()
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        await until(lambda: whole)
        assert not any(whole)
        assert not saver._chain.whole


def test_the_page_says_how_long_the_first_write_waits() -> None:
    page = (DOCS / "fallback.md").read_text("utf-8")
    assert f"waits {HEARD_SECONDS} s before it acknowledges" in page
