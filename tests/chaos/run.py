"""Chaos: worker processes hold conversations while servers and lines fail; then everything is judged.

make chaos MINUTES=10          or: python -m chaos.run --minutes 10 --seed 42, in tests/
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import psycopg
import redis
from rich.console import Console

from chaos.checker import FINAL, Outage, Verdict, judge
from chaos.faults import KINDS, Fault, Happened, schedule
from chaos.history import HistoryFile, Operation, Truth, read_histories
from chaos.place import Place
from chaos.report import print_report
from chaos.sabotage import SABOTAGES
from chaos.servers import FaultFailedError, Servers, run_servers
from chaos.worker import open_recording
from glasspoint.errors import GlasspointError

__all__ = ["BOUND_SECONDS", "Outcome", "Settings", "draw_seed", "run"]

BOUND_SECONDS = 3.0
"""How long a write that Redis did not hear of may go unnoticed by readers who reach Redis: the interval at
which every process looks for such writes (1 s), the time that it then takes to forget the entry, and some for
processes that share two busy cores with all of this."""

_START_SECONDS = 60.0
_CONVERSATIONS_BEFORE_FAULTS_SECONDS = 0.5
_QUIET_SECONDS = 0.5
_PAUSE_SECONDS = 0.03
_LONG_PAUSE_SECONDS = (3.5, 7.0)  # longer than the window: who has it wrong then, has it wrong for good
_LONG_PAUSES = 0.08
_TURNS_OF_A_CONVERSATION = 20
_STUMBLES = 0.2
_DEADLY_STUMBLES = 0.1


@dataclass(frozen=True)
class Settings:
    """What a run is like.

    Attributes:
        seed: What the faults are drawn from, and what the workers draw.
        seconds: For how long there are faults.
        kinds: Which ones.
        bound_seconds: How long such a write may go unnoticed by others: see `checker.judge`.
        workers, conversations: How many of each at a time.
        keep: Where to leave the workers' histories; nowhere if it is not set.
        sabotage: What is broken in the workers on purpose.
    """

    seed: int
    seconds: float = 60.0
    kinds: Sequence[str] = KINDS
    bound_seconds: float = BOUND_SECONDS
    workers: int = 3
    conversations: int = 8
    keep: Path | None = None
    sabotage: str = ""


@dataclass
class Outcome:
    """What became of it.

    Attributes:
        happened: The faults, in the order in which they came about.
        died_in_a_task: How often a worker was killed in the middle of a task.
        seconds: How long the conversations went on.
        unexpected: Errors that no fault explains, processes that hung, faults that did not come about.
    """

    settings: Settings
    done: list[Operation]
    verdict: Verdict
    happened: list[Happened]
    died_in_a_task: int
    seconds: float
    unexpected: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not self.verdict.violations and not self.unexpected


async def run(settings: Settings) -> Outcome:
    """Run it to its end, and judge it. Whatever happens, everything that was started is ended."""
    async with AsyncExitStack() as opened:
        if settings.keep is None:
            directory = Path(tempfile.mkdtemp(prefix="glasspoint-chaos-"))
            opened.callback(shutil.rmtree, directory, ignore_errors=True)
        else:
            directory = settings.keep
            directory.mkdir(parents=True)
        servers = await opened.enter_async_context(run_servers())
        chaos = _Chaos(settings, servers, directory)
        opened.push_async_callback(chaos.end)
        await chaos.begin()
        started = monotonic()
        await chaos.go_on()
        seconds = monotonic() - started
        await chaos.end()
        truth = await servers.truth()
        await _read_everything(servers, truth, directory)
        done = await asyncio.to_thread(read_histories, sorted(directory.glob("*.jsonl")))
        outages = [Outage(each.start, each.end) for each in chaos.happened if each.fault.hides_redis]
        verdict = await asyncio.to_thread(
            judge, done, truth, bound_seconds=settings.bound_seconds, outages=outages
        )
        errors = [f"{each.worker}, {each.kind}: {each.unexpected}" for each in done if each.unexpected]
        return Outcome(
            settings,
            done,
            verdict,
            chaos.happened,
            chaos.died_in_a_task,
            seconds,
            chaos.unexpected + errors,
        )


class _Chaos:
    def __init__(self, settings: Settings, servers: Servers, directory: Path) -> None:
        self.happened: list[Happened] = []
        self._failed: list[str] = []
        self._settings = settings
        self._servers = servers
        self._places = [
            Place(number, servers, directory, seed=settings.seed, sabotage=settings.sabotage)
            for number in range(settings.workers)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: dict[int, list[str]] = {}
        self._stopping = asyncio.Event()
        self._dice = random.Random(settings.seed)

    @property
    def unexpected(self) -> list[str]:
        """What is wrong with the run itself."""
        return [*self._failed, *(each for place in self._places for each in place.unexpected)]

    @property
    def died_in_a_task(self) -> int:
        """How often a worker was killed in the middle of a task."""
        return sum(place.died_in_a_task for place in self._places)

    async def begin(self) -> None:
        """Have all workers ready."""
        for place in self._places:
            await place.open()
            self._tasks.append(asyncio.create_task(place.live()))
        async with asyncio.timeout(_START_SECONDS):
            for place in self._places:
                await place.ready.wait()

    async def go_on(self) -> None:
        """Conversations and faults, for as long as is set; then all is healed, and goes on for a moment."""
        settings = self._settings
        faults = schedule(settings.seed, settings.seconds, settings.workers, settings.kinds)
        talks = [asyncio.create_task(self._converse(number)) for number in range(settings.conversations)]
        try:
            await asyncio.sleep(_CONVERSATIONS_BEFORE_FAULTS_SECONDS)
            await self._servers.save_old_snapshot()
            started = monotonic()
            for fault in faults:
                # A fault that took longer than it should does not run into the next one.
                await asyncio.sleep(max(0.0, started + fault.at - monotonic()))
                await self._go_wrong(fault)
            await asyncio.sleep(max(0.0, started + settings.seconds - monotonic()))
            await asyncio.sleep(_QUIET_SECONDS)
            self._stopping.set()
            await asyncio.gather(*talks)
        finally:
            for talk in talks:
                talk.cancel()

    async def end(self) -> None:
        """End the workers; again does nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(place.end() for place in self._places))

    async def _converse(self, number: int) -> None:
        """One conversation after the other; each turn in the hands of another worker, perhaps.

        Only one worker at a time has a turn in a conversation: the next one is asked only when that one has
        answered, or is certainly dead.
        """
        for conversation in range(10**9):
            thread = f"thread-{number}-{conversation}"
            # The one before is still read, to see that it stays as it is.
            self._threads[number] = [thread, *self._threads.get(number, ())][:2]
            for turn in range(1, _TURNS_OF_A_CONVERSATION + 1):
                stumble = self._stumble()
                while not self._stopping.is_set():
                    ready = [place for place in self._places if place.ready.is_set()]
                    if ready:
                        if stumble == "die" and len(ready) < len(self._places):
                            stumble = "fail"  # a new worker takes seconds to start: one at a time
                        threads = [each for both in self._threads.values() for each in both]
                        if await self._dice.choice(ready).turn(thread, turn, stumble, threads):
                            break
                        stumble = ""
                    await asyncio.sleep(_PAUSE_SECONDS)
                if self._stopping.is_set():
                    return
                await self._pause()

    async def _pause(self) -> None:
        """As people do: mostly they say the next thing at once, and sometimes they think."""
        seconds = _PAUSE_SECONDS
        if self._dice.random() < _LONG_PAUSES:
            seconds = self._dice.uniform(*_LONG_PAUSE_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _stumble(self) -> str:
        if self._dice.random() >= _STUMBLES:
            return ""
        return "die" if self._dice.random() < _DEADLY_STUMBLES else "fail"

    async def _go_wrong(self, fault: Fault) -> None:
        started = monotonic()
        try:
            if fault.line is not None:
                await self._bad_line(fault)
            elif fault.kind == "worker killed":
                assert fault.worker is not None
                place = self._places[fault.worker]
                async with asyncio.timeout(_START_SECONDS):
                    await place.ready.wait()
                place.kill()
            else:
                await self._servers.suffer(fault)
        except (OSError, psycopg.Error, redis.RedisError, GlasspointError, FaultFailedError) as exc:
            self._failed.append(f"a fault did not come about: {fault}: {exc!r}")
        else:
            self.happened.append(Happened(fault, started, monotonic()))

    async def _bad_line(self, fault: Fault) -> None:
        assert fault.line is not None
        server, mode = fault.line
        places = self._places if fault.worker is None else [self._places[fault.worker]]
        lines = [place.lines[server] for place in places]
        try:
            for line in lines:
                await line.switch(mode)
            await asyncio.sleep(fault.seconds)
        finally:
            for line in lines:
                await line.switch("pass")


async def _read_everything(servers: Servers, truth: Truth, directory: Path) -> None:
    """Read the newest of everything through a fresh saver, twice: the second time from Redis."""
    history = HistoryFile(directory / f"{FINAL}.jsonl", FINAL)
    async with open_recording(servers.postgres_url, servers.redis.url, history) as saver:
        for _ in range(2):
            for thread, namespace in sorted({key[:2] for key in truth.checkpoints}):
                await saver.aget_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": namespace}})


def draw_seed() -> int:
    """The seed of the environment, or another one each time."""
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))


