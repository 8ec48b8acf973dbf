"""What a Redis Cluster costs: hits and turns on one Redis, on a cluster of one master, and of three.

    python benchmarks/cluster.py [--quick | --smoke] [--seed N] [--json FILE]

Each contender has servers of Redis, a database and a saver of its own, all in one process and on one
PostgreSQL. They alternate: a round has a slice of each, in an order that is shuffled anew. A figure is the
median of the rounds, with the quartiles in brackets; `x` is the median of the ratios within the rounds, to
one Redis. "cpu" is processor time of this process, "Redis" that of all servers of Redis that the contender
has, by their own count.

All of that shares the cores of one machine. So the figures tell what the router, more connections and more
pipelines cost. They do not tell how far a cluster scales: for that, each master needs a core of its own.

An open saver that is not called is measured first, each alone: what it takes in a second, for its sweep and
for looking at the masters.

Servers: embedded ones, PostgreSQL with fsync off, so that its disk does not hide what Redis costs. There are
no replicas.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import textwrap
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, Final

from prometheus_client import CollectorRegistry
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from rich.box import SIMPLE_HEAD
from rich.table import Table

from comparison.calls import Hot
from comparison.counting import with_redis
from comparison.masters import CONTENDERS, idle_rows, rows
from comparison.measuring import SETTLE_SECONDS, Figure, Sample, Slice, interleaved, settled
from comparison.report import printed
from comparison.servers import facts_of, own_database, redis_cluster
from comparison.turns import CONVERSATIONS, Durability, Turns
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from load import opened

MESSAGES: Final = 10
THREADS: Final = 64


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        idle_seconds: How long each saver is left alone.
        rounds: Of each of `sizes`.
        hits: Callers and calls of a slice.
        turns: Conversations at once, turns of a slice, durability.
    """

    idle_seconds: float
    rounds: int
    hits: tuple[tuple[int, int], ...]
    turns: tuple[tuple[int, int, Durability], ...]


FULL: Final = Plan(4.0, 12, ((1, 96), (64, 512)), ((1, 6, "sync"), (16, 32, "sync"), (16, 64, "exit")))
PLANS: Final = {
    "full": FULL,
    "quick": Plan(1.0, 4, FULL.hits, FULL.turns),
    "smoke": Plan(0.1, 1, ((1, 4), (8, 16)), ((2, 2, "sync"),)),
}


@dataclass
class Contender:
    """One saver, with its servers of Redis.

    Attributes:
        servers: A client for each of them.
    """

    saver: CachedPostgresSaver
    servers: Sequence[Redis]
    registry: CollectorRegistry
    turns: Turns
    hot: Hot = field(init=False)

    async def idle(self, seconds: float) -> Sample:
        """Leave the saver alone. A "call" is a second of that."""
        calls = max(1, round(seconds))

        async def measured() -> Sample:
            started_cpu = process_time()
            await asyncio.sleep(seconds)
            return Sample(calls, 1000.0, 1000.0, 1.0, 1000 * (process_time() - started_cpu) / calls)

        return await with_redis(self.servers, measured)

    async def hits(self, calls: int, callers: int) -> Sample:
        """Read the newest checkpoints, and check that Redis had them."""
        before = self._hits()
        sample = await with_redis(self.servers, partial(self.hot.hits, calls, callers))
        if self._hits() - before != calls:
            raise SystemExit("Not all reads were hits: not measured.")
        return sample

    async def turn(self, turns: int, conversations: int, durability: Durability) -> Sample:
        """Run whole turns. What the saver does after them is part of them."""
        run: Slice = partial(self.turns.sample, turns, conversations, durability)
        return await with_redis(self.servers, partial(settled, run))

    def _hits(self) -> float:
        labels = {"saver": "default", "result": "hit"}
        return self.registry.get_sample_value("glasspoint_l1_reads_total", labels) or 0.0


@contextmanager
def started() -> Iterator[tuple[EmbeddedPostgres, dict[str, list[EmbeddedRedis]]]]:
    """Start all servers: one PostgreSQL, and those of Redis for each contender."""
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres())
        yield (
            postgres,
            {
                name: stack.enter_context(redis_cluster(masters))
                if masters
                else [stack.enter_context(EmbeddedRedis())]
                for name, masters in CONTENDERS.items()
            },
        )


