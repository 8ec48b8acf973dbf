"""Reads cached states without PostgreSQL, so that a conversation can continue in the tier `redis`.

The keys of entries contain the identity of L2 and the reign of Redis. The last process in the tier `cached`
has left both in a record (see `last_used`). PEEK reads an entry, and changes nothing. The signature of each
field is verified, as always.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

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
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import Telemetry

__all__ = ["Images"]

_log = get_logger("glasspoint")

_MISS, _FOUND, _IN_DOUBT = range(3)

# How long to wait for a burst under way, and how often to look. The burst of a live process ends a moment
# after its last write.
_DOUBT_SECONDS = 0.5
_DOUBT_STEP_SECONDS = 0.05

# How often to try a scope at most, if the record or Redis changes meanwhile.
_LOOKS = 3


class Images:
    """Finds the cached states of one target: the PostgreSQL that this process is configured for."""

    def __init__(
        self,
        redis: Redis,
        last_used: LastUsed,
        telemetry: Telemetry,
        *,
        key_prefix: str,
        timeout_seconds: float,
    ) -> None:
        """Name the target.

        Args:
            redis: The client. It is not closed here.
            last_used: Reads the record that names the keys.
            telemetry: Receives an event for each step.
            key_prefix: The first part of every key.
            timeout_seconds: How long one step may take.
        """
        self._redis: Any = redis
        self._last_used = last_used
        self._telemetry = telemetry
        self._timeout = timeout_seconds
        self._epochs = EpochKeeper(redis, key_prefix=key_prefix, changed=lambda server, previous: None)
        self._record: bytes | None = None  # the record that the epoch in use was made of
        self._has_warned = False

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
                result, fields, epoch = await self._peek(scope)
            if result != _IN_DOUBT or monotonic() > give_up_at:
                break
            await asyncio.sleep(_DOUBT_STEP_SECONDS)
        if fields is None or epoch is None:
            return None
        try:
            image = entry.decode_image(scope, fields, epoch.signer)
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
        epoch = self._epochs.known
        if epoch is not None:
            await self._asked(lambda: self._redis.delete(epoch.key(scope)))

    # ---------------------------------------------------------------- helpers

    async def _peek(self, scope: Scope) -> tuple[int, list[bytes] | None, Epoch | None]:
        for _ in range(_LOOKS):
            epoch = self._epochs.trusted or await self._meet()
            if epoch is None:
                return _MISS, None, None
            record, result = await self._asked(lambda e=epoch: self._look(e, scope))  # type: ignore[misc]
            if record != self._record:
                self._epochs.identify(None)
            elif _is_of_another_epoch(result):
                self._epochs.distrust()
            elif isinstance(result, Exception):
                self._warn(result)
                return _MISS, None, None
            else:
                return result[0], (result[1] if result[0] == _FOUND else None), epoch
        return _MISS, None, None

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
        try:
            with answered_within(self._timeout):
                return await when_connected(ask)
        except (ResponseError, L1Error):
            raise
        except (RedisError, OSError, TimeoutError) as exc:
            raise RedisUnavailableError(
                f"Redis did not answer ({type(exc).__name__}): whether it has a cached state is not known."
            ) from exc

    def _warn(self, exc: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "Cached states cannot be read from Redis (%s): conversations that begin in this tier do not "
                "go on from them.",
                type(exc).__name__,
            )


def _is_of_another_epoch(answer: Any) -> bool:
    return isinstance(answer, NoScriptError) or (
        isinstance(answer, ResponseError) and str(answer).startswith(WRONG_EPOCH)
    )
