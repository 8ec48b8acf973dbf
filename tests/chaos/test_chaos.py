"""Nothing is lost and nothing is stale while real processes and real servers are killed; and if something
were, the checker would see it."""

from __future__ import annotations

import io
import os
import random
import sys
from dataclasses import replace

import pytest
from rich.console import Console

import dice
from chaos.faults import KINDS
from chaos.report import print_report
from chaos.run import Outcome, Settings, run

pytestmark = pytest.mark.chaos

RUNS_AT_MOST = 20
"""On a busy machine, three runs in eight did not show the break that shows least: 20 in a row never will."""


@pytest.fixture
def seed(capsys: pytest.CaptureFixture[str]) -> int:
    """The run's seed: the same in every run, unless CHAOS_SEED or EXPLORE says otherwise."""
    chosen = int(os.environ.get("CHAOS_SEED") or dice.SEED)
    with capsys.disabled():
        sys.stdout.write(f"\nCHAOS_SEED={chosen}\n")
    return chosen


def report(outcome: Outcome) -> str:
    text = io.StringIO()
    print_report(Console(file=text, width=80, highlight=False), outcome)
    return text.getvalue()


@pytest.mark.timeout(300)
async def test_half_a_minute_of_chaos_lose_nothing_and_show_nothing_old(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(seed, seconds=32.0)  # in `make explore`, as busy as `make chaos`
    outcome = await run(settings if dice.EXPLORING else replace(settings, pauses=8.0, conversations=6))
    said = report(outcome)
    with capsys.disabled():
        sys.stdout.write(said)
    assert outcome.good, said
    assert {each.fault.kind for each in outcome.happened} == set(KINDS)
    # A slow machine does less in the same time, but nothing found in nothing done says nothing.
    assert min(outcome.verdict.checked.values()) > 10, outcome.verdict.checked
    assert sum(each.hit for each in outcome.done) > 10
    turns = [each for each in outcome.done if each.kind == "turn" and each.ok]
    assert any(len(each.answered) > 3 for each in turns)
    assert {each.database for each in turns} == {"a", "b"}
    assert sum(each.worker.startswith("foreign") for each in turns) > 2


@pytest.mark.skipif(not dice.EXPLORING, reason="takes minutes of processor time: make explore runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("redis", ["cluster", "sentinel"])
async def test_two_minutes_of_chaos_on_several_redis_servers(redis: str, seed: int) -> None:
    outcome = await run(Settings(seed, seconds=120.0, redis=redis))
    assert outcome.good, report(outcome)
    assert {each.fault.kind for each in outcome.happened} == set(outcome.settings.kinds)
    assert min(outcome.verdict.checked.values()) > 10, outcome.verdict.checked
    assert sum(each.hit for each in outcome.done) > 10


@pytest.mark.skipif(not dice.EXPLORING, reason="takes minutes of processor time: make explore runs it")
@pytest.mark.timeout(900)
async def test_an_ignored_reign_in_a_cluster_is_found() -> None:
    kinds = "master restarted, old snapshot", "shard away"
    await find(Settings(0, seconds=36.0, redis="cluster", kinds=kinds, sabotage="no reign"), {"stale"})


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sabotage", "fault", "found"),
    [
        ("no epoch", "redis killed, old snapshot", {"stale"}),
        ("no l2", "redis flushed", {"lost", "phantom"}),
        # Only where time does not matter (`make explore`): the checker's own tests know these, too.
        *(
            [
                ("no identity", "redis flushed", {"crossed"}),
                ("no commit", "redis flushed", {"stale", "differs"}),
                ("no answer", "postgres backends terminated", {"lost"}),
            ]
            if dice.EXPLORING
            else []
        ),
    ],
)
async def test_what_is_broken_on_purpose_is_found(sabotage: str, fault: str, found: set[str]) -> None:
    """Not every break shows in every short run, but each one shows in most of them."""
    await find(Settings(0, seconds=5.0, kinds=(fault,), sabotage=sabotage), found)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sabotage", "fault", "found"),
    [
        ("no triggers", "redis line: refuse", {"stale"}),
        *([("no look", "postgres restored to an earlier moment", {"phantom"})] if dice.EXPLORING else []),
    ],
)
async def test_what_only_shows_after_the_window_is_found_too(
    sabotage: str, fault: str, found: set[str]
) -> None:
    settings = Settings(0, seconds=5.0, kinds=(fault,), sabotage=sabotage)
    await find(replace(settings, bound_seconds=1.5, quiet_seconds=5.0, turns=(1, 3)), found)


async def find(settings: Settings, found: set[str]) -> None:
    """Run until all of it was found."""
    seeds = random.Random(f"{dice.SEED} {settings.sabotage}")
    seen: set[str] = set()
    for _ in range(RUNS_AT_MOST):
        seed = seeds.randrange(10**6)
        outcome = await run(replace(settings, seed=seed, workers=2, conversations=6))
        seen |= {violation.what for violation in outcome.verdict.violations}
        if found <= seen:
            return
    pytest.fail(f"{settings.sabotage}: {seen} was found, not {found}\n{report(outcome)}")
