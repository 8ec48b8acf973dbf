"""Checks whether a command may open a cache, or would take it away from the service that uses it.

When a saver opens, it attaches the cache to its own Redis. So a command with another `REDIS_URL` than the
service's would detach the service. And a command with a mistyped `key_prefix` would create another cache. So
a command calls this check first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glasspoint.l1.cluster import reign_in
from glasspoint.l2.identity import caches_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glasspoint.l2.identity import CacheRow

__all__ = ["why_not_to_attach"]

# A cache that was used more recently is in use: a service records the use every minute.
_IN_USE_SECONDS = 150.0

# How long the triggers record foreign writes for a cache after its last use.
_KNOWN_SECONDS = 3600.0


async def why_not_to_attach(conn: Any, redis: Any, *, key_prefix: str) -> str:
    """Return why a command must not open the cache, and what to do; `""` if it may.

    Args:
        conn: A `psycopg.AsyncConnection` in autocommit mode.
        redis: The client of the command's settings.
        key_prefix: The name of the cache.

    Raises:
        psycopg.Error, redis.exceptions.RedisError, L1Error: A server does not respond, or refuses.
    """
    rows = await caches_of(conn)
    own = next((row.reign for row in rows if row.cache == key_prefix), None)
    return _why_not(rows, await reign_in(redis, key_prefix=key_prefix, known_as=own), key_prefix)


def _why_not(rows: Sequence[CacheRow], reign: str, key_prefix: str) -> str:
    own = next((row for row in rows if row.cache == key_prefix), None)
    if own is not None:
        if own.reign == reign or own.unseen_seconds > _IN_USE_SECONDS:
            return ""
        return (
            f"a service used the cache {key_prefix!r} {own.unseen_seconds:.0f} s ago, with another Redis "
            "than this one: to use it here would take it away from the service. Give this command the "
            "service's REDIS_URL. If Redis was replaced just now, repeat in a minute."
        )
    others = sorted(row.cache for row in rows if row.unseen_seconds < _KNOWN_SECONDS)
    if not others:
        return ""
    names = ", ".join(map(repr, others))
    return (
        f"this database has no cache with the key prefix {key_prefix!r}, but {names}. Give this command the "
        "service's CHECKPOINT_KEY_PREFIX (--key-prefix). If this is a new service, start it once first."
    )
