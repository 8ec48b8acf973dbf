"""How far it scales, on paper and by simulation: docs/scaling.md.

    python benchmarks/scaling.py [--seed N] [--turns N] [--only TABLE] [--measure [--json FILE]]

What a pod, a Redis and a PostgreSQL carry, from measured figures: docs/performance.json (`make bench
WHAT=page`), docs/cost.md, and docs/scaling.json, which --measure renews in a minute, on embedded servers:
what calls and turns take of the servers. The rest is arithmetic and a queueing simulation:
`capacity/simulation.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from capacity.figures import Figures
from capacity.page import ON_PAPER, SEED, SIMULATED, TURNS, tables

NAMES = (*ON_PAPER, *SIMULATED)
DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """The command line."""
    arguments = _arguments()
    if arguments.measure:
        from capacity.servers_share import measured

        arguments.json.write_text(_lines(asyncio.run(measured())), "utf-8")
        return
    made = tables(Figures.read(DOCS), arguments.seed, arguments.turns)
    for name in arguments.only or made:
        print(f"{name}: {made[name].__doc__}\n\n{made[name]()}", flush=True)
    print(f"seed {arguments.seed}")


def _lines(document: dict[str, Any]) -> str:
    """As JSON, a figure a line."""
    parts = []
    for name, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED, help="of the simulation")
    parser.add_argument("--turns", type=int, default=TURNS, help="of each simulated run")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="TABLE", help=", ".join(NAMES))
    parser.add_argument("--measure", action="store_true", help="what calls and turns take of the servers")
    parser.add_argument("--json", type=Path, default=DOCS / "scaling.json", help="where --measure writes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
