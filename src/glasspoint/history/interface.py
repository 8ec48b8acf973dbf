"""What a history is: the words of it, and what every place that one can stand in has to do.

`in_redis` and `in_memory` are such places; listing, pruning, copying and draining work on either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from glasspoint.model.scope import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from glasspoint.model.codec import EncodedPut, EncodedWrite, PendingWrites, StoredCheckpoint

__all__ = [
    "HEARD_SECONDS",
    "Adopted",
    "Ancestor",
    "Channel",
    "Found",
    "History",
    "Holding",
    "Outline",
    "Position",
    "Removal",
]

Adopted = Literal["adopted", "exists", "incomplete"]


HEARD_SECONDS = 0.6
"""A tier that named no thread, and now names one, acknowledges nothing for so long. A process that works
above believes for less than that what it last heard of the tier (`lookout`), so it hears of it in time."""


class Holding(NamedTuple):
    """What a process that works above must know of a lower tier.

    Attributes:
        any: Whether threads stand there.
        this: Whether the thread that was asked for does.
        unused_seconds: For how long nothing was stored there.
    """

    any: bool
    this: bool
    unused_seconds: float


class Position(NamedTuple):
    """Where a checkpoint stands."""

    scope: Scope
    checkpoint_id: str


class Found(NamedTuple):
    """A checkpoint, and the TASKS writes of its parent if its format is one that is completed with them."""

    stored: StoredCheckpoint
    sends: list[EncodedWrite]


class Ancestor(NamedTuple):
    """What a walk for delta channels finds at one checkpoint.

    Attributes:
        values: Channel -> kind and bytes, as `scripts/ancestors.lua` says.
    """

    checkpoint_id: str
    writes: list[EncodedWrite]
    values: dict[str, tuple[str, bytes]]


class Removal(NamedTuple):
    """What is to go of one namespace.

    Attributes:
        whole: Nothing of it is to stay, not even writes and values of no checkpoint.
        checkpoint_ids: These go.
        orphans: These stay, and name no parent any more.
    """

    namespace: str
    whole: bool
    checkpoint_ids: list[str]
    orphans: list[str]


@dataclass(frozen=True, slots=True)
class Channel:
    """What a checkpoint has of a channel.

    Attributes:
        versioned: Whether its `channel_versions` name it.
        mark: What stands inline: `""` nothing, `"n"` null, `"t"` true, `"v"` another value.
        blob: Whether a value stands at this version in a blob.
    """

    versioned: bool
    mark: str
    blob: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """What has to be known of a checkpoint to decide whether it may go.

    Attributes:
        old_format: Older than format 4: its parent's TASKS writes belong to it.
        parent_has_sends: There are such.
    """

    namespace: str
    checkpoint_id: str
    parent_id: str | None
    old_format: bool
    run_id: str | None
    channels: dict[str, Channel]
    metadata: dict[str, Any]
    parent_has_sends: bool


class History(Protocol):
    """All threads of one saver. Each method is done as a whole or not at all.

    Those that concern one thread raise `ThreadMovedError` while it is sealed, and after it was retired.
    """

    list_is_lost: bool
    """Whether threads that stood here may be gone without having been moved."""

    async def put(self, scope: Scope, put: EncodedPut) -> None:
        """Store a checkpoint and its new values; a value that is there at this version stays."""

    async def put_writes(
        self, scope: Scope, checkpoint_id: str, writes: Sequence[EncodedWrite], *, replaces: bool
    ) -> None:
        """Store pending writes, instead of those that are there or only where there are none."""

    async def add(self, item: StoredCheckpoint | PendingWrites) -> bool:
        """Store what another store exported; what is here already stays, but for the special writes.

        Returns:
            Whether it was a checkpoint that was not here.
        """

    async def delete_thread(self, thread_id: str) -> None:
        """Forget a thread."""

    async def remove(self, thread_id: str, removals: Sequence[Removal], revision: str) -> bool:
        """Take checkpoints out, with their writes, and the values that nothing refers to any more.

        Args:
            revision: What the decision was made on; `""` if it holds for any.

        Returns:
            Whether it was done; if not, the thread is of another revision.
        """

    def untouched(self) -> History:
        """Return the same history, for reading: threads live no longer, and no shorter, for being read."""

    def beside(self, token: str) -> History:
        """Return where a thread's copy is built, unseen."""

    async def adopt(self, thread_id: str, token: str, checkpoints: int, writes: int) -> Adopted:
        """Make what was built beside a thread this thread, if it is all there."""

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Found | None:
        """Return a checkpoint, the newest if no id is given."""

    async def removals(self, thread_id: str) -> bytes:
        """Return what is another value each time that checkpoints were removed from a thread."""

    async def namespaces(self, thread_id: str, *, sealed_too: bool = False) -> list[str]:
        """Return the namespaces in which a thread has checkpoints."""

    def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]:
        """Return where a scope's checkpoints stand, newest first, in pages."""

    async def newest(self, scope: Scope) -> str | None:
        """Return the id of a scope's newest checkpoint, `None` if it has none."""

    async def oldest(self, scope: Scope) -> Found | None:
        """Return a scope's oldest checkpoint, `None` if it has none."""

    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]:
        """Return the metadata of some checkpoints of one thread, `None` for one that is gone."""

    def load(self, positions: Sequence[Position], *, sealed_too: bool = False) -> AsyncGenerator[Found, None]:
        """Return some checkpoints of one thread, in this order, without those that are gone."""

    def ancestors(
        self, scope: Scope, checkpoint_id: str | None, channels: Sequence[str]
    ) -> AsyncGenerator[Ancestor, None]:
        """Walk up from a checkpoint (the newest if no id is given) until each channel has a value."""

    async def outline(self, thread_id: str) -> tuple[str, list[Outline]]:
        """Return what has to be known of all checkpoints to prune, and the revision that it began with."""

    async def may_hold(self, thread_id: str, run_ids: Sequence[str]) -> bool:
        """Tell whether a thread may have checkpoints of one of these runs; a `False` is certain."""

    def thread_ids(self) -> AsyncGenerator[str, None]:
        """Return every thread that has data here, each once."""

    async def seal(self, thread_id: str, lease_ms: int, token: str, *, renew: bool) -> bool:
        """Keep everybody else from a thread, or go on doing so."""

    def export(
        self, thread_id: str, *, sealed_too: bool
    ) -> AsyncGenerator[StoredCheckpoint | PendingWrites, None]:
        """Return all of a thread: its checkpoints, oldest first in each namespace, then the other writes."""

    async def retire(self, thread_id: str, token: str, marker_ms: int, moved_to: str | None) -> bool:
        """Forget a sealed thread, and say for a while that it has moved, and which id it has now."""
