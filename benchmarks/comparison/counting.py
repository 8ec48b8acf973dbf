"""What is counted beside time: statements that PostgreSQL is sent, steps and bytes of Redis."""

from __future__ import annotations

from collections.abc import Iterator
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


async def with_redis(redis: Redis, measure: Slice) -> Sample:
    """Measure a slice, and count what it takes of Redis: of all clients, so nobody else may be at work."""
    before = await _wire_bytes(redis)
    idle = await _wire_bytes(redis)  # to ask costs something, too
    with steps() as counted:
        sample = await measure()
    moved = await _wire_bytes(redis) - idle - (idle - before)
    return replace(
        sample,
        redis_steps=counted.number / sample.calls,
        redis_kb=moved / 1000 / sample.calls,
    )


async def _wire_bytes(redis: Redis) -> int:
    info = await redis.info("stats")
    return int(info["total_net_input_bytes"]) + int(info["total_net_output_bytes"])
