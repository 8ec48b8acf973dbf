"""MemorySaver: the full history in this process alone, as the last tier of the fallback chain.

Unlike LangGraph's `InMemorySaver` it keeps what the other tiers keep, bytes and all, so that it can be
drained into them, and reads and lists as `AsyncPostgresSaver` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from glasspoint.history.in_memory import MemoryHistory
from glasspoint.history.saver import HistorySaver
from glasspoint.model.option_types import Serde, checks_options
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import Telemetry, Vitals

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.history.interface import Holding

__all__ = ["MemoryOptions", "MemorySaver"]


class MemoryOptions(TypedDict, total=False):
    """Keyword arguments of `MemorySaver`: its constructor says what each means."""

    serde: Serde | None
    telemetry: Telemetry | None
    history: MemoryHistory | None


class MemorySaver(HistorySaver):
    """LangGraph's checkpoints in memory, every call traced and counted. They end with the process.

    What it returns equals what `AsyncPostgresSaver` returns after the same calls.

    Example:
        ```python
        async with MemorySaver() as saver:
            graph = builder.compile(checkpointer=saver)
            await graph.ainvoke(inputs, {"configurable": {"thread_id": "42"}})
        ```
    """

    @checks_options(MemoryOptions)
    def __init__(
        self,
        *,
        serde: SerializerProtocol | None = None,
        telemetry: Telemetry | None = None,
        history: MemoryHistory | None = None,
    ) -> None:
        """Begin with nothing. On an event loop; there is nothing to wait for.

        Args:
            serde: How values are serialised; by default as LangGraph's savers do it.
            telemetry: Who is told of everything, see `create_telemetry`; by default the process's Prometheus
                registry and OpenTelemetry provider.
            history: What to go on with, for a fallback chain: the chains of a process share one, on whatever
                event loop each of them works. By default the saver has one of its own.
        """
        vitals = Vitals(pool=None, redis=None, tier="memory")
        self._memory = MemoryHistory() if history is None else history
        super().__init__(self._memory, vitals, telemetry or create_telemetry(), serde)

    async def ping(self) -> None:
        """Check that it works: it always does, until it is closed."""
        self._lifetime.check_open()

    async def holds(self, thread_id: str) -> Holding:
        """Return what a chain that works in the tier above must know.

        Args:
            thread_id: The thread to look for.
        """
        with self._lifetime.call():
            return await self._memory.holds(thread_id)
