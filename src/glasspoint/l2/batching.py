"""Sends calls to PostgreSQL: single calls as they come, the calls of a crowd in one statement (group commit).

Open this file when calls wait for each other, or when one call gets the error of another.

A call costs mostly its statement, its transaction and its round trip, and hardly its rows. A few calls go one
by one, in their callers' own tasks. The calls of a crowd go together: all that wait when there is a
connection. The calls of one company (a superstep's tasks) go together if they come before the first is sent.

    run -+-> alone: a connection -> ready -> statement -> a result
         |                            |
         |                            if calls of its company have come meanwhile
         |                            v
         +-> in a crowd: all that wait --> a connection -> ready, each -> one statement -> a result for each
                                                                          |
                                              if it failed, and PostgreSQL is as it was before:
                                              each call by itself, in a statement of its own

Calls share a statement, but not their errors. A mistake in one call fails that call alone. A batch does not
wait for a row that another transaction keeps locked (`waits_briefly` in `put.sql`). A broken connection fails
all calls of a batch: as with a single call, it is not known whether they were done. No call joins a statement
that was sent before the call came.
"""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic

from glasspoint.l2.faults import certainly_unchanged
from glasspoint.l2.writing import Announced
from glasspoint.model.generics import ItemT, ResultT
from glasspoint.model.load_detector import LoadDetector
from glasspoint.telemetry.events import PoolWaited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
    from contextlib import AbstractAsyncContextManager

    from glasspoint.l2.types import Connection
    from glasspoint.l2.writing import Ready
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Step, Telemetry

__all__ = ["Batcher", "Call"]


# Up to so many concurrent calls go one by one. More calls are a crowd.
ALONE = 4

# So many batches of a crowd are under way at once: one travels while PostgreSQL works on the other. Calls
# that come meanwhile go with the next batch.
_BATCHES = 2

# A call only follows the first call of its company if it comes at most so long after it.
_COMPANY_SECONDS = 0.05

_CALLS_AT_ONCE = 32

# Large values make a batch smaller: no call should wait behind megabytes.
_BYTES_AT_ONCE = 1024 * 1024

_UNANNOUNCED = Announced()


@dataclass(slots=True, eq=False)
class Call(Generic[ItemT, ResultT]):
    """What one caller wants from PostgreSQL.

    Attributes:
        item: What the statement reads or writes.
        key: Two calls with the same key never go in one statement. `None`: no such limit.
        size: The number of bytes that are sent.
        ready: Awaited before the statement, see `Ready`. `None`: nothing is awaited.
        company: Calls of one company go together, if they can. `None`: the call has none.
        announced: The result of `ready`.
        asked_at: When the call began to wait for a connection, by `perf_counter`.
        has_connection: Whether there is a connection for it, so that it waits for none any more.
    """

    scope: Scope
    item: ItemT
    key: Hashable
    size: int
    ready: Ready | None
    company: Hashable = None
    announced: Announced = _UNANNOUNCED
    asked_at: float = field(default_factory=perf_counter)
    has_connection: bool = False


