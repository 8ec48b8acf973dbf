"""What calls and turns take of the servers, which `make bench` does not tell: `scaling.py --measure`.

Processor time of Redis (its own count) and of PostgreSQL (of all its processes, as the system counts it), the
write-ahead log, rows and bytes in the tables, entries and bytes in Redis, bytes on Redis's wire. Processor
time depends less on who else is busy here than waiting does. Servers: embedded ones, PostgreSQL durable.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psutil
import psycopg
from redis.asyncio import Redis

from comparison.calls import Hot
from comparison.conversations import Conversation
from comparison.measuring import clocked
from comparison.peers import OURS, QUICK, Peers, peers
from comparison.servers import Databases, facts_of, own_databases
from comparison.turns import KEPT, Durability, turns_of
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

CALLS: Final = 256
TURNS: Final = 64
THREADS: Final = 64
CALLERS: Final = (1, 16)
"""Of single calls."""
DURABILITIES: Final[tuple[Durability, ...]] = ("sync", "exit")
KINDS_OF_TURNS: Final = ((0, 1), (0, 16), (200, 16))
"""How many milliseconds models and tools take, and how many conversations there are at once. 200 ms are more
than a burst of writes waits for its next write, so a turn has several bursts, as with real models. (One such
conversation alone is not measured: the servers are idle most of that time, and idling costs more.)"""
TABLES: Final = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
PREFIX: Final = "scaling"


async def measured(
    calls: int = CALLS,
    turns: int = TURNS,
    warm_up_turns: int = THREADS * KEPT // 4,
    *,
    durable: bool = True,
) -> dict[str, Any]:
    """Measure, and return everything as a JSON document.

    Args:
        calls: How many of each kind.
        turns: How many for each durability mode.
        warm_up_turns: How many before them: by default so many that all conversations have the messages
            that they will keep, since a turn brings four.
        durable: Whether PostgreSQL waits for the disk, as a production server does.
    """
    with EmbeddedPostgres(durable=durable) as postgres, EmbeddedRedis() as redis:
        async with (
            own_databases(postgres.url, PREFIX) as databases,
            peers(databases, redis.url, key_prefix=PREFIX, provider=None, names=QUICK) as found,
            Redis.from_url(redis.url) as client,
            _connected(databases) as connections,
        ):
            servers = _Servers(client, connections)
            return {
                "facts": await facts_of(found.pool, client),
                "calls": [each async for each in _calls(found, servers, calls)],
                "turns": [each async for each in _turns(found, servers, turns, warm_up_turns)],
                "flush_ms": await _flush_ms(databases.ours, calls),
            }


@asynccontextmanager
async def _connected(databases: Databases) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    async with AsyncExitStack() as opened:
        yield [
            await opened.enter_async_context(await psycopg.AsyncConnection.connect(each, autocommit=True))
            for each in (databases.ours, databases.upstream)
        ]


class _Servers:
    """What both servers have done so far, PostgreSQL in the databases of all contenders."""

    def __init__(self, redis: Redis, connections: list[psycopg.AsyncConnection[Any]]) -> None:
        self.redis = redis
        self._connections = connections
        self._postmaster = psutil.Process(psutil.Process(connections[0].info.backend_pid).ppid())
        self._of_each: dict[int, float] = {}
        self._of_all = 0.0

    async def counted(self) -> dict[str, float]:
        """Totals, of which a difference says what something took."""
        info = await self.redis.info("all")
        totals = {
            "redis_ms": 1000 * (info["used_cpu_user"] + info["used_cpu_sys"]),
            "redis_steps": info.get("cmdstat_evalsha", {}).get("calls", 0),
            "redis_wire_bytes": info["total_net_input_bytes"] + info["total_net_output_bytes"],
            "redis_bytes": info["used_memory"],
            "redis_entries": await self.redis.dbsize(),
            "postgres_ms": self._postgres_ms(),
            # Of the whole server: all databases write one log.
            "wal_bytes": await self._one(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')", self._connections[:1]
            ),
        }
        for table in TABLES:
            totals[f"{table}_rows"] = await self._one(f"SELECT count(*) FROM {table}")
            totals[f"{table}_bytes"] = await self._one(f"SELECT pg_total_relation_size('{table}')")
        return totals

    async def taken_by(self, work: Callable[[], Awaitable[Any]], times: int) -> dict[str, float]:
        """What a piece of work took, a time."""
        before = await self.counted()
        idle = await self.counted()
        await work()
        after = await self.counted()
        # To count costs something, too.
        return {
            name: float(f"{max(0.0, after[name] - idle[name] - _own(name, before, idle)) / times:.4g}")
            for name in after
        }

    def _postgres_ms(self) -> float:
        """Of all processes so far, those included that have ended, up to when they were last looked at."""
        for process in (self._postmaster, *self._postmaster.children()):
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                taken = _processor_ms(process)
                self._of_all += taken - self._of_each.get(process.pid, 0.0)
                self._of_each[process.pid] = taken
        return self._of_all

    async def _one(
        self, query: str, connections: Sequence[psycopg.AsyncConnection[Any]] | None = None
    ) -> float:
        """Ask each database, and return the sum."""
        total = 0.0
        for conn in self._connections if connections is None else connections:
            row = await (await conn.execute(query)).fetchone()
            assert row is not None
            total += float(row[0])
        return total


def _processor_ms(process: psutil.Process) -> float:
    """Of its one thread; Linux tells nanoseconds, others (and psutil everywhere) the system's ticks."""
    precise = Path("/proc/self/schedstat")
    if precise.exists():
        return int((precise.parents[1] / f"{process.pid}" / precise.name).read_text().split()[0]) / 1e6
    times = process.cpu_times()
    return 1000 * float(times.user + times.system)


