"""Reads cached states without PostgreSQL, so that a conversation can continue in the tier `redis`.

The keys of entries contain the identity of L2 and the reign of Redis. The last process in the tier `cached`
has left both in a record (see `last_used`). PEEK reads an entry, and changes nothing. The signature of each
field is verified, as always. `OneRedis` looks into a Redis of one server; `cluster_images` into a cluster.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import NoScriptError, RedisError, ResponseError

from glasspoint.errors import L1Error, RedisUnavailableError
from glasspoint.l1 import entry
from glasspoint.l1.epoch import WRONG_EPOCH, Epoch, EpochKeeper
from glasspoint.logs import get_logger
from glasspoint.redis.limiter import when_connected
from glasspoint.redis.timeouts import answered_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from glasspoint.coherence.last_used import LastUsed
    from glasspoint.model.codec import StoredCheckpoint
    from glasspoint.model.generics import ResultT
    from glasspoint.model.scope import Scope
    from glasspoint.redis.signature import Signer
    from glasspoint.telemetry.events import Telemetry

__all__ = [
    "LOOKS",
    "NOTHING",
    "Images",
    "OneRedis",
    "Peeked",
    "asked",
    "is_of_another_epoch",
    "peeked",
    "warn",
]

_log = get_logger("glasspoint")

_MISS, _FOUND, _IN_DOUBT = range(3)

# How long to wait for a burst under way, and how often to look. The burst of a live process ends a moment
# after its last write.
_DOUBT_SECONDS = 0.5
_DOUBT_STEP_SECONDS = 0.05

LOOKS = 3
"""How often to try a scope at most, if the record or Redis changes meanwhile."""


@dataclass(frozen=True, slots=True)
class Peeked:
    """The result of PEEK.

    Attributes:
        is_in_doubt: Whether a write is under way, or was, and nobody has seen its end.
        fields: The fields of the entry, if it has an image that can be trusted.
        signer: Signs the fields.
    """

    is_in_doubt: bool = False
    fields: list[bytes] | None = None
    signer: Signer | None = None


NOTHING = Peeked()
"""No image is there."""


def peeked(result: Any, signer: Signer) -> Peeked:
    """Return what the script PEEK has found."""
    return Peeked(result[0] == _IN_DOUBT, result[1] if result[0] == _FOUND else None, signer)


class Place(Protocol):
    """Where the entries of the cache are."""

    async def peek(self, scope: Scope) -> Peeked:
        """Read the entry of a scope."""

    async def forget(self, scope: Scope) -> None:
        """Delete the entry of a scope."""

    async def close(self) -> None:
        """Close the connections that were opened for this."""


class Images:
    """Finds the cached states of one target: the PostgreSQL that this process is configured for."""

    def __init__(self, place: Place, telemetry: Telemetry) -> None:
        """Take the place.

        Args:
            place: Where the entries are.
            telemetry: Receives an event for each step.
        """
        self._place = place
        self._telemetry = telemetry

    async def find(self, scope: Scope) -> StoredCheckpoint | None:
        """Return the cached state of a scope, with its pending writes.

        `None` if no state can be trusted, or if it needs its ancestors to be complete.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        if not scope.is_cached:
            return None  # an entry there would be an older release's, which no process keeps true
        give_up_at = monotonic() + _DOUBT_SECONDS
        while True:
            with self._telemetry.step("l1.peek", scope):
                found = await self._place.peek(scope)
            if not found.is_in_doubt or monotonic() > give_up_at:
                break
            await asyncio.sleep(_DOUBT_STEP_SECONDS)
        if found.fields is None or found.signer is None:
            return None
        try:
            image = entry.decode_image(scope, found.fields, found.signer)
        except entry.UnusableImageError as exc:
            _log.warning(
                "The cached state of thread %r, namespace %r was refused (%s): the thread does not go on "
                "from it.",
                *scope,
                exc,
            )
            return None
        return None if image.needs_ancestors else image

    async def forget(self, scope: Scope) -> None:
        """Delete the cached state of a scope whose thread is deleted. For the cache, that is an eviction.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        await self._place.forget(scope)

    async def close(self) -> None:
        """Close the connections that were opened for this."""
        await self._place.close()


class OneRedis:
    """The entries in a Redis of one server."""

    def __init__(self, redis: Redis, last_used: LastUsed, *, key_prefix: str, timeout_seconds: float) -> None:
        """Name the target.

        Args:
            redis: The client. It is not closed here.
            last_used: Reads the record that names the keys.
            key_prefix: The first part of every key.
            timeout_seconds: How long one step may take.
        """
        self._redis: Any = redis
        self._last_used = last_used
        self._timeout = timeout_seconds
        self._epochs = EpochKeeper(redis, key_prefix=key_prefix, changed=lambda server, previous: None)
        self._record: bytes | None = None  # the record that the epoch in use was made of
        self._has_warned = False

    async def peek(self, scope: Scope) -> Peeked:
        """Read the entry of a scope.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        for _ in range(LOOKS):
            epoch = self._epochs.trusted or await self._meet()
            if epoch is None:
                return NOTHING
            record, result = await self._asked(lambda e=epoch: self._look(e, scope))  # type: ignore[misc]
            if record != self._record:
                self._epochs.identify(None)
            elif is_of_another_epoch(result):
                self._epochs.distrust()
            elif isinstance(result, Exception):
                self._warn(result)
                return NOTHING
            else:
                return peeked(result, epoch.signer)
        return NOTHING

    async def forget(self, scope: Scope) -> None:
        """Delete the entry of a scope.

        Raises:
            RedisUnavailableError: Redis did not respond.
        """
        epoch = self._epochs.known
        if epoch is not None:
            await self._asked(lambda: self._redis.delete(epoch.key(scope)))

    async def close(self) -> None:
        """Do nothing: the connections belong to the client."""

    # ---------------------------------------------------------------- helpers

    async def _look(self, epoch: Epoch, scope: Scope) -> Any:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(self._last_used.key, self._last_used.field)
            pipe.evalsha(epoch.shas["peek"], 1, epoch.key(scope))
            return await pipe.execute(raise_on_error=False)

    async def _meet(self) -> Epoch | None:
        """Read the record, and ask Redis for its reign."""
        try:
            record = await self._asked(lambda: self._redis.hget(self._last_used.key, self._last_used.field))
            self._record = record
            self._epochs.identify(None if record is None else self._last_used.unpack(record))
            await self._asked(self._epochs.meet)
        except (ResponseError, L1Error) as exc:
            self._warn(exc)
            return None
        return self._epochs.known

    async def _asked(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        return await asked(ask, timeout_seconds=self._timeout)

    def _warn(self, exc: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(exc)


async def asked(ask: Callable[[], Awaitable[ResultT]], *, timeout_seconds: float) -> ResultT:
    """Ask Redis within the timeout.

    Raises:
        RedisUnavailableError: Redis did not respond.
        ResponseError, L1Error: Redis responds, and refuses.
    """
    try:
        with answered_within(timeout_seconds):
            return await when_connected(ask)
    except (ResponseError, L1Error):
        raise
    except (RedisError, OSError, TimeoutError) as exc:
        raise RedisUnavailableError(
            f"Redis did not answer ({type(exc).__name__}): whether it has a cached state is not known."
        ) from exc


def warn(exc: Exception) -> None:
    """Log that no cached state can be read."""
    _log.warning(
        "Cached states cannot be read from Redis (%s): conversations that begin in this tier do not go on "
        "from them.",
        type(exc).__name__,
    )


def is_of_another_epoch(answer: Any) -> bool:
    """Tell whether a script did not run because the server is another one now."""
    return isinstance(answer, NoScriptError) or (
        isinstance(answer, ResponseError) and str(answer).startswith(WRONG_EPOCH)
    )