@asynccontextmanager
async def contender(
    name: str, postgres_url: str, servers: Sequence[EmbeddedRedis]
) -> AsyncIterator[Contender]:
    """Open one."""
    masters = CONTENDERS[name]
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    registry = CollectorRegistry()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(own_database(postgres_url, f"masters_{masters}"))
        clients = [await stack.enter_async_context(Redis.from_url(server.url)) for server in servers]
        saver = await stack.enter_async_context(
            opened(
                database,
                f"redis+cluster://{addresses}" if masters else servers[0].url,
                registry=registry,
                audit_ratio=0.0,
                # A machine that is busy for a moment is no outage.
                l1_timeout_seconds=5.0,
                write_deadline_seconds=30.0,
            )
        )
        # In the trace of each turn, as an application with telemetry has it.
        telemetry = create_telemetry(registry=CollectorRegistry())
        yield Contender(saver, clients, registry, Turns(saver, "turns", telemetry))


async def run(plan: Plan, seed: int) -> dict[str, Any]:
    """Measure and print; return everything as a JSON document."""
    began, load, dice = time.monotonic(), os.getloadavg()[0], random.Random(seed)
    with started() as (postgres, servers):
        idle = {}
        for name, of_redis in servers.items():
            async with contender(name, postgres.url, of_redis) as alone:
                await alone.idle(0.1)
                idle[name] = await alone.idle(plan.idle_seconds)
        async with AsyncExitStack() as stack:
            found = {
                name: await stack.enter_async_context(contender(name, postgres.url, of_redis))
                for name, of_redis in servers.items()
            }
            figures = await _figures(found, plan, dice)
            facts = await _facts(stack, postgres.url, next(iter(found.values())).servers[0])
    date = time.strftime("%-d %B %Y")
    facts["run"] = (
        f"{date}; {time.monotonic() - began:.0f} s; load average {load:.1f} before, "
        f"{os.getloadavg()[0]:.1f} after; seed {seed}"
    )
    return {
        "facts": facts,
        "idle": [Figure("idle", {}, name, 0, [sample]).as_json() for name, sample in idle.items()],
        "figures": [each.as_json() for each in figures],
    }


async def _facts(stack: AsyncExitStack, postgres_url: str, redis: Redis) -> dict[str, str]:
    kwargs = {"row_factory": dict_row}
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        postgres_url, min_size=1, max_size=1, kwargs=kwargs, open=False
    )
    await stack.enter_async_context(pool)
    return await facts_of(pool, redis)


async def _figures(found: dict[str, Contender], plan: Plan, dice: random.Random) -> list[Figure]:
    figures: list[Figure] = []

    async def measure(workload: str, slices: dict[str, Slice], **variant: Any) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        taken = await interleaved(
            slices, dice, seconds=0.0, at_least=plan.rounds, warm_up=plan is not PLANS["smoke"]
        )
        group = len(figures)
        figures.extend(Figure(workload, variant, name, group, samples) for name, samples in taken.items())

    for each in found.values():
        each.hot = await Hot.made(each.saver, "hits", MESSAGES, THREADS)
    await asyncio.sleep(SETTLE_SECONDS)
    for each in found.values():
        await each.hot.hits(THREADS, 8)  # entries that a master did not get yet
    for callers, calls in plan.hits:
        slices: dict[str, Slice] = {name: partial(each.hits, calls, callers) for name, each in found.items()}
        await measure("hit", slices, callers=callers)
    for conversations, turns, durability in plan.turns:
        for each in found.values():
            await each.turns.sample(min(turns * 4, CONVERSATIONS), conversations, durability)
        slices = {name: partial(each.turn, turns, conversations, durability) for name, each in found.items()}
        await measure("turn", slices, conversations=conversations, durability=durability)
    return figures


def show(document: dict[str, Any]) -> None:
    """Print it."""
    for line in document["facts"].values():
        print(textwrap.fill(line, 80))
    for head, lines in (rows(document), idle_rows(document)):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
        for line in lines:
            table.add_row(*line)
        print(printed(table))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", dest="amount", action="store_const", const="quick", default="full")
    amount.add_argument("--smoke", dest="amount", action="store_const", const="smoke")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    document = asyncio.run(run(PLANS[arguments.amount], arguments.seed))
    show(document)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
