"""The common parts of several commands: options, endings, and connections to the servers."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import fields
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import psycopg
import typer
from redis.asyncio import RedisCluster
from redis.exceptions import RedisClusterException, RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from glasspoint._version import __version__
from glasspoint.cli.redis_servers import REDIS_SECONDS, Look, look_at, reasons
from glasspoint.coherence.attached import why_not_to_attach
from glasspoint.errors import (
    ConfigurationError,
    GlasspointError,
    L1Error,
    L1UnavailableError,
    L2UnavailableError,
)
from glasspoint.l2.pool import connect, in_one_line, postgres_conninfo
from glasspoint.redis import detection
from glasspoint.redis.faults import remedy
from glasspoint.redis.tls import named
from glasspoint.savers.cached import CachedPostgresSaver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from glasspoint.savers.options import OpenCachedOptions

__all__ = [
    "FORESEEN",
    "AsJson",
    "KeyPrefix",
    "PostgresUrl",
    "ProgressDisplay",
    "RedisUrl",
    "UnattachedSaver",
    "check_cache",
    "connect_once",
    "connected",
    "counts_table",
    "end_in_order_on_signals",
    "needed",
    "opened_redis",
    "plain_endings",
    "print_error",
    "print_json",
    "registering",
    "report_facts",
    "saver_options",
    "words_of",
]

_CONNECT_SECONDS = 5.0
_CONNECTIONS = 2  # to PostgreSQL, which a command opens at most
_LINE_EVERY_SECONDS = 10.0

# What JSON may hold as it is, and a terminal acts on: control characters, and those that turn lines around.
_UNSEEN = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")

PostgresUrl = Annotated[
    str, typer.Option(envvar="POSTGRES_URL", show_default=False, show_envvar=True, help="PostgreSQL.")
]
RedisUrl = Annotated[
    str, typer.Option(envvar="REDIS_URL", show_default=False, show_envvar=True, help="Redis.")
]
KeyPrefix = Annotated[
    str,
    typer.Option(
        envvar="CHECKPOINT_KEY_PREFIX",
        show_envvar=True,
        help="What the service's keys in Redis begin with.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def end_in_order_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: in order, with all servers stopped.

    A supervisor sends the one, a closed terminal the other.
    """
    # A shell without job control lets a command in the background ignore SIGINT, and so all three of them.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: signal.raise_signal(signal.SIGINT))


