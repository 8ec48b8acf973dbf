"""A lost answer is seen: two runs that go on from one checkpoint, and a clock that is behind. Nothing else is
taken for one: not time travel, not subgraphs, not parallel branches."""

from __future__ import annotations

import asyncio
import copy
import operator
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Durability, Send, interrupt
from prometheus_client import CollectorRegistry

from conversations import execute
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.errors import ConfigurationError, ThreadForkedError
from glasspoint.savers.forks import OnFork
from states import config_of, counts, numbered_id, open_saver
from steps import Thread, locked, until

CONFIG: RunnableConfig = {"configurable": {"thread_id": "42"}}

DURABILITIES: tuple[Durability, ...] = ("sync", "async", "exit")


class State(TypedDict):
    log: Annotated[list[str], operator.add]


def one_node(node: Callable[..., Any]) -> StateGraph[Any]:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").add_edge("node", END)


def answer(state: State) -> dict[str, Any]:
    return {"log": [f"{state['log'][-1]}!"]}


def forks(*registries: CollectorRegistry) -> Counter[str]:
    """How many forks were counted, by their kind."""
    total = Counter[str]()
    for registry in registries:
        total += counts(registry, "glasspoint_forks_total", "kind")
    return total


@asynccontextmanager
async def opened(
    database: str, redis_url: str, registry: CollectorRegistry, **options: Any
) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(
        database, redis_url, telemetry=create_telemetry(registry=registry), **options
    ) as saver:
        yield saver


@asynccontextmanager
async def two_processes(
    database: str, redis_url: str, **options: Any
) -> AsyncIterator[tuple[CachedPostgresSaver, CachedPostgresSaver, Callable[[], Counter[str]]]]:
    """Two savers, as two processes have them, and what both have counted together."""
    registries = CollectorRegistry(), CollectorRegistry()
    async with (
        opened(database, redis_url, registries[0], **options) as one,
        opened(database, redis_url, registries[1], **options) as other,
    ):
        yield one, other, lambda: forks(*registries)


# ------------------------------------------------------------------------------------ what is a fork


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("began_before", [True, False], ids=["known thread", "new thread"])
async def test_two_turns_at_once_are_one_fork(
    database: str, redis_url: str, durability: Durability, *, began_before: bool
) -> None:
    async with two_processes(database, redis_url) as (one, other, counted):
        if began_before:
            await one_node(answer).compile(checkpointer=one).ainvoke({"log": ["hello"]}, CONFIG)
        both = asyncio.Barrier(2)

        async def together(state: State) -> dict[str, Any]:
            await both.wait()
            return answer(state)

        graphs = [one_node(together).compile(checkpointer=saver) for saver in (one, other)]
        await asyncio.gather(
            *(
                graph.ainvoke({"log": [text]}, CONFIG, durability=durability)
                for graph, text in zip(graphs, "ab", strict=True)
            )
        )
        # What the other one has put is seen by both, at the latest with their next put.
        assert counted().total() in (1, 2)


