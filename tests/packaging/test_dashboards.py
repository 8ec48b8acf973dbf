"""The dashboards: as the code writes them, whole, and asking only for what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import build
from dashboards.boards.colours import BAD, GOOD, NEUTRAL, WARNING
from dashboards.boards.common import CARRIED, UIDS
from dashboards.boards.promql import METRIC_LABELS, metric
from dashboards.objectives import OBJECTIVES
from dashboards.queries import FOLDER, boards, choices_of, expressions, panels, variables_of
from dashboards.rules import RECORDING, rules
from dashboards.shown import shown
from glasspoint.telemetry.catalogue import METRICS, SPANS
from glasspoint.telemetry.metrics import BUCKETS_SECONDS
from places import DOCS
from promtool import assert_understood, needs_promtool
from span_contract import group_of

DOC = (DOCS / "telemetry.md").read_text("utf-8")

BOARDS = boards()
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in panels(board)]
PROMQL = [each for each in expressions() if each.language == "promql"]
TRACEQL = [each for each in expressions() if each.language == "traceql"]

# What Prometheus adds to every sample, and we to every metric and histogram.
EVERYWHERE = {"job", "instance", "saver", "le"}


def panel_name(value: object) -> str | None:
    return f"{value['title']}" if isinstance(value, dict) else None


every_panel = pytest.mark.parametrize(("board", "panel"), PANELS, ids=panel_name)


def strings(value: Any) -> Iterator[str]:
    """Every text in some JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in strings(each))


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in some JSON."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def test_they_are_as_the_code_writes_them() -> None:
    found = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}
    assert found == build.as_written(), "make generate"


def test_there_are_four_of_them() -> None:
    assert {board["uid"] for board in BOARDS.values()} == set(UIDS.values())
    assert len(BOARDS) == len(UIDS) == 4
    for board in BOARDS.values():
        assert board["title"].removeprefix("Glasspoint: ") in UIDS
        assert board["description"]


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_own_types_read_them(name: str) -> None:
    """Nothing is lost on the way through: there is no field in them that Grafana's types do not have."""
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARDS[name])))
    as_written = json.loads(json.dumps(BOARDS[name]))
    for each in nodes(read):
        if "targetBlank" in each:  # a link: the SDK would hide it in a menu
            each.pop("placement", None)
    for board in (read, as_written):
        for annotation in board["annotations"]["list"]:
            for key in ("target", "titleFormat", "textFormat", "tagKeys"):  # of the Prometheus plugin
                annotation.pop(key, None)
    assert read == as_written


@pytest.mark.parametrize("name", BOARDS)
def test_no_two_panels_overlap_and_all_are_on_the_board(name: str) -> None:
    places = [(panel.get("title"), panel["gridPos"]) for panel in BOARDS[name]["panels"]]
    for title, at in places:
        assert at["x"] >= 0, title
        assert at["y"] >= 0, title
        assert at["w"] > 0, title
        assert at["h"] > 0, title
        assert at["x"] + at["w"] <= 24, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one} and {other}"


@pytest.mark.parametrize("name", BOARDS)
def test_no_gaps(name: str) -> None:
    """Each line is filled: what is 24 wide together stands side by side, at one height."""
    lines = defaultdict(list)
    for panel in BOARDS[name]["panels"]:
        lines[panel["gridPos"]["y"]].append(panel["gridPos"])
    for line in lines.values():
        assert sum(at["w"] for at in line) == 24
        assert len({at["h"] for at in line}) == 1
    tops = sorted((y, line[0]["h"]) for y, line in lines.items())
    assert tops[0][0] == 0
    assert all(y + h == below for (y, h), (below, _) in pairwise(tops))


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_at_most_a_screen_and_a_half_long(name: str) -> None:
    """A screen of 1080 lines shows 24 units of the grid. Nothing is hidden in a row that is folded up."""
    assert max(at["y"] + at["h"] for at in (panel["gridPos"] for panel in BOARDS[name]["panels"])) <= 36
    assert not any(row.get("collapsed") for row in BOARDS[name]["panels"])


@pytest.mark.parametrize("name", BOARDS)
def test_ids_and_titles_are_unique(name: str) -> None:
    ids = Counter(panel["id"] for panel in BOARDS[name]["panels"])
    titles = Counter(panel["title"] for panel in BOARDS[name]["panels"])
    assert max(ids.values()) == max(titles.values()) == 1


