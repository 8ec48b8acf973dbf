"""LangGraph's own conformance suite passes, whatever Redis does.

The installed suite has no tests of the delta history: `test_delta.py` holds it against upstream and against
the walk that `BaseCheckpointSaver` defines. Its checkpoints are of format 1, and of those the cache keeps
only the ones without a parent (upstream completes the others with their parent's writes), so every mode runs
with checkpoints of format 4, which LangGraph writes today, and one Redis that works with both. Some of its
tests work in the namespaces "child:1" and "child:abc", as a run's subgraph has it: those calls are
`bypassed`.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from conformance_suite import ALL as CAPABILITIES
from conformance_suite import ONLY_TODAYS_FORMAT, check_conformance
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedRedis
from redis_nodes import Nodes
from states import counts, open_saver
from steps import settled

pytestmark = pytest.mark.usefixtures("checkpoint_format")


async def run_suite(
    capability: str, postgres_url: str, redis: Any, saver_class: type[CachedPostgresSaver]
) -> CollectorRegistry:
    """Run one capability's tests; what the saver counted meanwhile is in the registry."""
    registry = CollectorRegistry()
    telemetry = create_telemetry(registry=registry)
    await check_conformance(
        capability,
        saver_class.__name__,
        lambda: open_saver(postgres_url, redis, saver_class, telemetry=telemetry),
    )
    return registry


def l1_reads(registry: CollectorRegistry) -> dict[str, int]:
    return counts(registry, "glasspoint_l1_reads_total", "result")


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_with_the_cache_in_use(
    capability: str, database: str, redis_url: str, checkpoint_format: int
) -> None:
    registry = await run_suite(capability, database, redis_url, CachedPostgresSaver)
    assert l1_reads(registry).keys() <= {"hit", "miss", "absent", "historical", "bypassed"}
    if capability in ("put", "put_writes", "get_tuple"):
        assert l1_reads(registry)["hit"]
    if capability == "get_tuple" and checkpoint_format >= 4:
        assert l1_reads(registry)["historical"]


@ONLY_TODAYS_FORMAT
@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_on_a_cluster(capability: str, database: str, nodes: Nodes) -> None:
    registry = await run_suite(capability, database, nodes.client(), CachedPostgresSaver)
    assert l1_reads(registry).keys() <= {"hit", "miss", "absent", "historical", "bypassed"}
    if capability in ("put", "put_writes", "get_tuple"):
        assert l1_reads(registry)["hit"]


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_behind_a_sentinel(capability: str, database: str, behind_a_sentinel: str) -> None:
    registry = await run_suite(capability, database, behind_a_sentinel, CachedPostgresSaver)
    assert l1_reads(registry).keys() <= {"hit", "miss", "absent", "historical", "bypassed"}
    if capability in ("put", "put_writes", "get_tuple"):
        assert l1_reads(registry)["hit"]


class FlushedSaver(CachedPostgresSaver):
    """Whose Redis loses everything just before each read. No burst is under way then, and no fence stands."""

    flusher: Redis

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        await settled(self)
        await self.flusher.flushall()
        return await super().aget_tuple(config)


@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_with_the_cache_flushed_before_every_read(
    capability: str, database: str, redis_url: str, checkpoint_format: int
) -> None:
    async with Redis.from_url(redis_url) as FlushedSaver.flusher:
        registry = await run_suite(capability, database, redis_url, FlushedSaver)
    assert l1_reads(registry).keys() <= {"miss", "absent", "bypassed"}
    if capability != "list":  # which does not read single checkpoints
        assert l1_reads(registry)["miss"]
    if capability in ("put", "get_tuple") and checkpoint_format >= 4:  # the others read by id
        assert counts(registry, "glasspoint_l1_warm_ups_total", "result")["stored"]


@ONLY_TODAYS_FORMAT
@pytest.mark.parametrize("capability", CAPABILITIES)
async def test_conforms_with_redis_dead(capability: str, database: str, own_redis: EmbeddedRedis) -> None:
    own_redis.kill()
    registry = await run_suite(capability, database, own_redis.url, CachedPostgresSaver)
    assert l1_reads(registry).keys() <= {"unavailable", "bypassed"}
    if capability != "list":
        assert l1_reads(registry)["unavailable"]
    written = counts(registry, "glasspoint_write_through_total", "l1")
    assert written["journalled"]
    assert written.keys() <= {"journalled", "bypassed"}
