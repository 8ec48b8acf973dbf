"""A run can be had again: the same seed gives the same faults; and no fault runs into the next one."""

from __future__ import annotations

from itertools import pairwise

import pytest

from chaos.faults import CLUSTER_KINDS, KINDS, SENTINEL_KINDS, schedule


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_has_its_turn_within_a_minute_one_at_a_time(seed: int) -> None:
    faults = schedule(seed, 60, 3)
    assert sorted(fault.kind for fault in faults) == sorted(KINDS)
    for earlier, later in pairwise(faults):
        assert earlier.at + earlier.seconds + earlier.down_seconds < later.at
    assert faults[-1].at + faults[-1].seconds < 60


@pytest.mark.parametrize("kinds", [CLUSTER_KINDS, SENTINEL_KINDS])
def test_so_it_is_with_several_redis_servers(kinds: tuple[str, ...]) -> None:
    faults = schedule(1, 180, 3, kinds)
    assert {fault.kind for fault in faults} == set(kinds)
    for earlier, later in pairwise(faults):
        assert earlier.at + earlier.seconds + earlier.down_seconds < later.at


def test_what_else_is_drawn_for_a_fault_is_the_same_each_time() -> None:
    for fault in schedule(1, 60, 3):
        assert fault.dice().random() == fault.dice().random()


def test_a_seed_gives_the_same_faults_again() -> None:
    assert schedule(1, 600, 3) == schedule(1, 600, 3)
    assert schedule(1, 600, 3) != schedule(2, 600, 3)


def test_a_longer_run_has_every_kind_equally_often_give_or_take_one() -> None:
    kinds = [fault.kind for fault in schedule(1, 600, 3)]
    times = {kinds.count(kind) for kind in KINDS}
    assert max(times) - min(times) <= 1
    assert min(times) > 5


def test_a_fault_of_a_line_hits_one_worker_or_all() -> None:
    faults = [fault for seed in range(20) for fault in schedule(seed, 60, 3) if fault.line]
    assert {fault.worker for fault in faults} == {None, 0, 1, 2}
    for fault in faults:
        assert fault.hides == fault.kind.partition(" line")[0]


def test_a_restored_backup_takes_the_time_of_two_other_faults() -> None:
    faults = schedule(1, 60, 3)
    for earlier, later in pairwise(faults):
        slots = 2 if earlier.kind == "postgres restored to an earlier moment" else 1
        assert later.at - earlier.at > 0.9 * slots * 60 / (len(KINDS) + 2)


def test_one_worker_at_a_time_is_killed() -> None:
    faults = [fault for seed in range(40) for fault in schedule(seed, 60, 3) if fault.kind == "worker killed"]
    assert {fault.worker for fault in faults} == {0, 1, 2}
