"""Fallback chains as tests open them: soon up again, and patient with a busy machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from langgraph.checkpoint.serde.base import SerializerProtocol
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from glasspoint import (
    FallbackSaver,
    Settings,
    Telemetry,
    create_telemetry,
    get_checkpointer,
)
from glasspoint.errors import GlasspointError
from passwords import PASSWORD
from states import config_of
from steps import another_process


def settings_of(postgres_url: str, redis_url: str, **more: Any) -> Settings:
    # A machine that is busy for a moment is no outage of Redis.
    more = {"probe_interval": 0.1, "redis_timeout": 5.0, "l1_timeout": 5.0, **more}
    return Settings(postgres_url=SecretStr(postgres_url), redis_url=SecretStr(redis_url), **more)


@asynccontextmanager
async def chain(
    postgres_url: str,
    redis_url: str,
    registry: CollectorRegistry | None = None,
    *,
    serde: SerializerProtocol | None = None,
    telemetry: Telemetry | None = None,
    **more: Any,
) -> AsyncIterator[FallbackSaver]:
    telemetry = telemetry or create_telemetry(registry=registry or CollectorRegistry())
    settings = settings_of(postgres_url, redis_url, **more)
    another_process()
    async with get_checkpointer(settings, serde=serde, telemetry=telemetry) as saver:
        yield saver


async def reached(saver: FallbackSaver) -> bool:
    """Whether a chain's PostgreSQL answers its calls."""
    with suppress(GlasspointError):
        return (await saver.aget_tuple(config_of("nobody"))) is None
    return False


NOWHERE = f"postgresql://me:{PASSWORD}@127.0.0.1:1"
