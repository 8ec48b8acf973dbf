"""Tells which entries in Redis belong to the current PostgreSQL: compares, renews and adopts the identity.

Open this when a read trusts entries from another database, or when a cache stays cold.

    look (L2)    read the current facts, and the row of the cache: its generation, its Redis, its former facts
    compare      four cases:
                 - the row fits: its generation names the keys
                 - a fact has changed: leave the keys at once, renew the row (L2), look again
                 - this process has met another Redis: the same
                 - another process has attached the row to another Redis: leave the keys; this process is
                   detached
    adopt        record the scopes written under the old keys in the journal, then use the new keys

Each sweep contains a look. So a process that only has hits learns of a change within the sweep interval. A
failover of PostgreSQL breaks connections, so a look also checks each new connection before its first use.

A process that has not yet noticed a change writes under keys that other processes do not read any more. So
each process remembers the scopes that it has written since its last look that fitted, with the generation of
the keys. Scopes that were written under another generation than L2's are recorded in the journal, and the
next sweep drops their entries.

A detached process does not use Redis. Its writes go into the journal, where the attached processes find them.
After a minute it attaches the cache to its own Redis, because the others may have ended by then. Two Redis
servers for one cache are a mistake, so each such change is logged.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple

from glasspoint.errors import L1Error
from glasspoint.l1.cluster import ClusterCache
from glasspoint.l2.identity import NoIdentityError
from glasspoint.l2.schema import GRANTS
from glasspoint.logs import Throttle, get_logger
from glasspoint.model.identity import Identity
from glasspoint.telemetry.events import DURABLE, IdentityChanged

if TYPE_CHECKING:
    from typing import Any

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.l1.cluster import L1
    from glasspoint.l1.steps import Written
    from glasspoint.l2.identity import Attachment, Identities, JournalRow, Look
    from glasspoint.l2.journal import Journal
    from glasspoint.telemetry.events import IdentityReason, SaverStatus, Telemetry

__all__ = ["Found", "IdentityKeeper"]

Status = Literal["fits", "changed", "unusable"]

_log = get_logger("glasspoint.l1")

# How often a process records that the cache is in use: see `Attachment.is_forgotten`.
_SAY_SEEN_SECONDS = 60.0

# How often a process stores the identity in use in Redis, if it is still there, and how long it is kept.
_SAY_LAST_USED_SECONDS = 30.0
_LAST_USED_TTL_SECONDS = 7 * 86400

# How long missing tables are not logged: `setup` may be about to create them.
_SETUP_TAKES_SECONDS = 5.0

# How long a detached process waits before it attaches the cache to its own Redis.
_DETACHED_SECONDS = 60.0

# The minimum time between two log lines about being detached. If two Redis servers stay in use, their
# processes detach each other in turn.
_SAY_DETACHED_SECONDS = 600.0

# How long another cache counts as new. This is longer than a statement can be under way.
_NEW_SECONDS = 30.0

# If there are more scopes, they are not dropped one by one: the generation is renewed instead.
_WRITTEN_AT_MOST = 20_000

# Changed fact -> the reason of a renewal. The first fact that has changed is used.
_REASONS: tuple[tuple[str, IdentityReason], ...] = (
    ("system", "database"),
    ("database", "database"),
    ("tables", "database"),
    ("timeline", "timeline"),
    ("content", "truncated"),
)


class Found(NamedTuple):
    """The result of a look.

    Attributes:
        status: `fits`: the identity in use is that of L2. `changed`: the identity has changed, or journal
            rows were added; look again before anything is trusted. `unusable`: there is no identity, and L1
            is not used.
        rows: The requested rows of the journal, if the identity fits.
        generation: The generation at the time when the rows were read.
    """

    status: Status
    rows: list[JournalRow] = []  # noqa: RUF012 - never changed
    generation: str = ""


class IdentityKeeper:
    """Makes one cache use the keys of L2's identity."""

    def __init__(
        self,
        cache: L1,
        identities: Identities,
        journal: Journal,
        telemetry: Telemetry,
        status: SaverStatus,
        *,
        signing_key: bytes | None = None,
        last_used: LastUsed | None = None,
        statement_seconds: float | None = None,
    ) -> None:
        """Take the cache and the database that it belongs to.

        Args:
            cache: The cache.
            identities: Reads and renews the row of the cache.
            journal: Receives the scopes that were written under old keys.
            telemetry: Receives an event for each change.
            status: Shows the identity.
            signing_key: Signs the entries, in place of the key that PostgreSQL keeps.
            last_used: Makes the record in Redis for processes that cannot ask PostgreSQL; `None`: there is no
                record.
            statement_seconds: How long a statement may run before the intent of its write expires; `None` if
                the caller does not know.
        """
        self._cache = cache
        self._identities = identities
        self._journal = journal
        self._telemetry = telemetry
        self._status = status
        self._signing_key = signing_key
        self._last_used = last_used
        self._said_last_used: dict[bytes, tuple[Identity, float]] = {}  # key -> what it holds, since when
        self._statement_seconds = statement_seconds
        self._identity: Identity | None = None
        self._known: Identity | None = None  # the last one in use
        self._renewed: str | None = None  # the generation that this process has made itself
        self._position: int | None = None  # in PostgreSQL's log, at the last look that fitted
        self.mark = ""
        """The mark that a write's statement returns if PostgreSQL fits the keys in use: see `Look.mark`."""
        self._reign: str | None = None  # of the Redis that this process was last attached to
        self._detached_at: float | None = None
        self._written: set[Written] = set()  # since the last look that fitted; see `look`
        self._no_tables_since: float | None = None
        self._met_others: dict[str, float] = {}  # when each was seen first
        self.is_purged = False
        """Whether the entries of older generations were deleted."""
        self.attaches = True
        """Whether an identity that is missing or does not fit is made anew; if not, L1 is not used then."""
        self._warned: set[str] = set()
        self._detached_lines = Throttle(_SAY_DETACHED_SECONDS)

    @property
    def identity(self) -> Identity | None:
        """The identity in use; `None` while the cache is not used."""
        return self._identity

    async def look(self, *, limit: int, after: int) -> Found:
        """Look at L2 once; renew or adopt the identity, if that is due.

        Args:
            limit: The maximum number of journal rows to return.
            after: Return only rows with a greater id.

        Raises:
            psycopg.Error, GlasspointError: A server does not respond, or refuses.
        """
        if len(self._written) <= _WRITTEN_AT_MOST:  # with more, the generation is renewed anyway
            self._written |= self._cache.written
        self._cache.written = set()
        try:
            look = await self._identities.look(limit=limit, after=after)
        except NoIdentityError as exc:
            await self._no_identity(exc)
            return Found("unusable")
        self._no_tables_since = None
        self._check_durability(look)
        self._check_statement_timeout(look)
        self._status.withheld = tuple(self._identities.withheld)
        await self._meet_others(look)
        status = await self._settle(look)
        if status != "fits" or look.attachment is None:
            return Found(status)
        return Found(status, look.rows, look.attachment.generation)

    def is_of(self, mark: str) -> bool:
        """Tell whether a write's statement ran on the PostgreSQL that the keys in use belong to.

        If not, the keys are not used any more, and a sweep is woken to look at L2.

        Args:
            mark: The mark that the statement has returned.
        """
        if mark == self.mark or self._identity is None:
            return mark == self.mark
        self._forget()
        self._cache.trust.look_soon()
        return False

    async def greet(self, connection: Any) -> None:
        """Look at L2 on a new connection, which may lead to another server than older connections.

        If L2 has changed there, L1 is not used any more, and a sweep is woken to look at L2.
        """
        identity = self._identity
        if identity is None:
            return
        try:
            look = await self._identities.look_on(connection)
        except Exception as exc:
            # The call that needs the connection will meet the same error.
            _log.debug("a new connection was not looked at (%s)", type(exc).__name__)
            return
        row = look.attachment
        is_same = row is not None and row.generation == identity.generation and row.is_marked
        if is_same and not look.changed and not self._is_set_back(look):
            return
        if self._identity is identity:
            self._forget()
            self._cache.trust.look_soon()

    # ---------------------------------------------------------------- helpers

    async def _meet_others(self, look: Look) -> None:
        """Announce our writes to other caches on this database, through the journal.

        These include the writes that were under way, or just done, when another cache was first used.
        """
        now = monotonic()
        self._met_others = {each: self._met_others.get(each, now) for each in look.others}
        new = [each for each, met_at in self._met_others.items() if now - met_at < _NEW_SECONDS]
        if new and self._written:
            await self._journal.record_now({each.scope for each in self._written}, caches=new)
        self._journal.others = look.others
        if look.others and "others" not in self._warned:
            self._warned.add("others")
            _log.warning(
                "This database has another cache, of the key_prefix %s. What is written through one reaches "
                "the other within the sweep interval only. Use one key_prefix for one database.",
                ", ".join(map(repr, sorted(look.others))),
            )

    async def _no_identity(self, error: NoIdentityError) -> None:
        if error.reason == "tables":
            self._no_tables_since = self._no_tables_since or monotonic()
            if not self._cache.is_absent:
                self._forget(is_absent=True)
            if monotonic() - self._no_tables_since < _SETUP_TAKES_SECONDS:
                return
        self._leave(_NO_IDENTITY[error.reason])

    async def _settle(self, look: Look) -> Status:
        row = look.attachment
        if row is not None:
            self._cache.recognise(row.reign)
        server = self._cache.server
        if server is None:
            return "unusable"
        reason = self._reason_to_renew(look)
        is_moved = row is not None and row.reign != server.reign
        if row is not None and reason is None and not is_moved and self._must_begin_anew(row):
            reason = "called_off"
        if row is None or reason or is_moved or self._identity != self._identity_of(look, row):
            self._leave_keys()
        if row is not None and reason is None and is_moved:
            # Perhaps Redis was replaced, and another process has noticed that first.
            server = await self._cache.connect(anew=True)
            if row.reign != server.reign:
                if not self._may_attach(server.reign):
                    await self._detach(row)
                    return "unusable"
                reason = "generation"
        if row is None or reason is not None or len(self._written_before(row)) > _WRITTEN_AT_MOST:
            await self._renew(look, reason or "generation", server.reign)
            return "changed"
        has_recorded = await self._record_written(row)
        if self._identity != self._identity_of(look, row):
            await self._leave_last_used(self._identity_of(look, row))
            self._adopt(look, row)
            return "changed"
        if has_recorded:
            return "changed"  # the next look returns the new journal rows
        self._position = look.position
        await self._confirm(row)
        await self._leave_last_used(self._identity_of(look, row))
        return "fits"

    def _identity_of(self, look: Look, row: Attachment) -> Identity:
        return Identity(look.database, row.generation, row.reign, self._signing_key or look.signing_key)

    def _reason_to_renew(self, look: Look) -> IdentityReason | None:
        row = look.attachment
        if row is None:
            return None
        changed = look.changed
        for fact, reason in _REASONS:
            if fact in changed:
                return reason
        if not row.is_marked:
            return "crash"
        if "started" in changed:
            return "restart"
        if self._is_set_back(look):
            return "timeline"
        return "generation" if row.is_forgotten else None

    def _must_begin_anew(self, row: Attachment) -> bool:
        """Whether entries may come back that writes have passed by: see `l1.departures`."""
        if not self._cache.must_begin_anew:
            return False
        is_of_others = self._known is None or row.generation != self._known.generation
        if is_of_others and row.reason == "called_off":
            self._cache.must_begin_anew = False  # another process has seen it, too, and was faster
        return self._cache.must_begin_anew

    def _is_set_back(self, look: Look) -> bool:
        """Whether PostgreSQL's log is shorter than before, in the same generation."""
        row, known = look.attachment, self._known
        is_same = row is not None and known is not None and row.generation == known.generation
        return is_same and look.position is not None and look.position < (self._position or 0)

    def _may_attach(self, reign: str) -> bool:
        """Tell whether this process may attach the cache, which is attached to another Redis.

        It may in three cases: the process has just been opened; its own Redis was replaced; or it has been
        detached for a minute.
        """
        if self._reign != reign:
            return True
        return self._detached_at is not None and monotonic() - self._detached_at > _DETACHED_SECONDS

    async def _renew(self, look: Look, reason: IdentityReason, reign: str) -> None:
        if not self.attaches:
            return
        self._renewed = await self._identities.renew(look, reign, reason)
        if self._renewed is None:
            return  # another process was faster
        self._written.clear()  # the new keys have no entries from before, so no entry hides these writes
        self._cache.must_begin_anew = False
        self._reign = reign
        row = look.attachment
        if row is None:
            return
        self._telemetry.emit(IdentityChanged(reason))
        if reason == "generation" and row.reign != reign:
            _log.info("The cache is attached to this Redis now, and warms up anew.")
            return
        if reason == "restart":
            _log.info("PostgreSQL was restarted, perhaps with other files: the cache warms up anew.")
            return
        _log.warning(
            "%s: what Redis holds from before is not believed, and the cache warms up anew.",
            _WHAT_CHANGED[reason].format(
                facts=", ".join(f"{name} {then} -> {now}" for name, (then, now) in look.changed.items()),
                minutes=int(row.unseen_seconds // 60),
            ),
        )

    def _adopt(self, look: Look, row: Attachment) -> None:
        if self._known is not None and self._known.reign == row.reign and self._reign == row.reign:
            self._note_renewal_by_others(row)
        self._identity = self._known = self._identity_of(look, row)
        self._reign, self._position = row.reign, look.position
        self.mark = look.mark
        self._detached_at = None
        self._status.identity = self._identity.name
        self._status.no_identity_because = ""
        self._cache.identify(self._identity)

    def _note_renewal_by_others(self, row: Attachment) -> None:
        if self._known is None or row.generation in (self._known.generation, self._renewed):
            return
        reason = row.reason
        self._telemetry.emit(IdentityChanged(reason))
        _log.info("Another process has renewed the identity of the cache (%s).", reason)

    async def _confirm(self, row: Attachment) -> None:
        self._written.clear()
        self.is_purged = row.is_purged
        if row.unseen_seconds > _SAY_SEEN_SECONDS:
            await self._identities.say_seen(row.generation)

    async def _leave_last_used(self, identity: Identity) -> None:
        """Store an identity in Redis, for processes that start while PostgreSQL is away.

        This is done before its keys are used: if PostgreSQL is lost just after a first write under these
        keys, the keys before must lead nobody to an older state.
        """
        now = monotonic()
        if self._last_used is None:
            return
        field, in_cluster = self._last_used.field, isinstance(self._cache, ClusterCache)
        keys = self._last_used.keys_in_cluster if in_cluster else (self._last_used.key,)
        said = {
            key: (what, since)
            for key, (what, since) in self._said_last_used.items()
            if what == identity and now - since < _SAY_LAST_USED_SECONDS
        }
        try:
            # Somebody may have flushed Redis, and the cache has warmed up again since.
            there = await self._cache.remembers(list(said), field) if said else set()
            if due := [key for key in keys if key not in there]:
                record = self._last_used.pack(identity)
                stored = await self._cache.remember(due, field, record, seconds=_LAST_USED_TTL_SECONDS)
                said |= dict.fromkeys(stored, (identity, now))
        except L1Error as exc:
            _log.debug("what is in use was not written down in Redis (%s)", type(exc).__name__)
        self._said_last_used = said

    async def _detach(self, row: Attachment) -> None:
        if self._detached_at is None:
            self._detached_at = monotonic()
        self._leave(_DETACHED)
        await self._record_written(row)

    def _leave(self, why: str) -> None:
        """Use no keys, and log why: once, or once in ten minutes if the state may come and go."""
        is_new, may_recur = why not in self._warned, why == _DETACHED
        self._leave_keys()
        self._status.no_identity_because = why
        self._warned.add(why)
        if self._detached_lines.due() if may_recur else is_new:
            _log.warning(why)

    def _leave_keys(self) -> None:
        """Stop using the current keys at once."""
        if self._cache.is_identified or self._identity is not None:
            self._forget()

    def _forget(self, *, is_absent: bool = False) -> None:
        self._identity = None
        self._status.identity = None
        self._cache.identify(None, is_absent=is_absent)

    def _written_before(self, row: Attachment) -> set[Written]:
        """Return the scopes that were written under other keys than those of L2's generation."""
        return {each for each in self._written if each.generation != row.generation}

    async def _record_written(self, row: Attachment) -> bool:
        """Record in the journal the scopes that were written under other keys.

        The next sweep then drops their entries under the keys of L2's generation, which are older than these
        writes.

        Returns:
            Whether there were such scopes.
        """
        written = self._written_before(row)
        if written:
            await self._journal.record_now({each.scope for each in written})
            self._written -= written
        return bool(written)

    def _check_durability(self, look: Look) -> None:
        self._status.synchronous_commit = look.synchronous_commit
        if look.synchronous_commit not in DURABLE and "durability" not in self._warned:
            self._warned.add("durability")
            _log.warning(
                "PostgreSQL's synchronous_commit is %r on the saver's connections: it acknowledges writes "
                "that a crash can lose. Set it to on, for the role or in the pool's connections.",
                look.synchronous_commit,
            )

    def _check_statement_timeout(self, look: Look) -> None:
        """Warn if PostgreSQL may run the statement of a killed process until after its intent has expired."""
        limit, timeout = self._statement_seconds, look.statement_timeout_seconds
        if limit is None:
            return
        self._status.has_unbounded_statements = not 0 < timeout <= limit
        if self._status.has_unbounded_statements and "statement_timeout" not in self._warned:
            self._warned.add("statement_timeout")
            _log.warning(
                "PostgreSQL's statement_timeout is %s on the saver's connections, and should be at most "
                "%g s, the write's deadline: the statement of a process that was killed may take effect so "
                "late that the cache does not notice. ALTER ROLE ... SET statement_timeout = '%gs', for the "
                "role that the saver connects with, and restart the pooler or the process.",
                f"{timeout:g} s" if timeout else "0 (none)",
                limit,
                limit,
            )


_WHAT_CHANGED: dict[IdentityReason, str] = {
    "database": "PostgreSQL is another database than the cache was filled from ({facts})",
    "timeline": "PostgreSQL was promoted, or recovered to an earlier moment ({facts})",
    "crash": "PostgreSQL has crashed, was promoted or recovered since the cache was filled",
    "truncated": "A table of the checkpoints was truncated, or the signing key was renewed",
    "called_off": "The move of a slot of the Redis Cluster was called off, so that old keys may come back",
    "generation": "No process has used the cache for {minutes} minutes, so that writes of other software may "
    "be unknown",
}
_NO_IDENTITY = {
    "tables": "The tables of the cache are not there, so that Redis is not used: PostgreSQL answers alone. "
    "Run `glasspoint setup` (or `await saver.setup()`) once, as after every upgrade.",
    "privilege": "The role that the saver connects with may not use the tables of the cache, so that Redis "
    f"is not used: PostgreSQL answers alone. {GRANTS}.",
    "standby": "PostgreSQL is a standby, which lags behind its primary, so that Redis is not used: the "
    "standby answers alone. Connect to the primary.",
    "row_security": "Row-level security applies to the role that the saver connects with: it sees a part of "
    "the rows, and Redis would show them to roles that see others. So Redis is not used, and PostgreSQL "
    "answers alone. To use Redis, connect with a role that row security does not apply to (the owner of the "
    "tables, or BYPASSRLS), and keep tenants apart by a schema or a database each.",
}
_DETACHED = (
    "Another process uses another Redis for the cache of this name (key_prefix): this process leaves its "
    "Redis alone, and PostgreSQL answers alone. One cache needs one Redis: give both the same REDIS_URL, or "
    "each a key_prefix of its own."
)
