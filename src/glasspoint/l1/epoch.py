"""The epoch: the reign of a Redis server process, and the identity of L2, that keys belong to.

Open this when old entries are read after a failover of Redis, or when entries are lost without one. A Redis
that restarts from a snapshot, or a promoted replica, serves entries from the past. So two ids of the server
stand in every key and in the text of every script:

    `run_id`          new with every process
    `master_replid`   new with every promotion, so that a server that becomes master again has another one

Together they are the *reign*. A script that runs in another reign returns an error, or does not exist there
(NOSCRIPT, because scripts are not persisted). The client then asks for the current reign, and never reads the
old keys again.

The identity of L2 (`model.identity`) stands in every key, too, because one Redis may serve several databases,
and a database may be replaced, or set back. This module receives it from outside; Redis does not know it.

In a Redis Cluster, each master has a reign of its own (see `l1.cluster`). A third part belongs to it: the
*configuration epoch*, which grows when a slot arrives at the master. There, the reign does not stand in the
key, but in a field of the entry (`scripts/reign.lua`); in its place, the key names the cluster. A fourth part
follows if the move of a slot was called off: the era, which is a part of the identity of L2.

NOSCRIPT alone is not enough. A server keeps its scripts while another server reigns. And before version 7,
Redis copied scripts: to replicas, into the append-only file, and into snapshots of a server with replicas.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.l1.departures import calls_of_migrate
from glasspoint.model.scope import key_part
from glasspoint.redis.client import look_again
from glasspoint.redis.faults import CannotBeTheCacheError, NeverTheCacheError, ReplicaError
from glasspoint.redis.permissions import mode_of, refuse_cluster
from glasspoint.redis.signature import Signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from glasspoint.model.identity import Identity
    from glasspoint.model.scope import Scope
    from glasspoint.redis.topology import Address

__all__ = [
    "COMMAND_STATS",
    "WRONG_EPOCH",
    "Epoch",
    "EpochKeeper",
    "NodeLook",
    "Server",
    "Shard",
    "UnidentifiedError",
    "key_of",
    "keys_of",
    "reign_of",
    "root_of",
]

WRONG_EPOCH = "WRONGEPOCH"
"""The error code of a script that runs in another reign than it was made for."""

COMMAND_STATS = (b"INFO", b"commandstats")
"""How often a server has executed each command. As bytes, so that no callback of the client parses it."""

# It changes with the meaning of fields or scripts, so that two releases side by side never share an entry.
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

# The steps that `scripts/reign.lua` does not surround: CLEAR must not touch a key of another type, and PEEK
# changes nothing.
_NOT_SURROUNDED = {
    "clear": "",
    "peek": "if redis.call('HGET', KEY, 'reign') ~= REIGN then return {0} end\n",
}

_MY_EPOCH = re.compile(rb"cluster_my_epoch:(\d+)")
_CURRENT_EPOCH = re.compile(rb"cluster_current_epoch:(\d+)")

_GUARD = """
if not string.find(redis.call('INFO', '{section}'), '{field}:{value}', 1, true) then
  return redis.error_reply('{code} this server is another one now')
