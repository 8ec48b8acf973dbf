"""PostgreSQL for the explorer: LangGraph's tables as one immutable value, and what a statement makes of it.

What the entry protocol relies on is here, and nothing else:

- A statement sees the tables as they were when it began, and takes effect at once and whole. So a `put` is
  two steps: its snapshot (`newest`, `shadowed` and `known_writes` come from there), and its effect.
- A conflict is found when a statement takes effect, whatever its snapshot was: first come stays, or an
  upsert.
- A transaction's deletions are seen by nobody before its COMMIT, and lock their rows until then.
- A write, or a COMMIT, makes its row in the journal in the same moment, if it is to make one.

`execute` is that, pure; `ModelStore` and `ModelPruner` are `l2.store.Store` and `l2.pruning.Pruner` on top of
it, with the same answers. `test_model.py` compares the store with the real one.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from glasspoint.codec import Encoded, EncodedPut, EncodedWrite, StoredCheckpoint
from glasspoint.l2.journal import Entry
from glasspoint.l2.pruning import Barrier, in_use
from glasspoint.l2.store import PutAnswer, Ready, WritesAnswer
from glasspoint.scope import Scope

Ask = Callable[[tuple[Any, ...]], Awaitable[Any]]

CONNECTION = object()  # not psycopg's: nobody knows whether a statement on it still runs


class Tables(NamedTuple):
    """The rows, each a pair (primary key, the rest); a key begins with (thread, namespace).

    Attributes:
        checkpoints: (…, id) -> (parent id, document, metadata).
        blobs: (…, channel, version) -> (type, bytes).
        writes: (…, checkpoint id, task, idx) -> (task path, channel, type, bytes).
        changes: (transaction, table, key): locked now, deleted at its COMMIT.
        journal: (id, scope).
        next_id: The next row's.
    """

    checkpoints: frozenset[tuple[Any, Any]] = frozenset()
    blobs: frozenset[tuple[Any, Any]] = frozenset()
    writes: frozenset[tuple[Any, Any]] = frozenset()
    changes: frozenset[tuple[str, str, Any]] = frozenset()
    journal: frozenset[tuple[int, Scope]] = frozenset()
    next_id: int = 1


class MustWait(Exception):
    """Another transaction has locked a row."""


def execute(tables: Tables, who: str, statement: tuple[Any, ...]) -> tuple[Tables, Any]:
    """Return the tables afterwards, and the answer.

    Args:
        who: The session, which is in one transaction at a time.

    Raises:
        MustWait: It can only be done after another transaction has ended.
    """
    return _STATEMENTS[statement[0]](tables, who, *statement[1:])


def touched(tables: Tables, who: str, statement: tuple[Any, ...]) -> set[tuple[str, Any]]:
    """Return (table, key) of each row that a statement of `EFFECTS` makes, changes, deletes or finds."""
    match statement:
        case "put", scope, (checkpoint_id, _, _, _, blobs, _), _:
            return {("checkpoints", (*scope, checkpoint_id))} | {
                ("blobs", (*scope, *blob[:2])) for blob in blobs
            }
        case "put_writes", scope, checkpoint_id, writes, _, _:
            return {("writes", (*scope, checkpoint_id, *write[:2])) for write in writes}
        case _:
            return {(name, key) for session, name, key in tables.changes if session == who}


def _select(tables: Tables, who: str, scope: Scope, checkpoint_id: str | None) -> tuple[Tables, Any]:
    found = {key[2]: row for key, row in tables.checkpoints if key[:2] == scope}
    newest = max(found, default="") if checkpoint_id is None else checkpoint_id
    if newest not in found:
        return tables, None
    parent_id, document, metadata = found[newest]
    blobs = dict(tables.blobs)
    values = []
    for channel, version in sorted(json.loads(document)["channel_versions"].items()):
        if (key := (*scope, channel, str(version))) in blobs:
            values.append((*key[2:], *blobs[key]))
    writes = [(*key[3:], *row) for key, row in tables.writes if key[:3] == (*scope, newest)]
    return tables, (newest, parent_id, document, metadata, tuple(values), tuple(sorted(writes)))


def _snapshot(
    tables: Tables, who: str, scope: Scope, put: tuple[Any, ...], journalled: bool
) -> tuple[Tables, Any]:
    checkpoint_id, *_, bare = put
    blobs = {key for key, _ in tables.blobs}
    return tables, (
        not any(key[:2] == scope and key[2] >= checkpoint_id for key, _ in tables.checkpoints),
        any((*scope, *channel_and_version) in blobs for channel_and_version in bare),
        tuple(sorted(f"{key[3]}:{key[4]}" for key, _ in tables.writes if key[:3] == (*scope, checkpoint_id))),
    )


def _put(
    tables: Tables, who: str, scope: Scope, put: tuple[Any, ...], journalled: bool
) -> tuple[Tables, Any]:
    checkpoint_id, parent_id, document, metadata, blobs, _ = put
    tables, stored = _insert_blobs(tables, who, scope, blobs)
    key = (*scope, checkpoint_id)
    _check_free(tables, who, "checkpoints", [key])
    checkpoints = dict(tables.checkpoints)
    if key in checkpoints:  # an upsert leaves the parent as it was
        parent_id = checkpoints[key][0]
    checkpoints[key] = (parent_id, document, metadata)
    tables = tables._replace(checkpoints=frozenset(checkpoints.items()))
    return _recorded(tables, [scope] if journalled else []), stored


def _insert_blobs(tables: Tables, who: str, scope: Scope, blobs: Sequence[Any]) -> tuple[Tables, int]:
    rows = {(*scope, channel, version): (type_, data) for channel, version, type_, data in blobs}
    _check_free(tables, who, "blobs", rows)
    there = dict(tables.blobs)
    return tables._replace(blobs=frozenset((rows | there).items())), len(rows.keys() - there)


def _put_writes(
    tables: Tables,
    who: str,
    scope: Scope,
    checkpoint_id: str,
    writes: Sequence[Any],
    upsert: bool,
    journalled: bool,
) -> tuple[Tables, Any]:
    there = dict(tables.writes)
    answers = []
    for task_id, idx, channel, type_, data, path in writes:
        key = (*scope, checkpoint_id, task_id, idx)
        _check_free(tables, who, "writes", [key])
        if key in there and not upsert:
            continue
        old = there.get(key)
        stays = old[0] if old else path  # an upsert leaves the path as it was
        there[key] = (stays, channel, type_, data)
        answers.append((idx, stays, old is not None))
    tables = tables._replace(writes=frozenset(there.items()))
    return _recorded(tables, [scope] if journalled else []), tuple(answers)


def _delete(tables: Tables, who: str, thread_ids: Sequence[str]) -> tuple[Tables, Any]:
    doomed = [
        (name, key)
        for name in ("checkpoints", "blobs", "writes")
        for key, _ in getattr(tables, name)
        if key[0] in thread_ids
    ]
    scopes = {key[:2] for _, key in doomed} | {(thread_id, "") for thread_id in thread_ids}
    for name, key in doomed:
        _check_free(tables, who, name, [key])
    changes = tables.changes | {(who, name, key) for name, key in doomed}
    return tables._replace(changes=changes), tuple(sorted(scopes))


def _still_there(tables: Tables, who: str, thread_ids: Sequence[str]) -> tuple[Tables, Any]:
    own = {key for session, name, key in tables.changes if (session, name) == (who, "checkpoints")}
    there = {key[0] for key, _ in tables.checkpoints if key not in own}
    return tables, tuple(sorted(there.intersection(thread_ids)))


def _commit(tables: Tables, who: str, untold: Collection[Scope] = ()) -> tuple[Tables, Any]:
    rows = {name: dict(getattr(tables, name)) for name in ("checkpoints", "blobs", "writes")}
    for session, name, key in tables.changes:
        if session == who:
            rows[name].pop(key, None)
    tables = tables._replace(**{n: frozenset(r.items()) for n, r in rows.items()})
    return _rollback(_recorded(tables, untold), who)


def _rollback(tables: Tables, who: str) -> tuple[Tables, Any]:
    return tables._replace(changes=frozenset(c for c in tables.changes if c[0] != who)), None


def _recorded(tables: Tables, scopes: Collection[Scope]) -> Tables:
    rows = {(tables.next_id + number, scope) for number, scope in enumerate(sorted(set(scopes)))}
    return tables._replace(journal=tables.journal | rows, next_id=tables.next_id + len(rows))


def _record(tables: Tables, who: str, scopes: Collection[Scope]) -> tuple[Tables, Any]:
    return _recorded(tables, scopes), None


def _pending(tables: Tables, who: str, limit: int, after: int) -> tuple[Tables, Any]:
    return tables, tuple(sorted(row for row in tables.journal if row[0] > after)[:limit])


def _delete_rows(tables: Tables, who: str, rows: Collection[tuple[int, Scope]]) -> tuple[Tables, Any]:
    ids = {id_ for id_, _ in rows}
    return tables._replace(journal=frozenset(row for row in tables.journal if row[0] not in ids)), None


def _compact(tables: Tables, who: str) -> tuple[Tables, Any]:
    scopes = {scope for _, scope in tables.journal}
    return _recorded(tables._replace(journal=frozenset()), scopes), None


def _check_free(tables: Tables, who: str, name: str, keys: Collection[Any]) -> None:
    if any(session != who and table == name and key in keys for session, table, key in tables.changes):
        raise MustWait


_STATEMENTS: dict[str, Callable[..., tuple[Tables, Any]]] = {
    "select": _select,
    "put snapshot": _snapshot,
    "put": _put,
    "put_writes": _put_writes,
    "delete": _delete,
    "still there": _still_there,
    "commit": _commit,
    "rollback": _rollback,
    "record": _record,
    "pending": _pending,
    "delete rows": _delete_rows,
    "compact": _compact,
}

EFFECTS = ("put", "put_writes", "commit")

# What may yet take effect in the server when the client's connection is gone; a transaction that was not
# committing is rolled back.
GOES_ON = {"put snapshot": "put"} | {
    label: label for label in ("put", "put_writes", "commit", "record", "delete rows", "compact")
}


class ModelJournal:
    """`l2.journal.Journal`, likewise."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask

    async def record_now(self, scopes: Collection[Scope]) -> None:
        await self.ask(("record", tuple(scopes)))

    async def pending(self, limit: int, *, after: int = 0) -> list[Entry]:
        return [Entry(*row) for row in await self.ask(("pending", limit, after))]

    async def delete(self, entries: Sequence[Entry]) -> None:
        await self.ask(("delete rows", tuple(map(tuple, entries))))

    async def count(self) -> int:
        return len(await self.pending(1_000_000))

    async def compact(self) -> None:
        await self.ask(("compact",))


