"""How long callers wait: Glasspoint beside `AsyncPostgresSaver`, on the same servers, in the same run.

    python benchmarks/latency.py [--quick] [--json FILE]

Four operations: a read that L1 has (hit), a read that it does not (miss, with the warm-up that follows), a
put and a put_writes; states of 10 and of 100 messages; 1, 16 and 64 callers. `AsyncPostgresSaver` is measured
on a pool of the same size and on one connection; to it a hit and a miss are the same read, so these two rows
also show how much is noise. The contenders take turns within every round, in an order that rotates; a figure
is the median of its rounds, and IQR the distance between their quartiles. "cpu ms" is what a call costs this
process, the servers not included; other load on the machine changes it least.

Servers: embedded ones (PostgreSQL with fsync on), or those of POSTGRES_URL and REDIS_URL; there the benchmark
makes LangGraph's tables if need be, and removes its own threads and keys when it ends. Glasspoint's metrics
are on; OpenTelemetry has no SDK, as in a process that did not configure one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import platform
import random
import statistics
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final
from uuid import uuid4

import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, ChannelVersions, Checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.l2.pool import postgres_conninfo

POOL_SIZE: Final = 10
THREADS: Final = 64
"""Conversations of each contender; a caller has its own share of them."""
SEED: Final = 20
OPERATIONS: Final = ("hit", "miss", "put", "put_writes")
TEXT: Final = (
    "The checkpoint of a turn is read before its first step and written after every one of them, so that a "
    "conversation goes on where it stopped, even in another process or on another day. "
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    calls: int
    """Per round, contender and operation; with more callers a little more, so that each has enough."""
    messages: tuple[int, ...] = (10, 100)
    callers: tuple[int, ...] = (1, 16, 64)

    def calls_of(self, callers: int) -> int:
        """As many for each conversation, so that all of them are in the same state afterwards."""
        return THREADS * math.ceil(max(self.calls, 4 * callers) / THREADS)


FULL: Final = Plan(rounds=9, calls=192)
QUICK: Final = Plan(rounds=3, calls=64, callers=(1, 16))


@dataclass(frozen=True)
class Figure:
    """One line of the table: medians over the rounds, with their spread."""

    messages: int
    callers: int
    operation: str
    contender: str
    p50_ms: float
    p50_iqr_ms: float
    p99_ms: float
    p99_iqr_ms: float
    calls_per_second: float
    calls_per_second_iqr: float
    cpu_ms: float
    cpu_ms_iqr: float


class Conversation:
    """One thread, its state as LangGraph leaves it after a step: six channels, three without a value."""

    def __init__(
        self, saver: BaseCheckpointSaver[str], thread_id: str, messages: int, dice: random.Random
    ) -> None:
        self._saver = saver
        self._dice = dice
        self._messages = [_message(i, dice) for i in range(messages)]
        self._versions: dict[str, str] = {}
        self._step = -1
        self.config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        self.newest: RunnableConfig = self.config

    def next_put(self) -> tuple[RunnableConfig, Checkpoint, dict[str, Any], ChannelVersions]:
        """What LangGraph passes to `aput` after the next step, in which the last message changed."""
        self._step += 1
        self._messages = [*self._messages[:-1], _message(self._step, self._dice)]
        changed = ["messages", "turns", "branch:to:agent", "branch:to:tools"]
        if not self._versions:
            changed += ["__start__", "profile"]
        new_versions = {c: self._saver.get_next_version(self._versions.get(c), None) for c in changed}
        self._versions = self._versions | new_versions
        checkpoint: Checkpoint = {
            "v": 4,
            "id": str(uuid6(clock_seq=self._step)),
            "ts": datetime.now(UTC).isoformat(),
            "channel_values": {
                "messages": self._messages,
                "turns": self._step,
                "profile": {"name": "철수", "language": "ko", "interests": ["hiking", "chess"]},
            },
            "channel_versions": dict(self._versions),
            "versions_seen": {
                "__input__": {},
                "__start__": {"__start__": self._versions["__start__"]},
                "agent": {"branch:to:agent": self._versions["branch:to:agent"]},
                "tools": {"branch:to:tools": self._versions["branch:to:tools"]},
            },
            "updated_channels": sorted(changed),
        }
        metadata = {"source": "loop", "step": self._step, "parents": {}}
        return self.newest, checkpoint, metadata, new_versions

    def next_writes(self) -> tuple[RunnableConfig, list[tuple[str, Any]], str, str]:
        """What LangGraph passes to `aput_writes` when a node is done."""
        task_id = str(uuid4())
        writes = [("messages", [_message(1, self._dice)]), ("branch:to:tools", None)]
        return self.newest, writes, task_id, "~__pregel_pull, agent"


@dataclass
class Contender:
    """A saver, and its conversations."""

    name: str
    saver: BaseCheckpointSaver[str]
    conversations: list[Conversation]

    async def measure(
        self, operation: str, callers: int, calls: int, forget: Callable[[], Awaitable[Any]]
    ) -> Round:
        """Call the operation so many times, and keep everybody's waiting time."""
        shares = [self.conversations[i::callers] for i in range(callers)]
        seconds: list[float] = []
        wall = cpu = 0.0
        call = getattr(self, f"_{operation}")
        gc.collect()
        for part in _parts(calls, len(self.conversations) if operation == "miss" else calls):
            if operation == "miss" and isinstance(self.saver, CachedPostgresSaver):
                await forget()
            started, started_cpu = perf_counter(), process_time()
            await asyncio.gather(*(_caller(call, share, part // callers, seconds) for share in shares))
            wall += perf_counter() - started
            cpu += process_time() - started_cpu
        return Round(sorted(seconds), wall, cpu)

    async def _hit(self, conversation: Conversation) -> float:
        started = perf_counter()
        found = await self.saver.aget_tuple(conversation.config)
        seconds = perf_counter() - started
        assert found is not None
        assert found.config == conversation.newest, "an older state was read"
        return seconds

    _miss = _hit

    async def _put(self, conversation: Conversation) -> float:
        put = conversation.next_put()
        started = perf_counter()
        conversation.newest = await self.saver.aput(*put)
        return perf_counter() - started

    async def _put_writes(self, conversation: Conversation) -> float:
        writes = conversation.next_writes()
        started = perf_counter()
        await self.saver.aput_writes(*writes)
        return perf_counter() - started


@dataclass(frozen=True)
class Round:
    seconds: list[float]
    wall: float
    cpu: float

    def percentile_ms(self, percent: int) -> float:
        return 1000 * self.seconds[min(len(self.seconds) - 1, len(self.seconds) * percent // 100)]


class Bench:
    """The servers, the savers, and the rounds."""

    def __init__(self, postgres_url: str, redis_url: str) -> None:
        self.run = f"bench-{uuid4().hex[:8]}"
        self.registry = CollectorRegistry()
        self.redis = Redis.from_url(redis_url)
        self.savers: dict[str, BaseCheckpointSaver[str]] = {}
        self.facts: dict[str, str] = {}
        self._postgres_url, self._redis_url = postgres_url, redis_url

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Bench]:
        conninfo = postgres_conninfo(self._postgres_url)
        kwargs = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        async with AsyncExitStack() as opened:
            opened.push_async_callback(self.redis.aclose)
            glasspoint = await opened.enter_async_context(
                CachedPostgresSaver.from_conn_string(
                    self._postgres_url,
                    redis_url=self._redis_url,
                    pool_min_size=POOL_SIZE,
                    pool_max_size=POOL_SIZE,
                    key_prefix=self.run,
                    telemetry=create_telemetry(registry=self.registry),
                )
            )
            await glasspoint.setup()
            pool = AsyncConnectionPool(
                conninfo, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=kwargs, open=False
            )
            await opened.enter_async_context(pool)
            await pool.wait()
            single = await opened.enter_async_context(AsyncPostgresSaver.from_conn_string(conninfo))
            self.savers = {
                "Glasspoint": glasspoint,
                "upstream, pool": AsyncPostgresSaver(pool),
                "upstream, one": single,
            }
            self.facts = await facts_of(pool, self.redis)
            try:
                yield self
            finally:
                await self._remove_all(pool)

    async def contenders(self, messages: int) -> list[Contender]:
        """New conversations for each, written once, so that there is something to read."""
        made = []
        for number, (name, saver) in enumerate(self.savers.items()):
            dice = random.Random(SEED)  # the same texts for all
            conversations = [
                Conversation(saver, f"{self.run}-{messages}-{number}-{i}", messages, dice)
                for i in range(THREADS)
            ]
            contender = Contender(name, saver, conversations)
            await contender.measure("put", 8, THREADS, self._forget)
            made.append(contender)
        return made

    async def rounds(
        self, plan: Plan, contenders: list[Contender], messages: int, callers: int
    ) -> list[Figure]:
        """Measure every operation with every contender, in turn, and sum the rounds up."""
        calls = plan.calls_of(callers)
        taken: dict[tuple[str, str], list[Round]] = {}
        for number in range(-1, plan.rounds):  # one more to warm up, which does not count
            for operation in ("hit", "miss", "put_writes", "put"):
                turn = max(0, number) % len(contenders)
                for contender in contenders[turn:] + contenders[:turn]:
                    before = self._reads()
                    measured = await contender.measure(operation, callers, calls, self._forget)
                    if contender.name == "Glasspoint" and operation in ("hit", "miss"):
                        self._check_reads(before, operation, len(measured.seconds))
                    if number >= 0:
                        taken.setdefault((operation, contender.name), []).append(measured)
        return [
            _figure(messages, callers, operation, contender.name, taken[operation, contender.name])
            for operation in OPERATIONS
            for contender in contenders
        ]

    def _reads(self) -> dict[str, float]:
        return {
            result: self.registry.get_sample_value(
                "glasspoint_l1_reads_total", {"saver": "default", "result": result}
            )
            or 0.0
            for result in ("hit", "miss")
        }

    def _check_reads(self, before: dict[str, float], operation: str, calls: int) -> None:
        counted = self._reads()[operation] - before[operation]
        if counted != calls:
            raise SystemExit(
                f"{calls} reads were to be a {operation} each, but {counted:.0f} were: not measured."
            )

    async def _forget(self) -> None:
        """Take every entry out of Redis."""
        keys = [key async for key in self.redis.scan_iter(f"{self.run}:*", count=1000)]
        if keys:
            await self.redis.unlink(*keys)

    async def _remove_all(self, pool: AsyncConnectionPool[Any]) -> None:
        await self._forget()
        async with pool.connection() as conn:
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
                await conn.execute(f"DELETE FROM {table} WHERE starts_with(thread_id, %s)", [self.run])


async def _caller(
    call: Callable[[Conversation], Awaitable[float]],
    share: Sequence[Conversation],
    calls: int,
    out: list[float],
) -> None:
    for i in range(calls):
        out.append(await call(share[i % len(share)]))


def _parts(total: int, at_most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, at_most)
        total -= at_most


def _message(number: int, dice: random.Random) -> AnyMessage:
    start = dice.randrange(len(TEXT))
    text = (TEXT * 5)[start : start + dice.randint(200, 500)]
    if number % 2 == 0:
        return HumanMessage(text, id=str(uuid4()))
    usage = {"input_tokens": 812, "output_tokens": 96, "total_tokens": 908}
    return AIMessage(text, id=str(uuid4()), usage_metadata=usage, response_metadata={"model_name": "a-model"})


def _figure(messages: int, callers: int, operation: str, contender: str, rounds: list[Round]) -> Figure:
    p50, p50_iqr = _median_and_iqr([r.percentile_ms(50) for r in rounds])
    p99, p99_iqr = _median_and_iqr([r.percentile_ms(99) for r in rounds])
    rate, rate_iqr = _median_and_iqr([len(r.seconds) / r.wall for r in rounds])
    cpu, cpu_iqr = _median_and_iqr([1000 * r.cpu / len(r.seconds) for r in rounds])
    return Figure(
        messages, callers, operation, contender, p50, p50_iqr, p99, p99_iqr, rate, rate_iqr, cpu, cpu_iqr
    )


def _median_and_iqr(values: list[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, high - low


async def facts_of(pool: AsyncConnectionPool[Any], redis: Redis) -> dict[str, str]:
    async with pool.connection() as conn:
        settings = await conn.execute(
            "SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync, "
            "current_setting('synchronous_commit') AS synchronous_commit"
        )
        postgres = await settings.fetchone()
    assert postgres is not None
    packages = ("glasspoint", "langgraph", "langgraph-checkpoint-postgres", "psycopg", "redis")
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "postgres": f"PostgreSQL {postgres['version']}, fsync={postgres['fsync']}, "
        f"synchronous_commit={postgres['synchronous_commit']}",
        "redis": f"Redis {(await redis.info('server'))['redis_version']}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "psycopg": psycopg.pq.__impl__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _print_block(figures: list[Figure], baseline: str, size: int) -> None:
    first = figures[0]
    title = (
        f"{first.messages} messages ({size / 1000:.1f} kB), {first.callers} caller{'s' * (first.callers > 1)}"
    )
    print(f"\n{title:<36}   p50    ±IQR     p99    ±IQR  calls/s  cpu ms  p50 ratio  cpu ratio")
    base = {f.operation: f for f in figures if f.contender == baseline}
    for figure in figures:
        operation = figure.operation if figure.contender == figures[0].contender else ""
        of = base[figure.operation]
        print(
            f"{operation:<12}{figure.contender:<20}{figure.p50_ms:10.2f}{figure.p50_iqr_ms:8.2f}"
            f"{figure.p99_ms:8.2f}{figure.p99_iqr_ms:8.2f}{figure.calls_per_second:9.0f}{figure.cpu_ms:8.2f}"
            f"{of.p50_ms / figure.p50_ms:10.2f}x{of.cpu_ms / figure.cpu_ms:10.2f}x"
        )


async def _state_bytes(redis: Redis, run: str, messages: int) -> int:
    async for key in redis.scan_iter(f"{run}:*{run}-{messages}-*", count=1000):
        values: list[bytes] = await redis.hvals(key)
        return sum(map(len, values))
    return 0


async def run(plan: Plan, postgres_url: str, redis_url: str) -> dict[str, Any]:
    """Measure and print; return everything as a JSON document."""
    figures: list[Figure] = []
    async with Bench(postgres_url, redis_url).opened() as bench:
        for fact in bench.facts.values():
            print(textwrap.fill(fact, 100))
        print(
            f"{plan.rounds} rounds of {plan.calls} calls or more, after one that does not count; seed {SEED}"
        )
        print(
            f"upstream: AsyncPostgresSaver, on a pool of {POOL_SIZE} (as Glasspoint's), and on one connection"
        )
        print("times in ms; ratios: how many times as fast, or as frugal, as upstream on the pool")
        for messages in plan.messages:
            contenders = await bench.contenders(messages)
            size = await _state_bytes(bench.redis, bench.run, messages)
            for callers in plan.callers:
                block = await bench.rounds(plan, contenders, messages, callers)
                _print_block(block, contenders[1].name, size)
                figures += block
        facts = bench.facts
    return {
        "facts": facts,
        "plan": asdict(plan),
        "pool_size": POOL_SIZE,
        "seed": SEED,
        "figures": [asdict(f) for f in figures],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: half a minute, rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    with ExitStack() as servers:
        postgres_url = os.environ.get("POSTGRES_URL")
        redis_url = os.environ.get("REDIS_URL")
        if not postgres_url:
            postgres_url = servers.enter_context(EmbeddedPostgres(durable=True)).url
        if not redis_url:
            redis_url = servers.enter_context(EmbeddedRedis()).url
        document = asyncio.run(run(QUICK if arguments.quick else FULL, postgres_url, redis_url))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
