"""The topology of a Redis Cluster: its nodes, the slots of each master, and a client for each master.

Open this file when a cluster is not found, or when a step goes to the wrong master. The client of the cluster
(`redis.asyncio.RedisCluster`) tells where nodes are and how to connect to them. Each master then gets a plain
client of its own. So everything that is true of one Redis (pipelines, the limiter, timeouts, errors) is true
of each master. A look asks one node, which knows the others by gossip.
"""

from __future__ import annotations

import asyncio
import re
from binascii import crc_hqx
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ResponseError

from glasspoint.model.cancellation import run_to_the_end
from glasspoint.model.urls import address_text
from glasspoint.redis.faults import NeverTheCacheError, is_a_refused_command
from glasspoint.redis.timeouts import answered_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from redis.asyncio import RedisCluster

__all__ = [
    "RANGES",
    "SLOTS",
    "Address",
    "Master",
    "OpenSlot",
    "Topology",
    "View",
    "epoch_in",
    "lines_of",
    "name_of",
    "open_slots_in",
    "owner_of",
    "range_of",
    "slot_of",
    "tag_in",
    "tag_of_range",
    "tag_of_slot",
]

SLOTS = 16384
"""The number of hash slots of every Redis Cluster."""

RANGES = 32
"""The number of equal ranges of slots. What belongs to many threads, and must stand on the masters of these
threads, stands once for each range: see `tag_of_range`. If it changes, two releases side by side do not find
what the other one has stored."""

Address: TypeAlias = tuple[str, int]
"""The host and the port of a node."""

# How CLUSTER NODES shows a slot on its way, in the line of the node that was asked: [slot->-node] leaves it,
# [slot-<-node] arrives.
_OPEN_SLOT = re.compile(r"\[(\d+)-([<>])-(\w+)\]")

# The flags of a node that cannot be asked, or need not be.
_NOT_ASKED = frozenset(("fail", "fail?", "handshake", "noaddr"))

# As for a single Redis: see `client.open_redis`.
_MAX_CONNECTIONS = 64

# The options of a cluster's connections that a plain client does not take, or has of its own.
_NOT_FOR_A_NODE = frozenset(
    (
        "redis_connect_func",
        "response_callbacks",
        "himport_registry",
        "maint_notifications_config",
        "oss_cluster_maint_notifications_handler",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
    )
)


@dataclass(frozen=True, slots=True)
class Master:
    """A master and the slots that it owns.

    Attributes:
        node_id: 40 hexadecimal digits. A restart and a failover do not change them.
        slots: The first and the last slot of each range.
    """

    address: Address
    node_id: str
    slots: tuple[tuple[int, int], ...]

    def owns(self, slot: int) -> bool:
        """Tell whether the slot is in one of the ranges."""
        return any(first <= slot <= last for first, last in self.slots)


@dataclass(frozen=True, slots=True)
class OpenSlot:
    """A slot on its way from or to a node, as this node tells it.

    Attributes:
        leaves: Whether it leaves the node (MIGRATING); otherwise it arrives (IMPORTING).
        other: The id of the other node.
    """

    slot: int
    leaves: bool
    other: str


