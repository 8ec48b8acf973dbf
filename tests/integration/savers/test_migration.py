"""A history that was copied from another saver reads as it did there."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from command_line import assert_fits, glasspoint
from delta_graph import CONFIG, make_graph, play
from glasspoint import (
    CachedPostgresSaver,
    MemorySaver,
    RedisSaver,
    create_telemetry,
    migrate,
)
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import ConfigurationError
from glasspoint.migration.copying import copy_threads
from glasspoint.migration.sqlite import SqliteSource
from glasspoint.model.codec import encode_found
from states import config_of, exact, open_saver, open_upstream
from steps import Thread
from talkative import State, talkative

KINDS = ("memory", "postgres", "redis", "tier memory", "sqlite", "sqlite, synchronous")


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


async def fill(saver: BaseCheckpointSaver[Any], *, is_synchronous: bool = False) -> None:
    """Threads with everything in them that a history can hold."""
    graph = talkative(saver)
    for thread_id in ("하나", "two"):
        config = config_of(thread_id)
        if is_synchronous:
            graph.invoke({"text": "hello"}, config)
        else:
            await graph.ainvoke({"text": "hello"}, config)
    if is_synchronous:
        graph.invoke(Command(resume="this"), config_of("two"))
        return
    await graph.ainvoke(Command(resume="this"), config_of("two"))
    old = [state async for state in graph.aget_state_history(config_of("two"))][2]
    await graph.aupdate_state(old.config, {"text": "another way"}, as_node="fan")
    await play(saver)


@asynccontextmanager
async def filled(
    kind: str, postgres: EmbeddedPostgres, redis_url: str, path: Path
) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    telemetry = create_telemetry(registry=CollectorRegistry())
    if kind == "memory":
        saver: BaseCheckpointSaver[Any] = InMemorySaver()
        await fill(saver)
        yield saver
    elif kind == "postgres":
        async with open_upstream(postgres.create_database("source")) as upstream:
            await fill(upstream)
            yield upstream
        postgres.drop_database("source")
    elif kind == "redis":
        async with RedisSaver.from_conn_string(redis_url, key_prefix="old", telemetry=telemetry) as redis:
            await fill(redis)
            yield redis
    elif kind == "tier memory":
        async with MemorySaver(telemetry=telemetry) as memory:
            await fill(memory)
            yield memory
    elif kind == "sqlite":
        async with AsyncSqliteSaver.from_conn_string(str(path)) as sqlite:
            await fill(sqlite)
            yield sqlite
    else:
        with SqliteSaver.from_conn_string(str(path)) as synchronous:
            await fill(synchronous, is_synchronous=True)
            yield synchronous


@pytest.fixture(params=KINDS)
async def source(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, redis_url: str, tmp_path: Path
) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    async with filled(request.param, postgres, redis_url, tmp_path / "old.sqlite") as saver:
        yield saver


@pytest.fixture
async def target(database: str, redis_url: str) -> AsyncIterator[CachedPostgresSaver]:
    async with open_saver(database, redis_url) as saver:
        yield saver


def listing(saver: BaseCheckpointSaver[Any], config: Any) -> AsyncIterator[Any]:
    if not isinstance(saver, SqliteSaver):
        return saver.alist(config)

    async def each() -> AsyncIterator[Any]:
        for found in saver.list(config):
            yield found

    return each()


def is_compared(source: BaseCheckpointSaver[Any], thread_id: str) -> bool:
    """Not what SQLite shows of a delta channel: it shows a snapshot in the checkpoint that made it, and
    PostgreSQL in all that have the channel at that version. What a graph makes of it is compared instead."""
    return thread_id != CONFIG["configurable"]["thread_id"] or not isinstance(source, AsyncSqliteSaver)


async def all_of(saver: BaseCheckpointSaver[Any], source: BaseCheckpointSaver[Any]) -> list[Any]:
    """Everything that a saver shows, in an order of its own."""
    found = [
        each
        async for each in listing(saver, None)
        if is_compared(source, each.config["configurable"]["thread_id"])
    ]
    return [
        exact(each) for each in sorted(found, key=lambda each: sorted(each.config["configurable"].items()))
    ]


async def states_of(saver: BaseCheckpointSaver[Any]) -> list[Any]:
    """What a graph with delta channels makes of each checkpoint."""
    if isinstance(saver, SqliteSaver):
        return []
    return [
        (exact(state.values), state.next, state.config, state.parent_config)
        async for state in make_graph(saver).aget_state_history(CONFIG)
    ]


async def newest(saver: BaseCheckpointSaver[Any], source: BaseCheckpointSaver[Any]) -> dict[Any, Any]:
    """The newest of each scope, as a run reads it."""
    found = {
        (c["thread_id"], c["checkpoint_ns"])
        async for each in listing(saver, None)
        if is_compared(source, (c := each.config["configurable"])["thread_id"])
    }
    synchronous = isinstance(saver, SqliteSaver)
    return {
        scope: exact(
            saver.get_tuple(config_of(*scope)) if synchronous else await saver.aget_tuple(config_of(*scope))
        )
        for scope in found
    }


async def test_everything_reads_as_in_the_source(
    source: BaseCheckpointSaver[Any], target: CachedPostgresSaver
) -> None:
    before = await all_of(source, source)
    counted = await migrate(source, target, dry_run=True)
    assert [each async for each in target.alist(None)] == []
    report = await migrate(source, target)
    assert await all_of(target, source) == before == await all_of(source, source)
    for _ in range(2):  # from PostgreSQL, then from Redis
        assert await newest(target, source) == await newest(source, source)
    if not isinstance(source, SqliteSaver):
        assert await states_of(target) == await states_of(source)
    assert (report.refused, report.copied, report.unchanged) == ({}, report.threads, 0)
    assert report.checkpoints == len([each async for each in listing(source, None)])
    assert (counted.dry_run, counted.checkpoints, counted.writes, counted.values, counted.bytes) == (
        True, report.checkpoints, report.writes, report.values, report.bytes
    )  # fmt: skip
    assert report.threads == (2 if isinstance(source, SqliteSaver) else 3)


async def test_doing_it_again_copies_what_is_missing_alone(
    source: BaseCheckpointSaver[Any], target: CachedPostgresSaver
) -> None:
    await migrate(source, target)
    again = await migrate(source, target)
    assert (again.copied, again.unchanged, again.checkpoints, again.writes, again.values) == (
        0, again.threads, 0, 0, 0
    )  # fmt: skip
    if isinstance(source, SqliteSaver):
        talkative(source).invoke(Command(resume="that"), config_of("하나"))
    else:
        await talkative(source).ainvoke(Command(resume="that"), config_of("하나"))
    more = await migrate(source, target)
    assert (more.copied, more.unchanged) == (1, more.threads - 1)
    assert more.checkpoints
    assert await all_of(target, source) == await all_of(source, source)
    assert await newest(target, source) == await newest(source, source)


async def test_a_conversation_goes_on_where_it_was(
    source: BaseCheckpointSaver[Any], target: CachedPostgresSaver
) -> None:
    await migrate(source, target)
    ended = await talkative(target).ainvoke(Command(resume="that"), config_of("하나"))
    assert ended["text"] == "fanned that"
    if not isinstance(source, SqliteSaver):
        assert await make_graph(target).ainvoke({"log": ["turn 7"]}, CONFIG) == await make_graph(
            source
        ).ainvoke({"log": ["turn 7"]}, CONFIG)


async def test_a_second_question_replaces_the_first(
    source: BaseCheckpointSaver[Any], target: CachedPostgresSaver
) -> None:
    """A task that asks twice replaces its pending write: between the two, the thread was copied."""
    config = config_of("asks twice")
    graph = twice(source)
    step = graph.invoke if isinstance(source, SqliteSaver) else graph.ainvoke
    said: tuple[Any, ...] = {"text": ""}, Command(resume="one")
    for answer in said:
        done = step(answer, config)
        if not isinstance(source, SqliteSaver):
            await done
        await migrate(source, target)
        assert await all_of(target, source) == await all_of(source, source)
    [asked] = (await twice(target).aget_state(config)).interrupts
    assert asked.value == "second?"


def twice(saver: BaseCheckpointSaver[Any]) -> Any:
    def ask(state: State) -> State:
        return {"text": interrupt("first?") + interrupt("second?")}

    return StateGraph(State).add_node("ask", ask).add_edge(START, "ask").add_edge("ask", END).compile(saver)


# ------------------------------------------------------------------ what is not copied


async def test_a_thread_that_went_on_in_both_places_is_refused(target: CachedPostgresSaver) -> None:
    source = InMemorySaver()
    here, there, only = Thread("both"), Thread("both"), Thread("only here")
    await here.put(source)
    await only.put(source)
    await migrate(source, target)
    there.number, there.newest = here.number, here.newest
    await there.put(target)
    assert (await migrate(source, target)).refused == {}, "only the target has gone on"
    here.number += 1
    await here.put(source)
    await only.put(source)
    before = await all_of(target, source)
    report = await migrate(source, target)
    assert list(report.refused) == ["both"]
    assert "gone on in the source and in the target" in report.refused["both"]
    assert (report.copied, report.checkpoints) == (1, 1)
    assert len(await all_of(target, source)) == len(before) + 1


async def test_another_conversation_of_the_same_id_is_left_alone(target: CachedPostgresSaver) -> None:
    source, own = InMemorySaver(), Thread("1")
    own.number = 5
    await own.put(target)
    await Thread("1").put(source)
    before = await all_of(target, source)
    report = await migrate(source, target)
    assert "another conversation" in report.refused["1"]
    assert await all_of(target, source) == before


async def test_a_thread_that_is_used_meanwhile_gets_its_past(
    target: CachedPostgresSaver,
) -> None:
    """A copy that was interrupted has the newest state, and the conversation may go on from it."""
    source, thread = InMemorySaver(), Thread("1")
    for _ in range(3):
        await thread.put(source)
    past = [each async for each in source.alist(None)]
    newest = await source.aget_tuple(thread.config)
    assert newest is not None
    await target.import_checkpoints([encode_found(source.serde, newest)])
    await thread.put(target)
    report = await migrate(source, target)
    assert (report.refused, report.checkpoints) == ({}, 2)
    assert [exact(each) async for each in target.alist(None)][1:] == list(map(exact, past))
    assert await thread.turn(target) == 4


class Turned(CipherProtocol):
    """No cipher at all, but nobody else can read it."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "turned", plaintext[::-1]

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return ciphertext[::-1]


