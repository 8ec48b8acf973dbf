"""Whether the live page stays small: its memory, and that of the process, while calls go on for minutes.

    python benchmarks/live.py [--minutes 10] [--rate 500] [--json FILE]
    python benchmarks/live.py --serve [--port 9464]

An application on embedded servers makes `--rate` calls a second and serves its live page. A real Chromium,
with `--viewers` pages, watches it. Every ten seconds the page's heap is measured after a garbage collection
(Chrome's DevTools protocol), and so are the page's elements and the memory of the process. Status 1: the last
third of what was measured is more than a tenth above the middle third.

`--serve` serves the application alone, with buttons that break its servers, until Ctrl-C.

It needs `playwright` and a Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import random
import secrets
import statistics
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, TypedDict

import psutil
from langgraph.graph import END, START, StateGraph
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span
from prometheus_client import CollectorRegistry, ProcessCollector

from glasspoint import (
    CachedPostgresSaver,
    conversation_turn,
    create_telemetry,
)
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.telemetry.http import serve_telemetry
from glasspoint.telemetry.live import Action, Live, Reply
from glasspoint.telemetry.live.spans import LiveSpans

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    from glasspoint import Telemetry

SEED: Final = 19
CONVERSATIONS: Final = 60
EVERY_SECONDS: Final = 10.0
ALLOWED_GROWTH: Final = 1.10
JUDGED_MINUTES: Final = 3.0
"""A page that was just opened still grows: its charts and its lists fill."""


class State(TypedDict):
    """What a conversation remembers: as much after 10,000 turns as after one."""

    said: str


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=500.0, help="calls a second")
    parser.add_argument("--viewers", type=int, default=1)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE as well")
    arguments = parser.parse_args()
    if arguments.serve:
        with suppress(KeyboardInterrupt):
            asyncio.run(_application(arguments.rate, arguments.port, None))
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(arguments.rate, theirs))
    process.start()
    try:
        if not ours.poll(60):
            raise SystemExit("The application did not start.")
        url = ours.recv()
        found = _watch(url, process.pid or 0, arguments.minutes, arguments.viewers)
        ours.send("end")
        found["calls_a_second"], found["failed_calls"] = ours.recv()
    finally:
        process.join(20)
        process.kill()
    grew = _show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if grew else 0)


# ------------------------------------------------------------------ the application


def _run(rate: float, to_parent: Connection) -> None:
    asyncio.run(_application(rate, 0, to_parent))


async def _application(rate: float, port: int, to_parent: Connection | None) -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    provider = TracerProvider()
    provider.add_span_processor(LiveSpans())
    token = secrets.token_urlsafe()
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        telemetry = create_telemetry(registry=registry, tracer_provider=provider)
        async with CachedPostgresSaver.from_conn_string(
            postgres.url, redis_url=redis.url, telemetry=telemetry
        ) as saver:
            await saver.setup()
            traffic = _Traffic(saver, telemetry, rate)
            live = Live(token=token, actions=_actions(postgres, redis), chat=traffic.talk)
            with serve_telemetry(port, registry=registry, live=live) as server:
                url = f"{server.url}/live#token={token}"
                if to_parent is None:
                    print(url, flush=True)
                else:
                    to_parent.send(url)
                began = perf_counter()
                await traffic.go_on(to_parent)
                if to_parent is not None:
                    to_parent.send((traffic.calls / (perf_counter() - began), traffic.failed))


class _Traffic:
    """Turns and single reads of many conversations, as many calls a second as asked for."""

    def __init__(self, saver: CachedPostgresSaver, telemetry: Telemetry, rate: float) -> None:
        self._saver, self._telemetry, self._rate = saver, telemetry, rate
        self._random = random.Random(SEED)
        self.calls = 0.0
        self.failed = 0
        self._talking: set[str] = set()
        graph = StateGraph(State)
        graph.add_node("answer", lambda state: {"said": state["said"][:40]})
        graph.add_edge(START, "answer").add_edge("answer", END)
        self._graph = graph.compile(checkpointer=saver)

    async def go_on(self, to_parent: Connection | None) -> None:
        """Make calls until the parent says `end`."""
        began = monotonic()
        tasks: set[asyncio.Task[None]] = set()
        while to_parent is None or not to_parent.poll():
            # Five turns a second, and reads of states for the rest.
            due = (monotonic() - began) * self._rate - self.calls
            if due >= 1 and len(tasks) < 64:
                is_turn = self._random.random() < 0.012
                self.calls += 5 if is_turn else 1
                task = asyncio.create_task(self._turn() if is_turn else self._read())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(self._count)
            elif due > 2 * self._rate:
                began = monotonic() - self.calls / self._rate  # an outage is not made up for
            else:
                await asyncio.sleep(0.002)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, task: asyncio.Task[None]) -> None:
        self.failed += task.exception() is not None

    async def talk(self, thread_id: str, text: str) -> Reply:
        """Answer what is typed on the page."""
        async with conversation_turn(thread_id, agent_name="parrot", telemetry=self._telemetry):
            trace_id = get_current_span().get_span_context().trace_id
            await self._graph.ainvoke({"said": text}, _config(thread_id))
        return Reply(f"You said: {text}", f"{trace_id:032x}")

    async def _turn(self) -> None:
        thread = self._thread()
        if thread in self._talking:  # two runs of one thread at once would be a fork
            return
        self._talking.add(thread)
        try:
            async with conversation_turn(thread, agent_name="parrot", telemetry=self._telemetry):
                await self._graph.ainvoke({"said": "hello"}, _config(thread))
        finally:
            self._talking.discard(thread)

    async def _read(self) -> None:
        await self._saver.aget_tuple(_config(self._thread()))

    def _thread(self) -> str:
        return f"conversation-{self._random.randrange(CONVERSATIONS)}"


def _config(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def _actions(postgres: EmbeddedPostgres, redis: EmbeddedRedis) -> list[Action]:
    def action(name: str, label: str, hint: str, group: str, do: Any) -> Action:
        async def run() -> str:
            await asyncio.to_thread(do)
            return f"{label}: done."

        return Action(name, label, hint, run, group)

    return [
        action("flush", "Flush Redis", "Every next read is a miss.", "Redis", redis.flush),
        action("kill", "Kill Redis", "PostgreSQL answers alone.", "Redis", redis.kill),
        action("start", "Start Redis", "It is a new epoch.", "Redis", redis.start),
        action("stop", "Stop PostgreSQL", "Calls fail.", "PostgreSQL", postgres.stop),
        action("again", "Start PostgreSQL", "Calls succeed again.", "PostgreSQL", postgres.start),
    ]


# ------------------------------------------------------------------ the browser


def _watch(url: str, pid: int, minutes: float, viewers: int) -> dict[str, Any]:
    sys.path.append(str(Path(__file__).parents[1]))  # a script finds the modules of its own folder only
    from dashboards.browser import launched

    process = psutil.Process(pid)
    measured: list[dict[str, float]] = []
    with launched() as browser:
        pages = [browser.new_page(viewport={"width": 1280, "height": 900}) for _ in range(viewers)]
        for page in pages:
            page.goto(url)
        page = pages[0]
        page.bring_to_front()
        devtools = page.context.new_cdp_session(page)
        devtools.send("HeapProfiler.enable")
        devtools.send("Performance.enable")
        began, every = monotonic(), min(EVERY_SECONDS, 20 * minutes)
        while (now := monotonic() - began) < 60 * minutes:
            sleep(max(0.0, every * (len(measured) + 1) - now))
            devtools.send("HeapProfiler.collectGarbage")
            metrics = {
                each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]
            }
            gc.collect()
            measured.append(
                {
                    "seconds": round(monotonic() - began, 1),
                    "heap": metrics["JSHeapUsedSize"],
                    "elements": metrics["Nodes"],
                    "listeners": metrics["JSEventListeners"],
                    "scripting": metrics["TaskDuration"],
                    "process": process.memory_info().rss,
                    "cpu": sum(process.cpu_times()[:2]),
                }
            )
            print(_line(measured[-1]), flush=True)
        said = page.locator("#headline").inner_text()
    return {"measured": measured, "headline": said, "viewers": viewers, "minutes": minutes}


def _line(of: dict[str, float]) -> str:
    return (
        f"{of['seconds']:6.0f} s   page {of['heap'] / 1e6:6.2f} MB, {of['elements']:5.0f} nodes, "
        f"{of['listeners']:4.0f} listeners   process {of['process'] / 1e6:6.1f} MB"
    )


def _show(found: dict[str, Any]) -> list[str]:
    measured = found["measured"]
    third = len(measured) // 3
    grew = []
    for name, unit in (("heap", 1e6), ("elements", 1), ("process", 1e6)):
        middle, last = (
            statistics.median(each[name] for each in part)
            for part in (_or_all(measured[third : 2 * third]), _or_all(measured[2 * third :]))
        )
        print(f"{name}: {middle / unit:.2f} in the middle third, {last / unit:.2f} in the last")
        if found["minutes"] >= JUDGED_MINUTES and last > ALLOWED_GROWTH * middle:
            grew.append(name)
    busy = measured[-1]["scripting"] / measured[-1]["seconds"]
    if found["failed_calls"]:
        grew.append(f"failed calls, to {found['failed_calls']}")
    print(f"{found['calls_a_second']:.0f} calls a second; the page's thread was busy {busy:.1%} of the time.")
    print(f"It grew: {', '.join(grew)}." if grew else "Nothing grew.")
    return grew


def _or_all(part: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
    return part or [{"heap": 0, "elements": 0, "process": 0}]


if __name__ == "__main__":
    main()
