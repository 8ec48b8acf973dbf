"""Recording rules and alerts: Prometheus' own tool runs them; each alert has its tests and its runbook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from dashboards.rules import ALERTS, RECORDING, expressions, rules
from glasspoint import create_telemetry
from glasspoint.telemetry.catalogue import METRICS
from places import ROOT
from promtool import assert_understood, needs_promtool, promtool

FOLDER = ALERTS.parent
RULE_TESTS = sorted((FOLDER / "tests").glob("*.yml"))
BOARDS = [
    json.loads(file.read_text("utf-8")) for file in sorted((ROOT / "dashboards" / "grafana").glob("*.json"))
]
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text("utf-8")
TO_PASTE = [
    line
    for block in re.findall(r"^```promql\n(.*?)^```", RUNBOOKS, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]

SEVERITIES = {"page", "ticket", "info"}

# What others tell Prometheus: itself, and the exporters of PostgreSQL and Redis.
OF_OTHERS = {
    "up",
    "pg_database_size_bytes",
    "pg_stat_user_tables_n_live_tup",
    "pg_up",
    "redis_evicted_keys_total",
}

EXPRESSIONS = expressions()
GROUPS: list[dict[str, Any]] = [
    group for file in (RECORDING, ALERTS) for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
]
RECORDED = {rule.name for rule in rules(RECORDING)}
NAMED = [(rule.name, rule.labels["severity"]) for rule in rules(ALERTS)]


def rule_tests() -> list[tuple[Path, dict[str, Any]]]:
    return [(file, yaml.safe_load(file.read_text("utf-8"))) for file in RULE_TESTS]


# ------------------------------------------------------------------ Prometheus' own tool


@needs_promtool
def test_prometheus_understands_every_rule() -> None:
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", RECORDING, ALERTS)
    assert [int(found) for found in re.findall(r"(\d+) rules found", said)] == [
        len(rules(RECORDING)),
        len(rules(ALERTS)),
    ]


@needs_promtool
@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_and_keep_quiet_as_their_tests_say(file: Path, tmp_path: Path) -> None:
    """Each case with the rules that it is about: `promtool` evaluates all that it is given, every minute."""
    suite = yaml.safe_load(file.read_text("utf-8"))
    cases: dict[frozenset[str], list[dict[str, Any]]] = {}
    for case in suite["tests"]:
        asked = {each["alertname"] for each in case["alert_rule_test"]}
        for each in case.get("promql_expr_test", ()):
            asked |= asked_for(each["expr"]) & RECORDED
        cases.setdefault(frozenset(asked), []).append(case)
    files = []
    for number, (names, its_cases) in enumerate(cases.items()):
        groups = groups_for(names)
        (tmp_path / f"rules-{number}.yml").write_text(json.dumps({"groups": groups}), "utf-8")
        about = {"rule_files": [f"rules-{number}.yml"], "tests": its_cases}
        files.append(tmp_path / f"tests-{number}.yml")
        order = [group["name"] for group in groups]
        files[-1].write_text(json.dumps(suite | about | {"group_eval_order": order}), "utf-8")
    promtool("test", "rules", *files, folder=tmp_path)


def groups_for(asked: frozenset[str]) -> list[dict[str, Any]]:
    """Return the groups of all rules, with those alone by which these alerts and records are decided."""
    needed = set(asked)
    while more := {
        name
        for rule, promql in EXPRESSIONS
        if rule in needed
        for name in asked_for(promql) & RECORDED
        if name not in needed
    }:
        needed |= more
    chosen = []
    for group in GROUPS:
        its_rules = [rule for rule in group["rules"] if (rule.get("record") or rule["alert"]) in needed]
        if its_rules:
            chosen.append({**group, "rules": its_rules})
    return chosen


@needs_promtool
def test_prometheus_understands_every_query_of_the_runbooks(tmp_path: Path) -> None:
    assert_understood(TO_PASTE, tmp_path)


# ------------------------------------------------------------------ nothing is forgotten


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet() -> None:
    fires: set[tuple[str, str]] = set()
    quiet: set[tuple[str, str]] = set()
    for _, suite in rule_tests():
        for case in suite["tests"]:
            for asked in case["alert_rule_test"]:
                expected = {alert["exp_labels"]["severity"] for alert in asked["exp_alerts"]}
                for name, severity in NAMED:
                    if name == asked["alertname"]:
                        (fires if severity in expected else quiet).add((name, severity))
    assert fires == set(NAMED)
    assert quiet == set(NAMED)


def test_the_tests_evaluate_groups_in_an_order_that_is_always_the_same() -> None:
    order = list(dict.fromkeys(rule.group for file in (RECORDING, ALERTS) for rule in rules(file)))
    for file, suite in rule_tests():
        assert suite["rule_files"] == [f"../{RECORDING.name}", f"../{ALERTS.name}"]
        assert suite["group_eval_order"] == order, file.name


def test_no_two_alerts_are_the_same() -> None:
    assert len(NAMED) == len(set(NAMED))


@pytest.mark.parametrize("alert", rules(ALERTS), ids=lambda rule: f"{rule.name}-{rule.labels['severity']}")
def test_an_alert_says_how_urgent_it_is_and_what_is_the_matter(alert: Any) -> None:
    assert alert.labels.keys() == {"severity"}
    assert alert.labels["severity"] in SEVERITIES
    assert alert.annotations.keys() == {"summary", "description", "runbook_url"}
    assert alert.annotations["summary"].endswith(".")
    assert alert.annotations["description"].endswith(".")
    assert "{{ $labels." in alert.annotations["description"] or alert.expr.startswith("absent(")
    assert alert.annotations["runbook_url"] == f"docs/runbooks.md#{alert.name.lower()}"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = re.findall(r"^## (Glasspoint\w+)$", RUNBOOKS, re.MULTILINE)
    assert sorted(sections) == sorted({name for name, _ in NAMED})


@pytest.mark.parametrize("name", sorted({name for name, _ in NAMED}))
def test_a_runbook_says_what_it_means_where_to_look_what_to_do_and_when_it_ends(name: str) -> None:
    section = RUNBOOKS[RUNBOOKS.index(f"## {name}\n") :].split("\n## ")[0]
    for part in ("**Means.**", "**Look.**", "**Do.**", "**Ends**"):
        assert section.count(part) == 1, part
    severities = {severity for named, severity in NAMED if named == name}
    assert set(re.findall(r"`(page|ticket|info)`", section.splitlines()[2])) == severities


def test_every_panel_that_a_runbook_names_is_there() -> None:
    titles = {
        (board["title"].removeprefix("Glasspoint: "), panel["title"])
        for board in BOARDS
        for row in board["panels"]
        for panel in (row, *row.get("panels", ()))
    }
    assert titles
    flat = " ".join(RUNBOOKS.split())
    on_a_board = set(re.findall(r'([A-Z][\w -]+) › "([^"]+)"', flat))
    assert on_a_board
    assert on_a_board <= titles
    looks = re.findall(
        r"\*\*Look\.\*\*(.*?)\*\*Do\.\*\*", re.sub(r"```.*?```|`[^`]*`", "", RUNBOOKS, flags=re.S), re.S
    )
    named = {" ".join(title.split()) for look in looks for title in re.findall(r'"([^"]+)"', look)}
    assert named <= {title for _, title in titles}


# ------------------------------------------------------------------ what they ask for is there


def asked_for(promql: str) -> set[str]:
    """Return the metrics that an expression names."""
    without_text = re.sub(r'"[^"]*"', "", promql)
    return set(re.findall(r"\b(?:up|pg_\w+|redis_\w+|[\w:]*glasspoint[\w:]*)\b", without_text))


def known() -> set[str]:
    names = {f"glasspoint_{name}" for name in METRICS}
    parts = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return names | {
        f"glasspoint_{name}{part}" for name, metric in METRICS.items() for part in parts.get(metric.kind, ())
    }


@pytest.mark.parametrize(("name", "promql"), EXPRESSIONS)
def test_a_rule_asks_only_for_what_there_is(name: str, promql: str) -> None:
    asked = asked_for(promql)
    assert asked or promql.startswith("vector(")
    assert asked <= known() | RECORDED | OF_OTHERS


@pytest.mark.parametrize("promql", TO_PASTE)
def test_a_query_in_a_runbook_asks_only_for_what_there_is(promql: str) -> None:
    asked = asked_for(promql)
    assert asked
    assert asked <= known() | RECORDED | OF_OTHERS


def test_limits_of_latency_are_bounds_of_buckets_as_a_scrape_prints_them() -> None:
    registry = CollectorRegistry()
    with create_telemetry(registry=registry).operation("get_tuple", None):
        pass
    printed = set(re.findall(r'duration_seconds_bucket{le="([^"]+)"', generate_latest(registry).decode()))
    asked = {found for _, promql in EXPRESSIONS for found in re.findall(r'le="([^"]+)"', promql)}
    assert asked == {"0.1024", "0.4096"}
    assert asked <= printed