async def test_each_value_is_stored_as_the_target_reads_it(database: str, redis_url: str) -> None:
    source = InMemorySaver(serde=EncryptedSerializer(Turned()))
    await fill(source)
    async with open_saver(database, redis_url) as target:
        await migrate(source, target)
        assert await all_of(target, source) == await all_of(source, source)


async def test_what_the_target_cannot_read_is_refused(target: CachedPostgresSaver) -> None:
    source = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=True))
    await Thread("pickled").put(source, odd=[Odd()])
    await Thread("plain").put(source)
    report = await migrate(source, target)
    assert list(report.refused) == ["pickled"]
    assert "serde" in report.refused["pickled"]
    assert report.checkpoints == 1


class Odd:
    """Nothing but pickle can store it."""

    def __init__(self) -> None:
        self.lock = None


async def test_a_channel_with_two_values_at_one_version_is_refused(
    target: CachedPostgresSaver, tmp_path: Path
) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "odd.sqlite")) as source:
        thread = Thread("odd")
        for said in ("one", "two"):
            config, checkpoint, metadata, versions = thread.next_put(source)
            checkpoint["channel_versions"] = {**versions, "messages": 1}
            checkpoint["channel_values"]["messages"] = [said]
            thread.newest = await source.aput(config, checkpoint, metadata, versions)
        report = await migrate(source, target)
    assert "two values at one version" in report.refused["odd"]
    assert not [each async for each in target.alist(None)]


