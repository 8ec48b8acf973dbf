"""`make generate WHAT=pictures`: what the boards look like, drawn from a real Prometheus's answers.

Not Grafana: a small renderer of the panels' own queries, thresholds, units and places, for the docs and for
whoever changes a board and has no Grafana at hand. Panels that ask Tempo show their query.
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from dashboards.observe import Backing
from dashboards.queries import BUILT_IN, boards, choices_of, replaced, variables_of
from dashboards.shown import shown

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"

INK, DIM, PANEL, PAGE, LINE = "#d8d9da", "#8e9299", "#181b1f", "#111217", "#2c3036"
PALETTE = ["#73bf69", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#fade2a", "#8ab8ff", "#ca95e5"]
_COLUMNS = 24
_INCHES_A_COLUMN, _INCHES_A_ROW = 0.62, 0.31


def draw(board: dict[str, Any], prometheus_url: str, minutes: float, *, file: Path) -> dict[str, int]:
    """Draw one board.

    Args:
        board: Its JSON.
        prometheus_url: Who answers its queries.
        minutes: How far back it shows.
        file: Where the PNG goes.

    Returns:
        For each panel that asks Prometheus: its title, and how many series it showed.
    """
    asking = _Asking(prometheus_url, minutes, board)
    panels = list(_panels(board["panels"]))
    rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels)
    size = (_COLUMNS * _INCHES_A_COLUMN, rows * _INCHES_A_ROW + 0.5)
    figure = plt.figure(figsize=size, facecolor=PAGE, dpi=110)
    title = 0.5 / size[1]
    figure.text(0.008, 1 - title * 0.62, board["title"], color=INK, fontsize=13, weight="bold")
    counts = {}
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / _COLUMNS, place["w"] / _COLUMNS
        height = place["h"] / rows * (1 - title)
        bottom = (1 - title) * (1 - (place["y"] + place["h"]) / rows)
        box = [left + 0.002, bottom + 0.003, width - 0.004, height - 0.006]
        series = _draw_panel(figure, box, panel, asking)
        if series is not None:
            counts[panel["title"]] = series
    figure.savefig(file, facecolor=PAGE)
    plt.close(figure)
    with Image.open(file) as image:  # a quarter of the size
        image.convert("RGB").quantize(128).save(file, optimize=True)
    return counts


def main() -> None:
    """Start everything, let some of it go wrong, and draw the boards."""
    PICTURES.mkdir(exist_ok=True)
    with Backing(scrape_interval="2s", people=6) as backing:
        time.sleep(75)
        backing.redis.flush()
        time.sleep(45)
        backing.redis.kill()
        time.sleep(15)
        backing.redis.start()
        time.sleep(60)
        for name, board in boards().items():
            file = PICTURES / f"{name.replace('_', '-')}.png"
            for title, series in draw(board, backing.prometheus_url, minutes=3.2, file=file).items():
                print(f"{name}: {title}: {series} series")


def _panels(panels: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


class _Asking:
    def __init__(self, url: str, minutes: float, board: dict[str, Any]) -> None:
        self._url = url
        self.end = time.time()
        self.start = self.end - minutes * 60
        self.step = max(1.0, minutes * 60 / 240)
        interval = f"{max(5, int(self.step * 4))}s"
        self._values = {
            **BUILT_IN,
            **variables_of(board),
            "__rate_interval": interval,
            "__interval": interval,
            "__range": f"{int(self.end - self.start)}s",
        }
        for name, (selector, label) in choices_of(board).items():
            listed = self.now(f"group by ({label}) ({selector})")
            self._values[name] = "|".join(series["metric"][label] for series in listed)

    def substituted(self, text: str) -> str:
        """Put values in the place of Grafana's variables."""
        return replaced(text, self._values)

    def range(self, promql: str) -> list[dict[str, Any]]:
        span = {"start": str(self.start), "end": str(self.end), "step": str(self.step)}
        found: list[dict[str, Any]] = self._get("query_range", query=self.substituted(promql), **span)
        return found

    def now(self, promql: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("query", query=self.substituted(promql))
        return found

    def _get(self, what: str, **params: str) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(params)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]


