"""The foreign writer: a process that uses LangGraph's own AsyncPostgresSaver and knows no Glasspoint.

It takes turns in conversations that Glasspoint's workers go on with, deletes threads, and changes rows by
plain SQL. Its commits are not durable at once (`synchronous_commit = off`), as some applications have it.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any, cast

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from chaos.history import HistoryFile, digest_of_values
from chaos.talking import Recording, Talker, parse_arguments

__all__ = ["OPTIONS"]

OPTIONS = "-c synchronous_commit=off -c statement_timeout=2000"
"""What its connections are opened with."""

_POOL_TIMEOUT_SECONDS = 2.0
_TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

_AMEND = """
UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{channel_values,turn}', to_jsonb(%(turn)s::int))
WHERE thread_id = %(thread_id)s AND checkpoint_ns = '' AND checkpoint_id = %(checkpoint_id)s
"""


class ForeignSaver(Recording, AsyncPostgresSaver):
    """LangGraph's own saver."""


class ForeignWriter(Talker):
    """What the process does."""

    def __init__(self, saver: ForeignSaver, pool: Any, history: HistoryFile) -> None:
        """Args:
        saver: For the one database that it uses.
        pool: Of connections, for plain SQL.
        history: Where everything is written down.
        """
        super().__init__({saver.database: saver}, history)
        self._saver = saver
        self._pool = pool

    async def do(self, wanted: dict[str, Any]) -> None:
        thread = wanted["thread"]
        match wanted["what"]:
            case "delete":
                with self._recorded_delete(thread):
                    await self._saver.adelete_thread(thread)
            case "delete by SQL":
                with self._recorded_delete(thread):
                    await self._delete(thread)
            case "change by SQL":
                await self._amend(thread)
            case _:
                await super().do(wanted)

    def _recorded_delete(self, thread: str) -> Any:
        return self._history.operation("delete", thread, database=self._saver.database)

    async def _delete(self, thread: str) -> None:
        async with self._pool.connection() as connection, connection.transaction():
            for table in _TABLES:
                await connection.execute(f"DELETE FROM {table} WHERE thread_id = %s", (thread,))

    async def _amend(self, thread: str) -> None:
        """Change a value of the newest checkpoint in its place."""
        config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
        found = await self._saver.aget_tuple(config)
        if found is None or "turn" not in found.checkpoint["channel_values"]:
            return
        turn, checkpoint_id = -random.randrange(10**9), found.checkpoint["id"]
        values = {**found.checkpoint["channel_values"], "turn": turn}
        facts = {"checkpoint": checkpoint_id, "value": digest_of_values(values)}
        with self._history.operation("put", thread, database=self._saver.database, **facts):
            async with self._pool.connection() as connection:
                await connection.execute(
                    _AMEND, {"turn": turn, "thread_id": thread, "checkpoint_id": checkpoint_id}
                )


def _is_promised(error: Exception) -> bool:
    return isinstance(error, psycopg.Error | PoolTimeout)


async def main() -> None:
    """Parse the command line, and work."""
    given = parse_arguments(__doc__)
    random.seed(f"{given.seed} {given.history.stem}")
    history = HistoryFile(given.history, given.history.stem)
    [(name, url)] = given.databases.items()
    async with AsyncExitStack() as opened:
        pool = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=8,
            open=False,
            timeout=_POOL_TIMEOUT_SECONDS,
            check=AsyncConnectionPool.check_connection,
            kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row, "options": OPTIONS},
        )
        await opened.enter_async_context(pool)
        saver = ForeignSaver(cast("Any", pool))
        saver.history, saver.database, saver.is_promised = history, name, _is_promised
        await ForeignWriter(saver, pool, history).run()


if __name__ == "__main__":
    asyncio.run(main())
