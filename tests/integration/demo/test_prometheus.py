"""What a real Prometheus has of a real demo after it has scraped it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from time import time
from urllib.parse import urlsplit

import pytest

from command_line import running_glasspoint
from glasspoint.telemetry.catalogue import METRICS
from real_prometheus import Prometheus, needs_prometheus, scraping

pytestmark = needs_prometheus

# OpenMetrics names a counter without the end that its sample has, and an info likewise.
FAMILIES = {
    f"glasspoint_{name}".removesuffix("_total").removesuffix("_info"): metric.kind
    for name, metric in METRICS.items()
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped a demo in the midst of its traffic."""
    with running_glasspoint("demo", "--port", "0") as demo:
        url = demo.wait_for(r"Metrics: (http://\S+)/metrics")[1]
        demo.wait_for(r"^[1-9]\d* turns, .* hits ")
        with scraping(urlsplit(url).netloc, tmp_path_factory.mktemp("prometheus")) as server:
            server.wait_for('glasspoint_l1_reads_total{result="hit"} > 0')
            yield server
        assert demo.end(signal.SIGINT) == (0, "")


def test_the_demo_is_up(prometheus: Prometheus) -> None:
    assert [each["value"][1] for each in prometheus.query("up")] == ["1"]


def test_every_family_of_the_contract_is_there(prometheus: Prometheus) -> None:
    known = prometheus.get("targets/metadata", match_target='{job="glasspoint"}')
    found = {each["metric"]: each["type"] for each in known if each["metric"].startswith("glasspoint")}
    assert found == FAMILIES


def test_exemplars_lead_to_traces(prometheus: Prometheus) -> None:
    now = time()
    for family in ("operation_duration_seconds", "write_through_duration_seconds"):
        prometheus.wait_for(f"glasspoint_{family}_count")
        series = prometheus.get(
            "query_exemplars", query=f"glasspoint_{family}_bucket", start=str(now - 600), end=str(now + 600)
        )
        ids = [exemplar["labels"]["trace_id"] for each in series for exemplar in each["exemplars"]]
        assert ids, family
        assert all(re.fullmatch("[0-9a-f]{32}", trace_id) for trace_id in ids)


@pytest.mark.parametrize("name", METRICS)
def test_its_queries_run(prometheus: Prometheus, name: str) -> None:
    for query in METRICS[name].queries:
        prometheus.query(query.text)


def test_the_hit_ratio_is_a_share(prometheus: Prometheus) -> None:
    (query,) = (each for each in METRICS["l1_reads_total"].queries if "share" in each.question)
    [answer] = prometheus.wait_for(f"({query.text.replace('5m', '10s')}) > 0")
    assert float(answer["value"][1]) <= 1
