"""The audit: compares a share of the hits with PostgreSQL, after callers have received them.

Open this when the log reports a stale entry. The audit does not rely on the protocol that it checks. So it
finds stale entries of any cause: a bug of this library, another program that writes to the tables, a restored
backup. A stale entry is counted, logged and dropped. A difference does not count if a write came between the
two looks.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

from glasspoint.l1.cache import Intent
from glasspoint.l2.faults import FORESEEN
from glasspoint.logs import get_logger
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import Audited, Invalidated

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from glasspoint.l1.cluster import L1
    from glasspoint.l2.store import Store
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Telemetry, Verdict

__all__ = ["Auditor", "differences"]

_log = get_logger("glasspoint.audit")

_AT_ONCE = 2
_DEADLINE_SECONDS = 5.0
_NAMED_AT_MOST = 8


class Auditor:
    """Audits the hits of one saver in the background, so that no caller waits."""

    def __init__(
        self,
        l1: L1,
        l2: Store,
        telemetry: Telemetry,
        *,
        ratio: float,
        start: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """Take the cache and the database to compare.

        Args:
            ratio: The share of hits that is audited, 0 for none to 1 for all.
            start: Runs an audit in the background, and makes sure that it ends before the saver is closed.
        """
        self._l1 = l1
        self._l2 = l2
        self._telemetry = telemetry
        self._ratio = ratio
        self._start = start
        # A random generator of its own: an application that seeds the global one must get the same numbers as
        # without the audit.
        self._dice = random.Random()
        self._running = 0
        self._background = BackgroundTask(
            "auditor", telemetry, means="Meanwhile hits are not compared with PostgreSQL."
        )

    def sample(self, scope: Scope, fields: list[bytes]) -> None:
        """Audit this hit in the background, or not: at random, and never while that would delay callers.

        Args:
            fields: The entry's fields as Redis sent them. The decoded state is not used, because the caller
                may change it.
        """
        if self._ratio and self._dice.random() < self._ratio:
            if self._running >= _AT_ONCE or self._l2.connections.is_saturated:
                return
            self._running += 1
            self._start(self._audit(scope, fields))

    async def _audit(self, scope: Scope, fields: list[bytes]) -> None:
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                verdict = await self._judge(scope, fields)
        except FORESEEN as exc:
            # Callers report a server that does not respond. Without it, there is nothing to compare here.
            _log.debug("an audit came to no verdict (%s)", type(exc).__name__)
        except Exception as exc:
            self._background.failed(exc)
        else:
            if verdict is not None:
                self._telemetry.emit(Audited(verdict))
        finally:
            self._running -= 1

    async def _judge(self, scope: Scope, fields: list[bytes]) -> Verdict | None:
        """Compare an entry with PostgreSQL. If they differ, check that no write explains the difference.

        A write blocks readers before PostgreSQL changes, and changes the entry afterwards. So an entry is
        stale if PostgreSQL has shown another state, and the entry is then still unchanged, without a write
        under way. PostgreSQL is read once more, because a value may change and change back.
        """
        served = self._l1.decode(scope, fields)
        if not differences(served, await self._l2.select(scope, None)):
            return "consistent"
        # Read by checkpoint id, so that a miss leaves no lease behind.
        reading = await self._l1.read(scope, served.checkpoint_id)
        if reading.result == "unavailable":
            return None
        if _by_name(reading.fields) != _by_name(fields):  # only a hit has fields
            return "raced"
        different = differences(served, await self._l2.select(scope, None))
        if not different:
            return "raced"
        await self._forget(served, different)
        return "stale"

    async def _forget(self, served: StoredCheckpoint, different: list[str]) -> None:
        dropped = await self._l1.drop(Intent(served.scope, b""))
        if dropped:
            self._telemetry.emit(Invalidated("audit"))
        names = ", ".join(different[:_NAMED_AT_MOST]) + (", …" if len(different) > _NAMED_AT_MOST else "")
        _log.error(
            "A stale entry was found in L1 (Redis): thread %r, namespace %r, checkpoint %s differs from "
            "PostgreSQL in: %s. %s Look for who changes the checkpoint tables without this library while it "
            "runs (another checkpointer, SQL, a restored backup), or writes to this Redis; if nobody does, "
            "please report a bug.",
            *served.scope,
            served.checkpoint_id,
            names,
            "It was dropped: the next read asks PostgreSQL."
            if dropped
            else "It could not be dropped, because Redis does not answer, and may be read again.",
        )


def differences(served: StoredCheckpoint, stored: StoredCheckpoint | None) -> list[str]:
    """Return the names of the parts that differ between the cache and PostgreSQL, without their values."""
    if stored is None:
        return ["id (PostgreSQL has no checkpoint here)"]
    if served.checkpoint_id != stored.checkpoint_id:
        return ["id (PostgreSQL has another newest checkpoint)"]
    return [
        *_keys_of_different("", {"parent_id": served.parent_id}, {"parent_id": stored.parent_id}),
        *_keys_of_different("checkpoint.", _as_text(served.document), _as_text(stored.document)),
        *_keys_of_different("metadata.", _as_text(served.metadata), _as_text(stored.metadata)),
        *_keys_of_different("value of channel ", _values(served), _values(stored)),
        *_keys_of_different("pending write ", _writes(served), _writes(stored)),
    ]


def _keys_of_different(what: str, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    missing = object()
    return [what + key for key in sorted({*one, *other}) if one.get(key, missing) != other.get(key, missing)]


def _as_text(document: dict[str, Any]) -> dict[str, str]:
    # Compared as text, because Python treats 1, 1.0 and True as equal.
    return {key: json.dumps(value, sort_keys=True) for key, value in document.items()}


def _values(stored: StoredCheckpoint) -> dict[str, Any]:
    return {channel: value for channel, value in stored.values.items() if value[1].type != "empty"}


def _writes(stored: StoredCheckpoint) -> dict[str, Any]:
    return {f"{w.task_id}:{w.idx}": (w.channel, w.value, w.task_path) for w in stored.writes}


def _by_name(fields: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(fields[::2], fields[1::2], strict=True))
