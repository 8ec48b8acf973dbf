"""What the workloads share: the servers, the contenders, how much is measured."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from redis.asyncio import Redis

from comparison.counting import with_redis
from comparison.measuring import SETTLE_SECONDS, Figure, Slice, interleaved, settled
from comparison.peers import ALL, OURS, QUICK, QUICK_TURN, Peers, Saver, peers
from comparison.servers import Databases, own_databases

Amount = Literal["full", "quick", "smoke"]

Key = tuple[str, tuple[tuple[str, Any], ...]]
"""A contender, and what sets its variant apart."""


@dataclass
class Bench:
    """Everything that a workload works with.

    Attributes:
        amount: How much is measured: seven minutes in all, less than one, or next to nothing.
        dice: Decide the order of everything.
        databases: Hold nothing but what is measured.
        peers: All contenders on them.
        redis: A plain client.
        run: What all keys in Redis begin with.
    """

    amount: Amount
    dice: random.Random
    postgres_url: str
    redis_url: str
    databases: Databases
    peers: Peers
    redis: Redis
    run: str
    provider: TracerProvider
    notes: list[str] = field(default_factory=list)
    _groups: int = 0

    def choose(self, full: Any, quick: Any, smoke: Any) -> Any:
        """One of three, by how much is measured."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.amount]

    @property
    def savers(self) -> dict[str, Saver]:
        """Who is measured, where a workload does not say otherwise."""
        names = self.choose(ALL, QUICK, ALL)
        return {name: saver for name, saver in self.peers.savers.items() if name in names}

    @property
    def threads(self) -> int:
        """How many conversations a contender has, where a workload does not say otherwise."""
        return int(self.choose(64, 64, 4))

    async def measure(
        self,
        workload: str,
        slices: Mapping[Key, Slice],
        seconds: float,
        *,
        writes: bool = False,
        counts_redis: bool = False,
    ) -> list[Figure]:
        """Measure slices in the same rounds.

        Args:
            slices: By contender, and what sets its variant apart: see `variant`.
            seconds: How long in the full benchmark.
            writes: Whether the calls write. Then Glasspoint's slices include its work after the last of them.
            counts_redis: Whether steps and bytes of Redis are counted for Glasspoint.
        """

        def whole(key: Key, each: Slice) -> Slice:
            if key[0] != OURS:
                return each
            found = partial(settled, each) if writes else each
            return partial(with_redis, [self.redis], found) if counts_redis else found

        self._groups += 1
        await asyncio.sleep(SETTLE_SECONDS)  # what was written before is no burst any more
        taken = await interleaved(
            {key: whole(key, each) for key, each in slices.items()},
            self.dice,
            seconds=seconds * self.choose(1.0, 0.1, 0.0),
            at_least=self.choose(3, 2, 1),
            warm_up=self.amount != "smoke",
        )
        return [
            Figure(workload, dict(variant), contender, self._groups, samples)
            for (contender, variant), samples in taken.items()
        ]

    @asynccontextmanager
    async def more_peers(
        self, databases: Databases, names: Sequence[str], key_prefix: str
    ) -> AsyncIterator[Peers]:
        """Other contenders, on other databases or by another way."""
        prefix = f"{self.run}-{key_prefix}"
        async with peers(
            databases, self.redis_url, key_prefix=prefix, provider=self.provider, names=names
        ) as opened:
            yield opened

    def more_databases(self, name: str) -> AbstractAsyncContextManager[Databases]:
        """Other databases, for the length of a block."""
        return own_databases(self.postgres_url, f"{self.run}_{name}".replace("-", "_"))

    async def forget(self, pattern: str = "-*-l1:*") -> None:
        """Take Glasspoint's entries out of Redis."""
        keys = [key async for key in self.redis.scan_iter(f"{self.run}{pattern}", count=1000)]
        if keys:
            await self.redis.unlink(*keys)


def variant(**names: Any) -> tuple[tuple[str, Any], ...]:
    """What sets figures of a workload apart."""
    return tuple(names.items())


Workload = Callable[[Bench], Awaitable[list[Figure]]]


@asynccontextmanager
async def opened(
    amount: Amount, seed: int, postgres_url: str, redis_url: str, receiver_url: str
) -> AsyncIterator[Bench]:
    """Open everything, and leave nothing behind on the servers."""
    run = f"bench-{uuid4().hex[:8]}"
    async with AsyncExitStack() as stack:
        provider = _one_in_a_hundred(stack, receiver_url)
        redis = await stack.enter_async_context(Redis.from_url(redis_url))
        databases = await stack.enter_async_context(own_databases(postgres_url, run.replace("-", "_")))
        stack.push_async_callback(_forget_all, redis, run)
        found = await stack.enter_async_context(
            peers(
                databases,
                redis_url,
                key_prefix=f"{run}-main",
                provider=provider,
                names=QUICK_TURN if amount == "quick" else ALL,
            )
        )
        yield Bench(
            amount, random.Random(seed), postgres_url, redis_url, databases, found, redis, run, provider
        )


def _one_in_a_hundred(stack: AsyncExitStack, receiver_url: str) -> TracerProvider:
    """As an application has it that sends one trace in a hundred."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.01)), shutdown_on_exit=False)
    stack.callback(provider.shutdown)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{receiver_url}/v1/traces")))
    return provider


async def _forget_all(redis: Redis, run: str) -> None:
    keys = [key async for key in redis.scan_iter(f"{run}*", count=1000)]
    for i in range(0, len(keys), 1000):
        await redis.unlink(*keys[i : i + 1000])
