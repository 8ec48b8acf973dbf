"""The atomic steps on an entry. A step is one script, and one round trip.

Open this to see how a process reacts to a fault of Redis. An error of Redis never reaches a caller's read or
write: a step returns a safe result instead (`unavailable`, `error`), and emits an event. The Lua file of a
step says what it promises. `savers/cached.py` composes steps into reads and writes.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import AskError, AuthenticationError, AuthorizationError, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.l1 import entry
from glasspoint.l1.breaker import Breaker
from glasspoint.l1.departures import has_to_ask, sight_of, what_was_called_off
from glasspoint.l1.epoch import COMMAND_STATS, WRONG_EPOCH, Epoch, EpochKeeper, Server, UnidentifiedError
from glasspoint.l1.quarantine import OneKeyError, Quarantine
from glasspoint.l1.trust import TrustState
from glasspoint.logs import Throttle, get_logger
from glasspoint.model.scope import Scope
from glasspoint.redis import faults
from glasspoint.redis.auto_pipeline import AutoPipeline
from glasspoint.redis.client import database_of, look_again
from glasspoint.redis.limiter import when_connected
from glasspoint.redis.permissions import check_permissions
from glasspoint.redis.sentinels import UnknownServiceError
from glasspoint.redis.timeouts import answered_within
from glasspoint.redis.tls import named
from glasspoint.redis.topology import name_of
from glasspoint.telemetry.events import (
    CommitResult,
    EpochChanged,
    Invalidated,
    L1Availability,
    L1Result,
    WarmUpEnded,
    WarmUpResult,
    WarmUpSkipped,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

    from redis.asyncio import Redis

    from glasspoint.l1.compression import Packer
    from glasspoint.l1.departures import Sight
    from glasspoint.l1.epoch import Shard
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.generics import ResultT
    from glasspoint.model.identity import Identity
    from glasspoint.redis.signature import Signer
    from glasspoint.telemetry.events import Telemetry

__all__ = ["Cache", "Committed", "Intent", "Reading", "Written"]

_log = get_logger("glasspoint.l1")

_MISS, _HIT, _BUSY, _HISTORICAL = range(4)
_READ_RESULTS: dict[int, L1Result] = {_MISS: "miss", _HIT: "hit", _BUSY: "busy", _HISTORICAL: "historical"}
_COMMIT_RESULTS: tuple[CommitResult, ...] = ("discarded", "applied", "kept")
_WARM_UP_RESULTS: tuple[WarmUpResult, ...] = ("overtaken", "stored", "not_first")

# How many entries a sweep of the journal drops at once.
_SCOPES_AT_ONCE = 16

_KEYS_A_SCAN = 1000

# How often a read is tried, if something goes wrong with Redis while it is under way.
_READS = 3

# A step with more bytes may be slow because of its size, not because of Redis.
_LARGE_BYTES = 1_000_000

# The longest lifetime that PEXPIRE accepts: about 3,000 years. It would refuse a longer one only after the
# script's other commands are done.
_MAX_TTL_MS = 10**14

# The steps that record a change in Redis. Another Redis, or the entries of another identity, do not have it.
_CHANGING = frozenset(("confirm", "commit", "drop"))

# The scope of probes in telemetry. No caller can have it, because no thread id holds NUL.
_PROBED = Scope("\0probe", "")


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of a read in L1.

    Attributes:
        result: `hit`: `image` is set. With any other result, L2 must be asked.
        lease: Allows `Cache.warm_up` to store the result of L2; `None`: it may not be stored.
        fields: After a hit, the entry's fields as Redis sent them: field, value, ….
    """

    result: L1Result
    image: StoredCheckpoint | None = None
    lease: bytes | None = None
    fields: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Intent:
    """A burst of writes that has begun in L1.

    Attributes:
        name: The name of the intent in the entry; empty if Redis did not confirm it. The writes then still go
            to L2, and are recorded in the journal.
        keys: The prefix of the keys under which the intent stands.
    """

    scope: Scope
    name: bytes
    keys: str = ""


class Committed(NamedTuple):
    """The result of a burst in L1, and that of the READ in the same trip, if there was one."""

    result: CommitResult
    reading: Reading | None = None


class Written(NamedTuple):
    """A scope that this process has changed.

    Attributes:
        generation: The generation of the keys in use at the write; `None`: Redis received nothing of it.
    """

    scope: Scope
    generation: str | None


