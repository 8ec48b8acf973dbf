"""A stand-in for Grafana Tempo: it answers as Tempo's documentation of its HTTP API says, and as users of it
have seen it do (ids in base64, enumerations as words, `batches` in answers of `/api/traces`)."""

from __future__ import annotations

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

QUERY = re.compile(
    r'\{ span\.gen_ai\.conversation\.id = ("(?:[^"\\\n]|\\.)*")'
    r'(?: \|\| span\.gen_ai\.conversation\.id = ("(?:[^"\\\n]|\\.)*"))? \}'
)
LONGEST_RANGE_SECONDS = 168 * 3600


@dataclass
class Tempo:
    """What it holds, how it behaves, and what it was asked.

    Attributes:
        traces: By id: OTLP's `resourceSpans` of each.
        is_old: It knows no `/api/v2`.
        status, content, content_type: Answered to everything, if set.
        partial: Traces of which it gives only a part, and says so.
        hangs: It takes a request and does not answer.
    """

    url: str = ""
    traces: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    is_old: bool = False
    status: int = 0
    content: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    location: str = ""
    partial: str = ""
    lost: str = ""
    hangs: bool = False
    searches: list[dict[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def hold(self, requests: list[dict[str, Any]]) -> None:
        """Take what an exporter has sent."""
        for of_resource in (each for request in requests for each in request["resourceSpans"]):
            for of_scope in of_resource["scopeSpans"]:
                for span in of_scope["spans"]:
                    held = self.traces.setdefault(span["traceId"], [])
                    held.append(of_resource | {"scopeSpans": [of_scope | {"spans": [_as_tempo(span)]}]})

    def answer(self, path: str) -> tuple[int, Any]:
        parts = urlsplit(path)
        if parts.path == "/api/search":
            return self._search({key: value[0] for key, value in parse_qs(parts.query).items()})
        found = re.fullmatch(r"/api(/v2)?/traces/([0-9a-f]{32})", parts.path)
        if (
            found is None
            or (found[1] and self.is_old)
            or found[2] not in self.traces
            or found[2] == self.lost
        ):
            return 404, None
        if not found[1]:
            return 200, {"batches": self.traces[found[2]]}
        told = (
            {"status": "PARTIAL", "message": "Trace exceeds maximum size"} if found[2] == self.partial else {}
        )
        return 200, {"trace": {"resourceSpans": self.traces[found[2]]}, "metrics": {}, **told}

    def _search(self, asked: dict[str, str]) -> tuple[int, Any]:
        self.searches.append(asked)
        query = QUERY.fullmatch(asked["q"])
        if query is None:
            return 400, f"invalid TraceQL query: {asked['q']}"
        # Without a range, Tempo looks only at what is not older than a few minutes.
        start, end = int(asked["start"]), int(asked["end"])
        if end - start > LONGEST_RANGE_SECONDS:
            return 400, "range specified by start and end exceeds 168h0m0s"
        wanted = {json.loads(each) for each in query.groups() if each}
        found = []
        for trace_id, held in self.traces.items():
            spans = [each["scopeSpans"][0]["spans"][0] for each in held]
            first = min(spans, key=lambda span: int(span["startTimeUnixNano"]))
            named = {
                pair["value"].get("stringValue")
                for span in spans
                for pair in span["attributes"]
                if pair["key"] == "gen_ai.conversation.id"
            }
            if wanted & named and start <= int(first["startTimeUnixNano"]) // 10**9 < end:
                about = {"traceID": trace_id.lstrip("0"), "startTimeUnixNano": first["startTimeUnixNano"]}
                found.append(about | {"rootTraceName": first["name"], "durationMs": 1})
        return 200, {"traces": found[: int(asked["limit"])], "metrics": {"totalBlocks": 1}}


def _as_tempo(span: dict[str, Any]) -> dict[str, Any]:
    kinds = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
    codes = ["UNSET", "OK", "ERROR"]
    return _base64_ids(span) | {
        "kind": f"SPAN_KIND_{kinds[span['kind']]}",
        "status": {"code": f"STATUS_CODE_{codes[span['status'].get('code', 0)]}"},
        "links": [_base64_ids(link) for link in span.get("links", [])],
        "attributes": span.get("attributes", []),
    }


def _base64_ids(found: dict[str, Any]) -> dict[str, Any]:
    ids = {key: found[key] for key in ("traceId", "spanId", "parentSpanId") if found.get(key)}
    return found | {key: base64.b64encode(bytes.fromhex(value)).decode() for key, value in ids.items()}


@contextmanager
def running_tempo() -> Iterator[Tempo]:
    """Let one run for the length of the block."""
    tempo = Tempo()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tempo.headers.append({name.lower(): value for name, value in self.headers.items()})
            if tempo.hangs:
                tempo.ended.wait(30)
                return
            status, found = (tempo.status, None) if tempo.status else tempo.answer(self.path)
            content = tempo.content if found is None else str(found).encode()
            kind = tempo.content_type
            if isinstance(found, dict):
                content, kind = json.dumps(found).encode(), "application/json"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if tempo.location:
                self.send_header("Location", tempo.location)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        tempo.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield tempo
        finally:
            tempo.ended.set()
            server.shutdown()
            thread.join()
