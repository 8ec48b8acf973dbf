"""What the live page costs a hit: part of `benchmarks/telemetry.py`.

One saver makes hits without a pause, in phases of some seconds, in random order:

- metrics: there is no live page.
- served: `serve_telemetry(live=True)`, and no page is open.
- open: the same, and a page reads its events, in another process.

The phases of a round are compared with "metrics" of the same round. What the hub's thread does is in the
figures, because the calls run beside it: wall time for what callers wait, processor time for what the whole
process uses.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import clock_gettime, perf_counter, process_time, pthread_getcpuclockid, sleep
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from comparison.conversations import Conversation
from comparison.measuring import Spread
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.telemetry.http import serve_telemetry
from glasspoint.telemetry.live.hubs import Hub

PHASES: Final = ("metrics", "served", "open")
BUDGETS: Final = {"served": 0, "open": 1}
"""Per cent of a hit."""

MESSAGES: Final = 10
CONVERSATIONS: Final = 16

READER: Final = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as page:
    page.sendall(b"GET /live/events HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    while page.recv(65536):
        print(flush=True)
"""


@dataclass(frozen=True)
class Phase:
    """What a hit took in one phase, in milliseconds: the median, the mean, and processor time.

    Attributes:
        threads: What the live page's own threads used, in per cent of a core. It is in `cpu`, too.
    """

    median: float
    mean: float
    cpu: float
    threads: float


@dataclass(frozen=True)
class LiveFigure:
    """One line of the table; `…_over` is per cent over "metrics" of the same round."""

    phase: str
    median_ms: Spread
    median_over: Spread
    mean_over: Spread
    cpu_over: Spread
    threads: Spread
    budget: int | None


async def measure_live(
    postgres_url: str, redis_url: str, *, rounds: int, seconds: float, seed: int
) -> list[LiveFigure]:
    """Measure, and return a figure for each phase."""
    dice, registry = random.Random(seed), CollectorRegistry()
    Hub.linger_seconds = 0.0  # the phase after it has no hub
    saver = await CachedPostgresSaver.create(
        postgres_url,
        redis_url,
        telemetry=create_telemetry(registry=registry),
        audit_ratio=0.0,
        l1_timeout_seconds=5.0,
    )
    try:
        conversations = [
            Conversation(saver, f"live-{i:02}", MESSAGES, random.Random(i)) for i in range(CONVERSATIONS)
        ]
        for each in conversations:
            put = each.next_put()
            await saver.aput(*put)
            named = {**each.config["configurable"], "checkpoint_id": put[1]["id"]}
            each.newest = {"configurable": named}
        await _hits(saver, conversations, 1.0)
        taken: dict[str, list[Phase]] = {name: [] for name in PHASES}
        order = list(PHASES)
        for _ in range(rounds):
            dice.shuffle(order)
            for name in order:
                with _in_phase(name, registry):
                    taken[name].append(await _hits(saver, conversations, seconds))
    finally:
        await saver.close()
    pairs = {name: list(zip(found, taken["metrics"], strict=True)) for name, found in taken.items()}
    return [
        LiveFigure(
            name,
            Spread.of([each.median for each in taken[name]]),
            Spread.of([_over(each.median, base.median) for each, base in pairs[name]]),
            Spread.of([_over(each.mean, base.mean) for each, base in pairs[name]]),
            Spread.of([_over(each.cpu, base.cpu) for each, base in pairs[name]]),
            Spread.of([each.threads for each in taken[name]]),
            BUDGETS.get(name),
        )
        for name in PHASES
    ]


async def _hits(saver: CachedPostgresSaver, conversations: list[Conversation], seconds: float) -> Phase:
    walls: list[float] = []
    number, started_threads = 0, _cpu_of_threads()
    started_cpu, started = process_time(), perf_counter()
    until = started + seconds
    while (before := perf_counter()) < until:
        await saver.aget_tuple(conversations[number % len(conversations)].config)
        walls.append(perf_counter() - before)
        number += 1
    cpu, took = process_time() - started_cpu, perf_counter() - started
    threads = 100 * (_cpu_of_threads() - started_threads) / took
    return Phase(1000 * statistics.median(walls), 1000 * statistics.mean(walls), 1000 * cpu / number, threads)


def _cpu_of_threads() -> float:
    found = [each.ident for each in threading.enumerate() if each.name.startswith("glasspoint-")]
    return sum(clock_gettime(pthread_getcpuclockid(each)) for each in found if each is not None)


@contextmanager
def _in_phase(name: str, registry: CollectorRegistry) -> Iterator[None]:
    with ExitStack() as stack:
        if name != "metrics":
            server = stack.enter_context(serve_telemetry(0, registry=registry, live=True))
            if name == "open":
                stack.enter_context(_reader(server.url))
        yield
    while any(each.name == "glasspoint-live" for each in threading.enumerate()):
        sleep(0.01)


@contextmanager
def _reader(url: str) -> Iterator[None]:
    """A page in another process, until the end. It is open when its first event has come."""
    command = [sys.executable, "-c", READER, str(urlsplit(url).port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as page:
        assert page.stdout is not None
        page.stdout.readline()
        draining = threading.Thread(target=page.stdout.read, daemon=True)
        draining.start()
        try:
            yield
        finally:
            page.terminate()
            draining.join()


def _over(value: float, base: float) -> float:
    return 100 * (value / base - 1)
