"""The chain of tiers: which one works now, the way down when a server is lost, and the way back up.

    start      the best tier that can be reached is opened; each tier that cannot is a fallback, and is logged
    down       from `redis` to `memory`, when Redis is lost at run time. (From `cached` nothing falls at run
               time: an acknowledged write is in PostgreSQL, or it fails.)
    up         a probe in the background opens the tier above; the threads are drained into it while calls go
               on; then calls wait for a moment, until the rest is drained and the tier is switched
    leftovers  threads in a lower tier that was lost before it was drained, or whose process has died, are
               drained as soon as the tier can be reached
    others     a thread that another process has written to below is drained when a call above asks for it

If the thread of a call is on its way up, the call waits and then goes to the tier above. So no call reads an
older state, and no write is lost between two tiers. If the tier above refuses a thread for a passing reason,
the tier is not switched: otherwise the thread would be shorter above than here. A thread that can never be
moved does not delay the others.

Open this file when a process stays in the wrong tier. `docs/fallback.md` says what users notice.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from glasspoint.errors import (
    ConfigurationError,
    GlasspointError,
    RedisRefusedError,
    SaverClosedError,
    SchemaError,
    ThreadMovedError,
)
from glasspoint.fallback.branches import UNDER_WAY, Branches, NotStoredYetError
from glasspoint.fallback.draining import Drainer, Round
from glasspoint.fallback.lookout import Lookout
from glasspoint.history.interface import Held
from glasspoint.logs import Throttle, get_logger
from glasspoint.model.cancellation import run_to_the_end
from glasspoint.model.lineage import UNKNOWN_TIME, SetAside
from glasspoint.model.scope import Scope
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.savers.redis_saver import RedisSaver
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import Drained, ThreadDrained, TierChanged
from glasspoint.telemetry.quiet import quiet, quiet_context

if TYPE_CHECKING:
    from contextvars import Context

    from glasspoint.fallback.branches import TierSaver
    from glasspoint.model.generics import ResultT
    from glasspoint.model.lineage import Branch
    from glasspoint.savers.memory_saver import MemorySaver
    from glasspoint.telemetry.events import DrainResult, Telemetry

__all__ = ["Chain", "Spec"]

_log = get_logger("glasspoint")

# How long a call follows a thread that is on its way up, and the pause between two attempts.
_FOLLOW_SECONDS = 30.0
_FOLLOW_STEP_SECONDS = 0.02

# The most repetitions of a call whose server was lost. The call may have been done; done again, it stores the
# same.
_RETRIES = 3

# The server of another tier responds, and refuses: only a change of settings helps.
_MISCONFIGURED = (ConfigurationError, SchemaError, RedisRefusedError)

# How many times calls wait for a moment, so that the rest of a tier is drained. Then the next probe goes on.
_LAST_DRAINS = 50

# The rounds of one such moment: for what came after the round before, and to see that nothing is left.
_ROUNDS_A_MOMENT = 3

# The longest pause before threads that the tier above refuses are tried again.
_LONGEST_PAUSE_SECONDS = 5.0

# How often the progress of a drain is logged, and how often the threads that wait for one are counted.
_SAY_SECONDS = 60.0
_COUNT_SECONDS = 30.0

_NOTHING = Held(0, 0)

# How many threads a log line names.
_NAMED_AT_MOST = 20

# If nothing was stored in a lower tier for so long, the processes that wrote to it have died, or are idle.
_LEFT_SECONDS = 60.0

# How long a start waits for threads that another process has sealed: longer than the seal of a dead process.
_START_SECONDS = 12.0


@dataclass(frozen=True, slots=True)
class Spec:
    """One tier of a chain.

    Attributes:
        name: `cached`, `redis` or `memory`.
        open: Opens the tier's saver, or raises one of `lost`.
        open_to_look: Opens the tier's saver for a process that works above; `None`: `open` does.
        lost: The errors that mean that the tier's server is not available now.
        reason: The same as one word, for metrics.
        means: What users have to expect in this tier, as sentences for the log.
        is_shared: Whether other processes, or other chains of this process, have threads there, too.
        is_empty: Tells whether no thread stands there, at no cost. `None`: the server has to be asked.
    """

    name: str
    open: Callable[[], Awaitable[TierSaver]]
    lost: tuple[type[Exception], ...]
    reason: str
    means: str
    is_shared: bool = False
    is_empty: Callable[[], bool] | None = None
    open_to_look: Callable[[], Awaitable[TierSaver]] | None = None


class Chain:
    """The tiers of one saver, best first."""

    def __init__(self, specs: list[Spec], telemetry: Telemetry, *, probe_seconds: float) -> None:
        """Take the tiers. `open` opens one of them.

        Args:
            specs: The tiers, best first.
            telemetry: Receives an event for each change.
            probe_seconds: The time from one attempt to reach the tiers above to the next.
        """
        self._specs = specs
        self._telemetry = telemetry
        self._probe_seconds = probe_seconds
        self._gate = _Gate()
        self._active: tuple[Spec, TierSaver] | None = None
        self._rising: tuple[Spec, TierSaver] | None = None  # the tier above, on the way up
        self._settled = asyncio.Event()  # set while every thread is in the tier that works
        self._settled.set()
        self._undrained: frozenset[str] = frozenset()  # tiers that may hold what no higher tier has
        self.branches = Branches(telemetry)
        """Tells which thread a call belongs to: its own, or a branch that was set aside."""
        self._drainers = {
            spec.name: Drainer(spec.name, _Report(spec.name, telemetry, self.branches)) for spec in specs[1:]
        }
        self._lookouts = {
            spec.name: Lookout(cast("Any", spec.open_to_look or spec.open), is_empty=spec.is_empty)
            for spec in specs[1:]
            if spec.is_shared
        }
        self._kept: tuple[Spec, TierSaver] | None = None  # holds threads that no tier takes
        self._held_below: dict[str, Held] = {}
        self._progress = Throttle(_SAY_SECONDS)
        self._count_at = 0.0
        self._misconfigured: set[str] = set()  # logged already: why a tier cannot be used as configured
        self._climbing = asyncio.Lock()
        self._falling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing = BackgroundTask(
            "tier_probe", telemetry, means="Meanwhile this process stays in the tier that it works in."
        )

    @property
    def is_open(self) -> bool:
        """Whether the chain is open."""
        return self._active is not None

    @property
    def tier(self) -> str:
        """The tier that works now."""
        return self._current[0].name

    @property
    def whole(self) -> bool:
        """Whether the tier that works is the best one, and no lower tier may hold threads."""
        return self.works_in_best and not self._undrained

    @property
    def works_in_best(self) -> bool:
        """Whether the tier that works is the best one."""
        return self._current[0] is self._specs[0]

    @property
    def saver(self) -> TierSaver:
        """The saver of the tier that works now."""
        return self._current[1]

    async def open(self) -> None:
        """Open the best tier that can be reached, and drain the tiers below into it.

        Raises:
            GlasspointError: No tier can be reached, or a tier cannot be used as it is configured.
        """
        with quiet():
            await self._open()
        self._background(self._keep_watch(), "glasspoint-tier-probe", quiet_context())

    async def _open(self) -> None:
        for spec in self._specs:
            try:
                saver = await spec.open()
            except spec.lost as exc:
                if spec is self._specs[-1]:
                    raise
                self._fell(spec, self._below(spec)[0], exc)
            else:
                self._active = (spec, saver)
                saver.status.set_active(True)
                break
        self._note_undrained(
            frozenset(
                each.name
                for each in self._below(self._current[0])
                if each.is_empty is None or not each.is_empty()
            )
        )
        try:
            await self._drain_leftovers(is_start=True)
        except (ConfigurationError, RedisRefusedError) as exc:
            self._say_misconfigured(exc)  # the tier that works does not need this one
        except BaseException:
            await self.saver.close()
            raise

    async def close(self) -> None:
        """Wait for the calls under way, and close every open saver. May be called twice.

        If the caller is cancelled meanwhile, the savers are closed all the same.
        """
        if self._active is not None:
            await run_to_the_end(self._close())

    async def _close(self) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        async with self._gate.shut():
            if self._active is not None:
                saver, self._active = self.saver, None
                await saver.close()
                await self._let_go()
                for lookout in self._lookouts.values():
                    await lookout.close()

    async def delete_thread(self, thread_id: str, delete: Callable[[TierSaver], Awaitable[None]]) -> None:
        """Delete a thread in the tier that works, and in the lower tiers.

        A thread that stays in a lower tier would come back when that tier is drained.
        """
        await self.run(delete, thread_id=thread_id)
        for below in self._below(self._current[0]):
            if below.name not in self._undrained:
                continue
            try:
                lower = await self._open_lower(below)
            except (GlasspointError, OSError) as exc:
                _log.warning(
                    "Thread %r was deleted, but not in the tier %s, which cannot be reached (%s). If the "
                    "thread stands there, it comes back when that tier is drained: delete it again then.",
                    thread_id,
                    below.name,
                    type(exc).__name__,
                )
                continue
            try:
                with suppress(ThreadMovedError):
                    await delete(lower)
                self._drainers[below.name].refused.pop(thread_id, None)
            finally:
                await self._close_lower(lower)

    async def run(
        self, call: Callable[[TierSaver], Awaitable[ResultT]], *, thread_id: object = None
    ) -> ResultT:
        """Make a call on the tier that works. If the tier changes meanwhile, make the call on the new tier.

        Args:
            call: Makes the call on a tier's saver.
            thread_id: The thread of the call. `None`: the call concerns several threads, and first waits
                until all of them are in one tier.
        """
        give_up_at, retries = monotonic() + _FOLLOW_SECONDS, _RETRIES
        if thread_id is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_SECONDS):
                    await self._settled.wait()
        while True:
            spec, saver = self._current
            try:
                await self._bring_up(spec, saver, thread_id)
                async with self._gate.passing():
                    if self._current[1] is saver:  # otherwise, a tier between may have been passed by
                        return await call(saver)
                continue
            except NotStoredYetError:
                await asyncio.sleep(_FOLLOW_STEP_SECONDS)
            except SaverClosedError:
                if self._current[1] is saver:
                    raise
            except ThreadMovedError as exc:
                if monotonic() > give_up_at:
                    raise
                if exc.moved_to is not None and isinstance(thread_id, str):
                    self.branches.add(SetAside(thread_id, exc.moved_to, UNKNOWN_TIME), has_left=True)
                rising = await self._tier_above() if exc.moved else None
                if rising is not None:
                    if isinstance(thread_id, str) and not isinstance(saver, CachedPostgresSaver):
                        self.branches.left_before(saver.begun_anew & {thread_id})
                    try:
                        await self._bring_up(*rising, thread_id)  # a tier between may be passed by
                        return await call(rising[1])
                    except (ThreadMovedError, NotStoredYetError):
                        pass
                    except SaverClosedError:  # the ascent was given up just now, or this chain was closed
                        _ = self._current
                await asyncio.sleep(_FOLLOW_STEP_SECONDS)
            except spec.lost as exc:
                if spec is self._specs[0] or not retries or not await self._fall(spec, exc):
                    raise
                retries -= 1

    async def _bring_up(self, spec: Spec, saver: TierSaver, thread_id: object) -> None:
        """If a thread, or a branch of it, stands below a tier, move it up before a call is made on that tier.

        Raises:
            GlasspointError, psycopg.Error: The thread stands below, and cannot be moved now.
        """
        if not isinstance(thread_id, str) or not thread_id:
            return
        for below in self._below(spec):
            lookout = self._lookouts.get(below.name)
            if lookout is None:
                continue
            for each in (thread_id, *self.branches.ids_of(thread_id)):
                if not lookout.is_clear(each):
                    await self._bring_up_from(below.name, lookout, saver, each)

    async def _bring_up_from(self, tier: str, lookout: Lookout, saver: TierSaver, thread_id: str) -> None:
        drainer, give_up_at = self._drainers[tier], monotonic() + _FOLLOW_SECONDS
        drainer.drains_into(saver.status.tier)
        if thread_id in drainer.refused or not (await lookout.look(thread_id)).this:
            return
        done = Round()
        with self._telemetry.step("drain", Scope(thread_id, "")) as step:
            try:
                while not await drainer.one(lookout.saver, saver, thread_id, done):
                    if monotonic() > give_up_at:
                        raise ThreadMovedError(
                            f"This thread stands in the tier {tier}, and another process keeps it sealed: "
                            "ask again in a moment.",
                            moved=False,
                        )
                    await asyncio.sleep(_FOLLOW_STEP_SECONDS)
                    if thread_id in drainer.refused or not (await lookout.look(thread_id)).this:
                        break
            finally:
                step.facts |= _facts_of(tier, saver, done)

    # ---------------------------------------------------------------- down

    async def _fall(self, spec: Spec, why: Exception) -> bool:
        """Leave a tier whose server is lost. Return whether the call should be tried again."""
        below = next(iter(self._below(spec)), None)
        async with self._falling:
            if self._current[0] is not spec:
                return True  # another call has left the tier already
            return await self._fall_from(spec, below, why)

    async def _fall_from(self, spec: Spec, below: Spec | None, why: Exception) -> bool:
        async with self._gate.shut():
            if self._current[0] is not spec:
                return True  # it was promoted meanwhile
            try:
                await self.saver.ping()
            except spec.lost:
                if below is None:
                    return False
            else:
                return True  # it works again
            saver = await below.open()
            # The histories of these threads are in the lost tier: one that begins anew is not its real state.
            self._drainers[below.name].held_elsewhere = self._lower.threads_written
            self._note_undrained(self._undrained | {spec.name})
            await self._switch(below, saver)
            self._fell(spec, below, why)
            return True

    def _below(self, spec: Spec) -> list[Spec]:
        return self._specs[self._specs.index(spec) + 1 :]

    def _above(self, spec: Spec) -> list[Spec]:
        return self._specs[: self._specs.index(spec)]

    def _fell(self, spec: Spec, below: Spec, why: Exception) -> None:
        self._telemetry.emit(TierChanged(spec.name, below.name, spec.reason))
        _log.warning(
            "Fallback from tier %s to %s (%s): %s %s", spec.name, below.name, spec.reason, below.means, why
        )

    # ---------------------------------------------------------------- up

    async def _keep_watch(self) -> None:
        process_id = os.getpid()
        while True:
            await asyncio.sleep(max(self._probe_seconds * random.uniform(0.8, 1.2), self._probing.pause))
            if os.getpid() != process_id:  # the parent's loop is run in a forked child
                return
            await self._guarded(self._rise)

    async def _rise(self) -> None:
        await self._count()
        await self._climb()
        await self._look_below()
        await self._drain_leftovers()

    async def _look_below(self) -> None:
        """Find lower tiers that hold threads although no process works there any more."""
        for below in self._below(self._current[0]):
            lookout = self._lookouts.get(below.name)
            if lookout is None or below.name in self._undrained:
                continue
            holding = await lookout.look(None)
            if holding.any and holding.unused_seconds > _LEFT_SECONDS:
                self._note_undrained(self._undrained | {below.name})
            if lookout.misconfigured is not None:
                self._say_misconfigured(lookout.misconfigured)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do work that no caller waits for. No error ends the task."""
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

    async def _tier_above(self) -> tuple[Spec, TierSaver] | None:
        """Return the tier above and its saver, if this process is on its way up. If not, start the ascent."""
        if self._rising is None and not self._climbing.locked():
            self._background(self._guarded(self._climb), "glasspoint-tier-ascent", quiet_context())
        return self._rising

    async def _climb(self) -> None:
        """Go up to the best tier that can be reached, with all threads of this tier."""
        async with self._climbing:
            spec, _ = self._current
            for above in self._above(spec):
                try:
                    saver = await above.open()
                except above.lost:
                    continue
                except _MISCONFIGURED as exc:
                    self._say_misconfigured(exc)  # the next tier may be available
                    continue
                try:
                    await self._promote(above, saver)
                except BaseException:
                    if self._active is None or self.saver is not saver:
                        await saver.close()
                    raise
                return

    async def _promote(self, above: Spec, saver: TierSaver) -> None:
        """Drain the tier that works into the tier above, and work there from then on.

        Args:
            above: The tier above.
            saver: The open saver of that tier.

        Raises:
            GlasspointError: That is not possible now. Threads that were moved stay above, and calls find
                them there.
        """
        spec, lower = self._current
        self._rising = above, saver
        self._settled.clear()
        try:
            outcome = await self._move_up(spec, above, lower, saver)
        finally:
            self._rising = None
            self._settled.set()
        self._telemetry.emit(TierChanged(spec.name, above.name, "recovered"))
        _log.warning("Promoted from tier %s to %s: %s.", spec.name, above.name, outcome)

    async def _move_up(self, spec: Spec, above: Spec, lower: TierSaver, upper: TierSaver) -> str:
        """Drain while calls go on; then, while calls wait, drain the rest and switch the tier.

        If threads are left at the second step, both steps are repeated.

        Returns:
            What happened to the threads of the tier below, in words for the log.

        Raises:
            GlasspointError: The tier below was not empty at any of the attempts.
        """
        for _ in range(_LAST_DRAINS):
            is_lost = not await self._drain_while_calls_go_on(spec, above, lower, upper)
            outcome = await self._switch_while_calls_wait(spec, above, lower, upper, is_lost=is_lost)
            if outcome is not None:
                return outcome
            await asyncio.sleep(_FOLLOW_STEP_SECONDS)  # another process may be draining some threads
        raise GlasspointError("The tier below is not empty yet.")

    async def _drain_while_calls_go_on(
        self, spec: Spec, above: Spec, lower: TierSaver, upper: TierSaver
    ) -> bool:
        """Drain until the tier above refuses no thread for a passing reason.

        Returns:
            Whether that is done. `False`: the server of the tier below is lost.

        Raises:
            GlasspointError: The tier above refuses a thread, and a better tier is back: go up to that one
                instead. It may have the thread already; then the tier above refuses it for a minute.
        """
        pause = _FOLLOW_STEP_SECONDS
        try:
            while (await self._drain(spec, lower, upper)).put_off:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._check_that_works(lower)
                await self._check_that_none_is_better(above)
        except spec.lost:
            return False
        return True

    async def _switch_while_calls_wait(
        self, spec: Spec, above: Spec, lower: TierSaver, upper: TierSaver, *, is_lost: bool
    ) -> str | None:
        """Drain what has come since, and work in the tier above from then on.

        Args:
            spec, lower: The tier below, and its saver.
            above, upper: The tier above, and its saver.
            is_lost: Whether the server of the tier below is lost: then its threads are drained later.

        Returns:
            What happened to the threads below, in words for the log. `None`: some are left, and the tier was
            not switched.
        """
        async with self._gate.shut():
            self._check_that_works(lower)
            if not is_lost and not await self._drain_the_rest(spec, lower, upper):
                return None
            has_lost_threads = not is_lost and await self._has_lost_threads(lower)
            await self._remember_branches(upper)
            refused = self._drainers[spec.name].refused
            if is_lost or refused:  # before any caller reads `whole`
                self._note_undrained(self._undrained | {spec.name})
            await self._switch(above, upper)
        if has_lost_threads:
            return "but Redis may have lost threads that were written there: see the error above"
        if is_lost:
            return "the one below is lost, too; what it holds will be drained when it is back"
        if refused:
            return f"but for {len(refused)} threads that cannot be drained, as said above; they stay below"
        return "everything that was written meanwhile is there"

    async def _drain_the_rest(self, spec: Spec, lower: TierSaver, upper: TierSaver) -> bool:
        """Drain while calls wait. Return whether the tier is empty."""
        for _ in range(_ROUNDS_A_MOMENT):
            done = await self._drain(spec, lower, upper)
            if done.is_empty:
                return True
            if done.put_off:
                break
        return False

    @staticmethod
    async def _has_lost_threads(saver: TierSaver) -> bool:
        return isinstance(saver, RedisSaver) and await saver.look_for_losses()

    def _check_that_works(self, lower: TierSaver) -> None:
        if self._current[1] is not lower:
            raise GlasspointError("The tier below was lost meanwhile.")

    async def _check_that_none_is_better(self, above: Spec) -> None:
        for better in self._above(above):
            try:
                saver = await better.open()
            except better.lost:
                continue
            await saver.close()
            raise GlasspointError(f"The tier {better.name} is back: {above.name} is not drained into.")

    async def _remember_branches(self, upper: TierSaver) -> None:
        """Read which branches were set aside, also by other processes: runs under way may belong to them."""
        if isinstance(upper, CachedPostgresSaver):
            for set_aside in await upper.set_aside_since(UNDER_WAY):
                self.branches.add(set_aside)

    async def _drain_leftovers(self, *, is_start: bool = False) -> None:
        """Drain the lower tiers that no process works in, if they can be reached.

        Args:
            is_start: Whether no call was made yet. If so, and the tier above refuses some threads for now,
                work in the lower tier: its threads are longer there.
        """
        spec, saver = self._current
        for below in self._below(spec):
            if below.name not in self._undrained:
                continue
            try:
                lower = await self._open_lower(below)
            except below.lost:
                continue
            try:
                done = await self._drain_leftover(
                    below, lower, saver, seconds=_START_SECONDS if is_start else 0
                )
                if not done.is_empty and is_start:
                    await self._work_below(spec, below, lower, done)
                    return
                if done.is_empty and not self._drainers[below.name].refused:
                    self._note_undrained(self._undrained - {below.name})
            except below.lost:
                continue
            except spec.lost:
                if not is_start:
                    raise
                await self._work_below(spec, below, lower, Round())
                return
            finally:
                await self._close_lower(lower)

    async def _drain_leftover(
        self, below: Spec, lower: TierSaver, upper: TierSaver, *, seconds: float
    ) -> Round:
        """Drain a lower tier. While other processes have sealed threads there, try for at least `seconds`."""
        give_up_at = monotonic() + seconds
        for attempt in itertools.count(1):
            done = await self._drain(below, lower, upper)
            if done.is_empty or done.put_off:
                break
            if attempt >= _LAST_DRAINS and monotonic() > give_up_at:
                break
            # Another process is draining some threads, or has died while it did: then its seals expire.
            await asyncio.sleep(_FOLLOW_STEP_SECONDS)
        return done

    async def _open_lower(self, below: Spec) -> TierSaver:
        """Return the saver of a lower tier: the kept one, or a new one."""
        if self._kept is not None and self._kept[0] is below:
            return self._kept[1]
        return await below.open()

    async def _close_lower(self, lower: TierSaver) -> None:
        """Close a saver from `_open_lower`, unless calls use it now, or it is kept because of its threads."""
        if self._kept is not None and self._kept[1] is lower:
            if self._kept[0].name in self._undrained:
                return
            self._kept = None
        if self._active is None or self._active[1] is not lower:
            await lower.close()

    async def _work_below(self, spec: Spec, below: Spec, lower: TierSaver, done: Round) -> None:
        above = self.saver
        self._active = (below, lower)
        above.status.set_active(False)
        lower.status.set_active(True)
        self._note_undrained(self._undrained - {below.name})
        await above.close()
        self._telemetry.emit(TierChanged(spec.name, below.name, spec.reason))
        _log.warning(
            "Fallback from tier %s to %s: threads that stand in %s cannot be drained now (%s). They are "
            "tried again; until then, all conversations go on below.",
            spec.name,
            below.name,
            below.name,
            _most_common(done.put_off.values())
            or ("another process has sealed them" if done.found else "the tier above takes no writes"),
        )

    async def _drain(self, spec: Spec, lower: TierSaver, upper: TierSaver) -> Round:
        # The best tier is never drained, so `lower` is a `RedisSaver` or a `MemorySaver`.
        drainer, done = self._drainers[spec.name], Round()
        drainer.drains_into(upper.status.tier)
        with self._telemetry.step("drain", None) as step:
            try:
                await drainer.round(lower, upper, done)  # type: ignore[arg-type]
            finally:
                if done.moved or done.checkpoints:
                    step.facts |= _facts_of(spec.name, upper, done)
        waiting = done.found - done.moved
        self._note_held(spec.name, await _held_by(lower) if waiting or drainer.refused else _NOTHING)
        if (waiting or done.put_off) and self._progress.due():
            _log.warning(
                "Draining the tier %s: %d threads are moved in this round, %d wait (%s), %d cannot be moved.",
                spec.name,
                done.moved,
                waiting,
                _most_common(done.put_off.values()) or "another process drains them",
                len(drainer.refused),
            )
        return done

    async def _count(self) -> None:
        """Count the threads in the tier that works, for the metrics, if it is a lower tier."""
        spec, saver = self._current
        if spec is self._specs[0] or isinstance(saver, CachedPostgresSaver) or monotonic() < self._count_at:
            return
        self._count_at = monotonic() + _COUNT_SECONDS
        self._note_held(spec.name, await _held_by(saver))

    # ---------------------------------------------------------------- helpers

    @property
    def _current(self) -> tuple[Spec, TierSaver]:
        if self._active is None:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")
        return self._active

    @property
    def _lower(self) -> RedisSaver | MemorySaver:
        saver = self.saver
        assert not isinstance(saver, CachedPostgresSaver)
        return saver

    def _note_undrained(self, tiers: frozenset[str]) -> None:
        self._undrained = tiers
        self.saver.status.undrained = tuple(sorted(tiers))

    def _note_held(self, tier: str, held: Held) -> None:
        self._held_below[tier] = held
        self._show_held(self.saver)

    def _show_held(self, saver: TierSaver) -> None:
        saver.status.undrained_threads = {tier: held.threads for tier, held in self._held_below.items()}
        saver.status.undrained_checkpoints = {
            tier: held.checkpoints for tier, held in self._held_below.items()
        }

    def _background(self, work: Coroutine[Any, Any, None], name: str, context: Context) -> None:
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _switch(self, spec: Spec, saver: TierSaver) -> None:
        of_before, before = self._current
        if not isinstance(before, CachedPostgresSaver):  # runs under way may have begun there
            self.branches.switched(before.begun_anew)
        # A tier that was passed by may hold threads of processes that have died.
        passed_by = {each.name for each in self._above(of_before) if each in self._below(spec)}
        self._active = (spec, saver)
        self._note_undrained((self._undrained | passed_by) - {spec.name})
        self._show_held(saver)
        before.status.set_active(False)
        saver.status.set_active(True)
        if of_before.name == "memory" and self._drainers["memory"].refused:
            self._kept = (of_before, before)  # if it were closed, these threads would be lost
            return
        with suppress(Exception):  # its server may be lost
            await before.close()

    async def _let_go(self) -> None:
        """Close the saver that was kept, and log the threads that could not be drained: they end here."""
        if self._kept is None:
            return
        (spec, saver), self._kept = self._kept, None
        if refused := self._drainers[spec.name].refused:
            _log.error(
                "%d threads of the tier %s could not be drained, and are lost with this process: %s.",
                len(refused),
                spec.name,
                ", ".join(
                    f"{thread_id!r} ({why})" for thread_id, why in list(refused.items())[:_NAMED_AT_MOST]
                ),
            )
        await saver.close()


