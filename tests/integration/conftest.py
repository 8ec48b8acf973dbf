"""A Redis Cluster and a sentinel, for the tests that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from glasspoint.embedded import EmbeddedRedis
from redis_nodes import Nodes, running_cluster
from sentinels import SERVICE, Sentinel, sentinel_url


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Nodes]:
    with running_cluster() as nodes:
        yield nodes


@pytest.fixture
def nodes(_cluster: Nodes) -> Nodes:
    """The session's cluster, whole and empty: three masters with a replica each."""
    _cluster.heal()
    _cluster.flush()
    return _cluster


@pytest.fixture(scope="session")
def _sentinel(redis_server: EmbeddedRedis) -> Iterator[Sentinel]:
    with Sentinel(f"sentinel monitor {SERVICE} 127.0.0.1 {redis_server.port} 1") as sentinel:
        yield sentinel


@pytest.fixture
def behind_a_sentinel(_sentinel: Sentinel, redis_url: str) -> str:
    """The URL of the session's Redis, empty, by way of a sentinel. What breaks sentinels makes its own."""
    return sentinel_url(_sentinel)
