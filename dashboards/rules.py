"""The recording rules and alerts of `prometheus/` as data, for tests and for who draws them. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

__all__ = ["ALERTS", "RECORDING", "Rule", "expressions", "rules"]

RECORDING = Path(__file__).parent / "prometheus" / "recording.yml"
ALERTS = Path(__file__).parent / "prometheus" / "alerts.yml"


class Rule(NamedTuple):
    """One rule of one file.

    Attributes:
        name: What is recorded, or the alert.
        expr: Its PromQL.
        group: The group that it is evaluated in.
        labels: What it adds; an alert's `severity` among them.
        annotations: An alert's `summary`, `description` and `runbook_url`.
    """

    name: str
    expr: str
    group: str
    labels: dict[str, str]
    annotations: dict[str, str]


def rules(file: Path) -> list[Rule]:
    """Return the rules of a file, in its order."""
    groups = yaml.safe_load(file.read_text("utf-8"))["groups"]
    return [
        Rule(
            rule.get("record") or rule["alert"],
            rule["expr"].strip(),
            group["name"],
            rule.get("labels", {}),
            rule.get("annotations", {}),
        )
        for group in groups
        for rule in group["rules"]
    ]


def expressions() -> list[tuple[str, str]]:
    """Return name and PromQL of every recording rule and alert; a name may come several times."""
    return [(rule.name, rule.expr) for file in (RECORDING, ALERTS) for rule in rules(file)]