class _Waiter(Generic[ItemT, ResultT]):
    """A caller whose call goes together with others.

    Attributes:
        call: The call.
        answer: Receives the result of PostgreSQL.
        context: The caller's context, for telemetry.
        batch: The batch that the call goes with. `None`: none yet.
    """

    __slots__ = ("answer", "batch", "call", "context")

    def __init__(self, call: Call[ItemT, ResultT]) -> None:
        self.call = call
        self.answer: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        self.context: Context = copy_context()
        self.batch: _Batch[ItemT, ResultT] | None = None

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Batch(Generic[ItemT, ResultT]):
    """Calls that go together, in a task of their own. It runs in the context of one caller, the leader."""

    def __init__(self, leader: _Waiter[ItemT, ResultT], step_name: str, telemetry: Telemetry) -> None:
        self.waiters: list[_Waiter[ItemT, ResultT]] = []
        self.is_acquiring = False
        self.has_connection = False
        self.is_executing = False
        self.task: asyncio.Task[None]
        self.leader = leader
        self._step_name = step_name
        self._telemetry = telemetry
        self._steps: list[tuple[_Waiter[ItemT, ResultT], Step]] = []

    @property
    def calls(self) -> list[Call[ItemT, ResultT]]:
        return [waiter.call for waiter in self.waiters]

    @property
    def is_abandoned(self) -> bool:
        """Whether no caller waits for it any more."""
        return all(waiter.answer.done() for waiter in self.waiters)

    def add(self, waiter: _Waiter[ItemT, ResultT]) -> None:
        self.waiters.append(waiter)
        waiter.batch = self

    async def ready(self, connection: Connection) -> None:
        """Await `ready` of each call. Calls for which it fails, or whose callers have left, are dropped."""
        for waiter in self.waiters:
            call = waiter.call
            call.has_connection = True
            try:
                if call.ready is not None and not waiter.answer.done():
                    call.announced = await call.ready(connection)
            except Exception as exc:
                waiter.fail(exc)
        self.waiters = [waiter for waiter in self.waiters if not waiter.answer.done()]

    def begin(self) -> None:
        """Tell telemetry that the calls are sent now."""
        self.is_executing = True
        now = perf_counter()
        for waiter in self.waiters:
            scope = waiter.call.scope
            step = self._telemetry.step(self._step_name, scope, batch_size=len(self.waiters))
            self._steps.append((waiter, step))
            self._in_context(waiter, self._begin, step, PoolWaited(now - waiter.call.asked_at, scope))

    def _begin(self, step: Step, waited: PoolWaited) -> None:
        self._telemetry.emit(waited)
        step.__enter__()

    def end(self, error: BaseException | None) -> None:
        """Tell telemetry that the calls have their results, or what went wrong."""
        self.is_executing = False
        for waiter, step in self._steps:
            self._in_context(waiter, step.__exit__, type(error) if error else None, error, None)

    def _in_context(
        self, waiter: _Waiter[ItemT, ResultT], tell: Callable[..., object], *args: object
    ) -> None:
        if waiter is self.leader:  # so that the spans of psycopg's own instrumentation are below its span
            tell(*args)
        else:
            waiter.context.run(tell, *args)


