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
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from unittest.mock import patch

import psutil
import psycopg
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.savers import bursts
from glasspoint.savers.bursts import Bursts
from load import CALLERS, among_callers, opened
from realistic import Chat, messages

SEED: Final = 20
AMOUNTS: Final = {"full": (10_000, 100_000), "quick": (500, 5_000), "smoke": (20, 40)}
"""Open bursts of the first half, bursts of the second."""

_FENCES = """
SELECT pg_total_relation_size('glasspoint_fences') AS bytes, (SELECT count(*) FROM glasspoint_fences) AS rows,
       n_dead_tup AS dead, autovacuum_count AS vacuums
FROM pg_stat_user_tables WHERE relname = 'glasspoint_fences'
"""


# ------------------------------------------------------------------ memory


async def _memory(postgres: EmbeddedPostgres, redis: EmbeddedRedis, count: int) -> dict[str, Any]:
    """Measure what open bursts hold."""
    said = messages(10, random.Random(SEED))
    async with opened(postgres.create_database("memory"), redis.url, audit_ratio=0.0) as saver:

        async def one(number: int) -> None:
            await saver.aput(*Chat(f"{number}").next_put(said))

        with patch.object(Bursts, "_look_later", lambda _self, _burst: None):
            await among_callers(one, range(count // 10))  # what the first calls of a process leave for good
            await saver._bursts.end_all()
            tracemalloc.start()
            before = _held()
            await among_callers(one, range(count))
            full, are_open = _held(), len(saver._bursts._open)
            await saver._bursts.end_all()
            ended = _held()
            tracemalloc.stop()
        size = len(saver.serde.dumps_typed(said)[1])
    return {
        "open": are_open,
        "state_bytes": size,
        "bytes_a_burst": (full["traced"] - ended["traced"]) / count,
        "left_bytes_a_burst": (ended["traced"] - before["traced"]) / count,
        "rss_mb": {"before": before["rss_mb"], "open": full["rss_mb"], "ended": ended["rss_mb"]},
    }


def _held() -> dict[str, float]:
    gc.collect()
    return {"traced": tracemalloc.get_traced_memory()[0], "rss_mb": psutil.Process().memory_info().rss / 1e6}


# ------------------------------------------------------------------ fences


async def _fences(postgres: EmbeddedPostgres, redis: EmbeddedRedis, count: int) -> dict[str, Any]:
    """Measure what PostgreSQL pays for fences: puts in bursts of their own, and puts without a burst."""
    registry = CollectorRegistry()
    url = postgres.create_database("fences")
    connecting = psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row)
    with patch.object(bursts, "QUIET_SECONDS", 0.0):
        async with (
            opened(url, redis.url, registry=registry, audit_ratio=0.0) as saver,
            await connecting as conn,
        ):
            without = await _half(saver, conn, count, "node:run")
            with_fences = await _half(saver, conn, count, "")
            await saver._bursts.end_all()
            await saver._bursts._fences.remove()
            ended = registry.get_sample_value(
                "glasspoint_bursts_total", {"saver": "default", "end": "applied"}
            )
            left = await _one(conn, _FENCES)
            started = perf_counter()
            await conn.execute("VACUUM glasspoint_fences")
            vacuum = perf_counter() - started
            after = await _one(conn, _FENCES)
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
        seconds += await among_callers(one, range(part * count // 10, (part + 1) * count // 10))
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
    print(f"{memory['open']:,} open bursts, each with {memory['state_bytes']:,} bytes of messages")
    print(
        f"bytes a burst: {memory['bytes_a_burst']:,.0f}; "
        f"left of an ended one: {memory['left_bytes_a_burst']:,.0f}"
    )
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
