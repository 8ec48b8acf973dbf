"""Runs the scripts: sends each step to Redis, under the key and for the epoch in use.

Open this file to see what happens if a step fails. A step becomes an `L1Error`, after one of these:

    the slot of the key belongs to another master     the cluster reads its topology again
    Redis refuses this key                            the scope is in quarantine
    megabytes were not sent in time                   nothing is wrong with Redis, if it responds to others
    anything else                                     `Contact.failed`

Two faults are mended here, so that the caller does not see them: the server has another epoch now (the step
is sent again, under its keys), or the key holds another type (it is removed, and the step is sent again).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import AskError, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from glasspoint.errors import L1Error, L1UnavailableError
from glasspoint.l1.epoch import WRONG_EPOCH, UnidentifiedError
from glasspoint.l1.quarantine import OneKeyError
from glasspoint.redis import faults
from glasspoint.redis.auto_pipeline import AutoPipeline

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.l1.contact import Contact
    from glasspoint.l1.epoch import Epoch, Shard
    from glasspoint.l1.quarantine import Quarantine
    from glasspoint.l1.uncached import UncachedReport
    from glasspoint.model.scope import Scope
    from glasspoint.telemetry.events import CommitResult, L1Result, Telemetry, WarmUpResult

__all__ = ["COMMIT_RESULTS", "HIT", "READ_RESULTS", "WARM_UP_RESULTS", "Steps", "Written"]

_MISS, HIT, _BUSY, _HISTORICAL = range(4)
READ_RESULTS: dict[int, L1Result] = {_MISS: "miss", HIT: "hit", _BUSY: "busy", _HISTORICAL: "historical"}
"""What the first part of READ's result means."""

COMMIT_RESULTS: tuple[CommitResult, ...] = ("discarded", "applied", "kept")
"""What the first part of COMMIT's result means."""

WARM_UP_RESULTS: tuple[WarmUpResult, ...] = ("overtaken", "stored", "not_first")
"""What the result of WARM_UP means."""

# A step with more bytes may be slow because of its size, not because of Redis.
_LARGE_BYTES = 1_000_000

# The steps that record a change in Redis. Another Redis, or the entries of another identity, do not have it.
_CHANGING = frozenset(("confirm", "commit", "drop"))


class Written(NamedTuple):
    """A scope that this process has changed.

    Attributes:
        generation: The generation of the keys in use at the write; `None`: Redis received nothing of it.
    """

    scope: Scope
    generation: str | None


