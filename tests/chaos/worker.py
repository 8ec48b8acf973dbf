"""A worker process: talks in the conversations that it is given, reads all the time, writes everything down.

It is told what to do line by line on its standard input, and says on its standard output when a turn is over;
it ends with its standard input. Whatever the servers do, it goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from time import monotonic
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple

from chaos.conversation import NAMESPACES, StumbledError, build_conversation, turns_answered
from chaos.history import HistoryFile, Operation, digest, digest_of_values, pending_of
from chaos.sabotage import VARIABLE, sabotage
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

_TURN_SECONDS = 12.0
_PAUSE_SECONDS = 0.02
_STUMBLE_SECONDS = 0.05

_current: ContextVar[Operation | None] = ContextVar("_current", default=None)
_turn_began: ContextVar[float] = ContextVar("_turn_began", default=0.0)

# Once Redis has answered the first one, readers are sent to PostgreSQL; the others settle the write.
_STEPS_OF_A_WRITE = {"l1.begin", "l1.commit_put", "l1.commit_writes", "l1.abort", "l1.drop"}

# After its input has ended, a worker ends; if it does not manage to, it is ended.
_END_SECONDS = 6


class Witness:
    """Learns from the saver's own telemetry what the answer does not say: did Redis hear of it?"""

    def __init__(self, history: HistoryFile) -> None:
        self._history = history

    def operation_started(self, operation: events.Operation) -> None:
        pass

    def operation_ended(self, operation: events.Operation) -> None:
        current = _current.get()
        if current is not None:
            current.hit = operation.served_by == "l1"

    def step_started(self, step: events.Step) -> None:
        pass

    def step_ended(self, step: events.Step) -> None:
        current = _current.get()
        if (
            current is not None
            and not current.confirmed
            and step.name in _STEPS_OF_A_WRITE
            and step.outcome == "ok"
            and step.scope == (current.thread, current.namespace)
        ):
            self._history.confirm(current)

    def noted(self, note: events.Note) -> None:
        pass

    def opened(self, vitals: events.Vitals) -> None:
        pass

    def closed(self, vitals: events.Vitals) -> None:
        pass


class RecordingSaver(CachedPostgresSaver):
    """The saver under test; every call that LangGraph makes of it is written down."""

    history: HistoryFile

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        wanted = config["configurable"].get("checkpoint_id")
        with self._recorded("read", config, wanted=wanted) as operation:
            found = await super().aget_tuple(config)
            if found is not None:
                operation.checkpoint = found.checkpoint["id"]
                operation.value = digest_of_values(found.checkpoint["channel_values"])
                operation.pending = pending_of(found)
            return found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        value = digest_of_values(checkpoint["channel_values"])
        with self._recorded("put", config, checkpoint=checkpoint["id"], value=value):
            return await super().aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        pending = [(task_id, channel, digest(value)) for channel, value in writes]
        checkpoint = config["configurable"]["checkpoint_id"]
        with self._recorded("put_writes", config, checkpoint=checkpoint, pending=pending):
            await super().aput_writes(config, writes, task_id, task_path)

    @contextmanager
    def _recorded(self, kind: str, config: RunnableConfig, **facts: Any) -> Any:
        where = config["configurable"]
        namespace = where.get("checkpoint_ns", "")
        with self.history.operation(kind, where["thread_id"], namespace=namespace, **facts) as operation:
            token = _current.set(operation)
            try:
                yield operation
            except Exception as exc:
                if not _is_promised(exc):
                    operation.unexpected = repr(exc)
                raise
            finally:
                _current.reset(token)


def _is_promised(error: Exception) -> bool:
    """Whether this is what a call may raise while a server is away: an error of Glasspoint's own that is also
    of the built-in kind for it."""
    return isinstance(error, GlasspointError) and isinstance(error, ConnectionError | TimeoutError)


@asynccontextmanager
async def open_recording(
    postgres_url: str, redis_url: str, history: HistoryFile, *, parent: int | None = None
) -> AsyncIterator[RecordingSaver]:
    """Open the saver; the servers may be down just now, so again and again, as long as the parent lives."""
    telemetry = Telemetry("chaos", (Witness(history),))
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
        saver.history = history
        yield saver


