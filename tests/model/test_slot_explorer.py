"""While the slot of a scope moves between two masters of a real cluster, a read shows what it must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import dice
from model.explorer import FAULTS, Counterexample, explore
from model.moving import CALLED_OFF, MOVING
from model.mutations import Mutation, mutated
from model.rules_of_slots import RULES_OF_SLOTS
from model.terms import Scenario
from model.two_masters import TwoMasters, two_masters

# `make explore` draws more schedules; there are too many to go through all.
SAMPLE = 1_000 if dice.EXPLORING else 12
SEED = int(dice.SEED) if dice.EXPLORING else 20261128

# Of one Redis, or of two.
FAULTS_OF_A_CLUSTER = ("promote", *(kind for kind in FAULTS if kind not in ("restart", "failover")))

pytestmark = pytest.mark.dice


@pytest.fixture(scope="module")
def masters() -> Iterator[TwoMasters]:
    with two_masters() as running:
        yield running


@pytest.mark.parametrize("scenario", MOVING.values(), ids=MOVING)
def test_a_slot_that_moves_breaks_no_promise(scenario: Scenario, masters: TwoMasters) -> None:
    report = explore(scenario, masters, at_most=SAMPLE, seed=SEED)
    assert report.states > 5 * SAMPLE
    assert not report.excused


@pytest.mark.parametrize("scenario", MOVING.values(), ids=MOVING)
def test_a_fault_while_a_slot_moves_breaks_no_promise(scenario: Scenario, masters: TwoMasters) -> None:
    """Among them the promotion of a replica that lacks writes. Only after that, a process may be behind: see
    `slot_world`."""
    report = explore(scenario, masters, faults=FAULTS_OF_A_CLUSTER, at_most=SAMPLE, seed=SEED)
    assert report.faults.total() > SAMPLE / 4
    assert report.faults["promote"]
    assert report.excused < report.reads / 10


@pytest.mark.parametrize("mutation", RULES_OF_SLOTS, ids=lambda mutation: mutation.rule)
def test_without_a_rule_of_clusters_a_counterexample_is_found(
    mutation: Mutation, masters: TwoMasters
) -> None:
    scenario = (MOVING | CALLED_OFF)[mutation.scenario]
    with mutated(mutation), pytest.raises(Counterexample, match=mutation.finds):
        explore(scenario, masters, faults=mutation.faults, start=mutation.start)


@pytest.mark.parametrize("scenario", CALLED_OFF.values(), ids=CALLED_OFF)
@pytest.mark.parametrize("faults", [(), FAULTS_OF_A_CLUSTER], ids=["no fault", "a fault"])
def test_a_key_that_comes_back_after_its_slot_has_stayed_breaks_no_promise(
    scenario: Scenario, faults: tuple[str, ...], masters: TwoMasters
) -> None:
    """Only a process that has not looked at the slot's owner since may be behind: see `slot_world`."""
    report = explore(scenario, masters, faults=faults, at_most=SAMPLE, seed=SEED)
    assert report.states > 5 * SAMPLE
    assert report.excused < report.reads * 3 / 4
