"""Our own statements never wait for each other in a circle, in whatever order their callers name the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg.rows import tuple_row

from glasspoint.l2.sql import query
from glasspoint.l2.writing import columns, writes_statement
from glasspoint.model import codec
from glasspoint.model.codec import EncodedWrite, PendingWrites
from glasspoint.model.scope import Scope
from states import open_saver
from steps import until

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

SCOPES = Scope("a", ""), Scope("b", "")
HOLDER = "3f"


async def connect(database: str) -> Connection:
    return await psycopg.AsyncConnection.connect(database, autocommit=True, row_factory=tuple_row)


@pytest.fixture
async def tables(database: str, redis_url: str) -> str:
    async with open_saver(database, redis_url):
        return database


async def fill(conn: Connection, scopes: Sequence[Scope]) -> None:
    for scope in scopes:
        for holder in (HOLDER, "newest"):
            await conn.execute(
                "INSERT INTO glasspoint_fences (thread_id, checkpoint_ns, holder, burst, until)"
                " VALUES (%s, %s, %s, 'one', now() + interval '1 minute')",
                (*scope, holder),
            )


async def test_fences_are_removed_without_a_wait_for_the_put_of_the_next_burst(tables: str) -> None:
    """The put comes from its mark to its fence. The removal had come from the fence to the mark."""
    put, sweep = await connect(tables), await connect(tables)
    async with put, sweep:
        await fill(sweep, SCOPES[:1])
        async with put.transaction():
            await put.execute("UPDATE glasspoint_fences SET burst = 'two' WHERE holder = 'newest'")
            await sweep.execute("SET lock_timeout = '10s'")
            removed = await sweep.execute(
                query("remove_fences"),
                {"holder": HOLDER, **columns(("threads", "namespaces", "bursts"), [(*SCOPES[0], "one")])},
            )
            assert removed.rowcount == 1, "the mark is the put's"
            fence = {"thread_id": "a", "checkpoint_ns": "", "burst": "two", "holder": HOLDER, "stands": 60.0}
            await put.execute(query("set_fence"), fence)
        left = await sweep.execute("SELECT holder, burst FROM glasspoint_fences ORDER BY holder")
        assert await left.fetchall() == [(HOLDER, "two"), ("newest", "two")]


async def test_expired_fences_are_removed_without_a_wait(tables: str) -> None:
    put, sweep = await connect(tables), await connect(tables)
    async with put, sweep:
        await fill(sweep, SCOPES)
        await sweep.execute("UPDATE glasspoint_fences SET until = '-infinity'")
        async with put.transaction():
            await put.execute("UPDATE glasspoint_fences SET burst = 'two' WHERE thread_id = 'a'")
            await sweep.execute("SET lock_timeout = '10s'")
            assert (await sweep.execute(query("expire_fences"))).rowcount == 2
        assert (await sweep.execute(query("expire_fences"))).rowcount == 2


async def test_writes_in_opposite_orders_are_no_deadlock(tables: str) -> None:
    """A third session keeps a row locked, so that both statements are in the middle when it lets go.

    One waits for the row. The other one had stored its rows in the opposite order up to this one.
    """
    special = [(channel, channel) for channel in ("__error__", "__interrupt__", "__resume__")]
    writes = codec.encode_writes(JsonPlusSerializer(), special, "task", "", last_wins=True)

    async def store(conn: Connection, given: list[EncodedWrite]) -> None:
        statement, params = writes_statement([PendingWrites(SCOPES[0], "1ef", given)], upsert=True)
        await conn.cursor(binary=True).execute(cast("Any", statement), params)

    one, other, third = await connect(tables), await connect(tables), await connect(tables)
    async with one, other, third:
        await store(one, writes)
        under_way = []
        async with third.transaction():
            await third.execute("SELECT FROM checkpoint_writes WHERE idx = %s FOR UPDATE", (writes[0].idx,))
            for number, (conn, given) in enumerate(((one, writes), (other, writes[::-1])), 1):
                under_way.append(asyncio.ensure_future(store(conn, given)))
                await until(partial(is_waiting, third, number))
        await asyncio.gather(*under_way)


async def is_waiting(conn: Connection, sessions: int) -> bool:
    """Whether so many sessions wait for a lock."""
    found = await conn.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return await found.fetchone() == (sessions,)