@pytest.mark.parametrize("name", BOARDS)
def test_every_variable_is_defined_and_used(name: str) -> None:
    board = BOARDS[name]
    used = {
        name
        for text in strings(board)
        for found in re.findall(r"\$(?:(\w+)|\{(\w+)(?:[.:][^}]+)?\})", text)
        if not (name := found[0] or found[1]).startswith("__")
    }
    defined = [each["name"] for each in board["templating"]["list"]]
    assert used <= set(defined)
    assert set(defined) - used <= set(CARRIED)  # those are there so that a link takes them along
    assert set(CARRIED) <= set(defined)
    assert len(defined) == len(set(defined))


@pytest.mark.parametrize("name", BOARDS)
def test_they_lead_to_each_other(name: str) -> None:
    board = BOARDS[name]
    led_to = {found for text in strings(board) for found in re.findall(r"/d/([\w-]+)", text)}
    assert led_to <= set(UIDS.values())
    links = {link["url"]: link for link in board["links"]}
    assert set(links) == {f"/d/{uid}" for uid in UIDS.values() if uid != board["uid"]}
    assert all(link["keepTime"] and link["includeVars"] for link in links.values())


@pytest.mark.parametrize("name", BOARDS)
def test_a_link_out_of_a_panel_takes_everything_along(name: str) -> None:
    for text in strings(BOARDS[name]):
        if text.startswith("/d/") and "?" in text:
            assert "${__url_time_range}" in text
            assert all(f"${{{variable}:queryparam}}" in text for variable in CARRIED)


@pytest.mark.parametrize("name", BOARDS)
def test_data_sources_are_those_that_one_chooses(name: str) -> None:
    sources = [node["datasource"] for node in nodes(BOARDS[name]) if node.get("datasource")]
    assert sources
    for source in sources:
        assert source["uid"] == f"${{{source['type']}}}"
        assert source["type"] in ("prometheus", "tempo")
    kinds = {
        each["name"]: each["query"]
        for each in BOARDS[name]["templating"]["list"]
        if each["type"] == "datasource"
    }
    assert kinds == {"prometheus": "prometheus", "tempo": "tempo"}


@every_panel
def test_a_panel_says_what_to_make_of_it(board: str, panel: dict[str, Any]) -> None:
    shows, *others = panel["description"].split("\n\n")
    assert shows.endswith(".")
    leads = [re.match(r"\*\*(.+?)\*\* ", text) for text in others]
    assert [lead and lead[1] for lead in leads][:2] == ["Good:", "If not:"]
    assert [lead and lead[1] for lead in leads][2:] in ([], ["Empty"])
    assert all(text.endswith(".") for text in others)


@every_panel
def test_a_panel_has_a_unit_and_names(board: str, panel: dict[str, Any]) -> None:
    if panel["type"] != "traces":
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all(target["legendFormat"] for target in panel["targets"] if "expr" in target)
    match panel["type"]:
        case "timeseries":
            assert panel["options"]["legend"]["showLegend"]
            assert panel["options"]["legend"]["calcs"]
        case "state-timeline":
            assert panel["options"]["legend"]["showLegend"]
        case "stat":
            assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
            assert panel["fieldConfig"]["defaults"]["noValue"]
            assert panel["options"]["textMode"] == (
                "value" if len(panel["targets"]) == 1 else "value_and_name"
            )
        case other:
            assert other in ("table", "traces")


def test_one_name_has_one_colour_everywhere() -> None:
    colours = defaultdict(set)
    for _, panel in PANELS:
        for override in panel.get("fieldConfig", {}).get("overrides", ()):
            for each in override["properties"]:
                if each["id"] == "color":
                    colours[override["matcher"]["options"]].add(each["value"]["fixedColor"])
    assert len(colours) > 20
    assert {name: found for name, found in colours.items() if len(found) > 1} == {}
    assert colours["hit"] == colours["l1 p50"] == colours["applied"]
    assert colours["miss"] == colours["l2 p50"]
    assert colours["error"] == colours["unavailable"] == colours["stale"]
    assert len({*colours["hit"], *colours["miss"], *colours["error"], *colours["busy"]}) == 4


