"""Pruning: removes the checkpoints that `retention` has chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.errors import DeltaChainError
from glasspoint.history.interface import Removal
from glasspoint.history.retention import (
    by_namespace,
    kept_by_keep_latest,
    severed_by,
    uses_delta_channels,
)
from glasspoint.telemetry.background import for_each

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from glasspoint.history import retention
    from glasspoint.history.interface import History

__all__ = ["STRATEGIES", "delete_for_runs", "keep_latest"]

# The most attempts, if the thread is written to each time meanwhile.
_ATTEMPTS = 20


async def keep_latest(history: History, thread_id: str) -> None:
    """Keep the newest checkpoint of each namespace, and what it needs.

    Raises:
        DeltaChainError: The thread has delta channels, and was written to during each attempt. Nothing was
            removed.
    """
    for _ in range(_ATTEMPTS):
        revision, outlines = await history.outline(thread_id)
        histories = by_namespace(outlines)
        kept = kept_by_keep_latest(histories)
        removals = [_removal(namespace, of, kept[namespace]) for namespace, of in histories.items()]
        # Without delta channels, the decision stays right: new checkpoints are not removed, and need none of
        # those that are. With them, a new checkpoint may start from an old one, and need its ancestors.
        holds = "" if not uses_delta_channels(histories) else revision
        removals = [each for each in removals if each.checkpoint_ids or each.orphans]
        if not removals or await history.remove(thread_id, removals, holds):
            return
    raise DeltaChainError(_BUSY.format(thread_id=thread_id))


async def delete_for_runs(history: History, run_ids: Sequence[str]) -> None:
    """Delete the checkpoints of some runs in all threads, if no delta channel of another one needs them.

    Raises:
        DeltaChainError: A delta channel needs one; nothing was removed. Or a thread with delta channels was
            written to during each attempt; nothing of this thread was removed.
    """
    wanted = set(run_ids)
    if not wanted:
        return
    threads = [each async for each in history.thread_ids()]

    async def look(thread_id: str) -> str | None:
        return thread_id if await history.may_hold(thread_id, sorted(wanted)) else None

    concerned = [each for each in await for_each(threads, look) if each is not None]
    for thread_id in concerned:
        await _removals_of_runs(history, thread_id, wanted)
    for thread_id in concerned:
        for _ in range(_ATTEMPTS):
            revision, removals = await _removals_of_runs(history, thread_id, wanted)
            if not removals or await history.remove(thread_id, removals, revision):
                break
        else:
            raise DeltaChainError(_BUSY.format(thread_id=thread_id))


_BUSY = (
    "The thread {thread_id!r} was written each time while it was decided what its delta channels need, and "
    "nothing of it was removed: try again when no run is under way."
)


async def _removals_of_runs(history: History, thread_id: str, wanted: set[str]) -> tuple[str, list[Removal]]:
    revision, outlines = await history.outline(thread_id)
    histories = by_namespace(outlines)
    removals = []
    for namespace, of in histories.items():
        doomed = {each.checkpoint_id for each in of.values() if each.run_id in wanted}
        if doomed and severed_by(of, doomed):
            raise DeltaChainError(
                f"A delta channel of a checkpoint of thread {thread_id!r} is rebuilt from checkpoints of "
                "these runs, and nothing was deleted: delete the whole thread, or the later runs with them."
            )
        if doomed:
            orphans = [each.checkpoint_id for each in of.values() if each.parent_id in doomed]
            orphans = [each for each in orphans if each not in doomed]
            removals.append(Removal(namespace, False, sorted(doomed), orphans))
    return (revision if uses_delta_channels(histories) else ""), removals


def _removal(namespace: str, history: retention.History, kept: set[str]) -> Removal:
    return Removal(
        namespace,
        whole=not kept,
        checkpoint_ids=sorted(history.keys() - kept),
        orphans=[
            each.checkpoint_id
            for each in history.values()
            if each.checkpoint_id in kept and each.parent_id is not None and each.parent_id not in kept
        ],
    )


async def _delete(history: History, thread_id: str) -> None:
    await history.delete_thread(thread_id)


STRATEGIES: Mapping[str, Callable[[History, str], Coroutine[None, None, None]]] = {
    "keep_latest": keep_latest,
    "delete": _delete,
}
