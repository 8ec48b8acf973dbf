"""Purging: entries that older epochs have left in Redis are deleted, within minutes.

No process reads an entry of another reign, or of an older generation of its database. But the entry would
stay until its time to live is over, and with it what users have deleted meanwhile. So one of the processes
looks through the keys once in each epoch, a little in each round of the sweeper:

    L2      whose turn is it? one process at a time; another one goes on a minute after it has died
    Redis   SCAN for a few milliseconds, UNLINK what no process believes any more
    L2      at the end: it is done for this generation

Entries of other databases, which may share this Redis and the prefix, stay.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glasspoint.coherence.identity import IdentityKeeper
    from glasspoint.l1.cache import Cache
    from glasspoint.l2.identity import Identities

__all__ = ["Purger"]

_SECONDS_A_ROUND = 0.05
_ASK_EVERY_SECONDS = 30.0


class Purger:
    """Looks through the keys of one cache."""

    def __init__(self, cache: Cache, identities: Identities, keeper: IdentityKeeper) -> None:
        """Take the Redis that is looked through.

        Args:
            cache: Whose keys they are.
            identities: Say whose turn it is.
            keeper: Knows the identity in use.
        """
        self._cache = cache
        self._identities = identities
        self._keeper = keeper
        self._generation: str | None = None  # for which this process has the turn
        self._cursor = 0
        self._ask_at = 0.0

    async def advance(self) -> None:
        """Do a part of the work, if there is any.

        Raises:
            L1Error, psycopg.Error, GlasspointError: A server does not answer; the next call goes on.
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
