"""The types of the connections and pools that this package works on."""

from __future__ import annotations

from typing import TypeAlias

import psycopg
from psycopg.rows import DictRow
from psycopg_pool import AsyncConnectionPool

__all__ = ["Connection", "Pool"]

Connection: TypeAlias = psycopg.AsyncConnection[DictRow]
"""A connection whose rows are dictionaries, as LangGraph's saver wants them."""

Pool: TypeAlias = AsyncConnectionPool[Connection]
"""A pool of such connections."""
