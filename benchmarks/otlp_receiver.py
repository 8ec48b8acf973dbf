"""A collector for benchmarks: a process of its own that takes what an OTLP exporter posts over HTTP.

It answers at once and keeps the bodies; only when it is asked (`GET /`) it reads them, and says how many
spans there were since the last time. So it takes as little as possible of the machine that is measured.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@contextmanager
def receiving() -> Iterator[str]:
    """Run a receiver for the length of the block; its URL."""
    argv = [sys.executable, __file__]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def take_count(url: str) -> int:
    """How many spans of calls arrived since the last time: not what a background task asks of a server."""
    with urllib.request.urlopen(url) as answer:
        return int(answer.read())


class _Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the connection is kept, as a collector does
    bodies: list[bytes] = []  # noqa: RUF012 - one for all requests

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(b"")

    def do_GET(self) -> None:
        spans = sum(map(_spans_in, self.bodies))
        self.bodies.clear()
        self._answer(str(spans).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _spans_in(body: bytes) -> int:
    request = ExportTraceServiceRequest.FromString(body)
    return sum(
        of_scope.scope.name == "glasspoint" or bool(span.parent_span_id)
        for of_resource in request.resource_spans
        for of_scope in of_resource.scope_spans
        for span in of_scope.spans
    )


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), _Receiver) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()  # until whoever asked for it ends, however
