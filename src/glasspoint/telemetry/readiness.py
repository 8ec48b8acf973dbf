"""Answers `/readyz`: can this process serve writes now, in which tier is each saver, and how are its servers?

Load balancers and kubelets ask this. The cases:

- PostgreSQL is away, in the tier `cached`: writes fail, so the process is not ready.
- A lower tier works: the process takes writes, so it is ready, and `degraded`.
- Redis is away, in the tier `cached`: the process is only slower. It is ready, and `degraded`.
- All connections of the pool are in use: the process is busy, but ready. Otherwise all processes of a busy
  service would become unready at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast, get_args

from glasspoint.errors import ConfigurationError
from glasspoint.logs import get_logger
from glasspoint.telemetry.events import TierName
from glasspoint.telemetry.metrics import Families

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.events import SaverStatus

__all__ = ["READY_TIERS", "check_ready_tiers", "readiness"]

_log = get_logger("glasspoint.telemetry")

READY_TIERS: tuple[TierName, ...] = get_args(TierName)
"""The tiers in which a process that can serve writes is ready, by default."""

# Tier -> the server that has to take its writes, under its key in the result of a saver's check.
_WRITES_TO = {"cached": "l2", "redis": "redis"}
_TAKES_WRITES = ("ok", "busy")

# A kubelet waits for one second by default.
_CHECK_SECONDS = 0.8


def check_ready_tiers(ready_tiers: object) -> None:
    """Refuse tiers with which `/readyz` would never answer 200.

    Raises:
        ConfigurationError: It is no collection of tiers, it is empty, or a tier does not exist.
    """
    is_right = isinstance(ready_tiers, Collection) and not isinstance(ready_tiers, str) and bool(ready_tiers)
    if not is_right or any(tier not in READY_TIERS for tier in cast("Collection[object]", ready_tiers)):
        raise ConfigurationError(
            f"ready_tiers is {ready_tiers!r}: it must be one or more of {', '.join(map(repr, READY_TIERS))}."
        )


async def readiness(registry: CollectorRegistry, ready_tiers: Collection[str]) -> dict[str, Any]:
    """Check every open saver of a registry.

    Returns:
        `ready`: whether there are savers, and all can serve writes in one of `ready_tiers`. `degraded`:
        whether one of them lacks a server, or works in a lower tier. `savers`: for each saver `ready` and
        `degraded`, and

        - its name (`saver`), its `tier`, and `since` when it serves calls there;
        - its servers, `l1`, `l2` or `redis`, as `ok` or `unavailable`; `l1` also as `partial` (some masters
          of a Redis Cluster do not respond; `shards` shows the breaker of each); `l2` also as `busy` (all
          connections of the pool are in use) or `read_only`; `redis` also as `lost` (threads have disappeared
          from it);
        - further facts of its check, such as the state of the `breaker`;
        - `check` as `no answer`, if its check failed or did not end in time;
        - `undrained`, the lower tiers that may hold threads that are not here yet, if there are any.
    """
    families = Families.find(registry)
    if families is not None and families.savers.to_reopen:
        await _reopen(families)
    savers = families.savers.active() if families is not None else []
    found = await asyncio.gather(*(_look_at(name, status) for name, status in savers))
    for each in found:
        serves = _serves_writes(each)
        each["ready"] = serves and each["tier"] in ready_tiers
        each["degraded"] = not serves or each["tier"] != "cached" or each.get("l1", "ok") != "ok"
    return {
        "ready": bool(found) and all(each["ready"] for each in found),
        "degraded": any(each["degraded"] for each in found),
        "savers": found,
    }


async def _reopen(families: Families) -> None:
    """In a child after a fork, open the savers. Their first call would, but none comes before it is ready."""
    opening = asyncio.to_thread(families.savers.reopen)
    try:
        await asyncio.wait_for(opening, _CHECK_SECONDS)  # the thread goes on
    except Exception as exc:
        _log.debug("a saver was not opened again after a fork, as yet (%s)", type(exc).__name__)


def _serves_writes(about: dict[str, Any]) -> bool:
    server = _WRITES_TO.get(about["tier"], "")
    return "check" not in about and about.get(server, "ok") in _TAKES_WRITES


async def _look_at(name: str, status: SaverStatus) -> dict[str, Any]:
    since = datetime.fromtimestamp(status.since, UTC).isoformat(timespec="seconds")
    about: dict[str, Any] = {"saver": name, "tier": status.tier, "since": since}
    if status.undrained:
        about["undrained"] = list(status.undrained)
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            return about | await _check(status)
    except Exception:
        return about | {"check": "no answer"}


async def _check(status: SaverStatus) -> dict[str, Any]:
    if status.check is None or status.loop is None:
        return {}
    checking = status.check()
    if status.loop is asyncio.get_running_loop():
        return await checking
    try:
        asking = asyncio.run_coroutine_threadsafe(checking, status.loop)
    except RuntimeError:  # the saver's loop has ended
        checking.close()
        raise
    return await asyncio.wrap_future(asking)
