"""A fallback chain forgets nothing: conversations go on, or are set aside by name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, interrupt
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import FallbackSaver, Settings, create_telemetry, get_checkpointer
from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ThreadUnknownError
from glasspoint.lineage import SET_ASIDE
from states import config_of, open_upstream
from steps import until

KEY = "a key that Redis does not know"


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL for this test alone, to stop and start."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@asynccontextmanager
async def pod(
    postgres_url: str, redis_url: str, registry: CollectorRegistry | None = None, **more: Any
) -> AsyncIterator[FallbackSaver]:
    """A process of a service, from its start to its end."""
    more = {"probe_interval": 0.1, "redis_timeout": 5.0, "l1_timeout": 5.0, "l1_signing_key": KEY, **more}
    settings = Settings(postgres_url=postgres_url, redis_url=redis_url, **more)
    telemetry = create_telemetry(registry=registry or CollectorRegistry())
    async with get_checkpointer(settings, telemetry=telemetry) as saver:
        yield saver


def chat(saver: Any) -> CompiledStateGraph[Any]:
    builder = StateGraph(MessagesState)
    builder.add_node("answer", lambda state: {"messages": [("ai", f"{len(state['messages'])} so far")]})
    return builder.add_edge(START, "answer").add_edge("answer", END).compile(checkpointer=saver)


async def say(saver: Any, thread_id: str, text: str) -> None:
    await chat(saver).ainvoke({"messages": [("user", text)]}, config_of(thread_id))


async def said(saver: Any, thread_id: str) -> list[str]:
    """What the user has said in a thread, as its state has it."""
    state = await chat(saver).aget_state(config_of(thread_id))
    return [each.content for each in state.values.get("messages", []) if each.type == "human"]


def drained(registry: CollectorRegistry) -> dict[str, float]:
    results = ("continued", "new", "set_aside", "refused")
    found = {}
    for result in results:
        labels = {"saver": "default", "result": result}
        found[result] = registry.get_sample_value("glasspoint_drained_threads_total", labels)
    return {result: count for result, count in found.items() if count}


async def threads_in(url: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        cursor = await conn.execute("SELECT DISTINCT thread_id FROM checkpoints ORDER BY 1")
        return [thread_id for (thread_id,) in await cursor.fetchall()]


TURNS = [f"turn {n}" for n in range(1, 6)]


async def test_a_hot_conversation_goes_on_through_an_outage(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis, registry: CollectorRegistry
) -> None:
    url = own_postgres.create_database("test")
    async with pod(url, own_redis.url) as saver:
        for text in TURNS:
            await say(saver, "42", text)
    own_postgres.stop()
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
    assert steps == list(range(3 * 6 - 2, -2, -1)), "each checkpoint once, none is missing"


async def test_what_does_not_go_on_from_the_history_is_set_aside(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = own_postgres.create_database("test")
    async with pod(url, own_redis.url) as saver:
        for text in TURNS:
            await say(saver, "42", text)
    own_postgres.stop()
    async with Redis.from_url(own_redis.url) as redis:
        await redis.flushall()
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
        noted = [each.metadata[SET_ASIDE]["thread_id"] async for each in upstream.alist(config_of(aside))]
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
    url, charged = own_postgres.create_database("test"), list[str]()
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
    url, charged = own_postgres.create_database("test"), list[str]()
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
