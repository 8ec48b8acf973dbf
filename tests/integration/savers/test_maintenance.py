"""Deleting runs, copying and pruning threads: what stays is what LangGraph needs, and Redis follows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, MemorySaver, create_redis_checkpointer
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import (
    ConfigurationError,
    DeltaChainError,
    GlasspointError,
    InvalidConfigError,
    L2DeadlineError,
    L2RefusedError,
    ThreadExistsError,
    ThreadInUseError,
)
from glasspoint.l2 import pruning
from glasspoint.l2.sql import query
from glasspoint.model.scope import Scope
from histories import Rows, TwoChannels, ids, make_graph, rows_of_thread, write_random_history
from states import config_of, exact, numbered_id, open_saver, open_upstream
from steps import Thread, keys_of, locked, rows_of, seeded_dice, settled, until

NOTHING: Rows = {"checkpoints": set(), "checkpoint_blobs": set(), "checkpoint_writes": set()}


@pytest.fixture
async def upstream(database: str) -> AsyncIterator[AsyncPostgresSaver]:
    async with open_upstream(database) as opened:
        yield opened


@pytest.fixture
async def saver(database: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(database, redis_url) as opened:
        yield opened


@pytest.fixture
async def other(database: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    """Another saver on the same servers."""
    async with open_saver(database, redis_url) as opened:
        yield opened


async def execute(postgres_url: str, statement: str, *params: Any) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as conn:
        await conn.execute(statement, params)


# ------------------------------------------------------------------ keep_latest, beside upstream


@pytest.mark.dice
async def test_keep_latest_leaves_the_rows_that_upstream_leaves(
    database: str, saver: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    dice = seeded_dice()
    threads = [f"thread {number}" for number in range(40)]
    for thread_id in threads:
        await write_random_history(upstream, thread_id, dice)
        await saver.acopy_thread(thread_id, f"copy of {thread_id}")
    await saver.aprune(threads)
    await upstream.aprune([f"copy of {thread_id}" for thread_id in threads])
    for thread_id in threads:
        ours = await rows_of_thread(database, thread_id)
        assert ours == await rows_of_thread(database, f"copy of {thread_id}"), thread_id


async def test_other_threads_are_untouched(database: str, saver: CachedPostgresSaver) -> None:
    for thread_id in ("a", "b", "c"):
        thread = Thread(thread_id)
        for _ in range(3):
            await thread.put(saver)
    before = await rows_of_thread(database, "c")
    await saver.aprune(["a"])
    await saver.aprune(["b"], strategy="delete")
    assert ids(await rows_of_thread(database, "a")) == [numbered_id(3)]
    assert await rows_of_thread(database, "b") == NOTHING
    assert await rows_of_thread(database, "c") == before


async def test_one_call_is_one_transaction(database: str, saver: CachedPostgresSaver) -> None:
    """The second thread cannot be pruned: the first one is left as it was."""
    for thread_id in ("a", "b"):
        thread = Thread(thread_id)
        for _ in range(3):
            await thread.put(saver)
    await execute(
        database,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF OLD.thread_id = 'b' THEN RAISE 'refused'; END IF; RETURN OLD; END $$",
    )
    await execute(
        database,
        "CREATE TRIGGER refuse BEFORE DELETE ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    before = await rows_of(database)
    for strategy in ("keep_latest", "delete"):
        with pytest.raises(L2RefusedError, match="RaiseException"):
            await saver.aprune(["a", "b"], strategy=strategy)
    assert await rows_of(database) == before


# ------------------------------------------------------------------ delta channels


async def states_of(graph: Any, thread_id: str, only: set[str] | None = None) -> dict[str, Any]:
    """The state at each checkpoint."""
    return {
        state.config["configurable"]["checkpoint_id"]: (state.values, state.next)
        async for state in graph.aget_state_history(config_of(thread_id))
        if only is None or state.config["configurable"]["checkpoint_id"] in only
    }


@pytest.mark.parametrize(
    ("turns", "durability"), [*((turns, "async") for turns in range(1, 9)), (2, "exit"), (5, "exit")]
)
async def test_a_pruned_thread_goes_on_like_its_unpruned_copy(
    turns: int, durability: Any, database: str, saver: CachedPostgresSaver
) -> None:
    graph = make_graph(saver)
    for turn in range(turns):
        await graph.ainvoke({"log": [f"turn {turn}"]}, config_of("pruned"), durability=durability)
    await saver.acopy_thread("pruned", "whole")
    await saver.aprune(["pruned"])
    left = set(ids(await rows_of_thread(database, "pruned")))
    assert len(left) <= 4, "more than the way back to a snapshot"
    assert await states_of(graph, "pruned") == await states_of(graph, "whole", left)
    for more in range(3):
        for thread_id in ("pruned", "whole"):
            await graph.ainvoke({"log": [f"more {more}"]}, config_of(thread_id), durability=durability)
        pruned, whole = [await graph.aget_state(config_of(t)) for t in ("pruned", "whole")]
        assert pruned.values == whole.values
        if more == 1:
            await saver.aprune(["pruned"])


async def test_every_ancestor_that_is_kept_is_needed(database: str, saver: CachedPostgresSaver) -> None:
    """So the tests above would see one that is missing."""
    graph, cut = make_graph(saver), 0
    for turns in range(1, 5):
        await graph.ainvoke({"log": [f"turn {turns}"]}, config_of("thread"))
        await saver.acopy_thread("thread", f"pruned {turns}")
        await saver.aprune([f"pruned {turns}"])
        whole = (await graph.aget_state(config_of("thread"))).values
        assert (await graph.aget_state(config_of(f"pruned {turns}"))).values == whole
        for number, ancestor in enumerate(ids(await rows_of_thread(database, f"pruned {turns}"))[:-1]):
            copy = f"cut {turns} {number}"
            await saver.acopy_thread(f"pruned {turns}", copy)
            await execute(
                database,
                "DELETE FROM checkpoints WHERE thread_id = %s AND checkpoint_id = %s",
                copy,
                ancestor,
            )
            assert (await graph.aget_state(config_of(copy))).values != whole
            cut += 1
    assert cut


async def test_forks_of_delta_channels_survive_a_prune(database: str, saver: CachedPostgresSaver) -> None:
    graph = make_graph(saver, TwoChannels)
    dice = random.Random(7)
    for turn in range(7):
        await graph.ainvoke({"log": [f"turn {turn}"]}, config_of("thread"))
        history = [state async for state in graph.aget_state_history(config_of("thread"))]
        old = dice.choice(history[1:])
        how = turn % 3
        if how == 0:
            await graph.aupdate_state(old.config, {"log": ["changed"]}, as_node="last")
        elif how == 1:
            await graph.aupdate_state(old.config, None, as_node="__copy__")
        else:
            await graph.ainvoke(None, old.config)
        copy = f"copy {turn}"
        await saver.acopy_thread("thread", copy)
        await saver.aprune([copy])
        for _ in range(2):
            pruned, whole = [await graph.aget_state(config_of(t)) for t in (copy, "thread")]
            assert pruned.values == whole.values
            assert pruned.next == whole.next
            for thread_id in (copy, "thread"):
                await graph.ainvoke({"log": ["more"]}, config_of(thread_id))


async def test_threads_of_langgraph_js_keep_all_ancestors(database: str, saver: CachedPostgresSaver) -> None:
    """It names no delta channels: it only marks the thread."""
    thread = Thread("a")
    for _ in range(4):
        await thread.put(saver)
    await execute(
        database,
        """UPDATE checkpoints SET metadata = metadata || '{"delta_writes_versioned": true}'
           WHERE checkpoint_id = %s""",
        numbered_id(1),
    )
    before = await rows_of_thread(database, "a")
    await saver.aprune(["a"])
    assert await rows_of_thread(database, "a") == before


# ------------------------------------------------------------------ in the middle of a run


class Blocked:
    """A graph whose second node waits until it is let go on."""

    def __init__(self, saver: CachedPostgresSaver) -> None:
        self.arrived, self.go_on = asyncio.Event(), asyncio.Event()

        async def wait(state: MessagesState) -> dict[str, Any]:
            self.arrived.set()
            await self.go_on.wait()
            return {"messages": [("ai", f"second after {len(state['messages'])}")]}

        builder = StateGraph(MessagesState)
        builder.add_node(
            "first", lambda state: {"messages": [("ai", f"first after {len(state['messages'])}")]}
        )
        builder.add_node("second", wait)
        builder.add_edge(START, "first").add_edge("first", "second").add_edge("second", END)
        self.graph = builder.compile(checkpointer=saver)

    async def turn(self, thread_id: str, while_blocked: Callable[[], Awaitable[Any]]) -> list[str]:
        self.arrived.clear()
        self.go_on.clear()
        run = asyncio.create_task(self.graph.ainvoke({"messages": [("user", "hello")]}, config_of(thread_id)))  # type: ignore[call-overload]
        await self.arrived.wait()
        await while_blocked()
        self.go_on.set()
        return texts(await run)

    async def texts(self, thread_id: str) -> list[str]:
        return texts((await self.graph.aget_state(config_of(thread_id))).values)


def texts(values: Any) -> list[str]:
    return [message.content for message in values.get("messages", [])]


async def test_keep_latest_in_the_middle_of_a_run_changes_nothing(saver: CachedPostgresSaver) -> None:
    blocked = Blocked(saver)
    for _ in range(2):
        seen = await blocked.turn("pruned", lambda: saver.aprune(["pruned"]))
        assert seen == await blocked.turn("whole", lambda: asyncio.sleep(0))
        assert await blocked.texts("pruned") == seen
    assert len(seen) == 6


async def test_a_run_whose_thread_is_deleted_goes_on_and_what_it_stores_is_stored(
    database: str, redis_url: str, saver: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    """No write is under way, so the run cannot be seen. What it read stays in its memory; what it writes
    from now on is all that is left, in both tiers alike."""
    blocked = Blocked(saver)

    async def is_deleted() -> bool:
        try:
            await saver.aprune(["a"], strategy="delete")
        except ThreadInUseError:  # between two of its writes the run has begun another
            return False
        return True

    async def delete() -> None:
        await until(is_deleted)

    seen = await blocked.turn("a", delete)
    assert len(seen) == 3
    for _ in range(2):
        assert exact(await saver.aget_tuple(config_of("a"))) == exact(
            await upstream.aget_tuple(config_of("a"))
        )
    assert await blocked.texts("a") == seen, "the channel was written by the last step, so it is whole"


async def test_a_thread_is_not_deleted_while_something_is_written_to_it(
    database: str, redis_url: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    one, two = Thread("a"), Thread("b")
    await one.put(saver)
    await two.put(saver)
    before = [await rows_of_thread(database, thread_id) for thread_id in ("a", "b")]
    async with Redis.from_url(redis_url) as redis:
        writing = await other._l1.begin(Scope("b", ""))
        with pytest.raises(ThreadInUseError, match="'b' is being written to") as caught:
            await saver.aprune(["a", "b"], strategy="delete")
        assert caught.value.thread_ids == {"b"}
        with pytest.raises(ThreadInUseError):
            await saver.aprune(["b"], strategy="delete")
        assert [await rows_of_thread(database, thread_id) for thread_id in ("a", "b")] == before
        intents = [f for key in await redis.keys() for f in await redis.hkeys(key) if f.startswith(b"i:")]  # type: ignore[arg-type]
        assert intents == [b"i:" + writing.name], "an intent was not taken back"
        assert await one.turn(other) == 1
        await other._l1.abort(writing)
    await saver.aprune(["a", "b"], strategy="delete")
    assert [await rows_of_thread(database, thread_id) for thread_id in ("a", "b")] == [NOTHING, NOTHING]


async def test_a_put_that_slips_in_before_the_intents_is_not_lost(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began after the rows were deleted, and was over before it could be seen in Redis."""
    thread = Thread("a")
    await thread.put(saver)
    begin = saver._l1.begin_alone

    async def put_first(scope: Scope) -> Any:
        await thread.put(other)
        return await begin(scope)

    monkeypatch.setattr(saver._l1, "begin_alone", put_first)
    with pytest.raises(ThreadInUseError):
        await saver.aprune(["a"], strategy="delete")
    assert ids(await rows_of_thread(database, "a")) == [numbered_id(1), numbered_id(2)]
    assert await thread.turn(other) == 2
    assert await thread.turn(saver) == 2


