"""What a scrape of /metrics takes while PostgreSQL is up, frozen and down, and with all workers' files.

    python benchmarks/scrape.py [--scrapes N] [--callers N]

The pages come from a server thread over a loopback connection each, as Prometheus asks for them; what is
printed is the median, the 99th percentile and the slowest, and the processor time that the process took for
each (the client's share included), which other work on the machine does not change as much. With --callers,
so many conversations go on meanwhile in the same process, and share its one interpreter with the scrape.
Frozen is SIGSTOP for all of PostgreSQL's processes: it accepts connections and answers nothing. The issue
asks for less than 10 ms with PostgreSQL down.

With PROMETHEUS_MULTIPROC_DIR set to an empty directory, the same is measured in multiprocess mode.

Servers: embedded ones, on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import statistics
import urllib.request
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import perf_counter, process_time

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError
from glasspoint.telemetry.http import TelemetryServer, serve_telemetry

PAUSE_SECONDS = 0.02
ROW = "{:<12} {:>10} {:>10} {:>10} {:>10} {:>9}"


async def converse(saver: CachedPostgresSaver, caller: int) -> None:
    """Put and read, again and again; an outage is somebody else's affair."""
    for number in count():
        config: RunnableConfig = {"configurable": {"thread_id": f"{caller}", "checkpoint_ns": ""}}
        with suppress(GlasspointError):
            await saver.aput(config, empty_checkpoint(), {"source": "loop", "step": number}, {})
            await saver.aget_tuple(config)
        await asyncio.sleep(PAUSE_SECONDS)


def scrape(server: TelemetryServer, times: int) -> list[float]:
    """Scrape so many times, and return the seconds of each."""
    seconds = []
    for _ in range(times):
        started = perf_counter()
        with urllib.request.urlopen(f"{server.url}/metrics") as page:
            page.read()
        seconds.append(perf_counter() - started)
    return sorted(seconds)


async def report(state: str, server: TelemetryServer, times: int) -> None:
    """Scrape from a thread, and print a row in milliseconds."""
    before = process_time()
    seconds = await asyncio.to_thread(scrape, server, times)
    cpu = (process_time() - before) / times
    figures = (statistics.median(seconds), seconds[int(0.99 * len(seconds))], seconds[-1], cpu)
    print(ROW.format(state, *(f"{1000 * each:.2f}" for each in figures), len(seconds)), flush=True)


def processes_of(pid: int) -> list[int]:
    """A process and its children, as Linux tells them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return [pid, *map(int, children)]


async def measure(postgres: EmbeddedPostgres, redis: EmbeddedRedis, times: int, callers: int) -> None:
    """Print a row for each state of PostgreSQL."""
    registry = CollectorRegistry()
    saver = await CachedPostgresSaver.create(
        postgres.create_database("scrape"),
        redis.url,
        telemetry=create_telemetry(registry=registry),
        pool_timeout_seconds=2,
        write_deadline_seconds=2,
    )
    for number in range(3):  # so that there is something of everything
        with suppress(TimeoutError):
            await asyncio.wait_for(converse(saver, number), 5 * PAUSE_SECONDS)
    talking = [asyncio.create_task(converse(saver, number)) for number in range(callers)]
    with serve_telemetry(0, registry=registry) as server:
        print(ROW.format("PostgreSQL", "median ms", "p99 ms", "max ms", "CPU ms", "scrapes"))
        await report("(warm-up)", server, times)
        await report("up", server, times)
        frozen = processes_of(postgres.pid)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        await report("frozen", server, times)
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        await report("up again", server, times)
        postgres.stop()
        await report("down", server, times)
    for caller in talking:
        caller.cancel()
    await asyncio.gather(*talking, return_exceptions=True)
    await saver.close()


def main() -> None:
    """Measure, on servers of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scrapes", type=int, default=300, help="in each state")
    parser.add_argument("--callers", type=int, default=0, help="conversations meanwhile")
    options = parser.parse_args()
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # PostgreSQL goes on purpose
        asyncio.run(measure(postgres, redis, options.scrapes, options.callers))


if __name__ == "__main__":
    main()
