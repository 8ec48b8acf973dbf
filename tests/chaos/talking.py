"""What every process of a run does, whichever saver it uses: it talks, and writes everything down.

The process is told what to do line by line on its standard input, and says on its standard output when that
is done. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)

from chaos.conversation import StumbledError, build_conversation, databases_of, question, turns_answered
from chaos.history import HistoryFile, Operation, digest, digest_of_values, pending_of

__all__ = ["Recording", "Talker", "current_operation", "parse_arguments"]

_TURN_SECONDS = 12.0
_STUMBLE_SECONDS = 0.05

# After its input has ended, a process ends; if it does not manage to, it is ended.
_END_SECONDS = 6

current_operation: ContextVar[Operation | None] = ContextVar("current_operation", default=None)
"""The call of a saver that is under way in this task."""

_turn: ContextVar[int] = ContextVar("_turn", default=0)
_turn_began: ContextVar[float] = ContextVar("_turn_began", default=0.0)

if TYPE_CHECKING:
    _Saver = BaseCheckpointSaver[str]
else:
    _Saver = object


class Recording(_Saver):
    """Put in front of a saver's class: every call that LangGraph makes of it is written down.

    Attributes:
        history: Where.
        database: The name of the saver's database.
        is_promised: Tells whether this is an error that a call may raise while a server is away.
    """

    history: HistoryFile
    database: str
    is_promised: Callable[[Exception], bool]

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        wanted = config["configurable"].get("checkpoint_id")
        with self._recorded("read", config, wanted=wanted, turn=_turn.get()) as operation:
            found = await super().aget_tuple(config)
            if found is not None:
                values = found.checkpoint["channel_values"]
                operation.checkpoint = found.checkpoint["id"]
                operation.value = digest_of_values(values)
                operation.pending = pending_of(found)
                writes = [value for _, _, value in found.pending_writes or ()]
                operation.said_in = databases_of([*values.values(), *writes])
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
    def _recorded(self, kind: str, config: RunnableConfig, **facts: Any) -> Iterator[Operation]:
        where = config["configurable"]
        facts |= {"database": self.database, "namespace": where.get("checkpoint_ns", "")}
        with self.history.operation(kind, where["thread_id"], **facts) as operation:
            token = current_operation.set(operation)
            try:
                yield operation
            except Exception as exc:
                if not self.is_promised(exc):
                    operation.unexpected = repr(exc)
                raise
            finally:
                current_operation.reset(token)


class Talker:
    """Takes turns in conversations, in one or several databases."""

    def __init__(self, savers: Mapping[str, Recording], history: HistoryFile) -> None:
        """Args:
        savers: Database -> the saver for it.
        history: Where everything is written down.
        """
        self._history = history
        self._savers = savers
        self._graphs = {
            name: build_conversation(saver, name, self._ran_in(name), partial(self._stumble, name))
            for name, saver in savers.items()
        }
        self._stumbles: dict[tuple[str, str, int], str] = {}
        self._under_way = set[asyncio.Task[None]]()

    async def run(self) -> None:
        """Do what is asked for until nobody asks any more."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        besides = [asyncio.create_task(work) for work in self.besides()]
        _say(ready=True)
        async for line in lines:
            wanted = json.loads(line)
            self.heard(wanted)
            task = asyncio.create_task(self._do(wanted))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        signal.alarm(_END_SECONDS)
        tasks = *besides, *self._under_way
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def besides(self) -> list[Any]:
        """Return what goes on besides, as coroutines that never end."""
        return []

    def heard(self, wanted: dict[str, Any]) -> None:
        """Learn from what is asked for, before it is done."""

    async def do(self, wanted: dict[str, Any]) -> None:
        """Do what is asked for: a turn.

        Raises:
            Exception: It was not done, or nobody knows.
        """
        await self._turn(wanted["database"], wanted["thread"], wanted["turn"], wanted["stumble"])

    async def _do(self, wanted: dict[str, Any]) -> None:
        try:
            await self.do(wanted)
        except Exception:
            _say(key=wanted["key"], ok=False)
        else:
            _say(key=wanted["key"], ok=True)

    async def _turn(self, database: str, thread: str, number: int, stumble: str) -> None:
        if stumble:
            self._stumbles[database, thread, number] = stumble
        try:
            with self._history.operation("turn", thread, database=database, turn=number) as operation:
                try:
                    async with asyncio.timeout(_TURN_SECONDS):
                        operation.answered = await self._talk(database, thread, number)
                except (StumbledError, TimeoutError):
                    raise
                except Exception as exc:
                    if not self._savers[database].is_promised(exc):
                        operation.unexpected = repr(exc)
                    raise
        finally:
            self._stumbles.pop((database, thread, number), None)

    async def _talk(self, database: str, thread: str, number: int) -> list[int]:
        """As an application does that does not know how far the turn has come: go on with what was begun,
        say what was not said yet."""
        graph, config = self._graphs[database], {"configurable": {"thread_id": thread}}
        _turn.set(number)
        while True:
            state = await graph.aget_state(config)
            answered = turns_answered(state.values)
            if number in answered and not state.tasks:
                return answered
            _turn_began.set(monotonic())
            await graph.ainvoke(
                None if state.tasks else question(number, database),
                config,
                durability=random.choice(["sync", "async"]),
            )

    def _ran_in(self, database: str) -> Callable[[str, RunnableConfig], None]:
        def ran(name: str, config: RunnableConfig) -> None:
            where = config["configurable"]
            self._history.note(
                "run",
                where["thread_id"],
                database=database,
                task=where["__pregel_task_id"],
                within=_turn_began.get(),
                namespace=name,
            )

        return ran

    async def _stumble(self, database: str, thread: str, turn: int) -> None:
        how = self._stumbles.pop((database, thread, turn), "")
        if how:
            await asyncio.sleep(_STUMBLE_SECONDS)  # by now the siblings have finished
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "fail":
            raise StumbledError


def parse_arguments(description: str | None) -> Namespace:
    """Parse the command line of a process; `databases` maps a name to a URL."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--history", type=Path, required=True, help="the file to write everything down in")
    parser.add_argument("--database", action="append", required=True, help="NAME=URL; again for more")
    parser.add_argument("--redis", required=True)
    parser.add_argument("--line", action="append", default=[], help="PORT=PORT: a server's, and its line's")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--pauses", type=float, default=1.0, help="times as long as usual")
    parser.add_argument("--parent", type=int, required=True, help="the process that wants this one")
    given = parser.parse_args()
    given.databases = dict(each.split("=", 1) for each in given.database)
    given.lines = {int(port): int(line) for port, line in (each.split("=") for each in given.line)}
    return given


def _say(**message: Any) -> None:
    os.write(sys.stdout.fileno(), f"{json.dumps(message)}\n".encode())
