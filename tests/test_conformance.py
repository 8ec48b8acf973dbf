"""LangGraph's own conformance suite passes, whatever Redis does.

The installed suite has no tests of the delta history: `test_delta.py` holds it against upstream and against
the walk that `BaseCheckpointSaver` defines. Its checkpoints are of format 1, and of those the cache keeps
only the ones without a parent (upstream completes the others with their parent's writes), so every mode also
runs with checkpoints of format 4, which LangGraph writes today.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointTuple
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES
from langgraph.checkpoint.conformance.test_utils import generate_checkpoint
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.demo.embedded import EmbeddedRedis
from states import counts, open_saver

CAPABILITIES = sorted(capability.value for capability in ALL_CAPABILITIES)
SUITE = "langgraph.checkpoint.conformance"
ASKS_FOR_FORMAT_1 = "test_get_tuple_checkpoint_fields: Expected v=1, got 4"


@pytest.fixture(params=[1, 4], ids=["v1", "v4"], autouse=True)
def checkpoint_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The format of the suite's checkpoints."""

    def generate(**fields: Any) -> Checkpoint:
        return {**generate_checkpoint(**fields), "v": request.param}

    for module in ("test_utils", *(f"spec.test_{capability}" for capability in CAPABILITIES)):
        monkeypatch.setattr(import_module(f"{SUITE}.{module}"), "generate_checkpoint", generate)
    return request.param


async def run_suite(
    capability: str, postgres_url: str, redis_url: str, saver_class: type[CachedPostgresSaver]
) -> CollectorRegistry:
    """Run one capability's tests; what the saver counted meanwhile is in the registry."""
    registry = CollectorRegistry()

    @checkpointer_test(name=saver_class.__name__)
    async def create() -> AsyncIterator[BaseCheckpointSaver]:
        telemetry = create_telemetry(registry=registry)
        async with open_saver(postgres_url, redis_url, saver_class, telemetry=telemetry) as saver:
            yield saver

    report = await validate(create, capabilities={capability})
    result = report.results[capability]
    failures = [text for text in result.failures if not text.startswith(ASKS_FOR_FORMAT_1)]
    assert not failures, "\n".join(failures)
    assert result.tests_passed
    return registry


def l1_reads(registry: CollectorRegistry) -> dict[str, int]:
    return counts(registry, "glasspoint_l1_reads_total", "result")


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_with_the_cache_in_use(
    capability: str, database: str, redis_url: str, checkpoint_format: int
) -> None:
    registry = await run_suite(capability, database, redis_url, CachedPostgresSaver)
    assert l1_reads(registry).keys() <= {"hit", "miss", "historical"}
    if capability in ("put", "put_writes", "get_tuple"):
        assert l1_reads(registry)["hit"]
    if capability == "get_tuple" and checkpoint_format >= 4:
        assert l1_reads(registry)["historical"]


class FlushedSaver(CachedPostgresSaver):
    """Whose Redis loses everything just before each read."""

    flusher: Redis

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        await self.flusher.flushall()
        return await super().aget_tuple(config)


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_with_the_cache_flushed_before_every_read(
    capability: str, database: str, redis_url: str, checkpoint_format: int
) -> None:
    async with Redis.from_url(redis_url) as FlushedSaver.flusher:
        registry = await run_suite(capability, database, redis_url, FlushedSaver)
    assert l1_reads(registry).keys() <= {"miss"}
    if capability != "list":  # which does not read single checkpoints
        assert l1_reads(registry)["miss"]
    if capability in ("put", "get_tuple") and checkpoint_format >= 4:  # the others read by id
        assert counts(registry, "glasspoint_l1_warm_ups_total", "result")["stored"]


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_with_redis_dead(capability: str, database: str, own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    registry = await run_suite(capability, database, own_redis.url, CachedPostgresSaver)
    assert l1_reads(registry).keys() <= {"unavailable"}
    if capability != "list":
        assert l1_reads(registry)["unavailable"]
    assert counts(registry, "glasspoint_write_through_total", "l1").keys() == {"error"}
