"""Single calls: hits, misses, puts, pending writes, and the first turn of a new thread.

A burst is all writes of one saver to one thread with less than about 50 ms between them. Writes are measured
in two variants. `FIRST`: each call in a thread that has not been written for a while. `FURTHER`: calls in a
thread that was written just before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count, cycle, islice
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from redis.asyncio import Redis

from comparison.bench import Bench, Key, variant
from comparison.conversations import Conversation
from comparison.floors import ReadFloor, WriteFloor
from comparison.measuring import SETTLE_SECONDS, Call, Figure, Sample, Slice, clocked, clocked_apart
from comparison.peers import FLOOR, MEMORY, OURS, POOL, Peers, Saver
from glasspoint import CachedPostgresSaver

FIRST: Final = "first of a burst"
FURTHER: Final = "in a burst"
BURST: Final = 8
"""How many calls of a burst are measured where there is one caller."""


class Hot:
    """A contender's conversations, written once, so that there is something to read."""

    def __init__(self, saver: Saver, conversations: list[Conversation]) -> None:
        self.saver = saver
        self.conversations = conversations
        self._in_turn = cycle(conversations)

    @classmethod
    async def made(cls, saver: Saver, prefix: str, messages: int, threads: int) -> Hot:
        dice = random.Random(messages)  # the same texts for all
        conversations = [Conversation(saver, f"{prefix}-{i:02}", messages, dice) for i in range(threads)]
        hot = cls(saver, conversations)
        await hot.puts(threads, 8)
        return hot

    async def hits(self, calls: int, callers: int) -> Sample:
        """Read the newest checkpoints."""
        return await self._sample(self._hit, calls, callers)

    async def puts(self, calls: int, callers: int) -> Sample:
        """Store the next ones; each is the first of a burst, if there are no more calls than threads."""
        return await self._sample(self._put, calls, callers)

    async def writes(self, calls: int, callers: int) -> Sample:
        """Store pending writes, of checkpoints that have none yet and whose own bursts are over."""
        await self.puts(min(calls, len(self.conversations)), 8)
        if isinstance(self.saver, CachedPostgresSaver):
            await asyncio.sleep(SETTLE_SECONDS)
        return await self._sample(self._writes, calls, callers)

    async def puts_in_bursts(self, calls: int, callers: int) -> Sample:
        """Store the next checkpoints of threads that were written just before."""
        return await self._bursts(self._put, calls, callers)

    async def writes_in_bursts(self, calls: int, callers: int) -> Sample:
        """Store pending writes of checkpoints that were written just before."""
        return await self._bursts(self._writes, calls, callers)

    async def _bursts(self, one: Callable[[Conversation], Call], calls: int, callers: int) -> Sample:
        """A thread at a time for each caller. The first write there, a put, is not measured."""
        if callers > 1:
            conversations = list(islice(self._in_turn, callers))
            first = [self._put(each) for each in conversations]
            shares = [[one(each) for _ in range(calls // callers)] for each in conversations]
            return await clocked(shares, before=first)
        before: list[Call | None] = []
        measured: list[Call] = []
        for conversation in islice(self._in_turn, max(1, calls // BURST)):
            before += [self._put(conversation), *[None] * (BURST - 1)]
            measured += [one(conversation) for _ in range(BURST)]
        return await clocked_apart(measured, before)

    async def _sample(self, one: Callable[[Conversation], Call], calls: int, callers: int) -> Sample:
        number = len(self.conversations)
        prepared = [one(self.conversations[i % number]) for i in range(calls)]
        return await clocked([prepared[i::callers] for i in range(callers)])

    def _hit(self, conversation: Conversation) -> Call:
        return partial(read, self.saver, conversation.config, conversation.newest)

    def _put(self, conversation: Conversation) -> Call:
        put = conversation.next_put()
        conversation.after(put)
        return partial(self.saver.aput, *put)

    def _writes(self, conversation: Conversation) -> Call:
        return partial(self.saver.aput_writes, *conversation.next_writes())


async def read(saver: Saver, config: RunnableConfig, newest: RunnableConfig) -> CheckpointTuple:
    """Read, and check that it is the newest checkpoint that was read."""
    found = await saver.aget_tuple(config)
    if found is None or found.config != newest:
        raise SystemExit(f"{type(saver).__name__} read an older state: not measured.")
    return found


def only_hits(peers: Peers, result: str, calls: int, measure: Slice) -> Slice:
    """The same, and an error if Glasspoint's reads had another result, three times in a row.

    On a busy machine a burst may end late, and a read that meets it is no hit.
    """

    async def measured() -> Sample:
        for _ in range(3):
            before = peers.reads().get(result, 0)
            sample = await measure()
            counted = peers.reads().get(result, 0) - before
            if counted == calls:
                return sample
            await asyncio.sleep(SETTLE_SECONDS)
        raise SystemExit(f"{calls} reads were to be a {result} each, but {counted} were: not measured.")

    return measured


async def floor_of(bench: Bench, redis: Redis, hot: Hot, name: str) -> ReadFloor:
    """The states of Glasspoint's conversations, as the floor reads them."""
    floor = ReadFloor(redis, hot.saver.serde)
    for conversation in hot.conversations:  # so that all are there
        await read(hot.saver, conversation.config, conversation.newest)
    lengths = await entry_bytes(redis, f"{bench.run}-*-l1:*")
    for i, conversation in enumerate(hot.conversations):
        found = await read(hot.saver, conversation.config, conversation.newest)
        length = lengths[found.config["configurable"]["checkpoint_id"]]
        await floor.store(f"{bench.run}-floor:{name}:{i}", found, length)
    return floor


async def entry_bytes(redis: Redis, pattern: str) -> dict[str, int]:
    """How many bytes the names and values of an entry have, by the id of its checkpoint."""
    lengths = {}
    async for key in redis.scan_iter(pattern, count=10_000, _type="HASH"):
        fields: dict[Any, Any] = await redis.hgetall(key)
        lengths[fields.get(b"id", b"").decode()] = sum(
            len(name) + len(value) for name, value in fields.items()
        )
    return lengths


async def hit(bench: Bench) -> list[Figure]:
    """Read the newest checkpoint of a hot thread."""
    figures = []
    sizes = bench.choose(
        ((10, 192, 8.0), (100, 64, 8.0), (1000, 8, 6.0)), ((10, 128, 8.0), (100, 64, 8.0)), ((10, 4, 0.0),)
    )
    for messages, calls, seconds in sizes:
        threads = min(bench.threads, calls)
        hot = {
            name: await Hot.made(saver, f"hit-{messages}-{i}", messages, threads)
            for i, (name, saver) in enumerate(bench.savers.items())
        }
        floor = await floor_of(bench, bench.redis, hot[OURS], f"{messages}")
        for callers in bench.choose((1, 64), (1, 64), (1, 4)):
            each = calls if callers == 1 else max(calls, callers)
            slices: dict[Key, Slice] = {}
            named = variant(messages=messages, callers=callers)
            for name, contender in hot.items():
                slices[name, named] = partial(contender.hits, each, callers)
            slices[OURS, named] = only_hits(bench.peers, "hit", each, slices[OURS, named])
            slices[FLOOR, named] = partial(floor.sample, each, callers)
            figures += await bench.measure("hit", slices, seconds)
    return figures


async def miss(bench: Bench) -> list[Figure]:
    """Read a thread that Redis does not have; the answer is stored there."""
    hot = {
        name: await Hot.made(saver, f"miss-{i}", 10, bench.threads)
        for i, (name, saver) in enumerate(bench.savers.items())
        if name != MEMORY
    }
    figures = []
    for callers in bench.choose((1, 16), (1, 16), (1, 4)):
        calls = bench.threads

        async def forget_and_read(callers: int = callers, calls: int = calls) -> Sample:
            await bench.forget()
            return await hot[OURS].hits(calls, callers)

        named = variant(messages=10, callers=callers)
        slices: dict[Key, Slice] = {
            (name, named): partial(contender.hits, calls, callers) for name, contender in hot.items()
        }
        slices[OURS, named] = only_hits(bench.peers, "miss", calls, forget_and_read)
        figures += await bench.measure("miss", slices, 5.0)
    return figures


async def put(bench: Bench) -> list[Figure]:
    """Store a checkpoint: one value of ten messages is new."""

    def rows(conversations: Sequence[Conversation], calls: int) -> list[Any]:
        puts = []
        for i in range(calls):
            conversation = conversations[i % len(conversations)]
            puts.append(conversation.next_put())
            conversation.after(puts[-1])
        return puts

    async def floor(found: WriteFloor, conversations: list[Conversation], calls: int, callers: int) -> Sample:
        return await found.puts(rows(conversations, calls), callers)

    return await _writing(bench, "put", {FIRST: Hot.puts, FURTHER: Hot.puts_in_bursts}, floor)


async def put_writes(bench: Bench) -> list[Figure]:
    """Store what a task wrote: two pending writes."""

    async def floor(found: WriteFloor, conversations: list[Conversation], calls: int, callers: int) -> Sample:
        writes = [conversations[i % len(conversations)].next_writes() for i in range(calls)]
        return await found.writes(writes, callers)

    return await _writing(bench, "put_writes", {FIRST: Hot.writes, FURTHER: Hot.writes_in_bursts}, floor)


async def _writing(
    bench: Bench,
    workload: str,
    measures: dict[str, Callable[[Hot, int, int], Awaitable[Sample]]],
    measure_floor: Callable[[WriteFloor, list[Conversation], int, int], Awaitable[Sample]],
) -> list[Figure]:
    # By callers: how many calls a slice has, the first of a burst and in a burst.
    sizes: dict[int, tuple[int, int]] = bench.choose(
        {1: (64, 32), 16: (64, 128), 64: (192, 192)},
        {1: (32, 16), 16: (64, 64), 64: (64, 64)},
        {1: (4, 8), 4: (4, 8)},
    )
    threads = max(first for first, _ in sizes.values())  # one call in each is the first of a burst
    hot = {
        name: await Hot.made(saver, f"{workload}-{i}", 10, threads)
        for i, (name, saver) in enumerate(bench.savers.items())
    }
    # The floor's rows are those of a conversation that upstream has begun.
    of_floor = (await Hot.made(bench.peers[POOL], f"{workload}-floor", 10, threads)).conversations
    found = WriteFloor(bench.peers.pool, bench.peers[OURS].serde)
    figures = []
    for callers, numbers in sizes.items():
        slices: dict[Key, Slice] = {}
        for calls, (burst, measure) in zip(numbers, measures.items(), strict=True):
            named = variant(messages=10, callers=callers, burst=burst)
            for name, contender in hot.items():
                slices[name, named] = partial(measure, contender, calls, callers)
            slices[FLOOR, named] = partial(measure_floor, found, of_floor, calls, callers)
        figures += await bench.measure(workload, slices, bench.choose(8.0, 5.0, 0.0), writes=True)
    return figures


async def first_turn(bench: Bench) -> list[Figure]:
    """A new thread: read nothing, then put, put_writes and put."""
    numbers = count()
    dice = random.Random(10)

    async def turn(saver: Saver, conversation: Conversation) -> None:
        if await saver.aget_tuple(conversation.config) is not None:
            raise SystemExit("A new thread was there already: not measured.")
        for last in (False, True):
            put = conversation.next_put()
            conversation.newest = await saver.aput(*put)
            if not last:
                await saver.aput_writes(*conversation.next_writes())

    async def turns(saver: Saver, calls: int, callers: int) -> Sample:
        made = [Conversation(saver, f"first-{next(numbers)}", 10, dice) for _ in range(calls)]
        prepared = [partial(turn, saver, conversation) for conversation in made]
        return await clocked([prepared[i::callers] for i in range(callers)])

    figures = []
    for callers in bench.choose((1, 16), (1, 16), (1, 4)):
        named = variant(callers=callers)
        calls = bench.choose(32, 16, callers)
        slices: dict[Key, Slice] = {
            (name, named): partial(turns, saver, calls, callers) for name, saver in bench.savers.items()
        }
        figures += await bench.measure("first turn", slices, 4.0, writes=True)
    return figures
