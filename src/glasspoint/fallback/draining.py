"""Draining: what a lower tier holds goes into the one above, a thread at a time.

    seal      its callers wait
    relate    does it go on from what stands above, or beside it?
    import    the newest checkpoint first, then the others, oldest first; or set aside, under another id
    retire    from here on its callers are sent after it

Importing is idempotent, so a drain that was cut off anywhere, by a crash too, is simply done again: the seal
of the dead expires, and what was imported already is found there.

A thread that cannot be moved does not hold up the others. If the reason may pass (a full disk, a deadlock),
the thread is tried again. If not (an id that no index takes, a part that was evicted), it stays where it is.
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
    from typing import TypeAlias

    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.lineage import Branch, Relation
    from glasspoint.telemetry.events import DrainResult

    Item: TypeAlias = StoredCheckpoint | PendingWrites
    StoredId: TypeAlias = tuple[str, str]  # namespace, checkpoint id

__all__ = ["Drainer", "LowerTier", "Report", "Round", "UpperTier"]

_log = get_logger("glasspoint")

# How long a seal outlives a drainer that died, and how long a retired thread's late callers are still sent
# after it: longer than it takes every process to see that the tier above is back.
_LEASE_SECONDS = 10.0
_MARKER_SECONDS = 60.0

# A seal that is given back expires at once.
_NO_LEASE_SECONDS = 0.001

# Few, so that each thread's callers wait for little more than their own.
_THREADS_AT_ONCE = 2


class UpperTier(Protocol):
    """What can be drained into."""

    async def check_takes_writes(self) -> None:
        """Raise a `ConnectionError` if it takes none now."""

    async def relate(self, thread_id: str, branch: Branch) -> Relation:
        """Tell how a branch stands to what is here of its thread and namespace."""

    async def newest_held(self, thread_id: str, branch: Branch) -> str | None:
        """Return the newest checkpoint of a branch that is here, too, `None` if none is."""

    async def import_checkpoints(self, items: Sequence[Item], *, branch: Branch | None = None) -> int:
        """Store checkpoints of one scope with their writes, or writes alone, as they are.

        Args:
            branch: What they are the beginning of; it is not stored if it is apart by now.

        Returns:
            How many checkpoints were new.

        Raises:
            ThreadInUseError: It is apart.
        """

    async def note_set_aside(self, set_aside: SetAside) -> None:
        """Write down that a branch is about to be set aside. Again is harmless."""


class LowerTier(Protocol):
    """What can be drained."""

    def thread_ids(self) -> AsyncIterator[str]:
        """Yield every thread that has something here."""

    async def seal_thread(
        self, thread_id: str, *, lease_seconds: float, token: str | None = None
    ) -> str | None:
        """Keep everybody from a thread for so long; with the token again, for longer.

        Returns:
            The token, `None` if somebody else holds the seal.
        """

    def export_thread(self, thread_id: str) -> AsyncIterator[Item]:
        """Yield what a thread holds, oldest first in each namespace."""

    async def retire_thread(
        self, thread_id: str, token: str, *, marker_seconds: float, moved_to: str | None = None
    ) -> bool:
        """Forget a sealed thread, and send late callers away for so long. False: the seal was lost."""


class Report(Protocol):
    """Who is told how a drain goes on."""

    def imported(self, checkpoints: int) -> None:
        """So many checkpoints were new above."""

    def drained(self, result: DrainResult) -> None:
        """A thread was moved, or will never be."""

    def set_aside(self, set_aside: SetAside, branches: Sequence[Branch]) -> None:
        """A thread stands above under another id now."""


@dataclass
class Round:
    """What one look at all threads of a lower tier came to.

    Attributes:
        found: Threads that were there, without those that can never be moved.
        moved: Threads that are above now.
        put_off: Threads that the tier above refused for a passing reason -> the reason, one word.
    """

    found: int = 0
    moved: int = 0
    put_off: dict[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was there that can be moved: only then is the lower tier empty."""
        return not self.found


