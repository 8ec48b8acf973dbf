"""A Redis that follows another one, and one that is promoted."""

from __future__ import annotations

from redis.asyncio import Redis

from glasspoint.embedded import EmbeddedRedis
from steps import until

__all__ = ["follow", "promote"]


async def follow(server: EmbeddedRedis, leader: EmbeddedRedis) -> None:
    """Make a server a replica of another one, and wait until it has copied everything."""
    async with Redis.from_url(server.url) as redis:
        await redis.replicaof("127.0.0.1", leader.port)

        async def in_step() -> bool:
            here = await redis.info("replication")
            return here["master_link_status"] == "up" and not here["master_sync_in_progress"]

        await until(in_step)


async def promote(server: EmbeddedRedis) -> None:
    """Make a replica a master."""
    async with Redis.from_url(server.url) as redis:
        await redis.replicaof("NO", "ONE")
