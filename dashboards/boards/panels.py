"""The kinds of panels, each with what makes it readable: unit, legend, colours, thresholds, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, tempo, timeseries
from grafana_foundation_sdk.builders.dashboard import Panel as AnyPanel
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardFieldConfigSourceOverrides,
    DataSourceRef,
    DynamicConfigValue,
    FieldColor,
    FieldColorModeId,
    GridPos,
    MatcherConfig,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import Dataquery, QueryEditorMode
from grafana_foundation_sdk.models.tempo import SearchTableType

from dashboards.boards.colours import PERCENTILE_LINES, colour_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import DashboardLink

__all__ = [
    "PROMETHEUS",
    "TEMPO",
    "About",
    "Query",
    "Spans",
    "figures",
    "graph",
    "spans",
    "states",
    "trace",
]

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${prometheus}")
TEMPO = DataSourceRef(type_val="tempo", uid="${tempo}")


@dataclass(frozen=True, slots=True)
class About:
    """What a panel's description says.

    Attributes:
        shows: What one sees.
        good: What it looks like when all is well.
        act: What to do if it does not.
        empty: When there is nothing to see. Without it, the panel promises to have data in normal traffic.
    """

    shows: str
    good: str
    act: str
    empty: str = ""

    def __str__(self) -> str:
        parts = [self.shows, f"**Good:** {self.good}", f"**If not:** {self.act}"]
        if self.empty:
            parts.append(f"**Empty** {self.empty}")
        return "\n\n".join(parts)


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and what its series are called.

    Attributes:
        names: What the series will be called, if `legend` has labels in it: those get their colours.
        exemplars: Show the traces behind single observations.
    """

    expr: str
    legend: str
    names: tuple[str, ...] = ()
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Spans:
    """TraceQL, the traces and the spans of each that are wanted at most."""

    text: str
    traces: int = 20
    spans: int = 20


def figures(
    title: str,
    about: About,
    *queries: Query,
    unit: str,
    steps: Sequence[tuple[float, str]],
    width: int = 4,
    height: int = 4,
    decimals: int | None = None,
    sparkline: bool = True,
    texts: Mapping[int, tuple[str, str]] | None = None,
    no_value: str = "no data",
    others: Mapping[str, Sequence[tuple[float, str]]] | None = None,
    links: Sequence[DashboardLink] = (),
) -> Panel:
    """Return large numbers: as they are now, one for each query, coloured by `steps`.

    Args:
        steps: Colours by value, ascending.
        texts: Value -> what stands there instead, and its colour.
        no_value: What stands there if there is nothing.
        others: Name -> its own colours by value, for what is good where the rest is bad.
    """
    made = (
        stat.Panel()
        .unit(unit)
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.AREA if sparkline else BigValueGraphMode.NONE)
        .text_mode(BigValueTextMode.VALUE if len(queries) == 1 else BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(steps))
        .no_value(no_value)
    )
    if decimals is not None:
        made.decimals(decimals)
    if texts:
        made.mappings([_texts(texts)])
    panel = _asking(made, title, about, queries, width, height, links)
    for name, own in (others or {}).items():
        _override(panel, name, [DynamicConfigValue("thresholds", _thresholds(own).build())])
    return panel


