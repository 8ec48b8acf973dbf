"""The home of a saver: one process, one event loop, and sometimes a thread that runs the loop.

A saver's connections belong to the event loop that it was opened on, and the loop belongs to a process. Open
this when a saver is used elsewhere. There are three cases:

    another loop of the process     `WrongLoopError`
    a child after `fork()`          The child has copies of the connections, but not the threads. A call would
                                    hang, or read data that was meant for the parent. A saver that was opened
                                    from URLs, on a loop of its own, is opened again by its first call in the
                                    child. Any other saver raises `ForkedError`.
    after the end                   A saver that was not closed is closed when its loop ends (`asyncio.run`),
                                    or when its process ends (`OwnLoop`).

Objects that were copied into a child are never closed there. Closing would disturb the parent, because both
share the sockets and the epoll instance that waits for them.
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

# How long the end of a loop or of a process waits for a saver that was not closed. It is longer than the
# default deadline of a write, 10 s.
_END_SECONDS = 12.0

# How long the end of a process waits for the thread at least, even if the time above is used up.
_LAST_SECONDS = 0.5

# How long a fork waits until a saver's own loop is between two steps. A step takes milliseconds.
_FORK_SECONDS = 1.0


class Housed(Protocol):
    """The part of a saver's interface that this module needs."""

    @property
    def home(self) -> Home:
        """The process and the event loop of the saver."""

    def close(self) -> Awaitable[None]:
        """Close the saver. On the saver's own loop, the caller must await the result."""


class _Closable(Protocol):
    def close(self) -> Awaitable[None]: ...


_Saver = TypeVar("_Saver", bound=Housed)


