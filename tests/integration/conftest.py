"""A Redis Cluster, for the tests that ask for one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from redis_nodes import Nodes, running_cluster


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
