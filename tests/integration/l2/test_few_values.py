"""A statement of few values takes each as a parameter, and is answered as the one that takes arrays."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg.rows import tuple_row

from glasspoint.l2 import writing
from glasspoint.l2.writing import (
    PutResult,
    WritesResult,
    put_answers,
    put_statement,
    writes_answers,
    writes_statement,
)
from glasspoint.model import codec
from glasspoint.model.scope import Scope
from states import numbered_id, open_saver
from steps import Thread

SERDE = JsonPlusSerializer()


def encoded_put(thread: Thread, **more_values: Any) -> codec.EncodedPut:
    config, checkpoint, metadata, versions = thread.next_put(None, **more_values)  # type: ignore[arg-type]
    return codec.encode_put(SERDE, config, None, checkpoint, metadata, versions)


def encoded_writes(count: int, task_id: str = "task") -> list[codec.EncodedWrite]:
    values = [("messages", [number]) for number in range(count)]
    return codec.encode_writes(SERDE, values, task_id, "path", last_wins=False)


@pytest.mark.parametrize("values", range(7))
async def test_a_put_of_few_values_is_answered_as_one_of_many(
    values: int, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one, once more, with an older value in its way, with one that shadows it, with an early write."""
    more = {f"v{number}": [number] for number in range(values - 1)}

    async def answers(conn: psycopg.AsyncConnection[Any], thread: Thread) -> list[PutResult]:
        scope, given = Scope(thread.thread_id, ""), list[PutResult]()
        blob = (
            "INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob) "
            "VALUES (%s, %s, %s, 't', '')"
        )
        write = "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob) "
        puts = [encoded_put(thread, **more) for _ in range(4)]
        for put in puts:
            if not values:
                put.blobs.clear()
        version = f"{3:032}.5"
        await conn.execute(blob, [thread.thread_id, "messages", f"{2:032}.5"])
        await conn.execute(blob, [thread.thread_id, "turn", version])
        await conn.execute(
            write + "VALUES (%s, %s, 'early', 0, 'messages', '')", [thread.thread_id, numbered_id(4)]
        )
        for put in (puts[0], puts[0], puts[1], puts[2], puts[3], puts[2]):
            statement, params = put_statement([(scope, put)])
            cursor = await conn.cursor(binary=True).execute(statement.encode(), params)
            given += put_answers([(scope, put)], await cursor.fetchall())
        return given

    async with (
        open_saver(database, redis_url),
        await psycopg.AsyncConnection.connect(database, autocommit=True, row_factory=tuple_row) as conn,
    ):
        few = await answers(conn, Thread("few"))
        monkeypatch.setattr(writing, "FEW", -1)
        many = await answers(conn, Thread("many"))
        assert few == many
        expected = [True, False, not values, False, True, False]
        assert [answer.followable for answer in few] == expected
        assert [answer.known_writes for answer in few][4] == ["early:0"]
        query = "SELECT channel, version, type, blob FROM checkpoint_blobs WHERE thread_id = %s ORDER BY 1, 2"
        rows = [await (await conn.execute(query, [thread])).fetchall() for thread in ("few", "many")]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("count", range(1, 7))
async def test_few_writes_are_answered_as_many(
    count: int, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answers(conn: psycopg.AsyncConnection[Any], thread_id: str) -> list[WritesResult]:
        given = []
        for number, upsert in ((1, False), (count, False), (count, True)):
            tasks = [codec.PendingWrites(Scope(thread_id, ""), numbered_id(1), encoded_writes(number))]
            statement, params = writes_statement(tasks, upsert=upsert)
            cursor = await conn.cursor(binary=True).execute(statement.encode(), params)
            given += writes_answers(tasks, await cursor.fetchall())
        return given

    async with (
        open_saver(database, redis_url),
        await psycopg.AsyncConnection.connect(database, autocommit=True, row_factory=tuple_row) as conn,
    ):
        few = await answers(conn, "few")
        monkeypatch.setattr(writing, "FEW", 0)
        assert few == await answers(conn, "many")
        assert [len(answer.stored) for answer in few] == [1, count - 1, count]
        assert [answer.overwrote for answer in few] == [False, False, True]


async def test_few_values_are_one_prepared_statement_however_few(database: str, redis_url: str) -> None:
    async with (
        open_saver(database, redis_url),
        await psycopg.AsyncConnection.connect(
            database, autocommit=True, prepare_threshold=0, row_factory=tuple_row
        ) as conn,
    ):
        thread = Thread("thread")
        for values in range(writing.FEW + 1):
            put = encoded_put(thread, **{f"v{number}": [number] for number in range(values - 1)})
            if not values:
                put.blobs.clear()
            statement, params = put_statement([(Scope("thread", ""), put)])
            await conn.cursor(binary=True).execute(statement.encode(), params)
        for count in range(1, writing.FEW + 1):
            tasks = [codec.PendingWrites(Scope("thread", ""), numbered_id(1), encoded_writes(count))]
            statement, params = writes_statement(tasks, upsert=False)
            await conn.cursor(binary=True).execute(statement.encode(), params)
        query = "SELECT count(*) FROM pg_prepared_statements WHERE starts_with(statement, '/*')"
        assert await (await conn.execute(query)).fetchone() == (2,)
