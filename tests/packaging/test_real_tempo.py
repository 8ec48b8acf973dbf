"""A real Tempo with the stack's configuration finds what boards and docs ask, and draws each server once.

Opt-in: this file is collected only where the environment has `TEMPO_URL`, the base URL of a Tempo that runs
with `dashboards/tempo/tempo.yml`. Spans go to port 4318 of its host, or to `TEMPO_OTLP_URL`. Its metrics
generator writes to a Prometheus on port 9090 of that host, or at `TEMPO_PROMETHEUS_URL`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from command_line import glasspoint
from glasspoint.trace.otlp import spans_of
from real_prometheus import Prometheus
from traced_story import Story, traced_story
from traceql import Asked, asked, selected

TEMPO_URL = os.environ.get("TEMPO_URL", "").rstrip("/")
if not TEMPO_URL:  # the file was named on the command line
    pytest.skip("TEMPO_URL is not set", allow_module_level=True)
SERVICE = f"glasspoint-demo-{uuid.uuid4().hex[:8]}"

# A Tempo of others may leave the newest 30 s out of its searches; the generator collects every 15 s.
PATIENCE_SECONDS = 90.0


def beside_tempo(variable: str, port: int) -> str:
    """The URL in a variable, or a port of Tempo's host."""
    return os.environ.get(variable) or str(httpx.URL(TEMPO_URL).copy_with(port=port, path="/")).rstrip("/")


class Tempo:
    """Tempo's HTTP API, and the spans that this run has sent."""

    def __init__(self, client: httpx.Client, story: Story, started: int) -> None:
        self._client = client
        self.story = story
        self._started = started

    def search(self, query: str) -> tuple[set[tuple[str, str]], Counter[str]]:
        """Search, and leave out the traces of others.

        Returns:
            The ids of the spans that the result shows, and trace id -> how many spans matched.
        """
        parameters: dict[str, Any] = {
            "q": query,
            "start": self._started - 5,
            "end": int(time.time()) + 5,
            "limit": 1000,
            "spss": 100,
        }
        response = self._client.get("/api/search", params=parameters)
        assert response.status_code == 200, f"{query}: {response.text}"
        ours = {span.trace_id for span in self.story.spans}
        shown, matched = set(), Counter[str]()
        for trace in response.json()["traces"]:
            trace_id = trace["traceID"].zfill(32)
            if trace_id in ours:
                for spans in trace["spanSets"]:
                    matched[trace_id] += spans["matched"]
                    shown |= {(trace_id, span["spanID"].zfill(16)) for span in spans["spans"]}
        return shown, matched

    def spans_in(self, trace_id: str) -> set[tuple[str, str]]:
        """Return the ids of the spans of a trace."""
        response = self._client.get(f"/api/v2/traces/{trace_id}", headers={"Accept": "application/json"})
        assert response.status_code == 200, response.text
        return {(span.trace_id, span.span_id) for span in spans_of(response.json())}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Ask until it is so. Tempo has nothing to be notified by."""
    deadline = monotonic() + PATIENCE_SECONDS
    while not condition():
        assert monotonic() < deadline, f"after {PATIENCE_SECONDS} s still not so: {what}"
        sleep(0.25)


@pytest.fixture(scope="module")
def tempo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempo]:
    started = int(time.time())
    story = traced_story(
        tmp_path_factory.mktemp("spans"),
        SERVICE,
        OTEL_EXPORTER_OTLP_ENDPOINT=beside_tempo("TEMPO_OTLP_URL", 4318),
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    sent = monotonic()
    with httpx.Client(base_url=TEMPO_URL, timeout=30) as client:
        tempo = Tempo(client, story, started)
        every_trace = {span.trace_id for span in story.spans}
        wait_until(lambda: set(tempo.search("{ }")[1]) == every_trace, "every trace is found by a search")
        sys.stdout.write(f"All traces were found {monotonic() - sent:.1f} s after the last span was sent.\n")
        yield tempo


@pytest.mark.parametrize("query", asked(), ids=lambda each: f"{each.where}: {each.text}")
def test_a_query_finds_what_it_promises(query: Asked, tempo: Tempo) -> None:
    text = query.about(tempo.story.conversation, tempo.story.trace_id)
    promised = selected(text, tempo.story.spans)
    shown, matched = tempo.search(text)
    sys.stdout.write(f"{text}: {matched.total()} spans in {len(matched)} traces\n")
    assert promised
    assert matched == Counter(trace_id for trace_id, _ in promised)
    assert shown <= promised
    assert shown == promised or max(matched.values()) > 100


def test_the_only_traces_of_a_conversation_are_its_turns(tempo: Tempo) -> None:
    _, matched = tempo.search(f'{{ resource.service.name = "{SERVICE}" }}')
    assert set(matched) == set(tempo.story.turns)
    assert len(matched) == 7


def test_a_trace_is_whole_by_its_id(tempo: Tempo) -> None:
    for trace_id in tempo.story.turns:
        recorded = {(each.trace_id, each.span_id) for each in tempo.story.spans if each.trace_id == trace_id}
        assert tempo.spans_in(trace_id) == recorded


def test_glasspoint_trace_shows_from_tempo_what_it_shows_from_files(tempo: Tempo) -> None:
    def shown(*source: str) -> Any:
        printed = glasspoint("trace", tempo.story.conversation, "--json", *source)
        assert printed.returncode == 0, printed.stderr
        return json.loads(printed.stdout)

    from_files = shown(*(text for file in tempo.story.files for text in ("--file", str(file))))
    for since in ("1h", "30d"):
        assert shown("--tempo", TEMPO_URL, "--since", since) == from_files
    assert {turn["trace_id"] for turn in from_files["turns"]} >= set(tempo.story.turns)


def test_the_service_graph_has_redis_once_and_one_postgresql(tempo: Tempo) -> None:
    clients = [span for span in tempo.story.of_demo if span.kind == "client"]
    calls = Counter(span.text("server.address") for span in clients)
    prometheus = Prometheus(beside_tempo("TEMPO_PROMETHEUS_URL", 9090))

    def edges() -> dict[str, int]:
        found = prometheus.query(f'traces_service_graph_request_total{{client="{SERVICE}"}}')
        assert {each["metric"]["connection_type"] for each in found} <= {"database"}
        return {each["metric"]["server"]: int(float(each["value"][1])) for each in found}

    try:
        wait_until(lambda: edges() == calls, f"the service graph has these calls: {calls}")
    finally:
        sys.stdout.write(f"{edges()}\n")
        prometheus.close()
    assert len(calls) == 2
