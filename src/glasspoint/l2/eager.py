"""Runs a coroutine in the caller's own task up to where it has to wait; the rest is for another task.

Giving a connection back takes no time, unless another caller holds the lock of the pool. A caller that is
cancelled while it waits for this lock would lose the connection. So another task does the waiting, and only
the waiting.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

__all__ = ["start"]


def start(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Run a coroutine up to where it has to wait.

    Args:
        work: It must work in any task. (`asyncio.timeout` in it would cancel the wrong task.)

    Returns:
        The rest, to be run in a task. `None`: the coroutine has ended.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return _finish(work, waits_for)


async def _finish(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _rest(work, waits_for)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            result = yield waits_for
        except BaseException as exc:
            error: BaseException | None = exc
        else:
            error = None
        try:
            waits_for = work.send(result) if error is None else work.throw(error)
        except StopIteration:
            return