@dataclass(frozen=True, slots=True)
class View:
    """What one node knows of the cluster.

    Attributes:
        masters: The masters that own slots. One of them may be down.
        node_ids: The ids of all nodes that belong to the cluster, also of replicas, and of nodes that failed.
        epoch: The greatest configuration epoch of a master. It grows with each failover and each slot that
            moves, so the view of a node that was cut off has a smaller one.
        replicas: Each replica: its node id, and that of its master.
        failed: The ids of the nodes that the cluster takes for failed.
        open_slots: The slots on their way from or to the node that was asked.
        node_id: The id of the node that was asked.
        without_slots: The masters that own no slot and seem to be well: one of them may wait for its first
            slot.
    """

    masters: tuple[Master, ...]
    node_ids: frozenset[str]
    epoch: int = 0
    replicas: frozenset[tuple[str, str]] = field(default=frozenset(), compare=False)
    failed: frozenset[str] = field(default=frozenset(), compare=False)
    open_slots: tuple[OpenSlot, ...] = field(default=(), compare=False)
    node_id: str = field(default="", compare=False)
    without_slots: tuple[Master, ...] = field(default=(), compare=False)

    @property
    def unserved_slots(self) -> int:
        """The number of slots without a master."""
        return SLOTS - sum(last + 1 - first for each in self.masters for first, last in each.slots)

    def leaves_unserved(self, master: Master) -> bool:
        """Tell whether a slot of a former master has no master now."""
        return any(
            owner_of(slot, self.masters) is None for first, last in master.slots for slot in (first, last)
        )

    def has_replaced(self, old: Master, new: Master, before: View) -> bool:
        """Tell whether a replica has replaced its master, so that this was a failover, and no slots moved.

        Args:
            old: A former master.
            new: A master that has slots of the former one now, and had none before.
            before: The last view in which the former one was a master.
        """
        if not any(
            first <= new_last and new_first <= last
            for first, last in old.slots
            for new_first, new_last in new.slots
        ):
            return False
        if new.node_id in before.node_ids:
            return (new.node_id, old.node_id) in before.replicas
        return old.node_id in self.failed or (old.node_id, new.node_id) in self.replicas


