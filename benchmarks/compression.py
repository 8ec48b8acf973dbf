"""What compressing the entries saves and costs: a part of `memory.py`.

Two savers on the same servers, `l1_compression` off and zstd, take turns: a put and a hit each, then in the
other order. CPU is this process's, the servers' is not in it; a figure is the median of the rounds, and the
factor the median of each round's own. Levels: what a level of Zstandard makes of the messages alone.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, process_time
from typing import Any, Final

import zstandard
from langchain_core.messages import AnyMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver
from realistic import Chat, messages

LEVELS: Final = (1, 3)
_SEED: Final = 20


@dataclass
class _Side:
    """One of the two savers, its thread, and what its calls took."""

    saver: CachedPostgresSaver
    chat: Chat
    cpu_ms: dict[str, list[float]] = field(default_factory=lambda: {"hit": [], "put": []})
    wall_ms: dict[str, list[float]] = field(default_factory=lambda: {"hit": [], "put": []})

    async def put(self, said: list[AnyMessage]) -> None:
        await self.saver.aput(*self.chat.next_put(said))

    async def hit(self) -> None:
        assert await self.saver.aget_tuple(self.chat.config)

    async def timed(self, operation: str, call: Callable[[], Awaitable[Any]], calls: int) -> None:
        wall, cpu = perf_counter(), process_time()
        for _ in range(calls):
            await call()
        self.wall_ms[operation].append(1000 * (perf_counter() - wall) / calls)
        self.cpu_ms[operation].append(1000 * (process_time() - cpu) / calls)


async def compare(
    savers: dict[str, CachedPostgresSaver], redis: Redis, size: int, rounds: int
) -> dict[str, Any]:
    """Return bytes in Redis and times of both savers, `off` and `zstd`, for a state of so many messages."""
    said = messages(size, random.Random(_SEED))
    sides = {name: _Side(saver, Chat(f"{name} {size}")) for name, saver in savers.items()}
    taken: dict[str, int] = {}
    for name, side in sides.items():
        await redis.flushall()
        for _ in range(3):
            await side.put(said)
            await side.hit()
        (key,) = await redis.keys()
        taken[name] = await redis.memory_usage(key, samples=0)
    await redis.flushall()
    calls = max(1, 100 // size)
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            side = sides[name]
            await side.timed("put", partial(side.put, said), calls)
            await side.timed("hit", side.hit, calls)
    off, zstd = sides["off"], sides["zstd"]
    return {
        "redis_bytes": taken,
        **{
            f"{operation}_{kind}_ms": {
                "off": statistics.median(of_off[operation]),
                "zstd": statistics.median(of_zstd[operation]),
                "factor": statistics.median(
                    z / o for o, z in zip(of_off[operation], of_zstd[operation], strict=True)
                ),
            }
            for kind, of_off, of_zstd in (
                ("cpu", off.cpu_ms, zstd.cpu_ms),
                ("wall", off.wall_ms, zstd.wall_ms),
            )
            for operation in ("hit", "put")
        },
    }


def levels(size: int) -> dict[str, Any]:
    """Return what each level makes of the messages, and how many microseconds it and the serializer take."""
    serde = JsonPlusSerializer()
    said = messages(size, random.Random(_SEED))
    typed = serde.dumps_typed(said)
    repeats = max(1, 1000 // size)
    made: dict[str, Any] = {
        "bytes": len(typed[1]),
        "serialise_us": _microseconds(lambda: serde.dumps_typed(said), repeats),
        "deserialise_us": _microseconds(lambda: serde.loads_typed(typed), repeats),
    }
    decompressor = zstandard.ZstdDecompressor()
    for level in LEVELS:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        frame = compressor.compress(typed[1])
        made[f"level_{level}"] = {
            "ratio": len(typed[1]) / len(frame),
            "pack_us": _microseconds(partial(compressor.compress, typed[1]), repeats),
            "unpack_us": _microseconds(partial(decompressor.decompress, frame), repeats),
        }
    return made


def _microseconds(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(11):
        started = process_time()
        for _ in range(repeats):
            call()
        taken.append(1e6 * (process_time() - started) / repeats)
    return statistics.median(taken)
