"""A cold start: Redis has lost everything, and everybody comes at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from comparison.bench import Bench, Key, variant
from comparison.calls import Hot
from comparison.counting import statements
from comparison.measuring import Figure, Sample, Slice
from comparison.peers import ON_POSTGRES, OURS


async def cold_start(bench: Bench) -> list[Figure]:
    """Many conversations at once; and one, that many ask for."""
    figures = []
    for conversations, callers in bench.choose(((256, 256), (1, 64)), ((64, 64), (1, 64)), ((4, 4),)):
        hot = {
            name: await Hot.made(saver, f"cold-{conversations}-{i}", 10, conversations)
            for i, (name, saver) in enumerate(bench.savers.items())
            if name in ON_POSTGRES
        }

        async def start(name: str, each: Hot, callers: int = callers) -> Sample:
            if name == OURS:
                await bench.forget()
            with statements() as counted:
                sample = await each.hits(callers, callers)
            return replace(sample, statements=counted.number)

        named = variant(conversations=conversations, callers=callers)
        slices: dict[Key, Slice] = {(name, named): partial(start, name, each) for name, each in hot.items()}
        figures += await bench.measure("cold start", slices, 4.0)
    return figures
