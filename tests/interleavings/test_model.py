"""The explorer's PostgreSQL answers as the real one does: what is shown on the one holds on the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

import dice
from glasspoint import codec
from glasspoint.codec import StoredCheckpoint
from glasspoint.l2.store import Store
from glasspoint.scope import Scope
from glasspoint.telemetry.events import Telemetry
from interleavings import store
from interleavings.store import ModelStore
from states import config_of, make_pool, numbered_id

SERDE = JsonPlusSerializer()
SCOPES = (Scope("thread", ""), Scope("thread", "sub"), Scope("other", ""))
CHECKPOINTS = tuple(numbered_id(number) for number in (1, 2, 3))


@pytest.fixture
async def real(database: str) -> AsyncIterator[Store]:
    async with AsyncExitStack() as opened:
        pool = await opened.enter_async_context(make_pool(database, size=2))
        real = Store(AsyncPostgresSaver(pool), Telemetry("model", ()))
        await real.setup()
        yield real


def make_model() -> ModelStore:
    tables = store.Tables()

    async def ask(statement: tuple[Any, ...]) -> Any:
        nonlocal tables
        tables, answer = store.execute(tables, "session", statement)
        return answer

    return ModelStore(ask)


async def ready(_connection: object) -> bool:
    """Nothing to wait for, nothing to record."""
    return False


async def ready_untold(_connection: object) -> bool:
    """To be recorded in the journal."""
    return True


def a_put(rng: random.Random) -> codec.EncodedPut:
    """A checkpoint whose channels have a value, an inline one or none, at versions that others have, too."""
    values = {"blob": [rng.random()], "inline": rng.randrange(9), "either": rng.choice([["blob"], "inline"])}
    values = {channel: value for channel, value in values.items() if rng.random() < 0.8}
    versions = {channel: rng.randrange(1, 4) for channel in ("blob", "inline", "either")}
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
    is_ready = rng.choice([ready, ready_untold])
    match rng.choices(["put", "put_writes", "delete", "sweep", "compact", "record"], [5, 5, 1, 1, 1, 1])[0]:
        case "put":
            put = a_put(rng)
            answers = [await each.put(scope, put, is_ready) for each in stores]
            return [(answer.followable, sorted(answer.known_writes)) for answer in answers]
        case "put_writes":
            upsert = rng.random() < 0.4
            channels = ["__interrupt__", "__error__"] if upsert else ["a", "__interrupt__", "b"]
            sent = [(channel, rng.random()) for channel in rng.sample(channels, rng.randrange(1, 3))]
            task, path = rng.choice(["task1", "task2"]), rng.choice(["", "~path"])
            writes = codec.encode_writes(SERDE, sent, task, path, last_wins=upsert)
            return [
                await each.put_writes(scope, checkpoint_id, writes, is_ready, upsert=upsert)
                for each in stores
            ]
        case "sweep":
            for each in stores:
                await each.journal.delete((await each.journal.pending(3))[1:])
            return [None, None]
        case "compact":
            compacted = []
            for each in stores:
                await each.journal.compact()
                rows = await each.journal.pending(99)
                await each.journal.delete(rows)  # which id a scope got is not defined
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
async def test_the_model_answers_as_postgresql(real: Store, number: int) -> None:
    rng = random.Random(f"{dice.SEED} {number}")
    stores = [real, make_model()]
    seen = set()
    for _ in range(60):
        first, second = await do(stores, rng)
        assert first == second
        seen.add(repr(first)[:12])
        rows, modelled = [await each.journal.pending(99) for each in stores]
        assert rows == modelled
        for scope in SCOPES:
            for checkpoint_id in (None, *CHECKPOINTS):
                found = [comparable(await each.select(scope, checkpoint_id)) for each in stores]
                assert found[0] == found[1]
    assert len(seen) > 3, "nothing much happened"


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
    newest, _, known_writes = run("p", "put snapshot", scope, params, False)
    with pytest.raises(store.MustWait):
        run("p", "put", scope, params, False)
    run("d", "commit")
    stored = run("p", "put", scope, params, False)
    assert (newest, stored, list(known_writes)) == (False, len(put.blobs), [])
    assert (answered.followable, answered.known_writes) == (False, [])
    assert found == comparable(store.stored_checkpoint(scope, run("r", "select", scope, None)))
    assert found is not None
