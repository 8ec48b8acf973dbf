"""Glasspoint beside its peers and beside the limit, on the same servers, in the same rounds: `make bench`.

python benchmarks/compare.py [--quick] [--only WORKLOAD] [--seed N] [--json FILE]

"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import textwrap
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from comparison.bench import Amount, opened
from comparison.measuring import Figure
from comparison.report import table_of, target_table
from comparison.servers import facts_of, servers
from comparison.targets import judged
from comparison.workloads import WORKLOADS
from otlp_receiver import receiving


async def run(
    amount: Amount, names: list[str], seed: int, postgres_url: str, redis_url: str, receiver_url: str
) -> dict[str, Any]:
    """Measure and print; return everything as a JSON document."""
    started, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    async with opened(amount, seed, postgres_url, redis_url, receiver_url) as bench:
        facts = await facts_of(bench.peers.pool, bench.redis)
        for line in (*facts.values(), f"seed {seed}"):
            print(textwrap.fill(line, 80))
        spent = {}
        for name in names:
            began = time.monotonic()
            found = await WORKLOADS[name](bench)
            spent[name] = time.monotonic() - began
            for _, of_workload in groupby(found, key=lambda each: each.workload):
                print(f"\n{table_of(list(of_workload))}", flush=True)
            figures += found
        notes = bench.notes
    print(f"\n{target_table(judged(figures))}\n")
    for note in notes:
        print(textwrap.fill(note, 80))
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    return {
        "facts": facts,
        "amount": amount,
        "seed": seed,
        "seconds": seconds,
        "load": load,
        "spent": spent,
        "notes": notes,
        "figures": [each.as_json() for each in figures],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    amounts = parser.add_mutually_exclusive_group()
    amounts.add_argument(
        "--quick",
        action="store_const",
        const="quick",
        dest="amount",
        help="rough figures in less than a minute",
    )
    amounts.add_argument(
        "--smoke", action="store_const", const="smoke", dest="amount", help="only whether it runs, in seconds"
    )
    parser.add_argument(
        "--only", action="append", choices=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS)
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(2**32), help="of the order of everything"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    parser.set_defaults(amount="full")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith(("OTEL_", "LANGSMITH_", "LANGCHAIN_"))]:
        del os.environ[name]  # everything as it is by default
    with servers() as (postgres_url, redis_url), receiving() as receiver_url:
        document = asyncio.run(
            run(
                arguments.amount,
                arguments.only or list(WORKLOADS),
                arguments.seed,
                postgres_url,
                redis_url,
                receiver_url,
            )
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
