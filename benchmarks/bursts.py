"""What bursts take: memory of a process while they are open, and what PostgreSQL pays for their fences.

    python benchmarks/bursts.py [--quick | --smoke] [--json FILE]

- Memory: 10,000 conversations are written to once, 10 messages each, and all their bursts are kept open:
  nobody looks here whether a burst has been quiet. Then all are ended. Python's allocations are traced
  (`tracemalloc`), so what is counted is exact, and the process is slower. The entries that Redis follows
  with wait in an open burst, so it holds the new values of its conversation.
- Fences: 100,000 bursts of one put each, in 10,000 conversations, by 16 callers, each burst ended as soon as
  its put is answered. The same number of puts goes into namespaces that are not cached, so they have no
  burst and no fence. WAL is what PostgreSQL says of itself (`pg_current_wal_insert_lsn`), of all that runs
  there; a CHECKPOINT before each half puts both in the same place. The table's size is looked at ten times a
  half. Autovacuum is on, as PostgreSQL has it by default.

Servers: embedded ones, PostgreSQL with fsync off. Seed 20.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psutil
import psycopg
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, bursts, create_telemetry
from glasspoint.bursts import Bursts
from glasspoint.demo.embedded import EmbeddedPostgres, EmbeddedRedis
from realistic import Chat, messages

SEED: Final = 20
CALLERS: Final = 16
AMOUNTS: Final = {"full": (10_000, 100_000), "quick": (500, 5_000), "smoke": (20, 40)}
"""Open bursts of the first half, bursts of the second."""

_FENCES = """
SELECT pg_total_relation_size('glasspoint_fences') AS bytes, (SELECT count(*) FROM glasspoint_fences) AS rows,
       n_dead_tup AS dead, autovacuum_count AS vacuums