async def test_early_writes_are_not_taken_for_garbage(saver: CachedPostgresSaver) -> None:
    thread = Thread("a")
    for _ in range(3):
        await thread.put(saver)
    put = thread.next_put(saver)
    await saver.aput_writes(config_of("a", "", put[1]["id"]), [("messages", "early")], "task")
    await saver.aprune(["a"])
    await saver.aput(*put)
    found = await saver.aget_tuple(thread.config)
    assert found is not None
    assert found.pending_writes == [("task", "messages", "early")]


# ------------------------------------------------------------------ runs


async def put_runs(saver: CachedPostgresSaver, *runs: str | None, thread_id: str = "a") -> Thread:
    thread = Thread(thread_id)
    for run in runs:
        config, checkpoint, metadata, versions = thread.next_put(saver)
        thread.newest = await saver.aput(
            config, checkpoint, metadata | ({"run_id": run} if run else {}), versions
        )
        await thread.put_writes(saver, run)
    return thread


async def test_runs_go_with_their_writes_and_the_values_that_nobody_else_needs(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    thread = await put_runs(saver, "r1", "r1", None, "r2", "r3")
    await put_runs(saver, "r1", "r2", thread_id="b")
    assert await thread.turn(other) == 5
    await saver.adelete_for_runs(["r1", "r3", "no such run"])
    rows = await rows_of_thread(database, "a")
    assert ids(rows) == [numbered_id(3), numbered_id(4)]
    parents = {row[1]: row[2] for row in rows["checkpoints"]}
    assert parents == {numbered_id(3): numbered_id(2), numbered_id(4): numbered_id(3)}
    assert {row[1] for row in rows["checkpoint_writes"]} == {numbered_id(3), numbered_id(4)}
    assert {int(float(row[2])) for row in rows["checkpoint_blobs"]} == {3, 4}
    for config in (thread.config, config_of("b")):
        for _ in range(2):
            assert exact(await other.aget_tuple(config)) == exact(await upstream.aget_tuple(config))


async def test_a_run_that_a_later_checkpoint_is_rebuilt_from_is_not_deleted(
    database: str, saver: CachedPostgresSaver
) -> None:
    graph = make_graph(saver)
    for turn in range(3):
        config = config_of("thread") | {"metadata": {"run_id": f"run {turn}"}}
        await graph.ainvoke({"log": [f"turn {turn}"]}, config)
    before = await rows_of(database)
    with pytest.raises(DeltaChainError, match="thread 'thread' would lose"):
        await saver.adelete_for_runs(["run 1"])
    assert await rows_of(database) == before
    await saver.adelete_for_runs(["run 1", "run 2"])
    assert (await graph.aget_state(config_of("thread"))).values["log"] == ["turn 0", "one saw 1", "two saw 1"]
    await saver.adelete_for_runs(["run 0"])
    assert await rows_of_thread(database, "thread") == NOTHING


async def test_the_index_that_is_recommended_is_used(database: str, saver: CachedPostgresSaver) -> None:
    statement = CachedPostgresSaver.adelete_for_runs.__doc__ or ""
    index = statement[statement.index("CREATE INDEX") :].split("`")[0]
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(index)
        await conn.execute("SET enable_seqscan = off")
        explain = "EXPLAIN " + query("threads_of_runs")
        rows = await conn.execute(explain, {"run_ids": ["a", "b"]})
        plan = "\n".join(row[0] for row in await rows.fetchall())
    assert "checkpoints_run_id_idx" in plan


# ------------------------------------------------------------------ copies


@pytest.mark.dice
async def test_a_copy_is_the_same_but_for_its_name(
    database: str, saver: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    await write_random_history(upstream, "source", seeded_dice(), steps=40)
    before = await rows_of_thread(database, "source")
    await saver.acopy_thread("source", "target")
    assert await rows_of_thread(database, "source") == await rows_of_thread(database, "target") == before


async def test_a_copy_is_read_where_there_was_nothing_before(
    saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    source, target = Thread("source"), Thread("target")
    await source.put(saver)
    assert await target.turn(other) is None
    await saver.acopy_thread("source", "target")
    assert await target.turn(other) == 1


async def test_a_copy_of_a_thread_that_does_not_exist_is_nothing(saver: CachedPostgresSaver) -> None:
    in_redis = await create_redis_checkpointer(saver.status.redis)
    for tier in (saver, in_redis, MemorySaver()):
        await tier.acopy_thread("nobody", "target")
        assert await Thread("target").turn(tier) is None
        await Thread("target").put(tier)  # the name is free
    await in_redis.close()


async def test_a_copy_takes_the_place_of_what_redis_had_of_its_target(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    """Somebody deleted the target without a word to Redis, as LangGraph's own saver does."""
    source, target = Thread("source"), Thread("target")
    await source.put(saver)
    await target.put(saver)
    await target.put(saver)
    for table in ("checkpoints", "checkpoint_blobs"):
        await execute(database, f"DELETE FROM {table} WHERE thread_id = 'target'")
    await saver.acopy_thread("source", "target")
    assert await target.turn(other) == 1


@pytest.mark.parametrize("table", ["checkpoints", "checkpoint_blobs", "checkpoint_writes"])
async def test_a_copy_never_goes_into_what_is_there(
    table: str, database: str, saver: CachedPostgresSaver
) -> None:
    for thread_id in ("source", "target"):
        thread = Thread(thread_id)
        await thread.put(saver)
        await thread.put_writes(saver, "x")
    for each in {"checkpoints", "checkpoint_blobs", "checkpoint_writes"} - {table}:
        await execute(database, f"DELETE FROM {each} WHERE thread_id = 'target'")
    before = await rows_of_thread(database, "target")
    with pytest.raises(ThreadExistsError, match="'target' is there already"):
        await saver.acopy_thread("source", "target")
    assert await rows_of_thread(database, "target") == before


async def test_of_two_copies_to_one_target_one_wins(
    database: str, saver: CachedPostgresSaver, other: CachedPostgresSaver
) -> None:
    for number, thread_id in enumerate(("one", "two"), start=1):
        thread = Thread(thread_id)
        thread.number = 10 * number  # so that no primary key meets another
        await thread.put(saver)
    for target in range(8):
        results = await asyncio.gather(
            saver.acopy_thread("one", f"target {target}"),
            other.acopy_thread("two", f"target {target}"),
            saver.acopy_thread("one", f"target {target}"),
            return_exceptions=True,
        )
        assert sorted(map(str, map(type, results))) == sorted(
            map(str, [type(None), ThreadExistsError, ThreadExistsError])
        )
        assert len(ids(await rows_of_thread(database, f"target {target}"))) == 1


async def test_a_put_to_the_target_in_the_middle_of_a_copy_wins(
    database: str, saver: CachedPostgresSaver
) -> None:
    """The copy waits for the primary key that the put has taken."""
    await Thread("source").put(saver)
    async with await psycopg.AsyncConnection.connect(database) as conn:
        await conn.execute(
            "INSERT INTO checkpoints SELECT 'target', checkpoint_ns, checkpoint_id, NULL, NULL, checkpoint "
            "FROM checkpoints"
        )
        copying = asyncio.create_task(saver.acopy_thread("source", "target"))
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as watcher:

            async def waits() -> bool:
                rows = await watcher.execute("SELECT FROM pg_locks WHERE NOT granted")
                return rows.rowcount > 0

            await until(waits)
        await conn.commit()
        with pytest.raises(ThreadExistsError):
            await copying


# ------------------------------------------------------------------ L1


@pytest.mark.dice
async def test_after_each_operation_readers_get_what_postgres_has(
    saver: CachedPostgresSaver, other: CachedPostgresSaver, upstream: AsyncPostgresSaver
) -> None:
    dice = seeded_dice()
    threads = [f"t{number}" for number in range(8)]
    namespaces = ["", "memory", "call:1", "call:2", "call:1|inner:3"]

    async def read_all() -> None:
        for thread_id in (*threads, "copy", "c0", "c1"):
            for namespace in namespaces:
                config = config_of(thread_id, namespace)
                expected = exact(await upstream.aget_tuple(config))
                assert exact(await other.aget_tuple(config)) == expected, (thread_id, namespace)

    for thread_id in threads:
        await write_random_history(upstream, thread_id, dice)
    await read_all()
    for change in (
        saver.aprune(threads[:3]),
        saver.aprune(threads[3:5], strategy="delete"),
        saver.acopy_thread("t5", "copy"),
        saver.acopy_thread("t6", "c0"),
        saver.adelete_thread("t6"),
        saver.acopy_thread("c0", "c1"),
        saver.aprune(["c0", "t7"]),
        saver.adelete_for_runs(["none"]),
    ):
        await change
        await read_all()


async def test_without_redis_they_work_all_the_same(
    database: str, own_redis: EmbeddedRedis, upstream: AsyncPostgresSaver
) -> None:
    async with open_saver(database, own_redis.url) as saver:
        await put_runs(saver, "r1", "r2", "r3")
        own_redis.kill()
        await saver.acopy_thread("a", "b")
        await saver.aprune(["b"])
        await saver.adelete_for_runs(["r1"])
        await saver.aprune(["a"], strategy="delete")
    assert ids(await rows_of_thread(database, "b")) == [numbered_id(3)]
    assert await rows_of_thread(database, "a") == NOTHING


async def test_a_refused_change_leaves_the_cache_warm(
    database: str, redis_url: str, saver: CachedPostgresSaver
) -> None:
    thread = Thread("a")
    for _ in range(3):
        await thread.put(saver)
    await execute(database, "CREATE RULE refuse AS ON DELETE TO checkpoint_blobs DO INSTEAD SELECT 1/0")
    await settled(saver)
    before = await keys_of(redis_url)
    with pytest.raises(L2RefusedError, match="FeatureNotSupported"):
        await saver.aprune(["a"])
    assert await keys_of(redis_url) == before


async def test_one_that_loses_against_another_is_repeated_and_at_last_gives_up(
    database: str, saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_LOCK_TIMEOUT_SECONDS", 0.02)
    monkeypatch.setattr("glasspoint.l2.retrying._BACK_OFF_SECONDS", 0.001)
    thread = Thread("a")
    for _ in range(3):
        await thread.put(saver)
    async with locked(database, "checkpoints"):
        with pytest.raises(L2DeadlineError, match="others kept the rows locked"):
            await saver.aprune(["a"])
    assert len(ids(await rows_of_thread(database, "a"))) == 3
    monkeypatch.setattr("glasspoint.savers.maintenance._ATTEMPTS", 10_000)
    async with locked(database, "checkpoints") as waiter:
        pruning_ = asyncio.create_task(saver.aprune(["a"]))
        await waiter()
    await pruning_
    assert len(ids(await rows_of_thread(database, "a"))) == 1


async def test_a_cancelled_prune_is_undone_and_takes_its_intents_back(
    database: str, redis_url: str, saver: CachedPostgresSaver
) -> None:
    thread = Thread("a")
    for _ in range(3):
        await thread.put(saver)
    await settled(saver)
    before = await keys_of(redis_url)
    async with locked(database, "checkpoints") as waiter:
        pruning_ = asyncio.create_task(saver.aprune(["a"]))
        await waiter()
        pruning_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pruning_
    assert len(ids(await rows_of_thread(database, "a"))) == 3
    assert await keys_of(redis_url) == before


async def test_one_cancelled_while_it_tells_redis_takes_its_intents_back(
    database: str, redis_url: str, saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = Thread("a")
    for _ in range(3):
        await thread.put(saver)
    begin, begun, go_on = saver._l1.begin, asyncio.Event(), asyncio.Event()

    async def begin_slowly(scope: Scope) -> Any:
        begun.set()
        await go_on.wait()
        return await begin(scope)

    monkeypatch.setattr(saver._l1, "begin", begin_slowly)
    pruning_ = asyncio.create_task(saver.aprune(["a"]))
    await begun.wait()
    pruning_.cancel()

    async def is_rolled_back() -> bool:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            query = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
            return await (await conn.execute(query)).fetchone() is None

    await until(is_rolled_back)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await pruning_
    fields = [field for entry in (await keys_of(redis_url)).values() for field in entry]
    assert not [field for field in fields if field.startswith(b"i:")]
    assert len(ids(await rows_of_thread(database, "a"))) == 3
    assert await thread.turn(saver) == 3


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.aprune(["a"], strategy="keep_newest"), ConfigurationError),
        (lambda s: s.aprune([], strategy=""), ConfigurationError),
        (lambda s: s.aprune("a"), TypeError),
        (lambda s: s.aprune(b"a"), TypeError),
        (lambda s: s.aprune(None), TypeError),
        (lambda s: s.aprune(["a", ""]), InvalidConfigError),
        (lambda s: s.aprune(["a", 1], strategy="delete"), InvalidConfigError),
        (lambda s: s.aprune(["a", "b\0"], strategy="delete"), InvalidConfigError),
        (lambda s: s.adelete_for_runs("a"), TypeError),
        (lambda s: s.adelete_for_runs([None]), InvalidConfigError),
        (lambda s: s.adelete_for_runs(["\ud800"]), InvalidConfigError),
        (lambda s: s.acopy_thread("a", "a"), InvalidConfigError),
        (lambda s: s.acopy_thread("", "b"), InvalidConfigError),
        (lambda s: s.acopy_thread("a", None), InvalidConfigError),
    ],
)
async def test_bad_input_is_a_clear_error_and_changes_nothing(
    call: Callable[[CachedPostgresSaver], Awaitable[None]],
    error: type[Exception],
    database: str,
    saver: CachedPostgresSaver,
) -> None:
    thread = Thread("a")
    await thread.put(saver)
    await thread.put(saver)
    before = await rows_of(database)
    with pytest.raises(GlasspointError) as caught:
        await call(saver)
    assert isinstance(caught.value, error)
    assert await rows_of(database) == before


async def test_an_unknown_strategy_is_told_the_known_ones(saver: CachedPostgresSaver) -> None:
    with pytest.raises(ValueError, match='there are "keep_latest" and "delete"'):
        await saver.aprune(["a"], strategy="newest")


async def test_nothing_to_do_is_nothing_done(saver: CachedPostgresSaver) -> None:
    await saver.aprune([])
    await saver.aprune([], strategy="delete")
    await saver.aprune(["not there", "not there"], strategy="delete")
    await saver.aprune(["not there"])
    await saver.adelete_for_runs([])
