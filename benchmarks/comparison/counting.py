"""What is counted beside time: statements that PostgreSQL is sent, steps and bytes of Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from comparison.measuring import Sample, Slice


class Counted:
    """How many of something were sent."""

    number = 0


@contextmanager
def statements() -> Iterator[Counted]:
    """Count every statement of this process, by whatever saver."""
    counted, execute = Counted(), psycopg.AsyncCursor.execute

    async def counting(self: psycopg.AsyncCursor[Any], *args: Any, **named: Any) -> Any:
        counted.number += 1
        return await execute(self, *args, **named)

    psycopg.AsyncCursor.execute = counting  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]


@contextmanager
def steps() -> Iterator[Counted]:
    """Count every command that this process sends to Redis; what a script calls there is not sent."""
    counted, pack = Counted(), AbstractConnection.pack_command

    def counting(self: AbstractConnection, *args: Any) -> list[bytes]:
        counted.number += 1
        return pack(self, *args)

    AbstractConnection.pack_command = counting  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        AbstractConnection.pack_command = pack  # type: ignore[method-assign]


async def with_redis(servers: Sequence[Redis], measure: Slice) -> Sample:
    """Measure a slice, and count what it takes of Redis: of all clients, so nobody else may be at work.

    Args:
        servers: A client for each server of Redis.
    """
    before = await _taken_of(servers)
    idle = await _taken_of(servers)  # to ask costs something, too
    with steps() as counted:
        sample = await measure()
    taken = [
        after - asked - (asked - first)
        for first, asked, after in zip(before, idle, await _taken_of(servers), strict=True)
    ]
    return replace(
        sample,
        redis_steps=counted.number / sample.calls,
        redis_kb=taken[0] / 1000 / sample.calls,
        redis_ms=1000 * taken[1] / sample.calls,
    )


async def _taken_of(servers: Sequence[Redis]) -> tuple[float, float]:
    """Bytes on the wire so far, and seconds of processor time."""
    wire_bytes, seconds = 0, 0.0
    for server in servers:
        stats, cpu = await server.info("stats"), await server.info("cpu")
        wire_bytes += int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])
        seconds += float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
    return wire_bytes, seconds