def main() -> int:
    """Parse the command line, run, report."""
    parser = argparse.ArgumentParser(description="Chaos: everything that can fail does, and nothing is lost.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long there are faults (1)")
    parser.add_argument("--seed", type=int, default=None, help="default: CHAOS_SEED, or drawn")
    parser.add_argument(
        "--bound", type=float, default=BOUND_SECONDS, help=f"seconds of the window ({BOUND_SECONDS:g})"
    )
    parser.add_argument("--workers", type=int, default=3, help="processes (3)")
    parser.add_argument("--conversations", type=int, default=8, help="at a time (8)")
    parser.add_argument("--only", action="append", choices=KINDS, help="a kind of fault; again for more")
    parser.add_argument("--keep", type=Path, default=None, help="leave the histories in this new directory")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="break Glasspoint in the workers")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else draw_seed()
    sys.stdout.write(f"CHAOS_SEED={seed}\n")
    sys.stdout.flush()
    settings = Settings(
        seed=seed,
        seconds=60 * given.minutes,
        kinds=given.only or KINDS,
        bound_seconds=given.bound,
        workers=given.workers,
        conversations=given.conversations,
        keep=given.keep,
        sabotage=given.sabotage,
    )
    try:
        outcome = asyncio.run(run(settings))
    except KeyboardInterrupt:
        return 130
    print_report(Console(width=80, highlight=False), outcome)
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
