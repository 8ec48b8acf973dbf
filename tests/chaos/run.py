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
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import psycopg
import redis
from rich.console import Console

from chaos.checker import FINAL, Verdict, judge
from chaos.deployment import Away
from chaos.faults import Fault, FaultFailedError, Happened, schedule
from chaos.history import HistoryFile, Operation, Truth, read_histories
from chaos.place import ForeignPlace, Place
from chaos.report import print_report
from chaos.sabotage import NO_TRIGGERS, SABOTAGES
from chaos.servers import DEPLOYMENTS, FOREIGN_DATABASE, Servers, run_servers
from chaos.windows import Cut, Outage
from chaos.worker import open_recording
from glasspoint.errors import GlasspointError

__all__ = ["BOUND_SECONDS", "Outcome", "Settings", "draw_seed", "run"]

BOUND_SECONDS = 3.0
"""How long a write that Redis did not hear of may go unnoticed by readers who reach Redis, and how long what
PostgreSQL has lost may still be read: the interval at which every process looks (1 s), the time that it then
takes to forget the entry, and some for processes that share two busy cores with all of this."""

_START_SECONDS = 60.0
_CONVERSATIONS_BEFORE_FAULTS_SECONDS = 0.5
_PAUSE_SECONDS = 0.03
_LONG_PAUSE_SECONDS = (3.5, 7.0)  # longer than the window: who has it wrong then, has it wrong for good
_LONG_PAUSES = 0.08
_STILL_READ = 4
_STUMBLES = 0.2
_DEADLY_STUMBLES = 0.1

# What the foreign writer does: its share of the turns, and how often it does something else after a turn.
_FOREIGN_TURNS = 0.2
_FOREIGN_DEEDS = 0.06
_DEEDS = ("delete", "delete by SQL", "change by SQL", "change by SQL")

# How often a worker goes on after the foreign writer without waiting for the window to be over.
_AT_ONCE = 0.4


@dataclass(frozen=True)
class Settings:
    """What a run is like.

    Attributes:
        seed: What the faults are drawn from, and what the workers draw.
        seconds: For how long there are faults.
        redis: What Redis is: one of `DEPLOYMENTS`.
        kinds: Which faults; by default all that there are for this Redis.
        quiet_seconds: How long the conversations go on after that.
        bound_seconds: How long such a write may go unnoticed by others: see `checker.judge`.
        workers, conversations: How many of each at a time. Every second conversation is in another database.
        turns: How many a conversation has, at least and at most.
        pauses: How many times as long as usual it is quiet between reads and between turns: with 1, the
            processes use a core and a half.
        keep: Where to leave the workers' histories; nowhere if it is not set.
        sabotage: What is broken in the workers on purpose.
    """

    seed: int
    seconds: float = 60.0
    redis: str = "single"
    kinds: Sequence[str] = ()
    quiet_seconds: float = 0.5
    bound_seconds: float = BOUND_SECONDS
    workers: int = 3
    conversations: int = 8
    turns: tuple[int, int] = (3, 20)
    pauses: float = 1.0
    keep: Path | None = None
    sabotage: str = ""

    def __post_init__(self) -> None:
        if not self.kinds:
            object.__setattr__(self, "kinds", DEPLOYMENTS[self.redis].kinds)


@dataclass
class Outcome:
    """What became of it.

    Attributes:
        happened: The faults, in the order in which they came about.
        died_in_a_task: How often a worker was killed in the middle of a task.
        cuts: What PostgreSQL has lost by faults.
        seconds: How long the conversations went on.
        unexpected: Errors that no fault explains, processes that hung, faults that did not come about.
        away: When parts of a Redis Cluster had no master.
    """

    settings: Settings
    done: list[Operation]
    verdict: Verdict
    happened: list[Happened]
    died_in_a_task: int
    cuts: list[Cut]
    seconds: float
    unexpected: list[str] = field(default_factory=list)
    away: list[Away] = field(default_factory=list)

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
        is_watched = settings.sabotage != NO_TRIGGERS
        servers = await opened.enter_async_context(run_servers(redis=settings.redis, is_watched=is_watched))
        chaos = _Chaos(settings, servers, directory)
        opened.push_async_callback(chaos.end)
        await chaos.begin()
        started = monotonic()
        await chaos.go_on()
        seconds = monotonic() - started
        await chaos.end()
        truths = {name: await servers.truth(name) for name in servers.databases}
        await _read_everything(servers, truths, directory)
        done = await asyncio.to_thread(_read_directory, directory)
        verdict = await asyncio.to_thread(
            judge,
            done,
            truths,
            bound_seconds=settings.bound_seconds,
            outages=_outages(chaos.happened),
            cuts=chaos.cuts,
        )
        upset = {(each.worker, each.number) for each in verdict.upset}
        errors = [
            f"{each.worker}, {each.kind}: {each.unexpected}"
            for each in done
            if each.unexpected and (each.worker, each.number) not in upset
        ]
        return Outcome(
            settings,
            done,
            verdict,
            chaos.happened,
            chaos.died_in_a_task,
            chaos.cuts,
            seconds,
            chaos.unexpected + errors,
            servers.redis.away,
        )


