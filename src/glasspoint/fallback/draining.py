"""Draining: moves the threads of a lower tier into the tier above, two threads at a time.

    seal      the thread's callers wait
    relate    does it continue the history above, or does it stand beside it?
    import    the newest checkpoint first, then the others, oldest first; or set aside, under another id
    retire    the thread is forgotten below, and its callers are sent to the tier above

To import something again changes nothing. So a drain that was cut off, even by a crash, is simply repeated: a
dead process's seal expires, and what was imported already is found above.

A thread that cannot be moved does not delay the others. If the reason is passing (a full disk, a deadlock),
the thread is tried again. If not (an id that is too long for an index, a part that was evicted), the thread
stays where it is.

Open this file when threads are not moved up, or are set aside although they should not be.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol

from glasspoint.errors import (
    GlasspointError,
    L2DeadlineError,
    RedisRefusedError,
    SaverClosedError,
    SchemaError,
    ThreadDamagedError,
    ThreadInUseError,
    ThreadMovedError,
)
from glasspoint.l2.faults import is_passing
from glasspoint.logs import get_logger
from glasspoint.model.batches import in_batches
from glasspoint.model.codec import PendingWrites
from glasspoint.model.lineage import SetAside, branch_of, from_fork, mark_of, name_apart, noted_in
from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from glasspoint.model.batches import Item, StoredId
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.lineage import Branch, Relation
    from glasspoint.telemetry.events import DrainResult

__all__ = ["Drainer", "LowerTier", "Report", "Round", "UpperTier"]

_log = get_logger("glasspoint")

# How long a seal lasts if its process has died; and how long late callers of a retired thread are sent to the
# tier above. The latter is longer than every process needs to see that this tier is back.
_LEASE_SECONDS = 10.0
_MARKER_SECONDS = 60.0

# A seal that is given back expires at once.
_NO_LEASE_SECONDS = 0.001

# Only a few, so that the callers of a thread wait for little more than this thread.
_THREADS_AT_ONCE = 2


class UpperTier(Protocol):
    """A tier that threads can be drained into."""

    async def check_takes_writes(self) -> None:
        """Raise a `ConnectionError` if the tier takes no writes now."""

    async def relate(self, thread_id: str, branch: Branch) -> Relation:
        """Compare a branch with what the tier has of its thread and namespace."""

    async def newest_held(self, thread_id: str, branch: Branch) -> str | None:
        """Return the newest checkpoint id of a branch that the tier has too, `None` if it has none."""

    async def import_checkpoints(self, items: Sequence[Item], *, branch: Branch | None = None) -> int:
        """Store checkpoints of one scope with their writes, or writes alone, byte for byte.

        Args:
            items: What to store.
            branch: The branch that the items begin. If it does not continue the thread, nothing is stored.

        Returns:
            The number of checkpoints that were new.

        Raises:
            ThreadInUseError: The branch does not continue the thread.
        """

    async def set_aside_from(self, thread_id: str) -> list[SetAside]:
        """Return the branches of a thread that were set aside, the newest first."""

    async def note_set_aside(self, set_aside: SetAside) -> None:
        """Record that a branch is about to be set aside. Repeating this changes nothing."""


class LowerTier(Protocol):
    """A tier that can be drained."""

    def thread_ids(self) -> AsyncIterator[str]:
        """Yield the id of every thread that has data here."""

    async def seal_thread(
        self, thread_id: str, *, lease_seconds: float, token: str | None = None
    ) -> str | None:
        """Keep all other callers from a thread for some time. With the token, renew the seal.

        Returns:
            The token. `None`: another caller has the seal.
        """

    def export_thread(self, thread_id: str) -> AsyncIterator[Item]:
        """Yield everything of a thread, oldest first in each namespace."""

    async def retire_thread(
        self, thread_id: str, token: str, *, marker_seconds: float, moved_to: str | None = None
    ) -> bool:
        """Forget a sealed thread, and send late callers up for some time. `False`: the seal was lost."""


class Report(Protocol):
    """Receives the progress of a drain."""

    def imported(self, checkpoints: int) -> None:
        """So many checkpoints were new above."""

    def drained(self, result: DrainResult) -> None:
        """A thread was moved, or can never be moved."""

    def set_aside(self, set_aside: SetAside, branches: Sequence[Branch]) -> None:
        """A thread was stored above under another id."""


@dataclass
class Round:
    """The result of one attempt to move all threads of a lower tier.

    Attributes:
        found: Number of threads there, without those that can never be moved.
        moved: Number of threads that are above now.
        checkpoints: Number of checkpoints that are new above.
        put_off: Threads that the tier above refused for a passing reason -> the reason, in one word.
    """

    found: int = 0
    moved: int = 0
    checkpoints: int = 0
    put_off: dict[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether the lower tier has no threads, except those that can never be moved."""
        return not self.found


