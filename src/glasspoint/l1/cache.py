"""The atomic steps on an entry: each one script, one round trip.

A step never raises into a caller's read or write for Redis's sake: it answers with what can be relied on when
Redis does not (`unavailable`, `error`), and says so to telemetry. What each step promises stands in its Lua
file; how they make a read and a write stands in `saver.py`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import AuthenticationError, AuthorizationError, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.l1 import entry
from glasspoint.l1.breaker import Breaker
from glasspoint.l1.epoch import WRONG_EPOCH, Epoch, EpochKeeper, Server, UnidentifiedError
from glasspoint.l1.patience import answered_within
from glasspoint.l1.pipelining import AutoPipeline
from glasspoint.l1.turns import when_connected
from glasspoint.scope import Scope, is_ordered_id
from glasspoint.telemetry.events import (
    EpochChanged,
    Invalidated,
    L1Availability,
    L1Result,
    WarmUpResult,
    WriteResult,
)
from glasspoint.telemetry.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from redis.asyncio import Redis

    from glasspoint.codec import EncodedPut, EncodedWrite, StoredCheckpoint
    from glasspoint.identity import Identity
    from glasspoint.l1.compression import Packer
    from glasspoint.l1.signature import Signer
    from glasspoint.telemetry.events import Telemetry

__all__ = ["Cache", "Intent", "Reading"]

_log = get_logger("glasspoint.l1")

_MISS, _HIT, _BUSY, _HISTORICAL = range(4)
_READ_RESULTS: dict[int, L1Result] = {_MISS: "miss", _HIT: "hit", _BUSY: "busy", _HISTORICAL: "historical"}
_WRITE_RESULTS: tuple[WriteResult, ...] = ("discarded", "applied", "early", "skipped", "again")

# How often, and after how long each time, a put asks again whose known writes are on their way to L1. They
# are a round trip away; without this, the rest of a turn would go uncached.
_PATIENCE = 5
_PATIENCE_SECONDS = 0.002

# How many entries are dropped at a time for the journal.
_SCOPES_AT_ONCE = 16

# How often a read is sent again because something went wrong with Redis while it was under way.
_READS = 3

# Error codes of a server that does some steps and not others, so that its failures are never in a row: it is
# full, a replica, cannot save, or this user may not. In scripts, before Redis 7, they stand in mid-text.
_REFUSALS = re.compile(r"\b(OOM|READONLY|MISCONF|NOPERM|NOAUTH)\b")

# What a write has told Redis, and what another Redis, or the entries of another identity, would not know.
_CHANGING = frozenset(("commit_put", "commit_writes", "drop"))

# What telemetry is told of probes: no caller's scope, because no thread id holds NUL.
_PROBED = Scope("\0probe", "")

_TAMPERED_LOG_SECONDS = 60.0

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Reading:
    """What L1 answers to a read.

    Attributes:
        result: `hit` and then `image` is there; anything else, and L2 must be asked.
        fields: Of a hit, the entry's fields as Redis sent them: field, value, ….
        lease: With this the answer of L2 may be stored by `Cache.warm_up`; `None`: it may not.
    """

    result: L1Result
    image: StoredCheckpoint | None = None
    lease: bytes | None = None
    fields: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Intent:
    """A write that has begun in L1.

    Attributes:
        name: Its name in the entry; empty if Redis did not confirm it. The write goes on in L2 then, and its
            commit will discard.
        keys: What the keys begin with that it stands under.
    """

    scope: Scope
    name: bytes
    keys: str = ""


class Cache:
    """The entries of all scopes, in one Redis."""

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
    ) -> None:
        """Args:
        redis: A client with `decode_responses=False`; not closed here.
        telemetry: Who is told of every step.
        key_prefix: What every key begins with.
        ttl_seconds: How long an entry lives after its last use.
        intent_seconds: How long a write may take; longer than the deadline that L2 enforces.
        timeout_seconds: How long one step may take.
        breaker: Whether Redis is asked at all; by default one of its own.
        packer: Compresses what is stored; what is read may be compressed or not, either way.
        """
        self._redis = redis
        self._telemetry = telemetry
        self._ttl_ms = max(1, int(ttl_seconds * 1000))
        self._intent_ms = int(intent_seconds * 1000)
        self._timeout = timeout_seconds
        self._pipeline = AutoPipeline(redis, timeout_seconds=timeout_seconds)
        self._epochs = EpochKeeper(redis, key_prefix=key_prefix, changed=self._server_changed)
        self._available = True
        self._packer = packer
        self._tampered_logged_at = -_TAMPERED_LOG_SECONDS
        self._tampered_since = 0
        self._breaker = breaker or Breaker()
        self._doubts = 0
        self._believed_at: int | None = None
        self._is_absent = False
        self.regain_trust: Callable[[], Awaitable[bool]] | None = None
        """Awaited by a read that must not believe what stands here: sees to it that the journal is swept, and
        answers whether that was done. `None`: there is no journal, and everything is believed."""
        self.wake: Callable[[], object] | None = None
        """Called when a step finds no identity: somebody is to see to it."""
        self.written: set[Scope] = set()
        """The scopes that this process has changed here, for `coherence.identity` to take away."""

    @property
    def doubts(self) -> int:
        """How often there was a reason to doubt what stands here; see `believe`."""
        return self._doubts

    @property
    def trusted(self) -> bool:
        """Whether nothing has gone wrong since the journal was swept."""
        return self._believed_at == self._doubts

    def doubt(self) -> None:
        """Believe nothing that stands here, before the journal is swept."""
        self._doubts += 1

    def believe(self, doubts: int) -> bool:
        """Say that the journal was swept, and that this had not begun before so many `doubts`.

        Returns:
            Whether L1 is trusted now; not, if something went wrong meanwhile.
        """
        self._believed_at = doubts
        return self.trusted

    @property
    def epoch(self) -> Epoch | None:
        """Whose keys are used; `None` while the server or the identity is not known."""
        return self._epochs.known

    @property
    def server(self) -> Server | None:
        """The server process last spoken to; `None` before the first contact."""
        return self._epochs.server

    @property
    def is_identified(self) -> bool:
        """Whether the keys have a name: otherwise each step fails, and says nothing to Redis."""
        return self._epochs.known is not None

    @property
    def is_absent(self) -> bool:
        """Whether PostgreSQL has no tables for a cache, so that no process uses one on this database."""
        return self._is_absent

    @property
    def root(self) -> str:
        """What the keys of all epochs begin with."""
        return self._epochs.root

    def identify(self, identity: Identity | None, *, is_absent: bool = False) -> None:
        """Use the keys of this identity from now on; `None`: of none, which makes L1 unavailable.

        Nothing that stands under them is believed before the journal is swept.

        Args:
            is_absent: No process can have an identity, so that nobody must be told of a write.
        """
        self._doubts += 1
        self._is_absent = is_absent
        self._epochs.identify(identity)

    async def connect(self, *, anew: bool = False) -> Server:
        """Find out which server process answers.

        Args:
            anew: Ask, although it seems to be known.

        Raises:
            L1UnavailableError: Redis cannot be reached.
            L1Error: It refuses, or does not say which process it is.
        """
        if anew:
            self._epochs.distrust()
        try:
            server = await self._in_time(self._epochs.meet)
        except Exception as exc:
            raise self._unavailable(exc) from exc
        self._answered()
        return server

    async def ping(self) -> None:
        """Ask for a sign of life.

        Raises:
            L1Error: There is none.
        """
        try:
            await self._in_time(self._redis.ping)
        except Exception as exc:
            raise self._unavailable(exc) from exc
        self._answered()

    async def probe(self) -> None:
        """Do what a write does, where nobody reads. The breaker is not asked.

        Raises:
            L1Error: Redis does not do its part.
        """
        intent = await self._run("begin", _PROBED, _new_token(), self._intent_ms, is_probe=True)
        await self._run("drop", _PROBED, intent, 0, self._intent_ms, is_probe=True)

    async def read(self, scope: Scope, checkpoint_id: str | None) -> Reading:
        """READ: the image of the scope, or why there is none.

        Args:
            checkpoint_id: The one that is wanted, `None` for the newest.
        """
        wanted = checkpoint_id or ""
        for _ in range(_READS):
            if not self.trusted and not await self._regain_trust():
                break
            doubts = self._doubts
            try:
                answer = await self._run("read", scope, _new_token(), wanted, self._ttl_ms, self._intent_ms)
            except UnidentifiedError:
                continue  # it is another server than before: the identity comes first
            except L1Error:
                break
            if doubts != self._doubts:
                # Another call has met an error meanwhile, or this one another epoch: the journal comes first.
                continue
            if answer[0] == _HIT:
                return await self._decode(scope, answer[1])
            return Reading(_READ_RESULTS[answer[0]], lease=answer[1] if len(answer) > 1 else None)
        return Reading("unavailable")

    def decode(self, scope: Scope, fields: list[bytes]) -> StoredCheckpoint:
        """Read an image out of an entry's fields.

        Raises:
            UnusableImageError: It is incomplete, of another scope, or not readable.
        """
        return entry.decode_image(scope, fields, self._signer())

    async def refuse(self, scope: Scope, checkpoint_id: bytes | str) -> Reading:
        """REFUSE: take an image away that cannot be used; the answer holds the lease, if it was free."""
        try:
            lease = await self._run("refuse", scope, _new_token(), checkpoint_id, self._intent_ms)
        except L1Error:
            return Reading("incomplete")
        return Reading("incomplete", lease=lease or None)

    async def warm_up(self, scope: Scope, lease: bytes, stored: StoredCheckpoint) -> WarmUpResult:
        """WARM_UP: store what L2 answered, unless a write has begun since."""
        with self._telemetry.step("warm_up", scope) as step:
            try:
                fields = entry.image_fields(stored, self._signer(), self._packer)
                done = await self._run("warm_up", scope, lease, self._ttl_ms, *fields)
            except L1Error:
                result: WarmUpResult = "error"
            else:
                result = "stored" if done else "refused"
            step.result = result
        return result

    async def begin(self, scope: Scope) -> Intent:
        """BEGIN: announce a write."""
        try:
            name = await self._run("begin", scope, _new_token(), self._intent_ms)
        except L1Error:
            return Intent(scope, b"")
        return Intent(scope, name, self._keys)

    async def begin_alone(self, scope: Scope) -> Intent | None:
        """BEGIN, if no other write to the scope is under way; otherwise `None`, and nothing was changed."""
        try:
            name = await self._run("begin", scope, _new_token(), self._intent_ms, 1)
        except L1Error:
            return Intent(scope, b"")
        return Intent(scope, name, self._keys) if name else None

    def is_heeded(self, intent: Intent) -> bool:
        """Whether readers heed it: Redis has confirmed it, under the keys that are in use now."""
        return bool(intent.name) and intent.keys == self._keys

    async def commit_put(
        self, intent: Intent, put: EncodedPut, *, newest: bool, known_writes: list[str]
    ) -> WriteResult:
        """COMMIT_PUT: L2 has the checkpoint.

        Args:
            newest: L2 has no checkpoint as new as this one, and every value stands there as sent.
            known_writes: `<task id>:<idx>` of each pending write that L2 has for it already.
        """
        if not put.cacheable:
            return "discarded" if await self.drop(intent) else "error"
        if self.epoch is None:
            return "error"
        signer = self.epoch.signer
        known = [f"w:{put.checkpoint_id}:{name}" for name in known_writes]
        fields = entry.put_fields(intent.scope, put, signer, self._packer)
        voids = entry.void_fields(intent.scope, put, signer)
        flags = (int(newest), int(put.whole), self._ttl_ms)
        rest = (len(known), len(fields) // 2, *known, *fields, *voids)
        for _ in range(_PATIENCE):
            result = await self._commit("commit_put", intent, put.checkpoint_id, *flags, 1, *rest)
            if result != "again":
                return result
            await asyncio.sleep(_PATIENCE_SECONDS)
        return await self._commit("commit_put", intent, put.checkpoint_id, *flags, 0, *rest)

    async def commit_writes(
        self,
        intent: Intent,
        checkpoint_id: str,
        writes: list[EncodedWrite],
        *,
        overwrote: bool,
        ignored: Sequence[EncodedWrite] = (),
    ) -> WriteResult:
        """COMMIT_WRITES: L2 has these pending writes.

        Args:
            writes: Those that L2 stored.
            ignored: Those that it did not, because it had them already.
            overwrote: Whether some of them replaced older ones.
        """
        if not is_ordered_id(checkpoint_id):  # of no image, and `w:` fields are told apart by its length
            return "skipped" if await self.abort(intent) else "error"
        if self.epoch is None:
            return "error"
        signer = self.epoch.signer
        fields = entry.write_fields(intent.scope, checkpoint_id, writes, signer, self._packer)
        names = entry.write_fields(intent.scope, checkpoint_id, ignored, signer)[::2]
        return await self._commit(
            "commit_writes", intent, checkpoint_id, self._ttl_ms, int(overwrote), len(names), *names, *fields
        )

    async def abort(self, intent: Intent) -> bool:
        """ABORT: L2 certainly did not change, or not in a way that concerns the image.

        Returns:
            Whether Redis confirmed it.
        """
        return await self._confirmed("abort", intent.scope, intent.name)

    async def drop(self, intent: Intent, *, still_running: bool = False) -> bool:
        """DROP: forget the entry.

        Args:
            still_running: L2 may change yet: readers stay away until the intent's deadline.

        Returns:
            Whether Redis confirmed it.
        """
        return await self._confirmed("drop", intent.scope, intent.name, int(still_running), self._intent_ms)

    async def forget(self, scopes: Collection[Scope]) -> None:
        """DROP, for the journal.

        Raises:
            L1Error: Redis did not confirm each of them.
        """
        listed = list(scopes)
        for start in range(0, len(listed), _SCOPES_AT_ONCE):
            chunk = listed[start : start + _SCOPES_AT_ONCE]
            drops = (self._run("drop", scope, b"", 0, self._intent_ms) for scope in chunk)
            outcomes = await asyncio.gather(*drops, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

    @property
    def _keys(self) -> str:
        return "" if self.epoch is None else self.epoch.prefix

    def _signer(self) -> Signer:
        if self.epoch is None:
            raise UnidentifiedError("The identity of PostgreSQL is not known: the key is not, either.")
        return self.epoch.signer

    async def _regain_trust(self) -> bool:
        return self.regain_trust is None or await self.regain_trust()

    async def _decode(self, scope: Scope, fields: list[bytes]) -> Reading:
        try:
            image = self.decode(scope, fields)
        except entry.UnusableImageError as exc:
            _log.debug("an image was refused: %s", exc)
            if isinstance(exc, entry.TamperedImageError):
                self._tampered(scope, exc)
            return await self.refuse(scope, dict(zip(fields[::2], fields[1::2], strict=False))[b"id"])
        return Reading("hit", image=image, fields=fields)

    async def _confirmed(self, step: str, scope: Scope, *args: Any) -> bool:
        try:
            await self._run(step, scope, *args)
        except L1Error:
            return False
        return True

    async def _commit(self, step: str, intent: Intent, *args: Any) -> WriteResult:
        try:
            answer: int = await self._run(step, intent.scope, intent.name, *args)
        except L1Error:
            return "error"
        return _WRITE_RESULTS[answer]

    async def _run(self, step: str, scope: Scope, *args: Any, is_probe: bool = False) -> Any:
        """Run one script; every way in which Redis can fail becomes an `L1Error`."""
        if not self._breaker.is_closed and not is_probe:
            # No doubt is added: L1 is trusted again only by a sweep that begins after the breaker has closed,
            # and that sees the journal's row of a write which was not let through here.
            raise L1UnavailableError("Redis is left alone for a while: it has not done its part lately.")
        try:
            with self._telemetry.step(f"l1.{step}", scope):
                evalsha = self._evalsha_on_probe if is_probe else self._evalsha
                answer = await evalsha(step, scope, *args)
        except UnidentifiedError:
            # Nothing is wrong with Redis, and nothing was sent. The next sweep sees to it.
            if self.wake is not None:
                self.wake()
            raise
        except (RedisError, OSError, TimeoutError, L1Error) as exc:
            raise self._unavailable(exc) from exc
        self._answered()
        if step in _CHANGING and not is_probe:
            self.written.add(scope)
        return answer

    async def _evalsha(self, step: str, scope: Scope, *args: Any) -> Any:
        epoch = self._epochs.trusted
        if epoch is None:
            epoch = await self._in_time(self._epochs.current)
        try:
            return await self._evalsha_in(epoch, step, scope, *args)
        except ResponseError as exc:
            if not _is_wrong_epoch(exc):
                raise
        # Key and scripts change together. What began in the old epoch finds no intent and no lease in the
        # new one, so its commit discards and its warm-up is refused.
        epoch = await self._in_time(self._epochs.refresh, epoch)
        return await self._evalsha_in(epoch, step, scope, *args)

    async def _evalsha_in(self, epoch: Epoch, step: str, scope: Scope, *args: Any) -> Any:
        answer = await self._pipeline.evalsha(epoch.shas[step], epoch.key(scope), *args)
        current = self._epochs.known
        if current is not epoch and (current is None or current.prefix != epoch.prefix):
            # It was done under keys that nobody here uses any more, too late for `written`.
            raise UnidentifiedError("The identity has changed while a step was under way: it was in vain.")
        return answer

    async def _evalsha_on_probe(self, step: str, scope: Scope, *args: Any) -> Any:
        """As `_evalsha`, on a key that needs no identity: while Redis is away, PostgreSQL may be as well."""
        server = await self._in_time(self._epochs.meet)
        try:
            return await self._pipeline.evalsha(server.shas[step], self._epochs.probe_key(server), *args)
        except ResponseError as exc:
            if not _is_wrong_epoch(exc):
                raise
        server = await self._in_time(self._epochs.meet, server)
        return await self._pipeline.evalsha(server.shas[step], self._epochs.probe_key(server), *args)

    async def _in_time(self, ask: Callable[..., Awaitable[_Answer]], *args: Any) -> _Answer:
        """Ask something that takes no turn: all steps wait for it, or somebody asks whether Redis lives."""
        with answered_within(self._timeout):
            return await when_connected(ask, *args)

    def _unavailable(self, exc: BaseException) -> L1Error:
        # Any failure of the connection may hide a restart or a failover.
        self._epochs.distrust()
        self._doubts += 1
        reason = type(exc).__name__
        if self._available:
            self._available = False
            self._telemetry.note(L1Availability(available=False, reason=reason))
            _log.warning(
                "L1 (Redis) does not answer (%s): PostgreSQL answers alone, slower but complete.",
                reason,
            )
        if isinstance(exc, ResponseError) and _REFUSALS.search(str(exc)):
            self._breaker.trip(reason)
        else:
            self._breaker.failed(reason)
        if isinstance(exc, L1Error):
            return exc
        if isinstance(exc, AuthenticationError | AuthorizationError):
            return L1Error("Redis refuses this user or password.")
        kind = L1Error if isinstance(exc, ResponseError) else L1UnavailableError
        waited = f" within {self._timeout} s" if isinstance(exc, TimeoutError | RedisTimeoutError) else ""
        return kind(f"Redis did not do its part{waited} ({reason}); PostgreSQL answers alone meanwhile.")

    def _answered(self) -> None:
        self._breaker.succeeded()
        if not self._available:
            self._available = True
            self._telemetry.note(L1Availability(available=True, reason="answers"))
            _log.info("L1 (Redis) answers again: the cache is back in use, once the journal is swept.")

    def _tampered(self, scope: Scope, exc: entry.TamperedImageError) -> None:
        self._telemetry.note(Invalidated("tampered"))
        # Not a line each: whoever can write to Redis could fill the disk with them.
        self._tampered_since += 1
        if monotonic() - self._tampered_logged_at < _TAMPERED_LOG_SECONDS:
            return
        _log.warning(
            "An entry in L1 (Redis) was refused, of thread %r, namespace %r: %s. PostgreSQL answers, and the "
            "entry is replaced. Somebody who can write to this Redis changed it, unless another process has "
            "another l1_signing_key, or none. (%d refused since the last such line; at most one in %d s.)",
            *scope,
            exc,
            self._tampered_since,
            _TAMPERED_LOG_SECONDS,
        )
        self._tampered_logged_at, self._tampered_since = monotonic(), 0

    def _server_changed(self, server: Server, previous: Server | None) -> None:
        self._doubts += 1
        if previous is not None:
            self._telemetry.note(EpochChanged())
            _log.warning(
                "L1 (Redis) was restarted or failed over (epoch %s…, was %s…): nothing that stands in it "
                "from before is believed, and the cache warms up anew.",
                _short(server.reign),
                _short(previous.reign),
            )


def _short(reign: str) -> str:
    return ".".join(part[:8] for part in reign.split("."))


def _is_wrong_epoch(exc: ResponseError) -> bool:
    return isinstance(exc, NoScriptError) or str(exc).startswith(WRONG_EPOCH)


def _new_token() -> str:
    return secrets.token_hex(8)
