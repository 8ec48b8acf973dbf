"""A saver that benchmarks open, and callers that work on it side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, Final

from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry

CALLERS: Final = 16


@asynccontextmanager
async def opened(
    postgres_url: str, redis_url: str, *, registry: CollectorRegistry | None = None, **options: Any
) -> AsyncIterator[CachedPostgresSaver]:
    """Open a saver on ten connections, with metrics.

    Args:
        registry: Where its metrics stand; by default in a registry that nobody reads.
        options: As for `CachedPostgresSaver.create`.
    """
    telemetry = create_telemetry(registry=CollectorRegistry() if registry is None else registry)
    saver = await CachedPostgresSaver.create(
        postgres_url, redis_url, pool_min_size=10, pool_max_size=10, telemetry=telemetry, **options
    )
    try:
        yield saver
    finally:
        await saver.close()


async def among_callers(call: Callable[[int], Awaitable[None]], numbers: range) -> float:
    """Call with each number, by `CALLERS` callers at once; return how many seconds that took.

    No two callers have one conversation: their numbers differ, modulo what the callers number.
    """

    async def caller(own: range) -> None:
        for number in own:
            await call(number)

    started = perf_counter()
    await asyncio.gather(*(caller(numbers[first::CALLERS]) for first in range(CALLERS)))
    return perf_counter() - started
