"""The commands that inspect a deployment and change nothing: `threads`, `history`, `show`, `diff`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from glasspoint.cli.parts import (
    FORESEEN,
    AsJson,
    KeyPrefix,
    PostgresUrl,
    RedisUrl,
    needed,
    plain_endings,
    print_json,
    registering,
    saver_options,
    words_of,
)
from glasspoint.logs import kept_warnings

if TYPE_CHECKING:
    from typing import TypeAlias

    from glasspoint.cli.browsing import Browser

    Facts: TypeAlias = dict[str, Any]

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

    async def find(browser: Browser) -> Facts:
        return {"threads": await browser.threads(filter=wanted, limit=limit, before=before or None)}

    def print_found(console: Console, found: Facts) -> None:
        print_threads(console, found["threads"], limit=limit)

    _browse(find, print_found, postgres_url, content=content, as_json=as_json)


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

    def find(browser: Browser) -> Awaitable[Facts]:
        return browser.history(thread_id, namespace=namespace, limit=limit)

    _browse(find, print_history, postgres_url, content=content, as_json=as_json)


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

    def find(browser: Browser) -> Awaitable[Facts]:
        return browser.show(thread_id, checkpoint_id, namespace=namespace)

    _browse(find, print_show, postgres_url, redis_url, key_prefix, content=content, as_json=as_json)


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

    def find(browser: Browser) -> Awaitable[Facts]:
        return browser.diff(thread_id, a, b, namespace=namespace)

    _browse(find, print_diff, postgres_url, content=content, as_json=as_json)


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
    find: Callable[[Browser], Awaitable[Facts]],
    print_found: Callable[[Console, Facts], None],
    postgres_url: str,
    redis_url: str = "",
    key_prefix: str = "glasspoint",
    *,
    content: bool,
    as_json: bool,
) -> None:
    """Find something, and print it. A failure is one line, or JSON that says the same."""
    from glasspoint.cli.browsing import Browser

    needed("POSTGRES_URL", postgres_url)

    async def run() -> Facts:
        async with Browser.open(
            postgres_url, redis_url, key_prefix=key_prefix, options=saver_options(), content=content
        ) as browser:
            return await find(browser)

    with plain_endings():
        try:
            with kept_warnings(capacity=1):
                found = asyncio.run(run())
        except FORESEEN as error:
            if not as_json:
                raise
            print_json(False, {"error": " ".join(words_of(error).split())})
            raise typer.Exit(1) from None
        if as_json:
            print_json(True, found)
        else:
            print_found(Console(highlight=False), found)
