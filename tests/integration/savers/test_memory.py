"""A process that serves many conversations is no larger than one that serves few."""

from __future__ import annotations

import asyncio
import gc
import sys
from itertools import pairwise

from states import open_saver
from steps import Thread, settled

PARTS, CONVERSATIONS = 3, 200


def blocks() -> int:
    """What Python's own allocator has given away: exact, where resident memory is noise."""
    gc.collect()
    return sys.getallocatedblocks()


async def test_nothing_stays_behind_of_a_conversation(database: str, redis_url: str) -> None:
    async with open_saver(
        database,
        redis_url,
        l1_compression="zstd",
        l1_compression_min_bytes=0,
        sweep_interval_seconds=3600,  # so that none is under way at the moment
    ) as saver:

        async def converse(first: int, last: int) -> None:
            for number in range(first, last):
                thread = Thread(f"a thread's name, of which no other object is a part: {number}")
                await thread.put(saver)
                await thread.put_writes(saver, "pending")
                assert await saver.aget_tuple(thread.config)

        async def converse_among(callers: int, first: int, last: int) -> None:
            share = (last - first) // callers
            await asyncio.gather(
                *(converse(first + i * share, first + (i + 1) * share) for i in range(callers))
            )

        await converse_among(4, 0, 80)  # caches of types, statements, connections
        sizes = [blocks()]
        for part in range(PARTS):
            start = 80 + part * CONVERSATIONS
            await converse_among(4, start, start + CONVERSATIONS)
            await settled(saver)  # until then, bursts and their fences are remembered
            await (
                saver._parts.sweeper.round()
            )  # until then, what was written since the last one is remembered
            sizes.append(blocks())
        # A name that is kept is a block at least, in each part; anything else comes and goes.
        assert min(after - before for before, after in pairwise(sizes)) < CONVERSATIONS / 2, sizes