def graph(
    title: str,
    about: About,
    *queries: Query,
    unit: str,
    width: int = 8,
    height: int = 7,
    stacked: bool = False,
    bars: bool = False,
    share: bool = False,
    limits: Sequence[tuple[float, str]] = (),
    calcs: Sequence[str] = ("mean", "max", "lastNotNull"),
    links: Sequence[DashboardLink] = (),
) -> Panel:
    """Return lines over time.

    Args:
        stacked: Areas on top of each other, for parts of a whole.
        share: From 0 to 1, whatever is in it.
        limits: Dashed lines, as steps.
    """
    made = (
        timeseries.Panel()
        .unit(unit)
        .min(0)
        .draw_style(GraphDrawStyle.BARS if bars else GraphDrawStyle.LINE)
        .line_width(0 if bars else 1 if stacked else 2)
        .fill_opacity(70 if bars else 40 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .tooltip(
            common_builders.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
        .legend(_legend(calcs))
    )
    if stacked:
        made.stacking(common_builders.StackingConfig().mode(StackingMode.NORMAL))
    if share:
        made.max(1)
    if limits:
        made.thresholds(_thresholds(limits))
        made.thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    panel = _asking(made, title, about, queries, width, height, links)
    _dress(panel, queries)
    assert panel.field_config is not None
    # By name: an operation has one colour, whatever else happens in the time that is shown.
    panel.field_config.defaults.color = FieldColor(mode=FieldColorModeId.PALETTE_CLASSIC_BY_NAME)
    return panel


def states(
    title: str,
    about: About,
    query: Query,
    *,
    texts: Mapping[int, tuple[str, str]],
    width: int = 8,
    height: int = 7,
) -> Panel:
    """Return bars over time that change their colour with the state, one for each series."""
    made = (
        statetimeline.Panel()
        .unit("none")
        .mappings([_texts(texts)])
        .thresholds(_thresholds([(0, next(iter(texts.values()))[1])]))
        .show_value(VisibilityMode.NEVER)
        .line_width(0)
        .fill_opacity(80)
        .legend(_legend((), LegendDisplayMode.LIST))
    )
    return _asking(made, title, about, (query,), width, height)


def spans(
    title: str,
    about: About,
    query: Spans,
    *,
    links: Mapping[str, tuple[str, str]],
    width: int = 24,
    height: int = 8,
) -> Panel:
    """Return a table of spans.

    Args:
        links: Column -> title and address of where a click on its values leads.
    """
    made = table.Panel().unit("none").no_value("none").filterable(True)
    made.override_by_name("glasspoint.bytes", [DynamicConfigValue("unit", "bytes")])
    for column, (text, url) in links.items():
        made.override_by_name(column, [DynamicConfigValue("links", [{"title": text, "url": url}])])
    panel = _described(made, title, about, width, height, TEMPO)
    found = tempo.Dataquery().query_type("traceql").table_type(SearchTableType.SPANS).filters([])
    panel.targets = [found.query(query.text).limit(query.traces).spss(query.spans).ref_id("A").build()]
    return panel


def trace(title: str, about: About, trace_id: str, *, width: int = 24, height: int = 18) -> Panel:
    """Return the spans of one trace, as a waterfall."""
    panel = _described(AnyPanel().type("traces"), title, about, width, height, TEMPO)
    panel.targets = [tempo.Dataquery().query_type("traceql").query(trace_id).filters([]).ref_id("A").build()]
    return panel


def _asking(
    made: Builder[Panel],
    title: str,
    about: About,
    queries: Sequence[Query],
    width: int,
    height: int,
    links: Sequence[DashboardLink] = (),
) -> Panel:
    panel = _described(made, title, about, width, height, PROMETHEUS)
    panel.links = list(links) or None
    panel.targets = [_target(query, chr(ord("A") + number)) for number, query in enumerate(queries)]
    return panel


def _dress(panel: Panel, queries: Sequence[Query]) -> None:
    named = (name for query in queries for name in (query.names or (query.legend,)))
    for name in dict.fromkeys(named):
        if looks := _looks(name):
            _override(panel, name, looks)


def _described(
    made: Builder[Panel], title: str, about: About, width: int, height: int, source: DataSourceRef
) -> Panel:
    panel = made.build()
    panel.title, panel.description, panel.datasource = title, str(about), source
    panel.grid_pos = GridPos(h=height, w=width)
    return panel


def _target(query: Query, ref_id: str) -> Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id)
    target.editor_mode(QueryEditorMode.CODE).exemplar(query.exemplars)
    # What is about all of the time that is shown has one answer, not one a step.
    return (target.instant() if "$__range" in query.expr else target.range()).build()


def _looks(name: str) -> list[DynamicConfigValue]:
    looks = []
    if colour := colour_of(name):
        looks.append(_fixed(colour))
    if line := next((PERCENTILE_LINES[word] for word in name.split() if word in PERCENTILE_LINES), None):
        looks.append(DynamicConfigValue("custom.lineStyle", line))
    return looks


def _fixed(colour: str) -> DynamicConfigValue:
    return DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})


def _legend(
    calcs: Sequence[str], mode: LegendDisplayMode = LegendDisplayMode.TABLE
) -> common_builders.VizLegendOptions:
    options = common_builders.VizLegendOptions().display_mode(mode).placement(LegendPlacement.BOTTOM)
    return options.show_legend(True).calcs(list(calcs))


def _thresholds(steps: Sequence[tuple[float, str]]) -> ThresholdsConfig:
    (_, lowest), *others = steps
    made = [Threshold(value=None, color=lowest), *(Threshold(value=value, color=c) for value, c in others)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def _texts(texts: Mapping[int, tuple[str, str]]) -> ValueMap:
    options = {
        str(value): ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(texts.items())
    }
    return ValueMap(options=options)


def _override(panel: Panel, name: str, properties: list[DynamicConfigValue]) -> None:
    assert panel.field_config is not None
    panel.field_config.overrides.append(
        DashboardFieldConfigSourceOverrides(
            matcher=MatcherConfig(id_val="byName", options=name), properties=properties
        )
    )
