"""How calls go to PostgreSQL: a call that is alone as it comes, a crowd's in one statement (group commit).

What a call costs is mostly the statement, the transaction and the way there and back, hardly its rows. Few
calls go one by one, in their callers' own tasks; those of a crowd with all others who wait when a connection
is there. The calls of one company (a superstep's tasks) go together, if they come before the first is sent.

    run -+-> alone: a connection -> ready -> statement -> an answer
         |                            |
         |                            if company has come meanwhile
         |                            v
         +-> in a crowd: all who wait --> a connection -> ready, each -> one statement -> an answer for each
                                                                         |
                                              if it failed, and PostgreSQL is as it was before:
                                              each by itself, in a statement of its own

Callers share the way, not their fate. What is wrong with one call fails that one alone, and a batch does not
wait for a row that others keep locked (`waits_briefly` in `put.sql`). A connection that breaks leaves all of
them in doubt, as it would have left each. No call joins a statement that was sent before it came.
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
from glasspoint.model.load_detector import Crowd
from glasspoint.telemetry.events import PoolWaited

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
    from contextlib import AbstractAsyncContextManager

    from glasspoint.l2.types import Connection
    from glasspoint.l2.writing import Ready
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Step, Telemetry

__all__ = ["Batcher", "Call"]


# So many calls at once go one by one; beyond that it is a crowd.
ALONE = 4

# So many batches of a crowd are under way at once, the next one with all who come meanwhile: one is on its
# way while PostgreSQL works on the other.
_BATCHES = 2

# A company's call that comes later than so long after the first one of it does not follow that one.
_COMPANY_SECONDS = 0.05

_CALLS_AT_ONCE = 32

# Large values go with fewer others: nobody is to wait behind megabytes.
_BYTES_AT_ONCE = 1024 * 1024

_UNANNOUNCED = Announced()


@dataclass(slots=True, eq=False)
class Call(Generic[ItemT, ResultT]):
    """What one caller asks.

    Attributes:
        item: What the statement is about.
        key: No two calls of one key go in one statement; `None`: with any.
        size: Bytes of what is sent.
        ready: See `Ready`; `None`: it is.
        company: Calls of one company come together, if they can; `None`: it has none.
        announced: What `ready` has answered.
        asked_at: When it began to wait for a connection.
    """

    scope: Scope
    item: ItemT
    key: Hashable
    size: int
    ready: Ready | None
    company: Hashable = None
    announced: Announced = _UNANNOUNCED
    asked_at: float = field(default_factory=perf_counter)


class _Waiter(Generic[ItemT, ResultT]):
    """A caller who goes with others.

    Attributes:
        call: What it asks.
        answer: Of PostgreSQL.
        context: The caller's, for telemetry.
        batch: The one that has taken it along.
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
    """Callers who go together, in a task of their own, which runs in the context of one of them."""

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
        """Whether nobody waits for it any more."""
        return all(waiter.answer.done() for waiter in self.waiters)

    def add(self, waiter: _Waiter[ItemT, ResultT]) -> None:
        self.waiters.append(waiter)
        waiter.batch = self

    async def ready(self, connection: Connection) -> None:
        """Wait until everyone is ready; those who cannot be, or have left, stay behind."""
        for waiter in self.waiters:
            call = waiter.call
            try:
                if call.ready is not None and not waiter.answer.done():
                    call.announced = await call.ready(connection)
            except Exception as exc:
                waiter.fail(exc)
        self.waiters = [waiter for waiter in self.waiters if not waiter.answer.done()]

    def begin(self) -> None:
        """Tell telemetry that they are sent now."""
        self.is_executing = True
        now = perf_counter()
        for waiter in self.waiters:
            scope = waiter.call.scope
            step = self._telemetry.step(self._step_name, scope)
            self._steps.append((waiter, step))
            self._in_context(waiter, self._begin, step, PoolWaited(now - waiter.call.asked_at, scope))

    def _begin(self, step: Step, waited: PoolWaited) -> None:
        self._telemetry.note(waited)
        step.__enter__()

    def end(self, error: BaseException | None) -> None:
        """Tell telemetry that they were answered, or what went wrong."""
        self.is_executing = False
        for waiter, step in self._steps:
            self._in_context(waiter, step.__exit__, type(error) if error else None, error, None)

    def _in_context(
        self, waiter: _Waiter[ItemT, ResultT], tell: Callable[..., object], *args: object
    ) -> None:
        if waiter is self.leader:  # so that what psycopg's own instrumentation says stands under it
            tell(*args)
        else:
            waiter.context.run(tell, *args)