# Panel -> series -> values when all is well, and values when it is not.
VALUES: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {
    # Overview
    "Tier": {"tier": ((1,), (2, 3))},
    "Hit ratio": {"hits": ((0.8, 0.97, 1), (0, 0.3, 0.79))},
    "Read latency (p99)": {"p99": ((0.0008, 0.05), (0.06, 0.2, 10))},
    "Write latency (p99)": {"p99": ((0.003, 0.2), (0.25, 0.5, 10))},
    "Error ratio": {"failed calls": ((0,), (0.0002, 0.01, 1))},
    "Since the last success": {
        "get_tuple": ((0.5, 59, 86400), ()),  # nobody talks
        "put": ((0.5, 59, 86400), ()),
        "get_tuple fails": ((), (1, 61, 600)),
        "put fails": ((), (1, 61, 600)),
    },
    "Instances up and down": {"up": ((1, 4, 100), (0,)), "down": ((0,), (1, 4))},
    "Events in the time shown": {
        "fallbacks": ((0,), (1, 20)),
        "recoveries": ((0, 1, 20), ()),
        "checkpoints drained": ((0, 1, 2000), ()),
        "threads aside, refused or lost": ((0,), (1, 20)),
        "forks": ((0,), (1, 20)),
        "breaker opened": ((0,), (1, 20)),
        "Redis epochs": ((0,), (1, 20)),
        "PostgreSQL identities": ((0,), (1, 20)),
        "stale audits": ((0,), (1, 20)),
        "retries": ((0,), (1, 20)),
        "pool timeouts": ((0,), (1, 20)),
        "background errors": ((0,), (1, 20)),
    },
    # Cache-aside
    "Hit latency (p99)": {"p99": ((0.0008, 0.01), (0.03, 0.5))},
    "Bursts applied": {"applied": ((0.95, 1), (0, 0.9))},
    "Stale audits": {"stale": ((0,), (1,))},
    "Breaker": {"breaker": ((0,), (1,))},
    "Redis: memory utilisation": {"used": ((0.01, 0.79), (0.85, 1))},
    # Saturation and storage
    "Pool utilisation": {"in use": ((0, 0.5), (0.85, 1))},
    "Callers waiting": {"waiting": ((0, 4), (5, 100))},
    "Pool wait (p99)": {"p99": ((0.0004, 0.01), (0.1, 10))},
    "Pool timeouts": {"timeouts": ((0,), (1, 20))},
    "PostgreSQL up": {"up": ((1,), (0,))},
    "Days until full": {"days": ((30, 400, 3650), (0, 6, 29))},
    "Retention: last success": {"age": ((60, 3600), (7300, 90000))},
}


def test_every_large_number_has_its_values_here() -> None:
    named = {
        panel["title"]: {target["legendFormat"] for target in panel["targets"]}
        for _, panel in PANELS
        if panel["type"] in ("stat", "gauge", "bargauge")
    }
    known = {
        title: {re.sub("^(get_tuple|put)( fails)?$", "{{operation}}{{fails}}", name) for name in series}
        for title, series in VALUES.items()
    }
    assert named == known


@pytest.mark.parametrize(
    ("title", "series"), [(title, name) for title, found in VALUES.items() for name in found]
)
def test_a_large_number_is_green_or_grey_when_all_is_well_and_orange_or_red_when_not(
    title: str, series: str
) -> None:
    (panel,) = (panel for _, panel in PANELS if panel["title"] == title)
    healthy, broken = VALUES[title][series]
    assert {shown(panel, series, value).colour for value in healthy} <= {GOOD, NEUTRAL}
    assert {shown(panel, series, value).colour for value in broken} <= {WARNING, BAD}


@pytest.mark.parametrize(
    ("title", "colours"),
    [
        ("Tier by process", {0: NEUTRAL, 1: GOOD, 2: WARNING, 3: BAD}),
        ("Durability of commits", {0: GOOD, 1: BAD, 2: BAD, 3: BAD}),
    ],
)
def test_a_state_has_the_colour_of_what_it_means(title: str, colours: dict[int, str]) -> None:
    (panel,) = (panel for _, panel in PANELS if panel["title"] == title)
    assert {value: shown(panel, "app:9464 default", value).colour for value in colours} == colours
    assert {p["title"] for _, p in PANELS if p["type"] == "state-timeline"} == {
        "Tier by process",
        "Durability of commits",
    }


def test_large_numbers_have_the_colour_of_their_value() -> None:
    """A name such as `stale` must not make a zero red."""
    for _, panel in PANELS:
        if panel["type"] == "stat":
            own = [each for override in panel["fieldConfig"]["overrides"] for each in override["properties"]]
            assert {each["id"] for each in own} <= {"thresholds"}


@every_panel
def test_durations_lead_to_traces(board: str, panel: dict[str, Any]) -> None:
    with_exemplars = (
        "operation_duration_seconds_bucket",
        "read_duration_seconds_bucket",
        "turn_duration_seconds_bucket",
        "write_through_duration_seconds_bucket",
    )
    if panel["type"] != "timeseries" or panel["fieldConfig"]["defaults"]["unit"] != "s":
        return
    if any(name in target["expr"] for target in panel["targets"] for name in with_exemplars):
        assert [target["exemplar"] for target in panel["targets"]].count(True) == 1


