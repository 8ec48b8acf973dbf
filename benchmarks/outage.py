"""What an outage of Redis costs a process: its memory and its callers' time, operation by operation.

    python benchmarks/outage.py [--operations N] [--callers N] [--frozen]

One process reads and writes 256 conversations from 16 callers (a put, a put_writes and a read in turn) while
its Redis is killed, or, with --frozen, stopped by SIGSTOP: it accepts connections and answers nothing.
Nothing may pile up meanwhile. After a warm-up with Redis, and after each tenth of the run, it prints the
process's resident memory, the number of its asyncio tasks, the rows of the journal and the calls per second.
At the end Redis comes back, and it prints how long it takes until one conversation is read from it again; of
a frozen one, the writes that it finds in its sockets keep readers away until the deadline of their intents.

Servers: embedded ones, PostgreSQL with fsync off (the figures are about this process, not about a disk).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
from time import perf_counter
from typing import Any

import psutil
import psycopg
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from realistic import Chat, messages

CONVERSATIONS = 256
SAID = messages(2, random.Random(20))
ROW = "{:>10}  {:>8}  {:>7}  {:>6}  {:>8}  {:>8}"


async def operation(saver: CachedPostgresSaver, chat: Chat, number: int) -> None:
    """A put, a put_writes or a read, in turn."""
    if number % 3 == 0:
        await saver.aput(*chat.next_put(SAID))
    elif number % 3 == 1:
        await saver.aput_writes(chat.newest, [("messages", "a write")], f"task {chat.version}")
    else:
        assert await saver.aget_tuple(chat.config)


async def run(saver: CachedPostgresSaver, conversations: list[Chat], calls: int, callers: int) -> float:
    """Let callers, who have conversations of their own, make so many calls; return the seconds."""

    async def caller(own: list[Chat], count: int) -> None:
        for number in range(count):
            await operation(saver, own[number // 3 % len(own)], number)

    share = calls // callers // 3 * 3  # each ends with a read, and begins with a put
    started = perf_counter()
    await asyncio.gather(*(caller(conversations[i::callers], share) for i in range(callers)))
    return perf_counter() - started


async def measure(postgres: EmbeddedPostgres, redis: EmbeddedRedis, options: argparse.Namespace) -> None:
    """Print a row for each tenth."""
    url = postgres.create_database("outage")
    registry = CollectorRegistry()
    saver = await CachedPostgresSaver.create(
        url, redis.url, telemetry=create_telemetry(registry=registry), pool_max_size=10
    )
    conversations = [Chat(f"{number}") for number in range(CONVERSATIONS)]
    print(ROW.format("operations", "Redis", "RSS MB", "tasks", "journal", "calls/s"))

    async def report(done: int, state: str, rate: float) -> None:
        gc.collect()
        tasks = len(asyncio.all_tasks())
        print(
            ROW.format(
                done,
                state,
                f"{psutil.Process().memory_info().rss / 1e6:.1f}",
                tasks,
                await _journal(url),
                f"{rate:.0f}",
            ),
            flush=True,
        )

    tenth = options.operations // 10
    seconds = await run(saver, conversations, tenth, options.callers)
    await report(tenth, "up", tenth / seconds)
    redis.freeze() if options.frozen else redis.kill()
    for part in range(1, 11):
        seconds = await run(saver, conversations, tenth, options.callers)
        await report(tenth * (part + 1), "frozen" if options.frozen else "down", tenth / seconds)
    redis.thaw() if options.frozen else redis.start()
    started = perf_counter()
    while not _hits(registry, await saver.aget_tuple(conversations[0].config)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(
        f"Redis is back: the first hit after {perf_counter() - started:.1f} s; journal {await _journal(url)}"
    )
    await saver.close()


_seen: list[float] = [0.0]


def _hits(registry: CollectorRegistry, _: Any) -> bool:
    hits = (
        registry.get_sample_value("glasspoint_l1_reads_total", {"saver": "default", "result": "hit"}) or 0.0
    )
    before, _seen[0] = _seen[0] or hits, hits
    return hits > before


async def _journal(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("SELECT count(*) FROM glasspoint_l1_journal")).fetchone()
    assert row is not None
    return int(row[0])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=200_000, help="while Redis is away")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--frozen", action="store_true", help="SIGSTOP instead of SIGKILL")
    return parser.parse_args()


def main() -> None:
    """Start servers, measure, stop them."""
    options = _options()
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        asyncio.run(measure(postgres, redis, options))


if __name__ == "__main__":
    main()
