"""`glasspoint migrate`: copies histories into PostgreSQL, and shows the progress.

The source is a URL or a file name.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from prometheus_client import CollectorRegistry
from redis.exceptions import RedisClusterException, RedisError
from rich.console import Console
from rich.filesize import decimal
from rich.progress import TimeRemainingColumn
from rich.text import Text

from glasspoint.cli.parts import (
    AsJson,
    KeyPrefix,
    PostgresUrl,
    ProgressDisplay,
    RedisUrl,
    UnattachedSaver,
    check_cache,
    connected,
    counts_table,
    needed,
    opened_redis,
    plain_endings,
    print_error,
    print_json,
    registering,
    report_facts,
    saver_options,
    words_of,
)
from glasspoint.console import Block, plain
from glasspoint.errors import ConfigurationError, GlasspointError, SchemaError
from glasspoint.l2.schema_statements import UPSTREAM_TABLES
from glasspoint.l2.sql import query
from glasspoint.logs import kept_warnings
from glasspoint.migration.copying import MigrationReport, copy_threads
from glasspoint.migration.sources import HistorySource, PostgresSource
from glasspoint.migration.sqlite import SqliteSource
from glasspoint.model.option_types import seconds_of
from glasspoint.redis.location import SCHEMES
from glasspoint.savers.cached import CachedPostgresSaver
from glasspoint.savers.redis_saver import RedisSaver
from glasspoint.telemetry import create_telemetry

if TYPE_CHECKING:
    from glasspoint.migration.sources import Source
    from glasspoint.savers.options import OpenCachedOptions

__all__ = ["app"]

app = typer.Typer()
_command = registering(app)

_NAMED_AT_MOST = 10

# libpq's other form of a connection string.
_KEY_VALUE = re.compile(r"\s*(\w+\s*=.*\s)?(host|hostaddr|dbname|service|user)\s*=", re.DOTALL)

_MISSING_TABLES = query("missing_tables")


@_command
def migrate(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            envvar="MIGRATE_FROM",
            show_envvar=True,
            show_default=False,
            help="postgresql://... (LangGraph's tables), redis://... (a RedisSaver), or a SQLite file.",
        ),
    ] = "",
    from_schema: Annotated[
        str, typer.Option(help="The schema of the source's tables.", show_default=False)
    ] = "",
    from_key_prefix: Annotated[
        str, typer.Option(help="What the source's keys in Redis begin with.")
    ] = "glasspoint",
    thread: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THREAD", help="Only this thread; may be given several times.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be copied; change nothing.")
    ] = False,
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
    redis_url: RedisUrl = "",
    key_prefix: KeyPrefix = "glasspoint",
) -> None:
    """Copy whole histories from another checkpointer into PostgreSQL.

    All checkpoints, with their values, metadata, parents and pending writes. The source is only read. What
    the target has already is not copied again: so it may be interrupted and run again, or run once while the
    old service works and once more when it has stopped. A thread that has gone on in both places is refused,
    and named.

    The target is POSTGRES_URL; its tables must be there (glasspoint setup). Redis must be reachable, for it
    is told of everything that is written. The CHECKPOINT_... variables count as for the service.

    Better set the environment variables than the options: other users of a machine can read its command
    lines, passwords and all.
    """
    if not source:
        raise typer.BadParameter("say what to copy: set MIGRATE_FROM, or pass --from.", param_hint="--from")
    needed("POSTGRES_URL", postgres_url)
    needed("REDIS_URL", redis_url)
    with plain_endings():
        options: OpenCachedOptions = {**saver_options(), "key_prefix": key_prefix}
    run = _Run(Console(stderr=True, highlight=False), dry_run=dry_run, shows_progress=not as_json)
    failure, status = "", 0

    async def copy() -> None:
        timeout = seconds_of(options["connect_timeout_seconds"])
        async with _opened(source, from_schema, from_key_prefix, timeout) as opened:
            if not dry_run:
                await check_cache(postgres_url, redis_url, options, key_prefix=key_prefix, undone="copied")
            saver_class = UnattachedSaver if dry_run else CachedPostgresSaver
            options["telemetry"] = create_telemetry(registry=CollectorRegistry())
            async with saver_class.from_conn_string(postgres_url, redis_url=redis_url, **options) as target:
                await run.copy(opened, target, thread)

    with kept_warnings(capacity=1):
        try:
            asyncio.run(copy())
        except (GlasspointError, RedisError, RedisClusterException) as error:
            failure, status = words_of(error), 1
        except psycopg.Error as error:
            failure, status = f"The source's PostgreSQL failed ({type(error).__name__}): run it again.", 1
        except KeyboardInterrupt:
            failure, status = "interrupted: run it again to copy the rest.", 130
    status = status or (1 if run.report.refused else 0)
    if as_json:
        print_json(not status, report_facts(run.report, failure, refused=dict(run.report.refused)))
    elif run.report.threads or not failure:
        Console(highlight=False).print(_report_table(run.report))
    if not as_json:
        for text in [*_refusals(run.report), *([failure] if failure else [])]:
            print_error(text)
    raise typer.Exit(status)


class _Run:
    """One migration, and the display of its progress."""

    def __init__(self, console: Console, *, dry_run: bool, shows_progress: bool) -> None:
        self.report = MigrationReport(dry_run)
        self._dry_run = dry_run
        self._display = ProgressDisplay(
            console, "looking for threads", TimeRemainingColumn(), shown=shows_progress
        )
        self._total = 0

    async def copy(
        self, source: Source, target: CachedPostgresSaver, thread_ids: Sequence[str] | None
    ) -> None:
        with self._display.bar:
            self.report = await copy_threads(
                source,
                target,
                thread_ids=thread_ids or None,
                dry_run=self._dry_run,
                on_thread=self._on_thread,
                on_begin=self._on_begin,
            )

    def _on_begin(self, threads: int) -> None:
        self._total = threads

    def _on_thread(self, report: MigrationReport) -> None:
        self.report = report
        self._display.show(
            f"{report.threads:,} of {self._total:,} threads, {report.checkpoints:,} checkpoints, "
            f"{decimal(report.bytes)}",
            done=report.threads,
            total=self._total,
        )


@asynccontextmanager
async def _opened(
    source: str, schema: str, key_prefix: str, connect_timeout_seconds: float
) -> AsyncIterator[Source]:
    """Open the source of the copy, for reading.

    Raises:
        ConfigurationError: The source is of a kind that cannot be read.
        L2UnavailableError, RedisUnavailableError: The source cannot be reached.
    """
    scheme = source.partition(":")[0].lower()
    if scheme in ("postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg") or _KEY_VALUE.match(
        source
    ):
        options: dict[str, Any] = {
            "schema": schema or None,
            "connect_timeout_seconds": connect_timeout_seconds,
        }
        async with connected(source, options, variable="MIGRATE_FROM (--from)") as conn:
            await _check_tables(conn)
            yield PostgresSource(AsyncPostgresSaver(conn), copies_bytes=True)
    elif scheme in SCHEMES:
        telemetry = create_telemetry(registry=CollectorRegistry())
        async with (
            opened_redis(source, {}, timeout_seconds=2.0) as redis,
            # `create` would need the right to write.
            RedisSaver(redis, key_prefix=key_prefix, telemetry=telemetry) as saver,
        ):
            await saver.ping()
            yield HistorySource(saver, copies_bytes=True)
    elif "://" in source and scheme != "sqlite":
        raise ConfigurationError(
            f"Histories cannot be copied from {plain(scheme)}://: it must be postgresql://, redis:// or a "
            "SQLite file. From any other saver copy with glasspoint.migrate()."
        )
    else:
        path = source.removeprefix("sqlite:///") if scheme == "sqlite" else source
        with SqliteSource(Path(path)) as sqlite:
            yield sqlite


async def _check_tables(conn: psycopg.AsyncConnection[Any]) -> None:
    cursor = await conn.execute(_MISSING_TABLES, {"tables": list(UPSTREAM_TABLES)})
    if missing := [row[0] for row in await cursor.fetchall()]:
        raise SchemaError(
            f"The source has no table {missing[0]}: it is not a database of LangGraph's PostgresSaver, or "
            "--from-schema is needed."
        )


def _report_table(report: MigrationReport) -> Block:
    grid = counts_table(
        "would copy" if report.dry_run else "copied",
        f"what was missing of {report.threads:,} threads",
        ("checkpoints", report.checkpoints),
        ("writes", report.writes),
        ("values", report.values),
        ("size", decimal(report.bytes)),
        ("threads", f"{report.copied:,} with something new, {report.unchanged:,} were complete"),
    )
    if report.refused:
        grid.add_row(Text("refused", "bold red"), f"{len(report.refused):,} threads, see below")
    return Block(grid, indent=0, lines_after=0)


def _refusals(report: MigrationReport) -> list[str]:
    lines = [f"thread '{plain(thread)}': {why}" for thread, why in report.refused.items()]
    more = len(lines) - _NAMED_AT_MOST
    return lines if more <= 0 else [*lines[:_NAMED_AT_MOST], f"and {more:,} more threads: --json names all."]