@every_panel
def test_rates_are_over_a_window_that_follows_the_screen(board: str, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expr = target.get("expr", "")
        windows = set(re.findall(r"\[([^\]]+)\]", expr))
        assert windows <= {"$__rate_interval", "$__range", "$growth", "1h"}
        assert "1h" not in windows or "1 - 0.99" in expr  # the hour of the burn rates
        if "$__range" in windows:
            assert target["instant"], "one answer, not one a step"


@needs_promtool
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    assert_understood((each.text for each in PROMQL), tmp_path)


def test_every_query_of_every_panel_is_listed() -> None:
    asked = Counter((each.board, each.panel_id, each.ref_id) for each in PROMQL + TRACEQL if each.panel_id)
    there = Counter(
        (board, panel["id"], target["refId"]) for board, panel in PANELS for target in panel["targets"]
    )
    assert asked == there
    assert not any("$" in each.text for each in PROMQL + TRACEQL)
    assert {each.panel for each in PROMQL if not each.panel_id} >= {"annotation Tier", "variable saver"}


def test_a_panel_that_may_be_empty_promises_nothing() -> None:
    promises = {each.panel: each.has_data for each in expressions()}
    assert promises["Reads by result"]
    assert not promises["Slow calls"]
    for board, panel in PANELS:
        assert promises[panel["title"]] == ("**Empty**" not in panel["description"]), board


def test_reading_the_boards_needs_nothing_else() -> None:
    code = "import sys, dashboards.queries, dashboards.objectives; print(*sys.modules)"
    run = [sys.executable, "-c", code]
    loaded = subprocess.run(run, cwd=FOLDER.parents[1], capture_output=True, text=True, check=True).stdout
    assert "dashboards.queries" in loaded.split()
    assert not {"glasspoint", "grafana_foundation_sdk"} & set(loaded.split())


def test_values_may_be_given() -> None:
    values = {"__rate_interval": "7s", "saver": "mine", "conversation": "42"}
    texts = [each.text for each in expressions(values=values)]
    assert any('saver=~"mine"' in text and "[7s]" in text for text in texts)
    assert any('span.gen_ai.conversation.id = "42"' in text for text in texts)


def test_a_variable_that_is_not_defined_is_an_error(tmp_path: Path) -> None:
    board = json.loads((FOLDER / "overview.json").read_text("utf-8"))
    board["templating"]["list"] = [each for each in board["templating"]["list"] if each["name"] != "saver"]
    (tmp_path / "overview.json").write_text(json.dumps(board), "utf-8")
    with pytest.raises(LookupError, match="saver"):
        list(expressions(tmp_path))


def parts_of(name: str) -> set[str]:
    parts = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {f"glasspoint_{name}{part}" for part in parts.get(METRICS[name].kind, ("",))}


KNOWN = {part: name for name in METRIC_LABELS for part in parts_of(name)}


@pytest.mark.parametrize("text", sorted({each.text for each in PROMQL}))
def test_metrics_and_labels_are_those_of_the_catalogue(text: str) -> None:
    names = {found: KNOWN[found] for found in re.findall(r"\bglasspoint_\w+", text)}
    for found, matchers in re.findall(r"\b(glasspoint_\w+)\{([^}]*)\}", text):
        labels = dict(re.findall(r'(\w+)(?:=~|!=|!~|=)"([^"]*)"', matchers))
        assert set(labels) <= {*METRIC_LABELS[names[found]], *EVERYWHERE}
        for label in labels.keys() - EVERYWHERE:
            assert_documented(label, labels[label])
    grouped = {
        label
        for found in re.findall(r"\bby \(([^)]*)\)", text)
        for label in re.split(r",\s*", found)
        if label
    }
    if names:
        assert grouped <= EVERYWHERE.union(*(METRIC_LABELS[name] for name in names.values()))


def assert_documented(label: str, value: str) -> None:
    listed = DOC[DOC.index("| label | values |") : DOC.index("The durations of operations")]
    rows = [row for row in listed.splitlines() if re.match(rf"\|[^|]*\b{label}\b", row)]
    assert rows, label
    for each in value.split("|"):
        assert any(f"`{each}`" in row for row in rows), f"{label}={each}"


# Metrics on which nobody acts: they answer questions of docs/telemetry.md.
NOT_ON_A_BOARD = {"burst_writes", "redis_pool_connections", "storage_rows"}


def test_every_other_metric_of_the_catalogue_is_on_some_board() -> None:
    asked = {found for each in PROMQL for found in re.findall(r"\bglasspoint_\w+", each.text)}
    assert {name for name in METRIC_LABELS if not parts_of(name) & asked} == NOT_ON_A_BOARD


def test_series_are_coloured_by_values_that_there_are() -> None:
    """What is called by a label is called by one of its documented values."""
    by_label = re.compile(r"\{\{(\w+)\}\}")
    listed = DOC[DOC.index("| label | values |") : DOC.index("The durations of operations")]
    for _, panel in PANELS:
        if panel["type"] != "timeseries":
            continue
        legends = [target.get("legendFormat", "") for target in panel["targets"]]
        if not any(by_label.search(legend) for legend in legends):
            continue
        for override in panel["fieldConfig"]["overrides"]:
            name = override["matcher"]["options"]
            said = name in legends or name == "none" or f"`{name.split()[0]}`" in listed
            assert said, f"{panel['title']}: {name}"


@pytest.mark.parametrize("text", [each.text for each in TRACEQL if each.text])
def test_spans_and_attributes_are_those_of_the_catalogue(text: str) -> None:
    on_all = {"gen_ai.conversation.id", "error.type"}
    known = on_all.union(*(group.attributes for group in SPANS))
    assert set(re.findall(r"\bspan\.([\w.]+)", text)) <= known
    for name in re.findall(r'\bname = "([^"]*)"', text):
        assert group_of(name) is not None
    for pattern in re.findall(r'(?<!event:)\bname =~ "([^"]*)"', text):
        names = [group.prefix + name for group in SPANS for name in group.names]
        assert any(re.fullmatch(pattern, name) for name in names)
    for pattern in re.findall(r'event:name =~ "([^"]*)"', text):
        prefix, among = re.fullmatch(r"glasspoint\.\(([^)]*)\)()", pattern).groups()  # type: ignore[union-attr]
        assert not among
        assert all(f"`glasspoint.{event}`" in DOC for event in prefix.split("|"))


def test_objectives_are_bounds_of_buckets() -> None:
    """A bound between two buckets would count nothing, and the budget would burn at full speed."""
    bounds = {str(bound) for bound in BUCKETS_SECONDS}
    assert {str(each.within_seconds) for each in OBJECTIVES if each.within_seconds is not None} <= bounds
    assert all(0 < each.target < 1 for each in OBJECTIVES)
    burning = [each.text for each in PROMQL if each.panel == "Error budget burn rate (1 h)"]
    assert len(burning) == len(OBJECTIVES)
    for each, text in zip(OBJECTIVES, burning, strict=True):
        assert f"(1 - {each.target})" in text
        assert each.within_seconds is None or f'le="{each.within_seconds}"' in text


@pytest.mark.parametrize(
    ("name", "part", "labels"),
    [
        ("no_such_metric", "", {}),
        ("l1_reads_total", "", {"verdict": "stale"}),
        ("l1_reads_total", "bucket", {}),
        ("operation_duration_seconds", "", {}),
        ("operation_duration_seconds", "count", {"le": "1"}),
        ("serde_duration_seconds", "bucket", {}),
    ],
)
def test_what_is_not_in_the_catalogue_cannot_be_asked_for(
    name: str, part: str, labels: dict[str, str]
) -> None:
    with pytest.raises(LookupError):
        metric(name, part, **labels)


def test_all_means_everything() -> None:
    for board in BOARDS.values():
        assert all(
            variables_of(board)[each["name"]] == ".+"
            for each in board["templating"]["list"]
            if each["type"] == "query"
        )


def test_only_the_databases_of_savers_are_offered() -> None:
    """A server has template databases, and those of other applications."""
    asked, label = choices_of(BOARDS["saturation"])["database"]
    assert (asked, label) == (metric("info"), "database")
    of_databases = [each.text for each in PROMQL if "datname" in each.text or "pg_database_size" in each.text]
    assert of_databases
    assert all('datname=~".+"' in text for text in of_databases)


def test_the_alerts_know_the_same_objectives() -> None:
    allowed = {
        rule.labels["slo"]: float(rule.expr.removeprefix("vector(").removesuffix(")"))
        for rule in rules(RECORDING)
        if rule.name == "slo:glasspoint_error_budget:ratio"
    }
    assert allowed == pytest.approx({each.slo: 1 - each.target for each in OBJECTIVES})
    for each in OBJECTIVES:
        if each.within_seconds is not None:
            texts = [rule.expr for rule in rules(RECORDING) if rule.labels.get("slo") == each.slo]
            assert any(f'le="{each.within_seconds:g}"' in text for text in texts), each.slo
