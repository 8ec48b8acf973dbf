"""The load detector: decides whether calls are sent one by one or in batches.

`redis.auto_pipeline` and `l2.batching` use it. A call that is sent alone waits for no other call. Calls in a
batch cost only a fraction. So few concurrent calls are sent one by one, and many are batched. Batching
continues for 100 ms after the last time of high load, so that late calls of a burst are batched, too.
"""

from __future__ import annotations

from time import monotonic

__all__ = ["LoadDetector"]

_MOMENT_SECONDS = 0.1


class LoadDetector:
    """Tells whether many calls are under way at once (a crowd)."""

    def __init__(self, *, beyond: int) -> None:
        """Begin without a crowd.

        Args:
            beyond: The largest number of concurrent calls that is not a crowd.
        """
        self._beyond = beyond
        self._lasts_until = 0.0

    def is_there(self, under_way: int) -> bool:
        """Tell whether there is a crowd, when a new call arrives.

        Args:
            under_way: The number of calls under way, without the new one.
        """
        now = monotonic()
        if under_way >= self._beyond:
            self._lasts_until = now + _MOMENT_SECONDS
        return now < self._lasts_until