end
"""


class UnidentifiedError(L1UnavailableError):
    """The keys have no name: the identity of L2 is unknown, or the cache is attached to another Redis."""


@dataclass(slots=True)
class Shard:
    """The place of a cache in a Redis Cluster: one master.

    Attributes:
        address: The master's host and port.
        tag: The hash tag of a slot that the master owns, for keys that are not entries.
        redirected: Called if the master says that it does not own a slot.
        node_id: The id of the master: see `topology.Master`.
        called_off: Called if the move of a slot was called off: the address, and what has happened.
    """

    address: Address
    tag: str
    redirected: Callable[[Scope | None, Exception], object]
    node_id: str = ""
    called_off: Callable[[Address, str], object] = lambda address, what: None


@dataclass(frozen=True, slots=True)
class Server:
    """A Redis server process in one reign.

    Attributes:
        reign: `<run_id>.<master_replid>`, as the server reports them, 40 hexadecimal digits each. In a
            cluster, a third part follows, the configuration epoch, and perhaps a fourth one, the era.
        version: The server's version, as it reports it.
        shas: Step -> SHA-1 of its script, which is loaded.
    """

    reign: str
    version: str
    shas: dict[str, str]

    @property
    def process(self) -> tuple[str, ...]:
        """The reign without the configuration epoch: it is another one after a restart or a failover."""
        return tuple(self.reign.split(".")[:2])

    def has_other_era_only(self, previous: Server) -> bool:
        """Tell whether the reign differs from a previous one in nothing but the era."""
        return self.reign.split(".")[:3] == previous.reign.split(".")[:3]


@dataclass(frozen=True, slots=True)
class Epoch:
    """The key prefix, scripts and signer of one reign and one identity. A client replaces all at once.

    Attributes:
        prefix: The first part of every key.
        signer: Signs the fields under these keys.
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

        Thread and namespace are percent-encoded, so two scopes cannot have the same key. The braces make the
        thread the hash tag of a Redis Cluster.
        """
        return f"{self.prefix}{_key(scope)}".encode()


class NodeLook(NamedTuple):
    """What a node of a cluster tells of itself in each look.

    Attributes:
        current_epoch: The current epoch of the cluster, as far as this node knows it. It grows with each
            failover.
        calls_of_migrate: How often it has executed MIGRATE: see `l1.departures`.
    """

    current_epoch: int
    calls_of_migrate: int


class _Reign(NamedTuple):
    run_id: str
    master_replid: str
    config_epoch: str = ""  # of a node of a cluster
    era: str = ""  # of a cluster: see `Identity.era`

    @property
    def name(self) -> str:
        return ".".join(filter(None, self))


def key_of(scope: Scope, identity: Identity, *, key_prefix: str) -> bytes:
    """Return a scope's key in one epoch."""
    return f"{_prefix_of(root_of(key_prefix), identity)}{_key(scope)}".encode()


def keys_of(scope: Scope, *, key_prefix: str) -> str:
    """Return the pattern, for SCAN, of a scope's keys in all epochs."""
    return f"{root_of(key_prefix)}*:{_key(scope)}"