class Worker:
    """What one process does."""

    def __init__(self, saver: RecordingSaver) -> None:
        self._saver = saver
        self._history = saver.history
        self._graph = build_conversation(saver, self._ran, self._stumble)
        self._stumbles: dict[tuple[str, int], str] = {}
        self._threads: list[str] = []
        self._turns = set[asyncio.Task[None]]()

    async def run(self) -> None:
        """Do what is asked for until nobody asks any more."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        reading = [asyncio.create_task(self._read_on()) for _ in range(2)]
        _say(ready=True)
        async for line in lines:
            wanted = json.loads(line)
            self._threads = wanted["threads"]
            if wanted["thread"]:
                turn = asyncio.create_task(self._turn(wanted["thread"], wanted["turn"], wanted["stumble"]))
                self._turns.add(turn)
                turn.add_done_callback(self._turns.discard)
        signal.alarm(_END_SECONDS)
        for task in (*reading, *self._turns):
            task.cancel()
        await asyncio.gather(*reading, *self._turns, return_exceptions=True)

    async def _turn(self, thread: str, number: int, stumble: str) -> None:
        if stumble:
            self._stumbles[thread, number] = stumble
        config: RunnableConfig = {"configurable": {"thread_id": thread}}
        try:
            with self._history.operation("turn", thread, turn=number) as operation:
                try:
                    async with asyncio.timeout(_TURN_SECONDS):
                        operation.answered = await self._talk(config, number)
                except Exception as exc:
                    if not (_is_promised(exc) or isinstance(exc, StumbledError | TimeoutError)):
                        operation.unexpected = repr(exc)
                    raise
        except Exception:
            _say(thread=thread, ok=False)
        else:
            _say(thread=thread, ok=True)
        finally:
            self._stumbles.pop((thread, number), None)

    async def _talk(self, config: RunnableConfig, number: int) -> list[int]:
        """As an application does that does not know how far the turn has come: go on with what was begun,
        say what was not said yet."""
        while True:
            state = await self._graph.aget_state(config)
            answered = turns_answered(state.values)
            if number in answered and not state.tasks:
                return answered
            _turn_began.set(monotonic())
            await self._graph.ainvoke(
                None if state.tasks else {"turn": number, "log": [f"{number} question"]},
                config,
                durability=random.choice(["sync", "async"]),
            )

    async def _read_on(self) -> None:
        """Read conversations, those in which others talk just now as well."""
        newest: dict[tuple[str, str], str] = {}
        while True:
            await asyncio.sleep(random.uniform(0, 2 * _PAUSE_SECONDS))
            if not self._threads:
                continue
            scope = random.choice(self._threads), random.choice(NAMESPACES)
            where = {"thread_id": scope[0], "checkpoint_ns": scope[1]}
            if scope in newest and random.random() < 0.05:
                where["checkpoint_id"] = newest[scope]
            try:
                found = await self._saver.aget_tuple({"configurable": where})
            except Exception:  # written down; if it is none of those that are promised, the run fails
                continue
            if found is not None:
                newest[scope] = found.checkpoint["id"]

    def _ran(self, name: str, config: RunnableConfig) -> None:
        where = config["configurable"]
        self._history.note(
            "run",
            where["thread_id"],
            task=where["__pregel_task_id"],
            within=_turn_began.get(),
            namespace=name,
        )

    async def _stumble(self, thread: str, turn: int) -> None:
        how = self._stumbles.pop((thread, turn), "")
        if how:
            await asyncio.sleep(_STUMBLE_SECONDS)  # by now the siblings have finished
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "fail":
            raise StumbledError


def _say(**message: Any) -> None:
    os.write(sys.stdout.fileno(), f"{json.dumps(message)}\n".encode())


async def main() -> None:
    """Parse the command line, and work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=Path, required=True, help="the file to write everything down in")
    parser.add_argument("--postgres", required=True)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--parent", type=int, required=True, help="the process that wants this one")
    given = parser.parse_args()
    logging.getLogger("glasspoint").setLevel(logging.ERROR)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    random.seed(f"{given.seed} {given.history.stem}")
    sabotage(os.environ.get(VARIABLE, ""))
    history = HistoryFile(given.history, given.history.stem)
    async with open_recording(given.postgres, given.redis, history, parent=given.parent) as saver:
        await Worker(saver).run()


if __name__ == "__main__":
    asyncio.run(main())
