"""Draws the figures of `glasspoint top`: 80 columns, no boxes, nothing that only a colour says."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from glasspoint.console import WIDTH, Block, milliseconds, plain
from glasspoint.telemetry.figures import Figures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rich.console import RenderableType

    from glasspoint.cli.endpoints import Endpoint
    from glasspoint.telemetry.figures import Change, Timing

__all__ = ["screen"]

_NOTHING = "–"

# From this width on, the table of processes has more columns.
_WIDE = 120
_WIDEST = 160
_NAME_WIDTH = 20
_GAP = 2

# Results that are rows of their own, or that say the same as such a row.
_SHOWN_AS_ROWS = {"hit", "miss"}


def screen(endpoints: Sequence[Endpoint], interval: float, *, width: int) -> RenderableType:
    """Return the whole picture.

    Args:
        endpoints: The processes, as they were read last.
        interval: The seconds between two readings.
        width: The width of the terminal, in characters.
    """
    changes = [each.change for each in endpoints if each.change is not None]
    parts: list[RenderableType] = [_heading(endpoints, interval)]
    is_wide = width >= _WIDE
    width = min(width, _WIDEST if is_wide else WIDTH)
    # Before the rest: a terminal that is not high enough shows the beginning.
    if len(endpoints) > 1 or not changes or any(_is_new(each) for each in changes) or _savers(changes) > 1:
        parts += [Text(), _processes(endpoints, [*_COLUMNS, *_MORE_COLUMNS] if is_wide else _COLUMNS, width)]
    if not all(_is_new(each) for each in changes):
        found = Figures.of(*changes)
        parts += [Text(), _calls(found), Text(), _facts(found)]
    return Block(Group(*parts), indent=0, lines_after=0, widest=width)


# -------------------------------------------------------------------- the sum


def _heading(endpoints: Sequence[Endpoint], interval: float) -> RenderableType:
    if len(endpoints) == 1:
        what = endpoints[0].name
    else:
        answering = sum(each.answers for each in endpoints)
        what = f"{answering} of {len(endpoints)} processes answer, their sum"
    return Text.assemble(("glasspoint top", "bold"), f"  {what}", (f" · every {interval:g} s", "dim"))


def _calls(found: Figures) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True, header_style="dim")
    table.add_column("", min_width=18)
    for title in ("per second", "p50", "p99"):
        table.add_column(title, justify="right", min_width=9)

    def row(title: str, timing: Timing | None, style: str = "") -> None:
        if timing is not None:
            cells = (_rate(timing.rate), _seconds(timing.p50), _seconds(timing.p99))
            table.add_row(title, *cells, style="dim" if title.startswith(" ") and not style else style)

    table.add_row("reads", _rate(found.reads.rate), "", "")
    row("  hits", found.hit, "green")
    row("  misses", found.miss, "yellow")
    row("writes", found.writes)
    row("  in L1 Redis", found.l1)
    row("  in L2 PostgreSQL", found.l2)
    row("warm-ups", found.warm_ups)
    row("turns", found.turns)
    return table


def _facts(found: Figures) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=16)
    grid.add_column(overflow="fold")
    ratio, others = found.reads.hit_ratio, _listed(found.reads.results, without=_SHOWN_AS_ROWS)
    grid.add_row("hit ratio", _NOTHING if ratio is None else Text(f"{ratio:.1%}", "bold"))
    if others:
        grid.add_row("other reads", others)
    for title, results in (
        ("writes", found.writes.results),
        ("warm-ups", found.warm_ups.results),
        ("turns", found.turns.outcomes),
    ):
        if listed := _listed(results):
            grid.add_row(title, listed)
    if found.errors:
        grid.add_row(Text("FAILED CALLS", "bold red"), Text(_listed(found.errors), "red"))
    grid.add_row("state", _state(found))
    grid.add_row("connections", _connections(found))
    grid.add_row("since the start", _totals(found))
    if found.process is not None:
        grid.add_row("process", f"{_share(found.process.cpu)} of a core, {decimal(int(found.process.rss))}")
    return grid


def _state(found: Figures) -> Text:
    text = Text()
    if found.tier is None:
        text.append("no saver is open")
    elif isinstance(found.tier, str):
        text.append(f"tier {plain(found.tier)}", "" if found.tier == "cached" else "bold yellow")
    else:
        text.append(
            "tiers " + ", ".join(f"{plain(tier)} {count}×" for tier, count in found.tier.items()),
            "bold yellow",
        )
    if found.breaker is not None:
        text.append(" · ").append(f"breaker {found.breaker}", "" if found.breaker == "closed" else "bold red")
    waiting = {
        "in the journal": found.journal_pending,
        "quarantined": found.quarantined,
        "threads undrained": sum(found.undrained_threads.values()),
    }
    for what, count in waiting.items():
        if count:
            text.append(" · ").append(f"{count:,} {what}", "yellow")
    return text


def _connections(found: Figures) -> Text:
    text = Text()
    if found.pool is not None:
        pool = found.pool
        text.append(f"PostgreSQL {pool.in_use} of {pool.max} in use")
        if pool.waiting:
            text.append(f", {pool.waiting} waiting", "bold yellow")
    if found.redis_pool is not None:
        text.append(" · " if text else "").append(
            f"Redis {found.redis_pool.in_use} in use, {found.redis_pool.idle} idle"
        )
    return text or Text(_NOTHING)


def _totals(found: Figures) -> Text:
    return Text.assemble(
        f"epoch changes {found.epoch_changes:,} · identity changes {found.identity_changes:,} · ",
        (f"forks {found.forks:,}", "yellow" if found.forks else ""),
    )


# -------------------------------------------------------------------- each process


def _processes(endpoints: Sequence[Endpoint], columns: Sequence[_Column], width: int) -> RenderableType:
    longest = max(len(each.name) for each in endpoints)
    for_names = width - sum(_GAP + each.width for each in columns)
    width = max(0, min(for_names, max(_NAME_WIDTH, longest)))
    lines: list[RenderableType] = []

    def add(name: Text, text: Text) -> None:
        if name.cell_len > width:  # a line of its own
            lines.append(name)
            name = Text()
        grid = Table.grid(padding=(0, _GAP, 0, 0))
        grid.add_column(width=width)
        grid.add_column(overflow="fold")
        grid.add_row(name, text)
        lines.append(grid)

    add(Text("process", "dim"), Text(_line(columns, [each.title for each in columns]), "dim"))
    for each in endpoints:
        if each.change is None:
            lasts = int(monotonic() - each.since)
            add(Text(each.name, "red"), Text(each.trouble + (f" (for {lasts} s)" if lasts else ""), "red"))
        elif _is_new(each.change):
            was = "has been restarted" if each.change.is_restart else "answers"
            add(Text(each.name), Text(f"{was}: its rates come with the next reading", "yellow"))
        else:
            found = Figures.of(each.change)
            add(Text(each.name), _row(columns, found))
            if len(found.savers) > 1:
                for saver in found.savers:
                    row = _row(columns, Figures.of(each.change, saver=saver), is_part=True)
                    add(Text(f"  saver {plain(saver)}", "dim"), row)
    return Group(*lines)


class _Column(NamedTuple):
    """A column: its title, its width in characters, and what it shows."""

    title: str
    width: int
    shows: Callable[[Figures], str]
    is_of_the_process: bool = False


_COLUMNS = (
    _Column("reads/s", 7, lambda found: _rate(found.reads.rate)),
    _Column("hits", 5, lambda found: _share(found.reads.hit_ratio)),
    _Column("hit p99", 8, lambda found: _seconds(found.hit.p99)),
    _Column("writes/s", 8, lambda found: _rate(found.writes.rate)),
    _Column("p99", 8, lambda found: _seconds(found.writes.p99)),
    _Column("tier", 6, lambda found: _tier(found)),
    _Column(
        "cpu", 4, lambda found: _share(found.process.cpu if found.process else None), is_of_the_process=True
    ),
)
_MORE_COLUMNS = (
    _Column("miss p99", 8, lambda found: _seconds(found.miss.p99)),
    _Column("failed/s", 8, lambda found: _rate(sum(found.errors.values()))),
    _Column("pool", 6, lambda found: f"{found.pool.in_use}/{found.pool.max}" if found.pool else _NOTHING),
    _Column(
        "memory",
        8,
        lambda found: decimal(int(found.process.rss)) if found.process else _NOTHING,
        is_of_the_process=True,
    ),
)


def _row(columns: Sequence[_Column], found: Figures, *, is_part: bool = False) -> Text:
    cells = ["" if is_part and each.is_of_the_process else each.shows(found) for each in columns]
    return Text(_line(columns, cells), "dim" if is_part else "")


def _line(columns: Sequence[_Column], cells: Sequence[str]) -> str:
    return (
        (" " * _GAP)
        .join(f"{cell:>{column.width}}" for column, cell in zip(columns, cells, strict=True))
        .rstrip()
    )


def _is_new(change: Change) -> bool:
    return change.before is None


def _savers(changes: Iterable[Change]) -> int:
    return max((len(Figures.of(each).savers) for each in changes), default=0)


def _tier(found: Figures) -> str:
    if found.tier is None:
        return _NOTHING
    return plain(found.tier)[:6] if isinstance(found.tier, str) else "mixed"


# -------------------------------------------------------------------- words


def _rate(per_second: float) -> str:
    """Return a rate with three significant digits, and 0 as such."""
    digits = 0 if per_second >= 100 or not per_second else 1 if per_second >= 10 else 2
    return f"{per_second:,.{digits}f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return milliseconds(value * 1e9) if value < 1 else f"{value:.2f} s"


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.0%}"


def _listed(rates: Mapping[str, float], *, without: Iterable[str] = ()) -> str:
    """Return what has happened at all, as one line."""
    shown = {name: rate for name, rate in rates.items() if rate > 0 and name not in without}
    return " · ".join(f"{plain(name)} {_rate(rate)}/s" for name, rate in shown.items())
