"""Retention: a service removes old checkpoints itself, in the background, one process at a time.

    look     once a minute: if a run is due, and no other process has the lease, this process takes the lease
    run      `aprune_older_than`, in its short batches; the lease is renewed meanwhile
    end      succeeded     the time is recorded, and the next run is due an hour later
             failed        the lease is free a minute later: in an outage, one process a minute tries
             lost          the lease was not renewed in time: another process goes on
             closed        the lease is given back at once

The lease is a row in PostgreSQL, and expires by PostgreSQL's clock. If its process has died, another process
takes it then. If a process could not renew it in time, its run ends after the current batch. Two runs may
overlap until then: they share the work, and nothing goes wrong.

The age of a checkpoint is measured by PostgreSQL's clock or by this process's, whichever is behind: a clock
that is ahead must not remove young checkpoints.

Open this file when nothing is pruned, or when two processes prune at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from contextlib import suppress
from datetime import timedelta
from time import monotonic, time
from typing import TYPE_CHECKING, Final, Protocol

from glasspoint.errors import ForkedError, GlasspointError, SaverClosedError, SchemaError
from glasspoint.l2.faults import FORESEEN
from glasspoint.l2.lease import Lease
from glasspoint.logs import Throttle, get_logger
from glasspoint.model.ages import age_as_text
from glasspoint.telemetry.background import BackgroundTask
from glasspoint.telemetry.events import RetentionPruned, RetentionRan
from glasspoint.telemetry.quiet import quiet_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from glasspoint.l2.connections import Connections
    from glasspoint.telemetry.events import SaverStatus, Telemetry

__all__ = ["Prune", "Retention", "Sums"]

_log = get_logger("glasspoint")

EVERY_SECONDS: Final = 3600.0
"""Time from the last run that succeeded, in any process, until the next one is due."""

LOOK_SECONDS: Final = 60.0
"""Time from one look, whether a run is due, to the next."""

LEASE_SECONDS: Final = 60.0
"""How long a process that cannot renew its lease keeps the others from pruning."""

FAILED_SECONDS: Final = 60.0
"""Time from a run that failed until any process tries again: a run reads many rows to find old ones."""

_GRACE_SECONDS: Final = 0.5
"""How long to wait for the end of a cancelled statement before psycopg closes its connection."""


class Sums(Protocol):
    """The numbers of rows that a run has removed so far."""

    @property
    def checkpoints(self) -> int:
        """Rows of `checkpoints`."""

    @property
    def writes(self) -> int:
        """Rows of `checkpoint_writes`."""

    @property
    def blobs(self) -> int:
        """Rows of `checkpoint_blobs`."""


class Prune(Protocol):
    """Removes checkpoints that are older than an age, and calls back after each batch."""

    def __call__(self, age: timedelta, *, on_batch: Callable[[Sums], object]) -> Awaitable[Sums]:
        """Remove them. `on_batch` receives the sums so far."""


class _LeaseLostError(Exception):
    """Raised between two batches: another process may prune by now."""


class Retention:
    """The background task of one saver."""

    def __init__(
        self,
        connections: Connections,
        telemetry: Telemetry,
        status: SaverStatus,
        *,
        age: timedelta,
        prune: Prune,
    ) -> None:
        """Set the task up. `start` starts it.

        Args:
            connections: Connections to the PostgreSQL that has the lease.
            telemetry: Receives an event for each batch and for the end of each run.
            status: Receives the time of the last run that succeeded.
            age: Older checkpoints are removed; greater than 0.
            prune: Removes them.
        """
        self._telemetry = telemetry
        self._status = status
        self._age = age
        self._prune = prune
        self._lease = Lease(connections)
        self._process_id = os.getpid()
        self._held_until = 0.0
        self._counted = (0, 0, 0)
        self._lines = Throttle()
        self._background = BackgroundTask(
            "retention", telemetry, means="Meanwhile this process removes no old checkpoints."
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task. It ends with `stop`, or when this object is garbage."""
        self._task = asyncio.create_task(
            _keep_looking(weakref.ref(self)), name="glasspoint-retention", context=quiet_context()
        )

    async def stop(self) -> None:
        """End the task: undo the current batch, and give the lease back."""
        while self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_GRACE_SECONDS)
        if self._lease.may_be_held and self._is_in_this_process:
            with suppress(*FORESEEN):  # then it expires
                await self._lease.give_back()

    async def round(self) -> float:
        """Look whether a run is due, and if so, do it.

        Returns:
            Seconds until the next look.
        """
        pause = LOOK_SECONDS * random.uniform(0.8, 1.0)
        if not self._status.active:
            return pause
        try:
            age = await self._claim()
        except FORESEEN as exc:
            self._not_claimed(exc)
            return pause
        if age is not None:
            await self._run(age)
        self._background.worked()
        return pause

    def failed(self, error: Exception) -> float:
        """Report an unexpected error, and return the seconds to pause."""
        return self._background.failed(error)

    # ---------------------------------------------------------------- helpers

    @property
    def _is_in_this_process(self) -> bool:
        """Whether this is the process that opened the connections, and not a forked child."""
        return os.getpid() == self._process_id

    async def _claim(self) -> timedelta | None:
        """Take the lease if a run is due. Return the age to prune by, `None` if the lease was not taken."""
        sent_at = monotonic()
        claim = await self._lease.claim(LEASE_SECONDS, every_seconds=EVERY_SECONDS)
        self._status.retention_succeeded_at = claim.succeeded_at or 0.0
        if not claim.is_mine:
            return None
        self._held_until = sent_at + LEASE_SECONDS
        try:
            return self._age + timedelta(seconds=max(0.0, time() - claim.now))
        except OverflowError:
            return timedelta.max

    def _not_claimed(self, error: Exception) -> None:
        if self._status.retention_succeeded_at is None:
            self._status.retention_succeeded_at = 0.0  # unknown; but an alert must be possible
        if isinstance(error, SchemaError):
            if since := self._lines.due():
                _log.warning(
                    "Retention: old checkpoints are not removed. %s (%d such since the last such line.)",
                    error,
                    since,
                )
        else:
            _log.debug("whether a run of the retention is due is not known (%s)", type(error).__name__)

    async def _run(self, age: timedelta) -> None:
        renewing = asyncio.create_task(self._keep_renewing(), name="glasspoint-retention-lease")
        self._counted = (0, 0, 0)
        try:
            report = await self._prune(age, on_batch=self._on_batch)
        except _LeaseLostError:
            self._telemetry.emit(RetentionRan("lost"))
            _log.info("Retention: the lease was not renewed in time; another process goes on.")
        except (ForkedError, SaverClosedError):
            pass  # the parent's loop is run in a forked child; or the saver is being closed
        except FORESEEN as exc:
            self._log_failure(exc)
            await self._postpone()
        except Exception:
            await self._postpone()
            raise
        else:
            await self._finish(report)
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _finish(self, report: Sums) -> None:
        if not self._is_in_this_process:
            return
        self._telemetry.emit(RetentionRan("succeeded"))
        _log.info(
            "Retention: %d checkpoints, %d writes and %d values that are older than %s, and not needed, "
            "were removed.",
            report.checkpoints,
            report.writes,
            report.blobs,
            age_as_text(self._age),
        )
        with suppress(*FORESEEN):  # then the lease expires, and another run is due, which finds little
            succeeded_at = await self._lease.finish()
            if succeeded_at is not None:
                self._status.retention_succeeded_at = succeeded_at

    async def _postpone(self) -> None:
        if not self._is_in_this_process:
            return
        self._telemetry.emit(RetentionRan("failed"))
        with suppress(*FORESEEN):  # then the lease expires
            await self._lease.postpone(FAILED_SECONDS)

    def _log_failure(self, error: Exception) -> None:
        if since := self._lines.due():
            _log.warning(
                "Retention: a run failed (%s: %s). What it removed before is removed. Any process tries "
                "again a minute or two later. (%d such since the last such line.)",
                type(error).__name__,
                error if isinstance(error, GlasspointError) else "PostgreSQL or Redis did not do its part",
                since,
            )

    async def _keep_renewing(self) -> None:
        while self._is_in_this_process:
            await asyncio.sleep(LEASE_SECONDS / 4)
            sent_at = monotonic()
            with suppress(*FORESEEN):
                if not await self._lease.renew(LEASE_SECONDS):
                    self._held_until = 0.0  # another process has it
                    return
                self._held_until = sent_at + LEASE_SECONDS

    def _on_batch(self, sums: Sums) -> None:
        now = (sums.checkpoints, sums.writes, sums.blobs)
        new = [count - before for count, before in zip(now, self._counted, strict=True)]
        self._counted = now
        self._telemetry.emit(RetentionPruned(*new))
        if monotonic() >= self._held_until:
            raise _LeaseLostError


async def _keep_looking(retention_ref: weakref.ref[Retention]) -> None:
    """Look now and then. Wait before the first look, because many processes start together.

    Only a look holds the retention, so that its owner can become garbage.
    """
    pause, process_id = LOOK_SECONDS * random.uniform(0.1, 1.0), os.getpid()
    while True:
        await asyncio.sleep(pause)
        retention = retention_ref()
        if retention is None or os.getpid() != process_id:  # in a child, the connections are the parent's
            return
        try:
            pause = await retention.round()
        except Exception as exc:
            pause = retention.failed(exc)
        del retention
