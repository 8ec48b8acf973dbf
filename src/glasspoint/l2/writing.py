"""Turns what callers write into statements and their parameters, and rows into results. Pure, no I/O.

Open this file when a write is sent with the wrong statement, or when its result is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

from glasspoint.l2.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from glasspoint.model.codec import EncodedPut, EncodedWrite, PendingWrites
    from glasspoint.model.scope import Scope

__all__ = [
    "Announced",
    "FenceParams",
    "FenceResult",
    "PutResult",
    "Ready",
    "WritesResult",
    "columns",
    "put_answers",
    "put_statement",
    "storing",
    "writes_answers",
    "writes_statement",
]

Row = tuple[Any, ...]
Statement = tuple[str, dict[str, Any]]

FEW = 4
"""How many values the statements `…_few…` take at most: their texts have a place for each."""

_PUT = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_id", "checkpoint", "metadata")
_PUTS = ("thread_ids", "namespaces", "checkpoint_ids", "parent_ids", "checkpoints", "metadata")
_BLOBS = ("channels", "versions", "types", "blobs")
_BARE = ("bare_of", "bare_channels", "bare_versions")
_WRITES = ("idxs", "channels", "types", "blobs")
_TASKS = ("thread_ids", "namespaces", "checkpoint_ids", "task_ids", "task_paths")

# The parameters of a statement `…_few…`, and the rows that fill it up.
_NUMBERS = range(1, FEW + 1)
_FEW_BLOBS = tuple(f"{name}_{n}" for n in _NUMBERS for name in ("channel", "version", "type", "blob"))
_FEW_WRITES = tuple(f"{name}_{n}" for n in _NUMBERS for name in ("idx", "channel", "type", "blob"))
_NO_BLOB = ("", "", "", b"")
_NO_WRITE = (0, "", "", b"")


class Announced(NamedTuple):
    """What the statement of a write also does, depending on how L1 was told of the write.

    Attributes:
        is_journalled: Whether to record the scope in the journal.
        burst: The burst that the write belongs to. Empty: none, so there is no fence.
        opens: Whether to set the fence of the burst. Otherwise the statement only looks for it.
    """

    is_journalled: bool = False
    burst: str = ""
    opens: bool = False


Ready = Callable[[Any], Awaitable[Announced]]
"""Awaited with the connection before anything is sent on it. May keep it for `faults.may_still_run`, later.

