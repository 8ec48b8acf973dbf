"""Reads cached states from a Redis Cluster: each from the master that owns its slot, in this master's reign.

Open this when a conversation does not go on from its cached state in a cluster. As in `l1.cluster`, each
master has a plain client and an epoch of its own, and no step follows a redirection.

- **The record** that names the keys (`last_used`) stands once for each range of slots. It has the same slot
  as the list of threads of the tier `redis` for this range. So where the record cannot be read, the thread
  cannot be read either. If another master has the entry, a record there must name the same keys: the master
  of the range may have been away when the keys changed.
- **The reign** of the master is in the script PEEK, which believes no entry of another one. Before each PEEK,
  the master is asked whether a slot has arrived, because then its reign is another one.
- **MOVED**, or a slot without a master: the topology is read again. If that does not help, nobody knows
  whether there is a cached state.
- **ASK**: the entry is on its way to another master, or not there. That master does not believe it, so there
  is no cached state.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ClusterDownError, ResponseError

from glasspoint.coherence.images import LOOKS, NOTHING, Peeked, asked, is_of_another_epoch, peeked, warn
from glasspoint.errors import L1Error, RedisUnavailableError
from glasspoint.l1.cluster import is_named
from glasspoint.l1.epoch import EpochKeeper, Shard, key_of
from glasspoint.model.scope import key_part
from glasspoint.redis.faults import ReplicaError, redirection_of
from glasspoint.redis.signature import Signer
from glasspoint.redis.topology import (
    RANGES,
    Address,
    Topology,
    owner_of,
    range_of,
    slot_of,
    tag_in,
    tag_of_range,
)
from glasspoint.redis.watched import WatchedTopology

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import Redis, RedisCluster

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.model.generics import ResultT
    from glasspoint.model.identity import Identity
    from glasspoint.model.scope import Scope
    from glasspoint.redis.topology import Master, View

__all__ = ["InCluster"]

# How many nodes may hang, one after the other, until the topology is known, in the time of one step.
_NODES_A_STEP = 4

_UNKNOWN = "whether the Redis Cluster has a cached state is not known."


@dataclass(frozen=True, slots=True)
class _Node:
    """A master, as it is asked here."""

    redis: Redis
    epochs: EpochKeeper


class _MovedError(Exception):
    """Another master has the slot, or none: the topology must be read again."""


class InCluster:
    """The entries in a Redis Cluster."""

    def __init__(
        self, redis: RedisCluster, last_used: LastUsed, *, key_prefix: str, timeout_seconds: float
    ) -> None:
        """Name the target.

        Args:
            redis: The client of the cluster. It is not closed here.
            last_used: Reads the records that name the keys.
            key_prefix: The first part of every key.
            timeout_seconds: How long one step may take.
        """
        self._topology = Topology(redis, timeout_seconds=timeout_seconds / _NODES_A_STEP)
        self._last_used = last_used
        self._key_prefix = key_prefix
        self._timeout = timeout_seconds
        self._watched = WatchedTopology(self._topology, adopt=self._forget_others)
        self._nodes: dict[Address, _Node] = {}
        self._records: dict[int, tuple[bytes, Identity]] = {}  # number of a range -> its record
        self._has_warned = False

    async def peek(self, scope: Scope) -> Peeked:
        """Read the entry of a scope.

        Raises:
            RedisUnavailableError: A master did not respond, or the slot has none.
        """
        number = range_of(key_part(scope.thread_id))
        try:
            for _ in range(LOOKS):
                found = await self._with_the_topology(lambda view: self._peek(view, scope, number))
                if found is not None:
                    return found
        except (ResponseError, L1Error) as exc:
            if isinstance(exc, ClusterDownError):
                raise RedisUnavailableError(f"The Redis Cluster is down: {_UNKNOWN}") from exc
            if not self._has_warned:
                self._has_warned = True
                warn(exc)
        return NOTHING

    async def forget(self, scope: Scope) -> None:
        """Delete the entry of a scope.

        Raises:
            RedisUnavailableError: A master did not respond, or the slot has none.
        """
        number = range_of(key_part(scope.thread_id))

        async def delete(view: View) -> None:
            identity = await self._identity_of(view, number)
            if identity is not None:
                key = key_of(scope, identity, key_prefix=self._key_prefix)
                await self._results(self._node_of(view, _slot_of(scope)), [("DEL", key)])

        await self._with_the_topology(delete)

    async def close(self) -> None:
        """Close the clients of the masters."""
        await self._topology.close()

    # ---------------------------------------------------------------- helpers

    async def _peek(self, view: View, scope: Scope, number: int) -> Peeked | None:
        """Read an entry. Return `None` if the record or a reign has changed: then try again."""
        identity = await self._identity_of(view, number)
        if identity is None or not is_named(view, identity.reign):
            return NOTHING
        node, of_record = self._node_of(view, _slot_of(scope)), self._node_of(view, _slot_of_range(number))
        node.epochs.identify(identity)
        await self._asked(node.epochs.look_at_node)
        server = await self._asked(node.epochs.meet)
        record = self._ask_for_record(number)
        key = key_of(scope, identity, key_prefix=self._key_prefix)
        peek = ("EVALSHA", server.shas["peek"], 1, key)
        if node is of_record:
            said, result = await self._results(node, [record, peek])
        else:
            [said], [*own, result] = await asyncio.gather(
                self._results(of_record, [record]),
                self._results(node, [*map(self._ask_for_record, _range_of_master(view, scope)), peek]),
            )
            if any(not isinstance(each, bytes) or self._last_used.unpack(each) != identity for each in own):
                return NOTHING
        if isinstance(said, Exception):
            raise said if redirection_of(said) is None else _of_a_slot_on_its_way(said)
        if said != self._records[number][0]:
            del self._records[number]
            return None
        if is_of_another_epoch(result):
            node.epochs.distrust()
            return None
        if isinstance(result, Exception):
            if redirection_of(result) == "moving":
                return NOTHING
            raise result
        return peeked(result, Signer(identity.secret, identity.generation))

    async def _identity_of(self, view: View, number: int) -> Identity | None:
        """Return the identity in the record of a range of slots, `None` if there is no record to trust."""
        if number not in self._records:
            of_record = self._node_of(view, _slot_of_range(number))
            [record] = await self._results(of_record, [self._ask_for_record(number)])
            if isinstance(record, Exception):
                raise record if redirection_of(record) is None else _of_a_slot_on_its_way(record)
            identity = None if record is None else self._last_used.unpack(record)
            if identity is None:
                return None
            self._records[number] = record, identity
        return self._records[number][1]

    def _ask_for_record(self, number: int) -> tuple[Any, ...]:
        return ("HGET", self._last_used.keys_in_cluster[number], self._last_used.field)

    async def _with_the_topology(self, ask: Callable[[View], Awaitable[ResultT]]) -> ResultT:
        """Ask the masters. If another one has the slot, read the topology again, and repeat that.

        Raises:
            RedisUnavailableError: A master did not respond, or the slot has none.
        """
        for _ in range(LOOKS):
            view = await self._look()
            try:
                return await ask(view)
            except (_MovedError, ReplicaError):
                self._watched.doubt()
            except RedisUnavailableError:
                self._watched.doubt()  # perhaps a replica has taken over: the next call looks
                raise
        raise RedisUnavailableError(f"The slot of the thread has no master: {_UNKNOWN}")

    async def _look(self) -> View:
        try:
            return await self._watched.known()
        except Exception as exc:
            raise RedisUnavailableError(
                f"No node of the Redis Cluster tells its topology ({type(exc).__name__}): {_UNKNOWN}"
            ) from exc

    def _forget_others(self, view: View, before: View | None) -> None:
        addresses = {master.address for master in view.masters}
        self._nodes = {address: node for address, node in self._nodes.items() if address in addresses}

    def _node_of(self, view: View, slot: int) -> _Node:
        master = _master_of(view, slot)
        node = self._nodes.get(master.address)
        if node is None:
            node = self._nodes[master.address] = self._new(master)
        return node

    def _new(self, master: Master) -> _Node:
        redis = self._topology.client(master.address)
        shard = Shard(master.address, tag_in(master.slots), lambda scope, error: None)
        epochs = EpochKeeper(
            redis, key_prefix=self._key_prefix, changed=lambda server, previous: None, shard=shard
        )
        return _Node(redis, epochs)

    async def _results(self, node: _Node, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands to a master, and return their results or errors.

        Raises:
            _MovedError: Another master has the slot, or none.
        """

        async def send() -> list[Any]:
            async with node.redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)

        results = await self._asked(send)
        for each in results:
            if isinstance(each, Exception) and redirection_of(each) == "moved":
                raise _MovedError from each
        return results

    async def _asked(self, ask: Callable[[], Awaitable[ResultT]]) -> ResultT:
        return await asked(ask, timeout_seconds=self._timeout)


def _master_of(view: View, slot: int) -> Master:
    master = owner_of(slot, view.masters)
    if master is None:
        raise _MovedError
    return master


def _range_of_master(view: View, scope: Scope) -> list[int]:
    """Return a range whose record is on the master of a scope's entry; none if there is no such range."""
    master = _master_of(view, _slot_of(scope))
    return [number for number in range(RANGES) if master.owns(_slot_of_range(number))][:1]


def _slot_of(scope: Scope) -> int:
    return slot_of(key_part(scope.thread_id))


def _slot_of_range(number: int) -> int:
    return slot_of(tag_of_range(number))


def _of_a_slot_on_its_way(cause: Exception) -> RedisUnavailableError:
    error = RedisUnavailableError(f"A slot is on its way to another master: {_UNKNOWN}")
    error.__cause__ = cause
    return error
