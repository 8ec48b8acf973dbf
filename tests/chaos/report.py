"""What a run was like, in 80 columns."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

import redis_nodes
from chaos.checker import WHATS, Violation, longest_without_writing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from chaos.faults import Happened
    from chaos.history import Operation
    from chaos.run import Outcome

__all__ = ["print_report"]

_SHOWN = 5
_OPERATIONS = ("read", "put", "put_writes")


def print_report(console: Console, outcome: Outcome) -> None:
    """Print what is wrong, if anything is; then how it went; then the figures that count."""
    for violation in _samples(outcome.verdict.violations):
        during = ", ".join(_during(violation, outcome.happened)) or "no fault"
        console.print(Text(f"{violation}\n    done during: {during}\n", "red"))
    for said, times in Counter(outcome.unexpected).most_common(_SHOWN):
        console.print(Text(f"unexpected, {times} times: {said}\n", "red"))
    console.print(_operations(outcome))
    for title, found in (
        ("Violations", outcome.verdict.violations),
        ("In the documented window", outcome.verdict.in_window),
    ):
        if found:
            console.print(_findings(title, found, outcome.happened))
    console.print(_figures(outcome))


def _operations(outcome: Outcome) -> Table:
    table = Table(title="What the workers did", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("operation")
    for name in ("answered", "failed", "unknown"):
        table.add_column(name, justify="right")
    table.add_column("failed with")
    for kind in ("turn", "run", *_OPERATIONS, "delete"):
        outcomes = Counter(each.outcome for each in outcome.done if each.kind == kind)
        ok, unknown = outcomes.pop("ok", 0), outcomes.pop("killed", 0)
        errors = ", ".join(f"{name} {times}" for name, times in outcomes.most_common())
        table.add_row(kind, str(ok), str(outcomes.total()), str(unknown), errors)
    hits = sum(each.hit for each in outcome.done if each.kind == "read")
    unheard = sum(each.ok and not each.confirmed for each in outcome.done if each.kind in _OPERATIONS[1:])
    turns = (each for each in outcome.done if each.kind == "turn" and each.ok)
    foreign = sum(each.worker.startswith("foreign") for each in turns)
    table.caption = (
        f"{hits} reads answered by Redis; {unheard} acknowledged writes that it did not hear of; "
        f"{foreign} turns by the foreign writer"
    )
    table.caption_justify = "left"
    return table


def _findings(title: str, violations: list[Violation], happened: list[Happened]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("times", justify="right")
    table.add_column("oldest", justify="right")
    table.add_column("done while")
    for what in WHATS:
        found = [each for each in violations if each.what == what]
        if found:
            oldest = max(end - start for start, end in (each.span for each in found))
            causes = Counter(cause for each in found for cause in _during(each, happened))
            named = ", ".join(f"{cause} ({times})" for cause, times in causes.most_common(_SHOWN))
            if len(causes) > _SHOWN:
                named += f", and {len(causes) - _SHOWN} more"
            table.add_row(what, str(len(found)), f"{oldest:.2f} s", named)
    return table


def _figures(outcome: Outcome) -> Table:
    """Operations, faults of each kind, violations, and the longest time without writing."""
    settings, verdict = outcome.settings, outcome.verdict
    title = (
        f"Chaos: seed {settings.seed}, {outcome.seconds:.0f} s, {settings.workers} workers, "
        f"Redis: {settings.redis}"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_row("operations", f"{sum(each.kind in _OPERATIONS for each in outcome.done):,}")
    faults = Counter(each.fault.kind for each in outcome.happened)
    table.add_row("faults", str(faults.total() + outcome.died_in_a_task), end_section=True)
    for kind in settings.kinds:
        table.add_row(f"  {kind}", str(faults[kind]))
    table.add_row("  worker killed in the middle of a task", str(outcome.died_in_a_task), end_section=True)
    names = {"stale": "stale reads", "lost": "lost writes", "phantom": "phantoms", "twice": "tasks run twice"}
    for what in sorted(WHATS, key=lambda what: list({**names, **WHATS}).index(what)):
        count = verdict.count(what)
        table.add_row(names.get(what, what), Text(str(count), "bold red" if count else "bold green"))
    table.add_row("unexpected errors", str(len(outcome.unexpected)))
    window = Counter(each.what for each in verdict.in_window)
    seconds = f"in the documented window ({settings.bound_seconds:g} s)"
    table.add_row(f"reads {seconds}", str(window["stale"] + window["phantom"]))
    table.add_row("checkpoints damaged by turns that began before its end", str(window["damaged"]))
    table.add_row("turns broken off because PostgreSQL went back", str(len(verdict.upset)), end_section=True)
    table.add_row("reads, of these hits", _hits(each for each in outcome.done if each.kind == "read"))
    if outcome.away:
        there, elsewhere = _while_away(outcome)
        table.add_row("while a part of the cluster had no master: its reads", _hits(there))
        table.add_row("while a part of the cluster had no master: other reads", _hits(elsewhere))
    longest, thread = longest_without_writing(outcome.done)
    table.add_row(f"longest time that a conversation could not write ({thread})", f"{longest:.1f} s")
    return table


def _hits(reads: Iterable[Operation]) -> str:
    answered = [read for read in reads if read.ok]
    hits = sum(read.hit for read in answered)
    return f"{len(answered):,}: {hits:,} ({100 * hits / max(1, len(answered)):.0f} %)"


def _while_away(outcome: Outcome) -> tuple[list[Operation], list[Operation]]:
    """Return the reads that began while a part of the cluster had no master: those of this part, and all
    others."""
    there: list[Operation] = []
    elsewhere: list[Operation] = []
    for read in outcome.done:
        if read.kind == "read":
            slots = [each.slots for each in outcome.away if each.start <= read.start <= each.end]
            if slots:
                is_there = any(redis_nodes.slot_of(read.thread) in each for each in slots)
                (there if is_there else elsewhere).append(read)
    return there, elsewhere


def _samples(violations: list[Violation]) -> list[Violation]:
    """The first few of each kind."""
    shown: list[Violation] = []
    for what in WHATS:
        shown += [each for each in violations if each.what == what][:_SHOWN]
    return shown


def _during(violation: Violation, happened: list[Happened]) -> list[str]:
    """The fault that was there when that was done which was missed later; if none was, the last before."""
    first = violation.evidence[0]
    there = [str(each.fault) for each in happened if each.touches(first.start, first.end or first.start)]
    before = [f"after {each.fault}" for each in happened if each.end < first.start][-1:]
    return there or before
