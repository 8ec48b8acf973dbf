"""Purging: deletes entries of older epochs from Redis, within minutes.

No process reads an entry of another reign, or of an older generation of its database. But such an entry stays
until it expires, and may hold data that a user has deleted meanwhile. So one process looks through the keys
once for each generation, a part in each round of the sweeper:

    L2      claim the purge: one process has it at a time; another may take it a minute after a process died
    Redis   SCAN for some milliseconds, and UNLINK the entries that no process trusts any more
    L2      at the end: record that the purge of this generation is done

Entries of other databases stay, because these may share this Redis and the prefix.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glasspoint.coherence.identity import IdentityKeeper
    from glasspoint.l1.cluster import L1
    from glasspoint.l2.identity import Identities

__all__ = ["Purger"]

_SECONDS_A_ROUND = 0.05
_ASK_EVERY_SECONDS = 30.0


class Purger:
    """Purges one cache."""

    def __init__(self, cache: L1, identities: Identities, keeper: IdentityKeeper) -> None:
        """Take the cache to purge.

        Args:
            cache: The cache.
            identities: Decide which process has the purge.
            keeper: Knows the identity in use.
        """
        self._cache = cache
        self._identities = identities
        self._keeper = keeper
        self._generation: str | None = None  # the generation for which this process has the purge
        self._cursor = 0
        self._ask_at = 0.0

    async def advance(self) -> None:
        """Do a part of the purge, if there is one to do.

        Raises:
            L1Error, psycopg.Error, GlasspointError: A server does not respond. The next call continues.
        """
        identity = self._keeper.identity
        if identity is None or self._keeper.is_purged:
            return
        generation = identity.generation
        if monotonic() >= self._ask_at or self._generation != generation:
            has_turn = await self._identities.take_turn(generation, continues=self._generation == generation)
            self._ask_at = monotonic() + _ASK_EVERY_SECONDS
            if has_turn and self._generation != generation:
                self._cursor = 0
            self._generation = generation if has_turn else None
        if self._generation is None:
            return
        until = monotonic() + _SECONDS_A_ROUND
        while monotonic() < until:
            self._cursor = await self._cache.purge_some(self._cursor)
            if not self._cursor:
                await self._identities.say_purged(generation)
                self._generation = None
                return
