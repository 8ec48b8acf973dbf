"""Turns are counted by how they ended, and questions of graphs and their answers once each, in every tier."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.types import INTERRUPT, RESUME
from langgraph.errors import GraphInterrupt
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Interrupt, interrupt
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from chains import chain
from databases import with_tables
from glasspoint import MemorySaver, conversation_turn, create_redis_checkpointer, create_telemetry
from glasspoint.embedded import EmbeddedPostgres
from glasspoint.model.scope import Scope
from glasspoint.telemetry.conversation import turn_around
from recorder import Recorder
from states import config_of, counts, open_saver
from steps import Thread, until
from talkative import talkative

TIERS = ("cached", "redis", "memory")


class Asked(TypedDict, total=False):
    one: str
    two: str


def turns(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["agent"], sample.labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "glasspoint_turns_total" and sample.value
    }


def interrupts(registry: CollectorRegistry) -> Counter[str]:
    return counts(registry, "glasspoint_interrupts_total", "kind")


@asynccontextmanager
async def opened(tier: str, database: str, redis_url: str, registry: CollectorRegistry) -> AsyncIterator[Any]:
    saver: Any
    telemetry = create_telemetry(registry=registry)
    if tier == "cached":
        async with open_saver(database, redis_url, telemetry=telemetry) as saver:
            yield saver
        return
    if tier == "redis":
        saver = await create_redis_checkpointer(redis_url, telemetry=telemetry)
    else:
        saver = MemorySaver(telemetry=telemetry)
    async with saver:
        yield saver


@pytest.fixture(params=TIERS)
async def tier(
    request: pytest.FixtureRequest, database: str, redis_url: str, registry: CollectorRegistry
) -> AsyncIterator[Any]:
    async with opened(request.param, database, redis_url, registry) as saver:
        yield saver


def ask(name: str) -> Any:
    return lambda state: {name: interrupt(name)}


def build(saver: BaseCheckpointSaver[Any]) -> Any:
    """A graph of two parallel tasks, each with a question."""
    graph = StateGraph(Asked)
    for name in ("one", "two"):
        graph.add_node(name, ask(name)).add_edge(START, name).add_edge(name, END)
    return graph.compile(checkpointer=saver)


async def test_a_turn_is_counted_by_how_it_ended(tier: Any, registry: CollectorRegistry) -> None:
    """Without an SDK, and in the registry of the saver that it calls."""
    graph, config = talkative(tier), config_of("42")
    async with conversation_turn("42", agent_name="concierge"):
        assert "__interrupt__" in await graph.ainvoke({"text": "hello"}, config)
    async with conversation_turn("42", agent_name="concierge"):
        await graph.ainvoke(Command(resume="this one"), config)

    async def fail(agent: str | None, error: BaseException) -> None:
        async with conversation_turn("42", agent):
            await tier.aget_tuple(config)
            raise error

    for agent, error in (("concierge", LookupError()), (None, asyncio.CancelledError())):
        with pytest.raises(type(error)):
            await fail(agent, error)
    assert turns(registry) == {
        ("concierge", "interrupted"): 1,
        ("concierge", "ok"): 1,
        ("concierge", "error"): 1,
        ("unnamed", "cancelled"): 1,
    }


async def test_a_turn_that_asks_and_is_answered_in_it_has_ended(
    tier: Any, registry: CollectorRegistry
) -> None:
    """The question is one of a subgraph, so the tasks around it wait, too."""
    graph, config = talkative(tier), config_of("42")
    async with conversation_turn("42", agent_name="concierge"):
        await graph.ainvoke({"text": "hello"}, config)
        await graph.ainvoke(Command(resume="this one"), config)
    assert turns(registry) == {("concierge", "ok"): 1}


async def test_a_question_that_is_stored_outside_of_every_context_is_its_turn_s(
    tier: Any, registry: CollectorRegistry
) -> None:
    """As by a callback in another thread. It belongs to the turn of its conversation that is under way."""
    thread = Thread("42")
    async with conversation_turn("42", agent_name="concierge"):
        await thread.put(tier)
        question = [(INTERRUPT, (Interrupt("?", id="a"),))]
        store = tier.aput_writes(thread.newest, question, "task")
        await asyncio.create_task(store, context=Context())
    assert turns(registry) == {("concierge", "interrupted"): 1}


async def test_a_turn_that_runs_synchronously_is_counted_alike(
    tier: Any, registry: CollectorRegistry
) -> None:
    graph, config = build(tier), config_of("42")

    def ask() -> dict[str, Any]:
        questions = graph.invoke({}, config)["__interrupt__"]
        assert len(questions) == 2
        return {each.id: "yes" for each in questions}

    def turn(*, answers: bool) -> None:
        with conversation_turn("42", agent_name="answered" if answers else "asks"):
            resume = ask()
            if answers:
                graph.invoke(Command(resume=resume), config)

    await asyncio.to_thread(turn, answers=False)
    await asyncio.to_thread(turn, answers=True)
    assert turns(registry) == {("asks", "interrupted"): 1, ("answered", "ok"): 1}
    assert interrupts(registry)["resumed"] == 2


async def test_a_turn_of_another_thread_is_not_interrupted(tier: Any, registry: CollectorRegistry) -> None:
    async with conversation_turn("42", agent_name="concierge"):
        await tier.aget_tuple(config_of("42"))
        await talkative(tier).ainvoke({"text": "hello"}, config_of("of a helper"))
    assert turns(registry) == {("concierge", "ok"): 1}


def test_a_turn_that_calls_no_saver_is_counted_too(registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    with conversation_turn("42", agent_name="early"):
        pass
    other = CollectorRegistry()
    create_telemetry(registry=other)
    with conversation_turn("42", agent_name="named", telemetry=telemetry):
        pass
    assert turns(registry) == {("early", "ok"): 1, ("named", "ok"): 1}
    assert turns(other) == {}


def test_a_stream_that_is_left_is_cancelled(registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)

    def stream() -> Any:
        with conversation_turn("42", agent_name="streams", telemetry=telemetry):
            yield "one"
            yield "two"

    pieces = stream()
    next(pieces)
    pieces.close()
    assert turns(registry) == {("streams", "cancelled"): 1}


def test_a_turn_that_was_abandoned_is_not_under_way_any_more(registry: CollectorRegistry) -> None:
    """Nothing refers to it, and it was never left: what runs later belongs to no turn, or to a later one."""
    telemetry = create_telemetry(registry=registry)

    def enter() -> None:
        conversation_turn("a", telemetry=telemetry).__enter__()

    Context().run(enter)
    gc.collect()
    assert turn_around(Scope("a", "")) is None
    abandoned = conversation_turn("a", telemetry=telemetry)
    Context().run(abandoned.__enter__)
    later = conversation_turn("a", telemetry=telemetry)
    Context().run(later.__enter__)
    del abandoned
    gc.collect()
    assert turn_around(Scope("a", "")) is later


def test_an_agent_inside_of_an_agent_that_asks_is_no_error() -> None:
    recorder = Recorder()
    with pytest.raises(GraphInterrupt), conversation_turn("42", "inner", telemetry=recorder.telemetry):
        raise GraphInterrupt((Interrupt("which one?"),))
    assert turns(recorder.registry) == {("inner", "interrupted"): 1}
    [span] = recorder.spans
    assert span.status.status_code is StatusCode.UNSET


def test_the_names_of_agents_are_bounded(registry: CollectorRegistry) -> None:
    telemetry = create_telemetry(registry=registry)
    for name in (*map(str, range(52)), "0", "\ud800"):
        with conversation_turn("42", name, telemetry=telemetry):
            pass
    found = turns(registry)
    assert len(found) == 51
    assert (found["0", "ok"], found["49", "ok"], found["other", "ok"]) == (2, 1, 3)
    generate_latest(registry)  # and it can be encoded


def test_the_duration_of_a_turn_leads_to_its_trace() -> None:
    recorder = Recorder()
    with conversation_turn("42", "concierge", telemetry=recorder.telemetry):
        pass
    [span] = recorder.spans
    assert span.context is not None
    exemplars = [
        sample.exemplar.labels["trace_id"]
        for family in recorder.registry.collect()
        for sample in family.samples
        if sample.name == "glasspoint_turn_duration_seconds_bucket" and sample.exemplar
    ]
    assert exemplars == [f"{span.context.trace_id:032x}"]


async def test_a_question_and_its_answer_are_counted_once(tier: Any, registry: CollectorRegistry) -> None:
    """LangGraph stores a question for each task around it, too, and an answer with each further write."""
    graph, config = talkative(tier), config_of("42")
    await graph.ainvoke({"text": "hello"}, config)
    assert interrupts(registry) == {"raised": 1}
    await graph.ainvoke(None, config)  # asks again
    assert interrupts(registry) == {"raised": 1}
    await graph.ainvoke(Command(resume="this one"), config)
    assert interrupts(registry) == {"raised": 1, "resumed": 1}


async def test_a_repeated_call_is_counted_once(tier: Any, registry: CollectorRegistry) -> None:
    thread = Thread("42")
    await thread.put(tier)
    for questions, answers in (("first", 0), ("first", 0), ("second", 1), ("second", 1)):
        await tier.aput_writes(
            thread.newest,
            [(INTERRUPT, (Interrupt("?", id=questions),)), (RESUME, ["yes"] * answers)],
            "task",
        )
    assert interrupts(registry) == {"raised": 2, "resumed": 1}
    await tier.aput_writes(thread.newest, [(RESUME, "yes")], "00000000-0000-0000-0000-000000000000")
    await tier.aput_writes(thread.newest, [(RESUME, ["yes", "no"]), ("messages", "x")], "task")
    assert interrupts(registry) == {"raised": 2, "resumed": 2}


async def test_what_another_process_has_counted_is_not_counted_again(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    here, there = registry, CollectorRegistry()
    async with (
        opened("cached", database, redis_url, here) as one,
        opened("cached", database, redis_url, there) as two,
    ):
        asked = (await build(one).ainvoke({}, config_of("42")))["__interrupt__"]
        left = (await build(two).ainvoke(Command(resume={asked[0].id: "yes"}), config_of("42")))[
            "__interrupt__"
        ]
        assert [each.id for each in left] == [asked[1].id]
        assert interrupts(here) == {"raised": 2}
        assert interrupts(there) == {"resumed": 1}
        await build(one).ainvoke(Command(resume="yes"), config_of("42"))
        assert interrupts(here) == {"raised": 2, "resumed": 1}


async def test_a_chain_counts_once_whatever_tier_stores_it(
    own_postgres: EmbeddedPostgres, redis_url: str, registry: CollectorRegistry
) -> None:
    url = with_tables(own_postgres)
    own_postgres.stop()
    async with chain(url, redis_url, registry) as saver:
        graph, config = talkative(saver), config_of("42")
        assert saver.tier == "redis"
        async with conversation_turn("42", "concierge"):
            await graph.ainvoke({"text": "hello"}, config)
        own_postgres.start()
        await until(lambda: saver.tier == "cached")
        async with conversation_turn("42", "concierge"):
            await graph.ainvoke(None, config)  # asks again
        async with conversation_turn("42", "concierge"):
            await graph.ainvoke(Command(resume="this one"), config)
        assert interrupts(registry) == {"raised": 1, "resumed": 1}
        assert turns(registry) == {("concierge", "interrupted"): 2, ("concierge", "ok"): 1}