class Drainer:
    """Moves the threads of one lower tier into an upper one, round by round."""

    def __init__(self, tier: str, report: Report) -> None:
        """Name the tier that is drained.

        Args:
            tier: The lower tier's name, for the log.
            report: Who is told how it goes on.
        """
        self._tier = tier
        self._report = report
        self.held_elsewhere: frozenset[str] = frozenset()
        """Threads that have a history in a tier that is lost now: what begins anew is not their state."""
        self.refused: dict[str, str] = {}
        """Threads that can never be moved, as far as this process knows -> why, in one word."""

    async def round(self, lower: LowerTier, upper: UpperTier) -> Round:
        """Try to move every thread, once.

        Threads that come meanwhile, or that another process is draining, are for the next round.

        Raises:
            ConnectionError, TimeoutError: One of the tiers cannot be reached.
            SaverClosedError: One of them was closed meanwhile.
        """
        done = Round()
        slots = asyncio.Semaphore(_THREADS_AT_ONCE)
        await upper.check_takes_writes()  # before any thread's callers have to wait

        async def move(thread_id: str) -> None:
            try:
                moved = await self._move(lower, upper, thread_id)
                done.moved += moved
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
            raise failures.exceptions[0] from None  # they fail together: a tier is gone
        return done

    async def one(self, lower: LowerTier, upper: UpperTier, thread_id: str) -> bool:
        """Move one thread, for a call that waits for it.

        Returns:
            Whether it is above now, or will never be. If not, another process holds its seal: look again.

        Raises:
            Exception: The tier above refuses it for now, or one of the tiers cannot be reached.
        """
        await upper.check_takes_writes()
        try:
            return await self._move(lower, upper, thread_id)
        except Exception as exc:
            if _fate_of(exc) != "never":
                raise
            self._refuse(thread_id, exc)
            return True

    # ---------------------------------------------------------------- helpers

    def _refuse(self, thread_id: str, exc: Exception) -> None:
        self.refused[thread_id] = _word_for(exc)
        self._report.drained("refused")
        _log.error(  # without the text, which may quote a value
            "Thread %r cannot be drained (%s): it stays in the tier %s, where nobody reads it. All others go "
            "on. The next start of a process tries again.",
            thread_id,
            _word_for(exc),
            self._tier,
        )

    async def _move(self, lower: LowerTier, upper: UpperTier, thread_id: str) -> bool:
        token = await lower.seal_thread(thread_id, lease_seconds=_LEASE_SECONDS)
        if token is None:
            return False
        try:
            return await self._move_sealed(lower, upper, thread_id, token)
        except BaseException:
            # Its callers need not wait until the seal expires, whichever tier is lost.
            with suppress(Exception):
                await lower.seal_thread(thread_id, lease_seconds=_NO_LEASE_SECONDS, token=token)
            raise

    async def _move_sealed(self, lower: LowerTier, upper: UpperTier, thread_id: str, token: str) -> bool:
        branches, tips, earlier = await _branches(lower.export_thread(thread_id))
        relations = {await upper.relate(thread_id, branch) for branch in branches}
        place, forks = thread_id, dict[str, str]()
        # Writes alone belong to a checkpoint that is above.
        result: DrainResult = "continued" if "continued" in relations or not branches else "new"
        set_aside = earlier
        is_anew = thread_id in self.held_elsewhere and bool(branches)
        is_anew = is_anew and not any(branch.bases for branch in branches)
        if "apart" in relations or (is_anew and "continued" not in relations):
            # A drain that was cut off has moved a part: the rest of that stays in the thread, too.
            for branch in branches:
                if fork := await upper.newest_held(thread_id, branch):
                    forks[branch.namespace] = fork
            branches = [from_fork(branch, forks.get(branch.namespace)) for branch in branches]
            set_aside = name_apart(thread_id, branches)
            place, result = set_aside.thread_id, "set_aside"
        if set_aside is not None:
            await upper.note_set_aside(set_aside)
        renew_at = monotonic() + _LEASE_SECONDS / 2
        unbegun = {branch.namespace: branch for branch in branches} if place == thread_id else {}
        try:
            done = await self._import_tips(upper, unbegun, tips)
            exported = lower.export_thread(thread_id)
            if place != thread_id and set_aside is not None:
                exported = _moved_from(forks, exported, set_aside)
            async for items in in_batches(exported, without=done):
                begun = unbegun.pop(items[0].scope.checkpoint_ns, None)
                self._report.imported(await upper.import_checkpoints(items, branch=begun))
                if monotonic() > renew_at:
                    if await lower.seal_thread(thread_id, lease_seconds=_LEASE_SECONDS, token=token) is None:
                        return False
                    renew_at = monotonic() + _LEASE_SECONDS / 2
        except ThreadInUseError:
            # Another process has begun to move another branch of this thread. The first to begin goes on from
            # what is above; this one looks again.
            await lower.seal_thread(thread_id, lease_seconds=_NO_LEASE_SECONDS, token=token)
            return False
        moved_to = place if place != thread_id else None
        if not await lower.retire_thread(thread_id, token, marker_seconds=_MARKER_SECONDS, moved_to=moved_to):
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

    async def _import_tips(
        self, upper: UpperTier, unbegun: dict[str, Branch], tips: Mapping[str, StoredCheckpoint]
    ) -> set[StoredId]:
        """Import the newest checkpoint of each namespace before the others, the root's last.

        A reader above has the whole state from then on, though not yet all that led to it.

        Args:
            unbegun: Namespace -> branch of which nothing is above; what is begun here is taken out.

        Returns:
            What was imported.
        """
        done: set[StoredId] = set()
        for namespace in sorted(unbegun, reverse=True):
            tip = tips[namespace]
            if tip.needs_ancestors:  # by itself it would show a shorter state than it has
                continue
            self._report.imported(await upper.import_checkpoints([tip], branch=unbegun.pop(namespace)))
            done.add((namespace, tip.checkpoint_id))
        return done


def _fate_of(exc: BaseException) -> Literal["lost", "passing", "never"]:
    """Whether a tier is lost, or one thread may be moved later, or never."""
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


async def _branches(
    items: AsyncIterator[Item],
) -> tuple[list[Branch], dict[str, StoredCheckpoint], SetAside | None]:
    """Return what a thread holds: a branch for each namespace, and its newest checkpoint.

    Also from where the thread was set aside, if it was, by the tier below this one.
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
            tips[item.scope.checkpoint_ns] = item  # oldest first, so the last one stays
            earlier = earlier or noted_in(item.metadata, item.scope.thread_id)
    branches = [branch_of(namespace, ids, brought[namespace]) for namespace, ids in parents.items()]
    return branches, tips, earlier


async def _moved_from(
    forks: Mapping[str, str], items: AsyncIterator[Item], set_aside: SetAside
) -> AsyncIterator[Item]:
    """Name the thread of what is set aside: of each namespace what is not older than its fork."""
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
    """Add a key to a JSON object's text; its other texts, numbers too, stay as they are."""
    if not metadata_json:
        return ""
    start, more = metadata_json.rstrip()[:-1], json.dumps(noted)[1:]
    return f"{start}{'' if start.strip() == '{' else ', '}{more}"
