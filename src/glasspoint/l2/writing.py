"""Between what callers write and what the statements of it take and return. Pure, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.l2 import statements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from glasspoint.codec import EncodedPut, EncodedWrite, PendingWrites
    from glasspoint.scope import Scope

__all__ = [
    "Announced",
    "FenceAnswer",
    "FenceParams",
    "PutAnswer",
    "WritesAnswer",
    "columns",
    "put_answers",
    "put_statement",
    "writes_answers",
    "writes_statement",
]

Row = tuple[Any, ...]
Statement = tuple[str, dict[str, Any]]

_PUT = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_id", "checkpoint", "metadata")
_PUTS = ("thread_ids", "namespaces", "checkpoint_ids", "parent_ids", "checkpoints", "metadata")
_BLOBS = ("blobs_of", "channels", "versions", "types", "blobs")
_BARE = ("bare_of", "bare_channels", "bare_versions")
_WRITES = ("idxs", "channels", "types", "blobs")
_TASKS = ("thread_ids", "namespaces", "checkpoint_ids", "task_ids", "task_paths")


class Announced(NamedTuple):
    """What the statement of a write is to do besides, because of how L1 was told of the write.

    Attributes:
        is_journalled: Record the scope in the journal.
        burst: Which burst it belongs to; empty: none, and then there is no fence.
        opens: Set the fence of the burst. Otherwise it is only looked for.
    """

    is_journalled: bool = False
    burst: str = ""
    opens: bool = False


class FenceAnswer(NamedTuple):
    """What the statement of a write has seen of fences, before it set one.

    Attributes:
        stands: The fence of its own burst stands, for longer than the statement can run.
        is_contested: The fence of another saver stands.
    """

    stands: bool = False
    is_contested: bool = False


class PutAnswer(NamedTuple):
    """What L1 must know of a put: see `statements.PUT`.

    Attributes:
        followable: It is the newest checkpoint of its scope, was not there before, and every value of it
            stands there as sent.
        known_writes: `<task id>:<idx>` of the pending writes that were there before it.
        fence: What it has seen of fences.
    """

    followable: bool
    known_writes: list[str]
    fence: FenceAnswer = FenceAnswer()


class WritesAnswer(NamedTuple):
    """Which writes were stored, whether any of them replaced an older one, and which were there already; and
    what the statement has seen of fences."""

    stored: list[EncodedWrite]
    overwrote: bool
    ignored: list[EncodedWrite]
    fence: FenceAnswer = FenceAnswer()


def put_statement(puts: Sequence[tuple[Scope, EncodedPut]], fences: FenceParams | None = None) -> Statement:
    """Return what stores checkpoints, each of another scope.

    Args:
        fences: How they stand to bursts, in the same order; `None`: none belongs to one.
    """
    blobs, bare = [], []
    for number, (_, put) in enumerate(puts, 1):
        # In one order, so that two puts never wait for each other in a circle.
        values = sorted(put.blobs.items())
        blobs += [(number, channel, version, *value) for channel, (version, value) in values]
        bare += [(number, *each) for each in (*put.inline.items(), *put.voids.items())]
    arrays = columns(_BLOBS, blobs) | columns(_BARE, bare)
    rows = [
        (*scope, put.checkpoint_id, put.parent_id, put.document_json, put.metadata_json)
        for scope, put in puts
    ]
    if len(rows) == 1:
        alone = {**dict(zip(_PUT, rows[0], strict=True)), **arrays}
        return (statements.PUT, alone) if fences is None else (statements.PUT_FENCED, alone | fences.alone())
    together = {**columns(_PUTS, rows), **arrays}
    if fences is None:
        return statements.PUT_TOGETHER, together
    return statements.PUT_TOGETHER_FENCED, together | fences.together()


def put_answers(puts: Sequence[tuple[Scope, EncodedPut]], rows: Sequence[Row]) -> list[PutAnswer]:
    """Return what PostgreSQL has answered to each."""
    return [
        PutAnswer(newest and not shadowed and stored == len(put.blobs), known_writes, FenceAnswer(*fence))
        for (_, put), (newest, stored, shadowed, known_writes, *fence) in zip(puts, rows, strict=True)
    ]


class FenceParams(NamedTuple):
    """How writes stand to bursts, for their statement.

    Attributes:
        announced: Of each write.
        holder: Who holds the fences.
        stands, margin: For how many seconds a fence is set, and must stand yet.
    """

    announced: Sequence[Announced]
    holder: str
    stands: float
    margin: float

    def alone(self) -> dict[str, Any]:
        """The parameters of a statement of one write."""
        (announced,) = self.announced
        return {**self._shared(), "burst": announced.burst, "opens": announced.opens}

    def together(self) -> dict[str, Any]:
        """The parameters of a statement of several."""
        of_each = [(announced.burst, announced.opens) for announced in self.announced]
        return {**self._shared(), **columns(("bursts", "opens"), of_each)}

    def _shared(self) -> dict[str, Any]:
        return {"holder": self.holder, "stands": self.stands, "margin": self.margin}


def writes_statement(
    tasks: Sequence[PendingWrites], *, upsert: bool, fences: FenceParams | None = None
) -> Statement:
    """Return what stores the writes of tasks, each of them once.

    Args:
        fences: As for `put_statement`.
    """
    if len(tasks) == 1:
        scope, checkpoint_id, writes = tasks[0]
        task = {
            "checkpoint_id": checkpoint_id,
            "task_id": writes[0].task_id,
            "task_path": writes[0].task_path,
        }
        values = columns(_WRITES, [(w.idx, w.channel, *w.value) for w in writes])
        alone = scope._asdict() | task | values
        if fences is None:
            return statements.UPSERT_WRITES if upsert else statements.PUT_WRITES, alone
        fenced = statements.UPSERT_WRITES_FENCED if upsert else statements.PUT_WRITES_FENCED
        return fenced, alone | fences.alone()
    rows = [
        (*task.scope, task.checkpoint_id, w.task_id, w.task_path, w.idx, w.channel, *w.value)
        for task in tasks
        for w in task.writes
    ]
    together = columns((*_TASKS, *_WRITES), rows)
    if fences is None:
        plain = statements.UPSERT_WRITES_TOGETHER if upsert else statements.PUT_WRITES_TOGETHER
        return plain, together
    scopes = columns(("burst_threads", "burst_namespaces"), [task.scope for task in tasks])
    fenced = statements.UPSERT_WRITES_TOGETHER_FENCED if upsert else statements.PUT_WRITES_TOGETHER_FENCED
    return fenced, together | scopes | fences.together()


def writes_answers(tasks: Sequence[PendingWrites], rows: Sequence[Row]) -> list[WritesAnswer]:
    """Return what PostgreSQL has answered to each."""
    fences = {number: FenceAnswer(*fence) for task_id, number, _, _, *fence in rows if task_id is None}
    stored = {
        (task_id, idx): (task_path, overwrote)
        for task_id, idx, task_path, overwrote, *_ in rows
        if task_id is not None
    }
    return [
        _writes_answer(task.writes, stored)._replace(fence=fences.get(number, FenceAnswer()))
        for number, task in enumerate(tasks, 1)
    ]


def _writes_answer(
    writes: Sequence[EncodedWrite], rows: Mapping[tuple[str, int], tuple[str, bool]]
) -> WritesAnswer:
    stored, ignored, overwrote = [], [], False
    for write in writes:
        row = rows.get((write.task_id, write.idx))
        if row is None:
            ignored.append(write)
        else:
            stored.append(write._replace(task_path=row[0]))
            overwrote = overwrote or row[1]
    return WritesAnswer(stored, overwrote, ignored)


def columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return rows as `unnest` takes them: an array a column."""
    if not rows:
        return {name: [] for name in names}
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