def _draw_panel(
    figure: Figure | SubFigure, box: list[float], panel: dict[str, Any], asking: _Asking
) -> int | None:
    kind = panel["type"]
    if kind == "row":
        figure.text(box[0], box[1] + box[3] / 2, f"▾ {panel['title']}", color=INK, fontsize=10, va="center")
        return None
    frame = figure.add_axes(box, facecolor=PANEL)  # type: ignore[call-overload]
    frame.set_xticks([])
    frame.set_yticks([])
    for spine in frame.spines.values():
        spine.set_color(LINE)
    height_inches = box[3] * figure.get_figure().get_size_inches()[1]
    frame.text(
        0.012, 1 - 0.09 / height_inches, panel.get("title", ""), transform=frame.transAxes, color=INK,
        fontsize=8.5, weight="bold", va="top",
    )  # fmt: skip
    targets = [t for t in panel.get("targets", []) if not t.get("hide")]
    exprs = [t for t in targets if t.get("expr")]
    if not exprs:
        text = "\n".join(asking.substituted(t.get("query", "")) for t in targets) or panel.get(
            "options", {}
        ).get("content", "")
        frame.text(0.02, 0.5, text[:400], transform=frame.transAxes, color=DIM, fontsize=7, va="center",
                   family="monospace", wrap=True)  # fmt: skip
        return None
    width_inches = box[2] * figure.get_figure().get_size_inches()[0]
    margin = 0.52 / width_inches * box[2]
    inner = [box[0] + margin, box[1] + 0.16 * box[3], box[2] - margin - 0.008, box[3] * 0.68]
    if kind == "state-timeline":
        return _states(figure, inner, panel, exprs, asking)
    if kind == "timeseries":
        return _timeseries(figure, inner, panel, exprs, asking)
    return _values(frame, panel, exprs, asking, kind)


def _timeseries(
    figure: Figure | SubFigure, box: list[float], panel: dict[str, Any], targets: list[Any], asking: _Asking
) -> int:
    axes = figure.add_axes(box, facecolor=PANEL)  # type: ignore[call-overload]
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    custom = defaults.get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    lines = []
    for target in targets:
        for series in asking.range(target["expr"]):
            times = [datetime.fromtimestamp(t, UTC) for t, _ in series["values"]]
            values = [float(v) for _, v in series["values"]]
            lines.append((_legend(target, series["metric"]), times, values))
    colours = _colours(panel, [name for name, _, _ in lines])
    if stacked and lines:
        grid = sorted({t for _, times, _ in lines for t in times})
        rows = [dict(zip(times, values, strict=True)) for _, times, values in lines]
        stacks = [[0 if math.isnan(row.get(t, 0)) else row.get(t, 0) for t in grid] for row in rows]
        axes.stackplot(grid, *stacks, colors=colours, alpha=0.75, linewidth=0)
    else:
        fill = custom.get("fillOpacity", 0)
        for (_, times, values), colour in zip(lines, colours, strict=True):
            alone = len(times) < 3
            axes.plot(times, values, color=colour, linewidth=1.2, marker="." if alone else None)
            if fill:
                axes.fill_between(times, values, color=colour, alpha=min(0.25, fill / 100))
    if lines:
        axes.set_ylim(bottom=defaults.get("min", None if any(min(v) < 0 for _, _, v in lines) else 0))
    axes.set_xlim(datetime.fromtimestamp(asking.start, UTC), datetime.fromtimestamp(asking.end, UTC))
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(mdates.AutoDateLocator(maxticks=5))
    unit = defaults.get("unit", "short")
    axes.yaxis.set_major_formatter(lambda value, _: in_unit(value, unit))
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    axes.tick_params(colors=DIM, labelsize=6, length=0, pad=2)
    axes.grid(color=LINE, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if lines:
        handles = [plt.Line2D([], [], color=colour, linewidth=2) for colour in colours[:6]]
        names = [name[:26] for name, _, _ in lines[:6]]
        axes.legend(
            handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=min(4, len(names)),
            fontsize=5.5, frameon=False, labelcolor=DIM, handlelength=1, columnspacing=0.9, borderpad=0,
        )  # fmt: skip
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, color=DIM, ha="center", fontsize=8)
    return len(lines)


