"""The measured figures: docs/performance.json, docs/scaling.json, docs/cost.md."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from comparison.measuring import Metric
from comparison.turns import Durability

Kind = Literal["hit", "miss", "put", "put_writes"]

MANY: Final = 16
"""How many callers there were when "many" was measured."""

TURN: Final[dict[str, tuple[Kind, ...]]] = {
    # The root's read, its input, agent and tools; the subgraph, whose namespace is new, so that its read is a
    # miss; the answer. In the order of LangGraph's calls.
    "sync": (
        *("hit", "put", "put_writes", "put", "put_writes", "put", "put_writes", "put"),
        *("miss", "put", "put_writes", "put", "put_writes", "put"),
        *("put_writes", "put"),
    ),
    "exit": ("hit", "miss", "put"),
}
"""The calls of a turn of `comparison/turns.py`, by durability mode: `test_scaling.py` counts them."""


@dataclass(frozen=True)
class Cost:
    """What a quantity costs alone, and with many callers, who share what does not grow with them."""

    alone: float
    many: float


@dataclass(frozen=True)
class Entry:
    """A conversation's entry in Redis, in bytes."""

    messages: int
    plain: float
    zstd: float


@dataclass(frozen=True)
class Figures:
    """Everything measured, read from a folder."""

    performance: dict[str, Any]
    servers: dict[str, Any]
    entries: tuple[Entry, ...]

    @classmethod
    def read(cls, docs: Path) -> Figures:
        """Read them.

        Raises:
            ValueError: docs/cost.md has no table of entries any more.
        """
        performance, servers = (
            json.loads((docs / name).read_text("utf-8")) for name in ("performance.json", "scaling.json")
        )
        return cls(performance, servers, _entries((docs / "cost.md").read_text("utf-8")))

    def bench(self, workload: str, contender: str, metric: Metric, **variant: Any) -> float:
        """The median of what the rounds of `make bench` have measured."""
        for each in self.performance["figures"]:
            if (each["workload"], each["contender"], each["variant"]) == (workload, contender, variant):
                return median(each["rounds"][metric])
        raise ValueError(f"docs/performance.json has no {workload} {variant} of {contender}")

    def turn(self, contender: str, durability: Durability, conversations: int = MANY) -> dict[str, Any]:
        """What a turn takes of the servers, in so many conversations at once: 1 or `MANY`."""
        wanted = (contender, durability, conversations)
        for each in self.servers["turns"]:
            if (each["contender"], each["durability"], each["conversations"]) == wanted:
                found: dict[str, Any] = each
                return found
        raise ValueError(f"docs/scaling.json has no {durability} turn of {contender}")

    def pod_turn_ms(self, contender: str, durability: Durability) -> Cost:
        """Processor time of a pod for a turn, LangGraph's included."""
        return Cost(
            *(
                self.bench("turn", contender, "cpu_ms", conversations=each, durability=durability)
                for each in (1, MANY)
            )
        )

    def postgres_ms(self, contender: str, kind: Kind) -> float:
        """Processor time of PostgreSQL for one call, alone."""
        for each in self.servers["calls"]:
            if (each["contender"], each["kind"], each["callers"]) == (contender, kind, 1):
                return float(each["postgres_ms"])
        raise ValueError(f"docs/scaling.json has no {kind} of {contender}")


def _entries(page: str) -> tuple[Entry, ...]:
    """The rows `| messages | state | entry | with zstd |` of docs/cost.md."""
    rows = re.findall(r"^\| ([\d,]+) \| [\d.]+ kB \| ([\d.]+) kB \| ([\d.]+) kB \|$", page, re.MULTILINE)
    if not rows:
        raise ValueError("docs/cost.md has no table of entries, by messages")
    return tuple(
        Entry(int(messages.replace(",", "")), 1000 * float(plain), 1000 * float(zstd))
        for messages, plain, zstd in rows
    )
