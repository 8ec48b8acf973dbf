"""A worker process: uses Glasspoint, in all databases. It reads all the time, besides its turns.

Whatever the servers do, it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from chaos.conversation import NAMESPACES
from chaos.history import HistoryFile
from chaos.lines import use_lines
from chaos.sabotage import VARIABLE, sabotage
from chaos.talking import Recording, Talker, current_operation, parse_arguments
from glasspoint import CachedPostgresSaver, Telemetry
from glasspoint.errors import GlasspointError
from glasspoint.telemetry import events

__all__ = ["OPTIONS", "RecordingSaver", "open_recording"]

OPTIONS: dict[str, Any] = {
    "write_deadline_seconds": 2.0,
    "l1_timeout_seconds": 0.25,
    "pool_timeout_seconds": 2.0,
    "connect_timeout_seconds": 2.0,
    "pool_max_size": 8,
}
"""Short, so that a minute sees many faults from their beginning to their end."""

_PAUSE_SECONDS = 0.02

# Once Redis has answered the first one, readers are sent to PostgreSQL; the others settle the burst.
_STEPS_OF_A_WRITE = {"l1.begin", "l1.confirm", "l1.commit", "l1.drop"}


class Witness(events.Observer):
    """Learns from the saver's own telemetry what the answer does not say: did Redis hear of it?"""

    def __init__(self, history: HistoryFile) -> None:
        self._history = history

    def operation_ended(self, operation: events.Operation) -> None:
        current = current_operation.get()
        if current is not None and not current.confirmed and operation.l1_write == "covered":
            self._history.confirm(current)  # the burst was announced before
        if current is not None:
            current.hit = operation.served_by == "l1"

    def step_ended(self, step: events.Step) -> None:
        current = current_operation.get()
        if (
            current is not None
            and not current.confirmed
            and step.name in _STEPS_OF_A_WRITE
            and step.outcome == "ok"
            and step.scope == (current.thread, current.namespace)
        ):
            self._history.confirm(current)


class RecordingSaver(Recording, CachedPostgresSaver):
    """The saver under test."""


def _is_promised(error: Exception) -> bool:
    """Whether this is what a call may raise while a server is away: an error of Glasspoint's own that is also
    of the built-in kind for it."""
    return isinstance(error, GlasspointError) and isinstance(error, ConnectionError | TimeoutError)


@asynccontextmanager
async def open_recording(
    database: str, postgres_url: str, redis_url: str, history: HistoryFile, *, parent: int | None = None
) -> AsyncIterator[RecordingSaver]:
    """Open the saver; the servers may be down just now, so again and again, as long as the parent lives."""
    telemetry = Telemetry(f"chaos-{database}", (Witness(history),))
    async with AsyncExitStack() as opened:
        while True:
            opening = RecordingSaver.from_conn_string(
                postgres_url, redis_url=redis_url, telemetry=telemetry, **OPTIONS
            )
            try:
                saver = await opened.enter_async_context(opening)
                break
            except GlasspointError as exc:
                if not _is_promised(exc) or os.getppid() != (parent or os.getppid()):
                    raise
                await asyncio.sleep(0.1)
        saver.history, saver.database, saver.is_promised = history, database, _is_promised
        yield saver


class Worker(Talker):
    """What one process does."""

    def __init__(self, savers: Mapping[str, RecordingSaver], history: HistoryFile, *, pauses: float) -> None:
        """Args:
        savers: Database -> the saver for it.
        history: Where everything is written down.
        pauses: How many times as long as usual it pauses between its reads.
        """
        super().__init__(savers, history)
        self._pause_seconds = pauses * _PAUSE_SECONDS
        self._reading = savers
        self._threads: list[tuple[str, str]] = []

    def besides(self) -> list[Any]:
        return [self._read_on() for _ in range(2)]

    def heard(self, wanted: dict[str, Any]) -> None:
        self._threads = [(database, thread) for database, thread in wanted["threads"]]

    async def _read_on(self) -> None:
        """Read conversations, those in which others talk just now as well."""
        newest: dict[tuple[str, str, str], str] = {}
        while True:
            await asyncio.sleep(random.uniform(0, 2 * self._pause_seconds))
            if not self._threads:
                continue
            scope = *random.choice(self._threads), random.choice(NAMESPACES)
            where = {"thread_id": scope[1], "checkpoint_ns": scope[2]}
            if scope in newest and random.random() < 0.05:
                where["checkpoint_id"] = newest[scope]
            try:
                found = await self._reading[scope[0]].aget_tuple({"configurable": where})
            except Exception:  # written down; if it is none of those that are promised, the run fails
                continue
            if found is not None:
                newest[scope] = found.checkpoint["id"]


async def main() -> None:
    """Parse the command line, and work."""
    given = parse_arguments(__doc__)
    logging.getLogger("glasspoint").setLevel(logging.ERROR)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    random.seed(f"{given.seed} {given.history.stem}")
    sabotage(os.environ.get(VARIABLE, ""))
    use_lines(given.lines)
    history = HistoryFile(given.history, given.history.stem)
    savers = {}
    async with AsyncExitStack() as opened:
        for name, url in given.databases.items():
            opening = open_recording(name, url, given.redis, history, parent=given.parent)
            savers[name] = await opened.enter_async_context(opening)
        await Worker(savers, history, pauses=given.pauses).run()


if __name__ == "__main__":
    asyncio.run(main())
