"""A fallback chain forgets nothing while real processes and real servers are killed in every tier; and if it
did, the checker would see it."""

from __future__ import annotations

import io
import os
import random
import sys

import pytest
from rich.console import Console

import dice
from chaos.chain import ChainOutcome, ChainSettings, run_chain
from chaos.chain_report import print_chain_report

pytestmark = pytest.mark.chaos

RUNS_AT_MOST = 8
"""Not every break shows in every short run, but each one shows in most of them."""


def report(outcome: ChainOutcome) -> str:
    text = io.StringIO()
    print_chain_report(Console(file=text, width=110, highlight=False), outcome)
    return text.getvalue()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fallbacks", "tiers"), [("redis", {"redis"}), ("redis,memory", {"redis", "memory"})]
)
async def test_half_a_minute_of_outages_forgets_nothing(
    fallbacks: str, tiers: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or dice.SEED)
    outcome = await run_chain(ChainSettings(seed, seconds=16.0, fallbacks=fallbacks))
    said = report(outcome)
    with capsys.disabled():
        sys.stdout.write(f"\n{said}")
    assert outcome.good, said
    # Nothing found in nothing done says nothing.
    acknowledged = [each for each in outcome.attempts if each.is_acknowledged]
    assert {each.tier for each in acknowledged} & {"cached", *tiers} == {"cached", *tiers}
    assert {each.did for each in acknowledged} >= {"said", "resumed"}
    assert min(outcome.verdict.checked[what] for what in ("reads", "runs", "checkpoints")) > 100
    assert {"postgres started", "worker closed"} <= outcome.faults.keys()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sabotage", "found"),
    [
        ("never set aside", {"torn"}),
        # Half a minute each: only where time does not matter (`make explore`).
        *(
            [("drops some", {"lost"}), ("never goes on", {"torn"}), ("gives up", {"unexpected"})]
            if dice.EXPLORING
            else []
        ),
    ],
)
async def test_what_is_broken_on_purpose_is_found(sabotage: str, found: set[str]) -> None:
    seeds = random.Random(f"{dice.SEED} {sabotage}")
    seen: set[str] = set()
    for _ in range(RUNS_AT_MOST):
        seed = seeds.randrange(10**6)
        outcome = await run_chain(ChainSettings(seed, seconds=15.0, settle_seconds=10.0, sabotage=sabotage))
        seen |= {violation.what for violation in outcome.verdict.violations}
        if any("not everything was drained" in each for each in outcome.unexpected):
            seen.add("unexpected")
        if found <= seen:
            return
    pytest.fail(f"{sabotage}: {seen} was found, not {found}\n{report(outcome)}")
