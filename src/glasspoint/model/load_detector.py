"""Whether calls go one by one, as they come, or together: `redis.auto_pipeline`, `l2.batching`.

By itself a call waits for nobody, and several run side by side; together they cost a fraction. So few go one
by one, and a crowd goes together, for as long as it is one and a moment longer: whoever comes between two of
its waves is not alone.
"""

from __future__ import annotations

from time import monotonic

__all__ = ["Crowd"]

_MOMENT_SECONDS = 0.1


class Crowd:
    """Tells calm from crowd."""

    def __init__(self, *, beyond: int) -> None:
        """Begin calm.

        Args:
            beyond: So many calls at once are none yet.
        """
        self._beyond = beyond
        self._lasts_until = 0.0

    def is_there(self, under_way: int) -> bool:
        """Whether there is one, now that so many calls are under way and one more has come."""
        now = monotonic()
        if under_way >= self._beyond:
            self._lasts_until = now + _MOMENT_SECONDS
        return now < self._lasts_until
