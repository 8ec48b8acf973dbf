"""What a process knows of the topology of a Redis Cluster, and whether it must be read again.

Open this file when a process goes on with former masters. A node that redirects a step, or does not respond,
puts the topology in doubt. It is read again before it is used again, once for all callers that wait.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from glasspoint.redis.topology import Address, Topology, View

__all__ = ["WatchedTopology"]


class WatchedTopology:
    """The topology of one cluster, as it was read last.

    Attributes:
        view: The topology; `None`: it was not read yet.
        ask_first: The node that knows more than the others, because it is not the one that redirected a step.
    """

    def __init__(
        self, topology: Topology, *, adopt: Callable[[View, View | None], object] = lambda view, before: None
    ) -> None:
        """Take what reads the topology. It is not closed here.

        Args:
            topology: Asks the nodes. The clients of nodes that are no masters any more are closed.
            adopt: Called with each view that was read, and the one before.
        """
        self.view: View | None = None
        self.ask_first: Address | None = None
        self._topology = topology
        self._adopt = adopt
        # A doubt that arises while nodes are asked is not settled by what they say.
        self._doubts, self._settled = 1, 0
        self._lock = asyncio.Lock()

    @property
    def is_stale(self) -> bool:
        """Whether the topology is in doubt, or was not read yet."""
        return self._settled < self._doubts

    def doubt(self, ask_first: Address | None = None) -> None:
        """Let the topology be read again.

        Args:
            ask_first: The node that knows more than the others; `None`: no such node is known.
        """
        self._doubts += 1
        self.ask_first = ask_first or self.ask_first

    async def known(self) -> View:
        """Return the topology. If it is in doubt, read it first.

        Raises:
            Exception: No node tells it: see `Topology.look`.
        """
        if self.view is None or self.is_stale:
            async with self._lock:
                if self.view is None or self.is_stale:
                    masters = () if self.view is None else self.view.masters
                    return await self._read(master.address for master in masters)
        return self.view

    async def read(self, first: Iterable[Address]) -> None:
        """Read the topology.

        Args:
            first: The nodes to ask before the others.

        Raises:
            Exception: No node tells it: see `Topology.look`.
        """
        async with self._lock:
            await self._read(first)

    async def _read(self, first: Iterable[Address]) -> View:
        doubts, asked = self._doubts, list(first)
        random.shuffle(asked)
        if self.ask_first is not None:
            asked.insert(0, self.ask_first)
            self.ask_first = None
        try:
            view = await self._topology.look(asked, epoch=0 if self.view is None else self.view.epoch)
        except BaseException:
            self.doubt()
            raise
        self._settled = doubts
        before, self.view = self.view, view
        self._adopt(view, before)
        await self._topology.close_others(master.address for master in view.masters)
        return view