class Topology:
    """Finds the masters of one cluster, and keeps a client for each."""

    def __init__(
        self,
        cluster: RedisCluster,
        *,
        timeout_seconds: float,
        name_rights: Callable[[Redis], Awaitable[object]] | None = None,
    ) -> None:
        """Take the client of the cluster. It is neither used for commands nor closed here.

        Args:
            cluster: The client, which names some nodes, and the options of connections.
            timeout_seconds: How long one node may take to tell what it knows.
            name_rights: Called with the client of a node that does not let this user ask for the topology. It
                raises the error that names the missing rights.
        """
        self._name_rights = name_rights
        manager: Any = cluster.nodes_manager
        nodes = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
        self._seeds: list[Address] = [(str(node.host), int(node.port)) for node in nodes]
        self._remap: Callable[[Address], Address] | None = getattr(manager, "address_remap", None)
        options = {k: v for k, v in cluster.connection_kwargs.items() if k not in _NOT_FOR_A_NODE}
        self._connection_class: type[Connection] = options.pop("connection_class", Connection)
        self._most = min(int(options.pop("max_connections", _MAX_CONNECTIONS)), _MAX_CONNECTIONS)
        self._options = options
        self._timeout = timeout_seconds
        self._clients: dict[Address, Redis] = {}
        self._left: dict[Address, Redis] = {}  # of nodes that are not asked any more

    @property
    def clients(self) -> list[Redis]:
        """The open clients."""
        return list(self._clients.values())

    def client(self, address: Address) -> Redis:
        """Return the client of a node. It does not connect yet."""
        client = self._clients.get(address)
        if client is None and (client := self._left.pop(address, None)) is not None:
            self._clients[address] = client
        if client is None:
            host, port = address
            pool: ConnectionPool = ConnectionPool(
                connection_class=self._connection_class,
                max_connections=self._most,
                host=host,
                port=port,
                # One immediate retry, on a fresh connection: see `client.open_redis`.
                retry=Retry(NoBackoff(), 1),
                **self._options,
            )
            client = self._clients[address] = Redis.from_pool(pool)
        return client

    async def look(self, first: Iterable[Address] = (), *, epoch: int = 0) -> View:
        """Ask one node after the other, until one tells what it knows.

        Args:
            first: The nodes to ask before the others, best first.
            epoch: The epoch of the last view. If no node knows as much, the best view is returned.

        Raises:
            NeverTheCacheError: A node responds, and is not in a cluster.
            Exception: No node responds: the last error. Or no node lets this user ask: see `name_rights`.
        """
        best: View | None = None
        errors: dict[Address, Exception] = {}
        for address in dict.fromkeys([*first, *self._clients, *self._seeds]):
            try:
                with answered_within(self._timeout):
                    view = await self._ask(address)
                if view.epoch >= epoch:
                    return view
                best = view if best is None or view.epoch > best.epoch else best
            except Exception as exc:
                errors[address] = exc
                if _is_not_in_a_cluster(exc):
                    await self._raise(errors)
        if best is not None:
            return best
        return await self._raise(errors)

    async def look_at_once(self) -> View:
        """Ask all nodes that the client of the cluster names at the same time, for a command.

        Returns:
            What the first node tells that responds.

        Raises:
            NeverTheCacheError, Exception: See `look`.
        """
        asked = [asyncio.ensure_future(self.ask_all([address])) for address in dict.fromkeys(self._seeds)]
        errors: dict[Address, Exception] = {}
        try:
            for next_one in asyncio.as_completed(asked):
                for address, told in (await next_one).items():
                    if isinstance(told, View):
                        return told
                    errors[address] = told
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return await self._raise(errors)

    async def survey(self, view: View) -> dict[Address, View | Exception]:
        """Ask all nodes that the client of the cluster names, and all masters, at the same time.

        Args:
            view: What one node knows: see `look`.

        Returns:
            What each of them knows, or why it did not tell.
        """
        masters = [master.address for master in (*view.masters, *view.without_slots)]
        return await self.ask_all(dict.fromkeys([*self._seeds, *masters]))

    async def ask_all(self, addresses: Iterable[Address]) -> dict[Address, View | Exception]:
        """Ask some nodes. Return what each of them knows, or why it did not tell."""

        async def ask(address: Address) -> View | Exception:
            try:
                with answered_within(self._timeout):
                    return await self._ask(address)
            except Exception as exc:
                return exc

        asked = list(addresses)
        return dict(zip(asked, await asyncio.gather(*map(ask, asked)), strict=True))

    async def close_others(self, addresses: Iterable[Address]) -> None:
        """Close the clients of all other nodes."""
        for address in set(self._clients) - set(addresses):
            # A call may be under way on this client, and connect once more: so it is closed again in the end.
            client = self._left[address] = self._clients.pop(address)
            await _close(client)

    async def close(self) -> None:
        """Close all clients."""
        await self.close_others(())
        while self._left:
            _, client = self._left.popitem()
            await _close(client)

    def address(self, host: str, port: int) -> Address:
        """Return the address by which this process reaches a node that others know as `host` and `port`."""
        return self._remap((host, port)) if self._remap is not None else (host, port)

    # ---------------------------------------------------------------- helpers

    async def _raise(self, errors: Mapping[Address, Exception]) -> NoReturn:
        """Raise the error of a look at nodes of which none has told what it knows: see `look`."""
        last = next(reversed([*errors.values()]), None)
        if any(map(_is_not_in_a_cluster, errors.values())):
            raise NeverTheCacheError(
                "it is not in a cluster (cluster-enabled no): pass a redis.asyncio.Redis, or a redis:// URL."
            ) from last
        refusing = [address for address, exc in errors.items() if is_a_refused_command(exc)]
        if refusing and self._name_rights is not None:
            with answered_within(self._timeout):
                await self._name_rights(self.client(refusing[-1]))
        raise last or ConnectionError("The client of the Redis Cluster names no node.")

    async def _ask(self, address: Address) -> View:
        async with self.client(address).pipeline(transaction=False) as pipe:
            # As two words, so that no callback of the client parses the results.
            pipe.execute_command("CLUSTER", "SLOTS")
            pipe.execute_command("CLUSTER", "NODES")
            slots, nodes = await pipe.execute()
        lines = lines_of(_text(nodes))
        masters = self._masters(slots, asked=address)
        return View(
            masters,
            frozenset(line[0] for line in lines),
            epoch_in(lines),
            frozenset((line[0], line[3]) for line in lines if line[3] != "-"),
            frozenset(line[0] for line in lines if "fail" in line[2].split(",")),
            open_slots_in(lines),
            next((line[0] for line in lines if "myself" in line[2].split(",")), ""),
            self._without_slots(lines, masters, asked=address),
        )

    def _masters(self, slots: Sequence[Sequence[Any]], *, asked: Address) -> tuple[Master, ...]:
        found: dict[tuple[Address, str], list[tuple[int, int]]] = {}
        for first, last, master, *_ in slots:
            # A node that does not know its own address sends an empty one.
            host, port = _text(master[0] or b"") or asked[0], int(master[1])
            node_id = _text(master[2]) if len(master) > 2 else name_of((host, port))
            found.setdefault((self.address(host, port), node_id), []).append((int(first), int(last)))
        return tuple(Master(address, id_, tuple(ranges)) for (address, id_), ranges in found.items())

    def _without_slots(
        self, lines: Iterable[Sequence[str]], masters: Iterable[Master], *, asked: Address
    ) -> tuple[Master, ...]:
        owners, hosts = {each.node_id for each in masters}, {each.address[0] for each in masters}
        found = []
        for line in lines:
            flags = set(line[2].split(","))
            if "master" not in flags or line[0] in owners or flags & _NOT_ASKED:
                continue
            # host:port@port, and perhaps a name, which is used if the masters are known by their names
            place, _, names = line[1].partition(",")
            host, _, port = place.partition("@")[0].rpartition(":")
            name = names.partition(",")[0]
            host = name if name and "=" not in name and host not in hosts else host
            address = asked if "myself" in flags else self.address(host or asked[0], int(port))
            found.append(Master(address, line[0], ()))
        return tuple(found)


