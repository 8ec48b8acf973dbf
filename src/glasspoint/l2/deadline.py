"""A deadline that psycopg keeps, whatever state the server is in."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["within"]

_GRACE_SECONDS = 0.5


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Cancel what runs in this block after so many seconds, and half a second later once more.

    A statement that is cancelled asks the server to end it, and waits for the answer: up to ten seconds when
    the server is frozen, or behind a firewall that swallows everything. The second time psycopg closes the
    connection and returns at once.

    Raises:
        TimeoutError: The time is up.
    """
    async with asyncio.timeout(seconds + _GRACE_SECONDS), asyncio.timeout(seconds):
        yield
