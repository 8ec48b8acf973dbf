"""Real graphs behave on our savers as they do on LangGraph's own, with one saver for all turns and with a
fresh one for each: then nothing can come from a process's memory."""

from __future__ import annotations

import asyncio
import operator
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Durability, Send, interrupt
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import RedisSaver, create_telemetry
from states import counts, open_saver, open_upstream

Savers = Callable[[], AbstractAsyncContextManager[BaseCheckpointSaver[str]]]
"""Where the saver of the next turn comes from."""

CONFIG: RunnableConfig = {"configurable": {"thread_id": "대화 1"}}


@pytest.fixture(params=["AsyncPostgresSaver", "one saver", "fresh savers", "RedisSaver"])
async def savers(request: pytest.FixtureRequest, database: str, redis_url: str) -> AsyncIterator[Savers]:
    registry = CollectorRegistry()

    def open_ours() -> AbstractAsyncContextManager[BaseCheckpointSaver[str]]:
        return open_saver(database, redis_url, telemetry=create_telemetry(registry=registry))

    if request.param == "RedisSaver":
        yield lambda: RedisSaver.from_conn_string(redis_url, telemetry=create_telemetry(registry=registry))
        return
    if request.param == "fresh savers":
        yield open_ours
    else:
        opened = open_ours() if request.param == "one saver" else open_upstream(database)
        async with opened as the_saver:

            @asynccontextmanager
            async def same() -> AsyncIterator[BaseCheckpointSaver[str]]:
                yield the_saver

            yield same
    if request.param != "AsyncPostgresSaver":
        assert counts(registry, "glasspoint_l1_reads_total", "result")["hit"], "the cache took no part"


class State(TypedDict):
    log: Annotated[list[Any], operator.add]


def one_node(node: Callable[..., Any]) -> StateGraph[Any]:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").add_edge("node", END)


async def test_an_interrupted_run_waits_and_goes_on_with_the_answer(savers: Savers) -> None:
    runs = Counter[str]()

    def prepare(state: State) -> State:
        runs["prepare"] += 1
        return {"log": ["prepared"]}

    def ask(state: State) -> State:
        name = interrupt({"question": "이름?"})
        return {"log": [name, interrupt({"question": f"{name}, 나이?"})]}

    builder = StateGraph(State).add_node(prepare).add_node(ask)
    builder.add_edge(START, "prepare").add_edge("prepare", "ask")

    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke({"log": ["hi"]}, CONFIG)
        assert [each.value for each in answer["__interrupt__"]] == [{"question": "이름?"}]
    async with savers() as saver:
        waiting = await builder.compile(saver).aget_state(CONFIG)
        assert waiting.next == ("ask",)
        assert [each.value for each in waiting.interrupts] == [{"question": "이름?"}]
    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke(Command(resume="철수"), CONFIG)
        assert [each.value for each in answer["__interrupt__"]] == [{"question": "철수, 나이?"}]
    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke(Command(resume=7), CONFIG)
        assert answer["log"] == ["hi", "prepared", "철수", 7]
    assert runs == {"prepare": 1}


async def test_of_two_interrupts_one_can_be_answered_before_the_other(savers: Savers) -> None:
    def ask(question: str) -> Any:
        return lambda state: {"log": [f"{question} {interrupt(question)}"]}

    builder = StateGraph(State).add_node("a", ask("a?")).add_node("b", ask("b?"))
    builder.add_edge(START, "a").add_edge(START, "b")

    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke({"log": []}, CONFIG)
        asked = {each.value: each.id for each in answer["__interrupt__"]}
        assert asked.keys() == {"a?", "b?"}
    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke(Command(resume={asked["b?"]: 2}), CONFIG)
        assert [each.value for each in answer["__interrupt__"]] == ["a?"]
    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke(Command(resume={asked["a?"]: 1}), CONFIG)
        assert answer["log"] == ["a? 1", "b? 2"]


