"""What the boards ask, read from their JSON alone: for the tests, and for whoever wants to ask it elsewhere.

Grafana's variables are replaced as it would: by what stands in them at first, All by `.+`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "BUILT_IN",
    "FOLDER",
    "Expression",
    "boards",
    "choices_of",
    "expressions",
    "panels",
    "replaced",
    "variables_of",
]

FOLDER = Path(__file__).with_name("grafana")

BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}
"""The variables that Grafana itself sets, and what they are here unless somebody says otherwise."""

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::\w+)?\})")
_LABEL_VALUES = re.compile(r"label_values\((.*), (\w+)\)")


@dataclass(frozen=True, slots=True)
class Expression:
    """One question of a board.

    Attributes:
        board: The name of its file, without the end.
        panel: Its title; `annotation NAME` and `variable NAME` for those that no panel asks.
        panel_id: Its number on the board; 0 for those.
        ref_id: Which of the panel's questions.
        text: With all variables replaced.
        legend: What Grafana calls the series.
        has_data: The panel promises an answer in normal traffic: its description does not say when it is
            empty.
    """

    board: str
    panel: str
    panel_id: int
    ref_id: str
    language: Literal["promql", "traceql"]
    text: str
    legend: str
    has_data: bool


def boards(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return file name without its end -> what is in it, of every board."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the panels of a board, those in collapsed rows too, without the rows themselves."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels") or ()
        else:
            yield panel


def variables_of(board: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a board and what stands in them at first; `.+` for All."""
    return {each["name"]: _value(each) for each in board["templating"]["list"]}


def choices_of(board: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the variables whose All means all that they list: name -> what is asked, and for which label."""
    return {
        each["name"]: (found[1], found[2])
        for each in board["templating"]["list"]
        if each["type"] == "query" and not each.get("allValue")
        if (found := _LABEL_VALUES.fullmatch(each["query"]["query"]))
    }


def expressions(folder: Path = FOLDER, values: Mapping[str, str] | None = None) -> Iterator[Expression]:
    """Return everything that the boards ask, in the order in which they show it.

    Args:
        folder: Where the JSON is.
        values: Variables, built-in ones too, that are to be something else: `{"__rate_interval": "5s"}`.

    Raises:
        LookupError: a variable is used that the board does not define.
    """
    for name, board in boards(folder).items():
        known = {**BUILT_IN, **variables_of(board), **(values or {})}
        for each in board["templating"]["list"]:
            if each["type"] == "query" and (found := _LABEL_VALUES.fullmatch(each["query"]["query"])):
                text = replaced(found[1], known)
                yield Expression(name, f"variable {each['name']}", 0, found[2], "promql", text, "", True)
        for each in board["annotations"]["list"]:
            text = replaced(each["expr"], known)
            yield Expression(name, f"annotation {each['name']}", 0, "Anno", "promql", text, "", False)
        for panel in panels(board):
            has_data = "**Empty** " not in panel["description"]
            for target in panel["targets"]:
                yield Expression(
                    name,
                    panel["title"],
                    panel["id"],
                    target["refId"],
                    "promql" if "expr" in target else "traceql",
                    replaced(target["expr"] if "expr" in target else target["query"], known),
                    target.get("legendFormat", ""),
                    has_data,
                )


def _value(variable: Mapping[str, Any]) -> str:
    if variable.get("includeAll"):
        return variable.get("allValue") or ".+"
    current = variable.get("current", {}).get("value", "")
    return current if isinstance(current, str) else "|".join(current)


def replaced(text: str, values: Mapping[str, str]) -> str:
    """Return a question with its variables replaced."""

    def value(found: re.Match[str]) -> str:
        return values[found[1] or found[2]]

    return _VARIABLE.sub(value, text)
