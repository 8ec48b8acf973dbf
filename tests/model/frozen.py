"""An event loop without I/O and without time, so that nothing happens by chance."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")


class _NoIO(selectors.SelectSelector):
    """Nothing ever comes from outside; who waits for it would wait for ever."""

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout == 0, "the loop waits for something that no gate stands in front of"
        return []


class _Never(asyncio.TimerHandle):
    """A timer that does not fire, so that none has to be kept."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(0.0, lambda: None, (), loop)

    def cancel(self) -> None:
        pass


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop without I/O and without time: no timeout ever fires.

    An exploration spends its time here, so it does no more than that: it neither polls nor keeps timers.
    """

    def __init__(self) -> None:
        super().__init__(_NoIO())
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)
        self._never = _Never(self)

    def time(self) -> float:
        return 0.0

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if when <= 0.0:
            self.call_soon(callback, *args, context=context)
        return self._never

    def drain(self) -> None:
        """Run until everybody waits at a gate."""
        ready = self._ready  # type: ignore[attr-defined]
        asyncio._set_running_loop(self)
        try:
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            asyncio._set_running_loop(None)

    def complete(self, work: Awaitable[Any]) -> Any:
        """Run what meets no closed gate."""
        task = asyncio.ensure_future(work, loop=self)
        self.drain()
        return task.result()

    def _make_task(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, **options)
        self.tasks.append(task)
        return task


class NoSleep:
    """For `asyncio` in `cache` and `retrying`: a pause costs nothing, the explorer says what is next."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, _seconds: float) -> None:
        await asyncio.sleep(0)
