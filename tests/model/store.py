"""PostgreSQL for the explorer: LangGraph's tables as one immutable value, and what a statement makes of it.

What the entry protocol relies on is here, and nothing else:

- A statement sees the tables as they were when it began, and takes effect at once and whole. So a `put` is
  two steps: its snapshot (`newest`, `shadowed` and `known_writes` come from there), and its effect.
- A conflict is found when a statement takes effect, whatever its snapshot was: first come stays, or an
  upsert.
- A transaction's deletions are seen by nobody before its COMMIT, and lock their rows until then.
- A write, or a COMMIT, makes its row in the journal in the same moment, if it is to make one. So does a write
  of other software: the trigger makes that row.
- A look shows the facts, the cache's row and the journal as they are at one moment. A renewal takes effect
  only if the generation is there that the caller has seen.

`execute` is that, pure; `ModelStore` and `ModelPruner` are `l2.store.Store` and `l2.pruning.Pruner` on top of
it, with the same answers. `test_model.py` compares the store with the real one.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.base import SerializerProtocol

from glasspoint.l2.identity import Attachment, JournalRow, Look
from glasspoint.l2.pruning import Barrier, in_use
from glasspoint.l2.store import PutResult, WritesResult
from glasspoint.l2.writing import Announced, FenceResult, Ready
from glasspoint.model import codec
from glasspoint.model.codec import Encoded, EncodedPut, EncodedWrite, StoredCheckpoint
from glasspoint.model.identity import next_era
from glasspoint.model.scope import Scope, checkpoint_id_of, scope_of

if TYPE_CHECKING:
    from glasspoint.telemetry.events import IdentityReason

Ask = Callable[[tuple[Any, ...]], Awaitable[Any]]
CheckOut = Callable[[], Awaitable[None]]

CONNECTION = object()  # not psycopg's: nobody knows whether a statement on it still runs

SIGNING_KEY = bytes(range(32))

Facts = tuple[tuple[str, str], ...]


class CacheRow(NamedTuple):
    """The row of the cache."""

    reign: str
    generation: str
    facts: Facts
    reason: str = "generation"


class Tables(NamedTuple):
    """The rows, each a pair (primary key, the rest); a key begins with (thread, namespace).

    Attributes:
        checkpoints: (…, id) -> (parent id, document, metadata).
        blobs: (…, channel, version) -> (type, bytes).
        writes: (…, checkpoint id, task, idx) -> (task path, channel, type, bytes).
        changes: (transaction, table, key): locked now, deleted at its COMMIT.
        journal: (id, scope, table that other software has written to, if it has).
        next_id: The next row's.
        fences: (thread, namespace, holder) -> burst. A fence that has expired, or will soon, is not there.
        facts: What a look tells of PostgreSQL: (name, value).
        cache: The row of the cache.
        marks: The generations since which nothing was lost.
        generations: How many there have been. Nothing sets that back: a real one is random.
    """

    checkpoints: frozenset[tuple[Any, Any]] = frozenset()
    blobs: frozenset[tuple[Any, Any]] = frozenset()
    writes: frozenset[tuple[Any, Any]] = frozenset()
    changes: frozenset[tuple[str, str, Any]] = frozenset()
    journal: frozenset[tuple[int, Scope, str | None]] = frozenset()
    next_id: int = 1
    fences: frozenset[tuple[Any, str]] = frozenset()
    facts: Facts = (("content", "1"), ("timeline", "1"))
    cache: CacheRow | None = None
    marks: frozenset[str] = frozenset()
    generations: int = 0


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


def truncated(tables: Tables) -> Tables:
    """LangGraph's tables are empty, and have another content."""
    facts = {**dict(tables.facts), "content": dict(tables.facts)["content"] + "+"}
    empty: frozenset[Any] = frozenset()
    return tables._replace(checkpoints=empty, blobs=empty, writes=empty, facts=tuple(sorted(facts.items())))


