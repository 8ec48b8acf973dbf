"""The explorer's PostgreSQL answers as the real one does: what is shown on the one holds on the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import ChannelVersions
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

import dice
from glasspoint.l2.fences import Fences
from glasspoint.l2.identity import JournalRow, Look
from glasspoint.l2.store import Store
from glasspoint.l2.writing import Announced, FenceResult, Ready
from glasspoint.model import codec
from glasspoint.model.codec import StoredCheckpoint
from glasspoint.model.scope import Scope
from glasspoint.telemetry.events import IdentityReason, Telemetry
from model import store
from model.store import ModelStore
from states import config_of, make_pool, numbered_id

SERDE = JsonPlusSerializer()
SCOPES = (Scope("thread", ""), Scope("thread", "sub"), Scope("other", ""))
CHECKPOINTS = tuple(numbered_id(number) for number in (1, 2, 3))
HOLDERS = "one saver", "another saver"
BURSTS = "a burst", "the next one"


@pytest.fixture
async def real(database: str) -> AsyncIterator[Store]:
    async with AsyncExitStack() as opened:
        pool = await opened.enter_async_context(make_pool(database, size=2))
        real = Store(AsyncPostgresSaver(pool), Telemetry("model", ()))
        await real.setup()
        real.fences = Fences(
            real.connections,
            cache="glasspoint",
            stand_seconds=100,
            margin_seconds=10,
            in_background=asyncio.create_task,
        )
        yield real


class Model(ModelStore):
    """The model, with what happens to it besides statements."""

    def __init__(self) -> None:
        super().__init__(self._execute)
        self.tables = store.Tables()
        self.foreign = store.ForeignWriter(self._execute, SERDE)

    async def _execute(self, statement: tuple[Any, ...]) -> Any:
        self.tables, answer = store.execute(self.tables, "session", statement)
        return answer

    def truncate(self) -> None:
        self.tables = store.truncated(self.tables)

    def lose_marks(self) -> None:
        self.tables = self.tables._replace(marks=frozenset())

    async def unfence(self, scope: Scope, burst: str) -> None:
        await self._execute(("unfence", scope, self.fences.holder, burst))

    def lose_fences(self, holder: str | None) -> None:
        self.tables = store.unfenced(self.tables, holder)


async def ready(_connection: object) -> Announced:
    """Nothing to wait for, nothing to record."""
    return Announced()


async def ready_untold(_connection: object) -> Announced:
    """To be recorded in the journal."""
    return Announced(is_journalled=True)


def of_burst(burst: str, *, opens: bool) -> Ready:
    """Redis was told that a burst has begun."""

    async def ready(_connection: object) -> Announced:
        return Announced(burst=burst, opens=opens)

    return ready


def a_put(rng: random.Random) -> codec.EncodedPut:
    """A checkpoint whose channels have a value, an inline one or none, at versions that others have, too."""
    values = {"blob": [rng.random()], "inline": rng.randrange(9), "either": rng.choice([["blob"], "inline"])}
    values = {channel: value for channel, value in values.items() if rng.random() < 0.8}
    versions: ChannelVersions = {channel: rng.randrange(1, 4) for channel in ("blob", "inline", "either")}
    checkpoint: Any = {
        "v": 4,
        "id": rng.choice(CHECKPOINTS),
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": values,
        "channel_versions": versions,
        "versions_seen": {},
        "updated_channels": None,
    }
    new = {channel: version for channel, version in versions.items() if rng.random() < 0.7}
    parent = rng.choice([None, *CHECKPOINTS])
    return codec.encode_put(SERDE, config_of("thread"), parent, checkpoint, {"step": rng.randrange(9)}, new)


async def do(stores: list[Any], rng: random.Random) -> list[Any]:
    """The same random operation on each; what they answer."""
    scope, checkpoint_id = rng.choice(SCOPES), rng.choice(CHECKPOINTS)
    holder, burst = rng.choice(HOLDERS), rng.choice(BURSTS)
    for each in stores:
        each.fences.holder = holder
    announced = of_burst(burst, opens=rng.random() < 0.5)
    is_ready = rng.choice([ready, ready_untold, announced, announced, announced])
    kinds = ["put", "put_writes", "delete", "unfence", "sweep", "compact", "record"]
    match rng.choices(kinds, [5, 5, 1, 1, 1, 1, 1])[0]:
        case "put":
            put = a_put(rng)
            answers = [await each.put(scope, put, is_ready) for each in stores]
            fences = [await seen(*each) for each in zip(stores, answers, strict=True)]
            return [
                (answer.followable, sorted(answer.known_writes), fence)
                for answer, fence in zip(answers, fences, strict=True)
            ]
        case "put_writes":
            upsert = rng.random() < 0.4
            channels = ["__interrupt__", "__error__"] if upsert else ["a", "__interrupt__", "b"]
            sent = [(channel, rng.random()) for channel in rng.sample(channels, rng.randrange(1, 3))]
            task, path = rng.choice(["task1", "task2"]), rng.choice(["", "~path"])
            writes = codec.encode_writes(SERDE, sent, task, path, last_wins=upsert)
            answers = [
                await each.put_writes(scope, checkpoint_id, writes, is_ready, upsert=upsert)
                for each in stores
            ]
            fences = [await seen(*each) for each in zip(stores, answers, strict=True)]
            return [(answer[:3], fence) for answer, fence in zip(answers, fences, strict=True)]
        case "unfence":
            for each in stores:
                await unfence(each, scope, burst)
            return [None] * len(stores)
        case "sweep":
            stale = rng.random() < 0.2
            return [await delete(each, (await rows_of(each, 3))[1:], stale=stale) for each in stores]
        case "compact":
            compacted = []
            for each in stores:
                await each.journal.compact()
                rows = await rows_of(each)
                await delete(each, rows)  # which id a scope got is not defined
                compacted.append(([row.id for row in rows], sorted(row.scope for row in rows)))
            return compacted
        case "record":
            return [await each.journal.record_now([scope, SCOPES[0]]) for each in stores]
        case _:
            found: list[Any] = []

            async def before_commit(namespaces: list[str]) -> list[Scope]:
                found.append(sorted(namespaces))
                return [scope] if is_ready is ready_untold else []

            for each in stores:
                await each.delete_thread(scope.thread_id, before_commit)
            return found


async def seen(each: Any, answer: Any) -> FenceResult:
    """What a write has seen of fences; of the identity, whether it is that of the last look."""
    fence: FenceResult = answer.fence
    look: Look = await each.identities.look()
    return fence._replace(identity=fence.identity and str(fence.identity == look.mark))


async def unfence(each: Any, scope: Scope, burst: str) -> None:
    """A burst has ended."""
    if isinstance(each, Model):
        await each.unfence(scope, burst)
    else:
        each.fences.ended(scope, burst)
        await each.fences.close()


async def rows_of(each: Any, limit: int = 99) -> list[JournalRow]:
    """What is pending."""
    look: Look = await each.identities.look(limit=limit)
    return look.rows


async def delete(each: Any, rows: list[JournalRow], *, stale: bool = False) -> list[str]:
    """Delete rows as a sweep does; `stale`: one that has seen them long ago."""
    look: Look = await each.identities.look()
    generation = look.attachment.generation if look.attachment and not stale else "of old"
    deleted: list[str] = await each.journal.delete(rows, generation)
    return deleted


def comparable(stored: StoredCheckpoint | None) -> Any:
    if stored is None:
        return None
    return (
        stored.checkpoint_id,
        stored.parent_id,
        stored.document,
        stored.metadata,
        stored.values,
        sorted(stored.writes),
    )


@pytest.mark.dice
@pytest.mark.parametrize("number", range(dice.rounds(4)))
async def test_the_model_answers_as_postgresql(real: Store, database: str, number: int) -> None:
    rng = random.Random(f"{dice.SEED} {number}")
    model = Model()
    stores: list[Any] = [real, model]
    for each in stores:
        assert await each.identities.renew(await each.identities.look(), "reign", "generation")
    seen, fenced = set(), set()
    for _ in range(60):
        first, second = await do(stores, rng)
        if rng.random() < 0.1:
            holder = rng.choice(HOLDERS)
            await expire(database, holder)
            model.lose_fences(holder)
        assert first == second
        seen.add(repr(first)[:12])
        rows, modelled = [await rows_of(each) for each in stores]
        assert rows == modelled
        for scope in SCOPES:
            for checkpoint_id in (None, *CHECKPOINTS):
                found = [await each.select(scope, checkpoint_id, warms_up=True) for each in stores]
                assert comparable(found[0]) == comparable(found[1])
                if checkpoint_id is None and found[0] is not None:
                    assert found[0].is_fenced == found[1].is_fenced
                    fenced.add(found[0].is_fenced)
    assert fenced == {False, True}
    assert len(seen) > 3, "nothing much happened"


async def expire(database: str, holder: str, *, in_seconds: float = 0) -> None:
    """The fences of a saver expire."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        query = "UPDATE glasspoint_fences SET until = now() + make_interval(secs => %s) WHERE holder = %s"
        await other.execute(query, (in_seconds, holder))


