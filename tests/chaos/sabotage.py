"""Glasspoint broken on purpose, in the workers of a run, to see that the checker would notice.

Each break fails loudly if the code that it replaces is no longer there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from glasspoint.coherence.identity import IdentityKeeper
from glasspoint.l1 import epoch
from glasspoint.l2.identity import Attachment, Look
from glasspoint.l2.store import PutResult, Store, WritesResult
from glasspoint.redis.signature import Signer

__all__ = ["NO_TRIGGERS", "SABOTAGES", "VARIABLE", "sabotage"]

NO_TRIGGERS = "no triggers"
"""Nothing is broken in the workers: the tables have no triggers."""

VARIABLE = "CHAOS_SABOTAGE"
"""The environment variable that names what is to be broken."""


def sabotage(name: str) -> None:
    """Break this process's Glasspoint in one way; an empty name breaks nothing."""
    if name:
        SABOTAGES[name]()


def _no_commit() -> None:
    """COMMIT only takes the intent away: the image stays as it was before the burst."""
    texts = epoch._script_texts

    def broken(reign: Any, *, copied: bool, in_cluster: bool = False) -> dict[str, str]:
        found = texts(reign, copied=copied, in_cluster=in_cluster)
        assert found["abort"].endswith("return 1\n")
        return {**found, "commit": found["abort"].removesuffix("return 1\n") + "return {2}\n"}

    epoch._script_texts = broken


def _no_epoch() -> None:
    """Keys and scripts do not say which server process they belong to."""
    assert epoch._reign({"run_id": "a"}, {"master_replid": "b"})[:2] == ("a", "b")
    assert epoch._guard("server", "run_id", "a")
    epoch._reign = lambda server, replication, config_epoch="": epoch._Reign("0" * 40, "0" * 40)
    epoch._guard = lambda section, field, value: ""


def _no_reign() -> None:
    """In a Redis Cluster, the reign that an entry names is ignored."""
    texts = epoch._script_texts
    line = "if redis.call('HGET', KEY, 'reign') ~= REIGN then redis.call('DEL', KEY) end"

    def broken(reign: Any, *, copied: bool, in_cluster: bool = False) -> dict[str, str]:
        found = texts(reign, copied=copied, in_cluster=in_cluster)
        assert not in_cluster or line in found["read"]
        return {step: text.replace(line, "") for step, text in found.items()}

    epoch._script_texts = broken


def _no_l2() -> None:
    """Every seventh checkpoint, and every seventh task's writes, are acknowledged without PostgreSQL."""
    put, put_writes, calls = Store.put, Store.put_writes, iter(range(10**9))

    async def broken_put(self: Store, scope: Any, what: Any, ready: Any) -> PutResult:
        if next(calls) % 7 == 6:
            await ready(None)
            return PutResult(True, [])
        return await put(self, scope, what, ready)

    async def broken_put_writes(
        self: Store, scope: Any, checkpoint_id: str, writes: Any, ready: Any, *, upsert: bool
    ) -> WritesResult:
        if next(calls) % 7 == 6:
            await ready(None)
            return WritesResult(writes, False, [])
        return await put_writes(self, scope, checkpoint_id, writes, ready, upsert=upsert)

    Store.put = broken_put  # type: ignore[method-assign, assignment]
    Store.put_writes = broken_put_writes  # type: ignore[method-assign]


def _no_answer() -> None:
    """What PostgreSQL did not answer is acknowledged all the same."""
    put_writes = Store.put_writes

    async def broken(self: Store, *args: Any, **options: Any) -> WritesResult:
        try:
            return await put_writes(self, *args, **options)
        except ConnectionError:
            return WritesResult([], False, [])

    Store.put_writes = broken  # type: ignore[method-assign]


def _no_identity() -> None:
    """Keys and signatures do not say which PostgreSQL they belong to."""
    compose = epoch.EpochKeeper._compose

    def broken(self: epoch.EpochKeeper) -> None:
        compose(self)
        if self.known is not None:
            assert self.known.identity.name in self.known.prefix
            prefix = f"{self.root}{self.known.server.reign}:"
            self.known = replace(self.known, prefix=prefix, signer=Signer(b"the same everywhere"))

    epoch.EpochKeeper._compose = broken  # type: ignore[method-assign]


def _no_look() -> None:
    """Whatever PostgreSQL tells of itself, it is taken for the one that it was."""
    assert isinstance(Look.changed, property)
    assert "position" in Look.__slots__
    assert "is_marked" in Attachment.__slots__
    looks: Any = Look
    looks.changed = property(lambda self: {})
    looks.position = property(lambda self: None, lambda self, value: None)
    attachments: Any = Attachment
    attachments.is_marked = property(lambda self: True, lambda self, value: None)
    assert callable(IdentityKeeper.is_of)
    keepers: Any = IdentityKeeper
    keepers.is_of = lambda self, mark: True


SABOTAGES: dict[str, Callable[[], None]] = {
    "no commit": _no_commit,
    "no epoch": _no_epoch,
    "no l2": _no_l2,
    "no reign": _no_reign,
    "no answer": _no_answer,
    "no identity": _no_identity,
    "no look": _no_look,
    NO_TRIGGERS: lambda: None,
}
"""Every way to break it."""