def set_back(tables: Tables, earlier: Tables, *, tells: bool) -> Tables:
    """All is as it was, but that a generation has no mark of its own any more; if it `tells`, on another
    timeline."""
    facts = dict(tables.facts) | {"content": dict(earlier.facts)["content"]}
    if tells:
        facts["timeline"] += "+"
    return earlier._replace(
        facts=tuple(sorted(facts.items())), marks=frozenset(), generations=tables.generations
    )


def touched(tables: Tables, who: str, statement: tuple[Any, ...]) -> set[tuple[str, Any]]:
    """Return (table, key) of each row that a statement of `EFFECTS` makes, changes, deletes or finds."""
    match statement:
        case (("put" | "foreign put"), scope, (checkpoint_id, _, _, _, blobs, _), *_):
            return {("checkpoints", (*scope, checkpoint_id))} | {
                ("blobs", (*scope, *blob[:2])) for blob in blobs
            }
        case (("put_writes" | "foreign put_writes"), scope, checkpoint_id, writes, *_):
            return {("writes", (*scope, checkpoint_id, *write[:2])) for write in writes}
        case "foreign delete", thread_ids:
            return set(_rows_of(tables, thread_ids))
        case _:
            return {(name, key) for session, name, key in tables.changes if session == who}


def _select(tables: Tables, who: str, scope: Scope, checkpoint_id: str | None) -> tuple[Tables, Any]:
    found = {key[2]: row for key, row in tables.checkpoints if key[:2] == scope}
    newest = max(found, default="") if checkpoint_id is None else checkpoint_id
    if newest not in found:
        return tables, (None, False)
    parent_id, document, metadata = found[newest]
    blobs = dict(tables.blobs)
    values = []
    for channel, version in sorted(json.loads(document)["channel_versions"].items()):
        if (key := (*scope, channel, str(version))) in blobs:
            values.append((*key[2:], *blobs[key]))
    writes = [(*key[3:], *row) for key, row in tables.writes if key[:3] == (*scope, newest)]
    row = (newest, parent_id, document, metadata, tuple(values), tuple(sorted(writes)))
    return tables, (row, any(key[:2] == scope for key, _ in tables.fences))


Fence = tuple[str, str, bool] | None
"""Who holds it, which burst it is of, and whether the statement sets it."""


def _seen(tables: Tables, scope: Scope, fence: Fence) -> tuple[bool, bool, str | None]:
    """Whether the own fence stands, and whether another one does; and the identity, for a first write."""
    if fence is None:
        return False, False, None
    holder, burst, opens = fence
    there = {key[2]: its for key, its in tables.fences if key[:2] == scope}
    stands, row = there.get(holder) == burst, tables.cache
    is_marked = row is not None and row.generation in tables.marks
    identity = f"{row.generation}:{dict(tables.facts)['content']}" if row and is_marked else ""
    return stands, bool(there.keys() - {holder}), identity if opens or not stands else None


def _fenced(tables: Tables, scope: Scope, fence: Fence) -> Tables:
    if fence is None or not fence[2]:
        return tables
    fences = {**dict(tables.fences), (*scope, fence[0]): fence[1]}
    return tables._replace(fences=frozenset(fences.items()))


def _unfence(tables: Tables, who: str, scope: Scope, holder: str, burst: str) -> tuple[Tables, Any]:
    return tables._replace(fences=tables.fences - {((*scope, holder), burst)}), None


def unfenced(tables: Tables, holder: str | None = None) -> Tables:
    """All fences are gone, or those of one process."""
    left = {each for each in tables.fences if holder is not None and each[0][2] != holder}
    return tables._replace(fences=frozenset(left))


def _snapshot(
    tables: Tables, who: str, scope: Scope, put: tuple[Any, ...], journalled: bool, fence: Fence
) -> tuple[Tables, Any]:
    checkpoint_id, *_, bare = put
    blobs = {key for key, _ in tables.blobs}
    return tables, (
        not any(key[:2] == scope and key[2] >= checkpoint_id for key, _ in tables.checkpoints),
        any((*scope, *channel_and_version) in blobs for channel_and_version in bare),
        tuple(sorted(f"{key[3]}:{key[4]}" for key, _ in tables.writes if key[:3] == (*scope, checkpoint_id))),
        _seen(tables, scope, fence),
    )


