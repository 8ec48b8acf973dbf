"""The chain of tiers: which one works now, the way down when a server is lost, and the way back up.

    start      the best tier that can be had; each one that could not is a fallback, said aloud
    down       from `redis` to `memory`, when Redis is lost at run time. (From `cached` nothing falls at run
               time: an acknowledged write is in PostgreSQL, or it fails.)
    up         a probe in the background opens the tier above; what was written here is drained into it while
               calls go on; then, for a moment, calls wait while the rest is drained, and the tier is switched
    leftovers  what stands in a lower tier that could not be reached when it was left, or from a process that
               died, is drained as soon as it can be reached

A call that meets a thread on its way up waits for it and goes after it; so nobody reads what was before, and
no write falls between two tiers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from glasspoint.background import BackgroundTask
from glasspoint.draining import drain
from glasspoint.errors import (
    ConfigurationError,
    GlasspointError,
    RedisRefusedError,
    SaverClosedError,
    SchemaError,
    ThreadMovedError,
)
from glasspoint.telemetry.events import Drained, TierChanged
from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from typing import TypeAlias

    from glasspoint.memory_saver import MemorySaver
    from glasspoint.redis_saver import RedisSaver
    from glasspoint.saver import CachedPostgresSaver
    from glasspoint.telemetry.events import Telemetry

    TierSaver: TypeAlias = CachedPostgresSaver | RedisSaver | MemorySaver

__all__ = ["Chain", "Spec"]

_log = get_logger("glasspoint")

_Answer = TypeVar("_Answer")

# How long a call goes after a thread that is on its way up, and how often it looks.
_FOLLOW_SECONDS = 30.0
_FOLLOW_STEP_SECONDS = 0.02

# How often a call is made again whose server was lost. It may have been done: calls store the same again.
_RETRIES = 3

# A server of another tier answers, and refuses: only a change of settings helps.
_MISCONFIGURED = (ConfigurationError, SchemaError, RedisRefusedError)

# How often the last of a tier is drained while calls wait, before they are let in again until the next probe.
_LAST_DRAINS = 50


@dataclass(frozen=True, slots=True)
class Spec:
    """One tier of a chain.

    Attributes:
        name: `cached`, `redis` or `memory`.
        open: Opens its saver, or raises one of `lost`.
        lost: The errors that say that its server cannot be had, now.
        reason: The same as one word, for metrics.
        means: What it means to users to be in this tier, for the log.
    """

    name: str
    open: Callable[[], Awaitable[TierSaver]]
    lost: tuple[type[Exception], ...]
    reason: str
    means: str


class Chain:
    """The tiers of one saver, best first."""

    def __init__(self, specs: list[Spec], telemetry: Telemetry, *, probe_seconds: float) -> None:
        """Args:
        specs: The tiers, best first.
        telemetry: Who is told of every change.
        probe_seconds: How often the tiers above are tried.
        """
        self._specs = specs
        self._telemetry = telemetry
        self._probe_seconds = probe_seconds
        self._gate = _Gate()
        self._active: tuple[Spec, TierSaver] | None = None
        self._rising: TierSaver | None = None  # the tier above, while this one is drained into it
        self._settled = asyncio.Event()  # set while every thread is in the tier that works
        self._settled.set()
        self._undrained: frozenset[str] = frozenset()  # tiers that may hold what is not in a higher one
        self._stuck: set[str] = set()  # threads that cannot be drained, whatever one does
        self._misconfigured: set[str] = set()  # what was said of tiers that cannot be used as configured
        self._climbing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing = BackgroundTask(
            "tier_probe", telemetry, means="Meanwhile this process stays in the tier that it works in."
        )

    @property
    def is_open(self) -> bool:
        """Whether there is a tier that works."""
        return self._active is not None

    @property
    def tier(self) -> str:
        """The tier that works now."""
        return self._current[0].name

    @property
    def whole(self) -> bool:
        """Whether the tier that works is the best, and nothing is known to stand below it."""
        return self._current[0] is self._specs[0] and not self._undrained

    @property
    def saver(self) -> TierSaver:
        """Its saver."""
        return self._current[1]

    async def open(self) -> None:
        """Open the best tier that can be had, and drain into it what stands in the tiers below.

        Raises:
            GlasspointError: None can be had; or a tier cannot be used as it is configured.
        """
        for spec in self._specs:
            try:
                saver = await spec.open()
            except spec.lost as exc:
                if spec is self._specs[-1]:
                    raise
                self._fell(spec, self._below(spec), exc)
            else:
                self._active = (spec, saver)
                saver.vitals.set_active(True)
                break
        below = self._specs[self._specs.index(self._current[0]) + 1 :]
        self._note_undrained(frozenset(spec.name for spec in below) - {"memory"})
        try:
            await self._drain_leftovers()
        except (ConfigurationError, RedisRefusedError) as exc:
            self._say_misconfigured(exc)  # the tier that works does not need the one below
        except BaseException:
            await self.saver.close()
            raise
        self._background(self._keep_watch(), "glasspoint-tier-probe")

    async def close(self) -> None:
        """Let the calls under way end, and close every saver that is open. May be called twice."""
        if self._active is None:
            return
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        async with self._gate.shut():
            if self._active is not None:
                saver, self._active = self.saver, None
                await saver.close()

    async def run(
        self, call: Callable[[TierSaver], Awaitable[_Answer]], *, one_thread: bool = True
    ) -> _Answer:
        """Make a call on the tier that works, and go with it when that changes.

        Args:
            one_thread: It concerns one thread, which is in one tier; others wait until all are in one.
        """
        give_up_at, retries = monotonic() + _FOLLOW_SECONDS, _RETRIES
        if not one_thread:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_SECONDS):
                    await self._settled.wait()
        while True:
            failure: Exception
            async with self._gate.passing():
                spec, saver = self._current
                try:
                    return await call(saver)
                except ThreadMovedError as exc:
                    failure = exc
                except spec.lost as exc:
                    failure = exc
            if isinstance(failure, ThreadMovedError):
                if monotonic() > give_up_at:
                    raise failure
                rising = await self._saver_above() if failure.moved else None
                if rising is not None:
                    with suppress(ThreadMovedError):
                        return await call(rising)
                await asyncio.sleep(_FOLLOW_STEP_SECONDS)
            elif spec is self._specs[0] or not retries or not await self._fall(spec, failure):
                raise failure
            else:
                retries -= 1

    # ---------------------------------------------------------------- down

    async def _fall(self, spec: Spec, why: Exception) -> bool:
        """Leave a tier whose server is lost. Returns whether it is worth trying again."""
        below = self._below(spec)
        async with self._gate.shut():
            if self._current[0] is not spec:
                return True  # another call was here first
            try:
                await self.saver.ping()
            except spec.lost:
                if below is None:
                    return False
            else:
                return True  # it works again
            saver = await below.open()
            self._note_undrained(self._undrained | {spec.name})
            await self._switch(below, saver)
            self._fell(spec, below, why)
            return True

    def _below(self, spec: Spec) -> Spec | None:
        below = self._specs[self._specs.index(spec) + 1 :]
        return below[0] if below else None

    def _fell(self, spec: Spec, below: Spec | None, why: Exception) -> None:
        assert below is not None
        self._telemetry.note(TierChanged(spec.name, below.name, spec.reason))
        _log.warning(
            "Fallback from tier %s to %s (%s): %s %s", spec.name, below.name, spec.reason, below.means, why
        )

    # ---------------------------------------------------------------- up

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(max(self._probe_seconds * random.uniform(0.8, 1.2), self._probing.pause))
            await self._guarded(self._rise)

    async def _rise(self) -> None:
        await self._climb()
        await self._drain_leftovers()

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what nobody waits for, whatever happens."""
        try:
            await work()
        except _MISCONFIGURED as exc:
            self._say_misconfigured(exc)
        except (GlasspointError, OSError, TimeoutError) as exc:
            _log.debug("the tiers above were not reached (%s)", type(exc).__name__)
        except Exception as exc:
            self._probing.failed(exc)
        else:
            self._probing.worked()
            if self.whole:
                self._misconfigured.clear()

    def _say_misconfigured(self, why: Exception) -> None:
        """Log a mistake in the configuration of another tier: once, until a probe has worked again."""
        message = str(why)
        if message not in self._misconfigured:
            self._misconfigured.add(message)
            _log.warning(
                "Another tier cannot be used as it is configured. This process stays in the tier %s, and "
                "goes on trying. %s",
                self.tier,
                message,
            )

    async def _saver_above(self) -> TierSaver | None:
        """The saver that a moved thread went to, if this process is on its way there; if not, it starts."""
        if self._rising is None and not self._climbing.locked():
            self._background(self._guarded(self._climb), "glasspoint-tier-ascent")
        return self._rising

    async def _climb(self) -> None:
        """Go up to the best tier that can be had, with everything that stands here."""
        async with self._climbing:
            spec, _ = self._current
            for above in self._specs[: self._specs.index(spec)]:
                try:
                    saver = await above.open()
                except above.lost:
                    continue
                except _MISCONFIGURED as exc:
                    self._say_misconfigured(exc)  # the next one may be had
                    continue
                try:
                    await self._promote(above, saver)
                except BaseException:
                    if self._active is None or self.saver is not saver:
                        await saver.close()
                    raise
                return

    async def _promote(self, above: Spec, saver: TierSaver) -> None:
        spec, lower = self._current
        self._rising = saver
        self._settled.clear()
        lost = False
        try:
            for attempt in range(_LAST_DRAINS):
                # Most of it while calls go on, the rest while they wait.
                async with self._gate.shut() if attempt else nullcontext():
                    if self._current[1] is not lower:
                        raise GlasspointError("The tier below was lost meanwhile.")
                    try:
                        done = lost or await self._drain(lower, saver, spec)
                    except spec.lost:
                        lost = done = True
                    if attempt and done:
                        await self._switch(above, saver)
                        if lost or self._stuck:
                            self._note_undrained(self._undrained | {spec.name})
                        break
                if not done:
                    await asyncio.sleep(_FOLLOW_STEP_SECONDS)  # another process may be draining some of it
            else:
                raise GlasspointError("The tier below is not empty yet.")
        finally:
            self._rising = None
            self._settled.set()
        self._telemetry.note(TierChanged(spec.name, above.name, "recovered"))
        rest = "everything that was written meanwhile is there"
        if lost:
            rest = "the one below is lost, too; what it holds will be drained when it is back"
        elif self._stuck:
            rest = f"but for {len(self._stuck)} threads that cannot be drained, as said above"
        _log.warning("Promoted from tier %s to %s: %s.", spec.name, above.name, rest)

    async def _drain_leftovers(self) -> None:
        """Drain what stands in lower tiers that nobody works in, as far as they can be reached."""
        spec, saver = self._current
        for below in self._specs[self._specs.index(spec) + 1 :]:
            if below.name not in self._undrained or self._stuck:
                continue
            try:
                lower = await below.open()
            except below.lost:
                continue
            try:
                for _ in range(_LAST_DRAINS):
                    if await self._drain(lower, saver, below):
                        if not self._stuck:
                            self._note_undrained(self._undrained - {below.name})
                        break
                    await asyncio.sleep(_FOLLOW_STEP_SECONDS)  # another process is draining some of it
            except below.lost:
                continue
            finally:
                await lower.close()

    async def _drain(self, lower: TierSaver, upper: TierSaver, spec: Spec) -> bool:
        def imported(checkpoints: int) -> None:
            self._telemetry.note(Drained(spec.name, checkpoints))

        # Nothing is ever drained out of the best tier, so `lower` is one of the others.
        return await drain(lower, upper, imported=imported, stuck=self._stuck)  # type: ignore[arg-type]

    # ---------------------------------------------------------------- helpers

    @property
    def _current(self) -> tuple[Spec, TierSaver]:
        if self._active is None:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")
        return self._active

    def _note_undrained(self, tiers: frozenset[str]) -> None:
        self._undrained = tiers
        self.saver.vitals.undrained = tuple(sorted(tiers))

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _switch(self, spec: Spec, saver: TierSaver) -> None:
        before = self.saver
        self._active = (spec, saver)
        self._note_undrained(self._undrained - {spec.name})
        before.vitals.set_active(False)
        saver.vitals.set_active(True)
        with suppress(Exception):  # its server may be lost
            await before.close()


class _Gate:
    """Calls pass while it is open; whoever shuts it waits until those inside are out."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._one_at_a_time = asyncio.Lock()

    @asynccontextmanager
    async def passing(self) -> AsyncIterator[None]:
        while not self._open.is_set():
            await self._open.wait()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        async with self._one_at_a_time:
            self._open.clear()
            try:
                await self._empty.wait()
                yield
            finally:
                self._open.set()
