"""Batches: what concurrent callers ask of PostgreSQL goes there as one statement (group commit, for writes).

What a call costs is mostly the statement, the transaction and the way there and back, hardly its rows. Few
calls go one by one, as they come; those of a crowd with all others who wait when a connection is there.

    run -+-> by itself -----------------+-> a connection -> ready, each -> one statement -> an answer for each
         +-> in a crowd: all who wait --+                                       |
                                                     if it failed, and PostgreSQL is as it was before:
                                                     each by itself, in a statement of its own

Callers share the way, not their fate. What is wrong with one call fails that one alone, and a batch does not
wait for a row that others keep locked (`statements.LOCK_TIMEOUT`). A connection that breaks leaves all of
them in doubt, as it would have left each. No call joins a statement that was sent before it came.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from glasspoint.crowd import Crowd
from glasspoint.l2.faults import certainly_unchanged
from glasspoint.l2.writing import Announced
from glasspoint.telemetry.events import PoolWaited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
    from contextlib import AbstractAsyncContextManager

    from glasspoint.l2.store import Connection, Ready
    from glasspoint.scope import Scope
    from glasspoint.telemetry.events import Step, Telemetry

__all__ = ["Batcher", "Call"]

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

# So many calls at once go one by one; beyond that it is a crowd.
ALONE = 4

# So many batches of a crowd are under way at once, the next one with all who come meanwhile: one is on its
# way while PostgreSQL works on the other.
_BATCHES = 2

_CALLS_AT_ONCE = 32

# Large values go with fewer others: nobody is to wait behind megabytes.
_BYTES_AT_ONCE = 1024 * 1024

_UNANNOUNCED = Announced()


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Call(Generic[_Item, _Answer]):
    """What one caller asks.

    Attributes:
        item: What the statement is about.
        key: No two calls of one key go in one statement; `None`: with any.
        size: Bytes of what is sent.
        ready: See `Ready`; `None`: it is.
        announced: What `ready` has answered.
        answer: Of PostgreSQL.
        asked_at: When it began to wait for a connection.
        context: The caller's, for telemetry.
    """

    scope: Scope
    item: _Item
    key: Hashable
    size: int
    ready: Ready | None
    announced: Announced = _UNANNOUNCED
    answer: asyncio.Future[_Answer] = field(default_factory=_future)
    asked_at: float = field(default_factory=perf_counter)
    context: Context = field(default_factory=copy_context)
    batch: _Batch[_Item, _Answer] | None = None


class _Batch(Generic[_Item, _Answer]):
    """Calls that go together, in a task of their own, which runs in the context of one of them."""

    def __init__(self, leader: Call[_Item, _Answer], step_name: str, telemetry: Telemetry) -> None:
        self.calls: list[Call[_Item, _Answer]] = []
        self.has_connection = False
        self.is_executing = False
        self.task: asyncio.Task[None]
        self._leader = leader
        self._step_name = step_name
        self._telemetry = telemetry
        self._steps: list[tuple[Call[_Item, _Answer], Step]] = []

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(call.answer.done() for call in self.calls)

    def add(self, call: Call[_Item, _Answer]) -> None:
        self.calls.append(call)
        call.batch = self

    async def ready(self, connection: Connection) -> None:
        """Wait until everyone is ready; those who cannot be, or have left, stay behind."""
        for call in self.calls:
            try:
                if call.ready is not None and not call.answer.done():
                    call.announced = await call.ready(connection)
            except Exception as exc:
                _fail(call, exc)
        self.calls = [call for call in self.calls if not call.answer.done()]

    def begin(self) -> None:
        """Tell telemetry that they are sent now."""
        self.is_executing = True
        now = perf_counter()
        for call in self.calls:
            step = self._telemetry.step(self._step_name, call.scope)
            self._steps.append((call, step))
            self._in_context(call, self._begin, step, PoolWaited(now - call.asked_at, call.scope))

    def _begin(self, step: Step, waited: PoolWaited) -> None:
        self._telemetry.note(waited)
        step.__enter__()

    def end(self, error: BaseException | None) -> None:
        """Tell telemetry that they were answered, or what went wrong."""
        self.is_executing = False
        for call, step in self._steps:
            self._in_context(call, step.__exit__, type(error) if error else None, error, None)

    def _in_context(self, call: Call[_Item, _Answer], tell: Callable[..., object], *args: object) -> None:
        if call is self._leader:  # so that what psycopg's own instrumentation says stands under it
            tell(*args)
        else:
            call.context.run(tell, *args)


class Batcher(Generic[_Item, _Answer]):
    """Brings calls of one kind into statements."""

    def __init__(
        self,
        step_name: str,
        execute: Callable[[Connection, Sequence[Call[_Item, _Answer]]], Awaitable[Sequence[_Answer]]],
        *,
        connection: Callable[[], AbstractAsyncContextManager[Connection]],
        start: Callable[[Coroutine[Any, Any, None], Context], asyncio.Task[None]],
        telemetry: Telemetry,
    ) -> None:
        """Args:
        step_name: What telemetry calls such a statement.
        execute: Sends calls in one statement; an answer for each.
        connection: Checks one out, for a task that nobody cancels on the way; names what goes wrong.
        start: Starts a task in a context; it is waited for when the saver is closed.
        telemetry: Who is told of each call.
        """
        self._step_name = step_name
        self._execute = execute
        self._connection = connection
        self._start = start
        self._telemetry = telemetry
        self._crowd = Crowd(beyond=ALONE)
        self._waiting: list[Call[_Item, _Answer]] = []
        self._under_way = 0
        self._is_acquiring = False

    async def run(self, call: Call[_Item, _Answer]) -> _Answer:
        """Ask PostgreSQL, and return what it answers to this call.

        Raises:
            As the statement does.
        """
        if self._crowd.is_there(self._under_way):
            self._waiting.append(call)
            self._look()
        else:
            self._send(call, alone=True)
        try:
            return await call.answer
        except asyncio.CancelledError:
            await self._leave(call)
            raise

    def _look(self) -> None:
        """See to it that somebody fetches a connection for those who wait."""
        if self._waiting and not self._is_acquiring and self._under_way < _BATCHES:
            self._is_acquiring = True
            self._send(self._waiting[0])

    def _send(self, leader: Call[_Item, _Answer], *, alone: bool = False) -> None:
        batch = _Batch(leader, self._step_name, self._telemetry)
        self._under_way += 1
        batch.task = self._start(self._run(batch, alone=leader if alone else None), leader.context)

    async def _run(self, batch: _Batch[_Item, _Answer], *, alone: Call[_Item, _Answer] | None) -> None:
        started = perf_counter()
        if alone is not None:
            batch.add(alone)
        try:
            async with self._connection() as connection:
                batch.has_connection = True
                if alone is None:
                    self._take(batch)
                await batch.ready(connection)
                if batch.calls:
                    await self._answer(connection, batch)
        except Exception as exc:
            self._failed(batch, exc, started)
        finally:
            self._under_way -= 1
            self._look()

    def _take(self, batch: _Batch[_Item, _Answer]) -> None:
        """Take along who waits, first come first served."""
        keys, left, size = set[Any](), list[Call[_Item, _Answer]](), 0
        for call in self._waiting:
            is_full = len(batch.calls) == _CALLS_AT_ONCE or size + call.size > _BYTES_AT_ONCE
            if (is_full and batch.calls) or call.key in keys:
                left.append(call)
            else:
                batch.add(call)
                size += call.size
                if call.key is not None:
                    keys.add(call.key)
        self._waiting = left
        self._is_acquiring = False
        self._look()

    async def _answer(self, connection: Connection, batch: _Batch[_Item, _Answer]) -> None:
        batch.begin()
        try:
            answers = await self._execute(connection, batch.calls)
        except BaseException as exc:
            batch.end(exc)
            raise
        batch.end(None)
        for call, answer in zip(batch.calls, answers, strict=True):
            if not call.answer.done():
                call.answer.set_result(answer)

    def _failed(self, batch: _Batch[_Item, _Answer], error: Exception, started: float) -> None:
        if not batch.has_connection and not batch.calls:
            # Who has waited for one as long as this batch did is told so.
            self._is_acquiring = False
            batch.calls = [call for call in self._waiting if call.asked_at <= started]
            self._waiting = [call for call in self._waiting if call.asked_at > started]
        elif len(batch.calls) > 1 and certainly_unchanged(error):
            for call in batch.calls:
                call.asked_at = perf_counter()
                self._send(call, alone=True)
            return
        for call in batch.calls:
            _fail(call, error)

    async def _leave(self, call: Call[_Item, _Answer]) -> None:
        """The caller gives up: at once, unless its statement was sent. Then it goes when that has ended, and
        that is seen to if nobody else waits for it; if somebody does, the caller goes when told again."""
        if call in self._waiting:
            self._waiting.remove(call)
        while call.batch is not None and call.batch.is_executing:
            if call.batch.is_abandoned:
                call.batch.task.cancel()
            try:
                await asyncio.wait({call.batch.task})
            except asyncio.CancelledError:
                if not call.batch.is_abandoned:
                    return


def _fail(call: Call[Any, Any], error: Exception) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)
