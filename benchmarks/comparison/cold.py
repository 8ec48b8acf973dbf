"""A cold start: Redis has lost everything, and everybody comes at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg

from comparison.bench import Bench, Key, variant
from comparison.calls import Hot
from comparison.measuring import Figure, Sample, Slice
from comparison.peers import ON_POSTGRES, OURS


class Counted:
    """How many statements psycopg was given."""

    statements = 0


@contextmanager
def counting() -> Iterator[Counted]:
    """Count every statement of this process, by whatever saver."""
    counted, execute = Counted(), psycopg.AsyncCursor.execute

    async def counting_execute(self: psycopg.AsyncCursor[Any], *args: Any, **named: Any) -> Any:
        counted.statements += 1
        return await execute(self, *args, **named)

    psycopg.AsyncCursor.execute = counting_execute  # type: ignore[method-assign]
    try:
        yield counted
    finally:
        psycopg.AsyncCursor.execute = execute  # type: ignore[method-assign]


async def cold_start(bench: Bench) -> list[Figure]:
    """Many conversations at once; and one, that many ask for."""
    figures = []
    for conversations, callers in bench.choose(((256, 256), (1, 64)), ((64, 64), (1, 64)), ((4, 4),)):
        hot = {
            name: await Hot.made(bench.peers[name], f"cold-{conversations}-{i}", 10, conversations)
            for i, name in enumerate(bench.contenders)
            if name in ON_POSTGRES
        }

        async def start(name: str, each: Hot, callers: int = callers) -> Sample:
            if name == OURS:
                await bench.forget()
            with counting() as counted:
                sample = await each.hits(callers, callers)
            return replace(sample, statements=counted.statements)

        named = variant(conversations=conversations, callers=callers)
        slices: dict[Key, Slice] = {(name, named): partial(start, name, each) for name, each in hot.items()}
        figures += await bench.measure("cold start", slices, 4.0)
    return figures
