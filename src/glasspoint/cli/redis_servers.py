"""Looks at the servers of Redis for a command: which of them respond, and which can be the cache.

Open this when `check`, `prune` or `migrate` names the wrong server, or gives the wrong reason. All servers
are asked at the same time, and none is waited for longer than two seconds.

In a cluster, a look has four kinds of results:

    a master is away         it does not respond, or refuses the commands of the cache
    the cluster is down      the masters that respond serve nothing: CLUSTERDOWN
    slots without a master   nobody serves their threads
    slots on their way       a resharding is under way, has broken off, or was called off
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.asyncio import RedisCluster
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from glasspoint.errors import GlasspointError
from glasspoint.l1.cluster import topology_of
from glasspoint.model.urls import address_text
from glasspoint.redis.client import address_of
from glasspoint.redis.faults import is_a_refused_command, remedy
from glasspoint.redis.location import PORTS
from glasspoint.redis.permissions import check_permissions, refuse_cluster
from glasspoint.redis.sentinels import SentinelsRefuseError, UnknownServiceError
from glasspoint.redis.timeouts import answered_within
from glasspoint.redis.tls import named
from glasspoint.redis.topology import SLOTS, OpenSlot, View, name_of, tag_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from glasspoint.redis.topology import Address, Master

__all__ = ["REDIS_SECONDS", "Look", "Server", "look_at", "name_of_server", "reasons", "some"]

REDIS_SECONDS = 2.0
"""How long one server of Redis may take to answer, so that a silent one is named."""

_NAMED_AT_MOST = 10

_CHECK_URL = "Check REDIS_URL, and that the server is up."


@dataclass(frozen=True, slots=True)
class Server:
    """What a look at one server has found.

    Attributes:
        name: Its host and port.
        redis: Its client.
        tag: The hash tag of one of its slots; `None`: it is not in a cluster.
        error: Why it cannot be the cache, or a part of it; `None`: it can.
        is_silent: Whether it did not respond, or stopped to respond.
        is_down: Whether it says that the cluster is down, as far as it can see.
        info: Its INFO server and INFO memory, as far as it tells them.
    """

    name: str
    redis: Redis
    tag: str | None
    error: Exception | None = None
    is_silent: bool = False
    is_down: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_well(self) -> bool:
        """Whether it can be the cache, or a part of it."""
        return self.error is None and not self.is_down

    @property
    def version(self) -> str:
        """Its kind and version, as text."""
        kind = "Valkey version" if "valkey_version" in self.info else "version"
        return f"{kind} {self.info.get('valkey_version') or self.info.get('redis_version', '?')}"

    @property
    def why(self) -> str:
        """Why it is not well, as the end of a sentence that begins with its name. `""`: it is well.

        Without the text of its error, which may hold a key.
        """
        error = self.error
        if error is None:
            return "serves nothing (CLUSTERDOWN)" if self.is_down else ""
        if isinstance(error, TimeoutError | RedisTimeoutError):
            return f"does not answer within {REDIS_SECONDS:g} s"
        if isinstance(error.__context__, ConnectionRefusedError):
            return "refuses the connection"
        return f"{'does not answer' if self.is_silent else 'refuses'} ({named(error)})"

    @property
    def advice(self) -> str:
        """What to do, as a sentence; `""` if the text of the error says it."""
        if isinstance(self.error, GlasspointError | SentinelsRefuseError | UnknownServiceError):
            return ""
        if self.error is not None:
            return remedy(self.error) or _CHECK_URL
        return "It does not reach most of the other masters: look at the network between them."

    @property
    def is_explained(self) -> bool:
        """Whether `why` says all that is known, so that the text of the error adds nothing."""
        return self.error is None or not self.why.endswith(")")


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at Redis has found.

    Attributes:
        servers: The server, or the masters of the cluster that own slots.
        is_cluster: Whether it is a cluster.
        views: What the nodes of the cluster tell, or why they do not.
    """

    servers: Sequence[Server]
    is_cluster: bool = False
    views: Mapping[Address, View | Exception] = field(default_factory=dict)

    @property
    def away(self) -> list[Server]:
        """The servers that are not well."""
        return [each for each in self.servers if not each.is_well]

    @property
    def unserved_slots(self) -> int:
        """The number of slots that have no master, as the master tells it that misses most."""
        masters = {each.name for each in self.servers}
        told = [view.unserved_slots for address, view in self._told().items() if name_of(address) in masters]
        return max(told, default=0)

    @property
    def has_majority(self) -> bool:
        """Whether most masters respond. Without them, the cluster serves nothing as soon as it notices."""
        return 2 * sum(not each.is_silent for each in self.servers) > len(self.servers)

    @property
    def why_down(self) -> str:
        """Why the whole cluster serves nothing, and what to do; `""` if some of it is served."""
        responding = [each for each in self.servers if not each.is_silent]
        if not responding or not all(each.is_down for each in responding):
            return ""
        silent = [each for each in self.servers if each.is_silent]
        said = "the Redis Cluster is down (CLUSTERDOWN): it serves no thread, and PostgreSQL answers for all."
        if silent:
            said += f" Masters away: {len(silent)} of {len(self.servers)} ({reasons(silent)})."
        if self.unserved_slots:
            said += f" {self.unserved_slots} of {SLOTS} slots have no master."
        if not self.has_majority:
            return f"{said} A cluster needs the majority of its masters: bring them back."
        if silent or self.unserved_slots:
            do = "bring the masters back" if silent else "give the slots a master (redis-cli --cluster fix)"
            return (
                f"{said} With cluster-require-full-coverage yes, a cluster serves nothing while one slot is "
                f"not served: set it to no on all nodes, and {do}."
            )
        return (
            f"{said} Its masters were away a moment ago, or do not reach one another: repeat this in a few "
            "seconds, then look at the network between them."
        )

    @property
    def silent_nodes(self) -> list[str]:
        """The nodes that do not respond and own no slots, each as a phrase that says why."""
        masters = {each.name for each in self.servers}
        without_slots = {each.address for view in self._told().values() for each in view.without_slots}
        return [
            f"the node {name_of(address)}, "
            f"{'a master without slots' if address in without_slots else 'which REDIS_URL names'}, does not "
            f"answer ({named(told)})"
            for address, told in self.views.items()
            if isinstance(told, Exception) and name_of(address) not in masters
        ]

    @property
    def moves(self) -> str:
        """The slots on their way, and what to do about them; `""` if there are none."""
        names = self._names()
        # Without replicas, which repeat the open slots of their masters in newer releases.
        told = {view.node_id: view for view in self._told().values() if view.node_id in names}
        moving, alone, nodes = dict[int, str](), dict[int, str](), list[str]()
        for node_id, view in told.items():
            for each in view.open_slots:
                name, other = names[node_id], names.get(each.other, f"the node {each.other}")
                nodes.append(name)
                opposite = OpenSlot(each.slot, not each.leaves, node_id)
                is_silent = each.other in names and each.other not in told
                if is_silent or (each.other in told and opposite in told[each.other].open_slots):
                    one, another = (name, other) if each.leaves else (other, name)
                    moving[each.slot] = f"{each.slot} from {one} to {another}"
                else:
                    state = f"MIGRATING to {other}" if each.leaves else f"IMPORTING from {other}"
                    alone[each.slot] = f"{each.slot} at {name} ({state})"
        said = []
        if moving:
            said.append(
                f"{_slots(moving)} on the way to another master: {some(moving.values())}. Meanwhile "
                "PostgreSQL answers for the threads there, and their calls may fail in the tier redis."
            )
        if alone:
            said.append(
                f"{_slots(alone)} open on one side only: {some(alone.values())}. The move was called off on "
                "the other side, or has broken off, and the master of the slot may lack keys that have left."
            )
        if not nodes:
            return ""
        slots = moving.keys() | alone.keys()
        slot = "SLOT" if len(slots) > 1 else next(iter(slots))
        said.append(
            f"If nobody is moving slots now, end that: redis-cli --cluster fix {min(nodes)} (or, where no "
            f"key of the slot has left, CLUSTER SETSLOT {slot} STABLE on both nodes)"
        )
        return " ".join(said)

    def _told(self) -> dict[Address, View]:
        return {address: each for address, each in self.views.items() if isinstance(each, View)}

    def _names(self) -> dict[str, str]:
        """The host and port of each master that some node knows, by the master's id."""
        masters: Iterable[Master] = (
            each for view in self._told().values() for each in (*view.masters, *view.without_slots)
        )
        return {each.node_id: name_of(each.address) for each in masters}


