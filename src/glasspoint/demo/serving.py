"""Runs the traffic as a service: for the compose stack, or to have a process to look at.

It behaves as an application would: it takes all settings from the environment, uses the fallback chain,
serves telemetry, logs to standard error, and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from glasspoint.demo.telemetry import observe
from glasspoint.demo.traffic import Traffic
from glasspoint.fallback.factory import get_checkpointer
from glasspoint.telemetry.http import serve_telemetry

if TYPE_CHECKING:
    from glasspoint.settings import Settings

__all__ = ["serve_traffic"]

_log = logging.getLogger("glasspoint.traffic")

_SAY_EVERY_SECONDS = 30.0


def serve_traffic(settings: Settings, *, host: str, port: int, people: int, live: bool | None = None) -> None:
    """Keep conversations going until Ctrl-C or SIGTERM, and then remove them.

    Args:
        settings: The settings for `get_checkpointer`.
        host: The address of `/metrics`, `/healthz` and `/readyz`.
        port: Their port; 0 for any free port.
        people: How many people talk at once; each makes about one turn a second.
        live: Whether to serve the live page, too; by default as `GLASSPOINT_LIVE` says.

    Raises:
        GlasspointError: A setting is wrong, no tier is available, or the server cannot listen on the address.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "opentelemetry"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with (
        observe(lost=lambda reason: _log.warning("spans could not be sent: %s", reason)) as observed,
        serve_telemetry(
            port, host=host, registry=observed.registry, ready_tiers=settings.ready_tiers, live=live
        ) as server,
        suppress(KeyboardInterrupt),
    ):
        _log.info("%d people talk; metrics: %s/metrics", people, server.url)

        async def talk() -> None:
            async with get_checkpointer(settings, telemetry=observed.telemetry) as saver:
                traffic = Traffic(observed, people=people)
                traffic.move_to(saver)
                try:
                    async with asyncio.TaskGroup() as together:
                        together.create_task(traffic.run())
                        together.create_task(_say_how_it_goes(traffic))
                finally:
                    with suppress(Exception):  # the servers may be gone
                        await traffic.remove_conversations()

        asyncio.run(talk())


async def _say_how_it_goes(traffic: Traffic) -> None:
    before = 0
    while True:
        await asyncio.sleep(_SAY_EVERY_SECONDS)
        tally = traffic.tally
        _log.info(
            "%d turns, %.1f/s; %d failed%s",
            tally.turns,
            (tally.turns - before) / _SAY_EVERY_SECONDS,
            tally.failed,
            f", last: {tally.last_error}" if tally.last_error else "",
        )
        before = tally.turns
