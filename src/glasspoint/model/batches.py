"""Batches of checkpoints on their way from one store into another, each small enough for one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.model.codec import PendingWrites

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from typing import TypeAlias

    from glasspoint.model.codec import StoredCheckpoint

    Item: TypeAlias = StoredCheckpoint | PendingWrites
    StoredId: TypeAlias = tuple[str, str]  # namespace, checkpoint id

__all__ = ["in_batches"]

_BYTES_AT_ONCE = 2**20
_ITEMS_AT_ONCE = 100


async def in_batches(
    items: AsyncIterator[Item], *, without: Collection[StoredId] = ()
) -> AsyncIterator[list[Item]]:
    """Group successive items of one scope. A batch ends at 100 items, or when it exceeds 1 MiB.

    Args:
        without: Checkpoints to leave out.
    """
    batch: list[Item] = []
    size = 0
    async for item in items:
        if not isinstance(item, PendingWrites) and (item.scope.checkpoint_ns, item.checkpoint_id) in without:
            continue
        if batch and (item.scope != batch[0].scope or size > _BYTES_AT_ONCE or len(batch) == _ITEMS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += sum(len(write.value.data) for write in item.writes)
        size += sum(len(value.data) for _, value in getattr(item, "values", {}).values())
    if batch:
        yield batch
