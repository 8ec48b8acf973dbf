"""What an open live page costs a hit: part of `benchmarks/telemetry.py`.

A page is open, and another process reads its events. One saver makes hits: half of them as they are while no
page is open, without the observer of the live page, and half with it. The two alternate call by call, in
random order, because a busy machine changes from one moment to the next.

What the page's own threads use is the second part of the price, in per cent of a core. While no page is open,
there are none.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import clock_gettime, perf_counter, process_time, pthread_getcpuclockid
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry

from comparison.conversations import Conversation
from comparison.measuring import Spread
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.telemetry.http import serve_telemetry
from glasspoint.telemetry.live.watch import Watch

BUDGET: Final = 1
"""Per cent of a hit, and of a core."""

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
class LiveFigure:
    """What an open page costs.

    Attributes:
        hit_ms: The median hit without a page, in milliseconds.
        call_over, cpu_over: Per cent over that with a page, of the median wall time and processor time,
            in the same round.
        threads: What the page's own threads used, in per cent of a core.
        hits_a_second: In the meantime.
    """

    hit_ms: Spread
    call_over: Spread
    cpu_over: Spread
    threads: float
    hits_a_second: float
    budget: int = BUDGET


async def measure_live(postgres_url: str, redis_url: str, *, rounds: int, hits: int, seed: int) -> LiveFigure:
    """Measure rounds of so many hits of each kind."""
    dice, registry = random.Random(seed), CollectorRegistry()
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
            await saver.aput(*each.next_put())
        with serve_telemetry(0, registry=registry, live=True) as server, _reader(server.url):
            bench = _Bench(saver, conversations, registry, dice)
            for _ in range(3):  # until all entries are in Redis
                await bench.round(hits)
            started, started_threads, calls = perf_counter(), _cpu_of_threads(), bench.calls
            measured = [await bench.round(hits) for _ in range(rounds)]
            took = perf_counter() - started
            threads = 100 * (_cpu_of_threads() - started_threads) / took
    finally:
        await saver.close()
    return LiveFigure(
        Spread.of([each.without_ms for each in measured]),
        Spread.of([each.call_over for each in measured]),
        Spread.of([each.cpu_over for each in measured]),
        threads,
        (bench.calls - calls) / took,
    )


@dataclass(frozen=True)
class _Round:
    without_ms: float
    call_over: float
    cpu_over: float


class _Bench:
    """Makes hits, with a page and without one."""

    def __init__(
        self,
        saver: CachedPostgresSaver,
        conversations: list[Conversation],
        registry: CollectorRegistry,
        dice: random.Random,
    ) -> None:
        self.calls = 0
        self._saver, self._conversations, self._dice = saver, conversations, dice
        self._watch = Watch.of(registry)
        make = self._watch._make  # that of the open page
        assert make is not None
        self._make = make

    async def round(self, hits: int) -> _Round:
        """Make so many hits of each kind."""
        walls: dict[bool, list[float]] = {False: [], True: []}
        cpus: dict[bool, list[float]] = {False: [], True: []}
        for number in range(hits):
            config = self._conversations[number % len(self._conversations)].config
            for is_open in self._dice.sample((False, True), 2):
                if is_open:
                    self._watch.attach(self._make)
                else:
                    self._watch.detach()
                started, started_cpu = perf_counter(), process_time()
                await self._saver.aget_tuple(config)
                ended, ended_cpu = perf_counter(), process_time()
                walls[is_open].append(ended - started)
                cpus[is_open].append(ended_cpu - started_cpu)
                self.calls += 1
        without, with_ = (statistics.median(walls[each]) for each in (False, True))
        # The median here, too: what another thread used meanwhile is in the processor time.
        cpu_without, cpu_with = (statistics.median(cpus[each]) for each in (False, True))
        return _Round(1000 * without, 100 * (with_ / without - 1), 100 * (cpu_with / cpu_without - 1))


def _cpu_of_threads() -> float:
    found = [each.ident for each in threading.enumerate() if each.name.startswith("glasspoint-")]
    return sum(clock_gettime(pthread_getcpuclockid(each)) for each in found if each is not None)


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
