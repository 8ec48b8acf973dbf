"""The buttons of the live page: faults of the demo's own servers, and the way back from each.

Whatever is pressed in whatever order, the demo recovers when both servers are brought back:

- Servers are stopped and started one after the other. A button that is pressed again while its fault is
  under way does nothing more: the second press gets the result of the first one.
- A fault that lasts (the lock, the small pool) ends by itself.
- No fault touches a server that the environment names.

A process in the tier `cached` does not fall to a lower tier while it runs. So some seconds after PostgreSQL
was stopped, the application is restarted, as in a rollout: it then starts in the tier `redis`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import redis

from glasspoint.errors import GlasspointError
from glasspoint.telemetry.live import Action
from glasspoint.telemetry.metrics import Families

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine

    from prometheus_client import CollectorRegistry

    from glasspoint.demo.app import App
    from glasspoint.demo.page_calls import PageCalls
    from glasspoint.demo.servers import Servers
    from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
    from glasspoint.telemetry.live.timeline import Level

__all__ = ["USUAL", "Faults", "Timing"]

_FIRST_SNAPSHOT_SECONDS = 5.0
_TOLD_AFTER_SECONDS = 0.25
_GET_LOCK_SECONDS = 2.0
_GET_CONNECTIONS_SECONDS = 4.0


@dataclass(frozen=True)
class Timing:
    """How long faults last, in seconds.

    Attributes:
        takeover: From a stop of PostgreSQL to the restart of the application.
        lock: How long the lock is held.
        squeeze: How long the pool is small.
        snapshot: From one snapshot of Redis to the next one.
    """

    takeover: float = 5.0
    lock: float = 9.0
    squeeze: float = 12.0
    snapshot: float = 15.0


USUAL = Timing()
"""How long faults last in the demo."""


@dataclass(frozen=True)
class _Button:
    name: str
    group: str
    label: str
    hint: str
    breaks: frozenset[str]
    """The servers that must be the demo's own."""
    doing: str
    """What is said at once, when the button is pressed."""
    level: Level = "warning"


_REDIS, _POSTGRES, _NOTHING = frozenset({"Redis"}), frozenset({"PostgreSQL"}), frozenset[str]()

_BUTTONS = (
    _Button(
        "flush_redis",
        "Redis",
        "Flush Redis",
        "Nothing is cached any more: reads miss once.",
        _REDIS,
        "Redis is being flushed …",
    ),
    _Button(
        "kill_redis",
        "Redis",
        "Kill Redis",
        "SIGKILL: PostgreSQL answers alone.",
        _REDIS,
        "Redis is being killed …",
    ),
    _Button(
        "restore_redis",
        "Redis",
        "Restart from an old snapshot",
        "Kills Redis and starts it with what it held some seconds ago: nothing of it is believed.",
        _REDIS,
        "Redis is being killed, and started from an old snapshot …",
    ),
    _Button(
        "start_redis",
        "Redis",
        "Bring Redis back",
        "Starts it, empty. A conversation is cached again when it goes on.",
        _REDIS,
        "Redis is being started …",
        "info",
    ),
    _Button(
        "stop_postgres",
        "PostgreSQL",
        "Stop PostgreSQL",
        "Hits go on, writes fail. Seconds later a new pod takes over, in a lower tier.",
        _POSTGRES,
        "PostgreSQL is being stopped …",
    ),
    _Button(
        "start_postgres",
        "PostgreSQL",
        "Bring PostgreSQL back",
        "What was said meanwhile is drained into it.",
        _POSTGRES,
        "PostgreSQL is being started …",
        "info",
    ),
    _Button(
        "hold_lock",
        "PostgreSQL",
        "Hold a lock",
        "Locks the table of checkpoints for some seconds: puts fail at their deadline, hits go on.",
        _POSTGRES,
        "A lock is being taken …",
    ),
    _Button(
        "squeeze_pool",
        "App",
        "Squeeze the pool",
        "Leaves one connection for some seconds: calls wait for it.",
        _NOTHING,
        "Connections are being taken from the pool …",
    ),
    _Button(
        "restart_app",
        "App",
        "Restart the app",
        "As a new pod: it starts in the best tier that it can reach.",
        _NOTHING,
        "The app is being restarted …",
    ),
)

