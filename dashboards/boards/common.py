"""What all boards share: their names, links between them, variables, annotations, how panels are laid out."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardLink,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from dashboards.boards.colours import BAD, NEUTRAL, WARNING
from dashboards.boards.panels import PROMETHEUS
from dashboards.boards.promql import metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from grafana_foundation_sdk.models.dashboard import Panel, VariableModel

__all__ = ["CARRIED", "UIDS", "board", "databases", "drill_down", "exporter", "text_box"]

UIDS = {
    "Overview": "glasspoint-overview",
    "Cache-aside": "glasspoint-cache-aside",
    "Saturation and storage": "glasspoint-saturation",
    "Conversation": "glasspoint-conversation",
}
"""The boards: title -> the address below `/d/`, in which links, bookmarks and runbooks trust."""

CARRIED = ("prometheus", "tempo", "job", "instance", "saver")
"""The variables that all boards have, so that a link from one to another keeps what was chosen."""

_Made = TypeVar("_Made")

_EVERYWHERE = "glasspoint_operation_duration_seconds_count"


def board(
    title: str,
    answers: str,
    rows: Mapping[str, Sequence[Panel]],
    *,
    variables: Iterable[Builder[VariableModel]] = (),
    span: str = "now-1h",
    refresh: str = "10s",
) -> Dashboard:
    """Return a board.

    Args:
        title: One of `UIDS`.
        answers: The question that it is opened with.
        rows: Headline -> panels, from left to right and top to bottom. What stands first has none.
        variables: Besides those that all have.
        span: Since when, at first.
        refresh: How often everything is asked again.
    """
    made = (
        builders.Dashboard(f"Glasspoint: {title}")
        .uid(UIDS[title])
        .description(answers)
        .tags(["glasspoint"])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time(span, "now")
        .refresh(refresh)
        .timezone("browser")
        .variables([*_shared_variables(), *variables])
        .annotations([_Built(each) for each in _annotations()])
        .links([_Built(_link(other, uid)) for other, uid in UIDS.items() if other != title])
    )
    number = 0
    for headline, panels in rows.items():
        if headline:
            number += 1
            made.with_row(builders.Row(headline).id(number))
        for panel in panels:
            number += 1
            panel.id_val = number
            made.with_panel(_Built(panel))
    return made.build()


def drill_down(title: str) -> DashboardLink:
    """Return a panel's link to the board that says more; time range and variables go along."""
    chosen = "&".join(f"${{{name}:queryparam}}" for name in CARRIED)
    return _LinkInSight(
        title=title, type_val=DashboardLinkType.LINK, url=f"/d/{UIDS[title]}?${{__url_time_range}}&{chosen}"
    )


def text_box(name: str, label: str, value: str, description: str) -> Builder[VariableModel]:
    """Return a variable that is typed in."""
    box = builders.TextBoxVariable(name).label(label).description(description).default_value(value)
    return box.current(VariableOption(selected=True, text=value, value=value))


def exporter(name: str, label: str, metric_name: str) -> Builder[VariableModel]:
    """Return a variable that says which of the exporters is asked."""
    return _choice(name, label, f"label_values({metric_name}, instance)").all_value(".+")


def databases() -> Builder[VariableModel]:
    """Return a variable that says which databases count: those of the savers, not others of their server."""
    return _choice("database", "Database", f"label_values({metric('info')}, database)")


class _Built(Builder[_Made]):
    """What is built already, for those who want to build it."""

    def __init__(self, made: _Made) -> None:
        self._made = made

    def build(self) -> _Made:
        return self._made


class _LinkInSight(DashboardLink):
    """Stands at the top of the board or panel: the SDK says `inControlsMenu` for every link."""

    def to_json(self) -> dict[str, object]:
        return {name: value for name, value in super().to_json().items() if name != "placement"}


class _PrometheusAnnotation(AnnotationQuery):
    """With what Grafana's Prometheus plugin reads of an annotation, and the SDK does not know of."""

    def __init__(self, title: str, text: str, expr: str, colour: str) -> None:
        super().__init__(name=title, datasource=PROMETHEUS, enable=True, icon_color=colour, expr=expr)
        self._texts = {"titleFormat": title, "textFormat": text}

    def to_json(self) -> dict[str, object]:
        # Old releases read the expression beside the target, new ones in it.
        target = {"expr": self.expr, "refId": "Anno", "range": True, "legendFormat": ""}
        return {**super().to_json(), **self._texts, "target": target, "tagKeys": "instance,saver"}


_INFO = metric("info")


def _annotations() -> list[AnnotationQuery]:
    by = "sum by (instance, saver{}) (increase({}[$__rate_interval])) > 0"
    changes = ", from_tier, to_tier, reason"
    return [
        _PrometheusAnnotation(
            "Tier",
            "{{from_tier}} to {{to_tier}}: {{reason}}",
            by.format(changes, metric("fallback_events_total")),
            BAD,
        ),
        _PrometheusAnnotation(
            "Breaker",
            "Redis is left alone",
            by.format("", metric("l1_breaker_transitions_total", to="open")),
            WARNING,
        ),
        _PrometheusAnnotation(
            "Epoch",
            "Redis was restarted, or failed over: the cache begins anew",
            by.format("", metric("l1_epoch_changes_total")),
            NEUTRAL,
        ),
        _PrometheusAnnotation(
            "Identity",
            "PostgreSQL was set back, replaced or emptied, or it crashed ({{reason}}): the cache begins anew",
            by.format(", reason", metric("l1_identity_changes_total", reason="!=generation")),
            WARNING,
        ),
        _PrometheusAnnotation(
            "Start",
            "{{instance}}: Glasspoint {{version}}, LangGraph {{langgraph}}, PostgreSQL {{postgres}},"
            " Redis {{redis}}",
            f"{_INFO} unless on (instance, saver, version, postgres, redis) {_INFO} offset $__rate_interval",
            NEUTRAL,
        ),
    ]


def _shared_variables() -> list[Builder[VariableModel]]:
    chosen = ""
    made: list[Builder[VariableModel]] = [
        builders.DatasourceVariable("prometheus").label("Metrics").type("prometheus"),
        builders.DatasourceVariable("tempo").label("Traces").type("tempo"),
    ]
    for name, label in (("job", "Job"), ("instance", "Process"), ("saver", "Saver")):
        of = f"{{{chosen}}}" if chosen else ""
        known = f"label_values({_EVERYWHERE}{of}, {name})"
        choice = _choice(name, label, known)
        # Not so the jobs: other things than savers have an `up`.
        made.append(choice if name == "job" else choice.all_value(".+"))
        chosen += f'{"," if chosen else ""}{name}=~"${name}"'
    return made


def _choice(name: str, label: str, query: str) -> builders.QueryVariable:
    # qryType 1: label values; what Grafana's own editor writes.
    asked: dict[str, object] = {
        "qryType": 1,
        "query": query,
        "refId": "PrometheusVariableQueryEditor-VariableQuery",
    }
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(asked)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _link(title: str, uid: str) -> DashboardLink:
    return _LinkInSight(
        title=title,
        type_val=DashboardLinkType.LINK,
        icon="dashboard",
        tooltip=title,
        url=f"/d/{uid}",
        include_vars=True,
        keep_time=True,
    )
