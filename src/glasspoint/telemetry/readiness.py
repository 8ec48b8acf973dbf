"""`/readyz`: in which tier does each saver work, since when, and how are its servers, asked just now."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from glasspoint.telemetry.metrics import Families

if TYPE_CHECKING:
    from collections.abc import Collection

    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.events import Vitals

__all__ = ["READY_TIERS", "readiness"]

READY_TIERS = ("cached",)
"""In which tiers a process is ready, unless told otherwise."""

# A kubelet waits for one second by default.
_CHECK_SECONDS = 0.8


async def readiness(registry: CollectorRegistry, ready_tiers: Collection[str]) -> dict[str, Any]:
    """Ask every open saver of a registry how it is.

    Returns:
        `ready`: whether there are savers, and all work in one of `ready_tiers`. `savers`: for each its name,
        its tier, since when it works there, and what its servers answered: `l1`, `l2` or `redis` as `ok` or
        `unavailable`, and `check` as `no answer` if its event loop had no time to look; `undrained`, the
        lower tiers that may hold what is not here yet, if there are any.
    """
    families = Families.find(registry)
    savers = families.savers.active() if families is not None else []
    found = await asyncio.gather(*(_look_at(name, vitals) for name, vitals in savers))
    return {
        "ready": bool(found) and all(each["tier"] in ready_tiers for each in found),
        "savers": found,
    }


async def _look_at(name: str, vitals: Vitals) -> dict[str, Any]:
    since = datetime.fromtimestamp(vitals.since, UTC).isoformat(timespec="seconds")
    about: dict[str, Any] = {"saver": name, "tier": vitals.tier, "since": since}
    if vitals.undrained:
        about["undrained"] = list(vitals.undrained)
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            return about | await _check(vitals)
    except Exception:
        return about | {"check": "no answer"}


async def _check(vitals: Vitals) -> dict[str, Any]:
    if vitals.check is None or vitals.loop is None:
        return {}
    checking = vitals.check()
    if vitals.loop is asyncio.get_running_loop():
        return await checking
    try:
        asking = asyncio.run_coroutine_threadsafe(checking, vitals.loop)
    except RuntimeError:  # its loop has ended
        checking.close()
        raise
    return await asyncio.wrap_future(asking)