async def test_a_fence_that_expires_before_the_statement_may_end_is_none_to_its_burst(
    real: Store, database: str
) -> None:
    """In the explorer, a fence that will soon expire is not there. Others see it until it has."""
    rng = random.Random(0)
    assert real.fences is not None
    real.fences.holder = HOLDERS[0]
    put = a_put(rng)
    await real.put(SCOPES[0], put, of_burst(BURSTS[0], opens=True))
    stands = [(await real.put(SCOPES[0], put, of_burst(burst, opens=False))).fence.stands for burst in BURSTS]
    assert stands == [True, False]
    await expire(database, HOLDERS[0], in_seconds=real.fences.margin_seconds / 2)
    answered = await real.put(SCOPES[0], put, of_burst(BURSTS[0], opens=False))
    assert not answered.fence.stands
    assert answered.fence.identity is not None
    found = await real.select(SCOPES[0], None, warms_up=True)
    assert found is not None
    assert found.is_fenced


def shown(look: Look, generations: list[str]) -> Any:
    """What a look has shown, without what is random: the generations in the order of their appearance."""
    row = look.attachment
    if row and row.generation not in generations:
        generations.append(row.generation)
    number = generations.index(row.generation) if row else None
    return number, row and (row.reign, row.is_marked, row.is_forgotten), sorted(look.changed), look.rows