class Cache:
    """The entries of all scopes in one Redis; in a cluster (see `l1.cluster`), of one master's slots."""

    def __init__(
        self,
        redis: Redis,
        telemetry: Telemetry,
        *,
        key_prefix: str,
        ttl_seconds: float,
        intent_seconds: float,
        timeout_seconds: float,
        breaker: Breaker | None = None,
        packer: Packer | None = None,
        quarantine: Quarantine | None = None,
        shard: Shard | None = None,
    ) -> None:
        """Take the Redis that holds the entries.

        Args:
            redis: A client with `decode_responses=False`. It is not closed here.
            telemetry: Receives an event for each step.
            key_prefix: The first part of every key.
            ttl_seconds: How long an entry lives after its last use.
            intent_seconds: How long a write may take. This must be longer than the deadline that L2 enforces.
            timeout_seconds: How long one step may take.
            breaker: Decides whether Redis is asked at all; by default a new breaker.
            packer: Compresses stored values; `None`: they stay plain. Reading accepts both.
            quarantine: The quarantine that several caches share; by default a new one.
            shard: The place in a cluster; `None`: this Redis is not in a cluster.
        """
        self._shard = shard
        self._name = "L1 (Redis)" if shard is None else f"The shard {name_of(shard.address)} of L1 (Redis)"
        self._at = None if shard is None else shard.address
        self._redis = redis
        self._telemetry = telemetry
        self._ttl_ms = max(1, int(min(ttl_seconds * 1000, _MAX_TTL_MS)))
        self._intent_ms = int(intent_seconds * 1000)
        self._timeout = timeout_seconds
        self._pipeline = AutoPipeline(redis, timeout_seconds=timeout_seconds)
        self._key_prefix = key_prefix
        self._epochs = EpochKeeper(redis, key_prefix=key_prefix, changed=self._server_changed, shard=shard)
        self.root = self._epochs.root
        """The common prefix of the keys of all epochs."""
        self.quarantine = Quarantine(telemetry) if quarantine is None else quarantine
        """The scopes whose key Redis refuses."""
        self._available = True
        self._unusable_logged = ""
        self._asks_for_rights = False
        self._packer = packer
        self._tampered_lines = Throttle()
        self._unencodable_lines = Throttle()
        self._too_large_lines = Throttle()
        self.breaker = breaker or Breaker()
        """Decides whether Redis is asked."""
        self.trust = TrustState()
        """Whether this L1 is trusted."""
        self.is_absent = False
        """Whether PostgreSQL has no tables for a cache, so that no process can use one on this database."""
        self.written: set[Written] = set()
        """The scopes that this process has changed. `coherence.identity` takes them out."""
        self.slots: tuple[tuple[int, int], ...] = ()
        """In a cluster: the ranges of slots of this master, in the topology that is known."""
        self._sight: Sight | None = None  # what the last look at this node of a cluster has found
        self.must_begin_anew = False
        """Whether the cache needs another era. `coherence.identity` resets it."""

    def suspect(self, scope: Scope) -> None:
        """Make L1 suspect until the journal is swept, because Redis did not receive a write.

        If the scope of the write is in quarantine, L1 stays trusted for all others.
        """
        if not self.quarantine.suspect(scope):
            self.trust.suspect()

    @property
    def shards(self) -> tuple[Cache, ...]:
        """The parts that fail and recover on their own: of a cluster its masters, otherwise this one."""
        return (self,)

    def is_away(self, scope: Scope) -> bool:
        """Whether the part of the scope is left alone, so that not even a sweep asks it."""
        return False

    def recognise(self, reign: str) -> None:
        """Receive the name by which PostgreSQL knows the Redis of this cache. A cluster compares it."""

    def follow(self, other: Cache) -> None:
        """Compare the reign with that of another cache at the first contact: its node has a new address."""
        if other.server is not None:
            self._epochs.follow(other.server)
        self._sight = other._sight

    def lacks_rights(self, error: faults.CannotBeTheCacheError) -> None:
        """Leave this Redis alone until a probe finds that this user has all rights."""
        self._asks_for_rights = True
        self._unusable_logged = str(error)
        self._unavailable(error)

    async def look_again(self) -> None:
        """Look whether another server is responsible now. Only a cluster tells that before a step does."""

    @property
    def epoch(self) -> Epoch | None:
        """The epoch whose keys are used; `None` while the server or the identity is not known."""
        return self._epochs.known

    @property
    def server(self) -> Server | None:
        """The last known server process; `None` before the first contact."""
        return self._epochs.server

    @property
    def is_identified(self) -> bool:
        """Whether the epoch is known. While it is not, each step fails without asking Redis."""
        return self._epochs.known is not None

    def wrote_unannounced(self, scopes: Iterable[Scope]) -> None:
        """Record that scopes were changed in L2, but neither in Redis nor in the journal."""
        self.written.update(Written(scope, None) for scope in scopes)

    def identify(self, identity: Identity | None, *, is_absent: bool = False) -> None:
        """Use the keys of this identity from now on. L1 is suspect until the journal is swept.

        Args:
            identity: The identity; `None`: there is none, and L1 is unavailable.
            is_absent: Whether no process can have an identity, so that writes need not be announced.
        """
        self.trust.suspect()
        self.is_absent = is_absent
        self._epochs.identify(identity)

    async def open(self) -> Server:
        """Find out, at the first contact, whether this Redis can be the cache, and which process responds.

        Raises:
            L1UnavailableError: Redis cannot be reached.
            L1Error: Redis responds, and refuses. The log says what to do. When `probe` succeeds later, Redis
                does not refuse any more.
            NeverTheCacheError: This Redis can never be the cache.
        """
        self._asks_for_rights = True
        try:
            await self._ask_for_rights()
            server = await self._in_time(self._epochs.meet)
        except faults.NeverTheCacheError:
            raise
        except Exception as exc:
            if isinstance(exc, UnknownServiceError) and exc.is_misnamed:
                raise faults.NeverTheCacheError(str(exc)) from exc
            if faults.is_a_refused_database(exc):
                raise faults.NeverTheCacheError(
                    f"it has no database {database_of(self._redis)}. Name another one in the Redis URL (0 is "
                    "always there), or raise `databases` in the server's configuration."
                ) from exc
            raise self._unavailable(exc, is_opening=True) from exc
        self._answered()
        return server

    async def connect(self, *, anew: bool = False) -> Server:
        """Find out which server process responds.

        Args:
            anew: Whether to ask even if the process seems to be known.

        Raises:
            L1UnavailableError: Redis cannot be reached.
            L1Error: Redis refuses, or does not say which process it is.
        """
        if anew:
            self._epochs.distrust()
            await look_again(self._redis)
        try:
            server = await self._in_time(self._epochs.meet)
        except Exception as exc:
            raise self._unavailable(exc) from exc
        self._answered()
        return server

    async def look_at_node(self) -> int:
        """Ask a node of a cluster whether a slot has arrived, or the move of one was called off.

        If a slot has arrived, another epoch begins. If a move was called off, the cluster gets to know it.

        Returns:
            The current epoch of the cluster: see `NodeLook`.

        Raises:
            L1Error: Redis failed.
        """
        try:
            look = await self._in_time(self._epochs.look_at_node)
            server = await self._in_time(self._epochs.meet)
            await self._look_at_departures(server, look.calls_of_migrate)
        except Exception as exc:
            raise self._unavailable(exc) from exc
        self._answered()
        return look.current_epoch

    async def _look_at_departures(self, server: Server, calls: int) -> None:
        """Find out whether the move of a slot was called off: see `l1.departures`."""
        process, known = server.process, self.slots
        if not has_to_ask(self._sight, calls=calls, process=process, known=known):
            return

        async def ask() -> list[Any]:
            # Together, so that no slot moves in between.
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.execute_command(*COMMAND_STATS)
                pipe.execute_command("CLUSTER", "NODES")
                return await pipe.execute()

        info, nodes = await self._in_time(ask)
        text = nodes if isinstance(nodes, str) else nodes.decode()
        last, self._sight = self._sight, sight_of(info, text, process=process, known=known)
        if (what := what_was_called_off(last, self._sight)) and self._shard is not None:
            self.trust.suspect()
            self._shard.called_off(self._shard.address, what)

    async def remember(
        self, keys: Sequence[bytes], field: bytes, value: bytes, *, seconds: int
    ) -> set[bytes]:
        """Store a field of some hashes in Redis that are not entries.

        Args:
            seconds: The lifetime of the keys.

        Returns:
            The keys where it was stored: in a cluster, the slots of the others are on their way.

        Raises:
            L1Error: Redis failed.
        """
        commands: list[tuple[Any, ...]] = [("HSET", key, field, value) for key in keys]
        commands += [("PEXPIRE", key, seconds * 1000) for key in keys]
        results = await self._results_of(commands)
        return {key for key, result in zip(keys, results[: len(keys)], strict=True) if result is not None}

    async def remembers(self, keys: Sequence[bytes], field: bytes) -> set[bytes]:
        """Return the keys that still have what `remember` stored.

        Raises:
            L1Error: Redis failed.
        """
        results = await self._results_of([("HEXISTS", key, field) for key in keys])
        return {key for key, result in zip(keys, results, strict=True) if result}

    async def _results_of(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together. The result is `None` if the slot of a key is on its way."""

        async def send() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)

        try:
            results = await self._in_time(send)
            for number, result in enumerate(results):
                if isinstance(result, Exception):
                    if self._shard is None or faults.redirection_of(result) != "moving":
                        raise result
                    results[number] = None
        except Exception as exc:
            raise self._unavailable(exc) from exc
        return results

    async def ping(self) -> None:
        """Ask whether Redis responds.

        A response says nothing of the steps, which a replica or a full server refuses. So it is no success
        for the breaker: frequent health checks would keep it closed.

        Raises:
            L1Error: Redis does not respond.
        """
        try:
            await self._in_time(self._redis.ping)
        except Exception as exc:
            raise self._unavailable(exc) from exc

    async def probe(self) -> None:
        """Try the steps of a write on a key that is never read, even if the breaker is open.

        If a right was missing before, all rights are checked first, because a write does not need them all.

        Raises:
            L1Error: Redis failed.
        """
        try:
            await self._ask_for_rights()
        except Exception as exc:
            raise self._unavailable(exc) from exc
        intent = await self._run("begin", _PROBED, _new_token(), self._intent_ms, is_probe=True)
        await self._run("drop", _PROBED, intent, 0, self._intent_ms, is_probe=True)

    async def _ask_for_rights(self) -> None:
        """Check that this user has all rights that the cache needs, if there is a reason to ask."""
        if self._asks_for_rights:
            tag = None if self._shard is None else self._shard.tag
            await self._in_time(partial(check_permissions, tag=tag), self._redis, self._key_prefix)
            self._asks_for_rights = False

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Reading:
        """READ: return the image of the scope, or why there is none.

        Args:
            checkpoint_id: The id of the wanted checkpoint, `None` for the newest.
        """
        if not scope.is_cached:
            return Reading("bypassed")
        wanted = checkpoint_id or ""
        for _ in range(_READS):
            if scope in self.quarantine:
                break
            if not self.trust.is_trusted and not await self.trust.revalidate():
                break
            suspicions = self.trust.suspicions
            try:
                result = await self._run("read", scope, _new_token(), wanted, self._ttl_ms, self._intent_ms)
            except UnidentifiedError:
                continue  # the server has changed: a sweep must look at the identity first
            except L1Error:
                break
            if suspicions != self.trust.suspicions or scope in self.quarantine:
                # Another call met an error, or this one met another epoch: the journal must be swept first.
                continue
            return await self._reading(scope, result)
        return Reading("unavailable")

    async def _reading(self, scope: Scope, answer: list[Any]) -> Reading:
        """Make a `Reading` of the result of the script READ."""
        if answer[0] == _HIT:
            return await self._decode(scope, answer[1])
        return Reading(_READ_RESULTS[answer[0]], lease=answer[1] if len(answer) > 1 else None)

    def decode(self, scope: Scope, fields: list[bytes]) -> StoredCheckpoint:
        """Decode the image in an entry's fields.

        Raises:
            UnusableImageError: The image is incomplete, of another scope, or not readable.
        """
        return entry.decode_image(scope, fields, self._signer())

    async def refuse(self, scope: Scope, checkpoint_id: bytes | str) -> Reading:
        """REFUSE: remove an image that cannot be used. The result holds the lease, if it was free."""
        try:
            lease = await self._run("refuse", scope, _new_token(), checkpoint_id, self._intent_ms)
        except L1Error:
            return Reading("incomplete")
        return Reading("incomplete", lease=lease or None)

    async def warm_up(self, scope: Scope, lease: bytes, stored: StoredCheckpoint) -> WarmUpResult:
        """WARM_UP: store the result of L2, unless a write has begun since.

        Returns:
            `error` after any failure: the reader has the result of L2 anyway.
        """
        if self.is_left_alone(scope):  # the breaker has opened since the miss
            self._telemetry.emit(WarmUpSkipped("error"))
            return "error"
        with self._telemetry.step("warm_up", scope) as step:
            try:
                fields = entry.image_fields(stored, self._signer(), self._packer)
                fields += self._reign_field()
                done = await self._run("warm_up", scope, lease, self._ttl_ms, *fields)
            except L1Error:
                result: WarmUpResult = "error"
            except Exception as exc:
                self._cannot_encode(scope, exc)
                result = "error"
            else:
                result = _WARM_UP_RESULTS[done]
            step.result = result
        self._telemetry.emit(WarmUpEnded(result, step.seconds))
        return result

    def is_left_alone(self, scope: Scope) -> bool:
        """Whether a step for this scope would fail without asking Redis."""
        return not (self.breaker.is_closed and self.is_identified) or scope in self.quarantine

    async def begin(self, scope: Scope) -> Intent:
        """BEGIN: announce a write."""
        try:
            name = await self._run("begin", scope, _new_token(), self._intent_ms)
        except L1Error:
            return Intent(scope, b"")
        return Intent(scope, name, self._keys)

    async def begin_alone(self, scope: Scope) -> Intent | None:
        """BEGIN, if no other write to the scope is under way. Otherwise return `None`, and change nothing."""
        try:
            name = await self._run("begin", scope, _new_token(), self._intent_ms, 1)
        except L1Error:
            return Intent(scope, b"")
        return Intent(scope, name, self._keys) if name else None

    def is_heeded(self, intent: Intent) -> bool:
        """Whether readers see the intent: Redis has confirmed it, under the keys that are in use now."""
        return bool(intent.name) and intent.keys == self._keys

    def wrote(self, intent: Intent) -> None:
        """Record that a burst's scope was changed in L2, and that Redis received no further step."""
        if self.epoch is not None:
            self.written.add(Written(intent.scope, self.epoch.identity.generation))

    async def confirm(self, intent: Intent) -> bool | None:
        """CONFIRM: L2 has a write of a burst.

        Returns:
            Whether the intent still stands in the entry; if not, the entry was discarded. `None`: unknown.
        """
        try:
            return bool(await self._run("confirm", intent.scope, intent.name))
        except L1Error:
            return None

    async def commit(
        self, intent: Intent, changes: entry.Changes, *, then_read: str | None = None
    ) -> Committed:
        """COMMIT: a burst is over, and L2 has all of it.

        Args:
            changes: The changes of its writes in the entry.
            then_read: The checkpoint id of a READ in the same trip; `""`: the newest; `None`: no READ.
        """
        if not changes.can_follow:
            return Committed("discarded" if await self.drop(intent) else "error")
        if self.epoch is None:
            return Committed("error")
        signer = self.epoch.signer
        try:
            fields = changes.fields(intent.scope, signer, self._packer)
            writes = changes.write_fields(intent.scope, signer, self._packer)
        except Exception as exc:
            self._cannot_encode(intent.scope, exc)
            return Committed("discarded" if await self.drop(intent) else "error")
        reads, suspicions = then_read is not None and self.trust.is_trusted, self.trust.suspicions
        read = (_new_token() if reads else "", then_read or "", self._intent_ms)
        needed = changes.needed_names()
        newest = changes.newest.checkpoint_id if changes.newest is not None else ""
        flags = (newest, int(changes.is_whole), self._ttl_ms, *read, len(needed), len(fields) // 2)
        try:
            done, *results = await self._run(
                "commit", intent.scope, intent.name, *flags, *needed, *fields, *writes
            )
        except L1Error:
            return Committed("error")
        if not results or suspicions != self.trust.suspicions:
            return Committed(_COMMIT_RESULTS[done])
        return Committed(_COMMIT_RESULTS[done], await self._reading(intent.scope, results[0]))

    async def abort(self, intent: Intent) -> bool:
        """ABORT: L2 certainly did not change, or changed only in a way that does not concern the image.

        Returns:
            Whether Redis confirmed it.
        """
        return await self._confirmed("abort", intent.scope, intent.name)

    async def drop(self, intent: Intent, *, still_running: bool = False) -> bool:
        """DROP: forget the entry.

        Args:
            still_running: Whether L2 may still change. If so, readers go to L2 until the intent's deadline.

        Returns:
            Whether Redis confirmed it.
        """
        return await self._confirmed("drop", intent.scope, intent.name, int(still_running), self._intent_ms)

    async def forget(self, scopes: Collection[Scope]) -> set[Scope]:
        """DROP entries for a sweep of the journal, even those in quarantine.

        Scopes that are never cached are skipped.

        Returns:
            The scopes whose key Redis refuses. They are in quarantine now.

        Raises:
            L1Error: A DROP failed for another reason.
        """
        listed = [scope for scope in scopes if scope.is_cached]
        refused = set[Scope]()
        for start in range(0, len(listed), _SCOPES_AT_ONCE):
            chunk = listed[start : start + _SCOPES_AT_ONCE]
            drops = (self._run("drop", scope, b"", 0, self._intent_ms, is_sweep=True) for scope in chunk)
            outcomes = await asyncio.gather(*drops, return_exceptions=True)
            for scope, outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, OneKeyError):
                    refused.add(scope)
                elif isinstance(outcome, BaseException):
                    raise outcome
        return refused

    @property
    def _keys(self) -> str:
        if self.epoch is None:
            return ""
        # In a cluster, the keys do not name the reign.
        return self.epoch.prefix if self._shard is None else self.epoch.prefix + self.epoch.server.reign

    def _reign_field(self) -> list[bytes | str]:
        """Return the field of an entry that names the reign, if there is one: see `scripts/reign.lua`."""
        return [] if self._shard is None or self.server is None else ["reign", self.server.reign]

    def _signer(self) -> Signer:
        if self.epoch is None:
            raise UnidentifiedError("The identity of PostgreSQL is not known: the key is not, either.")
        return self.epoch.signer

    async def _decode(self, scope: Scope, fields: list[bytes]) -> Reading:
        try:
            image = self.decode(scope, fields)
        except entry.UnusableImageError as exc:
            _log.debug("an image was refused: %s", exc)
            if isinstance(exc, entry.TamperedImageError):
                self._tampered(scope, str(exc))
            return await self.refuse(scope, dict(zip(fields[::2], fields[1::2], strict=False))[b"id"])
        return Reading("hit", image=image, fields=fields)

    async def purge_some(self, cursor: int) -> int:
        """Delete entries that no process trusts any more, among the next 1,000 keys or so.

        Args:
            cursor: The cursor of SCAN; 0 for the beginning.

        Returns:
            The next cursor; 0 at the end, or if this user may not delete.

        Raises:
            L1Error: Redis failed.
        """
        epoch = self.epoch
        if epoch is None:
            raise UnidentifiedError("The identity of PostgreSQL is not known: nothing is deleted.")
        redis: Any = self._redis
        try:
            cursor, keys = await self._in_time(
                lambda: redis.scan(cursor, match=f"{self.root}*".encode(), count=_KEYS_A_SCAN)
            )
            if doomed := [key for key in keys if self._epochs.is_past(key, epoch)]:
                await self._in_time(self._unlink, doomed)
        except ResponseError as exc:
            _log.info(
                "Entries of older epochs are not deleted from Redis (%s): they stay until they expire. Allow "
                "the user SCAN and UNLINK.",
                type(exc).__name__,
            )
            return 0
        except Exception as exc:
            raise self._unavailable(exc) from exc
        return int(cursor)

    async def _unlink(self, keys: list[bytes]) -> None:
        if self._shard is None:
            await self._redis.unlink(*keys)
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:  # one command with keys of several slots is refused
                pipe.unlink(key)
            await pipe.execute()

    async def _confirmed(self, step: str, scope: Scope, *args: Any) -> bool:
        try:
            await self._run(step, scope, *args)
        except L1Error:
            return False
        return True

    async def _run(
        self, step: str, scope: Scope, *args: Any, is_probe: bool = False, is_sweep: bool = False
    ) -> Any:
        """Run one script. Any failure of Redis becomes an `L1Error`.

        Args:
            is_probe: Whether to ignore the breaker.
            is_sweep: Whether to send the step for a scope in quarantine, too. A refused key then does not
                count as a failure of Redis, because the sweeper tries it again and again.
        """
        if scope in self.quarantine and not is_sweep:
            raise OneKeyError("The scope is in quarantine: Redis refuses its key.")
        if not self.breaker.is_closed and not is_probe:
            # L1 need not become suspect: only a sweep that begins after the breaker has closed makes it
            # trusted again, and that sweep sees the journal's row of a write that was held back here.
            raise L1UnavailableError("Redis is left alone for a while: it has not done its part lately.")
        try:
            evalsha = self._evalsha_on_probe if is_probe else self._evalsha
            result = await self._step(evalsha, step, scope, *args)
        except UnidentifiedError:
            raise  # nothing is wrong with Redis, and nothing was sent
        except Exception as exc:
            if self._shard is not None and not is_probe and faults.redirection_of(exc) is not None:
                raise self._redirected(self._shard, step, scope, exc, is_sweep=is_sweep) from exc
            fault = faults.classify(exc)
            if fault.of_one_key and not is_probe:
                raise self._refused(scope, exc, fault, is_sweep=is_sweep) from exc
            size = sum(len(arg) for arg in args if isinstance(arg, bytes))
            if size > _LARGE_BYTES and isinstance(exc, TimeoutError | RedisTimeoutError):
                # Redis may or may not have done the step.
                self._epochs.distrust()
                self.trust.suspect()
                if await self._answers_others():
                    raise self._too_large(scope, size) from exc
            raise self._unavailable(exc) from exc
        self._answered()
        return result

    async def _answers_others(self) -> bool:
        """Whether Redis responds to a PING. If so, a large step was late because of its size."""
        try:
            await self._in_time(self._redis.ping)
        except Exception:
            return False
        return True

    async def _step(self, evalsha: Callable[..., Awaitable[Any]], step: str, scope: Scope, *args: Any) -> Any:
        """Run one script. If the key holds another type, remove the key (CLEAR), and run the script again.

        This is safe. WRONGTYPE is the error of a script's first command on the key, so nothing was changed.
        And CLEAR removes no entry: the entry was lost, with all intents and leases, when another program
        wrote over it. For the protocol, that is an eviction, which may happen at any moment. The script is
        repeated only once, because the other program may write again and again.
        """
        try:
            return await self._ask(evalsha, step, scope, *args)
        except ResponseError as exc:
            if not faults.classify(exc).is_wrong_type:
                raise
        if await self._ask(evalsha, "clear", scope):
            self._tampered(scope, "its key held another type")
        return await self._ask(evalsha, step, scope, *args)

    async def _ask(self, evalsha: Callable[..., Awaitable[Any]], step: str, scope: Scope, *args: Any) -> Any:
        with self._telemetry.step(f"l1.{step}", scope, at=self._at):
            result = await evalsha(step, scope, *args)
            if not _is_answer(step, result):
                raise L1Error(
                    f"What answers is no Redis that runs the script {step}: it said something else."
                )
        return result

    async def _evalsha(self, step: str, scope: Scope, *args: Any) -> Any:
        epoch = self._epochs.trusted
        if epoch is None:
            epoch = await self._in_time(self._epochs.refresh)
        try:
            return await self._send(epoch, step, scope, *args)
        except ResponseError as exc:
            if not _is_wrong_epoch(exc):
                raise
        # The key and the scripts change together. The intents and leases of the old epoch do not exist in the
        # new one. So a commit discards, and a warm-up is refused.
        epoch = await self._in_time(self._epochs.refresh, epoch)
        return await self._send(epoch, step, scope, *args)

    async def _send(self, epoch: Epoch, step: str, scope: Scope, *args: Any) -> Any:
        result = await self._pipeline.evalsha(epoch.shas[step], epoch.key(scope), *args)
        if step in _CHANGING:
            self.written.add(Written(scope, epoch.identity.generation))
        current = self._epochs.known
        if current is not epoch and (current is None or current.prefix != epoch.prefix):
            # The step was done under keys that this process does not use any more.
            raise UnidentifiedError("The identity has changed while a step was under way: it was in vain.")
        return result

    async def _evalsha_on_probe(self, step: str, scope: Scope, *args: Any) -> Any:
        """Do the same as `_evalsha` on a key without an identity, because PostgreSQL may be away, too."""
        server = await self._in_time(self._epochs.meet)
        try:
            return await self._pipeline.evalsha(server.shas[step], self._epochs.probe_key(server), *args)
        except ResponseError as exc:
            if not _is_wrong_epoch(exc):
                raise
        server = await self._in_time(self._epochs.meet, server)
        return await self._pipeline.evalsha(server.shas[step], self._epochs.probe_key(server), *args)

    async def _in_time(self, ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        """Ask Redis without a slot of the limiter, because all steps wait for this, or it is a ping."""
        with answered_within(self._timeout):
            return await when_connected(ask, *args)

    def _redirected(
        self, shard: Shard, step: str, scope: Scope, exc: Exception, *, is_sweep: bool
    ) -> L1Error:
        """Give a step up that belongs to another master. Nothing is wrong with this one.

        While a slot is on its way (ASK), nobody knows for how long. Then only this scope is not cached: if a
        write met it, the scope is in quarantine until its entry could be dropped.
        """
        if faults.redirection_of(exc) == "moved":
            shard.redirected(scope, exc)
            return OneKeyError("Another master of the Redis Cluster has the slot of this scope now, or none.")
        if scope in self.quarantine:
            self.quarantine.refused_again(scope, is_sweep=is_sweep)
        elif step != "read" and not self.quarantine.enter(scope, "its slot is on the way to another node"):
            return self._unavailable(exc)
        return OneKeyError("The slot of this scope is on its way to another master of the Redis Cluster.")

    def _refused(self, scope: Scope, exc: Exception, fault: faults.Fault, *, is_sweep: bool) -> L1Error:
        """Put a scope into quarantine, because Redis refuses its key. L1 stays trusted for other scopes."""
        if scope in self.quarantine:
            self.quarantine.refused_again(scope, is_sweep=is_sweep)
        elif self.quarantine.enter(scope, fault.says):
            if isinstance(exc, AskError):
                # Only a node of a cluster returns this error. Perhaps another server has replaced this one:
                # INFO will tell.
                self._epochs.distrust()
            if not is_sweep:
                # If the keys of several scopes in a row are refused, perhaps all keys are. The breaker's
                # probe finds that out.
                self.breaker.failed(type(exc).__name__)
        else:
            return self._unavailable(exc)
        return OneKeyError(f"Redis refuses the key of one scope: {fault.says}.")

    def _unavailable(self, exc: Exception, *, is_opening: bool = False) -> L1Error:
        if self._shard is not None and faults.redirection_of(exc) is not None:
            self._shard.redirected(None, exc)
            return L1UnavailableError("Another master of the Redis Cluster has the slot of the key.")
        # Any failure of the connection may hide a restart or a failover.
        self._epochs.distrust()
        self.trust.suspect()
        reason, fault = type(exc).__name__, faults.classify(exc)
        unusable = str(exc) if isinstance(exc, faults.CannotBeTheCacheError) else ""
        refusal = faults.remedy(exc) if is_opening else ""
        self._asks_for_rights |= faults.is_a_refused_command(exc)
        if refusal:
            _log.error(
                "%s answers, and refuses to be the cache. PostgreSQL answers alone until that ends; "
                "no restart is needed then. %s",
                self._name,
                refusal,
            )
        elif unusable and unusable != self._unusable_logged:
            _log.warning("%s is not used, and PostgreSQL answers alone. %s", self._name, unusable)
        self._unusable_logged = unusable or self._unusable_logged
        if self._available:
            self._available = False
            self._telemetry.emit(L1Availability(available=False, reason=reason))
            _log.log(
                logging.DEBUG if unusable or refusal else logging.WARNING,
                "%s %s (%s): PostgreSQL answers alone, slower but complete.",
                self._name,
                "refuses what it is asked" if isinstance(exc, ResponseError) else "does not answer",
                f"{reason}: {fault.says}" if fault.says else named(exc),
            )
        if fault.is_final:
            self.breaker.trip(reason)
        else:
            self.breaker.failed(reason)
        if isinstance(exc, L1Error):
            return exc
        if isinstance(exc, AuthenticationError | AuthorizationError):
            return L1Error("Redis refuses this user or password.")
        kind = L1Error if isinstance(exc, ResponseError) else L1UnavailableError
        waited = f" within {self._timeout} s" if isinstance(exc, TimeoutError | RedisTimeoutError) else ""
        return kind(f"Redis did not do its part{waited} ({reason}).")

    def _answered(self) -> None:
        self.breaker.succeeded()
        # While the breaker is open, this may be the late result of an older step. Only a probe tries all that
        # a write needs.
        if not self._available and self.breaker.state != "open":
            self._available, self._unusable_logged = True, ""
            self._telemetry.emit(L1Availability(available=True, reason="answers"))
            _log.info("%s answers again: the cache is back in use, once the journal is swept.", self._name)

    def _cannot_encode(self, scope: Scope, exc: Exception) -> None:
        """Log that a value of one scope cannot be encoded for L1. L2 has it."""
        if since := self._unencodable_lines.due():
            _log.warning(
                "Thread %r, namespace %r is not cached in L1 (Redis): it cannot be encoded (%s). PostgreSQL "
                "has it. (%d since the last such line; at most one in %d s.)",
                *scope,
                type(exc).__name__,
                since,
                self._unencodable_lines.seconds,
            )

    def _too_large(self, scope: Scope, size: int) -> L1Error:
        """Return the error of a step that is too large to be sent within the timeout.

        That is no fault of Redis, so it does not count as a failure.
        """
        if since := self._too_large_lines.due():
            _log.warning(
                "Thread %r, namespace %r is not cached in L1 (Redis) as it is now: its %.1f MB were not sent "
                "within %g s. PostgreSQL has them, and answers. Keep the state smaller, compress it "
                '(l1_compression="zstd"), or raise l1_timeout_seconds (CHECKPOINT_L1_TIMEOUT; a quarter of '
                "write_deadline_seconds at most). (%d since the last such line; at most one in %d s.)",
                *scope,
                size / 1e6,
                self._timeout,
                since,
                self._too_large_lines.seconds,
            )
        return L1UnavailableError(f"{size / 1e6:.1f} MB were not sent to Redis within {self._timeout} s.")

    def _tampered(self, scope: Scope, what: str) -> None:
        self._telemetry.emit(Invalidated("tampered"))
        # Not a line for each event: otherwise anybody who can write to Redis could fill the disk.
        if not (since := self._tampered_lines.due()):
            return
        _log.warning(
            "An entry in L1 (Redis) was refused, of thread %r, namespace %r: %s. PostgreSQL answers, and the "
            "entry is replaced. Somebody who can write to this Redis changed it, unless another process has "
            "another l1_signing_key. (%d refused since the last such line; at most one in %d s.)",
            *scope,
            what,
            since,
            self._tampered_lines.seconds,
        )

    def _server_changed(self, server: Server, previous: Server | None) -> None:
        self.trust.suspect()
        if previous is not None or self._shard is not None:  # if not, the sweep is under way that met it
            self.trust.look_soon()
        if previous is None or server.has_other_era_only(previous):
            return
        reigns = _short(server.reign), _short(previous.reign)
        if self._shard is not None and server.process == previous.process:
            _log.info(
                "Slots have moved to %s (epoch %s…, was %s…): nothing that stands in it from before is "
                "believed, and the cache warms up anew.",
                self._name,
                *reigns,
            )
            return
        self._telemetry.emit(EpochChanged())
        _log.warning(
            "%s was restarted or failed over (epoch %s…, was %s…): nothing that stands in it from before is "
            "believed, and the cache warms up anew.",
            self._name,
            *reigns,
        )


def _short(reign: str) -> str:
    return ".".join(part[:8] for part in reign.split("."))


def _is_wrong_epoch(exc: ResponseError) -> bool:
    return isinstance(exc, NoScriptError) or str(exc).startswith(WRONG_EPOCH)


def _is_read(answer: Any) -> bool:
    return answer in ([_BUSY], [_HISTORICAL], [_MISS]) or (
        isinstance(answer, list)
        and len(answer) == 2
        and (answer[0], type(answer[1])) in ((_HIT, list), (_MISS, bytes))
    )


def _is_answer(step: str, answer: Any) -> bool:
    """Whether a script can return this. A proxy between Redis and us may return something else."""
    match step:
        case "read":
            return _is_read(answer)
        case "begin" | "refuse":
            return isinstance(answer, bytes)
        case "commit":
            if not isinstance(answer, list) or len(answer) not in (1, 2):
                return False
            return answer[0] in range(len(_COMMIT_RESULTS)) and all(map(_is_read, answer[1:]))
        case "warm_up":
            return answer in range(len(_WARM_UP_RESULTS))
        case "clear" | "confirm":
            return answer in (0, 1)
        case _:
            return bool(answer == 1)


def _new_token() -> str:
    return secrets.token_hex(8)
