"""Leads a worker through its own lines to the servers that a Redis Cluster or sentinels name.

A URL names the lines. But a cluster and sentinels tell a process the addresses of servers, which would lead
it past its lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis, RedisCluster

from glasspoint.redis import client, sentinels

__all__ = ["use_lines"]


def use_lines(lines: Mapping[int, int]) -> None:
    """Make this process reach servers through its lines.

    Args:
        lines: The port of a server -> the port of the line to it.
    """

    class OnLines(RedisCluster):
        """A client that maps each address that the cluster names."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options, address_remap=lambda to: (to[0], lines.get(int(to[1]), int(to[1]))))

    services_of = sentinels.services_of

    async def services_on_lines(sentinel: Redis) -> dict[str, dict[str, Any]]:
        services = await services_of(sentinel)
        for state in services.values():
            state["port"] = lines.get(int(state["port"]), state["port"])
        return services

    client.RedisCluster = OnLines  # type: ignore[assignment, attr-defined]
    sentinels.services_of = services_on_lines
