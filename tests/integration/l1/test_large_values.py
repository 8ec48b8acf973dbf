"""A state that takes longer to send to Redis than a step may: the cache goes without it, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from glasspoint.telemetry import create_telemetry
from states import open_saver
from steps import Thread, until

LARGE = "x" * 3_000_000
THREADS = 4  # more than the failures in a row that open the breaker


class Narrow:
    """A way to Redis on which a connection takes so many bytes, and then no more. It closes none."""

    def __init__(self, url: str, *, most_bytes: int) -> None:
        parts = urlsplit(url)
        self._there = parts.hostname, parts.port
        self._most_bytes = most_bytes
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, to_redis = await asyncio.open_connection(*self._there)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, to_redis, most_bytes=self._most_bytes))
                group.create_task(_pump(there, writer))
        except* (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            to_redis.close()


async def _pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, most_bytes: int | None = None
) -> None:
    sent = 0
    while data := await source.read(65536):
        sent += len(data)
        if most_bytes is not None and sent > most_bytes:
            await asyncio.Event().wait()
        sink.write(data)
        await sink.drain()
    sink.close()


def value_of(registry: CollectorRegistry, name: str) -> float:
    """The sum of a metric's samples."""
    samples: Iterable[float] = (
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == f"glasspoint_{name}"
    )
    return sum(samples)


def hits_of(registry: CollectorRegistry) -> float:
    labels = {"saver": "default", "result": "hit"}
    return registry.get_sample_value("glasspoint_l1_reads_total", labels) or 0.0


async def test_a_state_that_takes_too_long_to_send_costs_no_other_thread_the_cache(
    database: str, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    threads, small = [Thread(f"large {n}") for n in range(THREADS)], Thread("small")
    async with (
        Narrow(redis_url, most_bytes=1_500_000) as url,
        open_saver(database, url, telemetry=create_telemetry(registry=registry)) as saver,
    ):
        await small.put(saver)
        await asyncio.gather(*(thread.put(saver, text=LARGE) for thread in threads))
        await until(lambda: value_of(registry, "bursts_total") == THREADS + 1)
        for thread in threads:
            found = await saver.aget_tuple(thread.config)
            assert found is not None
            assert found.checkpoint["channel_values"]["text"] == LARGE
        assert value_of(registry, "l1_breaker_transitions_total") == 0
        hits = hits_of(registry)
        assert await small.turn(saver) == 1
        assert hits_of(registry) == hits + 1
    said = [record.getMessage() for record in caplog.records if record.name.startswith("glasspoint")]
    assert not [line for line in said if "does not answer" in line]
    (line,) = [line for line in said if "is not cached" in line]
    assert line.startswith("Thread 'large ")
    assert "its 3.0 MB were not sent within 2.5 s. PostgreSQL has them, and answers." in line
    assert "l1_timeout_seconds (CHECKPOINT_L1_TIMEOUT" in line
