"""The pages of docs/ name what there is: files, settings, metrics, versions, public names, commands."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import glasspoint
from command_line import glasspoint as command
from glasspoint import Settings, errors
from glasspoint.telemetry.catalogue import METRICS
from places import DOCS, ROOT
from promtool import assert_understood, needs_promtool

PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
SETTINGS = {str(field.validation_alias) for field in Settings.model_fields.values()}

# A metric as it is stored: a histogram has a series of its own for each of these.
SUFFIXES = ("", "_bucket", "_sum", "_count")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_to_a_file(page: str) -> None:
    """Anchors, too, are looked at by `make site`."""
    links = re.findall(
        r"\]\(([^)#\s]+)", re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    )
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (DOCS / page).parent.joinpath(link).resolve().exists()] == []


def test_the_first_page_leads_to_every_other_one() -> None:
    linked = set(re.findall(r"\]\(([\w/-]+\.md)", PAGES["index.md"]))
    assert linked == {
        page for page in PAGES if page.partition("/")[0] != "reference" and page != "index.md"
    } | {"reference/index.md"}


@pytest.mark.parametrize("page", ["tuning.md", "own-grafana.md", "kubernetes.md", "rights.md"])
def test_every_setting_and_metric_that_a_page_names_is_one(page: str) -> None:
    assert set(re.findall(r"\bCHECKPOINT_[A-Z0-9_]+\b", PAGES[page])) <= SETTINGS
    known = {f"glasspoint_{name}{suffix}" for name in METRICS for suffix in SUFFIXES}
    tables = {"glasspoint_identity", "glasspoint_caches", "glasspoint_crash_marks", "glasspoint_fences"}
    tables |= {"glasspoint_l1_journal", "glasspoint_set_aside", "glasspoint_retention"}
    users = {"glasspoint_chain", "glasspoint_tier", "glasspoint_sentinel"}
    # What a recording rule records has its level before it: `job_saver:glasspoint_…`.
    named = set(re.findall(r"(?<![:\w])glasspoint_[a-z0-9_]+\b", PAGES[page]))
    assert named <= known | tables | users


def test_every_public_name_is_in_the_api_reference() -> None:
    shown = {
        name
        for page, text in PAGES.items()
        if page.startswith("reference/")
        for name in re.findall(r"^::: glasspoint\.([\w.]+)$", text, re.MULTILINE)
    }
    assert {*glasspoint.__all__} - {"__version__"} <= shown
    assert "errors" in shown, "all of them"
    assert all(getattr(errors, name).__doc__ for name in errors.__all__)


def test_the_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = dict(
        re.findall(r"^([\w.-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    )
    table = PAGES["compatibility.md"].partition("## Versions of packages")[2].partition("## ")[0]
    rows = re.findall(r"^\| ([\w.-]+) \| ([\w.]+) \| ([\w.]+) \|$", table, re.MULTILINE)
    assert rows[0] == ("package", "lowest", "tested")
    assert rows[1:] == [
        (requirement.name, str(requirement.specifier).removeprefix(">="), pins[requirement.name])
        for requirement in map(Requirement, project["dependencies"])
    ]


# ------------------------------------------------------------------ adr/

DECISIONS = sorted(page for page in PAGES if page.startswith("adr/"))


@pytest.mark.parametrize("page", DECISIONS)
def test_a_decision_is_short_and_says_what_was_rejected_and_how_it_is_proved(page: str) -> None:
    number = int(page.removeprefix("adr/")[:2])
    assert PAGES[page].startswith(f"# {number}. ")
    headings = re.findall(r"^## (.+)$", PAGES[page], re.MULTILINE)
    assert headings == ["Context", "Decision", "Rejected", "Consequences", "How it is proved"]
    assert len(PAGES[page].splitlines()) <= 60


@pytest.mark.parametrize("page", DECISIONS)
def test_a_decision_names_tests_that_there_are(page: str) -> None:
    proof = PAGES[page].partition("## How it is proved")[2]
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)`", proof)
    assert named
    assert [name for name in named if not list((ROOT / "tests").rglob(name))] == []


def test_decisions_are_numbered_without_a_gap_and_in_the_order_of_the_first_page() -> None:
    assert [int(page.removeprefix("adr/")[:2]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    titles = {page: PAGES[page].partition(". ")[2].partition("\n")[0] for page in DECISIONS}
    linked = re.findall(r"\[([^\]]+)\]\((adr/[\w-]+\.md)\)", PAGES["index.md"])
    assert linked == [(titles[page], page) for page in DECISIONS]


# ------------------------------------------------------------------ own-grafana.md


def test_the_labels_to_keep_are_all_that_metrics_have() -> None:
    paragraph = PAGES["own-grafana.md"].partition("of single metrics either:")[2].strip().partition("\n\n")[0]
    labels = {label for metric in METRICS.values() for label in metric.labels}
    assert set(re.findall(r"`(\w+)`", paragraph)) == labels | {"le"}


@pytest.mark.slow
def test_the_shell_of_the_page_makes_rules_for_the_operator_and_links_the_runbooks(tmp_path: Path) -> None:
    assert "$ glasspoint dashboards --output monitoring\n" in blocks("own-grafana.md", "console")[0]
    written = command("dashboards", "--output", str(tmp_path / "monitoring"))
    assert written.returncode == 0, written.stderr
    for script in blocks("own-grafana.md", "sh"):
        subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=True, timeout=60)
    for name in ("recording", "alerts"):
        rule = yaml.safe_load((tmp_path / f"glasspoint-{name}.yaml").read_text("utf-8"))
        assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
        assert rule["metadata"]["name"] == f"glasspoint-{name}"
        original = (ROOT / "dashboards" / "prometheus" / f"{name}.yml").read_text("utf-8")
        assert rule["spec"] == yaml.safe_load(original)
    alerts = (tmp_path / "monitoring" / "prometheus" / "alerts.yml").read_text("utf-8")
    assert "runbook_url: https://docs.example/runbooks.html#glasspoint" in alerts
    assert "runbook_url: docs/" not in alerts


def test_the_scrape_is_named_so_that_alerts_watch_it_from_the_first_on() -> None:
    scrape, provider = (yaml.safe_load(block) for block in blocks("own-grafana.md", "yaml"))
    [jobs] = re.findall(
        r'up\{job=~"([^"]+)"\}', (ROOT / "dashboards/prometheus/recording.yml").read_text("utf-8")
    )
    assert all(re.fullmatch(jobs, each["job_name"]) for each in scrape["scrape_configs"])
    assert provider["providers"][0]["type"] == "file"


@needs_promtool
def test_the_queries_of_the_tuning_page_are_understood(tmp_path: Path) -> None:
    queries = re.findall(r"`([^`]+\[5m\][^`]*)`", PAGES["tuning.md"])
    assert len(queries) == 2
    assert_understood(queries, tmp_path)
