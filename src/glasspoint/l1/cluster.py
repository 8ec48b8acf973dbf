"""The cache in a Redis Cluster: one `Cache` for each master, and this router above them.

Open this file when a lost master costs more than its share, or when a slot has moved. An entry is one hash,
and its key has one slot, because the thread is the hash tag. So each step goes to one master.

    one for each master      the client, its limiter and pipelines, the epoch, the breaker, the trust
    one for the cluster      the name in the keys, the identity, the journal's sweep, quarantine

- **The reign** of a master stands in a field of each entry (`scripts/reign.lua`). After a failover, a restart
  or the arrival of a slot, the master has another one, and believes none of its older entries.
- **A slot that arrives** at a master makes this master suspect: nothing is read from it until the journal was
  swept. A row of the journal may stand for a write that the slot's last master did not receive.
- **MOVED**, and a slot without a master: the step is given up, PostgreSQL answers, and the topology is read
  again at once. No master is to blame.
- **ASK**: the slot is on its way. The scope of a write is in quarantine until its entry could be dropped.
- **A move that is called off**: its keys may come back after writes have passed them by. The cache begins
  another era (`l1.departures`).
- **A master that does not respond** (also CLUSTERDOWN) has its own breaker. The rows of its scopes stay in
  the journal, and do not keep the other masters from being trusted.
- **A master that was replaced** may have taken writes that its successor does not know: if it was cut off,
  it goes on for a part of `cluster-node-timeout`. So when a slot has another master, the scopes that this
  process has written there in the last minute go into the journal, and the sweeps drop their entries.

**The name of the cluster** in the keys, and in the cache's row in PostgreSQL, is the id of one of its nodes,
which a failover and a restart do not change. A process keeps the name in the row if this node still belongs
to the cluster. So all processes agree, and another cluster has another name. If the node has left the
cluster, the cache gets another name and another generation.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from redis.asyncio import RedisCluster
from redis.exceptions import MovedError

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.l1 import entry
from glasspoint.l1.cache import Cache, Committed, Intent, Reading
from glasspoint.l1.epoch import Server, Shard, UnidentifiedError, reign_of
from glasspoint.l1.quarantine import Quarantine
from glasspoint.l1.steps import Written
from glasspoint.logs import Throttle, get_logger
from glasspoint.model.scope import key_part
from glasspoint.redis.faults import CannotBeTheCacheError, NeverTheCacheError
from glasspoint.redis.permissions import check_permissions
from glasspoint.redis.signature import Signer
from glasspoint.redis.tls import named
from glasspoint.redis.topology import SLOTS, Address, Topology, name_of, owner_of, slot_of, tag_in
from glasspoint.redis.watched import WatchedTopology
from glasspoint.telemetry.events import EpochChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from redis.asyncio import Redis

    from glasspoint.l1.breaker import Breaker
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.identity import Identity
    from glasspoint.model.scope import Scope
    from glasspoint.redis.topology import Master, View
    from glasspoint.telemetry.events import BreakerState, Telemetry, WarmUpResult

__all__ = [
    "CLUSTER",
    "L1",
    "ClusterBreaker",
    "ClusterCache",
    "Finder",
    "is_named",
    "reign_in",
    "server_of",
    "servers_of",
    "topology_of",
]

_log = get_logger("glasspoint.l1")

CLUSTER = "cluster-"
"""How the name of a cluster begins. A single Redis never has such a reign."""

# How long a replaced master may have gone on: longer than any sensible `cluster-node-timeout`.
_RECENT_SECONDS = 60.0

# How long slots must have had no master before that is logged. In a failover, a node may know that the old
# master has lost its slots a moment before it knows who has them.
_PASSING_SECONDS = 2.0

# How long one node may take to answer a command.
_COMMAND_SECONDS = 2.0

# The cursor of a purge: the number of the master, and the cursor of its SCAN, which has 64 bits.
_CURSOR_BITS = 64


class ClusterCache:
    """The entries of all scopes, in one Redis Cluster. It has the interface of `Cache`."""

    def __init__(
        self,
        topology: Topology,
        telemetry: Telemetry,
        *,
        make: Callable[[Redis, Shard, Quarantine], Cache],
        breaker: Breaker,
        changed: Callable[[], object],
    ) -> None:
        """Take the cluster. Its topology is not known yet.

        Args:
            topology: Finds the masters.
            telemetry: Receives all events.
            make: Makes the cache of one master.
            breaker: Decides whether nodes are asked while no master is known.
            changed: Called when there are other masters.
        """
        self._changed = changed
        self._finder = Finder(self, breaker)
        self._watched = WatchedTopology(topology, adopt=self._saw)
        self._current_epoch = 0  # of the cluster: the greatest that a master has told
        self._forgotten_at = 0.0  # when old items of `_recent` were removed
        self._topology = topology
        self._make = make
        self.quarantine = Quarantine(telemetry)
        """The scopes whose key is refused, or whose slot is on its way."""
        self._nodes: dict[Address, Cache] = {}
        self._places: dict[Address, Shard] = {}
        self._owners: list[Cache | None] = [None] * SLOTS
        self._name: str | None = None
        self._identity: Identity | None = None
        self._signer: Signer | None = None
        self.is_absent = False
        """Whether PostgreSQL has no tables for a cache: see `Cache.is_absent`."""
        self.must_begin_anew = False
        """Whether the cache needs another era. `coherence.identity` resets it."""
        self._written: set[Written] = set()
        self._recent: dict[Scope, tuple[float, Cache]] = {}  # when each scope was last written, and where
        self._has_lost_owners = False  # whether slots have no master here, although one of the view has them
        self._telemetry = telemetry
        self._told_epoch = 0  # of the last view that showed a failover
        self._masters: dict[str, tuple[Master, View]] = {}  # node id -> master, and where it was seen last
        self._unserved_lines = Throttle()
        self._unserved_since = -inf  # when a view first showed slots without a master, in the last minute
        self._told_unserved = 0  # the number of slots in the last such line
        self._has_unserved = False  # whether this line was the last one about slots
        self._told_refusal = ""
        self.trust = _ClusterTrust(self)
        """Whether the masters are trusted."""
        self.breaker = ClusterBreaker(self)
        """Whether any master is asked."""

    # ---------------------------------------------------------------- the masters

    @property
    def nodes(self) -> tuple[Cache, ...]:
        """The caches of the masters."""
        return tuple(self._nodes.values())

    @property
    def shards(self) -> tuple[Cache | Finder, ...]:
        """The parts that fail and recover on their own: the masters, or what finds them if none is known."""
        return self.nodes or (self._finder,)

    @property
    def asked(self) -> list[Cache]:
        """The caches of the masters that are not left alone now."""
        return [node for node in self.nodes if node.breaker.is_closed]

    @property
    def is_stale(self) -> bool:
        """Whether the topology must be read again before all masters can be trusted."""
        return self._watched.is_stale

    def states(self) -> dict[str, BreakerState]:
        """Return the state of each master's breaker, by the master's host and port."""
        return {name_of(address): node.breaker.state for address, node in self._nodes.items()}

    @property
    def unserved_slots(self) -> int:
        """The number of slots without a master that this process knows."""
        return self._owners.count(None)

    def _node(self, scope: Scope) -> Cache | None:
        """Return the cache of the master that owns the slot of a scope. This asks nobody."""
        return self._owners[slot_of(key_part(scope.thread_id))]

    def is_away(self, scope: Scope) -> bool:
        """Whether the scope's master is left alone, or not known, so that not even a sweep asks it."""
        node = self._node(scope)
        return node is None or not node.breaker.is_closed

    async def look_again(self) -> None:
        """Read the topology, and ask each master whether a slot has arrived.

        Raises:
            L1Error: No node responds.
        """
        await self._look()
        asked = self.asked
        looking = (node.contact.look_at_node() for node in asked)
        results = await asyncio.gather(*looking, return_exceptions=True)
        for node, result in zip(asked, results, strict=True):
            if isinstance(result, int) and result > self._current_epoch:
                # This master knows of a failover that the node that was asked did not know of, perhaps
                # because it was cut off.
                self._current_epoch = result
                self._watched.doubt(self._address_of(node))
        if self._watched.ask_first is not None:
            await self._look()

    def _called_off(self, address: Address, what: str) -> None:
        """Let the cache begin anew, because the move of a slot was called off: see `l1.departures`."""
        self.must_begin_anew = True
        _log.warning(
            "At %s, %s. Keys may come back that newer writes have passed by, so nothing that stands in L1 "
            "(Redis) from before is believed, and the cache warms up anew. You need not do anything now. A "
            "move that is finished costs nothing.",
            name_of(address),
            what,
        )

    async def _look(self) -> None:
        """Read the topology from the node that is most likely to know it."""
        try:
            await self._watched.read(
                address for address, node in self._nodes.items() if node.breaker.is_closed
            )
        except CannotBeTheCacheError as exc:
            if not isinstance(exc, NeverTheCacheError):
                self._refused(exc)
            raise
        except L1Error:
            raise
        except Exception as exc:
            raise L1UnavailableError(
                f"No node of the Redis Cluster tells its topology ({named(exc)})."
            ) from exc
        self._told_refusal = ""

    def _saw(self, view: View, before: View | None) -> None:
        if view == before and not self._has_lost_owners:
            self._masters.update((each.node_id, (each, view)) for each in view.masters)
            self._report_unserved()
        else:
            self._adopt(view)
            self._changed()

    def _refused(self, error: CannotBeTheCacheError) -> None:
        """Leave all masters alone, because no node lets this user ask for the topology."""
        if str(error) != self._told_refusal:
            self._told_refusal = str(error)
            _log.error(
                "The Redis Cluster of L1 answers, and refuses to be the cache. PostgreSQL answers alone "
                "until that ends; no restart is needed then. %s",
                error,
            )
        for node in self.nodes:
            node.contact.lacks_rights(error)

    def _adopt(self, view: View) -> None:
        """Use another topology. A master that has gained a slot is suspect."""
        before, self._owners, self._has_lost_owners = self._owners, [None] * SLOTS, False
        has_changed = False
        for master in view.masters:
            node = self._node_of(master)
            has_gained = False
            for first, last in master.slots:
                has_gained = has_gained or any(owner is not node for owner in before[first : last + 1])
                self._owners[first : last + 1] = [node] * (last + 1 - first)
            if has_gained:
                node.trust.suspect()
                has_changed = True
        self._report_failovers(view)
        for address in set(self._nodes) - {master.address for master in view.masters}:
            # Its slots belong to others now. Should the address come back, its entries have another reign, or
            # its slots have arrived anew.
            node = self._nodes.pop(address)
            node.breaker.retire()
            self._written |= node.written
            self._remember_recent(node)
            del self._places[address]
        if has_changed:
            self._record_replaced()
        self._name = _name_in(view, known_as=self._name)
        self._report_unserved()

    def _report_failovers(self, view: View) -> None:
        """Count and log each master that a replica has replaced, once.

        Between the two there may be a view in which nobody has the slots. So a former master is remembered
        until they have a master again.
        """
        if view.epoch < self._told_epoch:
            return  # of a node that was cut off: it may name masters of the past
        told_epoch = self._told_epoch
        now = {master.node_id for master in view.masters}
        lost = [each for id_, each in self._masters.items() if id_ not in now]
        for new in (each for each in view.masters if each.node_id not in self._masters):
            for old, before in lost:
                if view.epoch > self._told_epoch and view.has_replaced(old, new, before):
                    self._report_failover(old, new)
                    told_epoch = view.epoch
        self._told_epoch = told_epoch
        self._masters = {
            **{old.node_id: (old, before) for old, before in lost if view.leaves_unserved(old)},
            **{each.node_id: (each, view) for each in view.masters},
        }

    def _report_failover(self, old: Master, new: Master) -> None:
        self._telemetry.emit(EpochChanged())
        _log.warning(
            "The shard %s of L1 (Redis) was failed over: %s is the master of its slots now. Nothing that "
            "stands there from before is believed, and the cache warms up anew.",
            name_of(old.address),
            name_of(new.address),
        )

    def _report_unserved(self) -> None:
        """Log how many slots have no master, if that lasts.

        The line comes again when the number grows, and otherwise at most once a minute.
        """
        unserved = self.unserved_slots
        if not unserved:
            if self._has_unserved:
                _log.info("All slots of the Redis Cluster have a master again.")
            self._has_unserved = False
            return
        now = monotonic()
        if now - self._unserved_since > self._unserved_lines.seconds:
            self._unserved_since = now
        if now - self._unserved_since < _PASSING_SECONDS:
            return
        is_due = bool(self._unserved_lines.due())
        if is_due or unserved > self._told_unserved:
            self._has_unserved, self._told_unserved = True, unserved
            _log.warning(
                "%d of %d slots of the Redis Cluster have no master: PostgreSQL answers for their threads. "
                "(The line comes again when the number grows, otherwise at most once in %d s.)",
                unserved,
                SLOTS,
                self._unserved_lines.seconds,
            )

    def _address_of(self, node: Cache) -> Address | None:
        return next((address for address, each in self._nodes.items() if each is node), None)

    def _node_of(self, master: Master) -> Cache:
        node = self._nodes.get(master.address)
        if node is None:
            tag = tag_in(master.slots)
            place = Shard(master.address, tag, self._redirected, master.node_id, self._called_off)
            node = self._make(self._topology.client(master.address), place, self.quarantine)
            if (former := self._former_address(master)) is not None:
                node.contact.follow(self._nodes[former].contact)
            node.identify(self._identity, is_absent=self.is_absent)
            self.trust.share_with(node)
            self._nodes[master.address], self._places[master.address] = node, place
        elif not master.owns(slot_of(self._places[master.address].tag)):
            self._places[master.address].tag = tag_in(master.slots)
        node.contact.slots = master.slots
        return node

    def _former_address(self, master: Master) -> Address | None:
        """Return the address that a master had before, if it is another one."""
        return next((addr for addr, place in self._places.items() if place.node_id == master.node_id), None)

    def _redirected(self, scope: Scope | None, error: Exception) -> None:
        """Read the topology again, because a master does not own a slot that it should own.

        Until then, the slot has no master here. So whichever master has it then is suspect.
        """
        owner: Address | None = None
        if isinstance(error, MovedError) and error.host:
            owner = self._topology.address(error.host, error.port)
        self._watched.doubt(owner)
        if scope is not None:
            self._owners[slot_of(key_part(scope.thread_id))] = None
            self._has_lost_owners = True
        self.trust.look_soon()

    # ---------------------------------------------------------------- the identity

    @property
    def server(self) -> Server | None:
        """The cluster, as if it were one server: its name, and the version of a master."""
        if self._name is None:
            return None
        versions = [node.server.version for node in self.nodes if node.server is not None]
        return Server(self._name, min(versions, default=""), {})

    def recognise(self, reign: str) -> None:
        """Take over the name by which PostgreSQL knows this cluster, if it is one of this cluster's."""
        if self._watched.view is not None and is_named(self._watched.view, reign):
            self._name = reign

    @property
    def is_identified(self) -> bool:
        """Whether the keys have a name. While they have none, each step fails without asking Redis."""
        return self._identity is not None and bool(self._nodes)

    def identify(self, identity: Identity | None, *, is_absent: bool = False) -> None:
        """Use the keys of this identity from now on: see `Cache.identify`."""
        self._identity, self.is_absent = identity, is_absent
        self._signer = None if identity is None else Signer(identity.secret, identity.generation)
        for node in self.nodes:
            node.identify(identity, is_absent=is_absent)

    @property
    def written(self) -> set[Written]:
        """The scopes that this process has changed. `coherence.identity` takes them out."""
        return self._written.union(*(node.written for node in self.nodes))

    @written.setter
    def written(self, written: set[Written]) -> None:
        self._written = written
        for node in self.nodes:
            self._remember_recent(node)
            node.written = set()
        if monotonic() - self._forgotten_at > _RECENT_SECONDS / 4:
            self._forgotten_at = monotonic()
            oldest = self._forgotten_at - _RECENT_SECONDS
            self._recent = {scope: last for scope, last in self._recent.items() if last[0] >= oldest}

    def _remember_recent(self, node: Cache) -> None:
        now = monotonic()
        for each in node.written:
            self._recent[each.scope] = now, node

    def _record_replaced(self) -> None:
        """Let the scopes be swept that this process has just written on another master than theirs now."""
        for node in self._nodes.values():
            self._remember_recent(node)
        oldest = monotonic() - _RECENT_SECONDS
        for scope, (written_at, node) in list(self._recent.items()):
            owner = self._node(scope)
            if written_at < oldest:
                del self._recent[scope]
            elif owner is not None and owner is not node:
                self._recent[scope] = written_at, owner
                self._written.add(Written(scope, None))

    def wrote_unannounced(self, scopes: Iterable[Scope]) -> None:
        """Record that scopes were changed in L2, but neither in Redis nor in the journal."""
        self._written.update(Written(scope, None) for scope in scopes)

    def wrote(self, intent: Intent) -> None:
        """Record that a burst's scope was changed in L2, and that Redis received no further step."""
        if self._identity is not None:
            self._written.add(Written(intent.scope, self._identity.generation))
            if (node := self._node(intent.scope)) is not None:
                self._recent[intent.scope] = monotonic(), node

    # ---------------------------------------------------------------- all masters

    async def open(self) -> Server:
        """Find the masters at the first contact, and check that each can be the cache: see `Contact.open`.

        A master that does not respond is left alone.

        Raises:
            L1Error: No master responds.
            NeverTheCacheError: This is no cluster, or a master can never be the cache.
        """
        await self._look()
        nodes = self.nodes
        results = await asyncio.gather(*(node.open() for node in nodes), return_exceptions=True)
        for node, result in zip(nodes, results, strict=True):
            if isinstance(result, NeverTheCacheError) or (
                isinstance(result, BaseException) and not isinstance(result, L1Error)
            ):
                raise result
            if isinstance(result, L1Error):
                node.breaker.trip(type(result.__cause__ or result).__name__)
        return self._any_of(results)

    async def connect(self, *, anew: bool = False) -> Server:
        """Find out which masters respond.

        Args:
            anew: Whether to read the topology even if it seems to be known.

        Raises:
            L1Error: No master responds.
        """
        if anew or self.is_stale or not self._nodes:
            await self._look()
        connecting = (node.connect() for node in self.asked)
        return self._any_of(await asyncio.gather(*connecting, return_exceptions=True))

    def _any_of(self, results: Collection[object]) -> Server:
        """Return the cluster, if one of its masters has responded."""
        server = self.server
        if server is not None and any(not isinstance(each, BaseException) for each in results):
            return server
        for error in results:
            if isinstance(error, BaseException):
                raise error
        raise L1UnavailableError("No master of the Redis Cluster responds.")

    async def ping(self) -> None:
        """Ask whether at least one master responds.

        Raises:
            L1Error: None does.
        """
        self._any_of(list((await self.look_at_shards()).values()))

    async def look_at_shards(self) -> Mapping[str, object]:
        """Return whether each master responds: host and port -> None, or the error."""
        nodes = dict(self._nodes)

        async def ask(node: Cache) -> None:
            if not node.breaker.is_closed:
                raise L1UnavailableError("The master is left alone.")
            await node.ping()

        results = await asyncio.gather(*map(ask, nodes.values()), return_exceptions=True)
        return {name_of(address): result for address, result in zip(nodes, results, strict=True)}

    async def forget(self, scopes: Collection[Scope]) -> set[Scope]:
        """DROP entries for a sweep of the journal: see `Cache.forget`.

        Returns:
            The scopes whose entry was not dropped: their key is refused, or their master does not respond.
            This master is suspect.
        """
        left: set[Scope] = set()
        by_node: dict[Cache, list[Scope]] = {}
        for scope in (each for each in scopes if each.is_cached):
            node = self._node(scope)
            if node is None or not node.breaker.is_closed:
                if node is not None:
                    node.trust.suspect()  # when it responds again, this row must be swept first
                left.add(scope)
            else:
                by_node.setdefault(node, []).append(scope)
        results = await asyncio.gather(
            *(node.forget(of_node) for node, of_node in by_node.items()), return_exceptions=True
        )
        for (node, of_node), result in zip(by_node.items(), results, strict=True):
            if isinstance(result, L1Error):
                node.trust.suspect()
                left |= set(of_node)
            elif isinstance(result, BaseException):
                raise result
            else:
                left |= result
        return left

    async def purge_some(self, cursor: int) -> int:
        """Delete entries that no process trusts any more, on one master after the other: see `Cache`."""
        nodes = [self._nodes[address] for address in sorted(self._nodes)]
        number, own = cursor >> _CURSOR_BITS, cursor & ((1 << _CURSOR_BITS) - 1)
        if self._identity is None:
            raise UnidentifiedError("The identity of PostgreSQL is not known: nothing is deleted.")
        if number >= len(nodes):
            return 0
        own = await nodes[number].purge_some(own)
        if own:
            return number << _CURSOR_BITS | own
        return number + 1 << _CURSOR_BITS if number + 1 < len(nodes) else 0

    async def remember(
        self, keys: Sequence[bytes], field: bytes, value: bytes, *, seconds: int
    ) -> set[bytes]:
        """Store a field of some hashes in Redis that are not entries: see `Cache.remember`.

        Returns:
            The keys where it was stored: those whose master responds.
        """
        return await self._of_keys(keys, lambda node, own: node.remember(own, field, value, seconds=seconds))

    async def remembers(self, keys: Sequence[bytes], field: bytes) -> set[bytes]:
        """Return the keys that still have what `remember` stored, and whose master responds."""
        return await self._of_keys(keys, lambda node, own: node.remembers(own, field))

    async def _of_keys(
        self, keys: Sequence[bytes], ask: Callable[[Cache, list[bytes]], Awaitable[set[bytes]]]
    ) -> set[bytes]:
        by_node: dict[Cache, list[bytes]] = {}
        for key in keys:
            node = self._owners[slot_of(key.decode())]
            if node is not None and node.breaker.is_closed:
                by_node.setdefault(node, []).append(key)
        asked = (ask(node, own) for node, own in by_node.items())
        found: set[bytes] = set()
        for result in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(result, set):
                found |= result
            elif not isinstance(result, L1Error):
                raise result
        return found

    # ---------------------------------------------------------------- one master

    def suspect(self, scope: Scope) -> None:
        """Make the scope's master suspect, because it did not receive a write: see `Cache.suspect`."""
        node = self._node(scope)
        if node is not None:
            node.suspect(scope)
        else:
            self.quarantine.suspect(scope)

    def is_left_alone(self, scope: Scope) -> bool:
        """Whether a step for this scope would fail without asking Redis."""
        node = self._node(scope)
        return node is None or node.is_left_alone(scope)

    def is_heeded(self, intent: Intent) -> bool:
        """Whether readers see the intent: the slot's master has confirmed it, and is the same now."""
        node = self._node(intent.scope)
        return node is not None and node.is_heeded(intent)

    def decode(self, scope: Scope, fields: list[bytes]) -> StoredCheckpoint:
        """Decode the image in an entry's fields: see `Cache.decode`."""
        if self._signer is None:
            raise UnidentifiedError("The identity of PostgreSQL is not known: the key is not, either.")
        return entry.decode_image(scope, fields, self._signer)

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Reading:
        """READ: return the image of the scope, or why there is none."""
        if not scope.is_cached:
            return Reading("bypassed")
        node = self._node(scope)
        return Reading("unavailable") if node is None else await node.read(scope, checkpoint_id)

    async def refuse(self, scope: Scope, checkpoint_id: bytes | str) -> Reading:
        """REFUSE: remove an image that cannot be used."""
        node = self._node(scope)
        return Reading("incomplete") if node is None else await node.refuse(scope, checkpoint_id)

    async def warm_up(self, scope: Scope, lease: bytes, stored: StoredCheckpoint) -> WarmUpResult:
        """WARM_UP: store the result of L2, unless a write has begun since."""
        node = self._node(scope)
        return "error" if node is None else await node.warm_up(scope, lease, stored)

    async def begin(self, scope: Scope) -> Intent:
        """BEGIN: announce a write."""
        node = self._node(scope)
        return Intent(scope, b"") if node is None else await node.begin(scope)

    async def begin_alone(self, scope: Scope) -> Intent | None:
        """BEGIN, if no other write to the scope is under way."""
        node = self._node(scope)
        return Intent(scope, b"") if node is None else await node.begin_alone(scope)

    async def confirm(self, intent: Intent) -> bool | None:
        """CONFIRM: L2 has a write of a burst."""
        node = self._node(intent.scope)
        return None if node is None else await node.confirm(intent)

    async def commit(
        self, intent: Intent, changes: entry.Changes, *, then_read: str | None = None
    ) -> Committed:
        """COMMIT: a burst is over, and L2 has all of it."""
        node = self._node(intent.scope)
        return Committed("error") if node is None else await node.commit(intent, changes, then_read=then_read)

    async def abort(self, intent: Intent) -> bool:
        """ABORT: L2 certainly did not change."""
        node = self._node(intent.scope)
        return node is not None and await node.abort(intent)

    async def drop(self, intent: Intent, *, still_running: bool = False) -> bool:
        """DROP: forget the entry."""
        node = self._node(intent.scope)
        return node is not None and await node.drop(intent, still_running=still_running)


