"""Opens, sets up and closes a `CachedPostgresSaver`, and connects its parts.

Open this file to see which parts a saver has, or when a saver does not open or close as it should.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import AsyncExitStack, contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from glasspoint.coherence.audit import Auditor
from glasspoint.coherence.identity import IdentityKeeper
from glasspoint.coherence.purging import Purger
from glasspoint.coherence.sweeper import Sweeper
from glasspoint.errors import (
    ConfigurationError,
    L1Error,
    SaverClosedError,
    WrongTypeError,
)
from glasspoint.l1.breaker import Breaker
from glasspoint.l1.cache import Cache
from glasspoint.l1.compression import MIN_BYTES, packer_of
from glasspoint.l2 import pool as pools
from glasspoint.l2.fences import Fences
from glasspoint.l2.retrying import Retries
from glasspoint.l2.sizes import Sizes
from glasspoint.l2.store import Store
from glasspoint.logs import get_logger
from glasspoint.model.home import EndOfLoop, Home
from glasspoint.model.option_types import Age, Seconds, age_of, check_options, checks_options, seconds_of
from glasspoint.model.sync_methods import Opening, SyncFace
from glasspoint.redis import client
from glasspoint.redis.faults import NeverTheCacheError
from glasspoint.redis.signature import secret_of
from glasspoint.savers.bursts import BURST_SECONDS, Bursts
from glasspoint.savers.forks import Forks
from glasspoint.savers.options import CachedOptions, OpenCachedOptions
from glasspoint.savers.retention import Retention
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.background import heeding_cancellation, run_to_the_end
from glasspoint.telemetry.events import BreakerChanged, Vitals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from datetime import timedelta

    from langgraph.checkpoint.serde.base import SerializerProtocol
    from redis.asyncio import Redis

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.l2.types import Pool
    from glasspoint.model.generics import ResultT
    from glasspoint.model.password import Password
    from glasspoint.savers.retention import Sums
    from glasspoint.telemetry.events import BreakerState, Telemetry

__all__ = ["ManagedSaver"]

_log = get_logger("glasspoint")

_L1_TIMEOUT_SECONDS = 0.5
_WRITE_DEADLINE_SECONDS = 10.0

# How long readers heed an intent that nobody takes back, and how long a fence stands. A burst takes writes
# for `BURST_SECONDS`; a statement is sent before the write's deadline; PostgreSQL may work on it for as long
# again (`statement_timeout`). No statement may end after the intent or the fence is gone.
_DEADLINES_AN_INTENT_LASTS = 2
_INTENT_MARGIN_SECONDS = 5.0

# The maximum number of warm-ups without a waiting call. Each holds one state in memory until Redis has it, or
# until a step's timeout. A warm-up takes about 1 ms. So while Redis responds, only 30,000 misses a second
# would reach this number.
_FOLLOW_UPS_AT_ONCE = 32

# How long a server may take to respond to a health check.
_SIGN_OF_LIFE_SECONDS = 0.5


class ManagedSaver(SyncFace):
    """PostgreSQL and Redis, opened and closed together. `CachedPostgresSaver` adds reads and writes."""

    @checks_options(CachedOptions)
    def __init__(
        self,
        postgres_saver: AsyncPostgresSaver,
        redis: Redis,
        pool: Pool | None = None,
        *,
        serde: SerializerProtocol | None = None,
        cache_ttl: Seconds = 86400,
        key_prefix: str = "glasspoint",
        l1_timeout_seconds: Seconds = _L1_TIMEOUT_SECONDS,
        write_deadline_seconds: Seconds = _WRITE_DEADLINE_SECONDS,
        on_l1_outage: Literal["degrade", "raise"] = "degrade",
        sweep_interval_seconds: Seconds = 1.0,
        audit_ratio: float = 0.001,
        l1_signing_key: bytes | str | None = None,
        l1_compression: Literal["off", "zstd"] = "off",
        l1_compression_min_bytes: int = MIN_BYTES,
        foreign_writes: Literal["watch", "ignore"] = "watch",
        on_fork: Literal["count", "raise"] = "count",
        retention: Age | None = None,
        last_used: LastUsed | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        """Make a saver from open connections, which the caller closes.

        Lengths of time are numbers of seconds, or `timedelta`s.

        Args:
            postgres_saver: L2: the saver for PostgreSQL. Give it a pool of autocommit connections; with a
                single connection, calls queue. Give the connections a `statement_timeout` of at most
                `write_deadline_seconds`: a statement that ends long after its caller gave up could outlive
                the marks that keep readers away from Redis.
            redis: L1: a `redis.asyncio.Redis` made without `decode_responses`.
            pool: The pool of `postgres_saver`, if you have it. Another pool is an error.
            serde: Serialises the values. By default, the serializer of `postgres_saver`.
            cache_ttl: Seconds that an entry stays in Redis after its last use; greater than 0.
            key_prefix: The beginning of every key in Redis.
            l1_timeout_seconds: How long one step in Redis may take, at most a quarter of
                `write_deadline_seconds`. After that, the call uses PostgreSQL alone.
            write_deadline_seconds: How long a write may take, with all its attempts. After that, it fails
                with `L2DeadlineError`. A read of one checkpoint may take as long, plus the pool's timeout. No
                read begins an attempt later than this after its first.
            on_l1_outage: What happens to a write while Redis does not do its part. `"degrade"`: PostgreSQL
                stores it, with a row in the journal; until the journal is swept, a process that still reaches
                Redis may read the state before the write. `"raise"`: the write fails with
                `L1UnavailableError`. Reads use PostgreSQL in both cases.
            sweep_interval_seconds: The time from one sweep of the journal to the next.
            audit_ratio: The share of hits, 0 to 1, that are compared with PostgreSQL in the background.
            l1_signing_key: Signs the entries in Redis, in place of the key that PostgreSQL keeps. At least 16
                bytes, or a string of at least 16 bytes; the same in every process.
            l1_compression: Whether values are compressed in Redis: `"zstd"` or `"off"`. Both settings read
                both forms, so processes may have different ones.
            l1_compression_min_bytes: Values with fewer bytes are not compressed.
            foreign_writes: Whether the cache follows what other software writes to the tables. `"watch"`:
                `setup` makes triggers that record these writes, and the cache follows within the sweep
                interval. `"ignore"`: it makes none; for tables to which no other software writes.
            on_fork: What happens to a put that forks its thread. A put does so if another run has written to
                the thread since this run read it, or if the checkpoint is older than its parent. `"count"`:
                the checkpoint is stored, and the fork is counted and logged. `"raise"`: the checkpoint is not
                stored, and the put fails with `ThreadForkedError`. See `docs/reliability.md`.
            retention: The age, a `timedelta` or a string such as `"30d"`, at which checkpoints are removed in
                the background, unless they are needed: see `aprune_older_than`. One process at a time does
                that. `None`: nothing is removed. All services on a database should have the same value.
            last_used: What this saver leaves in Redis for processes that start while PostgreSQL is away. Only
                the fallback chain sets this.
            telemetry: Receives all events: see `create_telemetry`. By default, metrics go to the process's
                Prometheus registry, and spans to its OpenTelemetry provider.

        Raises:
            ConfigurationError: An argument cannot be used. If its type is wrong, or an option does not exist,
                the error is a `TypeError`, too.
        """
        if not isinstance(postgres_saver, AsyncPostgresSaver):
            raise WrongTypeError(
                f"postgres_saver is of the type {type(postgres_saver).__name__}: it must be an "
                "AsyncPostgresSaver (langgraph.checkpoint.postgres.aio)."
            )
        super().__init__(serde=serde or postgres_saver.serde)
        cache_ttl = seconds_of(cache_ttl)
        l1_timeout_seconds = seconds_of(l1_timeout_seconds)
        write_deadline_seconds = seconds_of(write_deadline_seconds)
        sweep_interval_seconds = seconds_of(sweep_interval_seconds)
        retention = None if retention is None else age_of(retention)
        signing_key = None if l1_signing_key is None else secret_of(l1_signing_key)
        if pool is not None and pool is not postgres_saver.conn:
            raise ConfigurationError(
                "pool is not the pool that postgres_saver works on: pass that one, or none."
            )
        self.home = Home(self)
        self._telemetry = telemetry or create_telemetry()
        self._write_deadline = write_deadline_seconds
        self._upstream = postgres_saver
        self._must_tell_l1 = on_l1_outage == "raise"
        self._forks = Forks(self._telemetry, on_fork=on_fork)
        self._l2 = Store(
            postgres_saver,
            self._telemetry,
            cache=key_prefix,
            foreign_writes=foreign_writes,
            refuses_forks=self._forks.refuses,
        )
        pool_timeout = self._l2.connections.pool.timeout if self._l2.connections.pool is not None else 0.0
        self._read_deadline = pool_timeout + write_deadline_seconds
        self._retries = Retries(
            self._telemetry,
            seconds=write_deadline_seconds,
            can_reconnect=self._l2.connections.pool is not None,
        )
        statement_seconds = _DEADLINES_AN_INTENT_LASTS * write_deadline_seconds
        # A Redis that hangs must not use up the deadline of every write.
        l1_timeout = min(l1_timeout_seconds, write_deadline_seconds / 4)
        self._breaker = Breaker(changed=self._breaker_changed)
        self._l1 = Cache(
            client.check_redis(redis),
            self._telemetry,
            key_prefix=key_prefix,
            ttl_seconds=cache_ttl,
            intent_seconds=BURST_SECONDS + statement_seconds + _INTENT_MARGIN_SECONDS,
            timeout_seconds=l1_timeout,
            breaker=self._breaker,
            packer=packer_of(l1_compression, l1_compression_min_bytes),
        )
        self._lifetime = _Lifetime(self.home, self._telemetry, redis, self._l2)
        self._l2.fences = Fences(
            self._l2.connections,
            cache=key_prefix,
            stand_seconds=BURST_SECONDS + statement_seconds + _INTENT_MARGIN_SECONDS,
            margin_seconds=statement_seconds,
            in_background=self._lifetime.in_background,
        )
        self._bursts = self._lifetime.bursts = Bursts(
            self._l1, self._l2.fences, self._telemetry, in_background=self._lifetime.in_background
        )
        self._auditor = Auditor(
            self._l1, self._l2, self._telemetry, ratio=audit_ratio, start=self._lifetime.in_background
        )
        vitals = self._lifetime.vitals
        self._sizes = self._lifetime.sizes = Sizes(self._l2.connections)
        vitals.storage = self._sizes.known
        vitals.check, vitals.loop, vitals.breaker = self._check, self.home.loop, self._breaker.state
        vitals.reopen = self.home.reopen
        vitals.quarantined = self._l1.quarantine.__len__
        self._identity = IdentityKeeper(
            self._l1,
            self._l2.identities,
            self._l2.journal,
            self._telemetry,
            vitals,
            signing_key=signing_key,
            last_used=last_used,
            statement_seconds=(_DEADLINES_AN_INTENT_LASTS - 1) * write_deadline_seconds,
        )
        self._l2.connections.greet = self._identity.greet
        self._sweeper = self._lifetime.sweeper = Sweeper(
            self._l1,
            self._l2.journal,
            self._identity,
            self._breaker,
            self._telemetry,
            vitals,
            every_seconds=sweep_interval_seconds,
            timeout_seconds=l1_timeout,
            purger=Purger(self._l1, self._l2.identities, self._identity),
            expire_fences=self._l2.fences.expire,
        )
        self._sweeper.start()
        if retention is not None:
            self._lifetime.retention = Retention(
                self._l2.connections,
                self._telemetry,
                vitals,
                age=retention,
                prune=weakref.WeakMethod(self._prune_for_retention),
            )
            self._lifetime.retention.start()
        self._lifetime.end_of_loop = EndOfLoop(type(self).__name__, self._lifetime)

    async def _prune_for_retention(self, age: timedelta, on_batch: Callable[[Sums], object]) -> Sums:
        raise NotImplementedError

    @classmethod
    def from_conn_string(
        cls, conn_string: str, *, redis_url: str, **options: Unpack[OpenCachedOptions]
    ) -> Opening[Self]:
        """Open a saver for the length of a block: `async with`, or `with` for synchronous callers.

        This does not create the tables: call `setup` once.

        Args:
            conn_string: Where PostgreSQL is: `postgresql://…`, `postgres://…`, `postgresql+asyncpg://…`,
                `postgresql+psycopg://…` or libpq's `key=value` form.
            redis_url: Where Redis is: `redis://…`, `rediss://…` or `unix://…`.
            options: The same keyword arguments as for `create`.

        Raises:
            ConfigurationError: A URL or an option cannot be used, or PostgreSQL refuses the connection.
            L2UnavailableError: PostgreSQL cannot be reached. (If Redis cannot be reached, this is logged.)
        """
        check_options(f"{cls.__name__}.from_conn_string", options, OpenCachedOptions)
        return Opening(
            lambda: cls._open(conn_string, redis_url, **options), reopens=isinstance(redis_url, str)
        )

    @classmethod
    async def create(cls, conn_string: str, redis: Redis | str, **options: Unpack[OpenCachedOptions]) -> Self:
        """Open a saver, and create the tables if they do not exist. Close it with `close`.

        Args:
            conn_string: Where PostgreSQL is, in one of the forms of `from_conn_string`.
            redis: A URL, or a client, which the caller closes.
            options: The keyword arguments of the constructor, and those of the pool (defaults in brackets):

                - `pool_min_size` (1), `pool_max_size` (10): the number of connections.
                - `pool_timeout_seconds` (10): how long a call waits for a connection.
                - `connect_timeout_seconds` (5): how long the first connection may take.
                - `prepare_threshold` (0): after how many uses a statement is prepared. `None`: never; for
                  PgBouncer in transaction mode.
                - `schema`: the schema of the tables; by default what the role's `search_path` says. Behind a
                  pooler, this must name the same schema: `ALTER ROLE … SET search_path`.
                - `password`: a function that returns the password, in place of the connection string's. It
                  may be asynchronous; a synchronous one runs in a thread. It is called before each new
                  connection, so the password may be a token that expires.

        Raises:
            ConfigurationError: A URL or an option cannot be used, or PostgreSQL refuses the connection.
            L2UnavailableError: PostgreSQL cannot be reached. (If Redis cannot be reached, this is logged.)
            SchemaError: The tables do not exist, and this role may not create them.
        """
        check_options(f"{cls.__name__}.create", options, OpenCachedOptions)
        saver = await cls._open(conn_string, redis, **options)
        try:
            await saver.setup()
        except BaseException:
            await saver.close()
            raise
        return saver

    @classmethod
    async def _open(
        cls,
        conn_string: str,
        redis: Redis | str,
        *,
        pool_min_size: int = 1,
        pool_max_size: int = 10,
        pool_timeout_seconds: Seconds = 10.0,
        connect_timeout_seconds: Seconds = 5.0,
        prepare_threshold: int | None = 0,
        schema: str | None = None,
        password: Password | None = None,
        **options: Any,
    ) -> Self:
        if pool_min_size > pool_max_size:
            raise ConfigurationError(
                f"pool_min_size is {pool_min_size} and pool_max_size {pool_max_size}: pool_min_size must not "
                "be greater than pool_max_size."
            )
        pool_timeout_seconds = seconds_of(pool_timeout_seconds)
        connect_timeout_seconds = seconds_of(connect_timeout_seconds)
        telemetry = options["telemetry"] = options.get("telemetry") or create_telemetry()
        async with AsyncExitStack() as opened:
            if isinstance(redis, str):
                timeout = seconds_of(options.get("l1_timeout_seconds", _L1_TIMEOUT_SECONDS))
                redis = client.open_redis(redis, timeout_seconds=client.TIMEOUTS_TO_CONNECT * timeout)
                opened.push_async_callback(redis.aclose)
            client.check_redis(redis)
            with heeding_cancellation():
                pool = await pools.open_pool(
                    conn_string,
                    min_size=pool_min_size,
                    max_size=pool_max_size,
                    timeout_seconds=pool_timeout_seconds,
                    connect_timeout_seconds=connect_timeout_seconds,
                    prepare_threshold=prepare_threshold,
                    statement_timeout_seconds=seconds_of(
                        options.get("write_deadline_seconds", _WRITE_DEADLINE_SECONDS)
                    ),
                    schema=schema,
                    password=password,
                    telemetry=telemetry,
                )
                opened.push_async_callback(pools.close_pool, pool)
                saver = cls(AsyncPostgresSaver(pool), redis, pool, **options)
                # If the opening fails, the saver's tasks must not connect again.
                opened.push_async_callback(saver._lifetime.close)
                await saver._connect_l1()
            saver._lifetime.owned = opened.pop_all()
        saver._sizes.look_soon()
        saver.vitals.announce(lambda: _log.info("CachedPostgresSaver initialized (Redis L1 + PostgreSQL L2)"))
        return saver

    async def _connect_l1(self) -> None:
        """Make the first contact with Redis. If Redis is down or refuses, open the breaker."""
        try:
            server = await self._l1.open()
        except NeverTheCacheError as exc:
            raise ConfigurationError(f"This Redis cannot be the cache: {exc}") from exc
        except L1Error as exc:
            self._breaker.trip(type(exc.__cause__ or exc).__name__)
            return
        self._lifetime.vitals.versions["redis"] = server.version
        await self._sweeper.settle()

    @property
    def vitals(self) -> Vitals:
        """The state of the saver and its servers, as metrics and health checks read it."""
        return self._lifetime.vitals

    async def ping(self) -> None:
        """Check that PostgreSQL responds.

        Raises:
            L2UnavailableError: It does not.
        """
        with self._lifetime.call():
            await self._l2.ping()

    async def _check(self) -> dict[str, Any]:
        l1, l2 = await asyncio.gather(self._look_at_l1(), self._look_at_l2())
        server = self._l1.server
        return {
            "l1": l1,
            "l2": l2,
            "epoch": server.reign if server else "unknown",
            "identity": self.vitals.identity or "unknown",
            "breaker": self._breaker.state,
            "journal": self.vitals.journal_pending,
            "quarantined": len(self._l1.quarantine),
        }

    async def _look_at_l1(self) -> str:
        # While the breaker is open, Redis is not asked: it may respond to PING, and refuse everything else.
        answers = self._breaker.is_closed and await _answers(self._l1.ping, _SIGN_OF_LIFE_SECONDS)
        return "ok" if answers and self._breaker.is_closed else "unavailable"

    async def _look_at_l2(self) -> str:
        """Distinguish a PostgreSQL that is away from a pool whose connections are all in use.

        If a full pool counted as an outage, all processes of a busy service would become unready at once. So
        this tries a connection outside the pool.
        """
        takes_writes = True

        async def ask() -> None:
            nonlocal takes_writes
            with self._lifetime.call():
                takes_writes = await self._l2.ping()

        seconds = _SIGN_OF_LIFE_SECONDS
        if not self._l2.connections.is_saturated:
            if await _answers(ask, seconds):
                return "ok" if takes_writes else "read_only"
            if not self._l2.connections.is_saturated:
                return "unavailable"
            seconds /= 2
        return "busy" if await _answers(self._l2.connections.is_busy, seconds) else "unavailable"

    async def _ready_l1(self) -> None:
        """Find out which keys L1 uses, if that is unknown.

        This runs before a write takes a connection to PostgreSQL.
        """
        if not self._l1.is_identified:
            await self._sweeper.regain_trust()

    def _breaker_changed(self, state: BreakerState, reason: str) -> None:
        was_closed, self.vitals.breaker = self.vitals.breaker == "closed", state
        self._telemetry.note(BreakerChanged(state, reason))
        self._sweeper.look_soon()
        if state == "open" and was_closed:
            _log.warning(
                "L1 (Redis) is left alone (%s), and probed. PostgreSQL answers alone, and writes go into the "
                "journal, too, so that no older state is read from Redis later.",
                reason,
            )
        elif state == "closed":
            _log.info("L1 (Redis) is asked again: the breaker has closed.")
        else:
            _log.debug("The breaker of L1 (Redis) is %s (%s).", state, reason)

    def close(self) -> Awaitable[None]:
        """Finish the work that is under way, and close what this saver has opened. May be called twice.

        On the saver's event loop, await the result. Everywhere else, the saver is closed when this returns.
        """
        return self._close_on_either_face(self._lifetime.close, done=not self._lifetime.is_open)

    def setup(self) -> Awaitable[None]:
        """Create the checkpoint tables, or bring them up to date. Many processes may call this at once.

        On the saver's event loop, await the result. Everywhere else, the tables are ready when this returns.

        Raises:
            SchemaError: The tables do not exist, and this role may not create them.
            L2DeadlineError: Other transactions kept the tables locked for too long.
            L2UnavailableError: PostgreSQL cannot be reached.
        """
        return self._on_either_face("setup", lambda saver: saver._setup())

    async def _setup(self) -> None:
        with self._lifetime.call():
            version = await self._l2.setup()
        self._lifetime.vitals.versions["postgres"] = f"{version // 10000}.{version % 10000}"
        if not self._sizes.known():
            self._sizes.look_soon()
        if not self._l1.is_identified:
            await self._sweeper.settle()


async def _answers(ask: Callable[[], Awaitable[Any]], seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await ask() is not False
    except Exception:
        return False


class _Lifetime:
    """The calls and tasks of a saver, and what `close` closes. The clones of `with_allowlist` share it."""

    def __init__(self, home: Home, telemetry: Telemetry, redis: Redis, store: Store) -> None:
        addresses = {"l1": client.address_of(redis), "l2": pools.address_of(store.connections.pool)}
        self.vitals = Vitals(store.connections.pool, redis, addresses)  # type: ignore[arg-type]
        self.owned = AsyncExitStack()
        self.sweeper: Sweeper | None = None
        self.sizes: Sizes | None = None
        self.bursts: Bursts | None = None
        self.retention: Retention | None = None
        self.end_of_loop: EndOfLoop | None = None
        self._home = home
        self._telemetry = telemetry
        self._store = store
        self._calls = 0
        self._settling: set[asyncio.Task[Any]] = set()
        self._following: set[asyncio.Task[Any]] = set()  # those of `_settling` that no call waits for
        self._closed = False
        self._idle = asyncio.Event()  # set when the saver is closed and nothing is under way
        telemetry.opened(self.vitals)

    @property
    def is_open(self) -> bool:
        """Whether `close` was not called yet."""
        return not self._closed

    def check_open(self) -> None:
        """Raise an error if the saver is closed, or is used in the wrong process or on the wrong loop."""
        if self._closed:
            raise SaverClosedError("This saver was closed: open a new one, or close it later.")
        self._home.check()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wrap a call of the saver. `close` waits for calls that have begun; later ones raise an error."""
        self.check_open()
        self._calls += 1
        try:
            with heeding_cancellation():
                yield
        finally:
            self._calls -= 1
            self._look()

    async def settle(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run work to its end, even if the caller is cancelled: it must not be left half done."""
        return await asyncio.shield(self._to_the_end(asyncio.create_task(work)))

    async def follow_up(self, work: Coroutine[Any, Any, object]) -> None:
        """Run work after a call, in the call's trace. The call does not wait for it; `close` does.

        If `_FOLLOW_UPS_AT_ONCE` are running, the call waits for its own: a slow Redis must not fill the
        memory.

        Args:
            work: The work. It raises nothing, and has a deadline.
        """
        if len(self._following) >= _FOLLOW_UPS_AT_ONCE:
            await work
            return
        task = self._to_the_end(asyncio.create_task(work))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def followed_up(self) -> None:
        """Wait until the work that `follow_up` has started so far is done."""
        if self._following:
            await asyncio.wait(set(self._following))

    def in_background(self, work: Coroutine[Any, Any, None], context: Context | None = None) -> None:
        """Run work that no caller waits for. `close` waits for it, so it must have a deadline.

        Args:
            work: The work.
            context: The context that it runs in. By default an empty one, so that it belongs to no trace.
        """
        if not self._home.is_in_this_process:  # the parent's loop is run in a forked child
            work.close()
            return
        self._to_the_end(asyncio.create_task(work, context=context or Context()))

    def _to_the_end(self, task: asyncio.Task[ResultT]) -> asyncio.Task[ResultT]:
        self._settling.add(task)
        task.add_done_callback(self._settled)
        return task

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._settling.discard(task)
        self._look()

    def _look(self) -> None:
        if self._closed and not self._calls and not self._settling:
            self._idle.set()

    async def close(self) -> None:
        """Wait for the work under way, then close what was opened here.

        The wait ends, because all work has a deadline. If the caller is cancelled meanwhile, everything is
        closed all the same: no connection stays open.
        """
        if self._closed:
            return
        self._closed = True
        if self.end_of_loop is not None:
            self.end_of_loop.dismiss()
        self._look()
        await run_to_the_end(self._close())

    async def _close(self) -> None:
        try:
            if self.retention is not None:
                await self.retention.stop()
            if self.sweeper is not None:
                await self.sweeper.stop()
            if self.sizes is not None:
                await self.sizes.stop()
            await self._idle.wait()
            if self.bursts is not None:
                await self.bursts.close()
            await self._store.connections.drain()
        finally:
            self._telemetry.closed(self.vitals)
            await self.owned.aclose()
