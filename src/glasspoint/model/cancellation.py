"""Cancellation: it is not lost, and it leaves no work half done.

Open this file when a call that was cancelled goes on, or when a cancelled close leaves a connection open.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from typing import Any

    from glasspoint.model.generics import ResultT

__all__ = ["heeding_cancellation", "run_to_the_end"]


@contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Raise `CancelledError` at the end of a block, if a cancellation was requested in it and got lost.

    redis-py and psycopg wait with `asyncio.wait_for`. Before Python 3.12, this function loses a cancellation
    that comes as the wait ends.
    """
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    yield
    if task and task.cancelling() > cancels:
        raise asyncio.CancelledError


async def run_to_the_end(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run work that must not be left half done, such as closing connections.

    The work also ends if the caller is cancelled meanwhile, even several times.

    Args:
        work: A coroutine that ends by itself: all its waits have timeouts.

    Raises:
        CancelledError: The caller was cancelled meanwhile; the work has ended.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        raise
