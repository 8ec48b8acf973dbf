"""A process that serves many conversations is no larger than one that serves few."""

from __future__ import annotations

import asyncio
import gc

from states import open_saver
from steps import Thread, settled, until

MARK = "a mark that no other object of this process has"
CALLERS, CONVERSATIONS = 4, 80


def marked() -> set[str]:
    """Every text and every bytes with the mark that an object of this process refers to: exact, where a
    count of blocks or of bytes depends on what else the interpreter keeps at the moment."""
    gc.collect()
    found = set()
    for container in gc.get_objects():
        for referent in gc.get_referents(container):
            if type(referent) is str and MARK in referent:
                found.add(referent)
            elif type(referent) is bytes and MARK.encode() in referent:
                found.add(repr(referent))
    return found - {MARK, repr(MARK.encode())}


async def test_nothing_stays_behind_of_a_conversation(database: str, redis_url: str) -> None:
    async with open_saver(
        database,
        redis_url,
        l1_compression="zstd",
        l1_compression_min_bytes=0,
        sweep_interval_seconds=3600,  # so that none is under way at the moment
    ) as saver:

        async def converse(caller: int) -> None:
            for number in range(CONVERSATIONS // CALLERS):
                thread = Thread(f"{MARK}: {caller} {number}")
                await thread.put(saver, note=f"{MARK}, a value: {caller} {number}")
                await thread.put_writes(saver, f"{MARK}, a write: {caller} {number}")
                assert await saver.aget_tuple(thread.config)

        await asyncio.gather(*(converse(caller) for caller in range(CALLERS)))
        await settled(saver)  # until then, bursts and their fences are remembered
        assert len(marked()) >= CONVERSATIONS  # what was written since the last sweep: the search finds it
        await saver._parts.sweeper.round()
        # The event loop keeps a timer that was cancelled, and with it its call, until the time has come.
        await until(lambda: not marked())