def _read_directory(directory: Path) -> list[Operation]:
    return read_histories(sorted(directory.glob("*.jsonl")))


def _outages(happened: Sequence[Happened]) -> list[Outage]:
    """Return when servers could not be reached.

    A Redis that one worker cannot reach is no outage: the worker does not read from it, and the others sweep.
    """
    outages = []
    for each in happened:
        fault = each.fault
        worker = fault.worker if fault.line else None
        if fault.hides and not (fault.hides == "redis" and worker is not None):
            outages.append(Outage(each.start, each.end, fault.hides, worker))
    return outages


class _Chaos:
    def __init__(self, settings: Settings, servers: Servers, directory: Path) -> None:
        self.happened: list[Happened] = []
        self.cuts: list[Cut] = []
        self._failed: list[str] = []
        self._settings = settings
        self._servers = servers
        self._places = [
            Place(
                number,
                servers,
                directory,
                seed=settings.seed,
                sabotage=settings.sabotage,
                pauses=settings.pauses,
            )
            for number in range(settings.workers)
        ]
        self._foreign = ForeignPlace(servers, directory, seed=settings.seed)
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: dict[int, list[tuple[str, str]]] = {}
        self._stopping = asyncio.Event()
        self._dice = random.Random(settings.seed)

    @property
    def unexpected(self) -> list[str]:
        """What is wrong with the run itself."""
        return [*self._failed, *(each for place in self._everywhere for each in place.unexpected)]

    @property
    def died_in_a_task(self) -> int:
        """How often a worker was killed in the middle of a task."""
        return sum(place.died_in_a_task for place in self._places)

    @property
    def _everywhere(self) -> list[Place]:
        return [*self._places, self._foreign]

    async def begin(self) -> None:
        """Have all processes ready."""
        for place in self._everywhere:
            await place.open()
            self._tasks.append(asyncio.create_task(place.live()))
        async with asyncio.timeout(_START_SECONDS):
            for place in self._everywhere:
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
            await asyncio.sleep(settings.quiet_seconds)
            self._stopping.set()
            await asyncio.gather(*talks)
        finally:
            for talk in talks:
                talk.cancel()

    async def end(self) -> None:
        """End the processes; again does nothing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(place.end() for place in self._everywhere))

    async def _converse(self, number: int) -> None:
        """One conversation after the other; each turn in the hands of another process, perhaps.

        Only one process at a time has a turn in a conversation: the next one is asked only when that one has
        answered, or is certainly dead.
        """
        names = list(self._servers.databases)
        database = names[number % len(names)]  # in each of them, the same thread ids
        for conversation in range(10**9):
            thread = f"thread-{number // len(names)}-{conversation}"
            # Those before are still read, to see that they stay as they are.
            self._threads[number] = [(database, thread), *self._threads.get(number, ())][:_STILL_READ]
            for turn in range(1, self._dice.randint(*self._settings.turns) + 1):
                is_foreign = await self._take_turn(database, thread, turn)
                if self._stopping.is_set():
                    return
                if database == FOREIGN_DATABASE and self._dice.random() < _FOREIGN_DEEDS:
                    is_foreign = True
                    await self._foreign.do(thread, what=self._dice.choice(_DEEDS))
                if is_foreign and self._dice.random() >= _AT_ONCE:
                    await self._wait(self._settings.bound_seconds + 0.5)
                else:
                    await self._pause()

    async def _take_turn(self, database: str, thread: str, turn: int) -> bool:
        """Have a turn taken, by one process or several; whether the foreign writer had a part in it."""
        stumble, is_foreign = self._stumble(), False
        while not self._stopping.is_set():
            ready = [place for place in self._places if place.ready.is_set()]
            if ready:
                place = self._dice.choice(ready)
                if stumble == "die" and len(ready) < len(self._places):
                    stumble = "fail"  # a new worker takes seconds to start: one at a time
                if database == FOREIGN_DATABASE and self._dice.random() < _FOREIGN_TURNS:
                    place, is_foreign = self._foreign, True
                    stumble = "fail" if stumble else ""
                threads = [each for both in self._threads.values() for each in both]
                if await place.turn(database, thread, turn, stumble, threads):
                    break
                stumble = ""
            await asyncio.sleep(self._settings.pauses * _PAUSE_SECONDS)
        return is_foreign

    async def _pause(self) -> None:
        """As people do: mostly they say the next thing at once, and sometimes they think."""
        seconds = self._settings.pauses * _PAUSE_SECONDS
        if self._dice.random() < _LONG_PAUSES:
            seconds = self._dice.uniform(*_LONG_PAUSE_SECONDS)
        await self._wait(seconds)

    async def _wait(self, seconds: float) -> None:
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
                self.cuts += await self._servers.suffer(fault)
        except (OSError, psycopg.Error, redis.RedisError, GlasspointError, FaultFailedError) as exc:
            self._failed.append(f"a fault did not come about: {fault}: {exc!r} {exc}")
        else:
            self.happened.append(Happened(fault, started, monotonic()))

    async def _bad_line(self, fault: Fault) -> None:
        assert fault.line is not None
        server, mode = fault.line
        places = self._places if fault.worker is None else [self._places[fault.worker]]
        if server == "master":
            master = await asyncio.to_thread(self._servers.redis.master, fault)
            number = self._servers.redis.nodes.index(master)
            lines = [place.lines["redis"][number] for place in places]
        else:
            lines = [line for place in places for line in place.lines[server]]
        try:
            for line in lines:
                await line.switch(mode)
            await asyncio.sleep(fault.seconds)
        finally:
            for line in lines:
                await line.switch("pass")


async def _read_everything(servers: Servers, truths: Mapping[str, Truth], directory: Path) -> None:
    """Read the newest of everything that anybody has written through a fresh saver.

    Four times: what stands in Redis now, in one epoch with it or not; again, from Redis; and the same after a
    FLUSHALL.
    """
    done = await asyncio.to_thread(_read_directory, directory)
    scopes = {(each.database, each.thread, each.namespace) for each in done if each.kind == "put"}
    scopes |= {(name, *key[:2]) for name, truth in truths.items() for key in truth.checkpoints}
    history = HistoryFile(directory / f"{FINAL}.jsonl", FINAL)
    for name in servers.databases:
        async with open_recording(name, servers.url(name), servers.redis.url(), history) as saver:
            for attempt in range(4):
                if attempt == 2:
                    await asyncio.to_thread(servers.redis.flush)
                for database, thread, namespace in sorted(scopes):
                    if database == name:
                        where = {"thread_id": thread, "checkpoint_ns": namespace}
                        await saver.aget_tuple({"configurable": where})


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
    parser.add_argument("--redis", choices=DEPLOYMENTS, default="single", help="what Redis is (single)")
    parser.add_argument("--only", action="append", metavar="KIND", help="a kind of fault; again for more")
    parser.add_argument("--keep", type=Path, default=None, help="leave the histories in this new directory")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="break Glasspoint in the workers")
    given = parser.parse_args()
    for kind in given.only or ():
        if kind not in DEPLOYMENTS[given.redis].kinds:
            parser.error(f"--only {kind!r}: the kinds are {', '.join(DEPLOYMENTS[given.redis].kinds)}")
    seed = given.seed if given.seed is not None else draw_seed()
    sys.stdout.write(f"CHAOS_SEED={seed}\n")
    sys.stdout.flush()
    settings = Settings(
        seed=seed,
        seconds=60 * given.minutes,
        redis=given.redis,
        kinds=given.only or (),
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
