"""Shows the traffic as a live table; in a pipe, as one plain line every few seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from glasspoint.console import WIDTH, Block, milliseconds
from glasspoint.telemetry.figures import Figures, Timing, Window, read_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry
    from rich.console import Console, RenderableType

    from glasspoint.demo.traffic import Tally

__all__ = ["watch_traffic"]

_REFRESH_SECONDS = 1.0
_LINE_EVERY = 5
_WINDOW = 30

# The rows of the table: title, histogram, values of labels.
_ROWS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("read", "operation_duration_seconds", {"operation": "get_tuple"}),
    ("put", "operation_duration_seconds", {"operation": "put"}),
    ("  in L1 Redis", "write_through_duration_seconds", {"operation": "put", "tier": "l1"}),
    ("  in L2 PostgreSQL", "write_through_duration_seconds", {"operation": "put", "tier": "l2"}),
    ("put_writes", "operation_duration_seconds", {"operation": "put_writes"}),
    ("  in L1 Redis", "write_through_duration_seconds", {"operation": "put_writes", "tier": "l1"}),
    ("  in L2 PostgreSQL", "write_through_duration_seconds", {"operation": "put_writes", "tier": "l2"}),
    ("warm-up", "l1_warm_up_duration_seconds", {}),
)


async def watch_traffic(
    console: Console, registry: CollectorRegistry, tally: Tally, warnings: Sequence[str]
) -> None:
    """Show the figures of the traffic, until cancelled."""
    board = _Board(registry, tally, warnings)
    if not console.is_terminal:
        console.print("Every 5 s: turns · L1 hits · p50/p99 of reads · p50/p99 of puts · pool in use")
        while True:
            for _ in range(_LINE_EVERY):
                await board.tick()
            console.print(Block(board.lines(), indent=0, lines_after=0), end="")
    with Live(board.table(console.width), console=console, auto_refresh=False) as live:
        while True:
            await board.tick()
            live.update(board.table(console.width), refresh=True)


class _Board:
    def __init__(self, registry: CollectorRegistry, tally: Tally, warnings: Sequence[str]) -> None:
        self._registry = registry
        self._window = Window(length=_WINDOW)
        self._turns = [0]
        self._tally = tally
        self._warnings = warnings
        self._read()

    async def tick(self) -> None:
        await asyncio.sleep(_REFRESH_SECONDS)
        self._read()
        self._turns = [*self._turns, self._tally.turns][-_WINDOW:]

    def _read(self) -> None:
        self._change = self._window.add(read_registry(self._registry))
        self._figures = Figures.of(self._change)

    def lines(self) -> Text:
        """Return the figures in one line, and in another one what went wrong, if anything did."""
        read, put = (_percentiles(self._timing(metric, labels)) for _, metric, labels in _ROWS[:2])
        text = (
            f"{self._turns_text()} · hits {self._hit_ratio()} · read {read} · put {put} · pool {self._pool()}"
        )
        trouble = self._trouble()
        return Text.assemble(text, "\n " if trouble else "", *trouble)

    def table(self, width: int) -> RenderableType:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, width=min(width, WIDTH))
        table.add_column(f"last {_WINDOW} s", ratio=1)
        for title in ("calls", "p50", "p99"):
            table.add_column(title, justify="right", min_width=8)
        for title, metric, labels in _ROWS:
            timing = self._timing(metric, labels)
            calls = timing.rate * self._change.seconds
            style = "dim" if title.startswith(" ") else ""
            table.add_row(title, f"{calls:.0f}", _seconds(timing.p50), _seconds(timing.p99), style=style)
        facts = Table.grid(padding=(0, 2))
        facts.add_row(Text("turns", "bold"), Text.assemble(self._turns_text(), *self._trouble()))
        facts.add_row(Text("L1 hits", "bold"), Text(f"{self._hit_ratio()} ({self._reads()})", "green"))
        facts.add_row(Text("pool", "bold"), Text(f"{self._pool()} in use"))
        if self._warnings:
            facts.add_row(
                Text("log", "bold yellow"),
                Text(self._warnings[-1], "yellow", no_wrap=True, overflow="ellipsis"),
            )
        return Group(Text(), facts, table)

    def _turns_text(self) -> str:
        rate = (self._turns[-1] - self._turns[0]) / (_REFRESH_SECONDS * max(1, len(self._turns) - 1))
        return f"{self._tally.turns:,} turns, {rate:.1f}/s"

    def _trouble(self) -> list[tuple[str, str]]:
        tally = self._tally
        trouble = []
        if tally.begun_anew:
            trouble.append((f" · {tally.begun_anew} began anew", "yellow"))
        if tally.forgotten:
            trouble.append((f" · {tally.forgotten} names FORGOTTEN", "bold red"))
        if tally.failed:
            trouble.append((f" · {tally.failed} failed, last: {tally.last_error}", "red"))
        return trouble

    def _hit_ratio(self) -> str:
        ratio = self._figures.reads.hit_ratio
        return f"{ratio:.0%}" if ratio is not None else "–"

    def _reads(self) -> str:
        counts = {
            result: rate * self._change.seconds
            for result, rate in self._figures.reads.results.items()
            if rate
        }
        return ", ".join(f"{result} {count:.0f}" for result, count in counts.items()) or "no reads"

    def _pool(self) -> str:
        pool = self._figures.pool
        return f"{pool.in_use}/{pool.max}" if pool is not None else "–"

    def _timing(self, metric: str, labels: dict[str, str]) -> Timing:
        return Timing.of([self._change], metric, **{label: (value,) for label, value in labels.items()})


def _percentiles(timing: Timing) -> str:
    if timing.p50 is None or timing.p99 is None:
        return "–"
    return f"{_number(timing.p50 * 1000)}/{_number(timing.p99 * 1000)} ms"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else milliseconds(value * 1e9)