@pytest.mark.parametrize("seed", range(4))
async def test_the_model_tells_and_renews_the_identity_as_postgresql(
    real: Store, database: str, seed: int
) -> None:
    """Of two that renew what both have seen, one does; and what has changed is seen until somebody has."""
    rng = random.Random(seed)
    model = Model()
    looks: list[tuple[Look, Look]] = []
    generations: tuple[list[str], list[str]] = [], []
    seen = set()
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
        for _ in range(60):
            looks.append((await real.identities.look(limit=3), await model.identities.look(limit=3)))
            first, second = [shown(*each) for each in zip(looks[-1], generations, strict=True)]
            assert first == second
            reasons = {each.attachment and each.attachment.reason for each in looks[-1]}
            assert len(reasons) == 1
            seen.add(repr(first[:3]))
            match rng.choices(["renew", "truncate", "crash", "record", "forget"], [6, 2, 2, 2, 1])[0]:
                case "renew":
                    theirs, ours = rng.choice(looks[-3:])
                    reign = rng.choice(["one", "another"])
                    reason: IdentityReason = rng.choice(["generation", "called_off"])
                    renewed = await real.identities.renew(theirs, reign, reason)
                    modelled = await model.identities.renew(ours, reign, reason)
                    assert (renewed is None) == (modelled is None)
                case "truncate":
                    await other.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
                    # As the trigger does it.
                    await other.execute("UPDATE glasspoint_identity SET content_id = gen_random_uuid()::text")
                    model.truncate()
                case "crash":
                    await other.execute("TRUNCATE glasspoint_crash_marks")
                    model.lose_marks()
                case "record":
                    for each in (real, model):
                        await each.journal.record_now([rng.choice(SCOPES[:1])])
                case _:
                    await other.execute("DELETE FROM glasspoint_caches")
                    model.tables = model.tables._replace(cache=None)
    assert len(seen) > 6, "nothing much happened"


