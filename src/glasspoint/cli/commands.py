"""Defines the commands of `glasspoint`, and reads their arguments.

The commands `demo`, `traffic`, `setup`, `check`, `prune`, `trace` and `dashboards` are here. Those of the
modules `top`, `browse` and `migrate` are added at the end.

All commands need the extra `cli`. `demo` also needs the extra `demo`, unless the environment names servers.

Exit statuses:

- 0: success (also after Ctrl-C during the demo's traffic, which is its normal end)
- 1: something failed
- 2: wrong usage
- 130: interrupted (`prune` ends after the batch under way, and reports what was done; a second Ctrl-C undoes
  that batch)
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from glasspoint._version import __version__
from glasspoint.cli.browse import app as browse_app
from glasspoint.cli.migrate import app as migrate_app
from glasspoint.cli.parts import (
    FORESEEN,
    AsJson,
    KeyPrefix,
    PostgresUrl,
    RedisUrl,
    counts_table,
    end_in_order_on_signals,
    needed,
    plain_endings,
    print_error,
    print_json,
    registering,
    report_facts,
    saver_options,
    words_of,
)
from glasspoint.cli.top import app as top_app
from glasspoint.console import Block
from glasspoint.logs import kept_warnings
from glasspoint.model.ages import HOW_TO_WRITE_AN_AGE, parse_age

if TYPE_CHECKING:
    from glasspoint.cli.check import Finding
    from glasspoint.cli.prune import PruneRun
    from glasspoint.cli.setup import Task
    from glasspoint.savers.maintenance import PruneReport

__all__ = ["age_of", "app", "run"]


class ForeignWrites(StrEnum):
    """The values of `--foreign-writes`."""

    WATCH = "watch"
    IGNORE = "ignore"


_MARKS = {
    "ok": ("ok", "bold green"),
    "warning": ("warning", "bold yellow"),
    "failed": ("FAILED", "bold red"),
    "skipped": ("skipped", "yellow"),
}

app = typer.Typer(
    help="Glasspoint, a LangGraph checkpointer you can see through: PostgreSQL, cached in Redis.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_command = registering(app)


def run() -> None:
    """Run the command line; it ends with `SystemExit`."""
    end_in_order_on_signals()
    # The demo prints Korean. If the terminal cannot show it, `?` is better than a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app(prog_name="glasspoint")


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"glasspoint {__version__}")
        raise typer.Exit


@_command
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the story, without the traffic.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where /live and /metrics are served; 0: any free one.")
    ] = 9464,
    open_page: Annotated[bool, typer.Option("--open", help="Open the live page in your browser.")] = False,
    no_live: Annotated[bool, typer.Option("--no-live", help="Serve no live page.")] = False,
    spans: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write the story's spans to FILE, as OTLP JSON lines; glasspoint trace reads it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Watch a conversation being remembered, cached, traced and counted: here, and in a browser.

    Six acts on real servers, while Redis is flushed, killed and brought back from an old snapshot, and
    PostgreSQL is killed. Then a light traffic of conversations, with a live table and /metrics, until Ctrl-C.
    The live page shows the same; its buttons break the servers, and its chat box talks to the agent.

    PostgreSQL and Redis are started for the demo and gone afterwards, unless POSTGRES_URL or REDIS_URL name
    others: those are neither flushed nor killed. GLASSPOINT_DEMO_MODEL=provider:name lets a real model
    answer. With OTEL_EXPORTER_OTLP_ENDPOINT, spans go there too.
    """
    from glasspoint.demo.play import DemoOptions, play_demo

    if open_page and no_live:
        raise typer.BadParameter("there is no page then.", param_hint="--open")
    options = DemoOptions(once=once, port=port, spans_file=spans, live=not no_live, opens_browser=open_page)
    with plain_endings():
        as_expected = play_demo(Console(highlight=False), options)
    raise typer.Exit(0 if as_expected else 1)