class ModelStore:
    """`l2.store.Store`, as far as the protocol's steps need it; `ask` sends a statement."""

    pool = None
    is_saturated = False

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.journal = ModelJournal(ask)

    async def select(self, scope: Scope, checkpoint_id: str | None, **_: Any) -> StoredCheckpoint | None:
        return stored_checkpoint(scope, await self.ask(("select", scope, checkpoint_id)))

    async def put(self, scope: Scope, put: EncodedPut, ready: Ready, **_: Any) -> PutAnswer:
        journalled = await ready(CONNECTION)
        params = put_params(put)
        newest, shadowed, known_writes = await self.ask(("put snapshot", scope, params, journalled))
        stored = await self.ask(("put", scope, params, journalled))
        return PutAnswer(newest and not shadowed and stored == len(put.blobs), list(known_writes))

    async def put_writes(
        self,
        scope: Scope,
        checkpoint_id: str,
        writes: list[EncodedWrite],
        ready: Ready,
        *,
        upsert: bool,
        **_: Any,
    ) -> WritesAnswer:
        journalled = await ready(CONNECTION)
        rows = tuple(_row(write) for write in writes)
        answers = await self.ask(("put_writes", scope, checkpoint_id, rows, upsert, journalled))
        paths = {idx: path for idx, path, _ in answers}
        stored = [w._replace(task_path=paths[w.idx]) for w in writes if w.idx in paths]
        ignored = [w for w in writes if w.idx not in paths]
        return WritesAnswer(stored, any(overwrote for *_, overwrote in answers), ignored)

    async def delete_thread(
        self, thread_id: str, before_commit: Callable[[list[str]], Awaitable[Collection[Scope]]], **_: Any
    ) -> None:
        async with _Transaction(self.ask) as transaction:
            scopes = await self.ask(("delete", (thread_id,)))
            transaction.untold = await before_commit([namespace for _, namespace in scopes])

    async def drain(self) -> None:
        """Nothing is ever left unfinished."""


