"""All workloads, in the order in which they are measured."""

from __future__ import annotations

from typing import Final

from comparison import calls
from comparison.bench import Workload

WORKLOADS: Final[dict[str, Workload]] = {
    "hit": calls.hit,
    "miss": calls.miss,
    "put": calls.put,
    "put_writes": calls.put_writes,
    "first turn": calls.first_turn,
}
