"""What langgraph.json names: LangGraph Server enters `checkpointer` once for each of its event loops.

The server loads this file once, before it opens anything, and sets up no OpenTelemetry itself. So tracing is
set up here; it sends spans if `OTEL_EXPORTER_OTLP_ENDPOINT` says where to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from glasspoint import FallbackSaver, configure_telemetry, get_checkpointer

telemetry = configure_telemetry(service_name="agent")


@asynccontextmanager
async def checkpointer() -> AsyncIterator[FallbackSaver]:
    """Provide a saver as the environment says, and send the last spans when the server stops."""
    async with get_checkpointer() as saver:
        yield saver
    # A server that is told to stop ends by that signal, which leaves nothing for the end of the process.
    await asyncio.to_thread(telemetry.tracer_provider.force_flush, 3000)