def lines_of(nodes: str) -> list[list[str]]:
    """Return the words of each line of CLUSTER NODES.

    They are: id, address, flags, master, ping, pong, configuration epoch, link, then slots; of the node that
    was asked also its open slots.
    """
    return [line.split(" ") for line in nodes.splitlines() if line]


def open_slots_in(lines: Iterable[Sequence[str]]) -> tuple[OpenSlot, ...]:
    """Return the slots on their way from or to the node that was asked, from the words of CLUSTER NODES."""
    told = (_OPEN_SLOT.fullmatch(word) for line in lines for word in line[8:] if word.startswith("["))
    return tuple(OpenSlot(int(each[1]), each[2] == ">", each[3]) for each in told if each)


def epoch_in(lines: Iterable[Sequence[str]]) -> int:
    """Return the greatest configuration epoch of a master, from the words of each line of CLUSTER NODES.

    Of a replica, nodes may tell different ones for a while: what it had before it became a replica.
    """
    return max((int(line[6]) for line in lines if "master" in line[2].split(",")), default=0)


def _is_not_in_a_cluster(error: Exception) -> bool:
    return isinstance(error, ResponseError) and "cluster support disabled" in str(error)


async def _close(client: Redis) -> None:
    with suppress(Exception):
        await run_to_the_end(client.aclose())


def slot_of(tag: str) -> int:
    """Return the slot of a key, or of the keys with a hash tag."""
    return key_slot(tag.encode())


def owner_of(slot: int, masters: Iterable[Master]) -> Master | None:
    """Return the master that owns a slot, `None` if none of these does."""
    return next((each for each in masters if each.owns(slot)), None)


def range_of(tag: str) -> int:
    """Return the number of the range that the slot of a hash tag is in."""
    return slot_of(tag) * RANGES // SLOTS


@cache
def tag_of_range(number: int) -> str:
    """Return a hash tag whose slot is in a range of slots: it is the same in each process."""
    return tag_in([(number * SLOTS // RANGES, (number + 1) * SLOTS // RANGES - 1)])


def tag_of_slot(slot: int) -> str:
    """Return a hash tag that has this slot: it is the same in each process."""
    return _tags_of_slots()[slot]


@cache
def _tags_of_slots() -> list[str]:
    """Return for each slot the first of the natural numbers that has it. This takes some 50 ms."""
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < SLOTS:
        tag = str(number)
        tags.setdefault(crc_hqx(tag.encode(), 0) % SLOTS, tag)
        number += 1
    return [tags[slot] for slot in range(SLOTS)]


def tag_in(slots: Iterable[tuple[int, int]]) -> str:
    """Return a hash tag whose slot is in one of the ranges: the first of the natural numbers that fits."""
    owned = {slot for first, last in slots for slot in range(first, last + 1)}
    number = 0
    while slot_of(str(number)) not in owned:
        number += 1
    return str(number)


def name_of(address: Address) -> str:
    """Return an address as text, for logs and `/readyz`."""
    return address_text(*address)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
