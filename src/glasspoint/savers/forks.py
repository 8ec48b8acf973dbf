"""Forks: two runs that go on from one checkpoint, so that the answer of one of them is not seen any more.

A thread's state is its newest checkpoint. Of two runs that read the same newest checkpoint and write at once,
one writes what is newest in the end, and the other one's answer is *shadowed*: it is stored, but no later
turn goes on from it.

Time travel writes on an old checkpoint, too, and is meant. What tells the two apart: a run of time travel
names its checkpoint. Any other run reads the newest, and LangGraph passes the id that it was answered on to
the run's first put, as the same object. So the objects that reads of the newest have returned are remembered,
and a put whose parent is one of them is *judged*: its statement tells whether the parent is the newest
still. A run's further puts go on from what it has put itself, and that id is the same object, too: they are
judged likewise, because another run may have begun in the middle of this one. A fork is told once a process:
what its two runs put after it is known to be forked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypedDict, TypeVar

from glasspoint.errors import ThreadForkedError
from glasspoint.logs import get_logger
from glasspoint.model.scope import is_ordered_id
from glasspoint.telemetry.events import Forked

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import CheckpointMetadata, CheckpointTuple

    from glasspoint.model.codec import EncodedPut
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import ForkKind, Telemetry

__all__ = ["Forks", "OnFork"]

_log = get_logger("glasspoint")

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Judgement(TypedDict):
    """How a put is judged: see `EncodedPut`."""

    follows_newest: bool
    follows_own: bool


OnFork = Literal["count", "raise"]
"""What becomes of a put that forks its thread: it is counted and stored, or it is refused."""

_AT_MOST: Final = 10_000
"""So many reads of the newest are remembered until their run's first put comes, as many that found no
checkpoint, as many puts until their run's next one comes, and as many that are known to be forked: about
4 MB. A put whose parent is forgotten is not judged."""

_SAYS: Final[dict[ForkKind, str]] = {
    "shadows": "another run has written meanwhile, and this checkpoint is newer: the other run's answer is "
    "not seen any more",
    "shadowed": "another run has written meanwhile, and what it wrote is newer: this answer is not seen",
    "older_than_parent": "its id is older than its parent's, so this answer is not seen: the clock of this "
    "machine is behind the clock of the one that wrote the parent",
}


class Forks:
    """What one saver knows of forks: which puts are to be judged, and what is said of those that fork."""

    def __init__(self, telemetry: Telemetry, *, on_fork: OnFork) -> None:
        """Take what becomes of forks.

        Args:
            telemetry: Receives each fork.
            on_fork: What becomes of a put that forks its thread.
        """
        self._telemetry = telemetry
        self._newest: dict[int, str] = {}  # object id -> the object, which keeps that its own
        self._empty: dict[Scope, int] = {}
        self._written: dict[int, str] = {}  # likewise
        self._known: dict[str, None] = {}
        self.refuses = on_fork == "raise"
        """Whether a put that forks its thread is not stored."""

    def read_newest(self, scope: Scope, found: CheckpointTuple | None) -> None:
        """Take note that a read has found this as the newest checkpoint of a scope."""
        if found is not None:
            configurable = found.config["configurable"]
            if scope.is_cached and is_ordered_id(configurable["checkpoint_id"]):
                own = configurable["checkpoint_id"] = _copy_of(configurable["checkpoint_id"])
                _remember(self._newest, id(own), own)
        elif not scope.checkpoint_ns:  # time travel may begin a subgraph anew, but never the root graph
            _remember(self._empty, scope, self._empty.pop(scope, 0) + 1)

    def judgement(
        self, scope: Scope, config: RunnableConfig, checkpoint_id: str, metadata: CheckpointMetadata
    ) -> Judgement:
        """Tell whether a put goes on from what a read has found as the newest, or from what its run has put.

        The second is told from what each put's statement answers, at no cost; unless forks are refused, which
        the statement itself has to do.
        """
        follows = self._follows(scope, config, checkpoint_id, metadata)
        is_judged_there = follows == "read" or (follows == "own" and self.refuses)
        return {
            "follows_newest": is_judged_there,
            "follows_own": follows == "own" and not is_judged_there,
        }

    def _follows(
        self, scope: Scope, config: RunnableConfig, checkpoint_id: str, metadata: CheckpointMetadata
    ) -> Literal["read", "own"] | None:
        """Tell what a put goes on from.

        A run's subgraph (`Scope.is_cached`) is not judged: its run is. Nor is an id that is no UUID: only
        PostgreSQL can tell which of two is newer.
        """
        if not scope.is_cached or not is_ordered_id(checkpoint_id):
            return None
        if parent_id := config["configurable"].get("checkpoint_id"):
            if self._newest.pop(id(parent_id), None) is not None:
                return "read"
            if self._written.pop(id(parent_id), None) is None:
                return None
            if parent_id in self._known:
                _remember(self._known, checkpoint_id, None)
                return None
            return "own"
        # A copy of a thread's first checkpoint has no parent either.
        return "read" if metadata.get("source") != "fork" and self._take_empty(scope) else None

    def wrote(self, scope: Scope, checkpoint_id: str) -> str:
        """Take note that a put was stored, of which the run has this id.

        Returns:
            The id, as another object: whoever goes on from a put's answer names a checkpoint.
        """
        if scope.is_cached and is_ordered_id(checkpoint_id):
            _remember(self._written, id(checkpoint_id), checkpoint_id)
        return _copy_of(checkpoint_id)

    def check(self, scope: Scope, put: EncodedPut) -> ForkKind | None:
        """Tell what is wrong with a put before it is sent.

        Raises:
            ThreadForkedError: It would not be seen, and is refused.
        """
        parent_id = put.parent_id
        if parent_id is None or put.checkpoint_id >= parent_id:
            return None
        if not (is_ordered_id(put.checkpoint_id) and is_ordered_id(parent_id)):
            return None
        if self.refuses:
            self.tell("older_than_parent", scope, put)
            raise self.error("older_than_parent", scope, put)
        return "older_than_parent"

    def tell(self, kind: ForkKind, scope: Scope, put: EncodedPut, other_id: str | None = None) -> None:
        """Count a fork, and log it.

        Args:
            other_id: The checkpoint that is newer than the parent, if there is one.
        """
        stored = not self.refuses
        if stored:
            for known in filter(None, (put.checkpoint_id, other_id)):
                _remember(self._known, known, None)
        self._telemetry.note(Forked(scope, kind, stored, put.checkpoint_id, put.parent_id, other_id))
        _log.warning(
            "Thread %s%s %s: checkpoint %s was %s after its parent %s. The newest before it: %s. (%s)",
            self._thread(scope),
            f", namespace {scope.checkpoint_ns!r}," if scope.checkpoint_ns else "",
            "is forked" if stored else "would be forked",
            put.checkpoint_id,
            "stored" if stored else "refused",
            put.parent_id or "(none)",
            other_id or put.parent_id,
            _SAYS[kind],
        )

    def error(self, kind: ForkKind, scope: Scope, put: EncodedPut) -> ThreadForkedError:
        """Return what a caller is told whose put was refused."""
        remedy = (
            "Set the clock (NTP), and repeat the turn."
            if kind == "older_than_parent"
            else "Repeat the turn: it then goes on from what the other run wrote."
        )
        why = (
            "its id is older than its parent's: a clock is behind"
            if kind == "older_than_parent"
            else ("another run has written to the thread since this run read it")
        )
        return ThreadForkedError(
            f"The checkpoint {put.checkpoint_id} of the thread {self._thread(scope)} was not stored: {why}, "
            f'and on_fork is "raise". {remedy}',
            kind,
        )

    def _thread(self, scope: Scope) -> str:
        shown = self._telemetry.show_thread(scope.thread_id)
        return "(not shown)" if shown is None else repr(shown)

    def _take_empty(self, scope: Scope) -> bool:
        count = self._empty.pop(scope, 0)
        if count > 1:
            self._empty[scope] = count - 1
        return count > 0


def _copy_of(text: str) -> str:
    """Return a text that is the same object as no other."""
    return f"{text} "[:-1]


def _remember(memory: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    memory[key] = value
    if len(memory) > _AT_MOST:
        del memory[next(iter(memory))]


def kind_of(put: EncodedPut, other_id: str) -> ForkKind:
    """Return which of two answers is not seen: that of a put, or the other one."""
    return "shadows" if put.checkpoint_id > other_id else "shadowed"
