"""The epoch: which Redis server process the keys belong to.

A Redis that restarts from a snapshot, and a promoted replica, serve entries from the past. So the server's
`run_id` stands in every key and in the text of every script. Scripts are not persisted: after a restart
`EVALSHA` answers NOSCRIPT, the client asks for the `run_id` anew, and the old keys are never looked at again.

Before version 7, Redis did copy scripts: to replicas, into the append-only file, and into the snapshots of a
server that has replicas. There NOSCRIPT cannot be relied on, so on those servers the script itself asks the
server for its `run_id` and answers with an error if it is not the one in its text (6 µs a call in Redis 6.2).
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from glasspoint.errors import L1Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from glasspoint.scope import Scope

__all__ = ["WRONG_EPOCH", "Epoch", "EpochKeeper"]

WRONG_EPOCH = "WRONGEPOCH"
"""The error code of a script that runs on another server process than it was made for."""

# Changed whenever fields or scripts change meaning, so that two releases side by side never share an entry.
_KEY_FORMAT = 1
_STEPS = ("read", "refuse", "begin", "commit_put", "commit_writes", "abort", "warm_up", "drop")
_GUARD = """
if not string.find(redis.call('INFO', 'server'), 'run_id:{run_id}', 1, true) then
  return redis.error_reply('{code} this server is another one now')
end
"""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Key prefix and scripts of one server process; a client swaps all of it at once.

    Attributes:
        run_id: The server's own name for its process, 40 hexadecimal digits.
        version: The server's version, as it says it.
        prefix: What every key begins with.
        shas: Step -> SHA-1 of its script, loaded.
    """

    run_id: str
    version: str
    prefix: str
    shas: dict[str, str]

    def key(self, scope: Scope) -> str:
        """Return the scope's key. Thread and namespace are percent-encoded, so no two scopes can share one;
        the braces make the thread the cluster hash tag."""
        return f"{self.prefix}{{{_quote(scope.thread_id)}}}:{_quote(scope.checkpoint_ns)}"


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

    def distrust(self) -> None:
        """After any connection error: ask the server for its `run_id` before the next step."""
        self._trusted = False

    async def current(self) -> Epoch:
        """Return the epoch to use; a round trip only when it is not known or not trusted."""
        if self._trusted and self._epoch is not None:
            return self._epoch
        return await self.refresh(None)

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
            epoch = await self._load(await self._server())
            previous, self._epoch, self._trusted = self._epoch, epoch, True
            if previous is None or previous.run_id != epoch.run_id:
                self._changed(epoch, previous)
            return epoch

    async def _server(self) -> dict[str, Any]:
        server: dict[str, Any] = await self._redis.info("server")
        if not server.get("run_id"):
            raise L1Error(
                "Redis does not say its run_id (INFO server): Glasspoint needs it to tell a restarted server "
                "from the one before. Connect to Redis itself, not through a proxy that hides it, and let "
                "the user run INFO."
            )
        return server

    async def _load(self, server: dict[str, Any]) -> Epoch:
        run_id, version = str(server["run_id"]), str(server.get("redis_version", ""))
        texts = _script_texts(run_id, guarded=_copies_scripts(version))
        # One pipeline is one connection, and one connection is one server process: INFO among the loads says
        # whether the scripts went to the process whose run_id stands in them.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.info("server")
            for text in texts.values():
                pipe.script_load(text)
            answers = await pipe.execute()
        if str(answers[0].get("run_id")) != run_id:
            raise L1Error(
                "Redis changed between two commands (a failover under way?); the next call tries again."
            )
        prefix = f"{self._key_prefix}:{_KEY_FORMAT}:{run_id}:"
        shas = {
            step: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for step, text in texts.items()
        }
        return Epoch(run_id, version, prefix, shas)


def _script_texts(run_id: str, *, guarded: bool) -> dict[str, str]:
    folder = resources.files("glasspoint.l1") / "scripts"
    guard = _GUARD.format(run_id=run_id, code=WRONG_EPOCH) if guarded else ""
    prelude = (folder / "prelude.lua").read_text("utf-8")
    return {
        step: f"-- epoch {run_id}\n{guard}{prelude}{(folder / f'{step}.lua').read_text('utf-8')}"
        for step in _STEPS
    }


def _copies_scripts(version: str) -> bool:
    major = version.split(".", 1)[0]
    return not major.isdigit() or int(major) < 7


def _quote(text: str) -> str:
    return quote(text, safe="")
