"""A slot that moves between two masters of a cluster, and failovers that lose writes: no hit is stale."""

from __future__ import annotations

import pytest

from .moving_slot import RULES, Bounds, walk


@pytest.mark.parametrize("evictions", [0, 1])
def test_no_schedule_of_a_moving_slot_gives_a_stale_hit(evictions: int) -> None:
    states, path = walk(Bounds(evictions=evictions))
    assert not path
    assert states > 5_000


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_the_cluster_is_needed(rule: str) -> None:
    _, path = walk(Bounds(broken=rule))
    assert path[-1].endswith("STALE")
