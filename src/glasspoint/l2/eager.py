"""Do at once, in the caller's own task, what must run to its end and hardly ever has to wait.

To give a connection back takes no time, unless others hold the lock of the pool. A caller who is cancelled
while it waits for the lock would take the connection along. So the waiting, and only that, is done in a task.
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
        work: One that does not care which task it runs in: `asyncio.timeout` would end the wrong one.

    Returns:
        The rest, to be run in a task; `None`: it has ended.
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
            answer = yield waits_for
        except BaseException as exc:
            error: BaseException | None = exc
        else:
            error = None
        try:
            waits_for = work.send(answer) if error is None else work.throw(error)
        except StopIteration:
            return
