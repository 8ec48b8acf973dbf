"""Chaos on the fallback chain: processes start, work and die in every tier, and nothing is forgotten.

make chaos WHAT=chain MINUTES=2     or: python -m chaos.chain --minutes 2 --seed 42, in tests/
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

from rich.console import Console

from chaos.chain_checker import ChainVerdict, Standing, judge_chain
from chaos.chain_faults import ChainFault, chain_schedule
from chaos.chain_history import Attempt, Stored, read_chain_histories
from chaos.chain_place import ChainPlace
from chaos.chain_report import print_chain_report
from chaos.chain_sabotage import SABOTAGES
from chaos.chain_servers import ChainServers, run_chain_servers
from chaos.chain_worker import ASKS
from chaos.run import draw_seed

__all__ = ["ChainOutcome", "ChainSettings", "judge_directory", "judge_end", "run_chain"]

_START_SECONDS = 60.0
_LAST_ATTEMPTS = 3
_QUESTIONS = 0.3


@dataclass(frozen=True)
class ChainSettings:
    """What a run is like.

    Attributes:
        seed: What the faults are drawn from, and what the workers draw.
        seconds: For how long there are faults.
        fallbacks: `redis`, and then workers are killed; or `redis,memory`, and then they are not, because a
            process that dies in the tier `memory` takes what it has with it.
        in_cluster: Whether Redis is a Redis Cluster, of whose masters one is lost at a time.
        workers, threads: How many of each at a time.
        turns: How many a thread has, at least and at most.
        pause: Between two turns of a thread, seconds at least and at most.
        settle_seconds: How long after the last fault everything must be in PostgreSQL: a seal of the dead
            takes 10 s, and a marker of a thread that was moved 60 s.
        sabotage: What is broken in the workers on purpose.
        keep: Where to leave the workers' histories and logs; nowhere if it is not set.
    """

    seed: int
    seconds: float = 60.0
    fallbacks: str = "redis"
    in_cluster: bool = False
    workers: int = 3
    threads: int = 12
    turns: tuple[int, int] = (8, 30)
    pause: tuple[float, float] = (0.05, 0.6)
    settle_seconds: float = 75.0
    sabotage: str = ""
    keep: Path | None = None


@dataclass
class ChainOutcome:
    """What became of it.

    Attributes:
        happened: The events that came about.
        seconds: How long the conversations went on.
        unexpected: What is wrong with the run itself: processes that hung or were never promoted.
    """

    settings: ChainSettings
    attempts: list[Attempt]
    verdict: ChainVerdict
    happened: list[ChainFault]
    seconds: float
    unexpected: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not self.verdict.violations and not self.unexpected

    @property
    def faults(self) -> Counter[str]:
        """How often each kind of event came about."""
        return Counter(each.kind for each in self.happened)


async def run_chain(settings: ChainSettings) -> ChainOutcome:
    """Run it to its end, and judge it. Whatever happens, everything that was started is ended."""
    async with AsyncExitStack() as opened:
        if settings.keep is None:
            directory = Path(tempfile.mkdtemp(prefix="glasspoint-chain-"))
            opened.callback(shutil.rmtree, directory, ignore_errors=True)
        else:
            directory = settings.keep
            directory.mkdir(parents=True)
        servers = await opened.enter_async_context(run_chain_servers(in_cluster=settings.in_cluster))
        run = _Run(settings, servers, directory)
        opened.push_async_callback(run.kill)
        started = monotonic()
        await run.go_on()
        seconds = monotonic() - started
        attempts, verdict = await judge_end(directory, servers, run.places)
        return ChainOutcome(settings, attempts, verdict, run.happened, seconds, run.unexpected)


async def judge_end(
    directory: Path, servers: ChainServers, places: Sequence[ChainPlace]
) -> tuple[list[Attempt], ChainVerdict]:
    """Leave what PostgreSQL has in the end beside what the workers have written down, and judge it all."""
    end = {
        "stored": [asdict(each) for each in await servers.stored()],
        "standings": [standing for place in places for standing in place.standings],
        "away": servers.away,
        "full": servers.full,
    }
    (directory / "end.json").write_text(json.dumps(end))
    return judge_directory(directory)


def judge_directory(directory: Path) -> tuple[list[Attempt], ChainVerdict]:
    """Judge what a run has left, as often as one likes."""
    attempts, ran = read_chain_histories(sorted(directory.glob("*.jsonl")))
    end = json.loads((directory / "end.json").read_text())
    stored = [Stored(**each) for each in end["stored"]]
    standings = [Standing(*each) for each in end["standings"]]
    return attempts, judge_chain(attempts, ran, stored, standings, away=end["away"], full=end["full"])


class _Run:
    def __init__(self, settings: ChainSettings, servers: ChainServers, directory: Path) -> None:
        self.happened: list[ChainFault] = []
        self.places = [
            ChainPlace(
                number,
                servers,
                directory,
                seed=settings.seed,
                sabotage=settings.sabotage,
                fallbacks=settings.fallbacks,
            )
            for number in range(settings.workers)
        ]
        self._settings = settings
        self._servers = servers
        self._failed: list[str] = []
        self._dice = random.Random(settings.seed)
        self._stopping = asyncio.Event()
        self._living: list[asyncio.Task[None]] = []
        self._ends: list[asyncio.Task[bool]] = []
        self._threads: dict[int, str] = {}

    @property
    def unexpected(self) -> list[str]:
        """What is wrong with the run itself."""
        return [*self._failed, *(each for place in self.places for each in place.unexpected)]

    async def go_on(self) -> None:
        """Conversations and faults, for as long as is set; then all is healed, and must be whole."""
        self._living = [asyncio.create_task(place.live()) for place in self.places]
        async with asyncio.timeout(_START_SECONDS):
            for place in self.places:
                await place.ready.wait()
        talks = [asyncio.create_task(self._converse(number)) for number in range(self._settings.threads)]
        try:
            await self._go_wrong()
            await self._servers.heal()
            await asyncio.gather(*self._ends)
            await self._settle()
            self._stopping.set()
            await asyncio.gather(*talks)
            await self._say_last()
        finally:
            for talk in talks:
                talk.cancel()
        await asyncio.gather(*(place.end() for place in self.places))

    async def kill(self) -> None:
        """End the processes at once; again does nothing."""
        for task in [*self._living, *self._ends]:
            task.cancel()
        await asyncio.gather(*self._living, *self._ends, return_exceptions=True)
        for place in self.places:
            place.kill()

    async def _go_wrong(self) -> None:
        settings, started = self._settings, monotonic()
        kills = "memory" not in settings.fallbacks
        for fault in chain_schedule(settings.seed, settings.seconds, settings.workers, kills_workers=kills):
            # An event that took longer than it should does not run into the next one.
            await asyncio.sleep(max(0.0, started + fault.at - monotonic()))
            if fault.kind == "worker killed":
                if self.places[fault.place].kill():
                    self.happened.append(fault)
            elif fault.kind == "worker closed":
                self._ends.append(asyncio.create_task(self._close(fault)))
            elif not kills and fault.kind.startswith("postgres st") and not self._servers.redis.running:
                await self._servers.suffer(ChainFault("redis started", fault.at))
                await self._suffer(fault)
            else:
                await self._suffer(fault)
        await asyncio.sleep(max(0.0, started + settings.seconds - monotonic()))

    async def _suffer(self, fault: ChainFault) -> None:
        if await self._servers.suffer(fault):
            self.happened.append(fault)

    async def _close(self, fault: ChainFault) -> bool:
        closed = await self.places[fault.place].close()
        if closed:
            self.happened.append(fault)
        return closed

    async def _settle(self) -> None:
        """Wait until every process knows that everything is in PostgreSQL."""
        try:
            async with asyncio.timeout(self._settings.settle_seconds):
                while not all(place.is_whole and place.ready.is_set() for place in self.places):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            stuck = ", ".join(
                f"{place.name} in {place.tier or 'no tier'}" for place in self.places if not place.is_whole
            )
            self._failed.append(f"both servers are there, and not everything was drained: {stuck}")

    async def _converse(self, number: int) -> None:
        """One thread after the other; only one process at a time has a turn in it."""
        for thread_number in range(10**9):
            thread, asked = f"thread-{number}-{thread_number}", False
            for turn in range(self._dice.randint(*self._settings.turns)):
                place = await self._ready_place()
                if place is None:
                    return
                asked = await self._take_turn(place, thread, turn, resumes=asked)
                self._threads[number] = thread
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._dice.uniform(*self._settings.pause)):
                        await self._stopping.wait()

    async def _ready_place(self) -> ChainPlace | None:
        while not self._stopping.is_set():
            ready = [place for place in self.places if place.ready.is_set()]
            if ready:
                return self._dice.choice(ready)
            await asyncio.sleep(0.02)
        return None

    async def _take_turn(self, place: ChainPlace, thread: str, turn: int | str, *, resumes: bool) -> bool:
        """Have an attempt made; whether the thread waits for an answer, as far as is known."""
        word = f"{turn}{ASKS if self._dice.random() < _QUESTIONS else ''}"
        answer = await place.turn(thread, word, resumes=resumes)
        return bool(answer["asked"]) if answer["ok"] else resumes

    async def _say_last(self) -> None:
        """When all is well, every thread is answered that is looked at first, whichever process is asked."""
        for thread in self._threads.values():
            for attempt in range(_LAST_ATTEMPTS):
                place = self._dice.choice(self.places)
                answer = await place.turn(thread, f"last{attempt}", resumes=False)
                if answer["ok"]:
                    break
            else:
                self._failed.append(f"{thread} is not answered, although both servers are there: {answer}")


def main() -> int:
    """Parse the command line, run, report."""
    parser = argparse.ArgumentParser(description="Chaos on the fallback chain: nothing is forgotten.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long there are faults (1)")
    parser.add_argument("--seed", type=int, default=None, help="default: CHAOS_SEED, or drawn")
    parser.add_argument("--fallbacks", choices=["redis", "redis,memory"], default="redis")
    parser.add_argument("--redis", choices=["single", "cluster"], default="single")
    parser.add_argument("--workers", type=int, default=3, help="processes (3)")
    parser.add_argument("--threads", type=int, default=12, help="at a time (12)")
    parser.add_argument("--keep", type=Path, default=None, help="leave the histories in this new directory")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="break Glasspoint in the workers")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else draw_seed()
    sys.stdout.write(f"CHAOS_SEED={seed}\n")
    sys.stdout.flush()
    settings = ChainSettings(
        seed=seed,
        seconds=60 * given.minutes,
        fallbacks=given.fallbacks,
        in_cluster=given.redis == "cluster",
        workers=given.workers,
        threads=given.threads,
        sabotage=given.sabotage,
        keep=given.keep,
    )
    try:
        outcome = asyncio.run(run_chain(settings))
    except KeyboardInterrupt:
        return 130
    print_chain_report(Console(width=110, highlight=False), outcome)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