def _put(
    tables: Tables, who: str, scope: Scope, put: tuple[Any, ...], journalled: bool, fence: Fence = None
) -> tuple[Tables, Any]:
    checkpoint_id, parent_id, document, metadata, blobs, _ = put
    tables, stored = _insert_blobs(tables, who, scope, blobs)
    key = (*scope, checkpoint_id)
    _check_free(tables, who, "checkpoints", [key])
    checkpoints = dict(tables.checkpoints)
    if key in checkpoints:  # an upsert leaves the parent as it was
        parent_id = checkpoints[key][0]
    checkpoints[key] = (parent_id, document, metadata)
    tables = _fenced(tables._replace(checkpoints=frozenset(checkpoints.items())), scope, fence)
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
    fence: Fence = None,
) -> tuple[Tables, Any]:
    there, seen = dict(tables.writes), _seen(tables, scope, fence)
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
    tables = _fenced(tables._replace(writes=frozenset(there.items())), scope, fence)
    return _recorded(tables, [scope] if journalled else []), (tuple(answers), seen)


def _delete(tables: Tables, who: str, thread_ids: Sequence[str]) -> tuple[Tables, Any]:
    doomed = _rows_of(tables, thread_ids)
    scopes = {key[:2] for _, key in doomed} | {(thread_id, "") for thread_id in thread_ids}
    for name, key in doomed:
        _check_free(tables, who, name, [key])
    changes = tables.changes | {(who, name, key) for name, key in doomed}
    return tables._replace(changes=changes), tuple(sorted(scopes))


def _rows_of(tables: Tables, thread_ids: Collection[str]) -> list[tuple[str, Any]]:
    return [
        (name, key)
        for name in ("checkpoints", "blobs", "writes")
        for key, _ in getattr(tables, name)
        if key[0] in thread_ids
    ]


def _still_there(tables: Tables, who: str, thread_ids: Sequence[str]) -> tuple[Tables, Any]:
    own = {key for session, name, key in tables.changes if (session, name) == (who, "checkpoints")}
    there = {key[0] for key, _ in tables.checkpoints if key not in own}
    return tables, tuple(sorted(there.intersection(thread_ids)))


def _commit(tables: Tables, who: str, untold: Collection[Scope] = ()) -> tuple[Tables, Any]:
    rows: dict[str, dict[Any, Any]] = {
        name: dict(getattr(tables, name)) for name in ("checkpoints", "blobs", "writes")
    }
    for session, name, key in tables.changes:
        if session == who:
            rows[name].pop(key, None)
    changed: dict[str, Any] = {name: frozenset(each.items()) for name, each in rows.items()}
    tables = tables._replace(**changed)
    return _rollback(_recorded(tables, untold), who)


def _rollback(tables: Tables, who: str) -> tuple[Tables, Any]:
    return tables._replace(changes=frozenset(c for c in tables.changes if c[0] != who)), None


def _foreign_put(tables: Tables, who: str, scope: Scope, put: tuple[Any, ...]) -> tuple[Tables, Any]:
    tables, _ = _put(tables, who, scope, put, journalled=False)
    return _noted(tables, [scope], "checkpoints"), None


def _foreign_put_writes(
    tables: Tables, who: str, scope: Scope, checkpoint_id: str, writes: Sequence[Any], upsert: bool
) -> tuple[Tables, Any]:
    tables, (stored, _) = _put_writes(tables, who, scope, checkpoint_id, writes, upsert, journalled=False)
    return _noted(tables, [scope] if stored else [], "checkpoint_writes"), None


def _foreign_delete(tables: Tables, who: str, thread_ids: Sequence[str]) -> tuple[Tables, Any]:
    doomed = _rows_of(tables, thread_ids)
    tables, _ = _commit(_delete(tables, who, thread_ids)[0], who)
    for source, name in (("checkpoints", "checkpoints"), ("checkpoint_writes", "writes")):
        tables = _noted(tables, [Scope(*key[:2]) for table, key in doomed if table == name], source)
    return tables, None