@_command
def traffic(
    host: Annotated[str, typer.Option(help="Where /metrics, /healthz and /readyz are served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The same; 0: any free one.")] = 9464,
    people: Annotated[int, typer.Option(min=1, help="How many talk at once; each a turn a second.")] = 6,
    live: Annotated[
        bool, typer.Option("--live", help="Serve /live, too, as with GLASSPOINT_LIVE=1.")
    ] = False,
) -> None:
    """Keep a light traffic of conversations going, for dashboards to show something.

    Everything is as the environment says: POSTGRES_URL, REDIS_URL, CHECKPOINT_…, OTEL_…. It stops with Ctrl-C
    or SIGTERM, and removes its conversations then.
    """
    from glasspoint.demo.serving import serve_traffic
    from glasspoint.settings import Settings

    with plain_endings():
        serve_traffic(Settings.from_environment(), host=host, port=port, people=people, live=live or None)


@_command
def setup(
    foreign_writes: Annotated[
        ForeignWrites,
        typer.Option(
            envvar="CHECKPOINT_FOREIGN_WRITES",
            show_envvar=True,
            help="watch: triggers note what other software writes to the tables. ignore: none are made.",
        ),
    ] = ForeignWrites.WATCH,
    renew_signing_key: Annotated[
        bool,
        typer.Option("--renew-signing-key", help="Make a new key for what is stored in Redis, too."),
    ] = False,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Instead: drop Glasspoint's triggers and tables, and not LangGraph's."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the SQL, for psql, and run none of it.")
    ] = False,
    postgres_url: PostgresUrl = "",
) -> None:
    """Make the tables and triggers, or bring them up to date.

    With a role that may make tables and owns LangGraph's; the service's role then needs no such right. May be
    run again, by any number of processes at once, and through PgBouncer. CHECKPOINT_POSTGRES_SCHEMA and
    CHECKPOINT_POSTGRES_PASSWORD_COMMAND count as for the service.

    Better set the environment variable than the option: other users of a machine can read its command
    lines, passwords and all.
    """
    from glasspoint.cli.setup import run_setup
    from glasspoint.settings import Settings

    needed("POSTGRES_URL", postgres_url)
    if remove and renew_signing_key:
        raise typer.BadParameter("there is no key left then.", param_hint="--renew-signing-key")
    task: Task = "remove" if remove else "renew the signing key" if renew_signing_key else "set up"
    with plain_endings(), kept_warnings(capacity=1):
        settings = Settings.from_environment()
        work = run_setup(
            postgres_url,
            task,
            foreign_writes=foreign_writes.value,
            schema_name=settings.postgres_schema,
            password=settings.postgres_password,
            connect_timeout_seconds=settings.connect_timeout,
            dry_run=dry_run,
        )
        for line in asyncio.run(work):
            typer.echo(line)


@_command
def check(
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
    redis_url: RedisUrl = "",
    key_prefix: KeyPrefix = "glasspoint",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one check may take.")] = 15.0,
) -> None:
    """Check that a deployment can remember a conversation.

    Are both servers reached, are the tables there, and does a conversation of two turns remember a name? It
    runs on a scratch thread that is removed again. Nothing else is changed, no table is made. A cache that a
    service uses with another Redis is left alone. The CHECKPOINT_... variables count as for the service.

    Better set the environment variables than the options: other users of a machine can read its command
    lines, passwords and all.
    """
    from glasspoint.cli.check import run_checks
    from glasspoint.savers.options import trial_options
    from glasspoint.settings import Settings

    console = Console(highlight=False)

    async def find() -> list[Finding]:
        settings = Settings.from_environment()
        found = []
        async for finding in run_checks(
            postgres_url,
            redis_url,
            key_prefix=key_prefix,
            saver_options=trial_options(settings),
            fallbacks=settings.fallbacks,
            redis_timeout_seconds=settings.redis_timeout,
            timeout_seconds=timeout,
        ):
            found.append(finding)
            if not as_json:
                console.print(_finding_line(finding))
        return found

    # Warnings of the saver are not shown: the findings say the same.
    with plain_endings(), kept_warnings(capacity=1):
        findings = asyncio.run(find())
    passed = all(finding.status in ("ok", "warning") for finding in findings)
    if as_json:
        checks = [
            {
                "name": finding.name,
                "status": finding.status,
                "detail": finding.detail,
                "milliseconds": round(finding.seconds * 1000, 1),
            }
            for finding in findings
        ]
        print_json(passed, {"checks": checks})
    raise typer.Exit(0 if passed else 1)


