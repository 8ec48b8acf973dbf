"""Glasspoint beside its peers and beside the limit, on the same servers, in the same rounds: `make bench`.

    python benchmarks/compare.py [--quick] [--only WORKLOAD] [--uvloop] [--json FILE] [--plot FILE]

Glasspoint has its telemetry on: metrics, and OpenTelemetry's SDK, which records one trace in a hundred and
sends it to a receiver in another process. Its peers: `AsyncPostgresSaver` on a pool of the same size (the
column "x pool" and most targets are about this one); the same on one connection (whole turns have targets
about it, too); Glasspoint's `RedisSaver`; LangGraph's `InMemorySaver`. With --quick, the pool alone, but for
whole turns. The floor is the limit: see `comparison/floors.py`.

Every workload is measured in rounds, all contenders one after the other in each, in an order that is
shuffled anew; a figure is the median of the rounds, `±` is what lies between their quartiles, per cent of the
median. A ratio is made in each round; its median stands with its quartiles. For one caller the median call
counts, for more of them what they get done. "cpu ms" is what a call costs this process, not the servers. What
Glasspoint does in the background after the last write of a slice counts there, and so do its steps and bytes
in Redis.

Servers: embedded ones (PostgreSQL with fsync on), or those of POSTGRES_URL and REDIS_URL; there the benchmark
works in databases of its own and on keys of its own, and removes both. Glasspoint has a database with its
triggers and tables. Upstream's contenders and the write floor have another one on the same server, as
upstream's `setup()` makes it: they pay for nothing that only Glasspoint needs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import textwrap
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from comparison.bench import Amount, opened
from comparison.measuring import Figure
from comparison.report import table_of, target_table
from comparison.servers import facts_of, servers
from comparison.targets import judged
from comparison.workloads import WORKLOADS
from otlp_receiver import receiving, take_count


async def run(
    amount: Amount, names: Sequence[str], seed: int, postgres_url: str, redis_url: str, receiver_url: str
) -> dict[str, Any]:
    """Measure and print; return everything as a JSON document."""
    started, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    seconds: dict[str, float] = {}
    async with opened(amount, seed, postgres_url, redis_url, receiver_url) as bench:
        facts = await facts_of(bench.peers.pool, bench.redis)
        facts["loop"] = f"event loop: {type(asyncio.get_running_loop()).__module__.partition('.')[0]}"
        for line in (*facts.values(), f"seed {seed}"):
            print(textwrap.fill(line, 80))
        for name in names:
            began, unavailable = time.monotonic(), bench.peers.reads().get("unavailable", 0)
            found = await WORKLOADS[name](bench)
            seconds[name] = time.monotonic() - began
            if unavailable := bench.peers.reads().get("unavailable", 0) - unavailable:
                bench.notes.append(f"{name}: {unavailable:,} of Glasspoint's reads found Redis unavailable.")
            for _, of_workload in groupby(found, key=lambda each: each.workload):
                print(f"\n{table_of(list(of_workload))}", flush=True)
            figures += found
        bench.provider.force_flush()
        notes = [*bench.notes, f"Spans sent: {take_count(receiver_url):,}."]
    print(f"\n{target_table(judged(figures))}\n")
    spent = time.monotonic() - started
    notes.append(
        f"{spent:.0f} s; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after; seed {seed}"
    )
    for note in notes:
        print(textwrap.fill(note, 80))
    return {
        "amount": amount,
        "facts": facts,
        "notes": notes,
        "seconds": {name: round(each, 1) for name, each in seconds.items()},
        "figures": [each.as_json() for each in figures],
    }


def main() -> None:
    """The command line."""
    arguments = _arguments()
    for name in [name for name in os.environ if name.startswith(("OTEL_", "LANGSMITH_", "LANGCHAIN_"))]:
        del os.environ[name]  # everything as it is by default
    new_loop = None
    if arguments.uvloop:
        import uvloop

        new_loop = uvloop.new_event_loop
    with (
        servers(durable=arguments.amount != "smoke") as (postgres_url, redis_url),
        receiving() as receiver_url,
        asyncio.Runner(loop_factory=new_loop) as runner,
    ):
        names = arguments.only or list(WORKLOADS)
        work = run(arguments.amount, names, arguments.seed, postgres_url, redis_url, receiver_url)
        document = runner.run(work)
    if arguments.json:
        # A figure a line.
        *most, figures = (f" {json.dumps(name)}: " + json.dumps(value) for name, value in document.items())
        figures = figures.replace('{"workload"', '\n  {"workload"')
        arguments.json.write_text("{\n" + ",\n".join([*most, figures]) + "\n}\n", "utf-8")
    if arguments.plot:
        from comparison.plot import draw

        draw([Figure.from_json(each) for each in document["figures"]], arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    amounts = parser.add_mutually_exclusive_group()
    for name, says in (
        ("quick", "rough figures, less than a minute"),
        ("smoke", "only whether it runs, in seconds"),
    ):
        amounts.add_argument(f"--{name}", action="store_const", const=name, dest="amount", help=says)
    parser.add_argument(
        "--only",
        action="append",
        choices=list(WORKLOADS),
        metavar="WORKLOAD",
        help=f"this one (and others, if given again): {', '.join(WORKLOADS)}",
    )
    parser.add_argument("--uvloop", action="store_true", help="on uvloop")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(2**32), help="of the order of everything"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them into a PNG")
    parser.set_defaults(amount="full")
    return parser.parse_args()


if __name__ == "__main__":
    main()
