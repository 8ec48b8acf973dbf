"""The master that sentinels name: asks them, and follows them after a failover.

Open this when a client follows the wrong server after a failover, or when slow sentinels make calls wait.

redis-py asks the sentinels before each new connection, one after the other, with the timeouts of ordinary
connections. So one sentinel that hangs would keep every new connection waiting, and without a sentinel no
connection could be made, although the master is there. Here:

- All sentinels are asked at once, and the first one that knows the master decides. But each failover has a
  number (`config-epoch`): if it is lower than one that this process has seen, the others are waited for.
- Connections that are made at the same time share one round of questions.
- If no sentinel answers, the last known master is used. Its role and its reign are checked there, as ever:
  see `l1.epoch`. After a round without a master, nobody asks again for a moment.

Open connections ask nobody. After a planned failover, the former master takes writes for about ten seconds
more, and these writes are lost when it becomes a replica. So a watch asks all sentinels once a second while
the client is used, and ten times a second during a failover.

During a failover, the sentinel that leads it has the number of the new master before its address: in the
states `reconf_slaves` and `update_config`, it still names the former master. Such an answer is not believed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from glasspoint.logs import get_logger
from glasspoint.model.urls import address_text
from glasspoint.redis.location import SENTINEL_EXAMPLE
from glasspoint.redis.tls import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextvars import Context

__all__ = [
    "SentinelPool",
    "Sentinels",
    "SentinelsRefuseError",
    "UnknownServiceError",
    "open_master",
    "services_of",
]

_log = get_logger("glasspoint.l1")

# How long the last known master is used without a question, after a round that nobody answered.
_SILENCE_SECONDS = 1.0

# How often the watch asks the sentinels, and how often during a failover.
_LOOK_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.1

# How long the watch goes on after the last command. A command that comes later waits for a look.
_WATCHED_SECONDS = 60.0

# How long a look waits for the other sentinels, when one has named the master.
_OTHERS_SECONDS = 0.3

# A sentinel that leads a failover in one of these states has promoted a replica, and names the former master.
_PROMOTED = {"reconf_slaves", "update_config"}


class UnknownServiceError(MasterNotFoundError):
    """Sentinels answer, and none knows the service.

    Attributes:
        is_misnamed: Whether most sentinels answered, and know other services.
    """

    def __init__(self, message: str, is_misnamed: bool) -> None:
        super().__init__(message, is_misnamed)
        self.is_misnamed = is_misnamed

    def __str__(self) -> str:
        return str(self.args[0])


class SentinelsRefuseError(MasterNotFoundError):
    """No sentinel answers, and at least one refuses this process or is none: the URL or a right is wrong."""


class _Answer(NamedTuple):
    """A sentinel's answer.

    Attributes:
        master: The address of the master; `None`: the sentinel knows none that is up.
        epoch: The number of the failover that made it the master.
        services: The names of all services that the sentinel knows.
        leads: Whether the sentinel leads a failover that is under way.
        is_former: Whether the master is the former one: the failover has promoted another one already.
    """

    master: tuple[str, int] | None
    epoch: int
    services: frozenset[str]
    leads: bool = False
    is_former: bool = False


class _NoAnswer(NamedTuple):
    """Why a sentinel gave no answer.

    Attributes:
        says: What happened, as the end of a sentence whose subject is the sentinel.
        name: The name of the error, for a sentinel that is not reached.
        do: What to do, if the sentinel, or what is in its place, has refused.
        at: The address of the sentinel, if it has refused.
    """

    says: str
    name: str
    do: str = ""
    at: str = ""


class Sentinels(Sentinel):
    """The sentinels of one service."""

    def __init__(
        self,
        hosts: Iterable[tuple[str, int]],
        service: str,
        *,
        timeout_seconds: float,
        sentinel_options: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        """Take the addresses of the sentinels. They are not asked yet.

        Args:
            hosts: Their hosts and ports.
            service: The name of the master.
            timeout_seconds: How long a round of questions may take.
            sentinel_options: redis-py's options of the connections to the sentinels.
            options: redis-py's options of the connections to the master.
        """
        own = {
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": timeout_seconds,
            "retry": Retry(NoBackoff(), 1),
            **sentinel_options,
        }
        super().__init__(list(hosts), sentinel_kwargs=own, **options)  # type: ignore[no-untyped-call]
        self.service = service
        self._timeout = timeout_seconds
        self._lock = asyncio.Lock()
        self._round = 0
        self._found: tuple[str, int] | MasterNotFoundError | None = None
        self._master: tuple[str, int] | None = None
        self._epoch = -1
        self._asked_until = 0.0
        self._looking = asyncio.Lock()
        self._looks = 0
        self.is_failing_over = False
        """Whether a sentinel was leading a failover at the last look."""
        self.moved: list[Callable[[tuple[str, int]], object]] = []
        """Called with the host and the port whenever another master is named, the first one too."""

    @property
    def round_seconds(self) -> float:
        """How long a round of questions may take."""
        return self._timeout

    @property
    def master(self) -> tuple[str, int] | None:
        """The host and the port of the last known master."""
        return self._master

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the host and the port of the master.

        Raises:
            UnknownServiceError: Sentinels answer, and none knows the service.
            MasterNotFoundError: No master is up. Or no sentinel answers, and none has done so before.
        """
        seen = self._round
        async with self._lock:
            found = self._found
            # Otherwise another caller has just asked, or nobody answered a moment ago.
            if found is None or (self._round == seen and monotonic() >= self._asked_until):
                found = self._found = await self._ask()
                self._round += 1
        if isinstance(found, MasterNotFoundError):
            raise type(found)(*found.args)
        return found

    async def look(self) -> None:
        """Ask all sentinels, and follow the one that knows the newest failover. Raises nothing.

        Callers that come meanwhile share the next round. A sentinel that is silent is waited for shortly.
        """
        seen = self._looks
        async with self._looking:
            if self._looks > seen + 1:
                return
            answers, troubles = await self._ask_until_found(asks_all=True)
            self._looks += 1
            self.is_failing_over = any(answer.leads for answer in answers)
            best = self._best_of(answers)
            if best is None or best.master is None or best.master == self._master:
                return
            # A look that misses some sentinels goes on to the master of a newer failover only.
            if self._master is not None and best.epoch <= self._epoch and troubles:
                return
            self._epoch = best.epoch
            self._asked_until = 0.0
            self._found = best.master
            self._follow(best.master)

    async def look_after_refusal(self, by: tuple[str, int], *, ends_at: float) -> bool:
        """Ask all sentinels, because a server has refused as a former master does.

        Args:
            by: The host and the port of the server.
            ends_at: When to give up, on the clock `time.monotonic`.

        Returns:
            Whether to try again: another master is named; or a failover goes on, and a moment has passed.
        """
        await self.look()
        if self._master != by:
            return True
        if not self.is_failing_over or monotonic() + _LOOK_AGAIN_SECONDS > ends_at:
            return False
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return True

    async def survey(self) -> tuple[int, list[str]]:
        """Ask each sentinel which master it names.

        Returns:
            How many name the last known master, and what the others say.
        """
        agree, others = 0, []
        answers = await asyncio.gather(*map(self._ask_one, self.sentinels))
        for sentinel, answer in zip(self.sentinels, answers, strict=True):
            if isinstance(answer, _Answer) and answer.master is not None and answer.master == self._master:
                agree += 1
                continue
            if isinstance(answer, _NoAnswer):
                says = f"{answer.says}. {answer.do}".rstrip(". ")
            elif answer.is_former:
                says = "still names the former master, and leads a failover"
            elif answer.master is not None:
                says = "names {}:{}".format(*answer.master)
            elif self.service in answer.services:
                says = "knows no master that is up"
            else:
                says = "does not know the service"
            at = sentinel.connection_pool.connection_kwargs
            others.append(f"{at['host']}:{at['port']} {says}")
        return agree, sorted(others)

    async def _ask(self) -> tuple[str, int] | MasterNotFoundError:
        answers, troubles = await self._ask_until_found()
        best = self._best_of(answers)
        if best is not None and best.master is not None:
            if best.epoch < self._epoch:
                _log.warning("All sentinels that answer know only an older failover of %r.", self.service)
            self._epoch = best.epoch
            self._asked_until = 0.0
            self._follow(best.master)
            return best.master
        self._asked_until = monotonic() + self._timeout
        if best is not None or not any(answer.is_former for answer in answers):
            if answers:
                return self._no_master(answers)
            if self._master is None:
                return self._no_answer(troubles)
        self._asked_until = monotonic() + _SILENCE_SECONDS
        former = next((answer.master for answer in answers if answer.master is not None), None)
        return self._master or former or self._no_master(answers)

    def _best_of(self, answers: list[_Answer]) -> _Answer | None:
        """Return the answer to believe: of those who know the newest failover, one that names a master.

        Of several masters of one failover, the one that is followed already is chosen. (Somebody has told the
        sentinels one after the other to monitor another server.)
        """
        known = [each for each in answers if self.service in each.services and not each.is_former]
        newest = max((each.epoch for each in known), default=0)
        return max(
            (each for each in known if each.epoch == newest),
            key=lambda each: (each.master is not None, each.master == self._master),
            default=None,
        )

    def _is_decided(self, answers: list[_Answer]) -> bool:
        """Whether an answer names a master that no other answer can be expected to overrule."""
        best = self._best_of(answers)
        if best is None or best.master is None:
            return False
        return best.epoch > self._epoch or (best.epoch == self._epoch and best.master == self._master)

    def _no_answer(self, troubles: list[_NoAnswer]) -> MasterNotFoundError:
        why = ", ".join(sorted({each.name for each in troubles})) or "not in time"
        refused = [each for each in troubles if each.do]
        refusals = sorted({f"{each.at} {each.says}." for each in refused}) + sorted(
            {each.do for each in refused}
        )
        if refused and len(refused) == len(self.sentinels):
            return SentinelsRefuseError(f"No sentinel tells where {self.service!r} is. {' '.join(refusals)}")
        said = f"No sentinel answers that may know {self.service!r} ({why})."
        return MasterNotFoundError(" ".join([said, *refusals]))

    def _follow(self, master: tuple[str, int]) -> None:
        previous, self._master = self._master, master
        if master == previous:
            return
        if previous is not None:
            _log.warning("The sentinels name another master of %r: %s:%d.", self.service, *master)
        for call in self.moved:
            call(master)

    def _no_master(self, answers: list[_Answer]) -> MasterNotFoundError:
        services = {name for answer in answers for name in answer.services}
        if self.service in services:
            return MasterNotFoundError(f"The sentinels know no master of {self.service!r} that is up.")
        return UnknownServiceError(
            f"The sentinels know no service {self.service!r}. They know: "
            f"{', '.join(map(repr, sorted(services))) or 'none'}. Correct the name in the Redis URL: "
            f"{SENTINEL_EXAMPLE} (mymaster is the service).",
            2 * sum(bool(answer.services) for answer in answers) > len(self.sentinels),
        )

    async def _ask_until_found(self, *, asks_all: bool = False) -> tuple[list[_Answer], list[_NoAnswer]]:
        """Ask all sentinels at once, until one names a master that no other one can overrule.

        Args:
            asks_all: Whether to wait for the others, too, for a moment.

        Returns:
            All answers, and why the others gave none.
        """
        answers: list[_Answer] = []
        troubles: list[_NoAnswer] = []
        waiting = {asyncio.ensure_future(self._ask_one(each)) for each in self.sentinels}
        ends_at = monotonic() + self._timeout
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=max(0.0, ends_at - monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                for each in done:
                    result = each.result()
                    if isinstance(result, _NoAnswer):
                        troubles.append(result)
                    else:
                        answers.append(result)
                if self._is_decided(answers):
                    if not asks_all:
                        break
                    ends_at = min(ends_at, monotonic() + _OTHERS_SECONDS)
        finally:
            silent = len(waiting)
            for each in waiting:
                each.cancel()
            if waiting:
                await asyncio.wait(waiting)
        if asks_all:
            troubles += [_NoAnswer("does not answer in time", "not in time")] * silent
        return answers, troubles

    async def _ask_one(self, sentinel: Redis) -> _Answer | _NoAnswer:
        """Return a sentinel's answer, or why there is none."""
        try:
            masters = await services_of(sentinel)
        except (RedisError, OSError, TimeoutError) as exc:
            return _why_no_answer(exc, sentinel)
        state = masters.get(self.service)
        if state is None:
            return _Answer(None, 0, frozenset(masters))
        is_up = self.check_master_state(state, self.service)
        leads = "failover_in_progress" in str(state.get("flags", ""))
        return _Answer(
            (str(state["ip"]), int(state["port"])) if is_up else None,
            int(state.get("config-epoch", 0)),
            frozenset(masters),
            leads=leads,
            is_former=leads and str(state.get("failover-state")) in _PROMOTED,
        )


def _why_no_answer(error: Exception, sentinel: Redis) -> _NoAnswer:
    name = named(error)
    kwargs = sentinel.connection_pool.connection_kwargs
    at = address_text(str(kwargs["host"]), int(kwargs["port"]))
    if isinstance(error, AuthenticationError):
        return _NoAnswer(
            "refuses this user or password",
            name,
            "Correct sentinel_username and sentinel_password in the query of the Redis URL: they are the "
            "sentinels' own, and not those of the master.",
            at,
        )
    if isinstance(error, NoPermissionError):
        return _NoAnswer(
            "does not let this user run SENTINEL MASTERS",
            name,
            "Give the user of sentinel_username the right +sentinel|masters: see docs/rights.md.",
            at,
        )
    if isinstance(error, ResponseError) and "unknown command" in str(error).lower():
        return _NoAnswer(
            "is no sentinel, but a Redis server",
            name,
            "Name the sentinels in the Redis URL (by default they listen at 26379), or write redis:// for "
            "one server.",
            at,
        )
    return _NoAnswer(f"does not answer ({name})", name)


async def services_of(sentinel: Redis) -> dict[str, dict[str, Any]]:
    """Return what a sentinel knows of its services, by their names."""
    masters = await sentinel.sentinel_masters()
    if isinstance(masters, dict):
        return masters
    return {str(each["name"]): each for each in masters}


class SentinelPool(SentinelConnectionPool):
    """Connections to the master that the sentinels name."""

    sentinel_manager: Sentinels

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take redis-py's arguments."""
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        self._watch_context: Context | None = None
        self._watching: asyncio.Task[None] | None = None
        self._used_at = self._looked_at = monotonic()

    def watch_in(self, context: Context) -> None:
        """Follow a failover without a new connection: ask the sentinels as long as commands come.

        Args:
            context: The context of the task that asks.
        """
        self._watch_context = context

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection to the master."""
        if self._watch_context is not None:
            await self._watch(self._watch_context)
        named = self.sentinel_manager.master
        if named is not None and named != self.master_address:
            self.master_address = named
            await self.look_again()
        return await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]

    async def look_again(self) -> None:
        """Close the idle connections, so that the sentinels are asked before the next command."""
        for connection in list(self._available_connections):
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)  # does not wait, so no other call gets it meanwhile

    async def release(self, connection: Any) -> None:
        """Take a connection back; close it if it leads to a former master."""
        if (connection.host, connection.port) != (self.sentinel_manager.master or self.master_address):
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
        await super().release(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; those to the sentinels too, if all are closed."""
        watching, self._watching = (self._watching, None) if inuse_connections else (None, self._watching)
        # The task of a loop that was closed has ended, or cannot be ended any more.
        if watching is not None and watching.get_loop() is asyncio.get_running_loop():
            watching.cancel()
            await asyncio.wait([watching])
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.connection_pool.disconnect()

    async def _watch(self, context: Context) -> None:
        """See to it that the sentinels are asked, and wait for a look if there was none for long."""
        self._used_at = now = monotonic()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(
                self._keep_looking(), name="glasspoint-sentinels", context=context
            )
        longest = 3 * _LOOK_SECONDS + self.sentinel_manager.round_seconds
        if now - self._looked_at > longest and self.sentinel_manager.master is not None:
            await self._look()

    async def _keep_looking(self) -> None:
        while monotonic() - self._used_at < _WATCHED_SECONDS:
            fast = self.sentinel_manager.is_failing_over
            await asyncio.sleep(_LOOK_AGAIN_SECONDS if fast else _LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        try:
            await self.sentinel_manager.look()
        except Exception as exc:  # the last known master is used
            _log.warning("The sentinels could not be asked (%s: %s).", type(exc).__name__, exc)
        self._looked_at = monotonic()


def open_master(sentinels: Sentinels, **options: Any) -> Redis:
    """Return a client of the master that the sentinels name. It does not connect yet."""
    redis: Redis = sentinels.master_for(sentinels.service, connection_pool_class=SentinelPool, **options)
    return redis