@_command
def prune(
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE", help="How old: a number and a unit: 90m, 12h, 30d, 2w.", show_default=False
        ),
    ],
    keep_latest: Annotated[
        bool,
        typer.Option(
            "--keep-latest/--no-keep-latest",
            help="Keep the newest state of every thread; or let a thread go whole that is old altogether.",
        ),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would go; lock and change nothing.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="About how many checkpoints go in one transaction.")
    ] = 1000,
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
    redis_url: RedisUrl = "",
    key_prefix: KeyPrefix = "glasspoint",
) -> None:
    """Remove old checkpoints, while everything goes on.

    What is needed stays: the newest checkpoint of each thread, and what it and younger ones are rebuilt
    from. In short transactions, of which each finished one stays done; may be run again, or twice at once.

    Redis must be reachable, for it is told of everything that goes. Of a Redis Cluster, the threads of a
    master that is away stay until the next run. Ctrl-C ends after the batch under way.
    The CHECKPOINT_... variables count as for the service.

    Better set the environment variables than the options: other users of a machine can read its command
    lines, passwords and all.
    """
    from glasspoint.cli.prune import PruneRun

    age = age_of(older_than)
    needed("POSTGRES_URL", postgres_url)
    needed("REDIS_URL", redis_url)
    with plain_endings():
        options = saver_options()
    run = PruneRun(
        postgres_url,
        redis_url,
        Console(stderr=True, highlight=False),
        key_prefix=key_prefix,
        saver_options=options,
        show_progress=not as_json,
    )
    with kept_warnings(capacity=1):
        try:
            asyncio.run(run.prune(age, keep_latest=keep_latest, batch_size=batch_size, dry_run=dry_run))
        except FORESEEN as error:
            failure = words_of(error)
        except KeyboardInterrupt:
            failure, run.interrupted = "interrupted.", True
        else:
            failure = "interrupted." if run.interrupted else ""
            if run.undone:
                failure = "interrupted; the batch under way was undone."
    if as_json:
        print_json(not failure, _report_json(run, failure))
    elif run.report is not None:
        Console(highlight=False).print(_report_table(run, run.report))
    if failure and not as_json:
        print_error(failure)
    raise typer.Exit(130 if run.interrupted else 1 if failure else 0)