class Batcher(Generic[ItemT, ResultT]):
    """Sends calls of one kind, alone or together."""

    def __init__(
        self,
        step_name: str,
        execute: Callable[[Connection, Sequence[Call[ItemT, ResultT]]], Awaitable[Sequence[ResultT]]],
        *,
        connection: Callable[[Callable[[], int]], AbstractAsyncContextManager[Connection]],
        waited_in_vain: Callable[[float, Scope, BaseException], None],
        start: Callable[[Coroutine[Any, Any, None], Context], asyncio.Task[None]],
        telemetry: Telemetry,
    ) -> None:
        """Take what executes a statement for one kind of call.

        Args:
            step_name: The name of such a statement in telemetry.
            execute: Sends calls in one statement, and returns a result for each.
            connection: Checks out a connection, and names errors. A cancelled caller does not lose it. It
                takes a function that returns the number of callers that wait for this connection.
            waited_in_vain: Called for each caller that receives no connection: when it began to wait, its
                scope, and its error.
            start: Starts a task in a context. Closing the saver waits for the task.
            telemetry: Receives events for each call.
        """
        self._step_name = step_name
        self._execute = execute
        self._connection = connection
        self._waited_in_vain = waited_in_vain
        self._start = start
        self._telemetry = telemetry
        self._load = LoadDetector(beyond=ALONE)
        self._waiting: list[_Waiter[ItemT, ResultT]] = []
        # Company -> when its first call came, and the calls that follow it. Removed when that call is sent.
        self._gathering: dict[Hashable, tuple[float, list[_Waiter[ItemT, ResultT]]]] = {}
        self._under_way = 0
        # The calls and batches that have no connection yet, in the order in which they asked for one.
        self._asking: list[object] = []
        # The batch that fetches a connection for the waiting calls.
        self._acquiring: _Batch[ItemT, ResultT] | None = None

    async def run(self, call: Call[ItemT, ResultT]) -> ResultT:
        """Send a call, and return its result.

        Three cases: the call goes with a crowd; it follows the first call of its company; or it is such a
        first call, or alone.

        Raises:
            Exception: The error of the statement.
        """
        try:
            return await self._run_call(call)
        except BaseException as exc:
            if not call.has_connection:
                self._waited_in_vain(call.asked_at, call.scope, exc)
            raise

    async def _run_call(self, call: Call[ItemT, ResultT]) -> ResultT:
        if self._load.is_there(self._under_way):
            waiter = _Waiter(call)
            self._waiting.append(waiter)
            self._look()
            return await self._answer_to(waiter)
        first_at, followers = self._gathering.get(call.company, (-inf, []))
        if call.asked_at - first_at <= _COMPANY_SECONDS:
            waiter = _Waiter(call)
            followers.append(waiter)
            return await self._answer_to(waiter)
        return await self._first(call)

    async def _first(self, call: Call[ItemT, ResultT]) -> ResultT:
        """Send a call by itself, or with its company.

        Its company is all calls that come before it has a connection and is ready. It does not wait for them.
        """
        followers: list[_Waiter[ItemT, ResultT]] = []
        if call.company is not None:
            self._gathering[call.company] = (call.asked_at, followers)
        has_connection = False
        self._under_way += 1
        self._asking.append(call)
        try:
            async with self._connection(lambda: 1 + self._callers(call, followers)) as connection:
                has_connection = call.has_connection = True
                self._asking.remove(call)
                if call.ready is not None:
                    call.announced = await call.ready(connection)
                if call.company is not None and not followers:
                    await asyncio.sleep(0)  # calls that were started in the same tick come now
                self._gathering.pop(call.company, None)
                if not followers:
                    return await self._alone(call, connection)
            call.has_connection = False  # it needs another one, together with the others
            first = _Waiter(call)
            followers.insert(0, first)
        except BaseException as exc:
            if not has_connection:
                self._asking.remove(call)
                while followers and isinstance(exc, Exception):  # they have waited for one as long
                    followers.pop().fail(exc)
            raise
        finally:
            self._gathering.pop(call.company, None)
            self._under_way -= 1
            self._send_together(followers)
            self._look()
        return await self._answer_to(first)

    async def _alone(self, call: Call[ItemT, ResultT], connection: Connection) -> ResultT:
        """Send one call in its caller's own task: if that is cancelled, psycopg ends the statement."""
        self._telemetry.emit(PoolWaited(perf_counter() - call.asked_at, call.scope))
        with self._telemetry.step(self._step_name, call.scope):
            [result] = await self._execute(connection, [call])
        return result

    async def _answer_to(self, waiter: _Waiter[ItemT, ResultT]) -> ResultT:
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            await self._leave(waiter)
            raise

    def _look(self) -> None:
        """Make a batch fetch a connection for the waiting calls, unless too many batches are under way."""
        if self._waiting and self._acquiring is None and self._under_way < _BATCHES:
            self._acquiring = _Batch(self._waiting[0], self._step_name, self._telemetry)
            self._send(self._acquiring)

    def _send_together(self, waiters: list[_Waiter[ItemT, ResultT]]) -> None:
        """Send calls in as few statements as possible, however many batches are under way.

        Calls whose callers have left are not sent.
        """
        waiters = [waiter for waiter in waiters if not waiter.answer.done()]
        while waiters:
            taken, waiters = _fitting(waiters)
            batch = _Batch(taken[0], self._step_name, self._telemetry)
            for waiter in taken:
                batch.add(waiter)
            self._send(batch)

    def _send(self, batch: _Batch[ItemT, ResultT]) -> None:
        """Start a batch. It sends its waiters; `_acquiring` sends all that wait when it has a connection."""
        self._under_way += 1
        batch.task = self._start(self._run(batch), batch.leader.context)

    def _is_wanted(self, batch: _Batch[ItemT, ResultT]) -> bool:
        """Whether a caller waits for the batch."""
        return not batch.is_abandoned or (batch is self._acquiring and len(self._waiting) > 0)

    async def _run(self, batch: _Batch[ItemT, ResultT]) -> None:
        started = perf_counter()
        results: Sequence[ResultT] = ()
        try:
            if not self._is_wanted(batch):  # all callers have left before this began
                return
            batch.is_acquiring = True
            self._asking.append(batch)
            async with self._connection(lambda: self._callers(batch, batch.waiters)) as connection:
                batch.is_acquiring = False
                self._asking.remove(batch)
                batch.has_connection = True
                if batch is self._acquiring:
                    self._take(batch)
                await batch.ready(connection)
                if batch.waiters:
                    results = await self._answer(connection, batch)
            # Not earlier: without autocommit, the statement is committed at the end of the block.
            for waiter, answer in zip(batch.waiters, results, strict=True):
                if not waiter.answer.done():
                    waiter.answer.set_result(answer)
        except Exception as exc:
            self._failed(batch, exc, started)
        finally:
            if batch.is_acquiring:
                batch.is_acquiring = False
                self._asking.remove(batch)
            if batch is self._acquiring:
                self._acquiring = None
            self._under_way -= 1
            self._look()

    def _callers(self, asker: object, waiters: Sequence[_Waiter[ItemT, ResultT]]) -> int:
        """Return how many of some callers still wait for a connection. May be called in any thread.

        Calls that have no batch yet wait for whoever has asked for a connection first.
        """
        more = self._waiting if self._asking[:1] == [asker] else []
        return sum(not waiter.answer.done() for waiter in [*waiters, *more])

    def _take(self, batch: _Batch[ItemT, ResultT]) -> None:
        """Add waiting calls to the batch."""
        taken, self._waiting = _fitting(self._waiting)
        for waiter in taken:
            batch.add(waiter)
        self._acquiring = None
        self._look()

    async def _answer(self, connection: Connection, batch: _Batch[ItemT, ResultT]) -> Sequence[ResultT]:
        batch.begin()
        try:
            results = await self._execute(connection, batch.calls)
        except BaseException as exc:
            batch.end(exc)
            raise
        batch.end(None)
        return results

    def _failed(self, batch: _Batch[ItemT, ResultT], error: Exception, started: float) -> None:
        if not batch.has_connection and not batch.waiters:
            # Calls that have waited for a connection as long as this batch get its error.
            self._acquiring = None
            batch.waiters = [waiter for waiter in self._waiting if waiter.call.asked_at <= started]
            self._waiting = [waiter for waiter in self._waiting if waiter.call.asked_at > started]
        elif batch.has_connection and len(batch.waiters) > 1 and certainly_unchanged(error):
            for waiter in batch.waiters:
                waiter.call.asked_at, waiter.call.has_connection = perf_counter(), False
                self._send_together([waiter])
            return
        for waiter in batch.waiters:
            waiter.fail(error)

    async def _leave(self, waiter: _Waiter[ItemT, ResultT]) -> None:
        """Let a cancelled caller go: at once, unless its statement was sent.

        Two cases, if the statement was sent. No other caller waits for it: it is cancelled, and this caller
        goes when it has ended. Another caller waits for it: this caller goes when it has ended, or when it is
        cancelled a second time.
        """
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        batch = self._acquiring if waiter.batch is None else waiter.batch
        if batch is not None and batch.is_acquiring and not self._is_wanted(batch):
            batch.task.cancel()  # it would wait for a connection that nobody needs
        while waiter.batch is not None and waiter.batch.is_executing:
            if waiter.batch.is_abandoned:
                waiter.batch.task.cancel()
            try:
                await asyncio.wait({waiter.batch.task})
            except asyncio.CancelledError:
                if not waiter.batch.is_abandoned:
                    return


def _fitting(
    waiters: Sequence[_Waiter[ItemT, ResultT]],
) -> tuple[list[_Waiter[ItemT, ResultT]], list[_Waiter[ItemT, ResultT]]]:
    """Return the calls that go in one statement, first come first served, and the rest."""
    taken, left = list[_Waiter[ItemT, ResultT]](), list[_Waiter[ItemT, ResultT]]()
    keys, size = set[Any](), 0
    for waiter in waiters:
        call = waiter.call
        is_full = len(taken) == _CALLS_AT_ONCE or size + call.size > _BYTES_AT_ONCE
        if (is_full and taken) or call.key in keys:
            left.append(waiter)
            continue
        taken.append(waiter)
        size += call.size
        if call.key is not None:
            keys.add(call.key)
    return taken, left
