"""Finds forks: two runs that go on from one checkpoint, so that the result of one run is not seen any more.

A thread's state is its newest checkpoint. If two runs read the same newest checkpoint and both write, the
newest checkpoint in the end is from one of them. The result of the other run is *shadowed*: it is stored, but
no later turn goes on from it.

Time travel also writes on top of an old checkpoint, but on purpose. The two are distinguished like this:

- A run of time travel names its checkpoint.
- Any other run reads the newest checkpoint. LangGraph passes the id from this read to the run's first put, as
  the same Python object. So the objects from such reads are remembered. A put whose parent is one of them is
  *judged*: its statement finds out whether the parent is still the newest.
- Each further put of a run goes on from the put before. Its parent is the object of that put, so it is
  recognised in the same way. It is judged, too: another run may have begun in the middle of this one.

A fork is reported once a process: later puts of its two runs are known to be forked. Open this file when a
fork is reported that is none, or is missed.
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
    """How a put is judged: two attributes of `EncodedPut`."""

    follows_newest: bool
    follows_own: bool


OnFork = Literal["count", "raise"]
"""What happens to a put that forks its thread: it is counted and stored, or it is refused."""

_AT_MOST: Final = 10_000
"""The most entries in each memory of `Forks`, which together take about 4 MB: reads of the newest, until
their run's first put; reads that found no checkpoint; puts, until their run's next put; and puts that are
known to be forked. A put whose parent is forgotten is not judged."""

_SAYS: Final[dict[ForkKind, str]] = {
    "shadows": "another run has written meanwhile, and this checkpoint is newer: the other run's answer is "
    "not seen any more",
    "shadowed": "another run has written meanwhile, and what it wrote is newer: this answer is not seen",
    "older_than_parent": "its id is older than its parent's, so this answer is not seen: the clock of this "
    "machine is behind the clock of the one that wrote the parent",
}


class Forks:
    """Decides which puts of one saver are judged, and reports those that fork."""

    def __init__(self, telemetry: Telemetry, *, on_fork: OnFork) -> None:
        """Begin with empty memories.

        Args:
            telemetry: Receives an event for each fork.
            on_fork: What happens to a put that forks its thread.
        """
        self._telemetry = telemetry
        self._newest: dict[int, str] = {}  # `id()` -> its object, kept so that no other one gets this `id()`
        self._empty: dict[Scope, int] = {}
        self._written: dict[int, str] = {}  # the same
        self._known: dict[str, None] = {}
        self.refuses = on_fork == "raise"
        """Whether a put that forks its thread is not stored."""

    def read_newest(self, scope: Scope, found: CheckpointTuple | None) -> None:
        """Remember that a read has found this as the newest checkpoint of a scope."""
        if found is not None:
            configurable = found.config["configurable"]
            if scope.is_cached and is_ordered_id(configurable["checkpoint_id"]):
                own = configurable["checkpoint_id"] = _copy_of(configurable["checkpoint_id"])
                _remember(self._newest, id(own), own)
        elif not scope.checkpoint_ns:  # time travel may begin with nothing in a subgraph, but not in the root
            _remember(self._empty, scope, self._empty.pop(scope, 0) + 1)

    def judgement(
        self, scope: Scope, config: RunnableConfig, checkpoint_id: str, metadata: CheckpointMetadata
    ) -> Judgement:
        """Return how a put is judged.

        A put after a read of the newest is judged by its statement. A put after its own run's put is judged
        by the result that every put's statement has, at no cost. But if forks are refused, the statement has
        to judge these puts, too.
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
        """Tell what a put goes on from: a read of the newest, its own run's put, or neither of them.

        A run's subgraph (`Scope.is_cached`) is not judged, because its run is. An id that is not a UUID is
        not judged, because only PostgreSQL can tell which of two such ids is newer.
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
        """Remember that a put was stored, with the id object that its run has.

        Returns:
            The id as another object, for the caller: a run that starts from it names its checkpoint, as in
            time travel, and is not judged.
        """
        if scope.is_cached and is_ordered_id(checkpoint_id):
            _remember(self._written, id(checkpoint_id), checkpoint_id)
        return _copy_of(checkpoint_id)

    def check(self, scope: Scope, put: EncodedPut) -> ForkKind | None:
        """Check a put before it is sent: its id must not be older than its parent's.

        Raises:
            ThreadForkedError: It is older, and forks are refused.
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
            other_id: The checkpoint of another run that is newer than the parent, if one is.
        """
        stored = not self.refuses
        if stored:
            for known in filter(None, (put.checkpoint_id, other_id)):
                _remember(self._known, known, None)
        self._telemetry.emit(Forked(scope, kind, stored, put.checkpoint_id, put.parent_id, other_id))
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
        """Return the error for a put that was refused."""
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
    """Return an equal text that is a new object."""
    return f"{text} "[:-1]


def _remember(memory: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    memory[key] = value
    if len(memory) > _AT_MOST:
        del memory[next(iter(memory))]


def kind_of(put: EncodedPut, other_id: str) -> ForkKind:
    """Return which of two results is not seen: that of a put (`shadowed`), or the other one (`shadows`)."""
    return "shadows" if put.checkpoint_id > other_id else "shadowed"
