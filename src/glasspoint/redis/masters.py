"""Sends commands to the masters of a Redis Cluster, and follows its redirections: for `RedisSaver`.

Open this when a call of a `RedisSaver` fails although the master of its thread responds. Each master has a
plain client (`topology`). The client of the cluster (`redis.asyncio.RedisCluster`) would follow redirections,
too, but:

- When it finds the nodes anew, it asks one certain master for a list of commands. While this master is away,
  no other one is asked for anything.
- It sends ASKING and the command that follows on two connections, if other calls are under way.

A command is repeated if the cluster has refused it: nothing of it was done then. It is also repeated if the
connection was lost, and the slot has another master now: all steps may be repeated.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import (
    AskError,
    ClusterDownError,
    ConnectionError,
    MaxConnectionsError,
    MovedError,
    RedisClusterException,
    SlotNotCoveredError,
    TimeoutError,
    TryAgainError,
)

from glasspoint.redis.faults import NeverTheCacheError
from glasspoint.redis.topology import Topology, owner_of, slot_of, tag_in
from glasspoint.redis.watched import WatchedTopology

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from redis.asyncio import Redis, RedisCluster

    from glasspoint.redis.topology import Address, View

__all__ = ["Masters", "OneServer"]

# How often a command is sent to another master, because the slot has moved or the topology was old.
_MOVES = 3

# How long a command is tried again while its slot is on the way, and the pause between two attempts.
_ON_ITS_WAY_SECONDS = 0.5
_ON_ITS_WAY_STEP_SECONDS = 0.05

# The part of the time of a step that one node may take to tell the topology: so others can be asked, too.
_PARTS_OF_A_STEP = 4


class OneServer:
    """A Redis of one server, with the interface of `Masters`."""

    def __init__(self, redis: Redis) -> None:
        """Take the client. It is not closed here."""
        self._redis: Any = redis

    @property
    def clients(self) -> list[Redis]:
        """The client."""
        return [self._redis]

    async def all(self) -> list[Redis]:
        """Return the client."""
        return [self._redis]

    async def reigning(self) -> tuple[int, list[Redis]]:
        """Return 0, and the client: see `Masters.reigning`."""
        return 0, [self._redis]

    async def tagged(self) -> list[tuple[Redis, str | None]]:
        """Return the client, and no hash tag."""
        return [(self._redis, None)]

    def run(self, key: str, *command: Any) -> Awaitable[Any]:
        """Send a command."""
        return self._redis.execute_command(*command)  # type: ignore[no-any-return]

    async def run_together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in one trip. Return their results, or the errors of the server."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=False)  # type: ignore[no-any-return]

    async def ping(self) -> None:
        """Check that the server responds."""
        await self._redis.ping()

    async def close(self) -> None:
        """Do nothing: the client is not closed here."""


class Masters:
    """The masters of one Redis Cluster."""

    def __init__(
        self,
        redis: RedisCluster,
        *,
        timeout_seconds: float,
        name_rights: Callable[[Redis], Awaitable[object]] | None = None,
    ) -> None:
        """Take the client of the cluster. It is neither used for commands nor closed here.

        Args:
            redis: The client.
            timeout_seconds: How long a step may take. Nothing here ends a command that takes longer.
            name_rights: See `Topology`.
        """
        self.topology = Topology(
            redis, timeout_seconds=timeout_seconds / _PARTS_OF_A_STEP, name_rights=name_rights
        )
        """Keeps the clients."""
        self._watched = WatchedTopology(self.topology)

    @property
    def clients(self) -> list[Redis]:
        """The open clients."""
        return self.topology.clients

    async def all(self) -> list[Redis]:
        """Return the client of each master that owns slots.

        Raises:
            Exception: No node tells the topology.
        """
        return [self.topology.client(each.address) for each in (await self._look()).masters]

    async def reigning(self) -> tuple[int, list[Redis]]:
        """Read the topology again. Return its epoch, which each failover raises, and each master's client.

        Raises:
            Exception: No node tells the topology.
        """
        self._watched.doubt()
        clients = await self.all()
        return (await self._look()).epoch, clients

    async def tagged(self) -> list[tuple[Redis, str | None]]:
        """Return the client of each master that owns slots, and the hash tag of one of its slots.

        Raises:
            Exception: No node tells the topology.
        """
        masters = (await self._look()).masters
        return [(self.topology.client(each.address), tag_in(each.slots)) for each in masters]

    async def run(self, key: str, *command: Any) -> Any:
        """Send a command to the master that has a key.

        Raises:
            SlotNotCoveredError: No master has the slot of the key.
            Exception: The error of the client, or of the server.
        """
        give_up_at, moves, asking = monotonic() + _ON_ITS_WAY_SECONDS, 0, False
        address: Address | None = None
        while True:
            if address is None:
                address = await self._address_of(key)
            client: Any = self.topology.client(address)
            try:
                if not asking:
                    return await client.execute_command(*command)
                return await _ask(client, command)
            except MovedError as exc:
                self._watched.doubt(self.topology.address(exc.host, exc.port))
                moves, address, asking = moves + 1, None, False
                if moves > _MOVES:
                    raise
            except AskError as exc:
                address, asking = self.topology.address(exc.host, exc.port), True
                if monotonic() > give_up_at:
                    raise
            except TryAgainError:
                if monotonic() > give_up_at:
                    raise
                address, asking = None, False
                await asyncio.sleep(_ON_ITS_WAY_STEP_SECONDS)
            except MaxConnectionsError:
                raise  # nothing was sent, and nothing is wrong with the master
            except (ClusterDownError, asyncio.CancelledError):  # a timeout is a cancellation here
                self._watched.doubt()
                raise
            except (ConnectionError, TimeoutError, OSError):
                self._watched.doubt()
                moves, before = moves + 1, address
                address, asking = await self._address_of(key), False
                if address == before or moves > _MOVES:
                    self._watched.doubt()  # perhaps a replica takes over soon: the next command looks
                    raise

    async def run_together(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands on one key each, which is their first argument, in one trip to each master.

        Returns:
            Their results, or the errors of the servers.

        Raises:
            SlotNotCoveredError: No master has the slot of a key.
            Exception: A master did not respond, or the cluster is down.
        """
        by_master: dict[Address, list[int]] = {}
        for number, command in enumerate(commands):
            by_master.setdefault(await self._address_of(command[1]), []).append(number)
        results: list[Any] = [None] * len(commands)

        async def send(address: Address, numbers: list[int]) -> None:
            async with self.topology.client(address).pipeline(transaction=False) as pipe:
                for number in numbers:
                    pipe.execute_command(*commands[number])
                for number, result in zip(numbers, await pipe.execute(raise_on_error=False), strict=True):
                    results[number] = result

        try:
            await _gather(send(address, numbers) for address, numbers in by_master.items())
        except BaseException:
            self._watched.doubt()
            raise
        for number, result in enumerate(results):
            if isinstance(result, ClusterDownError):
                self._watched.doubt()
                raise result
            if isinstance(result, AskError | TryAgainError):
                results[number] = await self.run(commands[number][1], *commands[number])
        return results

    async def ping(self) -> None:
        """Check that each master responds.

        Raises:
            Exception: One does not.
        """
        for is_last in (False, True):
            try:
                await _gather(client.ping() for client in await self.all())
            except BaseException as exc:
                self._watched.doubt()  # perhaps a replica has taken over
                if is_last or not isinstance(exc, Exception):
                    raise
            else:
                return

    async def settled(self) -> object:
        """Return a value that is another one after a failover, and after slots have moved.

        Returns:
            `None` while a slot is on its way from one master to another, or if a master does not tell.

        Raises:
            Exception: No node tells the topology.
        """
        self._watched.doubt()
        view = await self._look()
        told = await self.topology.ask_all(each.address for each in view.masters)
        if any(isinstance(each, Exception) or each.open_slots for each in told.values()):
            return None
        # Without an order and without addresses: each node tells its own.
        return view.epoch, frozenset((each.node_id, frozenset(each.slots)) for each in view.masters)

    async def close(self) -> None:
        """Close the clients of the masters."""
        await self.topology.close()

    # ---------------------------------------------------------------- helpers

    async def _address_of(self, key: str) -> Address:
        slot = slot_of(key)
        for _ in range(2):
            master = owner_of(slot, (await self._look()).masters)
            if master is not None:
                return master.address
            self._watched.doubt()
        raise SlotNotCoveredError("The slot of this key has no master.")

    async def _look(self) -> View:
        try:
            return await self._watched.known()
        except NeverTheCacheError as exc:
            raise RedisClusterException("This server is not in a Redis Cluster.") from exc


async def _ask(client: Redis, command: Sequence[Any]) -> Any:
    """Send a command to the master that a slot is on its way to."""
    async with client.pipeline(transaction=False) as pipe:
        pipe.execute_command("ASKING")
        pipe.execute_command(*command)
        _, result = await pipe.execute(raise_on_error=False)
    if isinstance(result, Exception):
        raise result
    return result


async def _gather(asked: Iterable[Awaitable[Any]]) -> None:
    """Wait for all, and raise the first error."""
    for result in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
