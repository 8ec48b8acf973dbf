"""Lineage: how what one tier holds of a thread stands to what another tier holds of it. Pure, no I/O.

A checkpoint names its parent. So two parts of a history tell by their ids whether one goes on where the other
ends. If neither does, one of them is *set aside*: it becomes a thread of its own, whose id names the thread
that it was written to.
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
"""The key in a checkpoint's metadata that says from which thread it was set aside, and when that began."""

Relation = Literal["new", "continued", "apart"]
"""How a branch stands to what the tier above holds of its thread. `new`: nothing is there. `continued`: one
goes on where the other ends. `apart`: neither does."""

UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""When a branch began of which only the name is known."""


class Branch(NamedTuple):
    """What a lower tier holds of one namespace of a thread.

    Attributes:
        ids: Its checkpoints.
        bases: Checkpoints that they name as their parents, and that are not among them.
        tip: The newest.
        brought: Those of its checkpoints that the lower tier has not made: it goes on from them.
    """

    namespace: str
    ids: frozenset[str]
    bases: frozenset[str]
    tip: str
    brought: frozenset[str] = frozenset()


class SetAside(NamedTuple):
    """A branch that stands under another thread's id.

    Attributes:
        original: The thread that it was written to.
        thread_id: The thread that it is now.
        began_at: When the branch began.
    """

    original: str
    thread_id: str
    began_at: datetime


def branch_of(namespace: str, parents: Mapping[str, str | None], brought: Iterable[str] = ()) -> Branch:
    """Return the branch of a namespace.

    Args:
        parents: Checkpoint id -> id of its parent; at least one.
        brought: Which of them the lower tier has not made.
    """
    named = frozenset(parent for parent in parents.values() if parent is not None)
    ids = frozenset(parents)
    return Branch(namespace, ids, named - ids, max(ids), ids & frozenset(brought))


def from_fork(branch: Branch, fork: str | None) -> Branch:
    """Return the part of a branch that begins with a checkpoint that is above, too.

    Args:
        fork: The checkpoint; `None`: there is none, and the part is the whole.
    """
    if fork is None:
        return branch
    return branch._replace(
        ids=frozenset(each for each in branch.ids if each >= fork),
        bases=frozenset({fork}),
        brought=frozenset({fork}),
    )


def relation_of(branch: Branch, newest: str | None, *, has_tip: bool) -> Relation:
    """Tell how a branch stands to what is above.

    Args:
        newest: The newest checkpoint that is above, of the same thread and namespace; `None` if none is.
        has_tip: Whether the branch's tip is above, or a checkpoint above names it as its parent. A drain
            moves the tip first. If it was cut off after that, the thread may have gone on from there.
    """
    if newest is None:
        return "new"
    if newest in branch.ids or newest in branch.bases or has_tip:
        return "continued"
    return "apart"


def name_apart(thread_id: str, branches: Sequence[Branch]) -> SetAside:
    """Name a branch after its thread and its first own checkpoint.

    The name is the same each time, also if the branch has grown since a drain of it was cut off.
    """
    # Not after the one that it goes on from: two branches may go on from one checkpoint.
    own = [each for branch in branches for each in branch.ids - branch.brought]
    return set_aside_at(thread_id, min(own or [each for branch in branches for each in branch.ids]))


def set_aside_at(thread_id: str, first_id: str) -> SetAside:
    """Name a branch after its thread and its first own checkpoint."""
    began_at = time_of_id(first_id).replace(microsecond=0)
    name = f"{thread_id} (set aside {began_at:%Y-%m-%dT%H:%M:%SZ} {first_id[-8:]})"
    return SetAside(thread_id, name, began_at)


def mark_of(set_aside: SetAside) -> dict[str, Any]:
    """Return what the metadata of a checkpoint say that was set aside: see `noted_in`."""
    return {SET_ASIDE: {"thread_id": set_aside.original, "began_at": set_aside.began_at.isoformat()}}


def noted_in(metadata: Mapping[str, Any], thread_id: str) -> SetAside | None:
    """Return what a checkpoint's metadata say of having been set aside, `None` if nothing."""
    noted = metadata.get(SET_ASIDE)
    try:
        return SetAside(str(noted["thread_id"]), thread_id, datetime.fromisoformat(noted["began_at"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None