class ProgressDisplay:
    """The progress of a command: a bar in a terminal, a line every ten seconds in a pipe, or nothing."""

    def __init__(self, console: Console, beginning: str, time: ProgressColumn, *, shown: bool) -> None:
        self._console = console
        columns = (SpinnerColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"), time)
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task(beginning, total=None)
        self._writes_lines = shown and not console.is_terminal
        self._line_at = monotonic() + _LINE_EVERY_SECONDS
        self.bar: AbstractContextManager[object] = (
            self._bar if shown and console.is_terminal else nullcontext()
        )

    def show(self, text: str, *, done: int | None = None, total: int | None = None) -> None:
        """Show how far the command is: in words, and as a share of a total if that is known."""
        self._bar.update(self._task, description=text, completed=done, total=total)
        if self._writes_lines and monotonic() >= self._line_at:
            self._line_at = monotonic() + _LINE_EVERY_SECONDS
            self._console.print(f"{text} …")


def counts_table(title: str, about: str, *counts: tuple[str, int | str]) -> Table:
    """Return what a command has done: a heading, and a line for each count."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=12)
    grid.add_column()
    grid.add_row(Text(title, "bold green"), about)
    for name, count in counts:
        grid.add_row(name, count if isinstance(count, str) else f"{count:,}")
    return grid


class UnattachedSaver(CachedPostgresSaver):
    """A saver for dry runs: it makes no identity, so that it does not take the cache away from a service."""

    async def _connect_l1(self) -> None:
        self._parts.identity.attaches = False


def registering(app: typer.Typer) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that registers a command.

    The list of commands shows the whole first line of the docstring, which Click would cut at the width of
    the terminal.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        first_line = (function.__doc__ or "").partition("\n")[0]
        return app.command(short_help=first_line)(function)

    return register


def saver_options() -> OpenCachedOptions:
    """Return the options of a command's saver from the environment: it has access as the service has."""
    from glasspoint.savers.options import access_options
    from glasspoint.settings import Settings

    settings = Settings.from_environment()
    return {**access_options(settings), "pool_max_size": min(_CONNECTIONS, settings.pool_max_size)}


def needed(name: str, url: str) -> str:
    """Return a required URL. Raise `BadParameter`, for exit status 2, if it is empty."""
    if not url:
        option = f"--{name.lower().replace('_', '-')}"
        raise typer.BadParameter(f"not configured: set {name}, or pass {option}.", param_hint=option)
    return url


FORESEEN = (GlasspointError, RedisError, RedisClusterException, psycopg.Error)
"""The errors that end a command with one line: our own, and those of the servers' clients."""


def words_of(error: Exception) -> str:
    """Return an error as a line for the user, without the text of Redis, which may hold a key."""
    if isinstance(error, GlasspointError):
        return str(error)
    if isinstance(error, psycopg.Error):
        said = error.diag.message_primary or type(error).__name__
        return f"PostgreSQL refused, or did not respond: {said}."
    hint = remedy(error) or "Check REDIS_URL, and that the server is up."
    return f"Redis refused, or did not respond ({type(error).__name__}). {hint}"


@contextmanager
def plain_endings() -> Iterator[None]:
    """End a command that fails with one line and an exit status, instead of a traceback."""
    try:
        yield
    except FORESEEN as error:
        print_error(words_of(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Interrupted; everything that was started is gone.", err=True)
        raise typer.Exit(130) from None


def print_error(text: str) -> None:
    """Print an error in one line of any length: a terminal wraps it, and a pipe keeps it whole."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), " ".join(text.split())))


def print_json(ok: bool, facts: Mapping[str, object]) -> None:
    """Print the JSON object of `--json`: whether the command succeeded, the version, and its facts."""
    text = json.dumps({"ok": ok, "version": __version__, **facts}, ensure_ascii=False, indent=2)
    typer.echo(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


async def connect_once(
    postgres_url: str, options: Mapping[str, Any], *, primary: bool = False
) -> psycopg.AsyncConnection[Any]:
    """Open one connection with the service's options. See `glasspoint.l2.pool.connect`."""
    return await connect(
        postgres_url,
        schema=options.get("schema"),
        password=options.get("password"),
        connect_timeout_seconds=options.get("connect_timeout_seconds", _CONNECT_SECONDS),
        primary=primary,
    )


def report_facts(report: Any, failure: str, **others: object) -> dict[str, object]:
    """Return what `--json` prints of a report: the failure, if any, and all fields; `others` replace some."""
    facts = {each.name: getattr(report, each.name) for each in fields(report)}
    return {**({"error": " ".join(failure.split())} if failure else {}), **facts, **others}


@asynccontextmanager
async def connected(
    postgres_url: str, options: Mapping[str, Any], *, variable: str = "POSTGRES_URL", primary: bool = False
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Open one connection in autocommit mode, with the service's options.

    Args:
        postgres_url: PostgreSQL, in any form that the saver takes.
        options: See `saver_options`.
        variable: The variable that an error tells the user to check.
        primary: Whether a standby is refused.

    Raises:
        ConfigurationError: The URL cannot be parsed.
        L2UnavailableError: PostgreSQL cannot be reached.
    """
    seconds = options.get("connect_timeout_seconds", _CONNECT_SECONDS)
    try:
        async with asyncio.timeout(2 * seconds):
            connection = await connect_once(postgres_url, options, primary=primary)
    except (psycopg.OperationalError, TimeoutError) as exc:
        reason = in_one_line(exc, postgres_conninfo(postgres_url)).rstrip("?") or "it does not answer"
        raise L2UnavailableError(
            f"PostgreSQL cannot be reached: {reason}. Check {variable}, and that the server is up."
        ) from None
    async with connection:
        yield connection


@asynccontextmanager
async def opened_redis(
    redis_url: str, options: Mapping[str, Any], *, timeout_seconds: float
) -> AsyncIterator[Redis | RedisCluster]:
    """Open a client of the cache, with the service's options.

    Args:
        redis_url: Redis.
        options: See `saver_options`.
        timeout_seconds: The timeout for connecting.

    Raises:
        ConfigurationError: See `connect_redis`.
    """
    mode = options.get("redis_mode", "auto")
    async with detection.opened_redis(redis_url, timeout_seconds=timeout_seconds, mode=mode) as redis:
        yield redis


@contextmanager
def _or_unavailable(undone: str | None) -> Iterator[None]:
    try:
        yield
    except GlasspointError:
        raise
    except Exception as exc:
        raise _no_answer(undone, f"it does not answer ({named(exc)})", remedy(exc)) from None


def _no_answer(undone: str | None, why: str, advice: str) -> L1UnavailableError:
    advice = advice or "Check REDIS_URL, and that the server is up."
    return L1UnavailableError(f"{_nothing(undone)}Redis must be told of it, but {why}. {advice}")


def _nothing(undone: str | None) -> str:
    return "" if undone is None else f"Nothing was {undone}: "


async def check_cache(
    postgres_url: str,
    redis_url: str,
    options: Mapping[str, Any],
    *,
    key_prefix: str,
    undone: str | None,
    needs_all: bool = True,
    tries_rights: bool = True,
    looked: Callable[[Look], object] = lambda look: None,
) -> None:
    """Check, before PostgreSQL is changed, that Redis can be told of the changes, and is the service's Redis.

    Args:
        postgres_url: PostgreSQL, in any form that the saver takes.
        redis_url: Redis.
        options: See `saver_options`.
        key_prefix: The beginning of the service's keys in Redis.
        undone: What the error says was not done: "removed", for example. `None`: it does not say so.
        needs_all: Whether each master of a Redis Cluster must respond, and not only one.
        tries_rights: See `look_at`.
        looked: Called with what was found, before anything is refused because of it.

    Raises:
        L1Error: Redis does not respond, or this user lacks a right; the message names the rule to add.
        ConfigurationError: This is not the Redis, or the key prefix, of the service.
    """
    async with opened_redis(redis_url, options, timeout_seconds=REDIS_SECONDS) as redis:
        with _or_unavailable(undone):
            async with look_at(redis, key_prefix=key_prefix, tries_rights=tries_rights) as look:
                looked(look)
                for server in look.away:
                    if isinstance(server.error, GlasspointError):
                        raise server.error
        if look.why_down:
            raise L1UnavailableError(f"{_nothing(undone)}Redis must be told of it, but {look.why_down}")
        if look.away and (needs_all or len(look.away) == len(look.servers)):
            raise _no_answer(undone, reasons(look.away), look.away[0].advice)
        with suppress(psycopg.Error, RedisError, L1Error):  # the saver meets these too, and explains them
            async with await connect_once(postgres_url, options, primary=True) as conn:
                obstacle = await why_not_to_attach(conn, redis, key_prefix=key_prefix)
            if obstacle:
                raise ConfigurationError(f"{_nothing(undone)}{obstacle}")
