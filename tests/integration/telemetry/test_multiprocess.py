"""Several workers, one `/metrics`: PROMETHEUS_MULTIPROC_DIR under uvicorn and gunicorn."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

import preforked
from addresses import address_in
from glasspoint.telemetry.catalogue import METRICS
from live import Page
from multiprocess_app import POOL_SIZE
from places import DOCS, SUPPORT

TESTS = SUPPORT

DOC = (DOCS / "telemetry.md").read_text("utf-8")
[GUNICORN_CONF] = re.findall(r"^```python\n(# gunicorn.conf.py.*?)^```", DOC, re.DOTALL | re.MULTILINE)

POOL_OF_BOTH = f'glasspoint_pool_max_connections{{saver="default"}} {float(2 * POOL_SIZE)}'

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Served:
    """Two workers, and what they say."""

    def __init__(self, url: str, master: psutil.Process) -> None:
        self.url = url
        self.master = master
        self.directory = Path()
        self.own_page: str | None = None
        """Where the master serves the metrics, if it does."""

    def get(self, path: str, **headers: str) -> httpx.Response:
        """On a connection of its own, so that either worker may take it."""
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=30).raise_for_status()

    def is_up(self) -> bool:
        try:
            return self.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def families(self, *names: str) -> dict[str, Metric]:
        """All families, or those of some samples alone."""
        asked = "&".join(f"name[]=glasspoint_{name}" for name in names)
        text = self.get(f"/metrics?{asked}", Accept="application/openmetrics-text; version=1.0.0").text
        return {family.name: family for family in parse_openmetrics(text)}

    def values(self, *names: str) -> Values:
        return {
            (sample.name.removeprefix("glasspoint_"), frozenset(sample.labels.items())): sample.value
            for family in self.families(*names).values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.values(name).get((name, frozenset({"saver": "default", **labels}.items())))


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = monotonic() + seconds
    while not (answer := condition()):
        assert monotonic() < deadline, f"still not so after {seconds} s"
        sleep(0.05)
    return answer


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[Served]:
    """Serve `multiprocess_app` until the end, which must be a clean one."""
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "multiprocess_app:app"],
        cwd=TESTS,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    said: list[str] = []
    reader = ThreadPoolExecutor(1)
    try:
        address = address_in(server.stderr, said)
        reader.submit(said.extend, server.stderr)
        served = Served(address, psutil.Process(server.pid))
        until(served.is_up, 120.0)  # bound before any worker listens: each first imports everything
        yield served
    finally:
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        processes[0].resume()  # a test that fails may have left it suspended
        server.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=30)
        for process in left:
            process.kill()
        server.wait()
        reader.shutdown()
        server.stderr.close()
    assert not left
    assert "Traceback" not in "".join(said), "".join(said)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[preforked.Source]:
    with preforked.that_count_together(tmp_path_factory.mktemp("nothing")) as source:
        yield source


@pytest.fixture(params=["uvicorn", "gunicorn"])
def served(
    request: pytest.FixtureRequest, source: preforked.Source, tmp_path: Path, database: str, redis_url: str
) -> Iterator[Served]:
    """By uvicorn, and by gunicorn as the docs configure it, whose workers are forked from a loaded app."""
    environment = {**os.environ, "POSTGRES_URL": database, "REDIS_URL": redis_url, "TMPDIR": str(tmp_path)}
    environment["GLASSPOINT_LIVE"] = "1"
    own_page = None
    if request.param == "uvicorn":
        environment["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-", dir=tmp_path)
        command = ["uvicorn", "--workers", "2", "--port", "0"]
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        own_page = f"http://127.0.0.1:{port}/metrics"
        config = tmp_path / "gunicorn.conf.py"
        config.write_text(GUNICORN_CONF.replace("9100", port), "utf-8")
        command = ["gunicorn", "--preload", "--no-control-socket", "-c", str(config), "-b", "127.0.0.1:0"]
    with running(command, environment) as found:
        found.own_page = own_page
        [directory] = tmp_path.glob("metrics-*")
        found.directory = directory
        yield found
    left = page_of_a_process_alone(source, directory)
    assert "# TYPE glasspoint_pool_max_connections gauge" in left
    assert "glasspoint_pool_max_connections{" not in left, "gauges go with their process"
    assert "glasspoint_l1_reads_total{" in left, "counters stay"
    assert not list(directory.glob("gauge_*.db"))


def page_of_a_process_alone(source: preforked.Source, directory: Path) -> str:
    """What a process that has no savers serves of the others."""
    code = """if True:
        import urllib.request
        from glasspoint.telemetry.http import serve_telemetry
        with serve_telemetry(0) as server:
            print(urllib.request.urlopen(f"{server.url}/metrics").read().decode())
    """
    variables = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    answer = preforked.run(code, env=variables, timeout=60, source=source)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def counted(served: Served) -> dict[str, float]:
    """What all workers have done, by a counter and by a histogram."""
    totals = dict.fromkeys(("reads", "timed reads", "puts", "puts in buckets", "writes"), 0.0)
    durations = [
        f"{of}_duration_seconds_{part}" for of in ("read", "operation") for part in ("bucket", "sum", "count")
    ]
    asked = served.values("l1_reads_total", "write_through_total", *durations)
    for (name, labels), value in asked.items():
        put = {("operation", "put"), ("outcome", "ok")} <= labels
        for key, belongs in {
            "reads": name == "l1_reads_total",
            "timed reads": name == "read_duration_seconds_count" and ("served_by", "l1") in labels,
            "puts": name == "operation_duration_seconds_count" and put,
            "puts in buckets": name == "operation_duration_seconds_bucket"
            and {("le", "+Inf")} <= labels
            and put,
            "writes": name == "write_through_total" and ("operation", "put_writes") in labels,
        }.items():
            totals[key] += value if belongs else 0
    return totals


def look_at_the_live_page(served: Served, turn: Callable[[], int], pids: set[int]) -> int:
    """Check that the page of one worker shows both, while turns are made. The feed is that of the worker that
    serves the page, which says so. Return its process id."""
    with Page(served.url) as page:
        until(lambda: page.of("hello"))
        hello = page.newest("hello")
        assert hello["multiprocess"]
        [other] = pids - {hello["pid"]}

        def both() -> bool:
            turn()
            each = page.newest("figures").get("each", {})
            return all(
                each.get(name, {}).get("writes", {}).get("rate") for name in ("here", f"process {other}")
            )

        until(both)
        figures = page.newest("figures")
        assert figures["each"].keys() == {"here", f"process {other}"}
        assert figures["sum"]["pool"]["max"] == 2 * POOL_SIZE
        assert [each["pool"]["max"] for each in figures["each"].values()] == [POOL_SIZE] * 2
        assert figures["sum"]["tier"] == "cached"
        until(lambda: page.calls)
    return int(hello["pid"])


def test_two_workers_are_one_for_a_scrape_and_on_the_live_page(served: Served, database: str) -> None:
    if served.own_page is not None:  # no worker has been scraped: they write their figures down by themselves
        own_page = served.own_page
        for line in (POOL_OF_BOTH, 'glasspoint_storage_bytes{saver="default",table="checkpoints"}'):
            until(lambda line=line: line in httpx.get(own_page).text)  # type: ignore[misc]
    turns: Counter[int] = Counter()
    begun = time()

    def turn() -> int:
        pid: int = served.get(f"/turn/{sum(turns.values())}-{monotonic()}").json()["pid"]
        return pid

    def counted_turn() -> int:
        turns[pid := turn()] += 1
        return pid

    with ThreadPoolExecutor(8) as callers:
        while len(turns) < 2 or min(turns.values()) < 5:
            turns.update(callers.map(lambda _: turn(), range(16)))
    survivor = look_at_the_live_page(served, counted_turn, set(turns))
    total = sum(turns.values())

    # Every family of the contract, and no other of ours.
    families = served.families()
    expected = {
        f"glasspoint_{name}".removesuffix("_total").removesuffix("_info"): metric.kind
        for name, metric in METRICS.items()
    }
    assert {name: family.type for name, family in families.items()} == expected
    assert all(family.documentation.endswith(".") for family in families.values())

    # Counters and histograms: exactly what was done, whoever did it.
    done = dict.fromkeys(("reads", "timed reads", "puts", "puts in buckets", "writes"), float(total))
    assert counted(served) == done

    # Gauges: what adds up is added up, what is one thing for all is not.
    until(lambda: served.value("pool_max_connections") == 2 * POOL_SIZE)
    assert served.value("active_tier", tier="cached") == 1
    assert served.value("active_tier", tier="redis") == 0
    assert served.value("l1_breaker_open") == 0
    assert served.value("l1_journal_pending") == 0
    assert served.value("pool_requests_waiting") == 0
    assert served.value("telemetry_dropped_total", what="metrics") == 0
    for operation in ("get_tuple", "put"):
        last = served.value("last_success_timestamp_seconds", operation=operation)
        assert last is not None
        assert begun <= last <= time()
    until(lambda: (served.value("redis_pool_connections", state="idle") or 0) >= 2)
    with psycopg.connect(database) as conn:
        row = conn.execute("SELECT pg_total_relation_size('glasspoint_l1_journal')").fetchone()
    assert row is not None
    until(lambda: served.value("storage_bytes", table="glasspoint_l1_journal") == row[0])
    until(lambda: len(served.families("info")["glasspoint"].samples) == 1)
    [info] = served.families("info")["glasspoint"].samples
    assert info.value == 1
    assert set(info.labels) == {"saver", *METRICS["info"].labels}
    assert all(info.labels.values()), "the versions that became known later replace those that were not"

    text = served.get("/metrics?name[]=glasspoint_pool_max_connections&name[]=glasspoint_info").text
    names = {line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")}
    assert names == {"glasspoint_pool_max_connections", "glasspoint_info"}

    if served.own_page is not None:
        page = httpx.get(served.own_page).text
        assert f'glasspoint_l1_reads_total{{result="hit",saver="default"}} {float(total)}' in page
        assert POOL_OF_BOTH in page

    # Another worker makes a file just now.
    (served.directory / "counter_0.db").touch()
    assert counted(served) == done

    # A worker is killed, and its master does not notice yet.
    served.master.suspend()
    [victim] = turns.keys() - {survivor}  # a killed process does not write down which lines it has run
    os.kill(victim, signal.SIGKILL)
    until(lambda: psutil.Process(victim).status() == psutil.STATUS_ZOMBIE)
    assert served.value("pool_max_connections") == POOL_SIZE
    assert served.value("active_tier", tier="cached") == 1
    assert counted(served) == done
    assert not list(served.directory.glob(f"gauge_*_{victim}.db"))

    # Another one takes its place.
    served.master.resume()
    until(lambda: served.value("pool_max_connections") == 2 * POOL_SIZE)
    assert counted(served) == done
    until(lambda: {turn() for _ in range(8)} - {victim, survivor})


def run_alone(source: preforked.Source, **environment: str) -> subprocess.CompletedProcess[str]:
    code = """if True:
        import runpy, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # it forks
        runpy.run_module("multiprocess_alone", run_name="__main__", alter_sys=True)
    """
    variables = {**os.environ, **environment}
    return preforked.run(code, env=variables, timeout=100, is_taken_down=True, source=source)


def test_registries_share_the_files_and_forks_begin_afresh(
    source: preforked.Source, tmp_path: Path, database: str, redis_url: str
) -> None:
    servers = {"POSTGRES_URL": database, "REDIS_URL": redis_url}
    done = run_alone(source, PROMETHEUS_MULTIPROC_DIR=str(tmp_path), **servers)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.glob("gauge_*.db")), "the end of the process takes them along"


def test_a_directory_that_is_not_there_is_an_error_that_says_so(
    source: preforked.Source, tmp_path: Path
) -> None:
    done = run_alone(source, PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "none"))
    assert "ConfigurationError: PROMETHEUS_MULTIPROC_DIR names" in done.stderr
