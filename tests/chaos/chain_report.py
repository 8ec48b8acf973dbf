"""What a chain run was like."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from chaos.chain_checker import WHATS

if TYPE_CHECKING:
    from rich.console import Console

    from chaos.chain import ChainOutcome

__all__ = ["print_chain_report"]

_SHOWN = 5


def print_chain_report(console: Console, outcome: ChainOutcome) -> None:
    """Print what is wrong, if anything is; then how it went."""
    for what in WHATS:
        found = [each for each in outcome.verdict.violations if each.what == what]
        for violation in found[:_SHOWN]:
            console.print(Text(f"{violation}\n", "red"))
    for said, times in Counter(outcome.unexpected).most_common(_SHOWN):
        console.print(Text(f"unexpected, {times} times: {said}\n", "red"))
    console.print(_figures(outcome))


def _figures(outcome: ChainOutcome) -> Table:
    settings, verdict = outcome.settings, outcome.verdict
    table = Table(
        title=f"Chain: seed {settings.seed}, {outcome.seconds:.0f} s, {settings.workers} workers, "
        f"fallbacks {settings.fallbacks}{' on a Redis Cluster' * settings.in_cluster}"
        f"{settings.sabotage and ', sabotage: '}{settings.sabotage}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_header=False,
    )
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    outcomes = Counter(each.outcome for each in outcome.attempts)
    table.add_row("attempts", ", ".join(f"{name} {times}" for name, times in outcomes.most_common()))
    tiers = Counter(each.tier for each in outcome.attempts if each.is_acknowledged)
    table.add_row("acknowledged in", ", ".join(f"{tier} {times}" for tier, times in tiers.most_common()))
    did = Counter(each.did for each in outcome.attempts if each.is_acknowledged)
    table.add_row("did", ", ".join(f"{name} {times}" for name, times in did.most_common()))
    table.add_row("checked", ", ".join(f"{name} {times}" for name, times in verdict.checked.items()))
    faults = ", ".join(f"{kind} {times}" for kind, times in outcome.faults.most_common())
    table.add_row(f"events: {outcome.faults.total()}", faults, end_section=True)
    for what in WHATS:
        count = verdict.count(what)
        table.add_row(what, Text(str(count), "bold red" if count else "bold green"))
    table.add_row("unexpected", str(len(outcome.unexpected)), end_section=True)
    for name, times in sorted(verdict.excused.items()):
        table.add_row(f"excused: {name}", str(times))
    return table
