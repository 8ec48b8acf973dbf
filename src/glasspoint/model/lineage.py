"""Lineage: compares the parts of a thread's history that two tiers hold. Pure, no I/O.

Open this when a thread is set aside, and you wonder why. A checkpoint names its parent. So the ids tell
whether one part continues the other. If neither continues the other, one of them is *set aside*: it becomes a
separate thread, whose id contains the id of the original thread.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from glasspoint.model.scope import time_of_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "SET_ASIDE",
    "UNKNOWN_TIME",
    "Branch",
    "Relation",
    "SetAside",
    "branch_of",
    "from_fork",
    "mark_of",
    "name_apart",
    "noted_in",
    "relation_of",
    "set_aside_at",
]

SET_ASIDE = "glasspoint_set_aside"
"""The metadata key for a checkpoint that was set aside: its original thread, and when its branch began."""

Relation = Literal["new", "continued", "apart"]
"""How a branch relates to the part of its thread in the tier above. `new`: the tier above has none.
`continued`: one part continues the other. `apart`: neither does."""

UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""The beginning of a branch of which only the name is known."""


class Branch(NamedTuple):
    """The part of one namespace of a thread that a lower tier holds.

    Attributes:
        ids: The ids of its checkpoints.
        bases: The ids of parents that are not among its checkpoints.
        tip: The id of its newest checkpoint.
        brought: The ids of the checkpoints that the lower tier copied, to continue from them, but did not
            create.
    """

    namespace: str
    ids: frozenset[str]
    bases: frozenset[str]
    tip: str
    brought: frozenset[str] = frozenset()

    def own(self) -> Branch:
        """Return the branch without its brought checkpoints, because two branches may have the same ones."""
        return self._replace(ids=self.ids - self.brought, bases=self.bases - self.brought)


class SetAside(NamedTuple):
    """A branch that is a separate thread now.

    Attributes:
        original: The id of the thread that the branch was written to.
        thread_id: The id of the thread that the branch is now.
        began_at: When the branch began.
    """

    original: str
    thread_id: str
    began_at: datetime


def branch_of(namespace: str, parents: Mapping[str, str | None], brought: Iterable[str] = ()) -> Branch:
    """Return the branch of a namespace.

    Args:
        parents: Checkpoint id -> id of its parent. At least one.
        brought: The ids of the checkpoints that the lower tier did not create.
    """
    named = frozenset(parent for parent in parents.values() if parent is not None)
    ids = frozenset(parents)
    return Branch(namespace, ids, named - ids, max(ids), ids & frozenset(brought))


def from_fork(branch: Branch, fork: str | None) -> Branch:
    """Return the part of a branch that begins with `fork`, a checkpoint that the tier above has, too.

    Args:
        fork: The id of the checkpoint; `None`: there is none, and the whole branch is returned.
    """
    if fork is None:
        return branch
    return branch._replace(
        ids=frozenset(each for each in branch.ids if each >= fork),
        bases=frozenset({fork}),
        brought=frozenset({fork}),
    )


def relation_of(branch: Branch, newest: str | None, *, has_tip: bool) -> Relation:
    """Return how a branch relates to the same thread and namespace in the tier above.

    Args:
        newest: The id of the newest checkpoint in the tier above; `None` if it has none.
        has_tip: Whether the tier above has the branch's tip, or has a checkpoint whose parent is the tip. A
            drain moves the tip first. If the drain was cut off then, the thread may have continued from the
            tip.
    """
    if newest is None:
        return "new"
    if newest in branch.ids or newest in branch.bases or has_tip:
        return "continued"
    return "apart"


def name_apart(thread_id: str, branches: Sequence[Branch]) -> SetAside:
    """Name a branch after its thread and the first checkpoint that the lower tier created.

    The name is the same each time, even if the branch has grown since a drain of it was cut off.
    """
    # Brought checkpoints do not count, because two branches may continue from the same one.
    own = [each for branch in branches for each in branch.own().ids]
    return set_aside_at(thread_id, min(own or [each for branch in branches for each in branch.ids]))


def set_aside_at(thread_id: str, first_id: str) -> SetAside:
    """Return the name and the beginning of the branch with this first checkpoint."""
    began_at = time_of_id(first_id).replace(microsecond=0)
    name = f"{thread_id} (set aside {began_at:%Y-%m-%dT%H:%M:%SZ} {first_id[-8:]})"
    return SetAside(thread_id, name, began_at)


def mark_of(set_aside: SetAside) -> dict[str, Any]:
    """Return the metadata that mark a checkpoint as set aside. `noted_in` reads them."""
    return {SET_ASIDE: {"thread_id": set_aside.original, "began_at": set_aside.began_at.isoformat()}}


def noted_in(metadata: Mapping[str, Any], thread_id: str) -> SetAside | None:
    """Return the mark of `mark_of` from a checkpoint's metadata, `None` if there is none."""
    noted = metadata.get(SET_ASIDE)
    try:
        return SetAside(str(noted["thread_id"]), thread_id, datetime.fromisoformat(noted["began_at"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None