class ModelPruner:
    """`l2.pruning.Pruner`, likewise; without delta channels, subgraphs and old formats."""

    def __init__(self, store: ModelStore) -> None:
        self.ask = store.ask

    async def delete_threads(self, thread_ids: Sequence[str], barrier: Barrier) -> None:
        threads = tuple(sorted(set(thread_ids)))
        async with _Transaction(self.ask) as transaction:
            scopes = await self.ask(("delete", threads))
            await barrier.block([Scope(*scope) for scope in scopes], alone=thread_ids)
            if there := await self.ask(("still there", threads)):
                raise in_use(there)
            transaction.untold = barrier.untold()
            barrier.committing()


class _Transaction:
    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.untold: Collection[Scope] = ()

    async def __aenter__(self) -> _Transaction:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.ask(("commit", tuple(self.untold)))
        else:
            with suppress(Exception):  # a connection that is gone has rolled back by itself
                await self.ask(("rollback",))


def put_params(put: EncodedPut) -> tuple[Any, ...]:
    """What a put sends."""
    return (
        put.checkpoint_id,
        put.parent_id,
        put.document_json,
        put.metadata_json,
        tuple((channel, version, *value) for channel, (version, value) in sorted(put.blobs.items())),
        tuple(sorted({**put.inline, **put.voids}.items())),
    )


def stored_checkpoint(scope: Scope, row: Any) -> StoredCheckpoint | None:
    """What `Store.select` returns for a row of `select`."""
    if row is None:
        return None
    checkpoint_id, parent_id, document, metadata, values, writes = row
    return StoredCheckpoint(
        scope=scope,
        checkpoint_id=checkpoint_id,
        parent_id=parent_id,
        document=json.loads(document),
        metadata=json.loads(metadata),
        values={c: (version, Encoded(type_, data)) for c, version, type_, data in values if type_ != "empty"},
        writes=[
            EncodedWrite(task_id, idx, channel, Encoded(type_, data), path)
            for task_id, idx, path, channel, type_, data in writes
        ],
        document_json=document,
        metadata_json=metadata,
        document_bytes=len(document) + len(metadata),
    )


def _row(write: EncodedWrite) -> tuple[Any, ...]:
    return (write.task_id, write.idx, write.channel, *write.value, write.task_path)