class Steps:
    """Runs the steps of one cache."""

    def __init__(
        self, contact: Contact, quarantine: Quarantine, report: UncachedReport, telemetry: Telemetry
    ) -> None:
        """Take the server that runs the scripts.

        Args:
            contact: The contact with the server.
            quarantine: The scopes whose key is refused.
            report: Logs why a scope is not cached.
            telemetry: Receives a span for each step.
        """
        self._contact = contact
        self._epochs = contact.epochs
        self._shard = contact.shard
        self._at = None if contact.shard is None else contact.shard.address
        self._quarantine = quarantine
        self._report = report
        self._telemetry = telemetry
        self._pipeline = AutoPipeline(contact.redis, timeout_seconds=contact.timeout_seconds)
        self.written: set[Written] = set()
        """The scopes that this process has changed, until `coherence.identity` takes them out."""

    async def run(
        self, step: str, scope: Scope, *args: Any, is_probe: bool = False, is_sweep: bool = False
    ) -> Any:
        """Run one script. Any failure of Redis becomes an `L1Error`.

        Args:
            is_probe: Whether to ignore the breaker.
            is_sweep: Whether to send the step for a scope in quarantine, too. A refused key then does not
                count as a failure of Redis, because the sweeper tries it again and again.

        Raises:
            L1Error: The step was not done, or it is not known whether it was.
        """
        if scope in self._quarantine and not is_sweep:
            raise OneKeyError("The scope is in quarantine: Redis refuses its key.")
        if not self._contact.breaker.is_closed and not is_probe:
            # L1 need not become suspect: only a sweep that begins after the breaker has closed makes it
            # trusted again, and that sweep sees the journal's row of a write that was held back here.
            raise L1UnavailableError("Redis is left alone for a while: it has not done its part lately.")
        try:
            evalsha = self._evalsha_on_probe if is_probe else self._evalsha
            result = await self._step(evalsha, step, scope, *args)
        except UnidentifiedError:
            raise  # nothing is wrong with Redis, and nothing was sent
        except Exception as exc:
            if self._shard is not None and not is_probe and faults.redirection_of(exc) is not None:
                raise self._redirected(self._shard, step, scope, exc, is_sweep=is_sweep) from exc
            fault = faults.classify(exc)
            if fault.of_one_key and not is_probe:
                raise self._refused(scope, exc, fault, is_sweep=is_sweep) from exc
            size = sum(len(arg) for arg in args if isinstance(arg, bytes))
            if size > _LARGE_BYTES and isinstance(exc, TimeoutError | RedisTimeoutError):
                # Redis may or may not have done the step.
                self._epochs.distrust()
                self._contact.trust.suspect()
                if await self._answers_others():
                    raise self._too_large(scope, size) from exc
            raise self._contact.failed(exc) from exc
        self._contact.succeeded()
        return result

    # ---------------------------------------------------------------- sending

    async def _step(self, evalsha: Callable[..., Awaitable[Any]], step: str, scope: Scope, *args: Any) -> Any:
        """Run one script. If the key holds another type, remove the key (CLEAR), and run the script again.

        This is safe. WRONGTYPE is the error of a script's first command on the key, so nothing was changed.
        And CLEAR removes no entry: the entry was lost, with all intents and leases, when another program
        wrote over it. For the protocol, that is an eviction, which may happen at any moment. The script is
        repeated only once, because the other program may write again and again.
        """
        try:
            return await self._ask(evalsha, step, scope, *args)
        except ResponseError as exc:
            if not faults.classify(exc).is_wrong_type:
                raise
        if await self._ask(evalsha, "clear", scope):
            self._report.tampered(scope, "its key held another type")
        return await self._ask(evalsha, step, scope, *args)

    async def _ask(self, evalsha: Callable[..., Awaitable[Any]], step: str, scope: Scope, *args: Any) -> Any:
        with self._telemetry.step(f"l1.{step}", scope, at=self._at):
            result = await evalsha(step, scope, *args)
            if not _is_answer(step, result):
                raise L1Error(
                    f"What answers is no Redis that runs the script {step}: it said something else."
                )
        return result

    async def _evalsha(self, step: str, scope: Scope, *args: Any) -> Any:
        epoch = self._epochs.trusted
        if epoch is None:
            epoch = await self._contact.in_time(self._epochs.refresh)
        try:
            return await self._send(epoch, step, scope, *args)
        except ResponseError as exc:
            if not _is_wrong_epoch(exc):
                raise
        # The key and the scripts change together. The intents and leases of the old epoch do not exist in the
        # new one. So a commit discards, and a warm-up is refused.
        epoch = await self._contact.in_time(self._epochs.refresh, epoch)
        return await self._send(epoch, step, scope, *args)

    async def _send(self, epoch: Epoch, step: str, scope: Scope, *args: Any) -> Any:
        result = await self._pipeline.evalsha(epoch.shas[step], epoch.key(scope), *args)
        if step in _CHANGING:
            self.written.add(Written(scope, epoch.identity.generation))
        current = self._epochs.known
        if current is not epoch and (current is None or current.prefix != epoch.prefix):
            # The step was done under keys that this process does not use any more.
            raise UnidentifiedError("The identity has changed while a step was under way: it was in vain.")
        return result

    async def _evalsha_on_probe(self, step: str, scope: Scope, *args: Any) -> Any:
        """Do the same as `_evalsha` on a key without an identity, because PostgreSQL may be away, too."""
        server = await self._contact.in_time(self._epochs.meet)
        try:
            return await self._pipeline.evalsha(server.shas[step], self._epochs.probe_key(server), *args)
        except ResponseError as exc:
            if not _is_wrong_epoch(exc):
                raise
        server = await self._contact.in_time(self._epochs.meet, server)
        return await self._pipeline.evalsha(server.shas[step], self._epochs.probe_key(server), *args)

    # ---------------------------------------------------------------- failures that concern one key

    def _redirected(
        self, shard: Shard, step: str, scope: Scope, exc: Exception, *, is_sweep: bool
    ) -> L1Error:
        """Give a step up that belongs to another master. Nothing is wrong with this one.

        While a slot is on its way (ASK), nobody knows for how long. Then only this scope is not cached: if a
        write met it, the scope is in quarantine until its entry could be dropped.
        """
        if faults.redirection_of(exc) == "moved":
            shard.redirected(scope, exc)
            return OneKeyError("Another master of the Redis Cluster has the slot of this scope now, or none.")
        if scope in self._quarantine:
            self._quarantine.refused_again(scope, is_sweep=is_sweep)
        elif step != "read" and not self._quarantine.enter(scope, "its slot is on the way to another node"):
            return self._contact.failed(exc)
        return OneKeyError("The slot of this scope is on its way to another master of the Redis Cluster.")

    def _refused(self, scope: Scope, exc: Exception, fault: faults.Fault, *, is_sweep: bool) -> L1Error:
        """Put a scope into quarantine, because Redis refuses its key. L1 stays trusted for other scopes."""
        if scope in self._quarantine:
            self._quarantine.refused_again(scope, is_sweep=is_sweep)
        elif self._quarantine.enter(scope, fault.says):
            if isinstance(exc, AskError):
                # Only a node of a cluster returns this error. Perhaps another server has replaced this one:
                # INFO will tell.
                self._epochs.distrust()
            if not is_sweep:
                # If the keys of several scopes in a row are refused, perhaps all keys are. The breaker's
                # probe finds that out.
                self._contact.breaker.failed(type(exc).__name__)
        else:
            return self._contact.failed(exc)
        return OneKeyError(f"Redis refuses the key of one scope: {fault.says}.")

    async def _answers_others(self) -> bool:
        """Whether Redis responds to a PING. If so, a large step was late because of its size."""
        try:
            await self._contact.in_time(self._contact.redis.ping)
        except Exception:
            return False
        return True

    def _too_large(self, scope: Scope, size: int) -> L1Error:
        """Return the error of a step that is too large to be sent within the timeout.

        That is no fault of Redis, so it does not count as a failure.
        """
        timeout = self._contact.timeout_seconds
        self._report.too_large(scope, size, timeout_seconds=timeout)
        return L1UnavailableError(f"{size / 1e6:.1f} MB were not sent to Redis within {timeout} s.")


def _is_wrong_epoch(exc: ResponseError) -> bool:
    return isinstance(exc, NoScriptError) or str(exc).startswith(WRONG_EPOCH)


def _is_read(answer: Any) -> bool:
    return answer in ([_BUSY], [_HISTORICAL], [_MISS]) or (
        isinstance(answer, list)
        and len(answer) == 2
        and (answer[0], type(answer[1])) in ((HIT, list), (_MISS, bytes))
    )


def _is_answer(step: str, answer: Any) -> bool:
    """Whether a script can return this. A proxy between Redis and us may return something else."""
    match step:
        case "read":
            return _is_read(answer)
        case "begin" | "refuse":
            return isinstance(answer, bytes)
        case "commit":
            if not isinstance(answer, list) or len(answer) not in (1, 2):
                return False
            return answer[0] in range(len(COMMIT_RESULTS)) and all(map(_is_read, answer[1:]))
        case "warm_up":
            return answer in range(len(WARM_UP_RESULTS))
        case "clear" | "confirm":
            return answer in (0, 1)
        case _:
            return bool(answer == 1)
