"""The epoch: which reign of which Redis server process, and which identity of L2, the keys belong to.

A Redis that restarts from a snapshot, and a promoted replica, serve entries from the past. So the server's
`run_id` (new with every process) and its `master_replid` (new with every promotion, so that a server that was
master before, and is again, is told from its former self) stand in every key and in the text of every script.
A script that meets another reign than its own answers with an error, or is not there at all (NOSCRIPT:
scripts are not persisted); the client then asks who is reigning, and the old keys are never looked at again.

The identity of L2 (`model.identity`) stands in every key, too: one Redis may serve several databases,
and a database may be replaced, or set back. It is given to this module; Redis knows nothing of it.

NOSCRIPT alone cannot be relied on. A server keeps its scripts while another one reigns. And before version 7,
Redis copied scripts: to replicas, into the append-only file, and into snapshots of a server with replicas.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.model.scope import key_part
from glasspoint.redis.faults import ReplicaError
from glasspoint.redis.permissions import refuse_cluster
from glasspoint.redis.signature import Signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from glasspoint.model.identity import Identity
    from glasspoint.model.scope import Scope

__all__ = [
    "WRONG_EPOCH",
    "Epoch",
    "EpochKeeper",
    "Server",
    "UnidentifiedError",
    "key_of",
    "keys_of",
    "reign_of",
    "root_of",
]

WRONG_EPOCH = "WRONGEPOCH"
"""The error code of a script that runs on another server process than it was made for."""

# Changed whenever fields or scripts change meaning, so that two releases side by side never share an entry.
_KEY_FORMAT = 3
_STEPS = (
    "read",
    "peek",
    "refuse",
    "begin",
    "confirm",
    "commit",
    "abort",
    "warm_up",
    "drop",
    "clear",
)
_GUARD = """
if not string.find(redis.call('INFO', '{section}'), '{field}:{value}', 1, true) then
  return redis.error_reply('{code} this server is another one now')
end
"""


class UnidentifiedError(L1UnavailableError):
    """The identity of L2 is not known, or the cache is attached to another Redis: its keys have no name."""


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis server process in one reign.

    Attributes:
        reign: `<run_id>.<master_replid>`, as the server says them, 40 hexadecimal digits each.
        version: The server's version, as it says it.
        shas: Step -> SHA-1 of its script, loaded.
    """

    reign: str
    version: str
    shas: dict[str, str]


@dataclass(frozen=True, slots=True)
class Epoch:
    """Key prefix, scripts and signer of one reign and one identity; a client swaps all of it at once.

    Attributes:
        prefix: What every key begins with.
        signer: Signs what is stored under these keys.
    """

    server: Server
    identity: Identity
    prefix: str
    signer: Signer

    @property
    def shas(self) -> dict[str, str]:
        """Step -> SHA-1 of its script."""
        return self.server.shas

    def key(self, scope: Scope) -> bytes:
        """Return the scope's key.

        Thread and namespace are percent-encoded, so no two scopes can share one; the braces make the thread
        the cluster hash tag.
        """
        return f"{self.prefix}{_key(scope)}".encode()


class _Reign(NamedTuple):
    run_id: str
    master_replid: str

    @property
    def name(self) -> str:
        return f"{self.run_id}.{self.master_replid}"


def key_of(scope: Scope, identity: Identity, *, key_prefix: str) -> bytes:
    """Return a scope's key in one epoch."""
    return f"{_prefix_of(root_of(key_prefix), identity)}{_key(scope)}".encode()


def keys_of(scope: Scope, *, key_prefix: str) -> str:
    """Return the pattern, for SCAN, of a scope's keys in all epochs."""
    return f"{root_of(key_prefix)}*:{_key(scope)}"