class Drainer:
    """Moves the threads of one lower tier into an upper one, round by round."""

    def __init__(self, tier: str, report: Report) -> None:
        """Name the tier that is drained.

        Args:
            tier: The lower tier's name, for the log.
            report: Receives the progress.
        """
        self._tier = tier
        self._report = report
        self.held_elsewhere: frozenset[str] = frozenset()
        """Threads with a history in a tier that is lost now. If one began anew, that is not its state."""
        self.refused: dict[str, str] = {}
        """Threads that the tier above never takes, as far as this process knows -> the reason, in a word."""
        self._upper: str | None = None

    def drains_into(self, upper: str) -> None:
        """Name the tier above. A thread that another tier has refused is tried again."""
        if upper != self._upper:
            self._upper = upper
            self.refused.clear()

    async def round(self, lower: LowerTier, upper: UpperTier, done: Round | None = None) -> Round:
        """Try to move every thread, once.

        Threads that are new, or that another process is draining, wait for the next round.

        Args:
            lower, upper: The tiers.
            done: Where the result is kept, for a caller that wants it also after an error.

        Raises:
            ConnectionError, TimeoutError: One of the tiers cannot be reached.
            SaverClosedError: One of the savers was closed meanwhile.
        """
        done = Round() if done is None else done
        slots = asyncio.Semaphore(_THREADS_AT_ONCE)
        await upper.check_takes_writes()  # before any thread's callers have to wait

        async def move(thread_id: str) -> None:
            try:
                moved = await self._move(lower, upper, thread_id, done)
                done.moved += moved  # not before the await, meanwhile others count here
            except Exception as exc:
                match _fate_of(exc):
                    case "lost":
                        raise
                    case "passing":
                        done.put_off[thread_id] = _word_for(exc)
                    case "never":
                        done.found -= 1
                        self._refuse(thread_id, exc)
            finally:
                slots.release()

        try:
            async with asyncio.TaskGroup() as moving:
                async for thread_id in lower.thread_ids():
                    if thread_id in self.refused:
                        continue
                    done.found += 1
                    await slots.acquire()
                    moving.create_task(move(thread_id), name="glasspoint-drain-thread")
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # all have the same reason: a tier is lost
        return done

    async def one(self, lower: LowerTier, upper: UpperTier, thread_id: str, done: Round) -> bool:
        """Move one thread, for a call that waits for it.

        Args:
            lower, upper: The tiers.
            thread_id: The thread.
            done: Receives what was moved.

        Returns:
            `True`: the thread is above, or can never be moved. `False`: another process has its seal, so try
            again.

        Raises:
            Exception: The tier above refuses the thread for now, or one of the tiers cannot be reached.
        """
        await upper.check_takes_writes()
        try:
            is_above = await self._move(lower, upper, thread_id, done)
        except Exception as exc:
            if _fate_of(exc) != "never":
                raise
            self._refuse(thread_id, exc)
            return True
        done.moved += is_above
        return is_above

    # ---------------------------------------------------------------- helpers

    def _refuse(self, thread_id: str, exc: Exception) -> None:
        self.refused[thread_id] = _word_for(exc)
        self._report.drained("refused")
        _log.error(  # without the text, which may quote a value
            "Thread %r cannot be drained (%s): it stays in the tier %s, where nobody reads it. All others go "
            "on. It is tried again when a better tier is back and, from Redis, when a process starts.",
            thread_id,
            _word_for(exc),
            self._tier,
        )

    async def _move(self, lower: LowerTier, upper: UpperTier, thread_id: str, done: Round) -> bool:
        sealed_at = monotonic()
        token = await lower.seal_thread(thread_id, lease_seconds=_LEASE_SECONDS)
        if token is None:
            return False
        try:
            seal = _Seal(lower, thread_id, token, renew_at=sealed_at + _LEASE_SECONDS / 2)
            return await self._move_sealed(lower, upper, thread_id, seal, done)
        except BaseException:
            # End the seal, so that the thread's callers do not wait until it expires.
            with suppress(Exception):
                await lower.seal_thread(thread_id, lease_seconds=_NO_LEASE_SECONDS, token=token)
            raise

    async def _move_sealed(
        self, lower: LowerTier, upper: UpperTier, thread_id: str, seal: _Seal, done: Round
    ) -> bool:
        branches, tips, earlier = await _branches(lower.export_thread(thread_id))
        relations = {await upper.relate(thread_id, branch) for branch in branches}
        place, forks = thread_id, dict[str, str]()
        # A thread without checkpoints has only writes, which belong to a checkpoint above.
        result: DrainResult = "continued" if "continued" in relations or not branches else "new"
        set_aside = earlier
        is_anew = thread_id in self.held_elsewhere and bool(branches)
        is_anew = is_anew and not any(branch.bases for branch in branches)
        if "apart" in relations or (is_anew and "continued" not in relations):
            # A drain that was cut off may have moved a part of a branch: this part stays in the thread.
            for branch in branches:
                if fork := await upper.newest_held(thread_id, branch):
                    forks[branch.namespace] = fork
            branches = [from_fork(branch, forks.get(branch.namespace)) for branch in branches]
            set_aside = await _begun(upper, thread_id, branches) or name_apart(thread_id, branches)
            place, result = set_aside.thread_id, "set_aside"
        if set_aside is not None:
            await upper.note_set_aside(set_aside)
        unbegun = {branch.namespace: branch for branch in branches} if place == thread_id else {}
        try:
            if not await seal.holds():
                return False
            tips_above = await self._import_tips(upper, unbegun, tips, done)
            exported = lower.export_thread(thread_id)
            if place != thread_id and set_aside is not None:
                exported = _moved_from(forks, exported, set_aside)
            async for items in in_batches(exported, without=tips_above):
                if not await seal.holds():
                    return False
                begun = unbegun.pop(items[0].scope.checkpoint_ns, None)
                self._imported(await upper.import_checkpoints(items, branch=begun), done)
        except ThreadInUseError:
            # Another process has begun to move another branch of this thread, and that one continues the
            # history above. Look at this branch again.
            await lower.seal_thread(thread_id, lease_seconds=_NO_LEASE_SECONDS, token=seal.token)
            return False
        moved_to = place if place != thread_id else None
        if not await lower.retire_thread(
            thread_id, seal.token, marker_seconds=_MARKER_SECONDS, moved_to=moved_to
        ):
            return False
        self._report.drained(result)
        if moved_to is not None and set_aside is not None:
            self._report.set_aside(set_aside, branches)
            _log.warning(
                "Thread %r was written to during the outage, and does not go on from what was there before: "
                "what the tier %s has of it is set aside as the thread %r.",
                thread_id,
                self._tier,
                moved_to,
            )
        return True

    def _imported(self, checkpoints: int, done: Round) -> None:
        done.checkpoints += checkpoints
        self._report.imported(checkpoints)

    async def _import_tips(
        self,
        upper: UpperTier,
        unbegun: dict[str, Branch],
        tips: Mapping[str, StoredCheckpoint],
        done: Round,
    ) -> set[StoredId]:
        """Import the newest checkpoint of each namespace before all others; the root's is the last of these.

        From then on, readers above have the whole state, but not yet its history.

        Args:
            unbegun: Namespace -> branch that has not been begun above. This method removes those that it
                begins.

        Returns:
            The checkpoints that were imported.
        """
        above: set[StoredId] = set()
        for namespace in sorted(unbegun, reverse=True):
            tip = tips[namespace]
            if tip.needs_ancestors:  # without them, its state would be incomplete
                continue
            self._imported(await upper.import_checkpoints([tip], branch=unbegun.pop(namespace)), done)
            above.add((namespace, tip.checkpoint_id))
        return above