L1: TypeAlias = "Cache | ClusterCache"
"""The cache in Redis, in one server or in a cluster."""


class _ClusterTrust:
    """Whether the masters are trusted: the interface of `TrustState`. Each master has its own state."""

    def __init__(self, cache: ClusterCache) -> None:
        self._cache = cache
        self._revalidate: Callable[[], Awaitable[bool]] | None = None
        self._look_soon: Callable[[], object] = lambda: None

    @property
    def is_trusted(self) -> bool:
        """Whether all masters that are asked are trusted."""
        return not self._cache.is_stale and all(node.trust.is_trusted for node in self._cache.asked)

    @property
    def suspicions(self) -> dict[Cache, int]:
        """How often each master has become suspect, of those that are asked now."""
        return {node: node.trust.suspicions for node in self._cache.asked}

    def suspect(self) -> None:
        """Make all masters suspect until the journal is swept."""
        for node in self._cache.nodes:
            node.trust.suspect()

    def trust(self, suspicions: dict[Cache, int]) -> bool:
        """Trust masters again after a sweep of the journal. Return whether all that are asked are trusted.

        Args:
            suspicions: The value of `suspicions` when the sweep began.
        """
        for node, number in suspicions.items():
            node.trust.trust(number)
        return self.is_trusted

    def be_revalidated_by(
        self, revalidate: Callable[[], Awaitable[bool]], *, look_soon: Callable[[], object]
    ) -> None:
        """Receive the sweeper."""
        self._revalidate, self._look_soon = revalidate, look_soon

    def share_with(self, node: Cache) -> None:
        """Let the reads of one master wait for the sweeper, too."""

        async def revalidate() -> bool:
            if self._revalidate is not None and node.breaker.is_closed:
                await self._revalidate()
            return node.trust.is_trusted

        node.trust.be_revalidated_by(revalidate, look_soon=self.look_soon)

    async def revalidate(self) -> bool:
        """Sweep the journal for a read that waits."""
        return self._revalidate is None or await self._revalidate()

    def look_soon(self) -> None:
        """Make a sweep begin at once."""
        self._look_soon()


