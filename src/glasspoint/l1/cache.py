"""The atomic steps on an entry. A step is one script, and one round trip.

Open this to see what each step sends, and what its result means. An error of Redis never reaches a caller's
read or write: a step returns a safe result instead (`unavailable`, `error`). `steps` runs the scripts, and
`contact` reacts to the faults of the server. The Lua file of a step says what it promises. `savers/cached.py`
composes steps into reads and writes.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ResponseError

from glasspoint.errors import L1Error
from glasspoint.l1 import entry
from glasspoint.l1.breaker import Breaker
from glasspoint.l1.contact import Contact
from glasspoint.l1.epoch import UnidentifiedError
from glasspoint.l1.quarantine import OneKeyError, Quarantine
from glasspoint.l1.steps import COMMIT_RESULTS, HIT, READ_RESULTS, WARM_UP_RESULTS, Steps, Written
from glasspoint.l1.uncached import UncachedReport
from glasspoint.logs import get_logger
from glasspoint.model.scope import Scope
from glasspoint.telemetry.events import WarmUpEnded, WarmUpSkipped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from redis.asyncio import Redis

    from glasspoint.l1.compression import Packer
    from glasspoint.l1.epoch import Epoch, Server, Shard
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.identity import Identity
    from glasspoint.redis.signature import Signer
    from glasspoint.telemetry.events import CommitResult, L1Result, Telemetry, WarmUpResult

__all__ = ["Cache", "Committed", "Intent", "Reading"]

_log = get_logger("glasspoint.l1")

# How many entries a sweep of the journal drops at once.
_SCOPES_AT_ONCE = 16

_KEYS_A_SCAN = 1000

# How often a read is tried, if something goes wrong with Redis while it is under way.
_READS = 3

# The longest lifetime that PEXPIRE accepts: about 3,000 years. It would refuse a longer one only after the
# script's other commands are done.
_MAX_TTL_MS = 10**14

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
        self.contact = Contact(
            redis,
            telemetry,
            key_prefix=key_prefix,
            timeout_seconds=timeout_seconds,
            breaker=breaker or Breaker(),
            shard=shard,
        )
        """The contact with the server."""
        self.trust = self.contact.trust
        """Whether this L1 is trusted."""
        self.quarantine = Quarantine(telemetry) if quarantine is None else quarantine
        """The scopes whose key Redis refuses."""
        self._telemetry = telemetry
        self._shard = shard
        self._ttl_ms = max(1, int(min(ttl_seconds * 1000, _MAX_TTL_MS)))
        self._intent_ms = int(intent_seconds * 1000)
        self._packer = packer
        self._epochs = self.contact.epochs
        self._report = UncachedReport(telemetry)
        self._steps = Steps(self.contact, self.quarantine, self._report, telemetry)
        self.root = self._epochs.root
        """The common prefix of the keys of all epochs."""
        self.is_absent = False
        """Whether PostgreSQL has no tables for a cache, so that no process can use one on this database."""
        self.must_begin_anew = False
        """Whether the cache needs another era. `coherence.identity` resets it."""

    # ---------------------------------------------------------------- the server

    @property
    def shards(self) -> tuple[Cache, ...]:
        """The parts that fail and recover on their own: of a cluster its masters, otherwise this one."""
        return (self,)

    @property
    def breaker(self) -> Breaker:
        """Decides whether Redis is asked."""
        return self.contact.breaker

    @property
    def server(self) -> Server | None:
        """The last known server process; `None` before the first contact."""
        return self._epochs.server

    async def open(self) -> Server:
        """Make the first contact: see `Contact.open`."""
        return await self.contact.open()

    async def connect(self, *, anew: bool = False) -> Server:
        """Find out which server process responds: see `Contact.connect`."""
        return await self.contact.connect(anew=anew)

    async def ping(self) -> None:
        """Ask whether Redis responds: see `Contact.ping`."""
        await self.contact.ping()

    async def probe(self) -> None:
        """Try the steps of a write on a key that is never read, even if the breaker is open.

        If a right was missing before, all rights are checked first, because a write does not need them all.

        Raises:
            L1Error: Redis failed.
        """
        try:
            await self.contact.check_rights()
        except Exception as exc:
            raise self.contact.failed(exc) from exc
        intent = await self._steps.run("begin", _PROBED, _new_token(), self._intent_ms, is_probe=True)
        await self._steps.run("drop", _PROBED, intent, 0, self._intent_ms, is_probe=True)

    async def look_again(self) -> None:
        """Look whether another server is responsible now. Only a cluster tells that before a step does."""

    def is_away(self, scope: Scope) -> bool:
        """Whether the part of the scope is left alone, so that not even a sweep asks it."""
        return False

    # ---------------------------------------------------------------- keys and trust

    @property
    def epoch(self) -> Epoch | None:
        """The epoch whose keys are used; `None` while the server or the identity is not known."""
        return self._epochs.known

    @property
    def is_identified(self) -> bool:
        """Whether the epoch is known. While it is not, each step fails without asking Redis."""
        return self._epochs.known is not None

    def identify(self, identity: Identity | None, *, is_absent: bool = False) -> None:
        """Use the keys of this identity from now on. L1 is suspect until the journal is swept.

        Args:
            identity: The identity; `None`: there is none, and L1 is unavailable.
            is_absent: Whether no process can have an identity, so that writes need not be announced.
        """
        self.trust.suspect()
        self.is_absent = is_absent
        self._epochs.identify(identity)

    def recognise(self, reign: str) -> None:
        """Receive the name by which PostgreSQL knows the Redis of this cache. A cluster compares it."""

    def suspect(self, scope: Scope) -> None:
        """Make L1 suspect until the journal is swept, because Redis did not receive a write.

        If the scope of the write is in quarantine, L1 stays trusted for all others.
        """
        if not self.quarantine.suspect(scope):
            self.trust.suspect()

    # ---------------------------------------------------------------- what was written

    @property
    def written(self) -> set[Written]:
        """The scopes that this process has changed. `coherence.identity` takes them out."""
        return self._steps.written

    @written.setter
    def written(self, written: set[Written]) -> None:
        self._steps.written = written

    def wrote(self, intent: Intent) -> None:
        """Record that a burst's scope was changed in L2, and that Redis received no further step."""
        if self.epoch is not None:
            self.written.add(Written(intent.scope, self.epoch.identity.generation))

    def wrote_unannounced(self, scopes: Iterable[Scope]) -> None:
        """Record that scopes were changed in L2, but neither in Redis nor in the journal."""
        self.written.update(Written(scope, None) for scope in scopes)

    # ---------------------------------------------------------------- reads

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
                result = await self._steps.run(
                    "read", scope, _new_token(), wanted, self._ttl_ms, self._intent_ms
                )
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
        if answer[0] == HIT:
            return await self._decode(scope, answer[1])
        return Reading(READ_RESULTS[answer[0]], lease=answer[1] if len(answer) > 1 else None)

    async def _decode(self, scope: Scope, fields: list[bytes]) -> Reading:
        try:
            image = self.decode(scope, fields)
        except entry.UnusableImageError as exc:
            _log.debug("an image was refused: %s", exc)
            if isinstance(exc, entry.TamperedImageError):
                self._report.tampered(scope, str(exc))
            return await self.refuse(scope, dict(zip(fields[::2], fields[1::2], strict=False))[b"id"])
        return Reading("hit", image=image, fields=fields)

    def decode(self, scope: Scope, fields: list[bytes]) -> StoredCheckpoint:
        """Decode the image in an entry's fields.

        Raises:
            UnusableImageError: The image is incomplete, of another scope, or not readable.
        """
        return entry.decode_image(scope, fields, self._signer())

    async def refuse(self, scope: Scope, checkpoint_id: bytes | str) -> Reading:
        """REFUSE: remove an image that cannot be used. The result holds the lease, if it was free."""
        try:
            lease = await self._steps.run("refuse", scope, _new_token(), checkpoint_id, self._intent_ms)
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
                done = await self._steps.run("warm_up", scope, lease, self._ttl_ms, *fields)
            except L1Error:
                result: WarmUpResult = "error"
            except Exception as exc:
                self._report.cannot_encode(scope, exc)
                result = "error"
            else:
                result = WARM_UP_RESULTS[done]
            step.result = result
        self._telemetry.emit(WarmUpEnded(result, step.seconds))
        return result

    def is_left_alone(self, scope: Scope) -> bool:
        """Whether a step for this scope would fail without asking Redis."""
        return not (self.breaker.is_closed and self.is_identified) or scope in self.quarantine

    # ---------------------------------------------------------------- writes

    async def begin(self, scope: Scope) -> Intent:
        """BEGIN: announce a write."""
        try:
            name = await self._steps.run("begin", scope, _new_token(), self._intent_ms)
        except L1Error:
            return Intent(scope, b"")
        return Intent(scope, name, self._keys)

    async def begin_alone(self, scope: Scope) -> Intent | None:
        """BEGIN, if no other write to the scope is under way. Otherwise return `None`, and change nothing."""
        try:
            name = await self._steps.run("begin", scope, _new_token(), self._intent_ms, 1)
        except L1Error:
            return Intent(scope, b"")
        return Intent(scope, name, self._keys) if name else None

    def is_heeded(self, intent: Intent) -> bool:
        """Whether readers see the intent: Redis has confirmed it, under the keys that are in use now."""
        return bool(intent.name) and intent.keys == self._keys

    async def confirm(self, intent: Intent) -> bool | None:
        """CONFIRM: L2 has a write of a burst.

        Returns:
            Whether the intent still stands in the entry; if not, the entry was discarded. `None`: unknown.
        """
        try:
            return bool(await self._steps.run("confirm", intent.scope, intent.name))
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
            self._report.cannot_encode(intent.scope, exc)
            return Committed("discarded" if await self.drop(intent) else "error")
        reads, suspicions = then_read is not None and self.trust.is_trusted, self.trust.suspicions
        read = (_new_token() if reads else "", then_read or "", self._intent_ms)
        needed = changes.needed_names()
        newest = changes.newest.checkpoint_id if changes.newest is not None else ""
        flags = (newest, int(changes.is_whole), self._ttl_ms, *read, len(needed), len(fields) // 2)
        try:
            done, *results = await self._steps.run(
                "commit", intent.scope, intent.name, *flags, *needed, *fields, *writes
            )
        except L1Error:
            return Committed("error")
        if not results or suspicions != self.trust.suspicions:
            return Committed(COMMIT_RESULTS[done])
        return Committed(COMMIT_RESULTS[done], await self._reading(intent.scope, results[0]))

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

    # ---------------------------------------------------------------- sweeps, and keys that are no entries

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
            drops = (
                self._steps.run("drop", scope, b"", 0, self._intent_ms, is_sweep=True) for scope in chunk
            )
            outcomes = await asyncio.gather(*drops, return_exceptions=True)
            for scope, outcome in zip(chunk, outcomes, strict=True):
                if isinstance(outcome, OneKeyError):
                    refused.add(scope)
                elif isinstance(outcome, BaseException):
                    raise outcome
        return refused

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
        redis: Any = self.contact.redis
        try:
            cursor, keys = await self.contact.in_time(
                lambda: redis.scan(cursor, match=f"{self.root}*".encode(), count=_KEYS_A_SCAN)
            )
            if doomed := [key for key in keys if self._epochs.is_past(key, epoch)]:
                await self.contact.in_time(self._unlink, doomed)
        except ResponseError as exc:
            _log.info(
                "Entries of older epochs are not deleted from Redis (%s): they stay until they expire. Allow "
                "the user SCAN and UNLINK.",
                type(exc).__name__,
            )
            return 0
        except Exception as exc:
            raise self.contact.failed(exc) from exc
        return int(cursor)

    async def _unlink(self, keys: list[bytes]) -> None:
        if self._shard is None:
            await self.contact.redis.unlink(*keys)
            return
        async with self.contact.redis.pipeline(transaction=False) as pipe:
            for key in keys:  # one command with keys of several slots is refused
                pipe.unlink(key)
            await pipe.execute()

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
        results = await self.contact.results_of(commands)
        return {key for key, result in zip(keys, results[: len(keys)], strict=True) if result is not None}

    async def remembers(self, keys: Sequence[bytes], field: bytes) -> set[bytes]:
        """Return the keys that still have what `remember` stored.

        Raises:
            L1Error: Redis failed.
        """
        results = await self.contact.results_of([("HEXISTS", key, field) for key in keys])
        return {key for key, result in zip(keys, results, strict=True) if result}

    # ---------------------------------------------------------------- helpers

    async def _confirmed(self, step: str, scope: Scope, *args: Any) -> bool:
        try:
            await self._steps.run(step, scope, *args)
        except L1Error:
            return False
        return True

    @property
    def _keys(self) -> str:
        if self.epoch is None:
            return ""
        # In a cluster, the keys do not name the reign.
        return self.epoch.prefix if self._shard is None else self.epoch.prefix + self.epoch.server.reign

    def _signer(self) -> Signer:
        if self.epoch is None:
            raise UnidentifiedError("The identity of PostgreSQL is not known: the key is not, either.")
        return self.epoch.signer

    def _reign_field(self) -> list[bytes | str]:
        """Return the field of an entry that names the reign, if there is one: see `scripts/reign.lua`."""
        return [] if self._shard is None or self.server is None else ["reign", self.server.reign]


def _new_token() -> str:
    return secrets.token_hex(8)