class _Report:
    """Reports the progress of a drain to telemetry and to the chain."""

    def __init__(self, tier: str, telemetry: Telemetry, branches: Branches) -> None:
        self._tier = tier
        self._telemetry = telemetry
        self.branches = branches

    def imported(self, checkpoints: int) -> None:
        self._telemetry.emit(Drained(self._tier, checkpoints))

    def drained(self, result: DrainResult) -> None:
        self._telemetry.emit(ThreadDrained(result))

    def set_aside(self, set_aside: SetAside, branches: Sequence[Branch]) -> None:
        # Without the checkpoint that the branch goes on from: the thread itself has it, too.
        own = [each for branch in branches for each in sorted(branch.ids)[1 if branch.bases else 0 :]]
        self.branches.add(set_aside, own)


def _facts_of(tier: str, upper: TierSaver, done: Round) -> dict[str, str | int]:
    """Return what the span of a drain tells."""
    return {
        "from_tier": tier,
        "to_tier": upper.status.tier,
        "threads": done.moved,
        "checkpoints": done.checkpoints,
    }


async def _held_by(lower: TierSaver) -> Held:
    """Count what a lower tier holds. A thread that was refused may have expired since."""
    assert not isinstance(lower, CachedPostgresSaver)  # the best tier is never drained
    return await lower.count()


def _most_common(words: Iterable[str]) -> str:
    counted = Counter(words).most_common(1)
    return counted[0][0] if counted else ""


class _Gate:
    """Lets calls pass while it is open. `shut` waits until the calls inside are done."""

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