@dataclass
class _Seal:
    """The seal of a thread that is being moved."""

    lower: LowerTier
    thread_id: str
    token: str
    renew_at: float

    async def holds(self) -> bool:
        """Renew the seal in time, and return whether it was there all the time.

        If it was not, another process may have moved the thread, and somebody may have deleted it above.
        """
        if monotonic() < self.renew_at:
            return True
        self.renew_at = monotonic() + _LEASE_SECONDS / 2
        renewed = await self.lower.seal_thread(self.thread_id, lease_seconds=_LEASE_SECONDS, token=self.token)
        return renewed is not None


def _fate_of(exc: BaseException) -> Literal["lost", "passing", "never"]:
    """Tell what an error means: a tier is lost, or this thread may be moved later, or never."""
    if isinstance(exc, ThreadMovedError | L2DeadlineError | RedisRefusedError | SchemaError):
        return "passing"
    if isinstance(exc, ThreadDamagedError):
        return "never"
    if isinstance(exc, ConnectionError | TimeoutError | SaverClosedError):
        return "lost"
    return "passing" if is_passing(exc) else "never"


def _word_for(exc: BaseException) -> str:
    cause = exc.__cause__ if isinstance(exc, GlasspointError) and exc.__cause__ is not None else exc
    return type(cause).__name__