def _own(name: str, before: dict[str, float], after: dict[str, float]) -> float:
    counts = name in ("redis_ms", "redis_wire_bytes", "postgres_ms")
    return after[name] - before[name] if counts else 0.0


async def _calls(found: Peers, servers: _Servers, calls: int) -> AsyncIterator[dict[str, Any]]:
    for name in QUICK:
        hot = await Hot.made(found[name], f"calls-{QUICK.index(name)}", 10, THREADS)
        for callers in CALLERS:
            for kind in ("hit", "miss", "put", "put_writes"):
                if kind == "miss" and name != OURS:
                    continue  # there it is the same read
                share = min(calls, THREADS) if kind == "miss" else calls
                repeated = [await _of(kind, hot, servers, share, callers) for _ in range(calls // share)]
                taken = {key: statistics.fmean(each[key] for each in repeated) for key in repeated[0]}
                yield {"contender": name, "kind": kind, "callers": callers, **_only_work(taken)}


async def _of(kind: str, hot: Hot, servers: _Servers, calls: int, callers: int) -> dict[str, float]:
    if kind == "put_writes":
        return await servers.taken_by(partial(_pending_writes, hot, calls, callers), calls)
    if kind == "put":
        return await servers.taken_by(partial(hot.puts, calls, callers), calls)
    await hot.hits(THREADS, 8)
    if kind == "miss":
        await servers.redis.flushdb()
    return await servers.taken_by(partial(hot.hits, calls, callers), calls)


async def _pending_writes(hot: Hot, calls: int, callers: int) -> None:
    """As `Hot.writes`, which makes puts beforehand."""
    writes: list[Any] = []
    for i in range(calls):
        conversation: Conversation = hot.conversations[i % len(hot.conversations)]
        writes.append(partial(hot.saver.aput_writes, *conversation.next_writes()))
    await clocked([writes[i::callers] for i in range(callers)])


def _only_work(taken: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{taken[name]:.4g}") for name in ("redis_ms", "postgres_ms", "wal_bytes")}


async def _turns(found: Peers, servers: _Servers, turns: int, warm_up: int) -> AsyncIterator[dict[str, Any]]:
    for durability in DURABILITIES:
        for name, each in turns_of(found, f"turns-{durability}").items():
            await each.sample(warm_up, 16, "exit")
            for answer_ms, n in KINDS_OF_TURNS:
                each.nodes.answer_seconds = answer_ms / 1000
                taken = await servers.taken_by(partial(each.sample, turns, n, durability), turns)
                what = {"durability": durability, "answer_ms": answer_ms, "conversations": n}
                yield {"contender": name, **what, **taken}


@asynccontextmanager
async def _committing(conninfo: str, how: str) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        await conn.execute(f"SET synchronous_commit = {how}")

        async def commit() -> float:
            started = perf_counter()
            await conn.execute("INSERT INTO flushed VALUES (1)", prepare=True)
            return 1000 * (perf_counter() - started)

        yield commit


async def _flush_ms(conninfo: str, times: int) -> dict[str, float]:
    """How long a commit waits for the disk: with and without waiting, in turns."""
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        await conn.execute("CREATE TABLE flushed (n int)")
    async with _committing(conninfo, "on") as durable, _committing(conninfo, "off") as lazy:
        order = [durable, lazy] * times
        taken: dict[Any, list[float]] = {durable: [], lazy: []}
        random.Random(1).shuffle(order)
        for commit in order:
            taken[commit].append(await commit())
    cuts = [statistics.quantiles(taken[each], n=100) for each in (durable, lazy)]
    return {f"p{n}": float(f"{max(0.0, cuts[0][n - 1] - cuts[1][49]):.4g}") for n in (50, 90, 99)}
