"""What Grafana shows of a value in a panel: its text, if the panel has one for it, and its colour. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Shown", "shown"]


class Shown(NamedTuple):
    """How a value looks.

    Attributes:
        text: What stands there instead of the number; `None`: the number.
        colour: Its colour; `None`: the panel has none for it.
    """

    text: str | None
    colour: str | None


def shown(panel: Mapping[str, Any], series: str, value: float) -> Shown:
    """Return how a panel shows a value.

    Args:
        panel: The panel's JSON.
        series: The name of the series, as its legend says. The overrides of that name come first.
        value: The value.
    """
    config = panel["fieldConfig"]
    own = {
        each["id"]: each["value"]
        for override in config["overrides"]
        if override["matcher"] == {"id": "byName", "options": series}
        for each in override["properties"]
    }
    options = {**config["defaults"], **own}
    for mapping in options.get("mappings", []):
        if mapping["type"] == "value" and (found := mapping["options"].get(f"{value:g}")):
            return Shown(found["text"], found["color"])
    if options.get("color", {}).get("mode") == "fixed":
        return Shown(None, options["color"]["fixedColor"])
    colour = None
    for step in options.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return Shown(None, colour)