class Finder:
    """Finds the masters as long as none is known. For the sweeper, it is a part that has failed."""

    def __init__(self, cache: ClusterCache, breaker: Breaker) -> None:
        self._cache = cache
        self.breaker = breaker

    async def probe(self) -> None:
        """Find the masters.

        Raises:
            L1Error: None responds.
        """
        await self._cache.open()


class ClusterBreaker:
    """The breakers of all masters, for those who need one word. Each master has its own breaker."""

    def __init__(self, cache: ClusterCache) -> None:
        self._cache = cache

    def _each(self) -> list[Breaker]:
        return [node.breaker for node in self._cache.shards]

    @property
    def is_closed(self) -> bool:
        """Whether any master may be asked."""
        return any(breaker.is_closed for breaker in self._each())

    @property
    def state(self) -> BreakerState:
        """`closed` if all masters are asked; otherwise `open` or `half_open`."""
        states = {breaker.state for breaker in self._each()}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    @property
    def seconds_to_probe(self) -> float:
        """The time until a master may be probed."""
        return min((b.seconds_to_probe for b in self._each() if b.state == "open"), default=0.0)

    def trip(self, reason: str) -> None:
        """Leave all masters alone."""
        for breaker in self._each():
            breaker.trip(reason)


def is_named(view: View, name: str) -> bool:
    """Tell whether a name is one that this cluster may have: that of one of its nodes."""
    return name.startswith(CLUSTER) and name.removeprefix(CLUSTER) in view.node_ids


