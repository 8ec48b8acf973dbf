"""`glasspoint prune`: runs `aprune_older_than`, with its progress. Ctrl-C ends it between two batches."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from rich.filesize import decimal
from rich.progress import TimeElapsedColumn

from glasspoint.cli.parts import ProgressDisplay, UnattachedSaver, check_cache
from glasspoint.errors import ConfigurationError, L1Error
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.telemetry import create_telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from rich.console import Console

    from glasspoint.cli.redis_servers import Look
    from glasspoint.savers.maintenance import PruneReport

__all__ = ["PruneRun"]


class _Interrupted(Exception):
    """Raised between two batches."""


class PruneRun:
    """One run of pruning, and its results so far.

    Attributes:
        report: The sums so far; `None` before the first batch.
        away: The masters of a Redis Cluster whose threads are left out: the host and port of each, and why.
        unserved_slots: The number of slots that have no master, whose threads are left out, too.
        obstacle: Of a dry run: why a run would fail now; `""` if it would not.
        interrupted: Whether Ctrl-C ended the run.
        undone: Whether a second Ctrl-C undid the batch under way.
    """

    def __init__(
        self,
        postgres_url: str,
        redis_url: str,
        console: Console,
        *,
        key_prefix: str = "glasspoint",
        saver_options: Mapping[str, Any] | None = None,
        show_progress: bool,
    ) -> None:
        self.report: PruneReport | None = None
        self.away: dict[str, str] = {}
        self.unserved_slots = 0
        self.obstacle = ""
        self.interrupted = False
        self.undone = False
        self._postgres_url = postgres_url
        self._redis_url = redis_url
        self._key_prefix = key_prefix
        self._saver_options = saver_options or {}
        self._console = console
        self._display = ProgressDisplay(
            console, "looking for what is old", TimeElapsedColumn(), shown=show_progress
        )

    async def prune(self, age: timedelta, *, keep_latest: bool, batch_size: int, dry_run: bool) -> None:
        """Remove old checkpoints. The arguments are those of `aprune_older_than`.

        Raises:
            GlasspointError: It failed; `report` holds what was done before.
        """
        try:
            await check_cache(
                self._postgres_url,
                self._redis_url,
                self._saver_options,
                key_prefix=self._key_prefix,
                undone=None if dry_run else "removed",
                needs_all=False,  # the threads of a master that is away are left out
                tries_rights=not dry_run,
                looked=self._looked,
            )
        except (L1Error, ConfigurationError) as error:
            if not dry_run:
                raise
            self.obstacle = str(error)
        saver_class = UnattachedSaver if dry_run else CachedPostgresSaver
        async with saver_class.from_conn_string(
            self._postgres_url,
            redis_url=self._redis_url,
            key_prefix=self._key_prefix,
            **self._saver_options,
            telemetry=create_telemetry(registry=CollectorRegistry()),
        ) as saver:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            loop.add_signal_handler(signal.SIGINT, lambda: self._interrupt(task))
            try:
                with self._display.bar:
                    self.report = await saver.aprune_older_than(
                        age,
                        keep_latest=keep_latest,
                        batch_size=batch_size,
                        dry_run=dry_run,
                        on_batch=self._on_batch,
                    )
                self.interrupted = False  # a Ctrl-C after the last batch: all is done
            except _Interrupted:
                pass
            except asyncio.CancelledError:
                if not self.interrupted:
                    raise
                self.undone = True
            finally:
                loop.remove_signal_handler(signal.SIGINT)

    def _looked(self, look: Look) -> None:
        self.away = {each.name: each.why for each in look.away}
        self.unserved_slots = look.unserved_slots

    def _interrupt(self, task: asyncio.Task[Any] | None) -> None:
        if not self.interrupted:
            self._console.print("Ending after the batch under way; Ctrl-C again undoes it.")
        elif task is not None:
            task.cancel()
        self.interrupted = True

    def _on_batch(self, report: PruneReport) -> None:
        self.report = report
        self._display.show(
            f"{report.checkpoints:,} checkpoints, {decimal(report.bytes)}, {report.threads:,} threads"
        )
        if self.interrupted:
            raise _Interrupted
