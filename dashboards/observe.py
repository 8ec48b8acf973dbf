"""`make observe`: what stands behind the boards, without Docker.

A PostgreSQL and a Redis out of wheels, conversations (`glasspoint traffic`), the exporters of both servers,
and a Prometheus that scrapes them with the stack's own rules. Prometheus and the exporters are Debian's
packages `prometheus`, `prometheus-postgres-exporter` and `prometheus-redis-exporter`. All of it runs in the
foreground and is gone after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
import yaml

from glasspoint.cli.parts import end_in_order_on_signals
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

RULES = Path(__file__).with_name("prometheus")
PACKAGES = ("prometheus", "prometheus-postgres-exporter", "prometheus-redis-exporter")

TRAFFIC = {"CHECKPOINT_CACHE_TTL": "10", "CHECKPOINT_AUDIT_RATIO": "0.05"}
"""What the conversations run with: entries are forgotten soon and audited often, so that one sees it."""

_POSTGRES_INTERVAL = "3s"
"""How often PostgreSQL's exporter is asked, if not as in the stack: it thinks for over a second before it
says that its server is away."""

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


def missing() -> list[str]:
    """Return the Debian packages that are not installed."""
    return [package for package in PACKAGES if shutil.which(package) is None]


@dataclass
class Backing:
    """Everything, started when it is entered and gone when it is left.

    Attributes:
        prometheus_port, traffic_port: Where Prometheus and `/metrics` listen, on loopback; 0: any free port.
        traffic: Environment variables for the conversations (`CHECKPOINT_…`, `OTEL_…`).
        people: How many talk.
        talks: Whether they begin at once; otherwise when `start_traffic` is called.
        scrape_interval: How often everything is scraped and every rule evaluated; as in the stack if `None`.
    """

    prometheus_port: int = 0
    traffic_port: int = 0
    traffic: Mapping[str, str] = field(default_factory=lambda: dict(TRAFFIC))
    people: int = 6
    talks: bool = True
    scrape_interval: str | None = None
    postgres: EmbeddedPostgres = field(default_factory=EmbeddedPostgres)
    redis: EmbeddedRedis = field(default_factory=EmbeddedRedis)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(TemporaryDirectory(prefix="glasspoint-observe-")))
            stack.enter_context(self.postgres)
            stack.enter_context(self.redis)
            self._running: list[subprocess.Popen[bytes]] = []
            stack.callback(self._stop_all)
            self.traffic_port = self.traffic_port or _free_port()
            self.prometheus_port = self.prometheus_port or _free_port()
            self._start_exporters()
            if self.talks:
                self.start_traffic()
            self._start_prometheus()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def prometheus_url(self) -> str:
        return f"http://127.0.0.1:{self.prometheus_port}"

    @property
    def alerts_url(self) -> str:
        """The page of rules and alerts: Debian's package has only the old pages, below `/classic`."""
        pages = [f"{self.prometheus_url}{path}" for path in ("/alerts", "/classic/alerts")]
        return next((page for page in pages if _answers(page)), f"{self.prometheus_url}/api/v1/alerts")

    @property
    def live_url(self) -> str:
        return self.metrics_url.replace("/metrics", "/live")

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.traffic_port}/metrics"

    def start_traffic(self, **variables: str) -> None:
        """Start the conversations, with these variables besides those that are always set."""
        urls = {"POSTGRES_URL": self.postgres.url, "REDIS_URL": self.redis.url}
        options = ["--port", str(self.traffic_port), "--people", str(self.people)]
        self._traffic = self._start(
            [sys.executable, "-m", "glasspoint.cli.main", "traffic", *options],
            {"GLASSPOINT_LIVE": "1", **urls, **self.traffic, **variables},
            "traffic",
        )
        self._wait_for(self.metrics_url.replace("/metrics", "/healthz"), self._traffic)

    def stop_traffic(self) -> None:
        """Stop the conversations."""
        self._stop(self._traffic)

    def wait(self) -> None:
        """Wait until the conversations end, which they do only by force."""
        self._traffic.wait()

    def _start_exporters(self) -> None:
        postgres, redis = _free_port(), _free_port()
        socket_folder = self.postgres.url.partition("host=")[2].partition("&")[0]
        dsn = f"host={socket_folder} user=postgres dbname=postgres sslmode=disable"
        exporters = [
            self._start(
                [PACKAGES[1], f"--web.listen-address=127.0.0.1:{postgres}"],
                {"DATA_SOURCE_NAME": dsn},
                "postgres-exporter",
            ),
            self._start(
                [
                    PACKAGES[2],
                    f"-redis.addr={self.redis.url}",
                    f"-web.listen-address=127.0.0.1:{redis}",
                ],
                {},
                "redis-exporter",
            ),
        ]
        self._targets = {
            "glasspoint-postgres": f"127.0.0.1:{postgres}",
            "glasspoint-redis": f"127.0.0.1:{redis}",
        }
        for exporter, target in zip(exporters, self._targets.values(), strict=True):
            self._wait_for(f"http://{target}/metrics", exporter)

    def _start_prometheus(self) -> None:
        self._targets |= {
            "glasspoint": f"127.0.0.1:{self.traffic_port}",
            "prometheus": f"127.0.0.1:{self.prometheus_port}",
        }
        config = self._folder / "prometheus.yml"
        written = local_config(RULES / "prometheus.yml", self._targets, self.scrape_interval, self._folder)
        config.write_text(json.dumps(written), "utf-8")
        process = self._start(
            [
                PACKAGES[0],
                f"--config.file={config}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.prometheus_port}",
                "--enable-feature=exemplar-storage",
            ],
            {},
            "prometheus",
        )
        self._wait_for(f"{self.prometheus_url}/-/ready", process)

    def _start(
        self, command: Sequence[str], variables: Mapping[str, str], name: str
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            # A process group of its own: Ctrl-C is for us, and we end the others in order.
            process = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=log, stderr=log, process_group=0
            )
        self._running.append(process)
        return process

    def _wait_for(self, url: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if _answers(url):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                logs = "\n".join(path.read_text("utf-8")[-1500:] for path in self._folder.glob("*.log"))
                raise RuntimeError(f"{url} does not answer:\n{logs}")
            time.sleep(0.05)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        self._running.remove(process)
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _stop_all(self) -> None:
        for process in reversed(tuple(self._running)):
            self._stop(process)


def local_config(
    stack: Path, targets: Mapping[str, str], interval: str | None, folder: Path
) -> dict[str, Any]:
    """Return the stack's Prometheus configuration for servers on this machine.

    Args:
        stack: The stack's configuration file.
        targets: Job -> address; jobs that are not here are left out.
        interval: How often to scrape, and to evaluate every rule; as the stack does if `None`.
        folder: Where rules with another interval are written.
    """
    config: dict[str, Any] = yaml.safe_load(stack.read_text("utf-8"))
    config["rule_files"] = [
        str(_local_rules(stack.with_name(name), interval, folder)) for name in config["rule_files"]
    ]
    jobs = [job for job in config["scrape_configs"] if job["job_name"] in targets]
    for job in jobs:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
        if interval:
            slowest = _POSTGRES_INTERVAL if job["job_name"] == "glasspoint-postgres" else interval
            job |= {"scrape_interval": slowest, "scrape_timeout": slowest}
    config["scrape_configs"] = jobs
    config.pop("alerting", None)  # there is no Alertmanager
    return config


def _local_rules(file: Path, interval: str | None, folder: Path) -> Path:
    if interval is None:
        return file
    rules = yaml.safe_load(file.read_text("utf-8"))
    for group in rules["groups"]:
        group["interval"] = interval
    written = folder / file.name
    written.write_text(json.dumps(rules), "utf-8")  # JSON is YAML
    return written


def observe(
    prometheus_port: Annotated[int, typer.Option(help="Where Prometheus listens; 0: any free port.")] = 9090,
    port: Annotated[int, typer.Option(help="Where /metrics is served; 0: any free port.")] = 9464,
    people: Annotated[int, typer.Option(min=1, help="How many talk at once.")] = 6,
) -> None:
    """Start everything behind the boards on this machine, until Ctrl-C."""
    end_in_order_on_signals()
    if lacking := missing():
        typer.echo(f"Not installed: {', '.join(lacking)}. They are Debian's packages of that name.", err=True)
        raise typer.Exit(1)
    try:
        with Backing(prometheus_port, port, people=people) as backing:
            typer.echo(f"Live page   {backing.live_url}")
            typer.echo(f"Prometheus  {backing.prometheus_url}")
            typer.echo(f"Alerts      {backing.alerts_url}")
            typer.echo(f"Metrics     {backing.metrics_url}")
            typer.echo(f"PostgreSQL  {backing.postgres.url}")
            typer.echo(f"Redis       {backing.redis.url}")
            typer.echo(
                "A Grafana of yours shows the boards: import dashboards/grafana/*.json and choose this"
            )
            typer.echo("Prometheus as the data source. Ctrl-C ends it all.")
            backing.wait()
    except KeyboardInterrupt:
        typer.echo("\nEverything that was started is gone again.")


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


if __name__ == "__main__":
    typer.run(observe)