def _noted(tables: Tables, scopes: Collection[Scope], source: str) -> Tables:
    """The trigger: with no row of the cache there is nobody to tell."""
    return _recorded(tables, scopes if tables.cache is not None else [], source)


def _recorded(tables: Tables, scopes: Collection[Scope], source: str | None = None) -> Tables:
    rows = {(tables.next_id + number, scope, source) for number, scope in enumerate(sorted(set(scopes)))}
    return tables._replace(journal=tables.journal | rows, next_id=tables.next_id + len(rows))


def _record(tables: Tables, who: str, scopes: Collection[Scope]) -> tuple[Tables, Any]:
    return _recorded(tables, scopes), None


def _look(tables: Tables, who: str, limit: int, after: int) -> tuple[Tables, Any]:
    pending = tuple(sorted(row[:2] for row in tables.journal if row[0] > after)[:limit])
    is_marked = tables.cache is not None and tables.cache.generation in tables.marks
    return tables, (tables.facts, tables.cache, is_marked, pending)


def _renew(
    tables: Tables, who: str, seen: str | None, reign: str, facts: Facts, reason: str
) -> tuple[Tables, Any]:
    if tables.cache is not None and tables.cache.generation != seen:
        return tables, None
    generation = f"{tables.generations + 1:016x}"
    if reason == "called_off" and seen is not None:
        generation = next_era(seen, generation)
    return tables._replace(
        cache=CacheRow(reign, generation, facts, reason),
        marks=tables.marks - {seen} | {generation},
        generations=tables.generations + 1,
    ), generation


def _say_seen(tables: Tables, who: str, generation: str) -> tuple[Tables, Any]:
    return tables, None  # time stands still here


def _delete_rows(
    tables: Tables, who: str, rows: Collection[tuple[int, Scope]], generation: str
) -> tuple[Tables, Any]:
    if tables.cache is None or tables.cache.generation != generation:
        return tables, ()
    ids = {id_ for id_, _ in rows}
    gone = {row for row in tables.journal if row[0] in ids}
    sources = sorted(source for *_, source in gone if source is not None)
    return tables._replace(journal=tables.journal - gone), tuple(sources)


def _count(tables: Tables, who: str) -> tuple[Tables, Any]:
    return tables, len(tables.journal)


def _compact(tables: Tables, who: str) -> tuple[Tables, Any]:
    gone, tables = tables.journal, tables._replace(journal=frozenset())
    for source in sorted({source for *_, source in gone}, key=str):
        scopes = {scope for _, scope, its in gone if its == source}
        tables = _recorded(tables, scopes, source)
    return tables, None


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
    "foreign put": _foreign_put,
    "foreign put_writes": _foreign_put_writes,
    "foreign delete": _foreign_delete,
    "record": _record,
    "look": _look,
    "greet": _look,
    "renew": _renew,
    "say seen": _say_seen,
    "delete rows": _delete_rows,
    "unfence": _unfence,
    "count": _count,
    "compact": _compact,
}

READING = ("select", "put snapshot", "still there", "look", "greet", "count")
"""The statements that change nothing."""

FOREIGN = ("foreign put", "foreign put_writes", "foreign delete")
EFFECTS = ("put", "put_writes", "commit", *FOREIGN)

# What may yet take effect in the server when the client's connection is gone; a transaction that was not
# committing is rolled back.
GOES_ON = {"put snapshot": "put"} | {
    label: label for label in (*EFFECTS, "record", "renew", "delete rows", "compact", "unfence")
}


async def stay_connected() -> None:
    """The connection is there."""


class ModelJournal:
    """`l2.journal.Journal`, likewise."""

    def __init__(self, ask: Ask, check_out: CheckOut) -> None:
        self._ask = ask
        self._check_out = check_out

    async def record_now(self, scopes: Collection[Scope]) -> None:
        await self._check_out()
        await self._ask(("record", tuple(sorted(scopes))))

    async def delete(self, rows: Sequence[JournalRow], generation: str) -> list[str]:
        await self._check_out()
        return list(await self._ask(("delete rows", tuple(map(tuple, rows)), generation)))

    async def count(self) -> int:
        await self._check_out()
        count: int = await self._ask(("count",))
        return count

    async def compact(self) -> None:
        await self._check_out()
        await self._ask(("compact",))