def _states(
    figure: Figure | SubFigure, box: list[float], panel: dict[str, Any], targets: list[Any], asking: _Asking
) -> int:
    axes = figure.add_axes(box, facecolor=PANEL)  # type: ignore[call-overload]
    rows = [
        (_legend(t, series["metric"]), series["values"])
        for t in targets
        for series in asking.range(t["expr"])
    ]
    for y, (name, values) in enumerate(rows):
        for time_, value in values:
            text, colour = _mapped(panel, name, float(value))
            axes.barh(y, asking.step, left=time_, color=colour, height=0.7, linewidth=0)
        if values:
            text, _ = _mapped(panel, name, float(values[-1][1]))
            axes.text(values[len(values) // 2][0], y, text, color=PAGE, fontsize=7, ha="center", va="center")
    axes.set_xlim(asking.start, asking.end)
    axes.set_xticks([])
    axes.set_yticks(range(len(rows)), [name[:24] for name, _ in rows])
    axes.tick_params(colors=DIM, labelsize=6, length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return len(rows)


def _values(frame: Any, panel: dict[str, Any], targets: list[Any], asking: _Asking, kind: str) -> int:
    found: list[tuple[str, float]] = []
    for target in targets:
        for series in asking.now(target["expr"]):
            is_table = kind == "table"
            name = ", ".join(_told(series["metric"])) if is_table else _legend(target, series["metric"])
            found.append((name, float(series["value"][1])))
    if not found:
        frame.text(0.5, 0.45, "no data", transform=frame.transAxes, color=DIM, ha="center", fontsize=8)
    if kind == "stat" and len(found) <= 4:
        for index, (name, value) in enumerate(found):
            x = (index + 0.5) / len(found)
            text, colour = _mapped(panel, name, value)
            frame.text(x, 0.46, text, transform=frame.transAxes, color=colour, ha="center", va="center",
                       fontsize=max(9, 17 - 2 * len(found)), weight="bold")  # fmt: skip
            if len(found) > 1:
                frame.text(x, 0.14, name[:18], transform=frame.transAxes, color=DIM, ha="center", fontsize=6)
        return len(found)
    lines = min(len(found), 9)
    for index, (name, value) in enumerate(found[:lines]):
        y = 0.78 - index * 0.7 / max(lines, 5)
        text, colour = _mapped(panel, name, value)
        frame.text(0.03, y, name[:120], transform=frame.transAxes, color=INK, fontsize=6.5, va="center")
        frame.text(0.97, y, text, transform=frame.transAxes, color=colour, fontsize=6.5, va="center",
                   ha="right")  # fmt: skip
    return len(found)


def _told(labels: dict[str, str]) -> Iterator[str]:
    return (f"{name} {value}" for name, value in labels.items() if name != "__name__" and value)


def _mapped(panel: dict[str, Any], name: str, value: float) -> tuple[str, str]:
    text, colour = shown(panel, name, value)
    unit = panel["fieldConfig"]["defaults"].get("unit", "short")
    return in_unit(value, unit) if text is None else text, colour or INK


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    form = target.get("legendFormat") or ""
    if form in ("", "__auto"):
        return ", ".join(f"{k}={v}" for k, v in labels.items() if k != "__name__") or "value"
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def _colours(panel: dict[str, Any], names: list[str]) -> list[str]:
    fixed = {
        override["matcher"]["options"]: each["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "color"
    }
    return [fixed.get(name) or PALETTE[index % len(PALETTE)] for index, name in enumerate(names)]


def in_unit(value: float, unit: str) -> str:
    """Write a number as Grafana would.

    Example:
        >>> in_unit(0.0123, "s"), in_unit(2048, "bytes"), in_unit(0.5, "percentunit"), in_unit(1234, "short")
        ('12.3 ms', '2 KiB', '50%', '1.23 K')
    """
    if math.isnan(value) or math.isinf(value):
        return "–"
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "s":
        for below, factor, name in ((1e-3, 1e6, "µs"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min")):
            if abs(value) < below:
                return f"{value * factor:.3g} {name}"
        return f"{value / 3600:.3g} h" if abs(value) < 172800 else f"{value / 86400:.3g} d"
    if unit == "bytes":
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    return _scaled(value, 1000, ("", "K", "M", "G", "T")) + {"ops": "/s", "opm": "/min", "d": " d"}.get(
        unit, ""
    )


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    index = 0
    while abs(value) >= base and index < len(names) - 1:
        value, index = value / base, index + 1
    return f"{value:.3g} {names[index]}".rstrip()


if __name__ == "__main__":
    main()
