"""What a network between the application and PostgreSQL changes, where production lives. Redis stays near."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import psycopg

from comparison.bench import Bench, Key, variant
from comparison.calls import Hot
from comparison.delayed import delayed
from comparison.measuring import Figure, Slice
from comparison.peers import ON_POSTGRES
from comparison.turns import slices_of, turns_of


async def network(bench: Bench) -> list[Figure]:
    """Puts and whole turns, with a round trip to PostgreSQL that takes 1 ms or 5 ms longer."""
    figures = []
    names = [name for name in bench.savers if name in ON_POSTGRES]
    for delay_ms in bench.choose((1, 5), (5,), (5,)):
        with ExitStack() as line:
            port = line.enter_context(delayed(bench.databases.ours, delay_ms))
            databases = bench.databases.at("127.0.0.1", port)
            near, far = [await _round_trip_ms(each) for each in (bench.databases.ours, databases.ours)]
            if far < delay_ms and bench.amount != "smoke":  # whose figures count for nothing
                raise SystemExit(f"A line that adds {delay_ms} ms was passed in {far:.2f} ms: not measured.")
            bench.notes.append(
                f"A round trip to PostgreSQL takes {near:.2f} ms; where {delay_ms} ms were added, "
                f"{far:.2f} ms."
            )
            async with bench.more_peers(databases, names, f"delay-{delay_ms}") as peers:
                hot = {
                    name: await Hot.made(saver, f"network-{delay_ms}-{i}", 10, bench.threads)
                    for i, (name, saver) in enumerate(peers.savers.items())
                }
                for callers, calls in bench.choose(((1, 16), (16, 64)), ((16, 32),), ((4, 4),)):
                    named = variant(delay=f"{delay_ms} ms", callers=callers)
                    slices: dict[Key, Slice] = {
                        (name, named): partial(each.puts, calls, callers) for name, each in hot.items()
                    }
                    figures += await bench.measure("put, network", slices, 3.0, writes=True)
                turns = turns_of(peers, f"network-{delay_ms}")
                for conversations, number in bench.choose(((1, 2), (16, 16)), ((1, 2), (16, 16)), ((2, 2),)):
                    more: dict[str, Any] = {"delay": f"{delay_ms} ms"}
                    found = slices_of(turns, number, conversations, "sync", **more)
                    figures += await bench.measure("turn, network", found, 5.0, writes=True)
    return figures


async def _round_trip_ms(conninfo: str) -> float:
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as conn:
        seconds = []
        for _ in range(20):
            started = perf_counter()
            await conn.execute("SELECT 1")
            seconds.append(perf_counter() - started)
    return 1000 * median(seconds)