class EpochKeeper:
    """Knows the current epoch. It asks Redis for the server, and receives the identity from outside."""

    def __init__(
        self,
        redis: Redis,
        *,
        key_prefix: str,
        changed: Callable[[Server, Server | None], None],
        shard: Shard | None = None,
    ) -> None:
        """Take the Redis of the epoch.

        Args:
            redis: The client.
            key_prefix: The first part of every key. It is percent-encoded there.
            changed: Called after each change, with the new and the previous server (`None` the first time).
            shard: The place in a cluster; `None`: this Redis is not in a cluster.
        """
        self._redis = redis
        self._shard = shard
        self.root = root_of(key_prefix)
        """The common prefix of the keys of all epochs."""
        self._changed = changed
        self.server: Server | None = None
        """The last known server, trusted or not."""
        self._identity: Identity | None = None
        self._era = ""  # the last known one
        self.known: Epoch | None = None
        """The epoch of the last known server, `None` while there is no identity for it."""
        self._trusted = False
        self._lock = asyncio.Lock()

    @property
    def trusted(self) -> Epoch | None:
        """The epoch to use; `None` if Redis must be asked first."""
        return self.known if self._trusted else None

    def probe_key(self, server: Server) -> bytes:
        """Return the key that probes write to. It is no entry's key, because these hold braces."""
        tag = f"-{{{self._shard.tag}}}" if self._shard is not None else ""
        return f"{self.root}{server.reign}:probe{tag}".encode()

    def is_past(self, key: bytes, epoch: Epoch) -> bool:
        """Whether no process trusts the entry under a key any more.

        That is so if the key is of another reign, or of another generation of the epoch's database.
        """
        reign, _, rest = key.decode(errors="replace").removeprefix(self.root).partition(":")
        name, is_entry, _ = rest.partition(":{")
        if not is_entry:
            return False
        identity = epoch.identity
        is_of_database = name.partition(".")[0] == identity.database
        return reign != identity.reign or (is_of_database and name != identity.name)

    def follow(self, server: Server) -> None:
        """Take the last known server from another keeper: the same node had another address."""
        self.server = server
        self._compose()

    def distrust(self) -> None:
        """Ask the server for its reign before the next step, because of a connection error."""
        self._trusted = False

    def identify(self, identity: Identity | None) -> None:
        """Use the keys of this identity from now on; `None`: there is no identity, and no key."""
        self._identity = identity
        if self._shard is not None and identity is not None and identity.era != self._era:
            self._era, self._trusted = identity.era, False  # the scripts name it
        self._compose()

    async def refresh(self, wrong: Epoch | None = None) -> Epoch:
        """Return the epoch to use. Ask the server for its reign, if it is not known or not trusted.

        Args:
            wrong: The epoch with which a step has just failed. If another caller has replaced it meanwhile,
                the server is not asked. `None`: any trusted epoch is returned without asking.

        Raises:
            UnidentifiedError: There is no identity for this server.
        """
        await self.meet(wrong.server if wrong else None)
        if self.known is None:
            raise UnidentifiedError(
                "The identity of PostgreSQL is not known for this Redis yet; PostgreSQL answers alone."
            )
        return self.known

    async def look_at_node(self) -> NodeLook:
        """Ask a node of a cluster whether a slot has arrived since its reign was asked for.

        No script can ask that in each step: it takes longer than the step.
        """
        server = self.server
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("CLUSTER", "INFO")
            pipe.execute_command(*COMMAND_STATS)
            info, commands = await pipe.execute()
        if (
            server is not None
            and self.server is server
            and server.reign.split(".")[2:3] != [_config_epoch(info)]
        ):
            self._trusted = False
        return NodeLook(int(_of_info(info, _CURRENT_EPOCH)), calls_of_migrate(commands))

    async def meet(self, wrong: Server | None = None) -> Server:
        """Ask the server for its reign and load the scripts, unless the server is trusted.

        Args:
            wrong: The server of the epoch with which a step has just failed: see `refresh`.
        """
        async with self._lock:
            if self._trusted and self.server is not None and self.server is not wrong:
                return self.server
            self._trusted = False
            era = None
            while era != self._era:  # it may change meanwhile
                era = self._era
                reign, version = await self._ask()
                server = await self._load(reign._replace(era=era), version)
            previous, self.server, self._trusted = self.server, server, True
            self._compose()
            if previous is None or previous.reign != server.reign:
                self._changed(server, previous)
            return server

    async def _ask(self) -> tuple[_Reign, str]:
        try:
            return await _ask_for_reign(self._redis, in_cluster=self._shard is not None)
        except ReplicaError as exc:
            if await look_again(self._redis):
                raise ReplicaError(
                    "The server that the sentinels named is a replica: they are asked again."
                ) from exc
            raise

    def _compose(self) -> None:
        server, identity = self.server, self._identity
        # In a cluster, the identity names the cluster, which `ClusterCache` compares.
        is_of_another = (
            self._shard is None
            and identity is not None
            and server is not None
            and (identity.reign != server.reign)
        )
        if server is None or identity is None or is_of_another:
            self.known = None
        else:
            prefix = _prefix_of(self.root, identity)
            self.known = Epoch(server, identity, prefix, Signer(identity.secret, identity.generation))

    async def _load(self, reign: _Reign, version: str) -> Server:
        texts = _script_texts(reign, copied=_copies_scripts(version), in_cluster=self._shard is not None)
        # A pipeline uses one connection, and a connection leads to one server process. So INFO in the same
        # pipeline tells whether the scripts were loaded into the server that they name.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.info(b"server")  # type: ignore[arg-type]
            pipe.info(b"replication")  # type: ignore[arg-type]
            for text in texts.values():
                pipe.script_load(text.encode())
            server, replication, *_ = await pipe.execute()
        if _reign(server, replication)[:2] != reign[:2]:
            raise L1Error(
                "Redis changed between two commands (a failover under way?); the next call tries again."
            )
        shas = {
            step: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for step, text in texts.items()
        }
        return Server(reign.name, version, shas)


def _reign(server: dict[str, Any], replication: dict[str, Any], config_epoch: str = "") -> _Reign:
    if replication.get("role") == "slave":
        # Perhaps only for a moment, because a failover has demoted a master. Only a master may be the cache.
        raise ReplicaError("This Redis is a replica, which takes no writes: connect to its master.")
    reign = _Reign(_id_in(server, "run_id"), _id_in(replication, "master_replid"), config_epoch)
    told = {"run_id (INFO server)": reign.run_id, "master_replid (INFO replication)": reign.master_replid}
    if missing := " and no ".join(name for name, value in told.items() if not value):
        raise CannotBeTheCacheError(
            f"This Redis tells no {missing}. Glasspoint needs both ids to notice a restarted or promoted "
            "server, because such a server serves entries from the past. Use a Redis or Valkey that tells "
            "them, without a proxy that hides them: docs/compatibility.md says what managed services hide."
        )
    return reign


