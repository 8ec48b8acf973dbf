"""A real Prometheus (Debian's package `prometheus`) that scrapes what a test serves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

PROMETHEUS = shutil.which("prometheus")

needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus (Debian's package of that name) is not installed"
)

START_SECONDS = 60.0


class Prometheus:
    """Its HTTP API; what it answers is under `data`."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10)

    def get(self, path: str, **params: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, promql: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=promql)["result"]
        return result

    def wait_for(self, promql: str, *, seconds: float = START_SECONDS) -> list[dict[str, Any]]:
        """Ask until there is an answer. Prometheus has nothing to be notified by."""
        deadline = monotonic() + seconds
        while not (found := self.query(promql)):
            assert monotonic() < deadline, f"still no answer to {promql} after {seconds} s"
            sleep(0.2)
        return found

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._client.close()


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes `host:port` four times a second, exemplars too, until the end."""
    assert PROMETHEUS is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    scrape = {"job_name": "glasspoint", "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"}, "scrape_configs": [scrape]}
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config), "utf-8")
    log = (folder / "prometheus.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        server = Prometheus(f"http://{address}")
        try:
            deadline = monotonic() + START_SECONDS
            while not server.is_ready():
                assert process.poll() is None, (folder / "prometheus.log").read_text("utf-8")
                assert monotonic() < deadline, "Prometheus does not become ready"
                sleep(0.05)
            yield server
        finally:
            server.close()
            process.terminate()
