"""MemorySaver: the full history in this process alone, as the last tier of the fallback chain.

Two things differ from LangGraph's `InMemorySaver`: it keeps the same bytes as the other tiers, so that it can
be drained into them; and it reads and lists as `AsyncPostgresSaver` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from glasspoint.history.in_memory import MemoryHistory
from glasspoint.history.saver import HistorySaver
from glasspoint.model.option_types import Serde, checks_options
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.events import SaverStatus, Telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langgraph.checkpoint.serde.base import SerializerProtocol

    from glasspoint.history.interface import Holding

__all__ = ["MemoryOptions", "MemorySaver"]


class MemoryOptions(TypedDict, total=False):
    """Keyword arguments of `MemorySaver`, which its constructor explains."""

    serde: Serde | None
    telemetry: Telemetry | None
    history: MemoryHistory | None


class MemorySaver(HistorySaver):
    """A LangGraph checkpointer in the memory of this process. Every call is traced and counted.

    It returns what `AsyncPostgresSaver` returns after the same calls. The checkpoints end with the process.

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
        """Make an empty saver. An event loop must be running; nothing needs to be awaited.

        Args:
            serde: Serialises the values. By default, the serializer of LangGraph's savers.
            telemetry: Receives all events: see `create_telemetry`. By default, metrics go to the process's
                Prometheus registry, and spans to its OpenTelemetry provider.
            history: The history to use, for a fallback chain: all chains of a process share one, even if they
                work on several event loops. By default, the saver has a history of its own.
        """
        status = SaverStatus(pool=None, redis=None, tier="memory")
        self._memory = MemoryHistory() if history is None else history
        super().__init__(self._memory, status, telemetry or create_telemetry(), serde)

    async def ping(self) -> None:
        """Check that the saver is open. Nothing else can be wrong with it."""
        self._lifetime.check_open()

    @property
    def lists(self) -> Sequence[str]:
        """The names of the lists of threads: there is only one."""
        return ("",)

    def list_of(self, thread_id: str) -> str:
        """Return the name of the list that names a thread."""
        return ""

    async def holds(self, thread_id: str | None) -> Holding:
        """Return which threads stand here, for a chain that works in the tier above.

        Args:
            thread_id: The thread to look for; `None`: any.
        """
        with self._lifetime.call():
            return await self._memory.holds(thread_id)