def _id_in(info: dict[str, Any], field: str) -> str:
    """Return an id of the server; `""` if it is missing, or only fills the place: zeros name no server."""
    value = str(info.get(field) or "")
    return value if value.strip("0") else ""


async def reign_of(redis: Redis, *, in_cluster: bool = False, era: str = "") -> str:
    """Ask a Redis for its reign: see `Server.reign`.

    Args:
        redis: The client.
        in_cluster: Whether it is a node of a cluster.
        era: The era of a cluster.

    Raises:
        L1Error: This Redis cannot be a cache.
        Exception: The client's error, if Redis does not respond.
    """
    reign, _ = await _ask_for_reign(redis, in_cluster=in_cluster)
    return reign._replace(era=era).name


async def _ask_for_reign(redis: Redis, *, in_cluster: bool = False) -> tuple[_Reign, str]:
    """Return the reign and the version of a Redis.

    Args:
        in_cluster: Whether it is a node of a cluster.
    """
    async with redis.pipeline(transaction=False) as pipe:
        # Commands are bytes everywhere here, because the client's encoding may not be UTF-8.
        pipe.info(b"server")  # type: ignore[arg-type]
        pipe.info(b"replication")  # type: ignore[arg-type]
        if in_cluster:
            # As two words, so that no callback of the client parses the result.
            pipe.execute_command("CLUSTER", "INFO")
        server, replication, *info = await pipe.execute()
    config_epoch = ""
    if in_cluster:
        if mode_of(server) != "cluster":
            raise NeverTheCacheError("This server is not a node of a Redis Cluster any more.")
        config_epoch = _config_epoch(info[0])
    else:
        refuse_cluster(server)
    return _reign(server, replication, config_epoch), str(server.get("redis_version", ""))


def _config_epoch(info: bytes | str) -> str:
    return _of_info(info, _MY_EPOCH)


def _of_info(info: bytes | str, pattern: re.Pattern[bytes]) -> str:
    found = pattern.search(info if isinstance(info, bytes) else info.encode())
    if found is None:
        raise L1Error("Redis does not tell its configuration epoch (CLUSTER INFO): let the user ask for it.")
    return found[1].decode()


def _script_texts(reign: _Reign, *, copied: bool, in_cluster: bool = False) -> dict[str, str]:
    folder = resources.files("glasspoint.l1") / "scripts"
    guard = _guard("replication", "master_replid", reign.master_replid)
    if copied:
        guard += _guard("server", "run_id", reign.run_id)
    prelude = (folder / "prelude.lua").read_text("utf-8")
    head = f"-- epoch {reign.name}\n{guard}{prelude}"
    texts = {step: (folder / f"{step}.lua").read_text("utf-8") for step in _STEPS}
    if not in_cluster:
        return {step: head + text for step, text in texts.items()}
    head += f"local REIGN = '{reign.name}'\n"
    around = (folder / "reign.lua").read_text("utf-8")
    return {
        step: head + _NOT_SURROUNDED[step] + text
        if step in _NOT_SURROUNDED
        else f"{head}local function step()\n{text}\nend\n{around}"
        for step, text in texts.items()
    }


def _guard(section: str, field: str, value: str) -> str:
    return _GUARD.format(code=WRONG_EPOCH, section=section, field=field, value=value)


def _copies_scripts(version: str) -> bool:
    major = version.split(".", 1)[0]
    return not major.isdigit() or int(major) < 7


def root_of(key_prefix: str) -> str:
    """Return the common prefix of the keys of all epochs."""
    return f"{key_part(key_prefix)}:{_KEY_FORMAT}:"


def _prefix_of(root: str, identity: Identity) -> str:
    return f"{root}{identity.reign}:{identity.name}:"


def _key(scope: Scope) -> str:
    return f"{{{key_part(scope.thread_id)}}}:{key_part(scope.checkpoint_ns)}"