class ModelFences:
    """`l2.fences.Fences`, likewise; fences are removed one after the other."""

    def __init__(self, ask: Ask, check_out: CheckOut) -> None:
        self._ask = ask
        self._check_out = check_out
        self.holder = ""
        self.in_background: Callable[[Any], object] = lambda work: None
        self.pending: dict[Scope, str] = {}
        self.is_removing = False

    def ended(self, scope: Scope, burst: str) -> None:
        self.pending[scope] = burst
        if not self.is_removing:
            self.is_removing = True
            self.in_background(self._remove())

    async def _remove(self) -> None:
        while self.pending:
            scope, burst = self.pending.popitem()
            with suppress(Exception):
                await self._check_out()
                await self._ask(("unfence", scope, self.holder, burst))
        self.is_removing = False

    def of(self, announced: Announced) -> Fence:
        return (self.holder, announced.burst, announced.opens) if announced.burst else None


class Reigns:
    """What the reigns of Redis are called in the model: there, states of different runs are compared."""

    def name(self, reign: str) -> str:
        """Return what a reign is called."""
        return reign

    def real(self, name: str) -> str:
        """Return the reign that is called so."""
        return name


class ModelIdentities:
    """`l2.identity.Identities`, likewise; nothing is withheld, and no cache is forgotten."""

    withheld: Sequence[str] = ()

    def __init__(self, ask: Ask, check_out: CheckOut, reigns: Reigns) -> None:
        self._ask = ask
        self._check_out = check_out
        self._reigns = reigns

    async def look(self, *, limit: int = 0, after: int = 0) -> Look:
        await self._check_out()
        return self._seen(await self._ask(("look", limit, after)))

    async def look_on(self, _connection: object, *, limit: int = 0, after: int = 0) -> Look:
        return self._seen(await self._ask(("greet", limit, after)))

    async def renew(self, look: Look, reign: str, reason: str) -> str | None:
        await self._check_out()
        seen, facts = look.attachment, tuple(sorted(look.facts.items()))
        generation: str | None = await self._ask(
            ("renew", seen and seen.generation, self._reigns.name(reign), facts, reason)
        )
        return generation

    async def say_seen(self, generation: str) -> None:
        await self._check_out()
        await self._ask(("say seen", generation))

    def _seen(self, answer: Any) -> Look:
        facts, row, is_marked, pending = answer
        return Look(
            database="0" * 12,
            facts=dict(facts),
            signing_key=SIGNING_KEY,
            synchronous_commit="on",
            attachment=row
            and Attachment(
                self._reigns.real(row.reign),
                row.generation,
                dict(row.facts),
                unseen_seconds=0.0,
                is_marked=is_marked,
                reason=cast("IdentityReason", row.reason),
            ),
            rows=[JournalRow(id_, Scope(*scope)) for id_, scope in pending],
        )


