"""Plays the whole demo: it starts the servers, tells the story, and runs traffic until Ctrl-C."""

from __future__ import annotations

import asyncio
import shlex
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from glasspoint import CachedPostgresSaver, Settings, __version__
from glasspoint.console import Block
from glasspoint.demo.dashboard import watch_traffic
from glasspoint.demo.model import MODEL_VARIABLE, RecallingChatModel, choose_chat_model
from glasspoint.demo.servers import Servers, run_servers
from glasspoint.demo.story import tell_story
from glasspoint.demo.telemetry import Observed, observe
from glasspoint.demo.traffic import Traffic
from glasspoint.errors import ConfigurationError
from glasspoint.logs import kept_warnings
from glasspoint.telemetry.http import TelemetryServer, serve_telemetry

__all__ = ["play_demo"]


def play_demo(console: Console, *, once: bool, port: int, spans_file: Path | None = None) -> bool:
    """Play the story, then run traffic until Ctrl-C. At the end, everything that was started is gone.

    Args:
        console: Receives the output.
        once: Whether to end after the story.
        port: The port of `/metrics` during the traffic; 0 for any free port. If it is taken, the demo says so
            and uses a free one.
        spans_file: The file for the story's spans, if they are to be written.

    Returns:
        Whether the story went as expected.

    Raises:
        GlasspointError: A server or the model is not available.
        KeyboardInterrupt: Ctrl-C during the story. During the traffic it is the normal end.
    """
    model = choose_chat_model()
    title = Text.assemble(
        ("Glasspoint", "bold"), f" {__version__}: a LangGraph checkpointer you can see through"
    )
    console.print(Text(), Block(title, indent=0), sep="\n")

    def lost(reason: str) -> None:
        console.print(Text(f"\nSpans could not be sent: {reason}", "yellow"))

    with (
        run_servers(Settings.from_environment()) as servers,
        observe(lost=lost, spans_file=spans_file) as observed,
    ):
        built_in = isinstance(model, RecallingChatModel)
        console.print(_introduction(servers, observed, built_in_model=built_in))

        async def play() -> bool:
            thread_id = f"demo-{uuid4()}"
            as_expected = await tell_story(console, servers, observed, model, thread_id=thread_id)
            if observed.spans_file is not None:
                await asyncio.to_thread(observed.spans_file.shutdown)
                console.print(_how_to_look(thread_id, observed.spans_file.path), soft_wrap=True)
            if as_expected and not once:
                await _keep_talking(console, servers, observed, port)
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


async def _keep_talking(console: Console, servers: Servers, observed: Observed, port: int) -> None:
    """Serve metrics and keep the traffic going until Ctrl-C, which cancels this task."""
    with closing(_serve_metrics(console, observed, port)) as server, kept_warnings(capacity=1) as warnings:
        console.print(
            f"\nNow a light traffic of conversations. Metrics: {server.url}/metrics\nCtrl-C ends it."
        )
        async with CachedPostgresSaver.from_conn_string(
            servers.postgres_url,
            redis_url=servers.redis_url,
            schema=servers.schema,
            password=servers.password,
            telemetry=observed.telemetry,
        ) as saver:
            traffic = Traffic(saver, observed)
            with suppress(asyncio.CancelledError):
                async with asyncio.TaskGroup() as together:
                    together.create_task(traffic.run())
                    await watch_traffic(console, observed.registry, traffic.tally, warnings)
            if not servers.all_own:
                await traffic.remove_conversations()


def _serve_metrics(console: Console, observed: Observed, port: int) -> TelemetryServer:
    try:
        return serve_telemetry(port, registry=observed.registry)
    except ConfigurationError:
        if not port:
            raise
        console.print(Text(f"\nPort {port} is taken: another one is used, see below.", "yellow"))
        return serve_telemetry(0, registry=observed.registry)
