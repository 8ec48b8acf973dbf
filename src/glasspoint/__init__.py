"""Glasspoint: a LangGraph checkpointer that you can see through.

PostgreSQL keeps every conversation, Redis makes reading it fast, and each step of both is traced and counted.
"""

from glasspoint._version import __version__
from glasspoint.fallback.factory import (
    create_cached_postgres_checkpointer,
    create_redis_checkpointer,
    get_checkpointer,
)
from glasspoint.fallback.saver import FallbackSaver
from glasspoint.migration.copying import MigrationReport, migrate
from glasspoint.model.threads import ThreadSummary
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.savers.memory_saver import MemorySaver
from glasspoint.savers.redis_saver import RedisSaver
from glasspoint.settings import Settings
from glasspoint.telemetry import Telemetry, conversation_turn, create_telemetry
from glasspoint.telemetry.configure import configure_telemetry

__all__ = [
    "CachedPostgresSaver",
    "FallbackSaver",
    "MemorySaver",
    "MigrationReport",
    "RedisSaver",
    "Settings",
    "Telemetry",
    "ThreadSummary",
    "__version__",
    "configure_telemetry",
    "conversation_turn",
    "create_cached_postgres_checkpointer",
    "create_redis_checkpointer",
    "create_telemetry",
    "get_checkpointer",
    "migrate",
]
