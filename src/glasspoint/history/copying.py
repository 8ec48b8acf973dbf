"""Copies a thread: builds the copy under other keys, and then makes it the new thread in one step."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from glasspoint.errors import GlasspointError, ThreadExistsError
from glasspoint.model.codec import PendingWrites, StoredCheckpoint
from glasspoint.model.scope import Scope, check_lengths

if TYPE_CHECKING:
    from glasspoint.history.interface import History
    from glasspoint.model.batches import Item

__all__ = ["copy_thread"]

# The most attempts, if the source is pruned each time meanwhile.
_ATTEMPTS = 5


async def copy_thread(history: History, source_id: str, target_id: str) -> None:
    """Copy a thread. Readers of the target see nothing of the copy, or all. Without a source, do nothing.

    The two threads may be on different nodes of a cluster, so one script cannot do this.

    Raises:
        ThreadExistsError: The target exists already. Nothing was copied.
        GlasspointError: The source was pruned during each attempt. Nothing was copied.
    """
    for _ in range(_ATTEMPTS):
        token = secrets.token_hex(8)
        try:
            if await _copy(history, source_id, target_id, token):
                return
        except GlasspointError:
            with suppress(GlasspointError):  # if this fails, the copy expires
                await history.beside(token).delete_thread(target_id)
            raise
    raise GlasspointError(
        "The thread to copy from lost checkpoints each time while it was copied, and nothing was copied: "
        "copy it when nobody prunes it."
    )


def _of_thread(item: Item, thread_id: str) -> Item:
    """Return an item for another thread. LangGraph Server stores the thread's id in the metadata, too."""
    scope = Scope(thread_id, item.scope.checkpoint_ns)
    check_lengths(scope)
    if isinstance(item, PendingWrites):
        return item._replace(scope=scope)
    if item.metadata.get("thread_id") != item.scope.thread_id:
        return replace(item, scope=scope)
    metadata = item.metadata | {"thread_id": thread_id}
    return replace(item, scope=scope, metadata=metadata, metadata_json=json.dumps(metadata))


async def _copy(history: History, source_id: str, target_id: str, token: str) -> bool:
    """Try once. Return `False` if the source was pruned meanwhile."""
    beside = history.beside(token)
    checkpoints, writes, removals = 0, 0, await history.removals(source_id)
    async for item in history.export(source_id, sealed_too=False):
        await beside.add(_of_thread(item, target_id))
        checkpoints += isinstance(item, StoredCheckpoint)
        writes += len(item.writes)
    if not checkpoints and not writes:
        return True
    if removals != await history.removals(source_id):
        return False
    adopted = await history.adopt(target_id, token, checkpoints, writes)
    if adopted == "exists":
        raise ThreadExistsError(
            "The thread to copy to has data already, and nothing was copied: delete it first, or choose "
            "another thread_id."
        )
    return adopted == "adopted"