Returns what the statement also does, depending on how L1 was told of the write.
"""


class FenceResult(NamedTuple):
    """What the statement of a write has seen of fences, before it set one.

    Attributes:
        stands: Whether the fence of its own burst stands, for longer than the statement can run.
        is_contested: Whether the fence of another saver stands.
        identity: The identity of this PostgreSQL, as in `Look.mark`. `None`: the fence stands, so the
            identity is the same.
    """

    stands: bool = False
    is_contested: bool = False
    identity: str | None = None


class PutResult(NamedTuple):
    """The result of a put: what L1 must know of it, and whether it forks its thread. See `sql/put.sql`.

    Attributes:
        followable: Whether it is the newest checkpoint of its scope, was not there before, and has all its
            values in PostgreSQL as they were sent.
        known_writes: `<task id>:<idx>` of the pending writes that were there before it.
        fence: What the statement has seen of fences.
        forked_by: The checkpoint that is newer than the parent, although the parent was read as the newest,
            or was put by the same run. `None`: there is none, or the put was not judged.
    """

    followable: bool
    known_writes: list[str]
    fence: FenceResult = FenceResult()
    forked_by: str | None = None


class WritesResult(NamedTuple):
    """The result of storing some pending writes.

    Attributes:
        stored: The writes that were stored.
        overwrote: Whether any of them replaced an older one.
        ignored: The writes that were there already.
        fence: What the statement has seen of fences.
    """

    stored: list[EncodedWrite]
    overwrote: bool
    ignored: list[EncodedWrite]
    fence: FenceResult = FenceResult()


class FenceParams(NamedTuple):
    """The parameters for the fences in the statement of some writes.

    Attributes:
        announced: What was announced for each write.
        holder: The name of the saver that holds the fences.
        cache: The name of the cache: the key prefix.
        stands: For how many seconds a fence is set.
        margin: For how many more seconds a fence must stand, to count.
    """

    announced: Sequence[Announced]
    holder: str
    cache: str
    stands: float
    margin: float

    def alone(self) -> dict[str, Any]:
        """Return the parameters for a statement with one write."""
        (announced,) = self.announced
        return {**self._shared(), "burst": announced.burst, "opens": announced.opens}

    def together(self) -> dict[str, Any]:
        """Return the parameters for a statement with several writes."""
        of_each = [(announced.burst, announced.opens) for announced in self.announced]
        return {**self._shared(), **columns(("bursts", "opens"), of_each)}

    def _shared(self) -> dict[str, Any]:
        return {
            "holder": self.holder,
            "cache": self.cache,
            "stands": self.stands,
            "margin": self.margin,
        }


@cache
def storing(block: str, *, is_journalled: bool = False) -> LiteralString:
    """Return a statement that stores what callers write.

    Args:
        block: The name of its block in `put.sql` or `writes.sql`. The tops of these files say how to choose.
        is_journalled: Whether it also records scopes, in the same transaction: see `Journal.params`.
    """
    beginning = "own" if "_writes" in block and not block.endswith("_fenced") else "with"
    return query(f"{beginning}_journalled" if is_journalled else beginning, block)


def put_statement(
    puts: Sequence[tuple[Scope, EncodedPut]],
    fences: FenceParams | None = None,
    *,
    refuses_forks: bool = False,
    is_journalled: bool = False,
) -> Statement:
    """Return the statement that stores checkpoints of different scopes, and its parameters.

    Args:
        fences: The parameters for fences, in the same order. `None`: no checkpoint belongs to a burst.
        refuses_forks: Whether a put that would fork its thread is not stored.
        is_journalled: See `storing`.
    """
    variant = f"{'' if fences is None else '_fenced'}{'_judged' if is_judged(puts) else ''}"
    on_fork = 2 if refuses_forks else 1
    if len(puts) == 1:
        [(scope, put)] = puts
        params = dict(zip(_PUT, _put(scope, put), strict=True))
        params["bare"] = json.dumps({**put.inline, **put.voids})
        if put.follows_newest:
            params["on_fork"] = on_fork
        if fences is not None:
            params |= fences.alone()
        values = _blobs(put)
        if len(values) <= FEW:
            params |= _few(_FEW_BLOBS, values, _NO_BLOB)
            return storing(f"put_few{variant}", is_journalled=is_journalled), params
        return storing(f"put{variant}", is_journalled=is_journalled), params | columns(_BLOBS, values)
    blobs: list[Row] = []
    bare: list[Row] = []
    for number, (_, put) in enumerate(puts, 1):
        blobs += [(number, *blob) for blob in _blobs(put)]
        bare += [(number, *each) for each in (*put.inline.items(), *put.voids.items())]
    arrays = columns(("blobs_of", *_BLOBS), blobs) | columns(_BARE, bare)
    params = columns(_PUTS, [_put(*each) for each in puts]) | arrays
    if fences is not None:
        params |= fences.together()
    if is_judged(puts):
        params["on_forks"] = [on_fork if put.follows_newest else 0 for _, put in puts]
    return storing(f"put_together{variant}", is_journalled=is_journalled), params


def is_judged(puts: Sequence[tuple[Scope, EncodedPut]]) -> bool:
    """Tell whether any put follows a checkpoint that was read as the newest: it may fork its thread."""
    return any(put.follows_newest for _, put in puts)


def _put(scope: Scope, put: EncodedPut) -> Row:
    return (*scope, put.checkpoint_id, put.parent_id, put.document_json, put.metadata_json)


def _blobs(put: EncodedPut) -> list[Row]:
    """Return the values in a fixed order, so that two puts never wait for each other in a circle."""
    return [(channel, version, *value) for channel, (version, value) in sorted(put.blobs.items())]


def put_answers(puts: Sequence[tuple[Scope, EncodedPut]], rows: Sequence[Row]) -> list[PutResult]:
    """Return the result of each put."""
    width = 1 if is_judged(puts) else 0
    results = []
    for (_, put), (newest, stored, shadowed, known_writes, latest, *more) in zip(puts, rows, strict=True):
        forked_by = more[0] if width else None
        if put.follows_own and latest not in (None, put.checkpoint_id) and latest > put.parent_id:
            forked_by = latest
        followable = newest and not shadowed and stored == len(put.blobs)
        results.append(PutResult(followable, known_writes, FenceResult(*more[width:]), forked_by))
    return results


def writes_statement(
    tasks: Sequence[PendingWrites],
    *,
    upsert: bool,
    fences: FenceParams | None = None,
    is_journalled: bool = False,
) -> Statement:
    """Return the statement that stores the writes of tasks, and its parameters.

    The rows are in the order of their key, so that two statements never wait for each other in a circle.

    Args:
        tasks: The writes. No task occurs twice.
        upsert: Whether the writes replace what is there.
        fences: As for `put_statement`.
        is_journalled: See `storing`.
    """
    kind, variant = "upsert" if upsert else "put", "" if fences is None else "_fenced"
    if len(tasks) == 1:
        scope, checkpoint_id, writes = tasks[0]
        params = scope._asdict() | {
            "checkpoint_id": checkpoint_id,
            "task_id": writes[0].task_id,
            "task_path": writes[0].task_path,
        }
        if fences is not None:
            params |= fences.alone()
        values: list[Row] = [(w.idx, w.channel, *w.value) for w in sorted(writes, key=_key)]
        if len(values) <= FEW:
            params |= _few(_FEW_WRITES, values, _NO_WRITE)
            return storing(f"{kind}_few_writes{variant}", is_journalled=is_journalled), params
        params |= columns(_WRITES, values)
        return storing(f"{kind}_writes{variant}", is_journalled=is_journalled), params
    rows = [
        (*task.scope, task.checkpoint_id, w.task_id, w.task_path, w.idx, w.channel, *w.value)
        for task in sorted(tasks, key=lambda task: (task.scope, task.checkpoint_id, task.writes[0].task_id))
        for w in sorted(task.writes, key=_key)
    ]
    params = columns((*_TASKS, *_WRITES), rows)
    if fences is not None:
        params |= columns(("burst_threads", "burst_namespaces"), [task.scope for task in tasks])
        params |= fences.together()
    return storing(f"{kind}_writes_together{variant}", is_journalled=is_journalled), params


def _key(write: EncodedWrite) -> tuple[str, int]:
    return write.task_id, write.idx


def writes_answers(tasks: Sequence[PendingWrites], rows: Sequence[Row]) -> list[WritesResult]:
    """Return the result for each task."""
    fences = {number: FenceResult(*fence) for task_id, number, _, _, *fence in rows if task_id is None}
    stored = {
        (task_id, idx): (task_path, overwrote)
        for task_id, idx, task_path, overwrote, *_ in rows
        if task_id is not None
    }
    return [
        _writes_answer(task.writes, stored)._replace(fence=fences.get(number, FenceResult()))
        for number, task in enumerate(tasks, 1)
    ]


def _writes_answer(
    writes: Sequence[EncodedWrite], rows: Mapping[tuple[str, int], tuple[str, bool]]
) -> WritesResult:
    stored, ignored, overwrote = [], [], False
    for write in writes:
        row = rows.get((write.task_id, write.idx))
        if row is None:
            ignored.append(write)
        else:
            stored.append(write._replace(task_path=row[0]))
            overwrote = overwrote or row[1]
    return WritesResult(stored, overwrote, ignored)


def _few(names: Sequence[str], rows: Sequence[Row], no_row: Row) -> dict[str, Any]:
    """Return rows as a statement `…_few…` takes them: one parameter for each value of `FEW` rows."""
    values = [value for row in rows for value in row]
    values += no_row * (FEW - len(rows))
    return {"count": len(rows), **dict(zip(names, values, strict=True))}


def columns(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return rows as `unnest` takes them: one array for each column."""
    found = list(zip(*rows, strict=True)) or [()] * len(names)
    return dict(zip(names, map(list, found), strict=True))