async def _begun(upper: UpperTier, thread_id: str, branches: Sequence[Branch]) -> SetAside | None:
    """Return the branch that was set aside earlier, and that these branches continue.

    A part of a branch may have come up through another tier: a drain into that tier was cut off after the
    newest checkpoint. Ids of this part alone would give the branch a second name.
    """
    for earlier in await upper.set_aside_from(thread_id):
        for branch in branches:
            own = branch.own()
            if own.ids and await upper.relate(earlier.thread_id, own) == "continued":
                return earlier
    return None


async def _branches(
    items: AsyncIterator[Item],
) -> tuple[list[Branch], dict[str, StoredCheckpoint], SetAside | None]:
    """Return the branch and the newest checkpoint of each namespace of a thread.

    The third result says from which thread it was set aside, if an earlier drain into this tier did that.
    """
    parents: dict[str, dict[str, str | None]] = defaultdict(dict)
    tips: dict[str, StoredCheckpoint] = {}
    brought: dict[str, set[str]] = defaultdict(set)
    earlier = None
    async for item in items:
        if not isinstance(item, PendingWrites):
            parents[item.scope.checkpoint_ns][item.checkpoint_id] = item.parent_id
            if item.is_brought:
                brought[item.scope.checkpoint_ns].add(item.checkpoint_id)
            tips[item.scope.checkpoint_ns] = item  # items come oldest first, so the newest one stays
            earlier = earlier or noted_in(item.metadata, item.scope.thread_id)
    branches = [branch_of(namespace, ids, brought[namespace]) for namespace, ids in parents.items()]
    return branches, tips, earlier


async def _moved_from(
    forks: Mapping[str, str], items: AsyncIterator[Item], set_aside: SetAside
) -> AsyncIterator[Item]:
    """Move items to the thread that is set aside, unless they are older than the fork of their namespace."""
    async for item in items:
        is_older = item.checkpoint_id < forks.get(item.scope.checkpoint_ns, "")
        yield item if is_older else _moved(item, set_aside)


def _moved(item: Item, set_aside: SetAside) -> Item:
    scope = Scope(set_aside.thread_id, item.scope.checkpoint_ns)
    if isinstance(item, PendingWrites):
        return item._replace(scope=scope)
    noted = mark_of(set_aside)
    return replace(
        item,
        scope=scope,
        metadata={**item.metadata, **noted},
        metadata_json=_with(item.metadata_json, noted),
    )


def _with(metadata_json: str, noted: dict[str, Any]) -> str:
    """Add a key to the text of a JSON object. The rest of the text is not changed, not even its numbers."""
    if not metadata_json:
        return ""
    start, more = metadata_json.rstrip()[:-1], json.dumps(noted)[1:]
    return f"{start}{'' if start.strip() == '{' else ', '}{more}"
