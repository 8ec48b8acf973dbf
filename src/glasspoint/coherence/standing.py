"""Inspects the entry of one scope for a command, without changing anything in Redis.

A saver reads by its scripts, which drop entries that must not be trusted. A command must change nothing. So
it loads no script, reads the entry with HGETALL, and judges it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from glasspoint.l1 import entry
from glasspoint.l1.cluster import reign_in, server_of
from glasspoint.l1.epoch import key_of
from glasspoint.model.identity import Identity
from glasspoint.redis.signature import Signer

if TYPE_CHECKING:
    from glasspoint.l2.identity import Look
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.scope import Scope

__all__ = ["Standing", "standing_of"]

Kind = Literal["image", "absent", "busy", "unusable", "no cache"]


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of one entry.

    Attributes:
        kind: `image`: a checkpoint. `absent`: nothing that a read could use. `busy`: a write is under way, or
            was cut off. `unusable`: an image that savers refuse. `no cache`: this Redis is not the cache of
            this database.
        image: The checkpoint, if there is one.
        bytes: The size of the entry's field names and values.
        ttl_seconds: The time until the entry expires, unless it is read; `None`: it has no expiry.
        why: Why the image is unusable, or why there is no cache.
        shard: The host and the port of the master that has the entry's slot; `None`: Redis is no cluster.
    """

    kind: Kind
    image: StoredCheckpoint | None = None
    bytes: int = 0
    ttl_seconds: float | None = None
    why: str = ""
    shard: str | None = None


async def standing_of(
    redis: Any, look: Look, scope: Scope, *, key_prefix: str, signing_key: bytes | None
) -> Standing:
    """Return the state of a scope's entry.

    Args:
        redis: A client of the service's Redis, made without `decode_responses`.
        look: The look at PostgreSQL, with the row of the cache.
        key_prefix: The name of the cache.
        signing_key: The service's signing key, if it has one in place of the key that PostgreSQL keeps.

    Raises:
        L1Error: This Redis cannot be a cache.
        Exception: The client's error, if Redis does not respond.
    """
    row = look.attachment
    if row is None:
        return Standing("no cache", why=f"no service has used a cache with the key prefix {key_prefix!r} yet")
    identity = Identity(look.database, row.generation, row.reign, signing_key or look.signing_key)
    key = key_of(scope, identity, key_prefix=key_prefix)
    async with (
        server_of(redis, scope, key_prefix=key_prefix, era=identity.era) as (server, reign, shard),
        server.pipeline(transaction=False) as pipe,
    ):
        pipe.hgetall(key)
        pipe.pttl(key)
        by_name, ttl_ms = await pipe.execute()
    if await reign_in(redis, key_prefix=key_prefix, known_as=row.reign) != row.reign:
        return Standing("no cache", why="the cache is attached to another Redis, or Redis was restarted")
    if look.changed or not row.is_marked or row.is_forgotten:
        return Standing("no cache", why="PostgreSQL has changed since: the next saver begins a new cache")
    fields: list[bytes] = [part for pair in by_name.items() for part in pair]
    size, ttl = sum(map(len, fields)), ttl_ms / 1000 if ttl_ms >= 0 else None
    is_past = reign is not None and by_name.get(b"reign") != reign.encode()
    if not is_past and any(name.startswith(b"i:") for name in by_name):
        return Standing("busy", bytes=size, ttl_seconds=ttl, shard=shard)
    if b"id" not in by_name or is_past:
        return Standing("absent", bytes=size, ttl_seconds=ttl, shard=shard)
    try:
        image = entry.decode_image(scope, fields, Signer(identity.secret, identity.generation))
    except entry.UnusableImageError as exc:
        return Standing("unusable", bytes=size, ttl_seconds=ttl, why=str(exc), shard=shard)
    return Standing("image", image, size, ttl, shard=shard)
