"""What stands in Redis of one scope, for a command that looks: nothing is changed there, no script is loaded.

A saver asks by its scripts, which drop what it must not believe. A command must leave all as it finds it, so
it fetches the entry with HGETALL, and judges it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from glasspoint.l1 import entry
from glasspoint.l1.epoch import key_of, reign_of
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
    """What stands there.

    Attributes:
        kind: `image`: a checkpoint; `absent`: nothing that a read could use; `busy`: a write is under way, or
            one was, and nobody has seen its end; `unusable`: an image that savers refuse; `no cache`: this
            Redis is not the cache of this database.
        image: The checkpoint, if there is one.
        bytes: Of the entry's fields and values.
        ttl_seconds: After so long without being read, Redis forgets it.
        why: Why it is unusable, or why there is no cache.
    """

    kind: Kind
    image: StoredCheckpoint | None = None
    bytes: int = 0
    ttl_seconds: float | None = None
    why: str = ""


async def standing_of(
    redis: Any, look: Look, scope: Scope, *, key_prefix: str, signing_key: bytes | None
) -> Standing:
    """Look at a scope's entry.

    Args:
        redis: A `redis.asyncio.Redis` of the service's Redis, made without `decode_responses`.
        look: What PostgreSQL says of the cache.
        scope: Whose entry.
        key_prefix: The name of the cache.
        signing_key: The service's, if it has one in place of the key that PostgreSQL keeps.

    Raises:
        Exception: What the client raises if Redis does not answer; `L1Error` if it cannot be a cache.
    """
    row = look.attachment
    if row is None:
        return Standing("no cache", why=f"no service has used a cache with the key prefix {key_prefix!r} yet")
    identity = Identity(look.database, row.generation, row.reign, signing_key or look.signing_key)
    key = key_of(scope, identity, key_prefix=key_prefix)
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hgetall(key)
        pipe.pttl(key)
        by_name, ttl_ms = await pipe.execute()
    if await reign_of(redis) != row.reign:
        return Standing("no cache", why="the cache is attached to another Redis, or Redis was restarted")
    if look.changed or not row.is_marked or row.is_forgotten:
        return Standing("no cache", why="PostgreSQL has changed since: the next saver begins a new cache")
    fields: list[bytes] = [part for pair in by_name.items() for part in pair]
    size, ttl = sum(map(len, fields)), ttl_ms / 1000 if ttl_ms >= 0 else None
    if any(name.startswith(b"i:") for name in by_name):
        return Standing("busy", bytes=size, ttl_seconds=ttl)
    if b"id" not in by_name:
        return Standing("absent", bytes=size, ttl_seconds=ttl)
    try:
        image = entry.decode_image(scope, fields, Signer(identity.secret, identity.generation))
    except entry.UnusableImageError as exc:
        return Standing("unusable", bytes=size, ttl_seconds=ttl, why=str(exc))
    return Standing("image", image, size, ttl)
