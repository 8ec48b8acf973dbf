"""All workloads, in the order in which they are measured."""

from __future__ import annotations

from typing import Final

from comparison import calls, cold, history, network, turns
from comparison.bench import Workload

WORKLOADS: Final[dict[str, Workload]] = {
    "hit": calls.hit,
    "miss": calls.miss,
    "put": calls.put,
    "put_writes": calls.put_writes,
    "first turn": calls.first_turn,
    "turn": turns.turn,
    "cold start": cold.cold_start,
    "history": history.history,
    "network": network.network,
}