_UNDER_WAY = "under way"
_BESIDE = {"hold_lock", "squeeze_pool", "restart_app"}


class Faults:
    """Does what the buttons say, and knows the state of each fault."""

    def __init__(
        self,
        calls: PageCalls,
        *,
        show: Callable[[str, Level], None],
        tell: Callable[[str, Level], None],
        timing: Timing = USUAL,
    ) -> None:
        """Take the way to the demo's loop, and the places where faults are told.

        Args:
            calls: Brings a press to the demo's loop.
            show: Called with the sentence of a press and its level, for the terminal. The page has it.
            tell: Called with a sentence and its level, for what follows a press later.
            timing: How long faults last.
        """
        self._calls = calls
        self._show = show
        self._tell = tell
        self._timing = timing
        self._states: dict[str, str | Callable[[], str]] = {}
        self._under_way: dict[str, asyncio.Task[str]] = {}
        self._lasting: dict[str, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._snapshot_at: float | None = None

    def actions(self, own: Collection[str]) -> list[Action]:
        """Return the buttons for the servers that are the demo's own."""
        return [
            Action(
                each.name,
                each.label,
                each.hint,
                self._pressing(each.name),
                each.group,
                doing=each.doing,
                level=each.level,
            )
            for each in _BUTTONS
            if each.breaks <= set(own)
        ]

    def states(self) -> dict[str, str]:
        """Return the state of each fault in words. May be called in any thread."""
        if self._calls.refusal:
            return {each.name: "not now" for each in _BUTTONS}
        return {
            name: state if isinstance(state, str) else state() for name, state in list(self._states.items())
        }

    @asynccontextmanager
    async def on(self, servers: Servers, app: App, registry: CollectorRegistry) -> AsyncIterator[None]:
        """Work on these servers and this application in the block. At its end, nothing is held any more."""
        self._servers, self._app, self._registry = servers, app, registry
        if servers.own_redis is not None:
            self._last("snapshots", self._keep_snapshots(servers.own_redis))
        try:
            yield
        finally:
            ending = [*self._under_way.values(), *self._lasting.values()]
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending)

    # ---------------------------------------------------------------- presses

    def _pressing(self, name: str) -> Callable[[], Awaitable[str]]:
        return lambda: self._calls.run(lambda: self._press(name))

    async def _press(self, name: str) -> str:
        pressed = self._under_way.get(name)
        if pressed is None:
            pressed = self._under_way[name] = asyncio.create_task(self._do(name), name=f"demo {name}")
            pressed.add_done_callback(lambda _: self._under_way.pop(name))
        return await asyncio.shield(pressed)

    async def _do(self, name: str) -> str:
        button = next(each for each in _BUTTONS if each.name == name)
        # As on the page: what is done at once is told once.
        telling = asyncio.get_running_loop().call_later(
            _TOLD_AFTER_SECONDS, self._show, button.doing, button.level
        )
        try:
            # What stops or starts no server may take long, and must not delay the way back.
            async with nullcontext() if name in _BESIDE else self._one_at_a_time:
                said = await self._work(name)
        except GlasspointError as error:
            self._show(f"{button.label}: {error}", "error")
            raise
        finally:
            telling.cancel()
        self._show(said, button.level)
        return said

    async def _work(self, name: str) -> str:
        work: Callable[[], Coroutine[Any, Any, str]] = getattr(self, f"_{name}")
        before = self._states.get(name)
        self._states[name] = _UNDER_WAY
        try:
            return await work()
        except (psycopg.Error, redis.RedisError, OSError) as error:
            raise GlasspointError(
                f"That did not work ({type(error).__name__}): try again in a moment."
            ) from error
        finally:
            if self._states.get(name) == _UNDER_WAY:
                self._put_state(name, before)

    def _put_state(self, name: str, state: str | Callable[[], str] | None) -> None:
        if state is None:
            self._states.pop(name, None)
        else:
            self._states[name] = state

    # ---------------------------------------------------------------- Redis

    async def _flush_redis(self) -> str:
        server = self._own_redis
        if not server.running:
            raise GlasspointError("Redis is dead: bring it back first.")
        is_alone = self._app.tier == "redis"
        await asyncio.to_thread(server.flush)
        if is_alone:
            return "Redis was flushed while it alone held the conversations: they begin anew."
        return "Redis was flushed: nothing is cached any more."

    async def _kill_redis(self) -> str:
        server = self._own_redis
        if not server.running:
            return "Redis is dead already."
        await asyncio.to_thread(server.kill)
        self._put_state("kill_redis", "dead")
        return "Redis was killed."

    async def _restore_redis(self) -> str:
        server = self._own_redis
        if self._snapshot_at is None and not server.running:
            raise GlasspointError("There is no snapshot: bring Redis back, and wait for a moment.")
        if self._snapshot_at is None:
            self._snapshot_at = await self._save_snapshot()
        await asyncio.to_thread(server.kill)
        self._put_state("kill_redis", "dead")
        await asyncio.to_thread(server.start)
        self._put_state("kill_redis", None)
        _, keys = await self._servers.redis_state()
        age = monotonic() - self._snapshot_at
        return (
            f"Redis was killed, and is back with its snapshot of {age:.0f} s ago: {keys} keys of another "
            "process, of which none is believed."
        )

    async def _start_redis(self) -> str:
        server = self._own_redis
        if server.running:
            return "Redis runs already."
        await asyncio.to_thread(server.forget_snapshot)
        self._snapshot_at = None
        await asyncio.to_thread(server.start)
        self._put_state("kill_redis", None)
        return "Redis is back, and empty."

    async def _keep_snapshots(self, server: EmbeddedRedis) -> None:
        """Save a snapshot now and then, so that there is an old one to come back with."""
        await asyncio.sleep(_FIRST_SNAPSHOT_SECONDS)
        while True:
            async with self._one_at_a_time:
                if server.running:
                    with suppress(redis.RedisError):
                        self._snapshot_at = await self._save_snapshot()
            await asyncio.sleep(self._timing.snapshot)

    async def _save_snapshot(self) -> float:
        await asyncio.to_thread(self._own_redis.save_snapshot)
        return monotonic()

    @property
    def _own_redis(self) -> EmbeddedRedis:
        assert self._servers.own_redis is not None
        return self._servers.own_redis

    # ---------------------------------------------------------------- PostgreSQL

    async def _stop_postgres(self) -> str:
        server = self._own_postgres
        if not server.running:
            return "PostgreSQL is stopped already."
        await asyncio.to_thread(server.stop)
        self._end("hold_lock", "squeeze_pool")
        if self._app.tier != "cached":
            self._put_state("stop_postgres", "stopped")
            return "PostgreSQL was stopped."
        takeover_at = monotonic() + self._timing.takeover
        self._put_state("stop_postgres", lambda: f"stopped; new pod {_in(takeover_at)}")
        self._last("takeover", self._take_over(takeover_at))
        return (
            "PostgreSQL was stopped: what is cached is still read, and writes fail. In "
            f"{self._timing.takeover:.0f} s a new pod takes over."
        )

    async def _take_over(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - monotonic()))
        if self._own_postgres.running:
            return
        if self._app.tier == "cached":
            self._put_state("stop_postgres", "stopped; new pod starts")
            self._tell("A new pod is starting, to take over …", "warning")
            await self._report(self._restart_app())
        self._put_state("stop_postgres", "stopped")

    async def _start_postgres(self) -> str:
        server = self._own_postgres
        if server.running:
            return "PostgreSQL runs already."
        await asyncio.to_thread(server.start)
        self._put_state("stop_postgres", None)
        self._end("takeover")
        return "PostgreSQL is back."

    async def _hold_lock(self) -> str:
        if (said := self._lasts("hold_lock", "The lock is held already")) is not None:
            return said
        if not self._own_postgres.running:
            raise GlasspointError("PostgreSQL is stopped: bring it back first.")
        connection = await psycopg.AsyncConnection.connect(self._servers.postgres_url, connect_timeout=2)
        try:
            await connection.execute(f"SET lock_timeout = '{_GET_LOCK_SECONDS:.0f}s'")
            # Conflicts with every write to the table, and with no read.
            await connection.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
        except BaseException:
            await connection.close()
            raise
        seconds = self._timing.lock
        self._hold("hold_lock", seconds, connection.close, "The lock is released: puts go on.")
        return f"The table of checkpoints is locked for {seconds:.0f} s: puts wait until their deadline."

    @property
    def _own_postgres(self) -> EmbeddedPostgres:
        assert self._servers.own_postgres is not None
        return self._servers.own_postgres

    # ---------------------------------------------------------------- the application

    async def _squeeze_pool(self) -> str:
        if (said := self._lasts("squeeze_pool", "The pool is squeezed already")) is not None:
            return said
        if self._servers.own_postgres is not None and not self._servers.own_postgres.running:
            raise GlasspointError("PostgreSQL is stopped: bring it back first.")
        pool = self._pool()
        held: list[psycopg.AsyncConnection[Any]] = []

        async def give_back() -> None:
            for connection in held:
                await pool.putconn(connection)

        try:
            async with asyncio.timeout(_GET_CONNECTIONS_SECONDS):
                while len(held) < pool.max_size - 1:
                    held.append(await pool.getconn(timeout=_GET_CONNECTIONS_SECONDS))
        except BaseException:
            await give_back()
            raise
        seconds = self._timing.squeeze
        self._hold("squeeze_pool", seconds, give_back, "The pool has all its connections again.")
        return (
            f"{len(held)} of the pool's {pool.max_size} connections are held for {seconds:.0f} s: "
            "calls wait for the last one."
        )

    def _pool(self) -> Any:
        families = Families.find(self._registry)
        found = [status.pool for _, status in families.savers.active()] if families is not None else []
        pool = next((each for each in found if each is not None), None)
        if pool is None:
            raise GlasspointError(
                f"The app works in the tier {self._app.tier}, without a pool of connections."
            )
        return pool

    async def _restart_app(self) -> str:
        self._end("squeeze_pool")  # that pool is gone
        tier = await self._app.restart()
        return f"The app was restarted, and works in the tier {tier}."

    # ---------------------------------------------------------------- what lasts

    def _hold(
        self, name: str, seconds: float, let_go: Callable[[], Awaitable[None]], afterwards: str
    ) -> None:
        """Call `let_go` after so many seconds, or at the end of the demo."""
        until = monotonic() + seconds

        async def last() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                self._put_state(name, None)
                with suppress(psycopg.Error):
                    await let_go()
            self._tell(afterwards, "info")

        self._put_state(name, lambda: f"held for {_seconds_until(until)} s more")
        self._last(name, last())

    def _lasts(self, name: str, what: str) -> str | None:
        """Return a sentence if this fault is under way."""
        task = self._lasting.get(name)
        return None if task is None or task.done() else f"{what}."

    def _last(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._end(name)
        task = self._lasting[name] = asyncio.create_task(work, name=f"demo {name}")
        task.add_done_callback(
            lambda done: self._lasting.pop(name) if self._lasting.get(name) is done else None
        )

    def _end(self, *names: str) -> None:
        for name in names:
            if (task := self._lasting.pop(name, None)) is not None:
                task.cancel()

    async def _report(self, work: Coroutine[Any, Any, str]) -> None:
        try:
            said = await work
        except GlasspointError as error:
            self._tell(str(error), "error")
        else:
            self._tell(said, "warning")


def _seconds_until(at: float) -> int:
    return max(0, round(at - monotonic()))


def _in(at: float) -> str:
    seconds = _seconds_until(at)
    return f"in {seconds} s" if seconds else "now"
