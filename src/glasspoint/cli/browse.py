"""The commands that inspect a deployment and change nothing: `threads`, `history`, `show`, `diff`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glasspoint._version import __version__
from glasspoint.cli.parts import (
    AsJson,
    KeyPrefix,
    PostgresUrl,
    RedisUrl,
    needed,
    plain_endings,
    registering,
    saver_options,
)
from glasspoint.errors import GlasspointError
from glasspoint.logs import kept_warnings

if TYPE_CHECKING:
    from glasspoint.cli.browsing import Browser

__all__ = ["app"]

app = typer.Typer()
_command = registering(app)

ThreadId = Annotated[str, typer.Argument(metavar="THREAD", help="The thread's id.")]
Namespace = Annotated[
    str,
    typer.Option(metavar="NS", help="The checkpoint namespace: of a subgraph. By default the root graph's."),
]
Content = Annotated[
    bool, typer.Option("--content", help="Also print values and metadata: what people have said.")
]


@_command
def threads(
    limit: Annotated[int, typer.Option(min=1, help="How many threads at most.")] = 50,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only threads whose newest checkpoint has this in its metadata; VALUE is JSON, or text. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None,
    before: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT",
            help="Only threads whose newest checkpoint is older than this one: for the next page.",
            show_default=False,
        ),
    ] = "",
    content: Content = False,
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
) -> None:
    """List the threads, the one that was used last first.

    From PostgreSQL; nothing is changed. The CHECKPOINT_... variables count as for the service.
    """
    from glasspoint.cli.browsing_view import print_threads

    wanted = dict(map(_pair, filter or ()))

    async def find(browser: Browser) -> list[dict[str, Any]]:
        return await browser.threads(filter=wanted, limit=limit, before=before or None)

    with _ending(as_json):
        found = _browse(find, postgres_url, "", "glasspoint", content=content)
        if as_json:
            _print_json({"threads": found})
        else:
            print_threads(Console(highlight=False), found, limit=limit)


@_command
def history(
    thread_id: ThreadId,
    namespace: Namespace = "",
    limit: Annotated[int, typer.Option(min=1, help="How many checkpoints at most, the newest.")] = 100,
    content: Content = False,
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
) -> None:
    """List the checkpoints of a thread, branch by branch.

    First the newest checkpoint and its ancestors, which a run goes on with; then each fork. From PostgreSQL;
    nothing is changed. The CHECKPOINT_... variables count as for the service.
    """
    from glasspoint.cli.browsing_view import print_history

    with _ending(as_json):
        found = _browse(
            lambda browser: browser.history(thread_id, namespace=namespace, limit=limit),
            postgres_url,
            "",
            "glasspoint",
            content=content,
        )
        if as_json:
            _print_json(found)
        else:
            print_history(Console(highlight=False), found)


@_command
def show(
    thread_id: ThreadId,
    checkpoint_id: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT", help="The checkpoint; by default the newest.", show_default=False
        ),
    ] = None,
    namespace: Namespace = "",
    content: Content = False,
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
    redis_url: RedisUrl = "",
    key_prefix: KeyPrefix = "glasspoint",
) -> None:
    """Show a checkpoint: its channels, its pending writes, and what the cache holds.

    From PostgreSQL, and compared with what stands in Redis; nothing is changed in either. Without --content,
    types and sizes, and no value. The CHECKPOINT_... variables count as for the service.
    """
    from glasspoint.cli.browsing_view import print_show

    with _ending(as_json):
        found = _browse(
            lambda browser: browser.show(thread_id, checkpoint_id, namespace=namespace),
            postgres_url,
            redis_url,
            key_prefix,
            content=content,
        )
        if as_json:
            _print_json(found)
        else:
            print_show(Console(highlight=False), found)


@_command
def diff(
    thread_id: ThreadId,
    a: Annotated[str, typer.Argument(metavar="A", help="One checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    namespace: Namespace = "",
    content: Content = False,
    as_json: AsJson = False,
    postgres_url: PostgresUrl = "",
) -> None:
    """Compare two checkpoints of a thread, channel by channel.

    From PostgreSQL; nothing is changed. Without --content, versions and sizes, and no value. The
    CHECKPOINT_... variables count as for the service.
    """
    from glasspoint.cli.browsing_view import print_diff

    with _ending(as_json):
        found = _browse(
            lambda browser: browser.diff(thread_id, a, b, namespace=namespace),
            postgres_url,
            "",
            "glasspoint",
            content=content,
        )
        if as_json:
            _print_json(found)
        else:
            print_diff(Console(highlight=False), found)


def _pair(text: str) -> tuple[str, Any]:
    """Parse `KEY=VALUE`. Raise `BadParameter`, for exit status 2, if the text has another form."""
    key, is_pair, value = text.partition("=")
    if not is_pair or not key:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--filter")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _browse(
    find: Callable[[Browser], Awaitable[Any]],
    postgres_url: str,
    redis_url: str,
    key_prefix: str,
    *,
    content: bool,
) -> Any:
    from glasspoint.cli.browsing import Browser

    needed("POSTGRES_URL", postgres_url)

    async def run() -> Any:
        async with Browser.open(
            postgres_url, redis_url, key_prefix=key_prefix, options=saver_options(), content=content
        ) as browser:
            return await find(browser)

    with kept_warnings(capacity=1):
        return asyncio.run(run())


def _print_json(found: dict[str, Any]) -> None:
    typer.echo(json.dumps({"ok": True, "version": __version__, **found}, ensure_ascii=False, indent=2))


@contextmanager
def _ending(as_json: bool) -> Iterator[None]:
    """End a command that fails with one line, or with JSON that says the same."""
    try:
        with nullcontext() if as_json else plain_endings():
            yield
    except GlasspointError as error:
        failure = {"ok": False, "version": __version__, "error": " ".join(str(error).split())}
        typer.echo(json.dumps(failure, ensure_ascii=False, indent=2))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