async def test_after_a_failure_only_the_failed_task_runs_again(savers: Savers) -> None:
    runs = Counter[int]()
    others_are_done = asyncio.Event()

    async def work(number: int) -> State:
        runs[number] += 1
        if number == 2 and runs[number] == 1:
            await others_are_done.wait()
            raise ZeroDivisionError
        if len(runs) == 4:
            others_are_done.set()
        return {"log": [number]}

    builder = StateGraph(State).add_node("work", work)  # type: ignore[arg-type]
    builder.add_conditional_edges(START, lambda state: [Send("work", number) for number in range(4)])

    async with savers() as saver:
        with pytest.raises(ZeroDivisionError):
            await builder.compile(saver).ainvoke({"log": []}, CONFIG)
    async with savers() as saver:
        failed = await builder.compile(saver).aget_state(CONFIG)
        errors: list[Any] = [task.error for task in failed.tasks]
        assert errors == [None, None, repr(ZeroDivisionError()), None]
    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke(None, CONFIG)
        assert answer["log"] == [0, 1, 2, 3]
    assert runs == {0: 1, 1: 1, 2: 2, 3: 1}


async def test_a_subgraph_with_a_memory_of_its_own_keeps_it_over_turns(savers: Savers) -> None:
    class Inner(TypedDict):
        seen: Annotated[list[int], operator.add]

    inner = StateGraph(Inner).add_node("count", lambda state: {"seen": [len(state["seen"])]})
    subgraph = inner.add_edge(START, "count").compile(checkpointer=True)

    async def call(state: State) -> State:
        return {"log": [(await subgraph.ainvoke({"seen": [-1]}))["seen"]]}

    for turn in range(3):
        async with savers() as saver:
            answer = await one_node(call).compile(saver).ainvoke({"log": [f"turn {turn}"]}, CONFIG)
    assert answer["log"] == [
        "turn 0", [-1, 1], "turn 1", [-1, 1, -1, 3], "turn 2", [-1, 1, -1, 3, -1, 5],
    ]  # fmt: skip


async def test_an_older_state_can_be_changed_and_continued(savers: Savers) -> None:
    builder = one_node(lambda state: {"log": [len(state["log"])]})
    for text in "abc":
        async with savers() as saver:
            await builder.compile(saver).ainvoke({"log": [text]}, CONFIG)

    async with savers() as saver:
        graph = builder.compile(saver)
        history = [state async for state in graph.aget_state_history(CONFIG)]
        assert history[0].values["log"] == ["a", 1, "b", 3, "c", 5]
        [before_b] = [state for state in history if state.values.get("log") == ["a", 1, "b"]]
        assert (await graph.ainvoke(None, before_b.config))["log"] == ["a", 1, "b", 3]
    async with savers() as saver:
        graph = builder.compile(saver)
        assert (await graph.aget_state(CONFIG)).values["log"] == ["a", 1, "b", 3]
        changed = await graph.aupdate_state(before_b.config, {"log": ["B"]})
        assert (await graph.aget_state(CONFIG)).values["log"] == ["a", 1, "b", "B"]
    async with savers() as saver:
        graph = builder.compile(saver)
        assert (await graph.ainvoke({"log": ["d"]}, changed))["log"] == ["a", 1, "b", "B", "d", 5]
        assert (await graph.aget_state(CONFIG)).values["log"] == ["a", 1, "b", "B", "d", 5]
        assert (await graph.aget_state(history[0].config)).values["log"] == ["a", 1, "b", 3, "c", 5]


