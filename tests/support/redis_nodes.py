"""Nodes of a Redis Cluster."""

from __future__ import annotations

from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import EmbeddedServerUnavailable

START_ATTEMPTS = 3


def start_node() -> EmbeddedRedis:
    """One node, not in a cluster yet. Its second port is 10000 above the first and may be taken: then
    another pair is tried."""
    for attempt in range(1, START_ATTEMPTS + 1):
        server = EmbeddedRedis()
        try:
            server.start("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")
        except EmbeddedServerUnavailable:
            server.close()
            if attempt == START_ATTEMPTS:
                raise
        else:
            return server
    raise AssertionError
