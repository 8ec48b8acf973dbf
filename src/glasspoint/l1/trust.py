"""Whether L1 may be used. The cache makes it suspect; the sweeper makes it trusted again.

Open this file when reads go to PostgreSQL although Redis responds. L1 is trusted if nothing has gone wrong
since the journal was swept. A sweep takes time, and something may go wrong meanwhile. So the sweep names the
number of suspicions that it began with, and L1 becomes trusted only if no other one has come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["TrustState"]


class TrustState:
    """Whether the L1 of one saver is trusted or suspect. The cache and the sweeper share it.

    Attributes:
        suspicions: How often L1 has become suspect.
    """

    def __init__(self) -> None:
        """Begin with a suspect L1, and without a sweeper: reads then go to L2."""
        self.suspicions = 0
        self._trusted_at: int | None = None
        self._revalidate: Callable[[], Awaitable[bool]] | None = None
        self._look_soon: Callable[[], object] | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether L1 may be used: nothing has gone wrong since the journal was swept."""
        return self._trusted_at == self.suspicions

    def suspect(self) -> None:
        """Make L1 suspect until the journal is swept."""
        self.suspicions += 1

    def trust(self, suspicions: int) -> bool:
        """Trust L1 again after a sweep of the journal.

        Args:
            suspicions: The value of `suspicions` when the sweep began.

        Returns:
            Whether L1 is trusted now. It is not, if something went wrong during the sweep.
        """
        self._trusted_at = suspicions
        return self.is_trusted

    def be_revalidated_by(
        self, revalidate: Callable[[], Awaitable[bool]], *, look_soon: Callable[[], object]
    ) -> None:
        """Receive the sweeper.

        Args:
            revalidate: Sweeps the journal, and returns whether L1 is trusted then.
            look_soon: Makes a sweep begin at once, because something has changed.
        """
        self._revalidate, self._look_soon = revalidate, look_soon

    async def revalidate(self) -> bool:
        """Sweep the journal for a read that waits. Return whether L1 is trusted then."""
        return self._revalidate is None or await self._revalidate()

    def look_soon(self) -> None:
        """Make a sweep begin at once."""
        if self._look_soon is not None:
            self._look_soon()
