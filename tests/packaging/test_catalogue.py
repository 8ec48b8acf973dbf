"""The catalogue is the contract: docs, queries and the code say what it says."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path
from typing import Any

import opentelemetry.semconv._incubating.attributes as semconv_incubating
import opentelemetry.semconv.attributes as semconv_stable
import pytest
from openinference.semconv.trace import OpenInferenceSpanKindValues, SpanAttributes
from opentelemetry.semconv._incubating.attributes.db_attributes import DbSystemNameValues
from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import GenAiOperationNameValues

from glasspoint.telemetry.catalogue import METRICS, SPANS
from glasspoint.telemetry.tracing import _STATEMENTS
from places import ROOT
from promtool import assert_understood, needs_promtool
from span_contract import group_of

SRC = ROOT / "src" / "glasspoint"


def test_the_tables_in_the_docs_are_as_generated() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    page = (ROOT / "docs" / "telemetry.md").read_text("utf-8")
    assert page.count("<!-- generated: ") == 4
    assert page == generate["renewed"](page), "make generate"


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_can_be_asked_for(name: str) -> None:
    assert any(f"glasspoint_{name}" in query.text for query in METRICS[name].queries)


def test_queries_name_only_metrics_that_there_are() -> None:
    parts = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    known = {f"glasspoint_{name}" for name in METRICS}
    known |= {
        f"glasspoint_{name}{part}" for name, metric in METRICS.items() for part in parts.get(metric.kind, ())
    }
    asked = {
        name
        for metric in METRICS.values()
        for query in metric.queries
        for name in re.findall(r"glasspoint_\w+", query.text)
    }
    assert asked <= known


@needs_promtool
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    assert_understood((query.text for metric in METRICS.values() for query in metric.queries), tmp_path)


def test_every_step_in_the_code_is_in_the_catalogue_and_can_be_traced() -> None:
    named = {
        found
        for path in SRC.rglob("*.py")
        for found in re.findall(r'\bstep\(\s*"([a-z_.0-9]+)"', path.read_text("utf-8"))
    }
    scripts = {"l1": SRC / "l1" / "scripts", "redis": SRC / "history" / "scripts"}
    named |= {
        f"{tier}.{path.stem}"
        for tier, folder in scripts.items()
        for path in folder.glob("*.lua")
        if path.stem not in ("prelude", "reign")
    }
    named |= {f"l2.{statement}" for statement in _STATEMENTS}
    steps = {f"checkpoint.{name}" for name in named} | {"checkpoint.l2.acquire", "checkpoint.background"}
    calls = next(group for group in SPANS if "get_tuple" in group.names and group.kind == "internal")
    assert steps == {group.prefix + name for group in SPANS[1:] if group is not calls for name in group.names}
    assert {name for name in steps if name.startswith("checkpoint.l2.")} - {"checkpoint.l2.acquire"} == {
        f"checkpoint.l2.{statement}" for statement in _STATEMENTS
    }


def test_no_two_spans_have_one_name() -> None:
    names = [group.prefix + name for group in SPANS for name in group.names]
    assert len(names) == len(set(names))
    assert group_of("checkpoint.nonsense") is None


def test_every_group_of_spans_has_a_question() -> None:
    asked: list[Any] = [query for group in SPANS for query in group.queries]
    assert all(group.queries for group in SPANS)
    assert len({query.question for query in asked}) == len(asked)


# ------------------------------------------------------------------ the semantic conventions

OTHERS_NAMES = ("db.", "server.", "gen_ai.", "error.", "session.")
"""What begins so is defined by OpenTelemetry's conventions."""


ONLY_MOVED = "Deprecated: Moved to the [OpenTelemetry GenAI semantic conventions repository]"
"""These names stand as they were, in a repository that has no package for Python."""


def defined_by_opentelemetry() -> dict[str, bool]:
    """Each attribute of the newest conventions, and whether it is deprecated, as their package has them."""
    found: dict[str, bool] = {}
    for package in (semconv_stable, semconv_incubating):
        for module in pkgutil.iter_modules(package.__path__):
            loaded = importlib.import_module(f"{package.__name__}.{module.name}")
            source = inspect.getsource(loaded)
            for name, value in vars(loaded).items():
                if name.isupper() and isinstance(value, str):
                    said = (
                        source.partition(f'\n{name}: Final = "{value}"\n"""')[2].partition('"""')[0].strip()
                    )
                    is_deprecated = said.startswith("Deprecated:") and not said.startswith(ONLY_MOVED)
                    found[value] = found.get(value, True) and is_deprecated
    return found


def test_the_attributes_of_others_are_those_of_the_newest_conventions() -> None:
    known = defined_by_opentelemetry()
    assert known["db.name"], "a deprecated one is recognised"
    ours = {name for group in SPANS for name in group.attributes}
    ours |= {"gen_ai.conversation.id", "error.type"}
    for name in sorted(ours):
        if name.startswith(OTHERS_NAMES):
            assert name in known, f"{name} is not in the conventions"
            assert not known[name], f"{name} is deprecated"
    required = {
        "db.system.name",
        "db.namespace",
        "db.operation.name",
        "db.collection.name",
        "db.operation.batch.size",
        "db.response.status_code",
        "server.address",
        "server.port",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.agent.name",
    }
    assert required <= ours


def test_the_values_of_others_are_those_of_the_newest_conventions() -> None:
    assert {"redis", "postgresql"} <= {each.value for each in DbSystemNameValues}
    assert "invoke_agent" in {each.value for each in GenAiOperationNameValues}
    openinference = {each.value for each in OpenInferenceSpanKindValues}
    assert "AGENT" in openinference
    ours = {name for group in SPANS for name in group.attributes}
    assert {
        SpanAttributes.INPUT_VALUE,
        SpanAttributes.INPUT_MIME_TYPE,
        SpanAttributes.OUTPUT_VALUE,
        SpanAttributes.OUTPUT_MIME_TYPE,
        SpanAttributes.OPENINFERENCE_SPAN_KIND,
        SpanAttributes.SESSION_ID,
    } <= ours