async def test_only_the_threads_that_are_named_are_copied(target: CachedPostgresSaver) -> None:
    source = InMemorySaver()
    for name in ("a", "b", "c"):
        await Thread(name).put(source)
    seen: list[int] = []
    report = await migrate(
        source, target, thread_ids=["a", "c", "a", "none"], on_thread=lambda sums: seen.append(sums.threads)
    )
    assert (report.threads, report.copied, list(report.refused)) == (3, 2, ["none"])
    assert seen == [1, 2, 3]
    assert {each.thread_id async for each in target.alist_threads()} == {"a", "c"}


async def test_wrong_ends_are_refused(target: CachedPostgresSaver) -> None:
    with pytest.raises(ConfigurationError, match="target itself"):
        await migrate(target, target)
    with pytest.raises(ConfigurationError, match="must be a CachedPostgresSaver"):
        await migrate(target, InMemorySaver())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="another checkpointer"):
        await migrate("postgresql://x", target)  # type: ignore[arg-type]


async def test_readers_of_the_target_get_what_was_copied(target: CachedPostgresSaver) -> None:
    """What Redis holds from before is forgotten."""
    source, thread = InMemorySaver(), Thread("1")
    await thread.put(source)
    await migrate(source, target)
    for _ in range(2):
        assert await thread.turn(target) == 1
    await thread.put(source)
    await migrate(source, target)
    assert await thread.turn(target) == 2


async def test_a_thread_in_redis_lives_no_longer_for_being_copied(
    target: CachedPostgresSaver, redis_url: str
) -> None:
    telemetry = create_telemetry(registry=CollectorRegistry())
    async with (
        RedisSaver.from_conn_string(redis_url, key_prefix="old", ttl=1000, telemetry=telemetry) as short,
        RedisSaver.from_conn_string(redis_url, key_prefix="old", ttl=None, telemetry=telemetry) as reader,
        Redis.from_url(redis_url) as redis,
    ):
        await Thread("1").put(short)
        assert (await migrate(reader, target)).checkpoints == 1
        lives = [await redis.pttl(key) for key in await redis.keys("old*{1}*")]
    assert lives
    assert all(0 < life <= 1_000_000 for life in lives)


