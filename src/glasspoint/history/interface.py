"""The interface of a history, `History`, and the types that it uses.

`in_redis` and `in_memory` implement it. Listing, pruning, copying and draining work with both.
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
    "Held",
    "History",
    "Holding",
    "Outline",
    "Position",
    "Removal",
]

Adopted = Literal["adopted", "exists", "incomplete"]


HEARD_SECONDS = 0.6
"""How long a tier delays the acknowledgement of a write after its list of threads became non-empty. Processes
that work above trust the result "no thread" for a shorter time (`lookout`), so they learn of it in time."""


class Held(NamedTuple):
    """How much a tier holds: the number of threads with data, and of their checkpoints."""

    threads: int
    checkpoints: int


class Holding(NamedTuple):
    """What a process that works above must know of a lower tier.

    Attributes:
        any: Whether the tier has threads.
        this: Whether it has the thread that was asked for.
        unused_seconds: Seconds since something was last stored there.
    """

    any: bool
    this: bool
    unused_seconds: float


class Position(NamedTuple):
    """The scope and the id of a checkpoint."""

    scope: Scope
    checkpoint_id: str


class Found(NamedTuple):
    """A checkpoint. If its format is old: also the TASKS writes of its parent, which complete it."""

    stored: StoredCheckpoint
    sends: list[EncodedWrite]


class Ancestor(NamedTuple):
    """What a walk for delta channels finds at one checkpoint.

    Attributes:
        values: Channel -> kind and bytes, as described in `scripts/ancestors.lua`.
    """

    checkpoint_id: str
    writes: list[EncodedWrite]
    values: dict[str, tuple[str, bytes]]


class Removal(NamedTuple):
    """What to remove from one namespace.

    Attributes:
        whole: Whether to remove everything, also writes and values without a checkpoint.
        checkpoint_ids: The checkpoints to remove.
        orphans: The checkpoints that stay, but lose their parent's id.
    """

    namespace: str
    whole: bool
    checkpoint_ids: list[str]
    orphans: list[str]


@dataclass(frozen=True, slots=True)
class Channel:
    """What a checkpoint has of a channel.

    Attributes:
        versioned: Whether the channel is in the checkpoint's `channel_versions`.
        mark: The kind of the inline value: `""` none, `"n"` null, `"t"` true, `"v"` another value.
        blob: Whether a blob holds the value at this version.
    """

    versioned: bool
    mark: str
    blob: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """What has to be known of a checkpoint to decide whether it may be removed.

    Attributes:
        old_format: Whether it is older than format 4: then its parent's TASKS writes belong to it.
        parent_has_sends: Whether its parent has TASKS writes.
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
    """All threads of one saver. Each method is done completely or not at all.

    A method on one thread raises `ThreadMovedError` while the thread is sealed, and after it was retired.
    """

    def may_be_lost(self, thread_id: str) -> bool:
        """Tell whether a thread may be lost: it may have been here, and was not moved, but is gone."""

    async def put(self, scope: Scope, put: EncodedPut) -> None:
        """Store a checkpoint and its new values. A value that exists at the same version stays."""

    async def put_writes(
        self, scope: Scope, checkpoint_id: str, writes: Sequence[EncodedWrite], *, replaces: bool
    ) -> None:
        """Store pending writes. With `replaces`, they replace those of the same name; else, those stay."""

    async def add(self, item: StoredCheckpoint | PendingWrites, *, newest: str | None = None) -> bool:
        """Store an item from another store. What is here already stays, except special writes (index < 0).

        Args:
            item: The item.
            newest: If the item is a checkpoint: the id that its scope's newest checkpoint must have. `""`:
                there must be none. `None`: any.

        Returns:
            Whether the item is a checkpoint that was not here before.

        Raises:
            ThreadInUseError: The scope has another newest checkpoint. Nothing was stored.
        """

    async def delete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""

    async def remove(self, thread_id: str, removals: Sequence[Removal], revision: str) -> bool:
        """Remove checkpoints, their writes, and the values that no other checkpoint refers to.

        Args:
            revision: The revision that the decision was made on; `""`: it is right for any.

        Returns:
            Whether it was done. If not, the thread has another revision now.
        """

    def untouched(self) -> History:
        """Return the same history for reading without a change of times to live and of lists of threads."""

    def beside(self, token: str) -> History:
        """Return a place where a copy of a thread is built, which no other caller sees."""

    async def adopt(self, thread_id: str, token: str, checkpoints: int, writes: int) -> Adopted:
        """Make the copy that was built under a token the thread, if it is complete."""

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Found | None:
        """Return a checkpoint, the newest if no id is given."""

    async def removals(self, thread_id: str) -> bytes:
        """Return a value that changes each time that checkpoints are removed from a thread."""

    async def namespaces(self, thread_id: str, *, sealed_too: bool = False) -> list[str]:
        """Return the namespaces in which a thread has checkpoints."""

    def positions(self, scope: Scope, *, before: str | None) -> AsyncGenerator[list[Position], None]:
        """Return the positions of a scope's checkpoints, newest first, in pages."""

    async def newest(self, scope: Scope) -> str | None:
        """Return the id of a scope's newest checkpoint, `None` if it has none."""

    async def oldest(self, scope: Scope) -> Found | None:
        """Return a scope's oldest checkpoint, `None` if it has none."""

    async def metadata(self, positions: Sequence[Position]) -> list[dict[str, Any] | None]:
        """Return the metadata of some checkpoints of one thread, `None` for one that does not exist."""

    def load(self, positions: Sequence[Position], *, sealed_too: bool = False) -> AsyncGenerator[Found, None]:
        """Return some checkpoints of one thread, in this order, without those that do not exist."""

    def ancestors(
        self, scope: Scope, checkpoint_id: str | None, channels: Sequence[str]
    ) -> AsyncGenerator[Ancestor, None]:
        """Walk up from a checkpoint (the newest if no id is given) until each channel has a value."""

    async def outline(self, thread_id: str) -> tuple[str, list[Outline]]:
        """Return the thread's revision, and what pruning has to know of all its checkpoints.

        The revision is read first: checkpoints that come later have another one.
        """

    async def may_hold(self, thread_id: str, run_ids: Sequence[str]) -> bool:
        """Tell whether a thread may have checkpoints of one of these runs. `False` is certain."""

    def thread_ids(self) -> AsyncGenerator[str, None]:
        """Return the id of every thread that has data here, once."""

    async def count(self) -> Held:
        """Count the threads that `thread_ids` returns, and their checkpoints."""

    async def seal(self, thread_id: str, lease_ms: int, token: str, *, renew: bool) -> bool:
        """Keep all other callers from a thread, or renew the seal that does so."""

    def export(
        self, thread_id: str, *, sealed_too: bool
    ) -> AsyncGenerator[StoredCheckpoint | PendingWrites, None]:
        """Return all of a thread: its checkpoints, oldest first in each namespace, then the other writes."""

    async def retire(self, thread_id: str, token: str, marker_ms: int, moved_to: str | None) -> bool:
        """Forget a sealed thread. For some time, calls raise an error that names the thread's new id."""