@asynccontextmanager
async def look_at(
    redis: Redis | RedisCluster, *, key_prefix: str, tries_rights: bool = True, seconds: float = REDIS_SECONDS
) -> AsyncIterator[Look]:
    """Look at all servers of Redis; their clients can be used within the block.

    Args:
        redis: The client.
        key_prefix: The first part of every key.
        tries_rights: Whether the commands of the cache are tried, on a key for this purpose.
        seconds: How long each server may take.

    Raises:
        CannotBeTheCacheError: No node of the cluster lets this user ask for the topology.
        Exception: No node of the cluster responds.
    """
    look = partial(_look_at_one, key_prefix=key_prefix, tries_rights=tries_rights, seconds=seconds)
    if not isinstance(redis, RedisCluster):
        yield Look([await look(redis, None)])
        return
    async with topology_of(redis, key_prefix=key_prefix) as (topology, view):
        masters = [(topology.client(each.address), tag_in(each.slots)) for each in view.masters]
        views, servers = await asyncio.gather(
            topology.survey(view), asyncio.gather(*(look(client, tag) for client, tag in masters))
        )
        yield Look(servers, True, views)


async def _look_at_one(
    redis: Redis, tag: str | None, *, key_prefix: str, tries_rights: bool, seconds: float
) -> Server:
    info: dict[str, Any] = {}
    is_down, is_silent = False, False
    error: Exception | None = None
    try:
        with answered_within(seconds):
            for section in ("server", "memory"):
                try:
                    info |= await redis.info(section)
                except ResponseError as exc:
                    if not is_a_refused_command(exc):
                        raise
            if tag is None:
                refuse_cluster(info)
            else:
                is_down = await _says_down(redis)
            if tries_rights:
                await check_permissions(redis, key_prefix, tag=tag)
    except (RedisError, OSError, TimeoutError, GlasspointError) as exc:
        error = exc
        is_silent = not isinstance(exc, ResponseError | GlasspointError) and not remedy(exc)
    return Server(name_of_server(redis), redis, tag, error, is_silent, is_down, info)


async def _says_down(redis: Any) -> bool:
    """Whether a master says that the cluster is down. If it may not be asked, `check_permissions` says so."""
    try:
        told = await redis.execute_command("CLUSTER", "INFO")
    except ResponseError as exc:
        if not is_a_refused_command(exc):
            raise
        return False
    return b"cluster_state:fail" in (told if isinstance(told, bytes) else str(told).encode())


def name_of_server(redis: Redis) -> str:
    """Return the address of a server of Redis as text."""
    host, port = address_of(redis)
    return address_text(host or "localhost", port or PORTS["single"])


def some(phrases: Iterable[str]) -> str:
    """Return the first few of these phrases as text."""
    found = list(phrases)
    named = ", ".join(found[:_NAMED_AT_MOST])
    return f"{named}, …" if len(found) > _NAMED_AT_MOST else named


def reasons(servers: Iterable[Server]) -> str:
    """Return the first few of these servers, each with the reason why it is not well."""
    return some(f"{each.name} {each.why}" for each in servers)


def _slots(slots: Mapping[int, str]) -> str:
    return f"{len(slots)} slots are" if len(slots) > 1 else "1 slot is"
