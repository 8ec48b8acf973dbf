"""The contact with one Redis server: which process responds, whether it is asked, and what its faults mean.

Open this file when a cache does not come back after an outage of Redis, or when L1 becomes suspect for no
visible reason. Every error that concerns the whole server ends in `Contact.failed`: the server's process is
asked for anew, L1 is suspect, and the breaker counts. What concerns one key alone stays in `steps`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.l1.departures import has_to_ask, sight_of, what_was_called_off
from glasspoint.l1.epoch import COMMAND_STATS, EpochKeeper
from glasspoint.l1.trust import TrustState
from glasspoint.logs import get_logger
from glasspoint.redis import faults
from glasspoint.redis.client import database_of, look_again
from glasspoint.redis.limiter import when_connected
from glasspoint.redis.permissions import check_permissions
from glasspoint.redis.sentinels import UnknownServiceError
from glasspoint.redis.timeouts import answered_within
from glasspoint.redis.tls import named
from glasspoint.redis.topology import name_of
from glasspoint.telemetry.events import EpochChanged, L1Availability

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from glasspoint.l1.breaker import Breaker
    from glasspoint.l1.departures import Sight
    from glasspoint.l1.epoch import Server, Shard
    from glasspoint.model.generics import ResultT
    from glasspoint.telemetry.events import Telemetry

__all__ = ["Contact"]

_log = get_logger("glasspoint.l1")


class Contact:
    """The contact of one cache with one Redis server; in a cluster, with one master."""

    def __init__(
        self,
        redis: Redis,
        telemetry: Telemetry,
        *,
        key_prefix: str,
        timeout_seconds: float,
        breaker: Breaker,
        shard: Shard | None = None,
    ) -> None:
        """Take the Redis. It is not asked yet.

        Args:
            redis: The client.
            telemetry: Receives an event when Redis becomes available or unavailable, or another process.
            key_prefix: The first part of every key.
            timeout_seconds: How long one request may take.
            breaker: Decides whether Redis is asked at all.
            shard: The place in a cluster; `None`: this Redis is not in a cluster.
        """
        self.redis = redis
        """The client."""
        self.shard = shard
        """The place in a cluster; `None`: this Redis is not in a cluster."""
        self.timeout_seconds = timeout_seconds
        """How long one request may take."""
        self.breaker = breaker
        """Decides whether Redis is asked."""
        self.trust = TrustState()
        """Whether what stands in this Redis is trusted."""
        self.epochs = EpochKeeper(redis, key_prefix=key_prefix, changed=self._server_changed, shard=shard)
        """Knows the server process, and the keys in use."""
        self.slots: tuple[tuple[int, int], ...] = ()
        """In a cluster: the ranges of slots of this master, in the topology that is known."""
        self._telemetry = telemetry
        self._key_prefix = key_prefix
        self._name = "L1 (Redis)" if shard is None else f"The shard {name_of(shard.address)} of L1 (Redis)"
        self._available = True
        self._unusable_logged = ""
        self._asks_for_rights = False
        self._sight: Sight | None = None  # what the last look at this node of a cluster has found

    # ---------------------------------------------------------------- requests

    async def in_time(self, ask: Callable[..., Awaitable[ResultT]], *args: Any) -> ResultT:
        """Ask Redis without a slot of the limiter, because all steps wait for this, or it is a ping.

        Raises:
            TimeoutError: There was no result in time.
            Exception: The error of `ask`.
        """
        with answered_within(self.timeout_seconds):
            return await when_connected(ask, *args)

    async def open(self) -> Server:
        """Find out, at the first contact, whether this Redis can be the cache, and which process responds.

        Raises:
            L1UnavailableError: Redis cannot be reached.
            L1Error: Redis responds, and refuses. The log says what to do. When `Cache.probe` succeeds later,
                Redis does not refuse any more.
            NeverTheCacheError: This Redis can never be the cache.
        """
        self._asks_for_rights = True
        try:
            await self.check_rights()
            server = await self.in_time(self.epochs.meet)
        except faults.NeverTheCacheError:
            raise
        except Exception as exc:
            if isinstance(exc, UnknownServiceError) and exc.is_misnamed:
                raise faults.NeverTheCacheError(str(exc)) from exc
            if faults.is_a_refused_database(exc):
                raise faults.NeverTheCacheError(
                    f"it has no database {database_of(self.redis)}. Name another one in the Redis URL (0 is "
                    "always there), or raise `databases` in the server's configuration."
                ) from exc
            raise self.failed(exc, is_opening=True) from exc
        self.succeeded()
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
            self.epochs.distrust()
            await look_again(self.redis)
        try:
            server = await self.in_time(self.epochs.meet)
        except Exception as exc:
            raise self.failed(exc) from exc
        self.succeeded()
        return server

    async def ping(self) -> None:
        """Ask whether Redis responds.

        A response says nothing of the steps, which a replica or a full server refuses. So it is no success
        for the breaker: frequent health checks would keep it closed.

        Raises:
            L1Error: Redis does not respond.
        """
        try:
            await self.in_time(self.redis.ping)
        except Exception as exc:
            raise self.failed(exc) from exc

    async def results_of(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands together that are no steps.

        Returns:
            Their results. A result is `None` if the slot of the command's key is on its way.

        Raises:
            L1Error: Redis failed.
        """

        async def send() -> list[Any]:
            async with self.redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)

        try:
            results = await self.in_time(send)
            for number, result in enumerate(results):
                if isinstance(result, Exception):
                    if self.shard is None or faults.redirection_of(result) != "moving":
                        raise result
                    results[number] = None
        except Exception as exc:
            raise self.failed(exc) from exc
        return results

    async def check_rights(self) -> None:
        """Check that this user has all rights that the cache needs, if there is a reason to ask.

        Raises:
            CannotBeTheCacheError: A right is missing.
            Exception: The error of the client.
        """
        if self._asks_for_rights:
            tag = None if self.shard is None else self.shard.tag
            await self.in_time(partial(check_permissions, tag=tag), self.redis, self._key_prefix)
            self._asks_for_rights = False

    def lacks_rights(self, error: faults.CannotBeTheCacheError) -> None:
        """Leave this Redis alone until a probe finds that this user has all rights."""
        self._asks_for_rights = True
        self._unusable_logged = str(error)
        self.failed(error)

    # ---------------------------------------------------------------- a node of a cluster

    def follow(self, other: Contact) -> None:
        """Compare the reign with that of another contact at the first one: its node has a new address."""
        if other.epochs.server is not None:
            self.epochs.follow(other.epochs.server)
        self._sight = other._sight

    async def look_at_node(self) -> int:
        """Ask a node of a cluster whether a slot has arrived, or the move of one was called off.

        If a slot has arrived, another epoch begins. If a move was called off, the cluster gets to know it.

        Returns:
            The current epoch of the cluster: see `NodeLook`.

        Raises:
            L1Error: Redis failed.
        """
        try:
            look = await self.in_time(self.epochs.look_at_node)
            server = await self.in_time(self.epochs.meet)
            if self.shard is not None:
                await self._look_at_departures(self.shard, server, look.calls_of_migrate)
        except Exception as exc:
            raise self.failed(exc) from exc
        self.succeeded()
        return look.current_epoch

    async def _look_at_departures(self, shard: Shard, server: Server, calls: int) -> None:
        """Find out whether the move of a slot was called off: see `l1.departures`."""
        process, known = server.process, self.slots
        if not has_to_ask(self._sight, calls=calls, process=process, known=known):
            return

        async def ask() -> list[Any]:
            # Together, so that no slot moves in between.
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.execute_command(*COMMAND_STATS)
                pipe.execute_command("CLUSTER", "NODES")
                return await pipe.execute()

        info, nodes = await self.in_time(ask)
        text = nodes if isinstance(nodes, str) else nodes.decode()
        last, self._sight = self._sight, sight_of(info, text, process=process, known=known)
        if what := what_was_called_off(last, self._sight):
            self.trust.suspect()
            shard.called_off(shard.address, what)

    # ---------------------------------------------------------------- what follows from a result

    def failed(self, exc: Exception, *, is_opening: bool = False) -> L1Error:
        """Record an error that concerns all keys of this Redis. Return what to raise.

        Args:
            exc: The error of the client, or of Glasspoint.
            is_opening: Whether this is the first contact. The log then says what to do if Redis refuses.
        """
        if self.shard is not None and faults.redirection_of(exc) is not None:
            self.shard.redirected(None, exc)
            return L1UnavailableError("Another master of the Redis Cluster has the slot of the key.")
        # Any failure of the connection may hide a restart or a failover.
        self.epochs.distrust()
        self.trust.suspect()
        reason, fault = type(exc).__name__, faults.classify(exc)
        self._asks_for_rights |= faults.is_a_refused_command(exc)
        self._log_failure(exc, reason, fault, refusal=faults.remedy(exc) if is_opening else "")
        if fault.is_final:
            self.breaker.trip(reason)
        else:
            self.breaker.failed(reason)
        if isinstance(exc, L1Error):
            return exc
        if isinstance(exc, AuthenticationError | AuthorizationError):
            return L1Error("Redis refuses this user or password.")
        kind = L1Error if isinstance(exc, ResponseError) else L1UnavailableError
        is_late = isinstance(exc, TimeoutError | RedisTimeoutError)
        waited = f" within {self.timeout_seconds} s" if is_late else ""
        return kind(f"Redis did not do its part{waited} ({reason}).")

    def _log_failure(self, exc: Exception, reason: str, fault: faults.Fault, *, refusal: str) -> None:
        """Log the first of several failures, and each reason why this Redis cannot be the cache."""
        unusable = str(exc) if isinstance(exc, faults.CannotBeTheCacheError) else ""
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

    def succeeded(self) -> None:
        """Record that Redis did what it was asked."""
        self.breaker.succeeded()
        # While the breaker is open, this may be the late result of an older step. Only a probe tries all that
        # a write needs.
        if not self._available and self.breaker.state != "open":
            self._available, self._unusable_logged = True, ""
            self._telemetry.emit(L1Availability(available=True, reason="answers"))
            _log.info("%s answers again: the cache is back in use, once the journal is swept.", self._name)

    def _server_changed(self, server: Server, previous: Server | None) -> None:
        self.trust.suspect()
        if previous is not None or self.shard is not None:  # if not, the sweep is under way that met it
            self.trust.look_soon()
        if previous is None or server.has_other_era_only(previous):
            return
        reigns = _short(server.reign), _short(previous.reign)
        if self.shard is not None and server.process == previous.process:
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
