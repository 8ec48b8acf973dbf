"""PROMETHEUS_MULTIPROC_DIR: the files of dead processes become few, and no count is lost or counted twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.values import MultiProcessValue

from glasspoint.telemetry import dead_processes
from glasspoint.telemetry.multiprocess import AllProcesses, _lives

BUCKETS = ("0.1", "1.0", "+Inf")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    write(tmp_path, os.getpid(), 1.0)
    return tmp_path


def ended() -> int:
    """Return the id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(scope="module")
def dead() -> int:
    return ended()


def write(directory: Path, pid: int | str, amount: float) -> None:
    """What the client writes down of a process that has done something so many times."""
    entries: dict[str, list[tuple[str, str, dict[str, str], float]]] = {
        "counter": [("done", "done_total", {"who": each}, amount) for each in ("a", "b")],
        "histogram": [
            *(("took", "took_bucket", {"le": le}, amount) for le in BUCKETS),
            ("took", "took_sum", {}, amount / 2),
        ],
        "summary": [("size", "size_count", {}, amount), ("size", "size_sum", {}, 3 * amount)],
        "gauge_max": [("high", "high", {}, amount)],
    }
    for kind, found in entries.items():
        file = MmapedDict(str(directory / f"{kind}_{pid}.db"))
        for metric, name, labels, value in found:
            key = mmap_key(metric, name, list(labels), list(labels.values()), "Help.")
            file.write_value(key, value, 0.0)
        file.close()


def page() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scrape shows of these metrics."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in AllProcesses().collect()
        if metric.name in ("done", "took", "size", "high")
        for sample in metric.samples
    }


def expected(total: float) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        ("done_total", (("who", "a"),)): total,
        ("done_total", (("who", "b"),)): total,
        ("took_bucket", (("le", "0.1"),)): total,
        ("took_bucket", (("le", "1.0"),)): 2 * total,
        ("took_bucket", (("le", "+Inf"),)): 3 * total,
        ("took_count", ()): 3 * total,
        ("took_sum", ()): total / 2,
        ("size_count", ()): total,
        ("size_sum", ()): 3 * total,
    }


def without_gauge(found: dict[Any, float]) -> dict[Any, float]:
    return {key: value for key, value in found.items() if key[0] != "high"}


def files(directory: Path) -> set[str]:
    return {file.name for file in directory.glob("*.db") if not file.name.startswith("gauge")}


MERGED = {"counter_merged.db", "histogram_merged.db", "summary_merged.db"}


def own() -> set[str]:
    return {f"{kind}_{os.getpid()}.db" for kind in ("counter", "histogram", "summary")}


def test_a_scrape_merges_what_dead_processes_have_left(directory: Path, dead: int) -> None:
    killed_early = ended()
    for round_ in range(1, 4):
        write(directory, dead, 10.0)
        (directory / f"counter_{killed_early}.db").touch()
        assert without_gauge(page()) == expected(1.0 + 10.0 * round_)
        assert files(directory) == MERGED | own()
    assert not list(directory.glob("*.tmp"))
    assert not list(directory.glob("*.json"))
    assert page()["high", ()] == 10.0, "a gauge that is not of the living alone stays"


def test_a_living_process_keeps_its_files(directory: Path, dead: int) -> None:
    write(directory, dead, 10.0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        write(directory, other.pid, 5.0)
        assert without_gauge(page()) == expected(16.0)
        assert f"counter_{other.pid}.db" in files(directory)
        other.communicate(b"\n")
    assert without_gauge(page()) == expected(16.0)
    assert files(directory) == MERGED | own()


class Killed(BaseException):
    """At this very moment."""


def test_a_process_that_is_killed_in_the_middle_of_a_merge_loses_nothing(
    directory: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step of it, and at each step of the merge that goes on from there."""
    left = 10**6

    def or_die(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*args, **options)

        return instead

    for name in ("replace", "unlink", "write_text"):
        monkeypatch.setattr(Path, name, or_die(getattr(Path, name)))
    monkeypatch.setattr(MmapedDict, "write_value", or_die(MmapedDict.write_value))

    def dies(steps: int) -> bool:
        nonlocal left
        left = steps
        try:
            with dead_processes.alone(directory):
                dead_processes.merge(directory, _lives)
        except Killed:
            return True
        finally:
            left = 10**6
        return False

    total, deaths, steps = 1.0, 0, 0
    while True:
        write(directory, dead, 10.0)
        total += 10.0
        died = dies(steps)
        dies(steps // 2)
        assert without_gauge(page()) == expected(total), steps
        if not died:
            break
        deaths, steps = deaths + 1, steps + 1
    assert deaths > 10
    assert files(directory) == MERGED | own()


SCRAPERS = """
import os
from prometheus_client import Counter
from glasspoint.telemetry.multiprocess import AllProcesses

start, go = os.pipe()
pids = []
for _ in range(3):
    if pid := os.fork():
        pids.append(pid)
        continue
    os.close(go)
    Counter("own", "Help.").inc()
    os.read(start, 1)
    found = []
    for _ in range(30):
        found += {s.value for m in AllProcesses().collect() if m.name == "done" for s in m.samples}
    os.write(1, f"{len(found)} {set(found)}\\n".encode())
    os._exit(0)
os.close(go)  # now all begin
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_scrapes_of_several_processes_merge_side_by_side(directory: Path) -> None:
    for _ in range(20):
        write(directory, ended(), 10.0)
    shown = subprocess.run([sys.executable, "-c", SCRAPERS], stdout=subprocess.PIPE, timeout=60, check=True)
    assert shown.stdout.decode() == "30 {201.0}\n" * 3
    assert without_gauge(page()) == expected(201.0)
    assert files(directory) == MERGED | own()


def test_files_that_are_not_named_by_process_ids_are_left_alone(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under uWSGI, where the client is told to use the number of the worker."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", MultiProcessValue(lambda: 7))
    write(tmp_path, dead, 10.0)
    assert without_gauge(page()) == expected(10.0)
    assert not files(tmp_path) & MERGED
    monkeypatch.setattr(values, "ValueClass", MultiProcessValue())
    assert without_gauge(page()) == expected(10.0)
    assert files(tmp_path) == MERGED
