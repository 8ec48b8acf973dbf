"""Where a saver works: one process, one event loop, and sometimes a thread that runs the loop for it.

A saver's connections belong to the event loop that it was opened on, and the loop belongs to a process. So a
saver is used in three wrong places:

    another loop of the process     `WrongLoopError`
    a child after `fork()`          the child has copies of the connections, but not the threads, so a call
                                    would hang, or read what was meant for the parent. A saver that was opened
                                    from URLs, and not on an event loop of the caller's, is opened again by
                                    its first call in the child. Any other raises `ForkedError`
    after the end                   a saver that nobody has closed is closed when its loop ends
                                    (`asyncio.run`), or when its process ends (`OwnLoop`)

What is copied into a child is never closed there: closing would disturb the parent, with which the child
shares the sockets and what waits for them.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import os
import threading
import warnings
import weakref
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from glasspoint.errors import ForkedError, SaverClosedError, WrongLoopError
from glasspoint.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["EndOfLoop", "Home", "Housed", "OwnLoop", "running_loop", "wait_for"]

_log = get_logger("glasspoint")

_Result = TypeVar("_Result")

# How long the end of a loop, or of a process, waits for a saver that nobody has closed. A write has a
# deadline of 10 s, unless told otherwise.
_END_SECONDS = 12.0

# How long the end of a process waits for the thread, if all of that is used up.
_LAST_SECONDS = 0.5

# How long a fork waits until an own loop is between two steps. A step takes milliseconds.
_FORK_SECONDS = 1.0


class Housed(Protocol):
    """A saver, as far as it is opened and closed here."""

    @property
    def home(self) -> Home:
        """Where it works."""

    def close(self) -> Awaitable[None]:
        """Close it; on its own loop, what is returned is to be awaited."""


class _Closable(Protocol):
    def close(self) -> Awaitable[None]: ...


_Saver = TypeVar("_Saver", bound=Housed)


class Home:
    """The process and the event loop that a saver was opened on. The clones of `with_allowlist` share it.

    Attributes:
        loop: The event loop.
        process_id: The process.
        own: What runs the loop, if it was started for this saver alone.
    """

    def __init__(self, saver: object) -> None:
        """Settle a saver here.

        Args:
            saver: The saver, to be kept in a child: see `_after_fork_in_child`.
        """
        self.loop = asyncio.get_running_loop()
        self.process_id = os.getpid()
        self.own: OwnLoop[Any] | None = _own_of.get(self.loop)
        self._saver = saver
        _homes.add(self)

    @property
    def reopen(self) -> Callable[[], object] | None:
        """Opens the saver again in a child, waits until it is open, and does nothing if it was opened before.

        `None` if that cannot be done.
        """
        return self.own.saver if self.own is not None and self.own.reopens else None

    @property
    def is_in_this_process(self) -> bool:
        """Whether the process is still the one that the saver was opened in."""
        return self.process_id == os.getpid()

    def check(self) -> None:
        """See that an asynchronous call is made on the saver's loop, in its process.

        Raises:
            ForkedError: It is another process.
            WrongLoopError: It is another loop.
        """
        if self.process_id != os.getpid():
            raise self.forked()
        if asyncio.get_running_loop() is not self.loop:
            raise WrongLoopError(
                "The saver was opened on another event loop, and its connections belong there: open it on "
                "the loop that uses it, or call its synchronous methods from here."
            )

    def forked(self) -> ForkedError:
        """Make the error that says what to do in the child."""
        if self.own is not None and self.own.reopens:
            what = (
                "Its synchronous methods work here: they open it again. To await its methods, open a saver "
                "on the event loop that uses it, in this process."
            )
        else:
            what = (
                "Open a saver in each process after the fork: in Celery's `worker_process_init`, in "
                "gunicorn's `post_fork`, at the first request. Or open one from URLs, as `with "
                "CachedPostgresSaver.from_conn_string(…)` does: it opens itself again."
            )
        return ForkedError(
            f"This saver was opened in the process {self.process_id}, before a fork(), and does not work in "
            f"its child {os.getpid()}: its connections and its event loop are the parent's. {what}"
        )


class EndOfLoop:
    """Closes a saver that nobody has closed when its event loop ends, as `asyncio.run` ends one.

    The tasks of a saver's pool may outlive their cancellation: psycopg forgets one that comes while it
    connects. Then `asyncio.run` would never return.
    """

    def __init__(self, what: str, saver: _Closable) -> None:
        """Begin to wait for the end.

        Args:
            what: Names the saver in the warning.
            saver: What is closed then. It is held weakly: a saver that nobody holds may go before its loop.
        """
        self._what = what
        self._saver = weakref.ref(saver)
        self._process_id = os.getpid()
        self._is_dismissed = False
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(
            self._wait(loop.create_future()), name="glasspoint-end-of-loop", context=Context()
        )
        gone = weakref.finalize(saver, _cancel, loop, self._task)
        gone.atexit = False

    def dismiss(self) -> None:
        """Wait no longer: the saver is being closed."""
        if not self._is_dismissed:
            self._is_dismissed = True
            self._task.cancel()

    async def _wait(self, forever: asyncio.Future[None]) -> None:
        try:
            await forever
        finally:
            saver = self._saver()
            if saver is not None and not self._is_dismissed and self._process_id == os.getpid():
                self._is_dismissed = True  # closing must not end the wait for it
                await self._close_late(saver)

    async def _close_late(self, saver: _Closable) -> None:
        try:
            with suppress(TimeoutError):
                await _close(saver, _END_SECONDS)
        except asyncio.CancelledError:
            pass  # of the pool's tasks, which end at the same time
        finally:
            warnings.warn(
                f"A {self._what} was not closed before its event loop ended: `await saver.close()`, or open "
                "it with `async with`. It was closed now.",
                ResourceWarning,
                stacklevel=1,
            )


class OwnLoop(Generic[_Saver]):
    """An event loop in a daemon thread, and the saver that works on it, for synchronous callers.

    If nobody closes it, the end of the process does: what is under way is finished then.
    """

    def __init__(self, open_: Callable[[], Coroutine[Any, Any, _Saver]], *, reopens: bool) -> None:
        """Take what opens the saver.

        Args:
            open_: Opens the saver, on the loop that it is awaited on.
            reopens: Whether `open_` may be called again in a child. Not, if it takes connections from
                outside.
        """
        self.reopens = reopens
        self._open = open_
        self._lock = threading.RLock()
        self._process_id = 0
        self._is_closed = False
        self._saver: _Saver | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread: threading.Thread
        self._may_go_on: threading.Event | None = None

    def saver(self) -> _Saver:
        """Return the saver of this process; the first call in a process opens it.

        Raises:
            ForkedError: It was opened in another process, and cannot be opened again.
            SaverClosedError: It was closed, in this process or before the fork.
            GlasspointError: It cannot be opened now; a later call tries again.
        """
        if self._saver is not None and self._process_id == os.getpid():
            return self._saver
        with self._lock:
            if self._process_id == os.getpid() and self._saver is not None:
                return self._saver
            if self._is_closed:
                raise SaverClosedError("This saver was closed: open a new one, or close it later.")
            before = self._saver
            if before is not None and not self.reopens:
                raise before.home.forked()
            saver = self._start()
            if before is not None:
                _log.info("A saver that was opened before a fork() was opened again in this process.")
            return saver

    def close(self, *, within_seconds: float | None = None) -> None:
        """Close the saver of this process, if it has one, and end the thread. May be called twice.

        Args:
            within_seconds: Wait only so long, and then let everything be. `None`: as long as it takes.
        """
        give_up_at = None if within_seconds is None else monotonic() + within_seconds
        if not self._lock.acquire(timeout=-1 if within_seconds is None else within_seconds):
            return
        try:
            if self._is_closed:
                return
            self._is_closed = True
            if self._saver is not None and self._process_id == os.getpid():
                saver = self._saver
                try:
                    self.run(lambda: _close(saver, within_seconds))
                finally:
                    self._end(None if give_up_at is None else max(_LAST_SECONDS, give_up_at - monotonic()))
        finally:
            self._lock.release()

    def run(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Run something on the loop, and wait for its result."""
        return wait_for(work(), self._loop)

    # ---------------------------------------------------------------- helpers

    def _start(self) -> _Saver:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="glasspoint-saver", daemon=True
        )
        self._thread.start()
        started.result()
        _own_loops.add(self)
        try:
            saver = self.run(self._open)
        except BaseException:
            self._end()
            raise
        self._saver, self._process_id = saver, os.getpid()
        _kept.add(self)
        return saver

    def _run(self, started: Future[None]) -> None:
        async def until_stopped() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            _own_of[self._loop] = self
            started.set_result(None)
            await self._stop.wait()

        try:
            asyncio.run(until_stopped())
        except BaseException as exc:
            if not started.done():
                started.set_exception(exc)
            elif not self._is_closed:
                raise
            # At the end of the process, asyncio may want a thread to end its own threads, and get none.

    def _end(self, within_seconds: float | None = None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(within_seconds)
        _own_of.pop(self._loop, None)
        _own_loops.discard(self)
        _kept.discard(self)

    # ---------------------------------------------------------------- around a fork

    def pause(self) -> None:
        """Let the loop stand still between two steps: then it holds no lock that the child would inherit."""
        if threading.current_thread() is self._thread:
            return
        paused, may_go_on = threading.Event(), threading.Event()

        def stand_still() -> None:
            paused.set()
            may_go_on.wait(_FORK_SECONDS)

        with suppress(RuntimeError):  # it has ended just now
            self._loop.call_soon_threadsafe(stand_still)
            self._may_go_on = may_go_on
            paused.wait(_FORK_SECONDS)

    def go_on(self) -> None:
        """Let the loop go on after a fork."""
        if self._may_go_on is not None:
            self._may_go_on.set()
            self._may_go_on = None

    def renew_lock(self) -> None:
        """In the child: a thread of the parent may have held it."""
        self._lock = threading.RLock()


def wait_for(work: Coroutine[Any, Any, _Result], loop: asyncio.AbstractEventLoop) -> _Result:
    """Run a coroutine on a loop of another thread, and wait for its result.

    Raises:
        SaverClosedError: The loop has ended.
        Exception: What the coroutine raises.
    """
    try:
        waiting = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # closed a moment ago
        work.close()
        raise SaverClosedError("The event loop that the saver was opened on has ended.") from None
    try:
        return waiting.result()
    except BaseException:
        waiting.cancel()  # if it was the waiting that was interrupted (Ctrl-C): the call ends, too
        raise


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs on this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(task.cancel)


async def _close(saver: _Closable, within_seconds: float | None) -> None:
    """Close a saver, and wait no longer than this for it.

    Raises:
        TimeoutError: It takes longer. It goes on: a close that is cancelled goes on to its end, too.
    """
    closing = asyncio.ensure_future(saver.close())
    done, _ = await asyncio.wait({closing}, timeout=within_seconds)
    if not done:
        raise TimeoutError
    closing.result()


# ---------------------------------------------------------------- the process

_homes: WeakSet[Home] = WeakSet()
_own_loops: WeakSet[OwnLoop[Any]] = WeakSet()
_own_of: WeakKeyDictionary[asyncio.AbstractEventLoop, OwnLoop[Any]] = WeakKeyDictionary()

# The ones that are open: a saver whose caller keeps nothing but the saver must not lose its loop.
_kept: set[OwnLoop[Any]] = set()


def _close_all() -> None:
    give_up_at = monotonic() + _END_SECONDS
    for each in list(_kept):
        with suppress(Exception):  # a server may be away, and nobody can be told
            each.close(within_seconds=max(0.0, give_up_at - monotonic()))


def _before_fork() -> None:
    for each in list(_own_loops):
        each.pause()


def _after_fork_in_parent() -> None:
    for each in list(_own_loops):
        each.go_on()


def _after_fork_in_child() -> None:
    for home in list(_homes):
        # What it holds must not be deleted either, not even when the child's interpreter ends: the streams
        # of asyncio close themselves then, and take their sockets from the epoll that both processes share.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(home))
    _homes.clear()
    for each in list(_own_loops):
        each.renew_lock()
    _own_loops.clear()
    _kept.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