@_command
def trace(
    thread_id: Annotated[
        str, typer.Argument(metavar="THREAD_ID", help="The conversation, as the graph's config names it.")
    ],
    tempo: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="TEMPO_URL",
            show_default=False,
            show_envvar=True,
            help="Read from this Tempo.",
        ),
    ] = "",
    file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Read from this file of OTLP JSON lines; may be given several times.",
            show_default=False,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'NAME: VALUE'",
            help="Send this to Tempo; may be given several times. Better: TEMPO_HEADERS=name=value,…",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="AGE", help="How far back Tempo searches: 90m, 12h, 30d.")
    ] = "7d",
    limit: Annotated[int, typer.Option(min=1, help="How many traces Tempo gives at most.")] = 1000,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one answer of Tempo's may take.")
    ] = 10.0,
    last: Annotated[
        int | None, typer.Option(min=1, help="Show the last so many turns only.", show_default=False)
    ] = None,
    all_spans: Annotated[
        bool, typer.Option("--all", help="Show every span: also what a call of the checkpointer consists of.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page to look at in a browser.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a conversation turn by turn: what took how long, and where each read came from.

    From the spans that were recorded of it: in a Tempo, or in a file that glasspoint demo --spans or an
    OpenTelemetry collector has written. Thread ids that are hashed on spans are found, too.

    TEMPO_HEADERS (name=value,name=value, as OTEL_EXPORTER_OTLP_HEADERS) holds what Tempo wants to be sent: a
    tenant, credentials. Better set it than the option: other users of a machine can read its command lines.
    """
    from glasspoint.cli.trace import from_files, from_tempo, show
    from glasspoint.trace.tempo import Tempo, headers_from_variable
    from glasspoint.trace.tempo import header as read_header

    since_seconds = age_of(since, "--since").total_seconds()
    # A file takes precedence: TEMPO_URL may be set in the environment anyway.
    if not file and not tempo:
        raise typer.BadParameter(
            "say where to look: --file FILE, or --tempo URL (TEMPO_URL).", param_hint="--file"
        )
    with plain_endings():
        if file:
            conversation = from_files(thread_id, file)
        else:
            headers = [
                *headers_from_variable(os.environ.get("TEMPO_HEADERS", "")),
                *map(read_header, header or ()),
            ]
            with Tempo(tempo, headers=headers, timeout_seconds=timeout) as opened:
                conversation = from_tempo(thread_id, opened, since_seconds=since_seconds, limit=limit)
        show(
            conversation,
            Console(highlight=False),
            last=last,
            all_spans=all_spans,
            as_json=as_json,
            page=html,
        )


@_command
def dashboards(
    output: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where to write them; made if it is missing.", show_default=False),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there and differ.")] = False,
) -> None:
    """Write the boards for Grafana, and the rules and alerts for Prometheus.

    DIR/grafana/*.json are boards to import or to provision. DIR/prometheus/recording.yml and alerts.yml
    belong into rule_files of Prometheus, both of them: boards and alerts use what the rules record. They fit
    this version of Glasspoint: write them again, with --force, after an upgrade.
    """
    from glasspoint.cli.dashboards import write_dashboards

    with plain_endings():
        for path in write_dashboards(output, replace=force):
            typer.echo(path)


app.add_typer(top_app)
app.add_typer(browse_app)
app.add_typer(migrate_app)


def age_of(text: str, option: str = "--older-than") -> timedelta:
    """Parse an age such as `30d`. Raise `BadParameter`, for exit status 2, if the text is no age."""
    age = parse_age(text)
    if age is None:
        raise typer.BadParameter(f"{text!r} is no age: {HOW_TO_WRITE_AN_AGE}.", param_hint=option)
    return age


def _report_json(run: PruneRun, failure: str) -> dict[str, object]:
    servers: dict[str, object] = {"away": run.away, "unserved_slots": run.unserved_slots}
    if run.obstacle:
        servers["obstacle"] = run.obstacle
    if run.report is None:
        return {"error": failure, **servers}
    return report_facts(
        run.report, failure, cutoff=run.report.cutoff.isoformat(timespec="seconds"), **servers
    )


def _report_table(run: PruneRun, report: PruneReport) -> RenderableType:
    why = "in use, or Redis has no master for them now"
    skipped = ("skipped", f"{report.skipped_threads:,} threads: {why}")
    left_out = (
        "a run would leave its threads out" if report.dry_run else "its threads stay until the next run"
    )
    redis = [f"{name} {why}: {left_out}" for name, why in run.away.items()]
    if run.unserved_slots:
        redis.append(f"{run.unserved_slots} slots have no master, and their threads stay until they have one")
    if run.obstacle:  # names the masters that are away, too
        redis = [f"a run would fail now: {run.obstacle}"]
    grid = counts_table(
        "would remove" if report.dry_run else "removed",
        f"what is older than {report.cutoff:%Y-%m-%d %H:%M} UTC, and not needed",
        ("checkpoints", report.checkpoints),
        ("writes", report.writes),
        ("values", report.blobs),
        ("threads", report.threads),
        ("size", decimal(report.bytes)),
        *([skipped] if report.skipped_threads else []),
        *(("Redis" if each is redis[0] else "", each) for each in redis),
    )
    return Block(grid, indent=0, lines_after=0)


def _finding_line(finding: Finding) -> RenderableType:
    took = f"{finding.seconds:.1f} s" if finding.seconds >= 1 else f"{finding.seconds * 1000:.1f} ms"
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=7)
    grid.add_column(width=12)
    grid.add_column(width=8, justify="right")
    grid.add_column(overflow="fold")
    grid.add_row(Text(*_MARKS[finding.status]), finding.name, Text(took, "dim"), Text(finding.detail))
    return Block(grid, indent=0, lines_after=0)