class Batcher(Generic[ItemT, ResultT]):
    """Brings calls of one kind into statements."""

    def __init__(
        self,
        step_name: str,
        execute: Callable[[Connection, Sequence[Call[ItemT, ResultT]]], Awaitable[Sequence[ResultT]]],
        *,
        connection: Callable[[], AbstractAsyncContextManager[Connection]],
        start: Callable[[Coroutine[Any, Any, None], Context], asyncio.Task[None]],
        telemetry: Telemetry,
    ) -> None:
        """Take what executes a statement, and for which kind of call.

        Args:
            step_name: What telemetry calls such a statement.
            execute: Sends calls in one statement; an answer for each.
            connection: Checks one out; names what goes wrong. Nobody who is cancelled loses it.
            start: Starts a task in a context; it is waited for when the saver is closed.
            telemetry: Who is told of each call.
        """
        self._step_name = step_name
        self._execute = execute
        self._connection = connection
        self._start = start
        self._telemetry = telemetry
        self._crowd = Crowd(beyond=ALONE)
        self._waiting: list[_Waiter[ItemT, ResultT]] = []
        # Company -> when its first call came, and who follows that; as long as it is not sent.
        self._gathering: dict[Hashable, tuple[float, list[_Waiter[ItemT, ResultT]]]] = {}
        self._under_way = 0
        # What fetches a connection for those who wait.
        self._acquiring: _Batch[ItemT, ResultT] | None = None

    async def run(self, call: Call[ItemT, ResultT]) -> ResultT:
        """Ask PostgreSQL, and return what it answers to this call.

        Three cases: it goes with a crowd; it follows the first call of its company; it is such a first call,
        or alone.

        Raises:
            Exception: What the statement raises.
        """
        if self._crowd.is_there(self._under_way):
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

        The company is what comes before the call has a connection and is ready: the call does not wait for
        it.
        """
        followers: list[_Waiter[ItemT, ResultT]] = []
        if call.company is not None:
            self._gathering[call.company] = (call.asked_at, followers)
        has_connection = False
        self._under_way += 1
        try:
            async with self._connection() as connection:
                has_connection = True
                if call.ready is not None:
                    call.announced = await call.ready(connection)
                if call.company is not None and not followers:
                    await asyncio.sleep(0)  # whoever was started in the same tick comes now
                self._gathering.pop(call.company, None)
                if not followers:
                    return await self._alone(call, connection)
            first = _Waiter(call)
            followers.insert(0, first)
        except Exception as exc:
            if not has_connection:  # they have waited for one as long
                while followers:
                    followers.pop().fail(exc)
            raise
        finally:
            self._gathering.pop(call.company, None)
            self._under_way -= 1
            self._send_together(followers)
            self._look()
        return await self._answer_to(first)

    async def _alone(self, call: Call[ItemT, ResultT], connection: Connection) -> ResultT:
        """One call, in its caller's own task: if that is cancelled, psycopg ends the statement."""
        self._telemetry.note(PoolWaited(perf_counter() - call.asked_at, call.scope))
        with self._telemetry.step(self._step_name, call.scope):
            [answer] = await self._execute(connection, [call])
        return answer

    async def _answer_to(self, waiter: _Waiter[ItemT, ResultT]) -> ResultT:
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            await self._leave(waiter)
            raise

    def _look(self) -> None:
        """See to it that somebody fetches a connection for those who wait."""
        if self._waiting and self._acquiring is None and self._under_way < _BATCHES:
            self._acquiring = _Batch(self._waiting[0], self._step_name, self._telemetry)
            self._send(self._acquiring)

    def _send_together(self, waiters: list[_Waiter[ItemT, ResultT]]) -> None:
        """Send callers in as few statements as they go in, whoever else is under way.

        Callers that have left stay behind.
        """
        waiters = [waiter for waiter in waiters if not waiter.answer.done()]
        while waiters:
            taken, waiters = _fitting(waiters)
            batch = _Batch(taken[0], self._step_name, self._telemetry)
            for waiter in taken:
                batch.add(waiter)
            self._send(batch)

    def _send(self, batch: _Batch[ItemT, ResultT]) -> None:
        """Start a batch: of its waiters; `_acquiring`: of all who wait when it has a connection."""
        self._under_way += 1
        batch.task = self._start(self._run(batch), batch.leader.context)

    def _is_wanted(self, batch: _Batch[ItemT, ResultT]) -> bool:
        """Whether somebody waits for it."""
        return not batch.is_abandoned or (batch is self._acquiring and len(self._waiting) > 0)

    async def _run(self, batch: _Batch[ItemT, ResultT]) -> None:
        started = perf_counter()
        answers: Sequence[ResultT] = ()
        try:
            if not self._is_wanted(batch):  # they have left before this began
                return
            batch.is_acquiring = True
            async with self._connection() as connection:
                batch.is_acquiring = False
                batch.has_connection = True
                if batch is self._acquiring:
                    self._take(batch)
                await batch.ready(connection)
                if batch.waiters:
                    answers = await self._answer(connection, batch)
            # Only now: where statements do not commit by themselves, the connection does it at the end.
            for waiter, answer in zip(batch.waiters, answers, strict=True):
                if not waiter.answer.done():
                    waiter.answer.set_result(answer)
        except Exception as exc:
            self._failed(batch, exc, started)
        finally:
            batch.is_acquiring = False
            if batch is self._acquiring:
                self._acquiring = None
            self._under_way -= 1
            self._look()

    def _take(self, batch: _Batch[ItemT, ResultT]) -> None:
        """Take along who waits."""
        taken, self._waiting = _fitting(self._waiting)
        for waiter in taken:
            batch.add(waiter)
        self._acquiring = None
        self._look()

    async def _answer(self, connection: Connection, batch: _Batch[ItemT, ResultT]) -> Sequence[ResultT]:
        batch.begin()
        try:
            answers = await self._execute(connection, batch.calls)
        except BaseException as exc:
            batch.end(exc)
            raise
        batch.end(None)
        return answers

    def _failed(self, batch: _Batch[ItemT, ResultT], error: Exception, started: float) -> None:
        if not batch.has_connection and not batch.waiters:
            # Who has waited for one as long as this batch did is told so.
            self._acquiring = None
            batch.waiters = [waiter for waiter in self._waiting if waiter.call.asked_at <= started]
            self._waiting = [waiter for waiter in self._waiting if waiter.call.asked_at > started]
        elif batch.has_connection and len(batch.waiters) > 1 and certainly_unchanged(error):
            for waiter in batch.waiters:
                waiter.call.asked_at = perf_counter()
                self._send_together([waiter])
            return
        for waiter in batch.waiters:
            waiter.fail(error)

    async def _leave(self, waiter: _Waiter[ItemT, ResultT]) -> None:
        """The caller gives up: at once, unless its statement was sent.

        Then it goes when that has ended, and that is seen to if nobody else waits for it; if somebody does,
        the caller goes when told again.
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
    """Return who goes in one statement, first come first served, and who does not."""
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