class ModelStore:
    """`l2.store.Store`, as far as the protocol's steps need it."""

    pool = None
    is_saturated = False

    def __init__(
        self, ask: Ask, *, check_out: CheckOut = stay_connected, reigns: Reigns | None = None
    ) -> None:
        """Args:
        ask: Sends a statement.
        check_out: Awaited before the first statement on a connection.
        reigns: What the reigns of Redis are called.
        """
        self.ask = ask
        self.check_out = check_out
        self.connections = self  # what the saver asks of these is here, too
        self.journal = ModelJournal(ask, check_out)
        self.identities = ModelIdentities(ask, check_out, reigns or Reigns())
        self.fences = ModelFences(ask, check_out)

    async def select(self, scope: Scope, checkpoint_id: str | None, **_: Any) -> StoredCheckpoint | None:
        await self.check_out()
        row, is_fenced = await self.ask(("select", scope, checkpoint_id))
        return stored_checkpoint(scope, row, is_fenced=is_fenced)

    async def put(self, scope: Scope, put: EncodedPut, ready: Ready, **_: Any) -> PutResult:
        await self.check_out()
        announced = await ready(CONNECTION)
        statement = (scope, put_params(put), announced.is_journalled, self.fences.of(announced))
        newest, shadowed, known_writes, seen = await self.ask(("put snapshot", *statement))
        stored = await self.ask(("put", *statement))
        is_as_sent = newest and not shadowed and stored == len(put.blobs)
        return PutResult(is_as_sent, list(known_writes), FenceResult(*seen))

    async def put_writes(
        self,
        scope: Scope,
        checkpoint_id: str,
        writes: list[EncodedWrite],
        ready: Ready,
        *,
        upsert: bool,
        **_: Any,
    ) -> WritesResult:
        await self.check_out()
        announced = await ready(CONNECTION)
        rows = tuple(_row(write) for write in writes)
        fence = self.fences.of(announced)
        answers, seen = await self.ask(
            ("put_writes", scope, checkpoint_id, rows, upsert, announced.is_journalled, fence)
        )
        paths = {idx: path for idx, path, _ in answers}
        stored = [w._replace(task_path=paths[w.idx]) for w in writes if w.idx in paths]
        ignored = [w for w in writes if w.idx not in paths]
        overwrote = any(overwrote for *_, overwrote in answers)
        return WritesResult(stored, overwrote, ignored, FenceResult(*seen))

    async def delete_thread(
        self, thread_id: str, before_commit: Callable[[list[str]], Awaitable[Collection[Scope]]], **_: Any
    ) -> None:
        async with _Transaction(self.ask, self.check_out) as transaction:
            scopes = await self.ask(("delete", (thread_id,)))
            transaction.untold = await before_commit([namespace for _, namespace in scopes])

    async def drain(self) -> None:
        """Nothing is ever left unfinished."""


class ModelPruner:
    """`l2.pruning.Pruner`, likewise; without delta channels, subgraphs and old formats."""

    def __init__(self, store: ModelStore) -> None:
        self.ask = store.ask
        self.check_out = store.check_out

    async def delete_threads(self, thread_ids: Sequence[str], barrier: Barrier) -> None:
        threads = tuple(sorted(set(thread_ids)))
        async with _Transaction(self.ask, self.check_out) as transaction:
            scopes = await self.ask(("delete", threads))
            await barrier.block([Scope(*scope) for scope in scopes], alone=thread_ids)
            if there := await self.ask(("still there", threads)):
                raise in_use(there)
            transaction.untold = barrier.untold()
            barrier.committing()


class _Transaction:
    def __init__(self, ask: Ask, check_out: CheckOut) -> None:
        self.ask = ask
        self.check_out = check_out
        self.untold: Collection[Scope] = ()

    async def __aenter__(self) -> _Transaction:
        await self.check_out()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.ask(("commit", tuple(self.untold)))
        else:
            with suppress(Exception):  # a connection that is gone has rolled back by itself
                await self.ask(("rollback",))


class ForeignWriter:
    """Other software, such as `AsyncPostgresSaver`: it writes, and says nothing to Redis."""

    def __init__(self, ask: Ask, serde: SerializerProtocol) -> None:
        self._ask = ask
        self._serde = serde

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> None:
        parent_id = checkpoint_id_of(config)
        put = codec.encode_put(self._serde, config, parent_id, checkpoint, metadata, new_versions)
        await self._ask(("foreign put", scope_of(config), put_params(put)))

    async def aput_writes(
        self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        upsert = all(channel in WRITES_IDX_MAP for channel, _ in writes)
        encoded = codec.encode_writes(self._serde, writes, task_id, task_path, last_wins=upsert)
        rows = tuple(_row(write) for write in encoded)
        await self._ask(("foreign put_writes", scope_of(config), checkpoint_id_of(config), rows, upsert))

    async def adelete_thread(self, thread_id: str) -> None:
        await self._ask(("foreign delete", (thread_id,)))


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


def stored_checkpoint(scope: Scope, row: Any, *, is_fenced: bool = False) -> StoredCheckpoint | None:
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
        is_fenced=is_fenced,
    )


def _row(write: EncodedWrite) -> tuple[Any, ...]:
    return (write.task_id, write.idx, write.channel, *write.value, write.task_path)
