"""What the tests of single steps share: one thread's checkpoints, and what stands in both servers."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from time import monotonic
from typing import Any

import httpx
import psutil
import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint, CheckpointMetadata
from prometheus_client import CollectorRegistry
from psycopg import sql
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.fallback import factory
from glasspoint.fallback.draining import Drainer
from glasspoint.model.lineage import Branch, SetAside
from glasspoint.model.scope import scope_of
from glasspoint.telemetry.http import telemetry_app
from states import config_of, numbered_id

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_migrations")

STORING = [
    f"{name}{fenced}{judged}"
    for fenced in ("", "_fenced")
    for name in ("put_few", "put", "put_together")
    for judged in ("", "_judged")
] + [
    f"{kind}_{name}{fenced}"
    for fenced in ("", "_fenced")
    for kind in ("put", "upsert")
    for name in ("few_writes", "writes", "writes_together")
]
"""The blocks of the statements that store what callers write."""


class Thread:
    """One conversation: each `put` is its next checkpoint, whose two values tell which one it is."""

    def __init__(self, thread_id: str, checkpoint_ns: str = "") -> None:
        self.thread_id = thread_id
        self.config = config_of(thread_id, checkpoint_ns)
        self.number = 0
        self.newest: RunnableConfig = self.config

    def next_put(
        self, saver: BaseCheckpointSaver[str], **more_values: Any
    ) -> tuple[RunnableConfig, Checkpoint, CheckpointMetadata, ChannelVersions]:
        """What `aput` takes for the checkpoint after the newest."""
        self.number += 1
        channels = ("messages", "turn", "branch:to:agent", *more_values)
        versions: ChannelVersions = dict.fromkeys(channels, f"{self.number:032}.5")
        checkpoint: Checkpoint = {
            "v": 4,
            "id": numbered_id(self.number),
            "ts": "2026-01-01T00:00:00+00:00",
            "channel_values": {
                "messages": [f"message {self.number}"],
                "turn": self.number,
                **more_values,
            },
            "channel_versions": versions,
            "versions_seen": {"agent": {"branch:to:agent": versions["branch:to:agent"]}},
            "updated_channels": None,
        }
        return self.newest, checkpoint, {"source": "loop", "step": self.number, "parents": {}}, versions

    async def put(self, saver: BaseCheckpointSaver[str], **more_values: Any) -> None:
        """Store the next checkpoint."""
        self.newest = await saver.aput(*self.next_put(saver, **more_values))

    async def put_writes(self, saver: BaseCheckpointSaver[str], value: Any, task_id: str = "task") -> None:
        """Store a pending write of the newest checkpoint."""
        await saver.aput_writes(self.newest, [("messages", value)], task_id)

    async def turn(self, saver: BaseCheckpointSaver[str]) -> int | None:
        """Read the thread: the number of its newest checkpoint, whose values must belong together."""
        found = await saver.aget_tuple(self.config)
        if found is None:
            return None
        values = found.checkpoint["channel_values"]
        number: int = values["turn"]
        assert values["messages"] == [f"message {number}"]
        assert found.checkpoint["id"] == numbered_id(number)
        return number


def another_process() -> None:
    """Let chains that are opened from now on share no tier `memory` with those before: a test has several
    processes in one."""
    factory._memories.clear()


async def put_all(saver: BaseCheckpointSaver[str], threads: Iterable[Thread]) -> None:
    """Store the next checkpoint of each, all at once."""
    await asyncio.gather(*(thread.put(saver) for thread in threads))


async def settled(saver: CachedPostgresSaver, *scopes: Thread, keeps_fences: bool = False) -> None:
    """End the saver's bursts of some scopes; of none given: all.

    Redis has what they wrote then, or has discarded it, and whoever reads it from PostgreSQL may warm up.

    Args:
        keeps_fences: The fences stand for a moment yet, as they do when nobody hurries.
    """
    bursts = saver._bursts
    await bursts.end([scope_of(thread.config) for thread in scopes] or list(bursts._open))
    if not keeps_fences:
        await bursts._fences.remove()


async def hits_at_last(redis_url: str, hits: Callable[[], Awaitable[bool]]) -> None:
    """Wait until Redis answers again, after trouble in which bursts were lost.

    Intents of lost bursts keep their entries from readers for half a minute. Nobody waits for that here: such
    an entry is evicted.
    """

    async def found() -> bool:
        if blocked := await keys_with_intents(redis_url):
            async with Redis.from_url(redis_url) as redis:
                await redis.delete(*blocked)
        return await hits()

    await until(found)


OTHER_CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def rows_of(postgres_url: str) -> dict[str, int | None]:
    """How many rows each of LangGraph's tables has; `None` where there is no table."""
    counted: dict[str, int | None] = {}
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as conn:
        for table in TABLES:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            try:
                row = await (await conn.execute(query)).fetchone()
            except psycopg.errors.UndefinedTable:
                row = None
            counted[table] = row[0] if row else None
    return counted


