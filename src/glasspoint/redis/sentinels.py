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
from redis.exceptions import RedisError

from glasspoint.logs import get_logger
from glasspoint.redis.location import SENTINEL_EXAMPLE
from glasspoint.redis.tls import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["SentinelPool", "Sentinels", "UnknownServiceError", "open_master", "services_of"]

_log = get_logger("glasspoint.l1")

# How long the last known master is used without a question, after a round that nobody answered.
_SILENCE_SECONDS = 1.0


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


class _Answer(NamedTuple):
    """A sentinel's answer.

    Attributes:
        master: The address of the master; `None`: the sentinel knows none that is up.
        epoch: The number of the failover that made it the master.
        services: The names of all services that the sentinel knows.
    """

    master: tuple[str, int] | None
    epoch: int
    services: frozenset[str]


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
        self.moved: list[Callable[[tuple[str, int]], object]] = []
        """Called with the host and the port whenever another master is named, the first one too."""

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
            if isinstance(answer, str):
                says = f"does not answer ({answer})"
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
        newest, answers, errors = await self._ask_until_found()
        if newest is not None and newest.master is not None:
            if newest.epoch < self._epoch:
                _log.warning("All sentinels that answer know only an older failover of %r.", self.service)
            self._epoch = newest.epoch
            self._asked_until = 0.0
            self._follow(newest.master)
            return newest.master
        self._asked_until = monotonic() + self._timeout
        if answers:
            return self._no_master(answers)
        if self._master is None:
            why = ", ".join(sorted(errors)) or "not in time"
            return MasterNotFoundError(f"No sentinel answers that may know {self.service!r} ({why}).")
        self._asked_until = monotonic() + _SILENCE_SECONDS
        return self._master

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

    async def _ask_until_found(self) -> tuple[_Answer | None, list[_Answer], set[str]]:
        """Ask all sentinels at once, until one names a master that is not older than the last known one.

        Returns:
            The newest answer with a master, all answers, and the names of the errors.
        """
        answers: list[_Answer] = []
        errors: set[str] = set()
        waiting = {asyncio.ensure_future(self._ask_one(each)) for each in self.sentinels}
        ends_at = monotonic() + self._timeout
        newest: _Answer | None = None
        try:
            while waiting and (newest is None or newest.epoch < self._epoch):
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=max(0.0, ends_at - monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not done:
                    break
                for each in done:
                    result = each.result()
                    if isinstance(result, str):
                        errors.add(result)
                        continue
                    answers.append(result)
                    if result.master is not None and (newest is None or result.epoch > newest.epoch):
                        newest = result
        finally:
            for each in waiting:
                each.cancel()
            if waiting:
                await asyncio.wait(waiting)
        return newest, answers, errors

    async def _ask_one(self, sentinel: Redis) -> _Answer | str:
        """Return a sentinel's answer, or the name of the error: see `tls.named`."""
        try:
            masters = await services_of(sentinel)
        except (RedisError, OSError, TimeoutError) as exc:
            return named(exc)
        state = masters.get(self.service)
        is_up = state is not None and self.check_master_state(state, self.service)
        master = (str(state["ip"]), int(state["port"])) if state is not None and is_up else None
        epoch = int(state.get("config-epoch", 0)) if state is not None else 0
        return _Answer(master, epoch, frozenset(masters))


async def services_of(sentinel: Redis) -> dict[str, dict[str, Any]]:
    """Return what a sentinel knows of its services, by their names."""
    masters = await sentinel.sentinel_masters()
    if isinstance(masters, dict):
        return masters
    return {str(each["name"]): each for each in masters}


class SentinelPool(SentinelConnectionPool):
    """Connections to the master that the sentinels name."""

    sentinel_manager: Sentinels

    async def look_again(self) -> None:
        """Close the idle connections, so that the sentinels are asked before the next command."""
        for connection in list(self._available_connections):
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)  # does not wait, so no other call gets it meanwhile

    async def release(self, connection: Any) -> None:
        """Take a connection back; close it if it leads to a former master."""
        if (connection.host, connection.port) != self.master_address:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
        await super().release(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections; those to the sentinels too, if all are closed."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.connection_pool.disconnect()


def open_master(sentinels: Sentinels, **options: Any) -> Redis:
    """Return a client of the master that the sentinels name. It does not connect yet."""
    redis: Redis = sentinels.master_for(sentinels.service, connection_pool_class=SentinelPool, **options)
    return redis