# ------------------------------------------------------------------ the command


def run(*args: str, **variables: str) -> dict[str, Any]:
    done = glasspoint("migrate", *args, "--json", **variables)
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return report


@pytest.mark.parametrize("kind", ["postgres", "redis", "sqlite"])
async def test_the_command_copies_from_what_a_url_names(
    kind: str, postgres: EmbeddedPostgres, database: str, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.sqlite"
    variables = {"POSTGRES_URL": database, "REDIS_URL": redis_url}
    async with filled(kind, postgres, redis_url, file) as source:
        if kind == "sqlite":
            await source.conn.commit()  # type: ignore[attr-defined]
        url = {"postgres": database.replace("/test?", "/source?"), "redis": redis_url, "sqlite": str(file)}[
            kind
        ]
        options = ["--from", url, "--from-key-prefix", "old"]
        missing = await asyncio.to_thread(run, *options, **variables)
        assert "setup" in missing["error"]
        async with open_saver(database, redis_url) as target:
            for arguments, copied in ((["--dry-run"], 3), ([], 3), ([], 0)):
                report = await asyncio.to_thread(run, *options, *arguments, **variables)
                assert (report["threads"], report["copied"], report["refused"]) == (3, copied, {})
            assert await all_of(target, source) == await all_of(source, source)


def test_the_command_says_what_was_copied(database: str, redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "old.sqlite"
    with SqliteSaver.from_conn_string(str(file)) as source:
        talkative(source).invoke({"text": "a secret"}, config_of("1"))
    before = file.read_bytes()
    variables = {"POSTGRES_URL": database, "REDIS_URL": redis_url, "MIGRATE_FROM": str(file)}
    assert glasspoint("setup", **variables).returncode == 0
    for arguments, title in ((["--dry-run"], "would copy"), ([], "copied")):
        done = glasspoint("migrate", *arguments, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(title)
        assert_fits(done.stdout, columns=80)
        assert "secret" not in done.stdout
    refused = glasspoint("migrate", "--thread", "nobody", **variables)
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert line == "error: thread 'nobody': The source has no thread of this id."
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/nowhere/at all.sqlite", "There is no file"),
        (__file__, "cannot be read as one of LangGraph's SqliteSaver"),
        ("mongodb://host/db", "cannot be copied from mongodb://"),
        ("postgresql://me:geheim@127.0.0.1:1/x", "PostgreSQL cannot be reached"),
        ("redis://:geheim@127.0.0.1:1/0", "Redis did not answer"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line(
    source: str, said: str, database: str, redis_url: str
) -> None:
    done = glasspoint("migrate", "--from", source, POSTGRES_URL=database, REDIS_URL=redis_url)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert said in line
    assert "geheim" not in line


def test_with_another_redis_than_the_service_s_nothing_is_copied(
    database: str, redis_url: str, own_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "old.sqlite")) as source:
        talkative(source).invoke({"text": "hello"}, config_of("1"))
    with CachedPostgresSaver.from_conn_string(
        database, redis_url=redis_url, telemetry=create_telemetry(registry=CollectorRegistry())
    ) as service:
        service.setup()
        service.get_tuple(config_of("x"))
        report = run("--from", str(tmp_path / "old.sqlite"), POSTGRES_URL=database, REDIS_URL=own_redis.url)
        assert "Nothing was copied" in report["error"]
        assert service.get_tuple(config_of("1")) is None


async def test_objects_of_classes_that_cannot_be_imported_are_copied(
    target: CachedPostgresSaver, tmp_path: Path
) -> None:
    """The command runs without the application, and must not make dictionaries of its objects."""
    file = tmp_path / "app.sqlite"
    module = types.ModuleType("the_application")
    exec(
        "from pydantic import BaseModel\n"
        "class Order(BaseModel):\n"
        "    number: int\n"
        "Order.__module__ = 'the_application'\n",
        module.__dict__,
    )
    order = module.Order(number=7)
    values = {
        "order": order,
        "orders": [order, {"deep": (order, {1, 2})}],
        "at": datetime.now(UTC),
        "raw": b"\xff",
    }
    thread = Thread("1")
    async with AsyncSqliteSaver.from_conn_string(str(file)) as source:
        await thread.put(source, **values)
        await thread.put_writes(source, order)
    with SqliteSource(file) as opened:
        report = await copy_threads(opened, target)
    assert (report.checkpoints, report.refused) == (1, {})
    sys.modules["the_application"] = module
    try:
        found = await target.aget_tuple(thread.config)
        async with AsyncSqliteSaver.from_conn_string(str(file)) as source:
            assert exact(found) == exact(await source.aget_tuple(thread.config))
    finally:
        del sys.modules["the_application"]
    assert found is not None
    assert found.checkpoint["channel_values"]["order"] == order