async def keys_of(redis_url: str) -> dict[bytes, dict[bytes, bytes]]:
    """Everything that stands in Redis."""
    async with Redis.from_url(redis_url) as redis:
        found: dict[Any, Any] = {key: await redis.hgetall(key) async for key in redis.scan_iter()}
        return found


async def keys_in(redis: Redis, pattern: str = "*") -> list[bytes]:
    """The keys as the client returns them, which decodes nothing."""
    found: Any = await redis.keys(pattern)
    return list(found)


async def keys_with_intents(redis_url: str) -> list[bytes]:
    """The keys of all entries in which the intent of a burst stands."""
    entries = await keys_of(redis_url)
    return [key for key, fields in entries.items() if any(name.startswith(b"i:") for name in fields)]


@asynccontextmanager
async def locked(
    database: str, table: str, *, mode: str = "EXCLUSIVE"
) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Keep writers from a table; answers with the backend that waits for it, once there is one."""
    async with (
        await psycopg.AsyncConnection.connect(database) as holder,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as watcher,
    ):
        await holder.execute(f"LOCK TABLE {table} IN {mode} MODE")

        async def find() -> int | None:
            query = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
            row = await (await watcher.execute(query, [table])).fetchone()
            return row[0] if row else None

        async def waiter() -> int:
            pid: int = await until(find)
            return pid

        try:
            yield waiter
        finally:
            await holder.rollback()


@contextmanager
def away(server: EmbeddedPostgres, outage: str) -> Iterator[None]:
    """The server is down, or all its processes are stopped: it accepts connections, and answers nothing."""
    if outage == "down":
        server.stop()
        yield
        server.start()
        return
    postmaster = psutil.Process(server.pid)
    with suspended(postmaster, *postmaster.children(recursive=True)):
        yield


@contextmanager
def suspended(*processes: psutil.Process) -> Iterator[None]:
    """Processes that are stopped in between, and lose nothing."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def until(condition: Callable[[], Awaitable[Any] | Any], *, seconds: float = 30.0) -> Any:
    """Wait for a condition, and return what it answered. A busy machine needs its time.

    A condition that takes long is asked for rarely: a tenth of the time goes into asking, while what is
    waited for needs the processor, too.
    """
    deadline, pause = monotonic() + seconds, 0.005
    while True:
        asked_at = monotonic()
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        assert monotonic() < deadline, f"still not so after {seconds} s"
        await asyncio.sleep(max(pause, min(9 * (monotonic() - asked_at), 0.1)))
        pause = min(1.2 * pause, 0.025)


def seeded_dice() -> random.Random:
    """The same dice in every run; with EXPLORE=1 others, which a failing test's TEST_SEED brings back."""
    import dice  # imports Hypothesis and all of Glasspoint, which processes of tests need not wait for

    sys.stdout.write(f"TEST_SEED={dice.SEED}\n")
    return random.Random(dice.SEED)


async def readyz(registry: CollectorRegistry) -> tuple[int, dict[str, Any]]:
    """Return the status of `/readyz`, and what it says of the one saver."""
    transport = httpx.ASGITransport(telemetry_app(registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as app:
        response = await app.get("/readyz")
    [saver] = response.json()["savers"]
    return response.status_code, saver


class Moves:
    """What a drainer reports."""

    def __init__(self) -> None:
        self.checkpoints = 0
        self.results: list[str] = []
        self.set_aside_as: list[SetAside] = []

    def imported(self, checkpoints: int) -> None:
        self.checkpoints += checkpoints

    def drained(self, result: str) -> None:
        self.results.append(result)

    def set_aside(self, set_aside: SetAside, branches: Sequence[Branch]) -> None:
        self.set_aside_as.append(set_aside)


async def drain(lower: Any, upper: Any) -> Moves:
    """Move every thread of a tier into another one, once."""
    moves = Moves()
    await Drainer("lower", moves).round(lower, upper)
    return moves


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def tcp(server: EmbeddedRedis) -> Connect:
    return lambda: asyncio.open_connection("127.0.0.1", server.port)


async def nowhere() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Where no server is."""
    raise ConnectionRefusedError


class Proxy:
    """What a client is connected to while the server behind it is replaced, or the connection cut."""

    def __init__(self) -> None:
        self.port = 0
        self._connect: Connect | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def to(self, connect: Connect) -> AsyncIterator[Proxy]:
        self._connect = connect
        listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listener.close()
            await self.cut()
            await listener.wait_closed()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def switch(self, connect: Connect) -> None:
        """Connect to another server from now on."""
        self._connect = connect
        await self.cut()

    async def cut(self) -> None:
        """Close what is open."""
        closing = set(self._open)
        for writer in closing:
            writer.close()
        await until(lambda: not closing & self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._connect is not None
        try:
            there_reader, there_writer = await self._connect()
        except OSError:
            writer.close()
            return
        pair = {writer, there_writer}
        self._open |= pair

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            for end in pair:
                end.close()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        for end in pair:
            with suppress(ConnectionError):
                await end.wait_closed()
        self._open -= pair
