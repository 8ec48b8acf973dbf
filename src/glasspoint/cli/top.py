"""`glasspoint top`: the figures of running processes, from their `/metrics`, in the terminal."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from glasspoint.cli.parts import AsJson, plain_endings, print_error, print_json, registering
from glasspoint.telemetry.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

    from glasspoint.cli.endpoints import Endpoint

__all__ = ["app"]

app = typer.Typer()
_command = registering(app)

_SHORTEST_TIMEOUT_SECONDS = 3.0
_LONGEST_TIMEOUT_SECONDS = 10.0

# Processes that are read at about the same time are drawn together.
_TOGETHER_SECONDS = 0.05


@_command
def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="URL",
            help="The /metrics of processes; by default http://127.0.0.1:9464.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between two readings, which rates are of.")
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print the figures of one interval, and end. So it is in a pipe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Watch what running processes do: rates, hit ratio, latencies, pool and tier.

    From their /metrics alone: nothing else is asked, and neither PostgreSQL nor Redis. In a terminal the
    figures change in place, until Ctrl-C. With several URLs, first their sum and then each process; one that
    does not answer is shown as such, and is asked again. In a URL, http:// and /metrics may be left out.

    With --once, the exit status is 1 if no process answers.
    """
    from glasspoint.cli.endpoints import DEFAULT_URL, endpoints_of

    console = Console(highlight=False)
    with plain_endings():
        endpoints = endpoints_of(urls or [DEFAULT_URL])
        if once or as_json or not console.is_terminal:
            run = _read_once(endpoints, console, interval, as_json=as_json)
            raise typer.Exit(0 if asyncio.run(run) else 1)
        with suppress(KeyboardInterrupt):  # the normal end
            asyncio.run(_watch(endpoints, console, interval))


async def _read_once(
    endpoints: Sequence[Endpoint], console: Console, interval: float, *, as_json: bool
) -> bool:
    """Print the figures of one interval. Return whether there are any."""
    from glasspoint.cli.endpoints import client, poll_all
    from glasspoint.cli.top_view import screen

    timeout = _timeout(interval)
    async with client() as http:
        await poll_all(endpoints, http, timeout_seconds=timeout)
        if any(each.answers for each in endpoints):
            await asyncio.sleep(interval)
            await poll_all(endpoints, http, timeout_seconds=timeout)
    found = any(each.answers for each in endpoints)
    troubles = "; ".join(f"{each.name} {each.trouble}" for each in endpoints)
    failure = "" if found else f"There are no figures: {troubles}."
    if as_json:
        print_json(found, ({"error": failure} if failure else {}) | _facts(endpoints, interval))
    elif failure:
        print_error(failure)
    else:
        console.print(screen(endpoints, interval, width=console.width))
    return found


async def _watch(endpoints: Sequence[Endpoint], console: Console, interval: float) -> None:
    """Show the figures in place, until cancelled."""
    from glasspoint.cli.endpoints import client
    from glasspoint.cli.top_view import screen

    news = asyncio.Event()

    async def follow(endpoint: Endpoint, http: httpx.AsyncClient) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            await endpoint.poll(http, timeout_seconds=_timeout(interval))
            news.set()
            due = max(due + interval, clock())
            await asyncio.sleep(due - clock())

    with Live(console=console, auto_refresh=False) as live:
        async with client() as http, asyncio.TaskGroup() as together:
            for each in endpoints:
                together.create_task(follow(each, http))
            while True:
                live.update(screen(endpoints, interval, width=console.width), refresh=True)
                await news.wait()
                await asyncio.sleep(_TOGETHER_SECONDS)
                news.clear()


def _timeout(interval: float) -> float:
    return min(max(interval, _SHORTEST_TIMEOUT_SECONDS), _LONGEST_TIMEOUT_SECONDS)


def _facts(endpoints: Sequence[Endpoint], interval: float) -> dict[str, Any]:
    changes = [each.change for each in endpoints if each.change is not None]
    return {
        "at": round(time(), 3),
        "interval": interval,
        "sum": Figures.of(*changes).as_dict() if changes else None,
        "each": {
            each.name: Figures.of(each.change).as_dict() if each.change else {"error": each.trouble}
            for each in endpoints
        },
    }