class EpochKeeper:
    """Knows the current epoch. It finds out the server by itself; the identity is given to it."""

    def __init__(
        self, redis: Redis, *, key_prefix: str, changed: Callable[[Server, Server | None], None]
    ) -> None:
        """Take the Redis whose epoch is known.

        Args:
            redis: The client.
            key_prefix: Put in front of every key, percent-encoded.
            changed: Called with the new and the previous server (`None` the first time) after each change.
        """
        self._redis = redis
        self.root = root_of(key_prefix)
        """What the keys of all epochs begin with."""
        self._changed = changed
        self._server: Server | None = None
        self._identity: Identity | None = None
        self._epoch: Epoch | None = None
        self._trusted = False
        self._lock = asyncio.Lock()

    @property
    def server(self) -> Server | None:
        """The last server seen, trusted or not."""
        return self._server

    @property
    def known(self) -> Epoch | None:
        """The epoch of the last server seen, `None` while it has no identity."""
        return self._epoch

    @property
    def trusted(self) -> Epoch | None:
        """The epoch to use, if there is no need to ask."""
        return self._epoch if self._trusted else None

    def probe_key(self, server: Server) -> bytes:
        """Return the key that probes write to. No entry's key: that holds braces."""
        return f"{self.root}{server.reign}:probe".encode()

    def is_past(self, key: bytes, epoch: Epoch) -> bool:
        """Tell whether no process believes what stands under a key.

        That is so if it is of another reign, or of another generation of this epoch's database.
        """
        reign, _, rest = key.decode(errors="replace").removeprefix(self.root).partition(":")
        name, is_entry, _ = rest.partition(":{")
        if not is_entry:
            return False
        database, _, generation = name.partition(".")
        identity = epoch.identity
        return reign != epoch.server.reign or (
            database == identity.database and generation != identity.generation
        )

    def distrust(self) -> None:
        """After any connection error: ask the server who it is before the next step."""
        self._trusted = False

    def identify(self, identity: Identity | None) -> None:
        """Use the keys of this identity from now on; `None`: of none."""
        self._identity = identity
        self._compose()

    async def current(self) -> Epoch:
        """Return the epoch to use; a round trip only when the server is not known or not trusted.

        Raises:
            UnidentifiedError: There is no identity for this server.
        """
        return self.trusted or await self.refresh(None)

    async def refresh(self, wrong: Epoch | None) -> Epoch:
        """Ask the server who it is, and return the epoch to use.

        Args:
            wrong: The epoch that a step has just failed with; if another caller has replaced it meanwhile,
                nothing is asked. `None`: whatever is trusted will do.

        Raises:
            UnidentifiedError: There is no identity for this server.
        """
        await self.meet(wrong.server if wrong else None)
        if self._epoch is None:
            raise UnidentifiedError(
                "The identity of PostgreSQL is not known for this Redis yet; PostgreSQL answers alone."
            )
        return self._epoch

    async def meet(self, wrong: Server | None = None) -> Server:
        """Ask the server who it is and load the scripts, unless it is trusted.

        Args:
            wrong: As for `refresh`.
        """
        async with self._lock:
            if self._trusted and self._server is not None and self._server is not wrong:
                return self._server
            self._trusted = False
            server = await self._load(*await _ask_for_reign(self._redis))
            previous, self._server, self._trusted = self._server, server, True
            self._compose()
            if previous is None or previous.reign != server.reign:
                self._changed(server, previous)
            return server

    def _compose(self) -> None:
        server, identity = self._server, self._identity
        if server is None or identity is None or identity.reign != server.reign:
            self._epoch = None
        else:
            prefix = _prefix_of(self.root, identity)
            self._epoch = Epoch(server, identity, prefix, Signer(identity.secret, identity.generation))

    async def _load(self, reign: _Reign, version: str) -> Server:
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
        shas = {
            step: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for step, text in texts.items()
        }
        return Server(reign.name, version, shas)


def _reign(server: dict[str, Any], replication: dict[str, Any]) -> _Reign:
    if replication.get("role") == "slave":
        # Also for a moment: a master that a failover has demoted. Only a master may be the cache.
        raise ReplicaError("This Redis is a replica, which takes no writes: connect to its master.")
    reign = _Reign(str(server.get("run_id") or ""), str(replication.get("master_replid") or ""))
    if not all(reign):
        raise L1Error(
            "Redis does not say its run_id (INFO server) or its master_replid (INFO replication): Glasspoint "
            "needs them to tell a restarted or promoted server from the one before. Connect to Redis itself, "
            "not through a proxy that hides them, and let the user run INFO."
        )
    return reign


async def reign_of(redis: Redis) -> str:
    """Ask a Redis for its reign: see `Server.reign`.

    Raises:
        L1Error: It cannot be a cache.
        Exception: What the client raises, if there is no answer.
    """
    reign, _ = await _ask_for_reign(redis)
    return reign.name


async def _ask_for_reign(redis: Redis) -> tuple[_Reign, str]:
    """Return the reign and the version of a Redis."""
    async with redis.pipeline(transaction=False) as pipe:
        # As bytes, as everywhere here: a client may have been made with another encoding than UTF-8.
        pipe.info(b"server")  # type: ignore[arg-type]
        pipe.info(b"replication")  # type: ignore[arg-type]
        server, replication = await pipe.execute()
    refuse_cluster(server)
    return _reign(server, replication), str(server.get("redis_version", ""))


def _script_texts(reign: _Reign, *, copied: bool) -> dict[str, str]:
    folder = resources.files("glasspoint.l1") / "scripts"
    guard = _guard("replication", "master_replid", reign.master_replid)
    if copied:
        guard += _guard("server", "run_id", reign.run_id)
    prelude = (folder / "prelude.lua").read_text("utf-8")
    head = f"-- epoch {reign.name}\n{guard}{prelude}"
    return {step: head + (folder / f"{step}.lua").read_text("utf-8") for step in _STEPS}


def _guard(section: str, field: str, value: str) -> str:
    return _GUARD.format(code=WRONG_EPOCH, section=section, field=field, value=value)


def _copies_scripts(version: str) -> bool:
    major = version.split(".", 1)[0]
    return not major.isdigit() or int(major) < 7


def root_of(key_prefix: str) -> str:
    """Return what the keys of all epochs begin with."""
    return f"{key_part(key_prefix)}:{_KEY_FORMAT}:"


def _prefix_of(root: str, identity: Identity) -> str:
    return f"{root}{identity.reign}:{identity.name}:"


def _key(scope: Scope) -> str:
    return f"{{{key_part(scope.thread_id)}}}:{key_part(scope.checkpoint_ns)}"