def _name_in(view: View, *, known_as: str | None) -> str | None:
    """Return the known name of a cluster, if it may have it, else a new one. `None`: it has no master."""
    if known_as is not None and is_named(view, known_as):
        return known_as
    return min((CLUSTER + master.node_id for master in view.masters), default=None)


async def reign_in(redis: Redis | RedisCluster, *, key_prefix: str, known_as: str | None) -> str:
    """Return the reign of a Redis, or the name of a Redis Cluster, for a command.

    Args:
        redis: The client.
        key_prefix: The first part of every key.
        known_as: The name by which PostgreSQL knows the Redis of the cache.

    Raises:
        L1Error: This Redis cannot be a cache.
        Exception: No server responds.
    """
    if not isinstance(redis, RedisCluster):
        return await reign_of(redis)
    async with topology_of(redis, key_prefix=key_prefix) as (_, view):
        pass
    return _name_in(view, known_as=known_as) or CLUSTER


@asynccontextmanager
async def topology_of(redis: RedisCluster, *, key_prefix: str) -> AsyncIterator[tuple[Topology, View]]:
    """Find the masters of a cluster for a command, and close their clients afterwards.

    Args:
        redis: The client. It is not used for commands.
        key_prefix: The first part of every key, for the error that names missing rights.

    Raises:
        CannotBeTheCacheError: No node lets this user ask for the topology.
        Exception: No node responds.
    """
    name_rights = partial(check_permissions, key_prefix=key_prefix, tag="")
    topology = Topology(redis, timeout_seconds=_COMMAND_SECONDS, name_rights=name_rights)
    try:
        yield topology, await topology.look_at_once()
    finally:
        await topology.close()


