"""What pruning costs, and what live puts notice of it.

    python benchmarks/prune.py [--threads N] [--big]

Makes 2,000 conversations of 100 checkpoints each, their ages spread over 60 days, by COPY: 200,000
checkpoints, as many values of a few kB, and some pending writes. Then removes what is older than 30 days
with `aprune_older_than`, while a few callers go on putting checkpoints, with a pause between two. Printed are
rows, bytes, batches and seconds, and how long the live puts took before and during the pruning.
With --big the same checkpoints make one conversation.

On embedded servers (PostgreSQL with fsync on), which are gone afterwards; never on yours.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Final

import psycopg
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from prometheus_client import CollectorRegistry
from psycopg.types.json import Jsonb

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.savers.maintenance import PruneReport

CHECKPOINTS_A_THREAD: Final = 100
SPREAD: Final = timedelta(days=60)
AGE: Final = timedelta(days=30)
CALLERS: Final = 8
PAUSE_SECONDS: Final = 0.02
BEFORE_SECONDS: Final = 10.0
SEED: Final = 20
TEXT: Final = "The checkpoint of a turn is read before its first step and written after every one of them. "
UUID_EPOCH: Final = datetime(1582, 10, 15, tzinfo=UTC)


def id_at(moment: datetime, number: int) -> str:
    """A checkpoint id of that time, as LangGraph makes them."""
    ticks = (moment - UUID_EPOCH) // timedelta(microseconds=1) * 10
    return f"{ticks >> 28:08x}-{ticks >> 12 & 0xFFFF:04x}-6{ticks & 0xFFF:03x}-8000-{number:012x}"


def fill(postgres_url: str, threads: int, checkpoints: int) -> None:
    """Write the conversations, all in one table after another."""
    dice, serde, now = random.Random(SEED), JsonPlusSerializer(), datetime.now(UTC)
    texts = [TEXT * dice.randint(2, 5) for _ in range(50)]
    values = [
        serde.dumps_typed([m for t in dice.sample(texts, 5) for m in (HumanMessage(t), AIMessage(t[::-1]))])
        for _ in range(50)
    ]
    with psycopg.connect(postgres_url) as conn, conn.cursor() as cursor:
        with cursor.copy(
            "COPY checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, "
            "metadata) FROM STDIN"
        ) as copy:
            for thread in range(threads):
                parent = None
                for number, checkpoint_id, moment in _steps(thread, checkpoints, now):
                    version = f"{number:032}.{thread}"
                    document = {
                        "v": 4,
                        "id": checkpoint_id,
                        "ts": moment.isoformat(),
                        "channel_values": {"turns": number},
                        "channel_versions": {
                            "__start__": f"{1:032}.{thread}",
                            "messages": version,
                            "profile": f"{1:032}.{thread}",
                            "turns": version,
                            "branch:to:agent": version,
                        },
                        "versions_seen": {"agent": {"branch:to:agent": version}},
                        "updated_channels": ["messages", "turns"],
                    }
                    metadata = {
                        "source": "loop",
                        "step": number,
                        "parents": {},
                        "run_id": f"run-{number // 5}",
                    }
                    copy.write_row(
                        (f"t{thread:06}", "", checkpoint_id, parent, Jsonb(document), Jsonb(metadata))
                    )
                    parent = checkpoint_id
        with cursor.copy(
            "COPY checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob) FROM STDIN"
        ) as copy:
            for thread in range(threads):
                for number in range(1, checkpoints + 1):
                    type_, blob = dice.choice(values)
                    copy.write_row((f"t{thread:06}", "", "messages", f"{number:032}.{thread}", type_, blob))
                copy.write_row((f"t{thread:06}", "", "profile", f"{1:032}.{thread}", *values[0]))
        with cursor.copy(
            "COPY checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, "
            "blob) FROM STDIN"
        ) as copy:
            for thread in range(threads):
                for number, checkpoint_id, _ in _steps(thread, checkpoints, now):
                    if number % 2:
                        copy.write_row(
                            (
                                f"t{thread:06}",
                                "",
                                checkpoint_id,
                                "task",
                                0,
                                "messages",
                                *serde.dumps_typed(TEXT),
                            )
                        )
        conn.commit()
        conn.autocommit = True
        conn.execute("VACUUM ANALYZE")


def _steps(thread: int, checkpoints: int, now: datetime) -> list[tuple[int, str, datetime]]:
    moments = [now - SPREAD + SPREAD * (number / checkpoints) for number in range(checkpoints)]
    return [(number, id_at(moment, thread), moment) for number, moment in enumerate(moments, start=1)]


@dataclass
class Traffic:
    """Callers that put one checkpoint after the other."""

    saver: CachedPostgresSaver
    seconds: list[float] = field(default_factory=list)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(self._caller(number))

    async def _caller(self, number: int) -> None:
        newest: Any = {"configurable": {"thread_id": f"live-{number}", "checkpoint_ns": ""}}
        messages = [HumanMessage(TEXT * 3), AIMessage(TEXT * 3)] * 4
        step = 0
        while True:
            step += 1
            versions = dict.fromkeys(("messages", "turns"), f"{step:032}.{number}")
            checkpoint: Checkpoint = {
                "v": 4,
                "id": str(uuid6(clock_seq=step)),
                "ts": datetime.now(UTC).isoformat(),
                "channel_values": {"messages": messages, "turns": step},
                "channel_versions": dict(versions),
                "versions_seen": {},
                "updated_channels": None,
            }
            started = perf_counter()
            newest = await self.saver.aput(
                newest, checkpoint, {"source": "loop", "step": step, "parents": {}}, dict(versions)
            )
            self.seconds.append(perf_counter() - started)
            await asyncio.sleep(PAUSE_SECONDS)

    def take(self) -> str:
        """What the puts took since the last time."""
        taken, self.seconds = sorted(1000 * each for each in self.seconds), []
        p99 = taken[len(taken) * 99 // 100]
        return (
            f"{len(taken):7,} puts   median {statistics.median(taken):6.2f} ms   p99 {p99:7.2f} ms   "
            f"max {taken[-1]:7.2f} ms"
        )


async def run(postgres_url: str, redis_url: str, threads: int, checkpoints: int) -> None:
    """Measure and print."""
    registry = CollectorRegistry()
    saver = await CachedPostgresSaver.create(
        postgres_url, redis_url, telemetry=create_telemetry(registry=registry)
    )
    try:
        started = perf_counter()
        await asyncio.to_thread(fill, postgres_url, threads, checkpoints)
        print(
            f"{threads:,} threads of {checkpoints:,} checkpoints, written in {perf_counter() - started:.0f} s"
        )
        traffic = Traffic(saver)
        live = asyncio.create_task(traffic.run())
        await asyncio.sleep(2)  # to get warm
        traffic.take()
        await asyncio.sleep(BEFORE_SECONDS)
        print(f"before:  {traffic.take()}")
        batches: list[float] = []
        last = started = perf_counter()

        def on_batch(report: PruneReport) -> None:
            nonlocal last
            batches.append(perf_counter() - last)
            last = perf_counter()

        report = await saver.aprune_older_than(AGE, on_batch=on_batch)
        seconds = perf_counter() - started
        print(f"during:  {traffic.take()}")
        live.cancel()
        await asyncio.gather(live, return_exceptions=True)
        print(
            f"removed: {report.checkpoints:,} checkpoints, {report.writes:,} writes, "
            f"{report.blobs:,} values, {report.bytes / 1e6:,.0f} MB, of {report.threads:,} threads"
        )
        print(
            f"in {seconds:.1f} s ({report.checkpoints / seconds:,.0f} checkpoints/s), "
            f"{report.batches} batches, "
            f"median {1000 * statistics.median(batches):.0f} ms, longest {1000 * max(batches):.0f} ms"
        )
        started = perf_counter()
        again = await saver.aprune_older_than(AGE)
        print(f"again:   {again.checkpoints} checkpoints, in {perf_counter() - started:.1f} s")
    finally:
        await saver.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2000, help="conversations of 100 checkpoints")
    parser.add_argument("--big", action="store_true", help="all their checkpoints in one conversation")
    arguments = parser.parse_args()
    threads, checkpoints = arguments.threads, CHECKPOINTS_A_THREAD
    if arguments.big:
        threads, checkpoints = 1, threads * checkpoints
    with EmbeddedPostgres(durable=True) as postgres, EmbeddedRedis() as redis:
        print(
            f"{os.cpu_count()} cores; {CALLERS} callers put, "
            f"{PAUSE_SECONDS * 1000:.0f} ms between two; seed {SEED}"
        )
        asyncio.run(run(postgres.url, redis.url, threads, checkpoints))


if __name__ == "__main__":
    main()
