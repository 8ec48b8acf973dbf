"""The epoch: which reign of which Redis server process the keys belong to.

A Redis that restarts from a snapshot, and a promoted replica, serve entries from the past. So the server's
`run_id` (new with every process) and its `master_replid` (new with every promotion, so that a server that was
master before, and is again, is told from its former self) stand in every key and in the text of every script.
A script that meets another reign than its own answers with an error, or is not there at all (NOSCRIPT:
scripts are not persisted); the client then asks who is reigning, and the old keys are never looked at again.

NOSCRIPT alone cannot be relied on. A server keeps its scripts while another one reigns. And before version 7,
Redis copied scripts: to replicas, into the append-only file, and into snapshots of a server with replicas.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from glasspoint.errors import L1Error
from glasspoint.l1.permissions import refuse_cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from glasspoint.scope import Scope

__all__ = ["WRONG_EPOCH", "Epoch", "EpochKeeper"]

WRONG_EPOCH = "WRONGEPOCH"
"""The error code of a script that runs on another server process than it was made for."""

# Changed whenever fields or scripts change meaning, so that two releases side by side never share an entry.
_KEY_FORMAT = 1
_STEPS = ("read", "refuse", "begin", "commit_put", "commit_writes", "abort", "warm_up", "drop", "clear")
_GUARD = """
if not string.find(redis.call('INFO', '{section}'), '{field}:{value}', 1, true) then
  return redis.error_reply('{code} this server is another one now')
end
"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Key prefix and scripts of one reign; a client swaps all of it at once.

    Attributes:
        name: `<run_id>.<master_replid>`, as the server says them, 40 hexadecimal digits each.
        version: The server's version, as it says it.
        prefix: What every key begins with.
        shas: Step -> SHA-1 of its script, loaded.
    """

    name: str
    version: str
    prefix: str
    shas: dict[str, str]

    def key(self, scope: Scope) -> str:
        """Return the scope's key. Thread and namespace are percent-encoded, so no two scopes can share one;
        the braces make the thread the cluster hash tag."""
        return f"{self.prefix}{{{_quote(scope.thread_id)}}}:{_quote(scope.checkpoint_ns)}"


class _Reign(NamedTuple):
    run_id: str
    master_replid: str


class EpochKeeper:
    """Knows the current epoch, and finds it out again when in doubt."""

    def __init__(
        self, redis: Redis, *, key_prefix: str, changed: Callable[[Epoch, Epoch | None], None]
    ) -> None:
        """Args:
        redis: The client.
        key_prefix: Put in front of every key, percent-encoded.
        changed: Called with the new and the previous epoch (`None` the first time) after each change.
        """
        self._redis = redis
        self._key_prefix = _quote(key_prefix)
        self._changed = changed
        self._epoch: Epoch | None = None
        self._trusted = False
        self._lock = asyncio.Lock()

    @property
    def known(self) -> Epoch | None:
        """The last epoch seen, trusted or not."""
        return self._epoch

    @property
    def trusted(self) -> Epoch | None:
        """The epoch to use, if there is no need to ask."""
        return self._epoch if self._trusted else None

    def distrust(self) -> None:
        """After any connection error: ask the server who it is before the next step."""
        self._trusted = False

    async def current(self) -> Epoch:
        """Return the epoch to use; a round trip only when it is not known or not trusted."""
        return self.trusted or await self.refresh(None)

    async def refresh(self, wrong: Epoch | None) -> Epoch:
        """Ask the server, load the scripts, and swap.

        Args:
            wrong: The epoch that a step has just failed with; if another caller has replaced it meanwhile,
                nothing is asked. `None`: whatever is trusted will do.
        """
        async with self._lock:
            if self._trusted and self._epoch is not None and self._epoch is not wrong:
                return self._epoch
            self._trusted = False
            epoch = await self._load(*await self._reign())
            previous, self._epoch, self._trusted = self._epoch, epoch, True
            if previous is None or previous.name != epoch.name:
                self._changed(epoch, previous)
            return epoch

    async def _reign(self) -> tuple[_Reign, str]:
        async with self._redis.pipeline(transaction=False) as pipe:
            # As bytes, here and below: a client may have been made with another encoding than UTF-8.
            pipe.info(b"server")  # type: ignore[arg-type]
            pipe.info(b"replication")  # type: ignore[arg-type]
            server, replication = await pipe.execute()
        refuse_cluster(server)
        return _reign(server, replication), str(server.get("redis_version", ""))

    async def _load(self, reign: _Reign, version: str) -> Epoch:
        texts = _script_texts(reign, copied=_copies_scripts(version))
        # One pipeline is one connection, and one connection is one server process: INFO among the loads says
        # whether the scripts went to the server that they name.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.info(b"server")  # type: ignore[arg-type]
            pipe.info(b"replication")  # type: ignore[arg-type]
            for text in texts.values():
                pipe.script_load(text.encode())
            server, replication, *_ = await pipe.execute()
        if _reign(server, replication) != reign:
            raise L1Error(
                "Redis changed between two commands (a failover under way?); the next call tries again."
            )
        name = f"{reign.run_id}.{reign.master_replid}"
        prefix = f"{self._key_prefix}:{_KEY_FORMAT}:{name}:"
        shas = {
            step: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for step, text in texts.items()
        }
        return Epoch(name, version, prefix, shas)


def _reign(server: dict[str, Any], replication: dict[str, Any]) -> _Reign:
    reign = _Reign(str(server.get("run_id") or ""), str(replication.get("master_replid") or ""))
    if not all(reign):
        raise L1Error(
            "Redis does not say its run_id (INFO server) or its master_replid (INFO replication): Glasspoint "
            "needs them to tell a restarted or promoted server from the one before. Connect to Redis itself, "
            "not through a proxy that hides them, and let the user run INFO."
        )
    return reign


def _script_texts(reign: _Reign, *, copied: bool) -> dict[str, str]:
    folder = resources.files("glasspoint.l1") / "scripts"
    guard = _guard("replication", "master_replid", reign.master_replid)
    if copied:
        guard += _guard("server", "run_id", reign.run_id)
    prelude = (folder / "prelude.lua").read_text("utf-8")
    head = f"-- epoch {reign.run_id}.{reign.master_replid}\n{guard}{prelude}"
    return {step: head + (folder / f"{step}.lua").read_text("utf-8") for step in _STEPS}


def _guard(section: str, field: str, value: str) -> str:
    return _GUARD.format(code=WRONG_EPOCH, section=section, field=field, value=value)


def _copies_scripts(version: str) -> bool:
    major = version.split(".", 1)[0]
    return not major.isdigit() or int(major) < 7


def _quote(text: str) -> str:
    return quote(text, safe="")
