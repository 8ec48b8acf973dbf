"""Who can write to Redis, but not to PostgreSQL, changes nothing in the tier `redis` that is then believed.

The tier's fields are signed. Each is changed here in every way that matters, and each read must then either
raise or return what it returned before: never another state, and no value reaches the serializer unverified.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from delta_graph import CHANNELS, CONFIG, make_graph, play
from glasspoint import RedisSaver, create_telemetry
from glasspoint.errors import ConfigurationError, ThreadDamagedError, ThreadTamperedError
from glasspoint.l2.target import Target
from glasspoint.model.codec import Encoded
from glasspoint.redis.signature import SIZE
from payloads import PAYLOADS, Watched, armed
from redis_tier import TARGET, opened
from states import config_of, counts, exact, numbered_id
from steps import Thread, keys_in

THREAD_ID = CONFIG["configurable"]["thread_id"]

Fields = dict[bytes, bytes]
Read = Callable[[RedisSaver], Awaitable[Any]]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


async def everything(saver: RedisSaver, config: RunnableConfig | None) -> Any:
    return [exact(tuple(each)) async for each in saver.alist(config)]


async def exported(saver: RedisSaver, thread_id: str) -> Any:
    return [repr(each) async for each in saver.export_thread(thread_id)]


async def outlines(saver: RedisSaver, thread_id: str) -> Any:
    """What pruning decides on; not whether a parent has TASKS writes, which somebody may have removed."""
    _, found = await saver._history.outline(thread_id)
    return [exact(asdict(each) | {"parent_has_sends": None}) for each in found]


async def copied(saver: RedisSaver, thread_id: str) -> Any:
    await saver.acopy_thread(thread_id, "copy")
    try:
        found = await everything(saver, {"configurable": {"thread_id": "copy"}})
    finally:
        await saver.adelete_thread("copy")
    return found


async def filtered(saver: RedisSaver, thread_id: str) -> Any:
    config: Any = {"configurable": {"thread_id": thread_id}}
    return [each.config async for each in saver.alist(config, filter={"source": "loop"})]


def reads_of(thread_id: str) -> dict[str, Read]:
    config = config_of(thread_id)
    return {
        "aget_tuple": lambda saver: saver.aget_tuple(config),
        "alist": lambda saver: everything(saver, {"configurable": {"thread_id": thread_id}}),
        "alist of all": lambda saver: everything(saver, None),
        "alist with a filter": lambda saver: filtered(saver, thread_id),
        "delta history": lambda saver: saver.aget_delta_channel_history(config=config, channels=CHANNELS),
        "export": lambda saver: exported(saver, thread_id),
        "outline": lambda saver: outlines(saver, thread_id),
        "copy": lambda saver: copied(saver, thread_id),
    }


async def hashes(redis: Redis) -> dict[bytes, Fields]:
    """What stands in the hashes that hold documents, values and writes."""
    keys: list[Any] = [
        key async for key in redis.scan_iter() if key.rpartition(b":")[2] in (b"docs", b"blobs", b"writes")
    ]
    found: dict[Any, Any] = {key: await redis.hgetall(key) for key in sorted(keys)}
    return found


async def fill(saver: RedisSaver, thread_id: str) -> None:
    """Two more namespaces, old formats, and pending writes with and without a checkpoint."""
    old, sub = Thread(thread_id, "old"), Thread(thread_id, "sub")
    for thread, format_ in ((old, 1), (old, 1), (sub, 4)):
        config, checkpoint, metadata, versions = thread.next_put(saver)
        thread.newest = await saver.aput(config, {**checkpoint, "v": format_}, metadata, versions)
        await saver.aput_writes(thread.newest, [("__pregel_tasks", thread.number)], "task", "~b")
        await saver.aput_writes(thread.newest, [("__interrupt__", thread.number)], "task 2", "~a")
    await saver.aput_writes(config_of(thread_id, "sub", "f"), [("x", 1)], "stray", "~c")


def changes(key: bytes, name: bytes, stored: bytes, others: list[bytes], payload: Encoded) -> Iterator[bytes]:
    """What somebody may put in the place of a field: without the key."""
    part = key.rpartition(b":")[2]
    yield payload.data
    yield payload.data + stored[-SIZE:]
    yield b""
    yield stored[:-SIZE]
    yield stored[:-1] + bytes([stored[-1] ^ 1])
    yield bytes([stored[0] ^ 1]) + stored[1:]
    yield stored + b"x"
    yield from others
    if part == b"blobs":
        yield payload.type.encode() + b"\0" + payload.data
        yield payload.type.encode() + b"\0" + payload.data + stored[-SIZE:]
    if part == b"writes":
        channel, type_, path, data = stored.split(b"\0", 3)
        text, _, signature = path.partition(b"\xff")
        yield b"\0".join([channel, payload.type.encode(), path, payload.data + data[-SIZE:]])
        yield b"\0".join([b"plain", type_, path, data])
        yield b"\0".join([channel, b"bytes", path, data])
        yield b"\0".join([channel, type_, b"~z", data])
        yield b"\0".join([channel, type_, b"~z\xff" + signature, data])
        yield b"\0".join([channel, type_, text, data])
        yield b"\0".join([channel, type_, b"", data])
    if part == b"docs" and name.startswith(b"h"):
        parent, rest = stored.split(b"\0", 1)
        text, _, signature = parent.partition(b"\xff")
        for other in (b"1f000000-0000-6000-8000-000000000001", b"?"):
            yield other + b"\0" + rest
            yield other + b"\xff" + signature + b"\0" + rest
        yield text + b"\xff\0" + rest
        yield text + b"\xff?\0" + rest
        yield parent + b"\0" + rest.replace(b"1\0", b"0\0", 1)
        yield parent + b"\0" + rest.replace(b"\0\0", b"\0run\0", 1)


async def test_no_change_of_any_field_is_ever_believed(redis: Redis, tmp_path: Path) -> None:
    payload = PAYLOADS["a call"][1](tmp_path / "made")
    serde, registry = Watched(), CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    # A copy is an export, and a list of all is a list of each: both take long.
    reads = {k: v for k, v in reads_of(THREAD_ID).items() if k not in ("copy", "alist of all")}
    async with opened(redis, serde=serde, telemetry=telemetry) as saver:
        graph = make_graph(saver)
        await graph.ainvoke({"log": ["turn"]}, CONFIG)
        for turn in range(2):
            await saver.aput_writes(CONFIG_OF_STRAY, [("x", turn)], f"stray {turn}")
        await fill(saver, THREAD_ID)
        right = {what: exact(await read(saver)) for what, read in reads.items()}
        before = await hashes(redis)
        refused = tried = 0
        for key, fields in before.items():
            for name, stored in fields.items():
                siblings = [value for other, value in fields.items() if other != name and value != stored]
                for changed in changes(key, name, stored, siblings[:1], payload):
                    if changed == stored or is_a_cut(name, changed, stored):
                        continue
                    await redis.hset(key, name, changed)
                    raised = 0
                    for what, read in reads.items():
                        if what == "delta history" and amounts_to_removal(key, name, changed, stored):
                            continue
                        try:
                            assert exact(await read(saver)) == right[what], (what, key, name, changed)
                        except ThreadTamperedError:
                            raised += 1
                    assert raised, (key, name, changed)
                    refused, tried = refused + raised, tried + 1
                    await redis.hset(key, name, stored)
        assert tried > 200
        assert counts(registry, "glasspoint_l1_invalidations_total", "source") == {"tampered": refused}
        assert payload.data not in serde.read
        assert {what: exact(await read(saver)) for what, read in reads.items()} == right
    assert not (tmp_path / "made").exists()


CONFIG_OF_STRAY = config_of(THREAD_ID, "", "a checkpoint that is not here")


def is_a_cut(name: bytes, changed: bytes, stored: bytes) -> bool:
    """Whether only the parent is taken away, which nobody can tell from pruning."""
    return names_no_parent(name, changed) and changed[1:] == stored.partition(b"\0")[2]


def amounts_to_removal(key: bytes, name: bytes, changed: bytes, stored: bytes) -> bool:
    """Whether the delta history, which asks for some channels, no longer comes by this field."""
    if key.endswith(b":writes"):
        return changed.partition(b"\0")[0] != stored.partition(b"\0")[0]
    return names_no_parent(name, changed)


def names_no_parent(name: bytes, changed: bytes) -> bool:
    return name.startswith(b"h") and not changed.partition(b"\0")[0]


@pytest.mark.parametrize("forger", ["unsigned", "another key", "another target"])
@pytest.mark.parametrize("what", PAYLOADS)
async def test_a_planted_thread_is_refused_and_runs_no_code(
    what: str, forger: str, redis: Redis, tmp_path: Path
) -> None:
    path = tmp_path / "made"
    serde, payload = armed(what, path)
    options: Any = {
        "unsigned": {"signing_key": None},
        "another key": {"signing_key": b"another sixteen!"},
        "another target": {"target": Target("db", "5432", "staging")},
    }[forger]

    async with (
        opened(redis, serde=serde) as saver,
        opened(redis, serde=Planting(payload), **options) as other,
    ):
        thread = Thread(THREAD_ID)
        for _ in range(2):
            await thread.put(other, log=["planted"])
            await other.aput_writes(thread.newest, [("log", "planted")], "task")
        await other.aput_writes(CONFIG_OF_STRAY, [("log", "planted")], "task")
        if forger == "another target":
            for key in await keys_in(redis, "*{*"):
                await redis.rename(key, key.replace(options["target"].id.encode(), TARGET.id.encode()))
        for read in reads_of(THREAD_ID).values():
            with pytest.raises(ThreadTamperedError, match="not signed with this process's key"):
                await read(saver)
        assert payload.data not in serde.read
        assert not path.exists()
        with pytest.raises(ThreadTamperedError):
            await saver.aprune([THREAD_ID])
        await saver.adelete_thread(THREAD_ID)
        assert await saver.aget_tuple(config_of(THREAD_ID)) is None


class Planting(JsonPlusSerializer):
    """A serializer that writes the same bytes whatever it is given."""

    def __init__(self, payload: Encoded) -> None:
        super().__init__()
        self.payload = payload

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return tuple(self.payload)  # type: ignore[return-value]


async def test_only_the_signature_stands_between_such_a_thread_and_the_serializer(
    redis: Redis, tmp_path: Path
) -> None:
    payload = PAYLOADS["a call"][1](tmp_path / "made")
    async with opened(redis) as saver, opened(redis, serde=Planting(payload)) as other:
        await Thread("t").put(other)
        await saver.aget_tuple(config_of("t"))
    assert (tmp_path / "made").exists()


async def three_threads(saver: RedisSaver) -> None:
    """Alike in all but what they say: a field of one would be believed in another if it were not bound."""
    for thread in (Thread("a"), Thread("b"), Thread("a", "sub")):
        what = repr(thread.config)
        for _ in range(2):
            await thread.put(saver, other=[what], inline=what)
            for task in ("task", "task 2"):
                await thread.put_writes(saver, f"{what} {thread.number} {task}", task)


async def test_a_field_of_another_thread_namespace_checkpoint_or_channel_is_refused(redis: Redis) -> None:
    """All are signed with the right key, but for another place."""
    async with opened(redis) as saver:
        await three_threads(saver)
        right = exact(await saver.aget_tuple(config_of("a")))
        before = await hashes(redis)
        tried = 0
        for key, fields in before.items():
            if b"{a}" not in key:
                continue
            newest = {
                name: stored for name, stored in fields.items() if b"0002" in name and b"sub" not in name
            }
            elsewhere = {v for k, of in before.items() if k[-6:] == key[-6:] for v in of.values()}
            for name, stored in newest.items():
                for other in sorted(elsewhere - {stored}):
                    await redis.hset(key, name, other)
                    if not is_a_cut(name, other, stored):
                        with pytest.raises(ThreadTamperedError):
                            await saver.aget_tuple(config_of("a"))
                        tried += 1
                await redis.hset(key, name, stored)
        assert tried > 50
        assert exact(await saver.aget_tuple(config_of("a"))) == right


@pytest.mark.parametrize("parts", [("docs",), ("docs", "blobs"), ("writes",)])
@pytest.mark.parametrize("parent", ["with its parent", "without a parent"])
async def test_a_whole_checkpoint_of_another_place_is_refused(
    parent: str, parts: tuple[str, ...], redis: Redis
) -> None:
    """Head, metadata, document and values fit together, and are signed with the right key."""
    async with opened(redis) as saver:
        await three_threads(saver)
        before = await hashes(redis)
        (docs,) = [key for key in before if b"{a}:docs" in key]
        place = b"\0" + numbered_id(2).encode()
        for thread, source in (
            (b"a", b"\0" + numbered_id(1).encode()),
            (b"a", b"sub" + place),
            (b"b", place),
        ):
            for part in (each.encode() for each in parts):
                of = before[docs.replace(b"{a}:docs", b"{%b}:%b" % (thread, part))]
                for name, stored in of.items():
                    if part == b"blobs":
                        moved = name.removeprefix(source.partition(b"\0")[0])
                    else:
                        moved = name.replace(source, place)
                    if part == b"docs" and name[:1] == b"h" and parent == "without a parent":
                        stored = b"\0" + stored.partition(b"\0")[2]
                    if source in name or part == b"blobs":
                        await redis.hset(docs.replace(b"docs", part), moved, stored)
            with pytest.raises(ThreadTamperedError):
                await saver.aget_tuple(config_of("a"))
            for key, fields in before.items():
                await redis.delete(key)
                await redis.hset(key, mapping=fields)  # type: ignore[arg-type]
        assert await Thread("a").turn(saver) == 2


async def test_what_is_refused_is_said_once_in_a_while_without_its_content(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "glasspoint")
    async with opened(redis) as saver, opened(redis, signing_key=None) as other:
        await Thread("a").put(other, secret=["geheim"])
        for _ in range(3):
            with pytest.raises(
                ThreadTamperedError, match="let a process with the former key drain"
            ) as caught:
                await saver.aget_tuple(config_of("a"))
    assert isinstance(caught.value, ThreadDamagedError)
    (line,) = [each for each in caplog.messages if "was refused" in each]
    assert line.startswith("Thread 'a' was refused: ")
    assert "geheim" not in line + str(caught.value)


async def test_a_saver_without_a_key_reads_no_signed_thread_as_it_is_not_meant(redis: Redis) -> None:
    """A rollback to a release without signatures must not show signatures as a part of the state."""
    async with opened(redis) as saver, opened(redis, signing_key=None) as other:
        thread = Thread("a")
        await thread.put(saver)
        with pytest.raises(ThreadTamperedError, match="the process has none"):
            await thread.turn(other)


async def test_a_key_that_is_too_short_is_refused(redis: Redis) -> None:
    with pytest.raises(ConfigurationError, match="signing_key is too short: it must be at least 16 bytes"):
        RedisSaver(redis, signing_key=b"short", telemetry=create_telemetry(registry=CollectorRegistry()))


async def test_delta_graphs_and_old_formats_work_signed_as_unsigned(redis: Redis) -> None:
    async with opened(redis) as saver:
        assert await play(saver) == await play(InMemorySaver())