class Home:
    """The process and the event loop that a saver was opened on. Clones by `with_allowlist` share it.

    Attributes:
        loop: The event loop.
        process_id: The id of the process.
        own: The object that runs the loop, if the loop was started for this saver alone.
    """

    def __init__(self, saver: object) -> None:
        """Record the current process and event loop.

        Args:
            saver: The saver. A child process keeps it alive: see `_after_fork_in_child`.
        """
        self.loop = asyncio.get_running_loop()
        self.process_id = os.getpid()
        self.own: OwnLoop[Any] | None = _own_of.get(self.loop)
        self._saver = saver
        _homes.add(self)

    @property
    def reopen(self) -> Callable[[], object] | None:
        """A function that opens the saver again in a child, `None` if that is impossible.

        The function waits until the saver is open. If it is open already, the function does nothing.
        """
        return self.own.saver if self.own is not None and self.own.reopens else None

    @property
    def is_in_this_process(self) -> bool:
        """Whether the current process is the one that the saver was opened in."""
        return self.process_id == os.getpid()

    def check(self) -> None:
        """Check that an asynchronous call is made in the saver's process, on its loop.

        Raises:
            ForkedError: This is another process.
            WrongLoopError: This is another loop.
        """
        if self.process_id != os.getpid():
            raise self.forked()
        if asyncio.get_running_loop() is not self.loop:
            raise WrongLoopError(
                "The saver was opened on another event loop, and its connections belong there: open it on "
                "the loop that uses it, or call its synchronous methods from here."
            )

    def forked(self) -> ForkedError:
        """Return the error that tells what to do in a child process."""
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
    """Closes a saver when its event loop ends (as `asyncio.run` ends one), if it was not closed before.

    Without this, `asyncio.run` might never return: psycopg loses a cancellation that arrives while it
    connects, so a task of the saver's pool could run on.
    """

    def __init__(self, what: str, saver: _Closable) -> None:
        """Begin to wait for the end of the loop.

        Args:
            what: The name of the saver in the warning.
            saver: The saver. The reference is weak, so the saver may be collected before its loop ends.
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
        """Stop waiting, because the saver is being closed."""
        if not self._is_dismissed:
            self._is_dismissed = True
            self._task.cancel()

    async def _wait(self, forever: asyncio.Future[None]) -> None:
        try:
            await forever
        finally:
            saver = self._saver()
            if saver is not None and not self._is_dismissed and self._process_id == os.getpid():
                self._is_dismissed = True  # else closing would cancel this task, which waits for the closing
                await self._close_late(saver)

    async def _close_late(self, saver: _Closable) -> None:
        try:
            with suppress(TimeoutError):
                await _close(saver, _END_SECONDS)
        except asyncio.CancelledError:
            pass  # it comes from the pool's tasks, which end at the same time
        finally:
            warnings.warn(
                f"A {self._what} was not closed before its event loop ended: `await saver.close()`, or open "
                "it with `async with`. It was closed now.",
                ResourceWarning,
                stacklevel=1,
            )


class OwnLoop(Generic[_Saver]):
    """An event loop in a daemon thread, and the saver that works on it, for synchronous callers.

    If it is not closed before, the end of the process closes it, and calls under way are finished.
    """

    def __init__(self, open_: Callable[[], Coroutine[Any, Any, _Saver]], *, reopens: bool) -> None:
        """Take the function that opens the saver.

        Args:
            open_: Opens the saver on the loop that awaits it.
            reopens: Whether `open_` may be called again in a child. It may not if it uses the caller's
                connections.
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
        """Return the saver of this process. The first call in a process opens it.

        Raises:
            ForkedError: The saver was opened in another process, and cannot be opened again.
            SaverClosedError: The saver was closed, in this process or before the fork.
            GlasspointError: The saver cannot be opened now. A later call tries again.
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
        """Close the saver of this process, if there is one, and end the thread. May be called twice.

        Args:
            within_seconds: How long to wait at most. `None`: no limit.
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
        """Run a coroutine on the loop, and wait for its result."""
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
            # Otherwise the process ends, and asyncio could not start a thread to shut down its executor.

    def _end(self, within_seconds: float | None = None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(within_seconds)
        _own_of.pop(self._loop, None)
        _own_loops.discard(self)
        _kept.discard(self)

    # ---------------------------------------------------------------- around a fork

    def pause(self) -> None:
        """Stop the loop between two steps, where it holds no lock that a child would inherit."""
        if threading.current_thread() is self._thread:
            return
        paused, may_go_on = threading.Event(), threading.Event()

        def stand_still() -> None:
            paused.set()
            may_go_on.wait(_FORK_SECONDS)

        with suppress(RuntimeError):  # the loop has just ended
            self._loop.call_soon_threadsafe(stand_still)
            self._may_go_on = may_go_on
            paused.wait(_FORK_SECONDS)

    def go_on(self) -> None:
        """Let the loop go on after a fork."""
        if self._may_go_on is not None:
            self._may_go_on.set()
            self._may_go_on = None

    def renew_lock(self) -> None:
        """Replace the lock in a child, because a thread of the parent may have held it."""
        self._lock = threading.RLock()


def wait_for(work: Coroutine[Any, Any, _Result], loop: asyncio.AbstractEventLoop) -> _Result:
    """Run a coroutine on the loop of another thread, and wait for its result.

    Raises:
        SaverClosedError: The loop has ended.
        Exception: The error of the coroutine.
    """
    try:
        waiting = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # closed a moment ago
        work.close()
        raise SaverClosedError("The event loop that the saver was opened on has ended.") from None
    try:
        return waiting.result()
    except BaseException:
        waiting.cancel()  # if Ctrl-C has interrupted this wait, the call ends, too
        raise


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs on this thread, `None` if none runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(task.cancel)


async def _close(saver: _Closable, within_seconds: float | None) -> None:
    """Close a saver, and wait for the end of that for a limited time.

    Raises:
        TimeoutError: Closing takes longer. It continues, as it would continue after a cancellation.
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

# The open ones. A caller may keep only the saver, so this reference keeps the loop alive.
_kept: set[OwnLoop[Any]] = set()


def _close_all() -> None:
    give_up_at = monotonic() + _END_SECONDS
    for each in list(_kept):
        with suppress(Exception):  # a server may be away, and no caller is left to receive the error
            each.close(within_seconds=max(0.0, give_up_at - monotonic()))


def _before_fork() -> None:
    for each in list(_own_loops):
        each.pause()


def _after_fork_in_parent() -> None:
    for each in list(_own_loops):
        each.go_on()


def _after_fork_in_child() -> None:
    for home in list(_homes):
        # Nothing in it may ever be deleted, not even at the end of the child's interpreter. A deleted asyncio
        # stream closes itself, and removes its socket from the epoll instance that both processes share.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(home))
    _homes.clear()
    for each in list(_own_loops):
        each.renew_lock()
    _own_loops.clear()
    _kept.clear()


atexit.register(_close_all)
os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