FROM pg_stat_user_tables WHERE relname = 'glasspoint_fences'
"""


@asynccontextmanager
async def _opened(
    postgres_url: str, redis_url: str, registry: CollectorRegistry
) -> AsyncIterator[CachedPostgresSaver]:
    saver = await CachedPostgresSaver.create(
        postgres_url,
        redis_url,
        pool_min_size=10,
        pool_max_size=10,
        audit_ratio=0.0,
        telemetry=create_telemetry(registry=registry),
    )
    try:
        yield saver
    finally:
        await saver.close()


async def _among_callers(call: Callable[[int], Awaitable[None]], count: int) -> float:
    """Call with each number below `count`; return how many seconds that took."""

    async def caller(own: range) -> None:
        for number in own:
            await call(number)

    started = perf_counter()
    await asyncio.gather(*(caller(range(first, count, CALLERS)) for first in range(CALLERS)))
    return perf_counter() - started


# ------------------------------------------------------------------ memory


async def _memory(postgres: EmbeddedPostgres, redis: EmbeddedRedis, count: int) -> dict[str, Any]:
    """Measure what open bursts hold."""
    look_later, Bursts._look_later = Bursts._look_later, lambda self, burst: None  # type: ignore[method-assign]
    try:
        async with _opened(postgres.create_database("memory"), redis.url, CollectorRegistry()) as saver:
            said = messages(10, random.Random(SEED))

            async def one(number: int) -> None:
                await saver.aput(*Chat(f"{number}").next_put(said))

            await _among_callers(one, count // 10)  # what the first calls of a process leave for good
            await saver._bursts.end(list(saver._bursts._open))
            tracemalloc.start()
            before = _held()
            await _among_callers(one, count)
            opened, are_open = _held(), len(saver._bursts._open)
            await saver._bursts.end(list(saver._bursts._open))
            ended = _held()
            tracemalloc.stop()
            size = len(saver.serde.dumps_typed(said)[1])
    finally:
        Bursts._look_later = look_later  # type: ignore[method-assign]
    return {
        "open": are_open,
        "state_bytes": size,
        "bytes_a_burst": (opened["traced"] - ended["traced"]) / count,
        "left_bytes_a_burst": (ended["traced"] - before["traced"]) / count,
        "rss_mb": {"before": before["rss_mb"], "open": opened["rss_mb"], "ended": ended["rss_mb"]},
    }


def _held() -> dict[str, float]:
    gc.collect()
    return {"traced": tracemalloc.get_traced_memory()[0], "rss_mb": psutil.Process().memory_info().rss / 1e6}


# ------------------------------------------------------------------ fences


async def _fences(postgres: EmbeddedPostgres, redis: EmbeddedRedis, count: int) -> dict[str, Any]:
    """Measure what PostgreSQL pays for fences: puts in bursts of their own, and puts without a burst."""
    registry = CollectorRegistry()
    quiet, bursts.QUIET_SECONDS = bursts.QUIET_SECONDS, 0.0  # type: ignore[misc]
    url = postgres.create_database("fences")
    try:
        async with (
            _opened(url, redis.url, registry) as saver,
            await psycopg.AsyncConnection.connect(
                url, autocommit=True, row_factory=psycopg.rows.dict_row
            ) as conn,
        ):
            without = await _half(saver, conn, count, "node:run")
            with_fences = await _half(saver, conn, count, "")
            await saver._bursts.end(list(saver._bursts._open))
            await saver._bursts._fences.remove()
            ended = registry.get_sample_value(
                "glasspoint_bursts_total", {"saver": "default", "end": "applied"}
            )
            left = await _one(conn, _FENCES)
            started = perf_counter()
            await conn.execute("VACUUM glasspoint_fences")
            vacuum = perf_counter() - started
            after = await _one(conn, _FENCES)
    finally:
        bursts.QUIET_SECONDS = quiet  # type: ignore[misc]
    return {
        "puts": count,
        "bursts": ended,
        "without": without,
        "with": with_fences,
        "left": left,
        "vacuum_seconds": vacuum,
        "after_vacuum": after,
    }


async def _half(
    saver: CachedPostgresSaver, conn: psycopg.AsyncConnection[dict[str, Any]], count: int, namespace: str
) -> dict[str, Any]:
    said = messages(2, random.Random(SEED))
    chats = [Chat(f"{number}", namespace=namespace) for number in range(max(count // 10, CALLERS))]

    async def one(number: int) -> None:
        await saver.aput(*chats[number % len(chats)].next_put(said))

    await conn.execute("CHECKPOINT")
    start = await _lsn(conn)
    seconds, sizes = 0.0, []
    for part in range(10):
        some = range(part * count // 10, (part + 1) * count // 10)
        seconds += await _among_callers(lambda number, some=some: one(some[number]), len(some))
        sizes.append(await _one(conn, _FENCES))
    return {
        "puts_per_second": count / seconds,
        "wal_bytes_a_put": (await _lsn(conn) - start) / count,
        "most_bytes": max(each["bytes"] for each in sizes),
        "most_rows": max(each["rows"] for each in sizes),
        "most_dead": max(each["dead"] for each in sizes),
        "vacuums": sizes[-1]["vacuums"],
    }


async def _lsn(conn: psycopg.AsyncConnection[dict[str, Any]]) -> int:
    row = await _one(conn, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS lsn")
    return int(row["lsn"])


async def _one(conn: psycopg.AsyncConnection[dict[str, Any]], query: str) -> dict[str, Any]:
    row = await (await conn.execute(query)).fetchone()
    assert row is not None
    return row


# ------------------------------------------------------------------ command line


def show(document: dict[str, Any]) -> None:
    """Print it."""
    memory, fences = document["memory"], document["fences"]
    rss = memory["rss_mb"]
    held, left = memory["bytes_a_burst"], memory["left_bytes_a_burst"]
    print(f"{memory['open']:,} open bursts, each with {memory['state_bytes']:,} bytes of messages")
    print(f"bytes a burst: {held:,.0f}; left of an ended one: {left:,.0f}")
    print(
        f"RSS MB: {rss['before']:.0f} before, {rss['open']:.0f} open, {rss['ended']:.0f} ended, all at once"
    )
    print(f"\n{fences['puts']:,} puts{'':18}{'puts/s':>8}{'WAL/put':>10}{'fences':>12}{'rows':>8}{'dead':>9}")
    for name, what in (("without", "without bursts"), ("with", "bursts of one put")):
        half = fences[name]
        print(
            f"{what:<29}{half['puts_per_second']:>8,.0f}{half['wal_bytes_a_put']:>8,.0f} B"
            f"{half['most_bytes'] / 1e6:>9.2f} MB{half['most_rows']:>8,}{half['most_dead']:>9,}"
        )
    left, after = fences["left"], fences["after_vacuum"]
    print(
        f"{fences['bursts']:,.0f} bursts ended as applied. Autovacuum ran {fences['with']['vacuums']} times. "
        f"Left: {left['rows']} rows, {left['dead']:,} dead.\n"
        f"VACUUM took {fences['vacuum_seconds'] * 1000:.0f} ms and leaves {after['bytes'] / 1e6:.2f} MB"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", dest="amount", action="store_const", const="quick", default="full")
    amount.add_argument("--smoke", dest="amount", action="store_const", const="smoke")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    open_at_once, count = AMOUNTS[arguments.amount]
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        document = {
            "python": sys.version.split()[0],
            "memory": asyncio.run(_memory(postgres, redis, open_at_once)),
        }
        redis.flush()
        document["fences"] = asyncio.run(_fences(postgres, redis, count))
    show(document)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
