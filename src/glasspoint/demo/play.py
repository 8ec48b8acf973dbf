"""Plays the whole demo: it starts the servers, tells the story, and runs traffic until Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from glasspoint import Settings, __version__
from glasspoint.console import Block
from glasspoint.demo.app import App
from glasspoint.demo.dashboard import watch_traffic
from glasspoint.demo.model import MODEL_VARIABLE, RecallingChatModel, choose_chat_model
from glasspoint.demo.page import DemoPage, open_browser
from glasspoint.demo.servers import Servers, own_servers, run_servers
from glasspoint.demo.story import tell_story
from glasspoint.demo.telemetry import Observed, observe
from glasspoint.errors import ConfigurationError
from glasspoint.logs import kept_warnings
from glasspoint.telemetry.http import TelemetryServer, serve_telemetry

if TYPE_CHECKING:
    from glasspoint.settings import Fallback
    from glasspoint.telemetry.live import Live

__all__ = ["DemoOptions", "play_demo"]


# So that faults and recoveries are seen within seconds: a service has more patience.
_QUICK = {"probe_interval": 1.0, "write_deadline": 3.0, "pool_timeout": 3.0, "connect_timeout": 2.0}


@dataclass(frozen=True)
class DemoOptions:
    """The options of `glasspoint demo`.

    Attributes:
        once: Whether to end after the story.
        port: The port of `/live` and `/metrics`; 0 for any free port. If it is taken, the demo says so, and
            uses a free one.
        spans_file: The file for the story's spans, if they are to be written.
        live: Whether to serve the live page.
        opens_browser: Whether to open the live page in a browser.
    """

    once: bool = False
    port: int = 9464
    spans_file: Path | None = None
    live: bool = True
    opens_browser: bool = False


def play_demo(console: Console, options: DemoOptions) -> bool:
    """Play the story, then run traffic until Ctrl-C. At the end, everything that was started is gone.

    Args:
        console: Receives the output.
        options: What to play.

    Returns:
        Whether the story went as expected.

    Raises:
        GlasspointError: A server or the model is not available.
        KeyboardInterrupt: Ctrl-C during the story. During the traffic it is the normal end.
    """
    model, settings = choose_chat_model(), Settings.from_environment()
    title = Text.assemble(
        ("Glasspoint", "bold"), f" {__version__}: a LangGraph checkpointer you can see through"
    )
    console.print(Text(), Block(title, indent=0), sep="\n")

    def lost(reason: str) -> None:
        console.print(Text(f"\nSpans could not be sent: {reason}", "yellow"))

    with ExitStack() as stack:
        observed = stack.enter_context(observe(lost=lost, spans_file=options.spans_file))
        page = DemoPage(console, observed, own=own_servers(settings)) if options.live else None
        if page is not None:  # before the servers start: its address is the first thing that the demo shows
            server = stack.enter_context(_serve(console, observed, options.port, live=page.live))
            _show_address(console, page.address(server.url), options)
        elif not options.once:
            server = stack.enter_context(_serve(console, observed, options.port, live=False))
        servers = stack.enter_context(run_servers(settings))
        built_in = isinstance(model, RecallingChatModel)
        console.print(_introduction(servers, observed, built_in_model=built_in))

        async def play() -> bool:
            thread_id = f"demo-{uuid4()}"
            mark = partial(page.mark, "story") if page is not None else _mark_nothing
            as_expected = await tell_story(console, servers, observed, model, thread_id=thread_id, mark=mark)
            if observed.spans_file is not None:
                await asyncio.to_thread(observed.spans_file.shutdown)
                console.print(_how_to_look(thread_id, observed.spans_file.path), soft_wrap=True)
            if as_expected and not options.once:
                await _keep_talking(console, servers, observed, page, server)
            return as_expected

        as_expected = asyncio.run(play())
    console.print(Text("\nEverything that was started is gone again.", "dim"))
    return as_expected


def _introduction(servers: Servers, observed: Observed, *, built_in_model: bool) -> RenderableType:
    own = "a real one, started for this demo only"
    grid = Table.grid(padding=(0, 2))
    grid.add_row("PostgreSQL", own if servers.own_postgres else "yours, from POSTGRES_URL")
    grid.add_row("Redis", own if servers.own_redis else "yours, from REDIS_URL: never flushed nor killed")
    by_name = f"from {MODEL_VARIABLE}; the built-in one in the traffic"
    grid.add_row("Model", "built in: it knows only the messages it is given" if built_in_model else by_name)
    also_to = f", and sent to {observed.exports_to}" if observed.exports_to else ""
    if observed.spans_file is not None:
        also_to += f", and written to {observed.spans_file.path}"
    grid.add_row("Spans", f"shown here{also_to}")
    return Block(grid, indent=0)


def _how_to_look(thread_id: str, path: Path) -> RenderableType:
    """Return the command that shows the story, on one line of any length, so that it can be copied."""
    command = f"glasspoint trace {thread_id} --file {shlex.quote(str(path))}"
    return Text.assemble(
        "To see this conversation, turn by turn (--html PAGE for a browser):\n  ", (command, "bold")
    )


def _show_address(console: Console, address: str, options: DemoOptions) -> None:
    lasts = "until the story has ended" if options.once else "until Ctrl-C"
    console.print(Text.assemble(f"Watch it live, {lasts}:\n  ", (address, "bold"), "\n"), soft_wrap=True)
    if options.opens_browser:
        open_browser(console, address)


async def _keep_talking(
    console: Console, servers: Servers, observed: Observed, page: DemoPage | None, server: TelemetryServer
) -> None:
    """Keep the traffic going until Ctrl-C, which cancels this task."""
    # Not on a user's Redis: threads of an outage would stay there.
    fallbacks: tuple[Fallback, ...] = ("redis", "memory") if servers.own_redis else ("memory",)
    app = App(
        servers.settings(fallbacks=fallbacks, defaults=_QUICK),
        observed,
        password=servers.password,
        leaves_conversations=servers.all_own,
        cannot_start=page.cannot_start if page is not None else _mark_nothing,
    )
    with kept_warnings(capacity=1) as warnings, suppress(asyncio.CancelledError):
        async with page.working_on(servers, app) if page is not None else nullcontext():
            console.print(
                f"\nNow a light traffic of conversations. Metrics: {server.url}/metrics\nCtrl-C ends it."
            )
            async with asyncio.TaskGroup() as together:
                together.create_task(app.run())
                await watch_traffic(console, observed.registry, app.traffic.tally, warnings)


def _serve(console: Console, observed: Observed, port: int, *, live: Live | bool) -> TelemetryServer:
    try:
        return serve_telemetry(port, registry=observed.registry, live=live)
    except ConfigurationError:
        if not port:
            raise
        console.print(Text(f"Port {port} is taken: another one is used, see below.", "yellow"))
        return serve_telemetry(0, registry=observed.registry, live=live)


def _mark_nothing(*told: str) -> None:
    """Tell nobody: there is no page."""
