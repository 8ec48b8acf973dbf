"""A fallback chain forgets nothing while real processes and real servers are killed in every tier; and if it
did, the checker would see it.

What random faults find depends on the machine, so they decide nothing in `make test`. There, one outage
happens step by step. `make explore` and `make chaos WHAT=chain` draw.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
from pathlib import Path
from time import monotonic

import pytest
from rich.console import Console

import dice
from chaos.chain import ChainOutcome, ChainSettings, judge_end, run_chain
from chaos.chain_checker import WINDOW_SECONDS, ChainVerdict
from chaos.chain_history import Attempt
from chaos.chain_place import ChainPlace
from chaos.chain_report import print_chain_report
from chaos.chain_servers import run_chain_servers
from steps import until

pytestmark = pytest.mark.chaos

RUNS_AT_MOST = 8
"""Not every break shows in every short run, but each one shows in most of them."""

drawn = pytest.mark.skipif(not dice.EXPLORING, reason="the machine would decide: `make explore` runs it")


def report(outcome: ChainOutcome) -> str:
    text = io.StringIO()
    print_chain_report(Console(file=text, width=110, highlight=False), outcome)
    return text.getvalue()


async def outage(directory: Path, *, sabotage: str = "") -> tuple[list[Attempt], ChainVerdict]:
    """Two turns above, two in a process that starts below and knows nothing of them, and two above again."""
    async with run_chain_servers() as servers:
        above, below = places = [
            ChainPlace(number, servers, directory, seed=1, sabotage=sabotage, fallbacks="redis")
            for number in range(2)
        ]
        living = [asyncio.create_task(above.live())]
        try:
            await above.ready.wait()
            await turns(above, "1", "2?")
            said_at = monotonic()
            await asyncio.to_thread(servers.postgres.stop)
            await asyncio.to_thread(servers.redis.flush)
            living.append(asyncio.create_task(below.live()))
            await below.ready.wait()
            assert await until(lambda: below.tier) == "redis"
            await turns(below, "3", "4?")
            await asyncio.to_thread(servers.postgres.start)
            # A turn that is read sooner may miss what was said above: see `WINDOW_SECONDS`.
            await until(lambda: monotonic() > said_at + WINDOW_SECONDS)
            await until(lambda: below.tier == "cached" and below.is_whole)
            await turns(below, "5", "6")
            await asyncio.gather(*(place.end() for place in places))
        finally:
            for place, task in zip(places, living, strict=False):
                task.cancel()
                place.kill()
            await asyncio.gather(*living, return_exceptions=True)
        assert not [each for place in places for each in place.unexpected]
        return await judge_end(directory, servers, places)


async def turns(place: ChainPlace, *words: str) -> None:
    for word in words:
        answer = await place.turn("thread", word, resumes=False)
        assert answer["ok"], answer


@pytest.mark.timeout(300)
async def test_an_outage_forgets_nothing(tmp_path: Path) -> None:
    attempts, verdict = await outage(tmp_path)
    assert not verdict.violations, "\n".join(map(str, verdict.violations))
    assert [each.did for each in attempts] == ["said", "said", "said", "said", "resumed", "said"]
    assert [each.tier for each in attempts] == ["cached"] * 2 + ["redis"] * 2 + ["cached"] * 2
    assert attempts[4].words is not None
    assert [each for each in attempts[4].words if each.startswith("said")] == ["said 1", "said 2?"]
    assert verdict.excused["set aside"]
    assert verdict.checked["set aside"] == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("sabotage", "found"), [("never set aside", {"torn"}), ("drops all", {"lost"})])
async def test_what_an_outage_forgets_is_found(tmp_path: Path, sabotage: str, found: set[str]) -> None:
    _, verdict = await outage(tmp_path, sabotage=sabotage)
    assert {violation.what for violation in verdict.violations} >= found


@drawn
@pytest.mark.dice
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


@drawn
@pytest.mark.dice
@pytest.mark.parametrize(
    ("sabotage", "found"),
    [
        ("never set aside", {"torn"}),
        ("drops some", {"lost"}),
        ("never goes on", {"torn"}),
        ("gives up", {"unexpected"}),
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