@pytest.mark.parametrize("step", [-1, 0, 1], ids=["root", "before the node", "after the node"])
async def test_a_copied_checkpoint_has_the_values_of_the_old_one(savers: Savers, step: int) -> None:
    builder = one_node(lambda state: {"log": [len(state["log"])]})
    for text in "ab":
        async with savers() as saver:
            await builder.compile(saver).ainvoke({"log": [text]}, CONFIG)

    async with savers() as saver:
        graph = builder.compile(saver)
        [old] = [state async for state in graph.aget_state_history(CONFIG, filter={"step": step})]
        await graph.aupdate_state(old.config, None, as_node="__copy__")
    async with savers() as saver:
        copy = await builder.compile(saver).aget_state(CONFIG)
        assert copy.metadata is not None
        assert copy.metadata["source"] == "fork"
        assert (copy.values, copy.next) == (old.values, old.next)
    async with savers() as saver:
        answer = await builder.compile(saver).ainvoke(None if old.next else {"log": ["c"]}, CONFIG)
        assert answer["log"] == (["a", 1] if old.next else ["a", 1, "c", 3])


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_every_durability_leaves_the_same_history_as_in_memory(
    savers: Savers, durability: Durability
) -> None:
    def add(state: State) -> State:
        if state["log"][-1] == "fail":
            raise ZeroDivisionError
        return {"log": [len(state["log"])]}

    async def play(savers: Savers) -> Any:
        for text in ["a", "b", "fail", "c"]:
            async with savers() as saver:
                graph = one_node(add).compile(saver)
                try:
                    await graph.ainvoke({"log": [text]}, CONFIG, durability=durability)
                except ZeroDivisionError:
                    assert text == "fail"
        async with savers() as saver:
            states = one_node(add).compile(saver).aget_state_history(CONFIG)
            return [
                (
                    each.values,
                    each.next,
                    (each.metadata or {}).get("step"),
                    each.tasks and each.tasks[0].error,
                )
                async for each in states
            ]

    in_memory = InMemorySaver()

    @asynccontextmanager
    async def memory() -> AsyncIterator[BaseCheckpointSaver[str]]:
        yield in_memory

    assert await play(savers) == await play(memory)


class Rot13:
    """A cipher that is enough to see whether the plain text is anywhere."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "rot", bytes((byte + 13) % 256 for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "rot"
        return bytes((byte - 13) % 256 for byte in ciphertext)


async def test_encrypted_state_is_in_plain_text_in_neither_server(database: str, redis_url: str) -> None:
    def node(state: State) -> State:
        if len(state["log"]) > 1:
            raise ZeroDivisionError("secret-3")
        return {"log": ["secret-2"]}

    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    serde = EncryptedSerializer(Rot13())
    async with (
        open_saver(database, redis_url, serde=serde, telemetry=telemetry) as saver,
        Redis.from_url(redis_url) as redis,
        await psycopg.AsyncConnection.connect(database) as admin,
    ):
        graph = one_node(node).compile(saver)
        await graph.ainvoke({"log": ["secret-1"]}, CONFIG)
        with pytest.raises(ZeroDivisionError):
            await graph.ainvoke({"log": ["secret-4"]}, CONFIG)
        for _ in ("hit", "miss"):
            assert (await graph.aget_state(CONFIG)).values["log"] == ["secret-1", "secret-2", "secret-4"]
            stored: list[Any] = [await redis.hgetall(key) for key in await redis.keys()]
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
                stored += await (await admin.execute(f"SELECT * FROM {table}")).fetchall()
            assert "rot" in repr(stored)
            assert "secret" not in repr(stored)
            await redis.flushall()
    assert counts(registry, "glasspoint_l1_reads_total", "result").keys() >= {"hit", "miss"}


@dataclass
class Mood:
    name: str


async def test_a_clone_with_another_allowlist_shares_the_cache(database: str, redis_url: str) -> None:
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    serde = JsonPlusSerializer(allowed_msgpack_modules=None)
    async with open_saver(database, redis_url, serde=serde, telemetry=telemetry) as saver:
        clone = saver.with_allowlist([(__name__, "Mood")])
        assert clone is not saver
        await one_node(lambda state: {"log": [Mood("glad")]}).compile(saver).ainvoke({"log": []}, CONFIG)
        before = counts(registry, "glasspoint_l1_reads_total", "result")
        read = await clone.aget_tuple(CONFIG)
        assert read is not None
        assert read.checkpoint["channel_values"]["log"] == [Mood("glad")]
        assert counts(registry, "glasspoint_l1_reads_total", "result") - before == {"hit": 1}

        await one_node(lambda state: {"log": ["done"]}).compile(clone).ainvoke({"log": []}, CONFIG)
        read = await saver.aget_tuple(CONFIG)
        assert read is not None
        assert read.checkpoint["channel_values"]["log"][-1] == "done"