async def test_many_turns_at_once_in_one_process_are_counted_once_each_but_for_the_first(
    database: str, redis_url: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them read the same checkpoint. Their puts come one after another, in any order."""
    async with opened(database, redis_url, registry) as saver:
        graph = one_node(answer).compile(checkpointer=saver)
        await graph.ainvoke({"log": ["hello"]}, CONFIG)
        read, put = saver.aget_tuple, saver.aput
        all_have_read, one_put = asyncio.Barrier(4), asyncio.Lock()

        async def read_together(config: RunnableConfig) -> CheckpointTuple | None:
            found = await read(config)
            await all_have_read.wait()
            return found

        async def put_alone(*put_arguments: Any) -> RunnableConfig:
            async with one_put:
                return await put(*put_arguments)

        monkeypatch.setattr(saver, "aget_tuple", read_together)
        monkeypatch.setattr(saver, "aput", put_alone)
        await asyncio.gather(*(graph.ainvoke({"log": [text]}, CONFIG) for text in "abcd"))
        assert forks(registry).total() == 3


async def test_of_two_puts_whose_statements_overlap_one_learns_of_the_other(
    database: str, redis_url: str
) -> None:
    thread = Thread("42")
    async with two_processes(database, redis_url) as (one, other, counted):
        await thread.put(one)
        found = [await saver.aget_tuple(thread.config) for saver in (one, other)]
        assert found[0]
        assert found[1]
        puts = [thread.next_put(saver)[1:] for saver in (one, other)]
        async with locked(database, "checkpoints") as waiter:
            # Both have their snapshot before either can commit.
            tasks = [asyncio.create_task(one.aput(found[0].config, *puts[0]))]
            await waiter()
            tasks.append(asyncio.create_task(other.aput(found[1].config, *puts[1])))
            query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: _has_rows(database, query, 2))
        await asyncio.gather(*tasks)
        assert counted().total() == 1


async def _has_rows(database: str, query: str, rows: int) -> bool:
    return len(await execute(database, query) or ()) >= rows


@pytest.mark.parametrize(("mine", "theirs", "kind"), [(5, 4, "shadows"), (4, 5, "shadowed")])
async def test_the_kind_says_whose_answer_is_lost(
    database: str,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    mine: int,
    theirs: int,
    kind: str,
) -> None:
    thread = Thread("42")
    async with two_processes(database, redis_url) as (one, other, counted):
        await thread.put(one)
        found = [await saver.aget_tuple(thread.config) for saver in (one, other)]
        assert found[0]
        assert found[1]
        thread.number = theirs - 1
        await other.aput(found[1].config, *thread.next_put(other)[1:])
        thread.number = mine - 1
        await one.aput(found[0].config, *thread.next_put(one)[1:])
        assert counted() == {kind: 1}
        [line] = [each.message for each in caplog.records if "forked" in each.message]
        assert all(text in line for text in ("'42'", *map(numbered_id, (1, mine, theirs))))
        seen = await one.aget_tuple(thread.config)
        assert seen
        assert seen.checkpoint["id"] == numbered_id(5)


async def test_a_clock_that_is_behind_is_counted_once_a_turn(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    async with opened(database, redis_url, registry) as saver:
        graph = one_node(answer).compile(checkpointer=saver)
        await graph.ainvoke({"log": ["hello"]}, CONFIG)
        newest = await saver.aget_tuple(CONFIG)
        assert newest
        ahead = copy.deepcopy(newest.checkpoint)
        ahead["id"] = "2" + ahead["id"][1:]  # a machine whose clock is ahead has written it
        await saver.aput(newest.config, ahead, newest.metadata, {})
        assert not forks(registry)
        await graph.ainvoke({"log": ["lost"]}, CONFIG)
        assert forks(registry) == {"older_than_parent": 1}


@pytest.mark.parametrize(("way", "shown"), [("hashed", "73475cb40a568e8d"), ("none", "(not shown)")])
async def test_the_log_shows_thread_ids_as_the_spans_do(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture, way: Any, shown: str
) -> None:
    thread = Thread("42")
    telemetry = create_telemetry(registry=CollectorRegistry(), thread_ids=way)
    async with open_saver(database, redis_url, telemetry=telemetry) as saver:
        thread.number = 7
        await thread.put(saver)
        thread.number = 3
        await thread.put(saver)
        [line] = [each.message for each in caplog.records if "forked" in each.message]
        assert shown in line
        assert "'42'" not in line


async def test_an_update_from_outside_that_a_waiting_run_writes_over_is_a_fork(
    database: str, redis_url: str
) -> None:
    async with two_processes(database, redis_url) as (one, other, counted):

        async def ask(state: State) -> dict[str, Any]:
            name = interrupt("name?")
            await one_node(ask).compile(checkpointer=other).aupdate_state(CONFIG, {"log": ["edited"]}, "node")
            return {"log": [name]}

        graph = one_node(ask).compile(checkpointer=one)
        await graph.ainvoke({"log": ["hello"]}, CONFIG)
        assert not counted()
        await graph.ainvoke(Command(resume="Anna"), CONFIG)
        assert counted() == {"shadows": 1}


# ------------------------------------------------------------------------------------ what is refused


async def test_with_raise_the_checkpoint_is_not_stored(database: str, redis_url: str) -> None:
    thread = Thread("42")
    async with two_processes(database, redis_url, on_fork="raise") as (one, other, counted):
        await thread.put(one)
        found = [await saver.aget_tuple(thread.config) for saver in (one, other)]
        assert found[0]
        assert found[1]
        first, second = (thread.next_put(saver)[1:] for saver in (one, other))
        await one.aput(found[0].config, *first)
        with pytest.raises(ThreadForkedError, match="not stored") as raised:
            await other.aput(found[1].config, *second)
        assert raised.value.kind == "shadows"
        assert counted() == {"shadows": 1}
        for saver in (one, other):
            assert await thread_ids(saver, thread) == [numbered_id(2), numbered_id(1)]
            assert await thread.turn(saver) == 2
        # Who repeats the turn goes on from what the other one wrote.
        again = await other.aget_tuple(thread.config)
        assert again
        await other.aput(again.config, *second)
        assert await thread.turn(one) == 3
        rows = await execute(database, "SELECT count(*) FROM checkpoint_blobs WHERE channel = 'messages'")
        assert rows == [(3,)]


async def test_with_raise_one_of_two_overlapping_puts_is_stored(database: str, redis_url: str) -> None:
    """Which of them, PostgreSQL decides."""
    thread = Thread("42")
    async with two_processes(database, redis_url, on_fork="raise") as (one, other, counted):
        await thread.put(one)
        found = [await saver.aget_tuple(thread.config) for saver in (one, other)]
        puts = [thread.next_put(saver)[1:] for saver in (one, other)]
        async with locked(database, "checkpoints"):
            storing = [
                asyncio.create_task(saver.aput(read.config, *put))
                for saver, read, put in zip((one, other), found, puts, strict=True)
                if read is not None
            ]
            query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: _has_rows(database, query, 2))
        answers = await asyncio.gather(*storing, return_exceptions=True)
        [refused] = [n for n, each in enumerate(answers) if isinstance(each, ThreadForkedError)]
        stored = numbered_id(3 if refused == 0 else 2)
        assert counted() == {"shadowed" if refused == 0 else "shadows": 1}
        for saver in (one, other):
            assert await thread_ids(saver, thread) == [stored, numbered_id(1)]


async def test_with_raise_a_clock_that_is_behind_stores_nothing(database: str, redis_url: str) -> None:
    thread = Thread("42")
    async with open_saver(database, redis_url, on_fork="raise") as saver:
        thread.number = 7
        await thread.put(saver)
        thread.number = 3
        with pytest.raises(ThreadForkedError, match="clock") as raised:
            await thread.put(saver)
        assert raised.value.kind == "older_than_parent"
        assert await thread_ids(saver, thread) == [numbered_id(8)]


async def test_with_raise_a_turn_fails_and_the_next_one_goes_on(database: str, redis_url: str) -> None:
    async with two_processes(database, redis_url, on_fork="raise") as (one, other, counted):
        theirs = one_node(answer).compile(checkpointer=other)
        await theirs.ainvoke({"log": ["hello"]}, CONFIG)

        async def interrupted_by_another(state: State) -> dict[str, Any]:
            if counted().total() == 0 and state["log"][-1] == "mine":
                await theirs.ainvoke({"log": ["theirs"]}, CONFIG)
            return answer(state)

        mine = one_node(interrupted_by_another).compile(checkpointer=one)
        with pytest.raises(ThreadForkedError):
            await mine.ainvoke({"log": ["mine"]}, CONFIG, durability="exit")
        state = await mine.ainvoke({"log": ["mine"]}, CONFIG, durability="exit")
        assert state["log"] == ["hello", "hello!", "theirs", "theirs!", "mine", "mine!"]


@pytest.mark.parametrize("durability", ["sync", "async"])
@pytest.mark.parametrize("on_fork", ["count", "raise"])
async def test_a_turn_that_begins_in_the_middle_of_another_is_seen(
    database: str, redis_url: str, durability: Durability, on_fork: OnFork
) -> None:
    """A message that was sent twice: the second run goes on from the first one's question."""
    async with two_processes(database, redis_url, on_fork=on_fork) as (one, other, counted):
        theirs = one_node(answer).compile(checkpointer=other)

        async def overtaken(state: State) -> dict[str, Any]:
            if state["log"][-1] == "mine":
                await until(lambda: _is_read(one, "mine"))
                await theirs.ainvoke({"log": ["theirs"]}, CONFIG, durability=durability)
            return answer(state)

        mine = one_node(overtaken).add_node("after", lambda state: {}).add_edge("node", "after")
        turn = mine.compile(checkpointer=one).ainvoke({"log": ["mine"]}, CONFIG, durability=durability)
        if on_fork == "raise":
            with pytest.raises(ThreadForkedError, match="has written to the thread"):
                await turn
        else:
            await turn
        assert counted() == {"shadows": 1}, "once, whatever the run puts after that"
        state = await theirs.aget_state(CONFIG)
        answers = {"raise": ["mine", "theirs", "theirs!"], "count": ["mine", "mine!"]}
        assert state.values["log"] == answers[on_fork]
        await theirs.ainvoke({"log": ["next"]}, CONFIG, durability=durability)
        assert counted() == {"shadows": 1}


async def _is_read(saver: CachedPostgresSaver, said: str) -> bool:
    found = await saver.aget_tuple(CONFIG)
    return found is not None and found.checkpoint["channel_values"].get("log", [""])[-1] == said


async def test_whoever_goes_on_from_the_answer_of_a_put_names_a_checkpoint(
    database: str, redis_url: str, registry: CollectorRegistry
) -> None:
    async with opened(database, redis_url, registry) as saver:
        graph = one_node(answer).compile(checkpointer=saver)
        await graph.ainvoke({"log": ["hello"]}, CONFIG)
        edited = await graph.aupdate_state(CONFIG, {"log": ["edited"]}, "node")
        await graph.ainvoke({"log": ["meanwhile"]}, CONFIG)
        await graph.ainvoke({"log": ["from the edited one"]}, edited)
        assert not forks(registry)


async def test_on_fork_is_one_of_two_words(database: str, redis_url: str) -> None:
    with pytest.raises(ConfigurationError, match="on_fork"):
        async with open_saver(database, redis_url, on_fork="ignore"):
            pass


async def thread_ids(saver: BaseCheckpointSaver[str], thread: Thread) -> list[str]:
    return [each.checkpoint["id"] async for each in saver.alist(thread.config)]


# ------------------------------------------------------------------------------------ what is none


@pytest.fixture
async def quiet(database: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    """A saver that must not see a fork; it would refuse one, too."""
    registry = CollectorRegistry()
    async with opened(database, redis_url, registry, on_fork="raise") as saver:
        yield saver
    assert not forks(registry)


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_parallel_branches_loops_and_sends_are_no_forks(
    quiet: CachedPostgresSaver, durability: Durability
) -> None:
    builder = StateGraph(State)
    for name in "abc":
        builder.add_node(name, lambda state, name=name: {"log": [name]})
        builder.add_edge(START, name).add_edge(name, "fan")
    builder.add_node("fan", lambda state: {})
    builder.add_node("sent", lambda text: {"log": [text]})
    builder.add_conditional_edges("fan", lambda state: [Send("sent", f"sent {n}") for n in range(5)])
    graph = builder.compile(checkpointer=quiet)
    for _ in range(3):
        await graph.ainvoke({"log": ["go"]}, CONFIG, durability=durability)


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("stateful", [True, False])
async def test_subgraphs_and_interrupts_are_no_forks(
    quiet: CachedPostgresSaver, durability: Durability, *, stateful: bool
) -> None:
    def ask(state: State) -> dict[str, Any]:
        return {"log": [interrupt("name?")]}

    inner = StateGraph(State).add_node("before", answer).add_node("ask", ask)
    inner.add_edge(START, "before").add_edge("before", "ask").add_edge("ask", END)
    outer = StateGraph(State).add_node("inner", inner.compile(checkpointer=stateful or None))
    outer.add_node("after", answer)
    outer.add_edge(START, "inner").add_edge("inner", "after").add_edge("after", END)
    graph = outer.compile(checkpointer=quiet)
    for name in ("Anna", "Bert"):
        await graph.ainvoke({"log": ["go"]}, CONFIG, durability=durability)
        state = await graph.aget_state(CONFIG, subgraphs=True)
        assert state.next == ("inner",)
        await graph.ainvoke(Command(resume=name), CONFIG, durability=durability)
    # Time travel, with a resume in the subgraph.
    waiting = [each async for each in graph.aget_state_history(CONFIG) if each.next == ("inner",)]
    for old in (waiting[0], waiting[-1]):
        await graph.ainvoke(None, old.config, durability=durability)
        await graph.ainvoke(Command(resume="Carl"), CONFIG, durability=durability)


@pytest.mark.parametrize("durability", DURABILITIES)
async def test_time_travel_and_updates_are_no_forks(
    quiet: CachedPostgresSaver, durability: Durability
) -> None:
    graph = one_node(answer).compile(checkpointer=quiet)
    assert (await graph.aget_state(CONFIG)).values == {}  # a look at a thread that is not there yet
    for text in "abc":
        await graph.ainvoke({"log": [text]}, CONFIG, durability=durability)
        await graph.aget_state(CONFIG)
        await graph.aupdate_state(CONFIG, {"log": ["edited"]}, "node")
    states = [each async for each in graph.aget_state_history(CONFIG)]
    for old in (states[0], states[1], states[len(states) // 2], states[-1]):
        await graph.ainvoke({"log": ["another way"]}, old.config, durability=durability)
        await graph.ainvoke(None, old.config, durability=durability)
        await graph.aupdate_state(old.config, {"log": ["edited"]}, "node")
        await graph.aupdate_state(old.config, None, "__copy__")
        await graph.ainvoke({"log": ["on"]}, CONFIG, durability=durability)
    # What a look at the newest returned is an old checkpoint when it is named later.
    looked_at = (await graph.aget_state(CONFIG)).config
    await graph.ainvoke({"log": ["on"]}, CONFIG, durability=durability)
    await graph.aupdate_state(looked_at, {"log": ["edited"]}, "node")
    await graph.ainvoke({"log": ["from there"]}, looked_at, durability=durability)


async def test_a_thread_that_is_deleted_or_pruned_during_a_run_is_not_forked(
    quiet: CachedPostgresSaver,
) -> None:
    async def forget(state: State) -> dict[str, Any]:
        if state["log"][-1] == "forget":
            await quiet.adelete_thread("42")
        return answer(state)

    graph = one_node(forget).compile(checkpointer=quiet)
    for text in ("hello", "forget", "hello"):
        await graph.ainvoke({"log": [text]}, CONFIG, durability="exit")
    await quiet.aprune(["42"])
    await graph.ainvoke({"log": ["hello"]}, CONFIG)


async def test_checkpoints_stored_without_a_parent_by_hand_are_no_forks(quiet: CachedPostgresSaver) -> None:
    thread = Thread("42")
    assert await quiet.aget_tuple(thread.config) is None
    for _ in range(3):
        await quiet.aput(thread.config, *thread.next_put(quiet)[1:])


async def test_the_answer_to_a_read_is_of_plain_types(quiet: CachedPostgresSaver) -> None:
    thread = Thread("42")
    await thread.put(quiet)
    for _ in range(2):
        found = await quiet.aget_tuple(config_of("42"))
        assert found
        assert {type(each) for each in found.config["configurable"].values()} == {str}