async def test_the_model_notes_foreign_writes_as_postgresql(real: Store, database: str) -> None:
    """Each of its statements makes a row for each scope that it has changed, once the cache has a row."""
    async with make_pool(database, size=1) as pool, pool.connection() as conn:
        cursor = await conn.execute(
            "SELECT to_regproc('glasspoint_note_foreign_writes') IS NOT NULL AS is_there"
        )
        if not (await cursor.fetchone() or {})["is_there"]:
            pytest.skip("there are no triggers yet")
    rng = random.Random(0)
    model = Model()
    async with make_pool(database, size=1) as pool:
        upstream = AsyncPostgresSaver(pool, serde=SERDE)
        for number in range(60):
            if number == 5:
                for each in (real, model):
                    assert await each.identities.renew(await each.identities.look(), "reign", "generation")
            await write(rng, upstream, model.foreign)
            rows, modelled = [await rows_of(each) for each in (real, model)]
            assert [row.scope for row in rows] == [row.scope for row in modelled]
            assert bool(rows) <= (number >= 5)
            sources = [
                sorted(await delete(each, pending)) for each, pending in ((real, rows), (model, modelled))
            ]
            assert sources[0] == sources[1]
            for scope in SCOPES:
                found = [comparable(await each.select(scope, None)) for each in (real, model)]
                assert found[0] == found[1]


async def write(rng: random.Random, *savers: Any) -> None:
    """The same random write of other software to each."""
    scope, checkpoint_id = rng.choice(SCOPES), rng.choice(CHECKPOINTS)
    config = config_of(*scope, checkpoint_id)
    kind, number = rng.choices(["put", "put_writes", "delete"], [4, 4, 1])[0], rng.randrange(9)
    channel, upsert = rng.choice(["a", "b"]), rng.random() < 0.4
    for each in savers:
        match kind:
            case "put":
                checkpoint: Any = {
                    "v": 4,
                    "id": checkpoint_id,
                    "ts": "2026-01-01T00:00:00+00:00",
                    "channel_values": {"log": [number]},
                    "channel_versions": {"log": number},
                    "versions_seen": {},
                    "updated_channels": None,
                }
                await each.aput(config, checkpoint, {"step": number}, {"log": number})
            case "put_writes":
                sent = [("__interrupt__" if upsert else channel, number)]
                await each.aput_writes(config, sent, "task")
            case _:
                await each.adelete_thread(scope.thread_id)


async def test_a_put_that_waits_for_a_deletion_answers_what_it_saw_before(real: Store, database: str) -> None:
    """A statement's snapshot is one step, and its effect another."""
    rng = random.Random(0)
    put = a_put(rng)
    scope = SCOPES[0]
    await real.put(scope, put, ready)
    waiting: asyncio.Task[Any]

    async def before_commit(_namespaces: list[str]) -> list[Scope]:
        nonlocal waiting
        waiting = asyncio.create_task(real.put(scope, put, ready))
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as other:
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            while (await (await other.execute(query)).fetchone()) != (1,):  # noqa: ASYNC110 - no task's doing
                await asyncio.sleep(0.01)
        return []

    await real.delete_thread(scope.thread_id, before_commit)
    answered = await waiting
    found = comparable(await real.select(scope, None))

    tables = store.Tables()

    def run(who: str, *statement: Any) -> Any:
        nonlocal tables
        tables, answer = store.execute(tables, who, statement)
        return answer

    params = store.put_params(put)
    run("p", "put", scope, params, False)
    run("d", "delete", (scope.thread_id,))
    newest, _, known_writes, _ = run("p", "put snapshot", scope, params, False, None)
    with pytest.raises(store.MustWait):
        run("p", "put", scope, params, False)
    run("d", "commit")
    stored = run("p", "put", scope, params, False)
    assert (newest, stored, list(known_writes)) == (False, len(put.blobs), [])
    assert (answered.followable, answered.known_writes) == (False, [])
    assert found == comparable(store.stored_checkpoint(scope, run("r", "select", scope, None)[0]))
    assert found is not None