@asynccontextmanager
async def servers_of(
    redis: Redis | RedisCluster, *, key_prefix: str
) -> AsyncIterator[list[tuple[Redis, str | None]]]:
    """Find the servers of a Redis for a command: see `topology_of`.

    Yields:
        The client of each master, and the hash tag of one of its slots. Or a single Redis, and `None`.
    """
    if not isinstance(redis, RedisCluster):
        yield [(redis, None)]
        return
    async with topology_of(redis, key_prefix=key_prefix) as (topology, view):
        yield [(topology.client(each.address), tag_in(each.slots)) for each in view.masters]


@asynccontextmanager
async def server_of(
    redis: Redis | RedisCluster, scope: Scope, *, key_prefix: str, era: str = ""
) -> AsyncIterator[tuple[Redis, str | None, str | None]]:
    """Find the server that holds the entry of a scope, for a command.

    Yields:
        Its client; in a cluster, also the reign that its entries name, and its host and port, else `None`.

    Raises:
        L1UnavailableError: The slot has no master.
        Exception: No node responds.
    """
    if not isinstance(redis, RedisCluster):
        yield redis, None, None
        return
    slot = slot_of(key_part(scope.thread_id))
    async with topology_of(redis, key_prefix=key_prefix) as (topology, view):
        master = owner_of(slot, view.masters)
        if master is None:
            raise L1UnavailableError("The slot of this thread has no master in the Redis Cluster.")
        client = topology.client(master.address)
        yield client, await reign_of(client, in_cluster=True, era=era), name_of(master.address)
