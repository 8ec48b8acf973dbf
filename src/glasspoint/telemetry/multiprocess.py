"""Serves one `/metrics` for several processes, with the Prometheus client's `PROMETHEUS_MULTIPROC_DIR`.

If that variable is set, the client keeps all values in files in that directory, a set of files for each
process. The process that is scraped adds up the files of all. That is enough for counters and histograms. But
figures that are read at scrape time are in the memory of their process. So each process also writes these
figures to gauges: when a saver is opened or closed, every few seconds, and when it is scraped itself.

A scrape also merges the files of dead processes: see `dead_processes`.

A gauge cannot be removed from such a file. When its figure is gone, it is set to 0 if the gauges of all
processes are added up, and otherwise to -1, which `AllProcesses` leaves out.

The files know a metric by its name alone, not by its registry. So a process has one set of families, whatever
registries its savers report to.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter as Tally
from contextlib import suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Literal, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from glasspoint.errors import ConfigurationError
from glasspoint.telemetry import dead_processes
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.collectors import READ_AT_SCRAPE, SaverCollector
from glasspoint.telemetry.events import failures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from glasspoint.telemetry.events import SaverStatus

__all__ = ["AllProcesses", "OneProcess", "SharedSaverCollector", "directory", "each_process", "is_on"]

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# The figures that add up. Of the others, the largest of all live processes is shown.
_ADDED_UP = {"pool_connections", "pool_max_connections", "pool_requests_waiting", "redis_pool_connections"}
_COUNTERS = ("pool_connections_lost_total", "telemetry_dropped_total")

_PUBLISH_EVERY_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.1

# The sizes of the tables are read only if `/metrics` was scraped within this time.
_SCRAPED_LATELY_SECONDS = 600.0
_SCRAPED = "glasspoint_scraped"


def is_on() -> bool:
    """Tell whether the Prometheus client works with files, which it decides when it is imported."""
    return bool(getattr(values.ValueClass, "_multiprocess", False))


def directory() -> Path:
    """Return the directory of the files.

    Raises:
        ConfigurationError: There is no such directory, or this process cannot write to it.
    """
    path = os.environ.get(VARIABLE) or os.environ.get(VARIABLE.lower()) or ""
    if not path or not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{VARIABLE} names {path!r}, which is no directory that this process can write to: make it, and "
            "empty it before the first worker starts."
        )
    return Path(path)


class SharedSaverCollector(SaverCollector):
    """The figures of this process's savers, written to files for the process that is scraped."""

    def __init__(self) -> None:
        directory()
        super().__init__()
        self._gauges = {name: _gauge(name) for name in READ_AT_SCRAPE if name not in _COUNTERS}
        self._counters = {name: _counter(name) for name in _COUNTERS}
        self._counted = Tally[tuple[str, tuple[str, ...]]]()
        self._written: dict[tuple[str, tuple[str, ...]], Gauge] = {}
        self._publishing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._soon = threading.Event()
        _this_process.append(self)
        # Held during a fork. Otherwise a child could start with a locked lock that no thread there releases:
        # this one, or the client's, which is taken while this one is held.
        os.register_at_fork(
            before=self._publishing.acquire,
            after_in_parent=self._publishing.release,
            after_in_child=self._forked,
        )
        atexit.register(_bury_oneself)

    @property
    def families(self) -> list[Gauge | Counter]:
        """The families to be registered."""
        return [*self._gauges.values(), *self._counters.values()]

    def add(self, saver_name: str, status: SaverStatus) -> None:
        """Watch a saver for as long as it lives."""
        super().add(saver_name, status)
        with self._publishing:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._keep_publishing, name="glasspoint-metrics", daemon=True
                )
                self._thread.start()
        self._soon.set()

    def remove(self, saver_name: str, status: SaverStatus) -> None:
        """Stop watching a saver. The connections that its pool has lost stay counted."""
        super().remove(saver_name, status)
        self.publish()

    def publish(self) -> None:
        """Write all current figures to the files."""
        with self._publishing:
            self._publish()

    # ---------------------------------------------------------------- helpers

    def _publish(self) -> None:
        before, self._written = self._written, {}
        for metric, labels, value in self.figures(storage=_scraped_lately()):
            if metric in _COUNTERS:
                self._counters[metric].labels(*labels).inc(value - self._counted[metric, labels])
                self._counted[metric, labels] = int(value)
            else:
                gauge = self._written[metric, labels] = self._gauges[metric].labels(*labels)
                gauge.set(value)
        for metric, labels in before.keys() - self._written.keys():
            before[metric, labels].set(0 if metric in _ADDED_UP else -1)

    def _keep_publishing(self) -> None:
        """Publish every few seconds, until no saver is left."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            # Short pauses at first: a saver is added when its opening begins, and is complete when it ends.
            pause = min(2 * pause, _PUBLISH_EVERY_SECONDS)
            if self._soon.wait(pause):
                self._soon.clear()
                pause = _FIRST_PAUSE_SECONDS
            with self._publishing:
                try:
                    self._publish()
                except OSError:
                    pass  # the directory is gone; /metrics reports that
                except Exception as exc:
                    failures.report("the thread that publishes metrics", exc, "metrics")
                if not self.watched:
                    self._thread = None
                    return

    def _forked(self) -> None:
        """In a child after a fork, forget the parent's thread. The next `publish` clears its figures."""
        self._soon = threading.Event()
        self._thread = None
        self._counted.clear()
        self._publishing.release()


_this_process: list[SharedSaverCollector] = []


class AllProcesses:
    """The metrics of all processes of the directory, Glasspoint's and others', for `/metrics`.

    The client's functions that serve a registry accept it as one.
    """

    def collect(self) -> Iterator[Metric]:
        """Add up the files of all processes, after this process has written its own."""
        path = directory()
        (path / _SCRAPED).touch()
        for own in _this_process:
            own.publish()
        with dead_processes.alone(path):
            _bury_the_dead(path)
            dead_processes.merge(path, _lives)
            found = _read(path.glob("*.db"))
        yield from _shown(found)

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return a registry of these names only, for `/metrics?name[]=…`."""
        registry = CollectorRegistry(auto_describe=True)
        registry.register(self)
        return registry.restricted_registry(names)


class OneProcess:
    """The metrics of one process of the directory. Of all processes, `AllProcesses` has to be read before."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Take the files of the process."""
        self._files = list(files)

    def collect(self) -> Iterator[Metric]:
        """Read the files of the process."""
        yield from _shown(_read(self._files))


def each_process() -> dict[int, OneProcess]:
    """Return the live processes of the directory, by process id."""
    files: dict[int, list[Path]] = {}
    for file in directory().glob("*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit():
            files.setdefault(int(pid), []).append(file)
    return {pid: OneProcess(own) for pid, own in files.items() if _lives(pid)}


def _shown(read: Iterable[Metric]) -> Iterator[Metric]:
    """Complete what was read from files: families without samples, and figures that are gone."""
    found = {metric.name: metric for metric in read}
    for described in METRICS.values():
        name = f"glasspoint_{described.name}"
        if described.kind == "info":
            yield _as_info(described.help, found.pop(name, None))
            continue
        name = name.removesuffix("_total")
        metric = found.pop(name, None) or Metric(name, described.help, described.kind)
        metric.samples = [sample for sample in metric.samples if sample.value >= 0]
        yield metric
    yield from found.values()


def _counter(name: str) -> Counter:
    metric = METRICS[name]
    return Counter(f"glasspoint_{name}", metric.help, ("saver", *metric.labels), registry=None)


def _gauge(name: str) -> Gauge:
    metric = METRICS[name]
    labels = ("saver", *metric.labels)
    mode: Literal["livesum", "livemax"] = "livesum" if name in _ADDED_UP else "livemax"
    return Gauge(f"glasspoint_{name}", metric.help, labels, multiprocess_mode=mode, registry=None)


def _as_info(help_: str, gauge: Metric | None) -> Metric:
    """Turn a gauge from the files into an info metric, because the client stores no info metrics there."""
    info = InfoMetricFamily("glasspoint", help_)
    for sample in gauge.samples if gauge is not None else ():
        if sample.value > 0:
            info.add_sample("glasspoint_info", sample.labels, 1)
    return info


def _read(paths: Iterable[Path]) -> list[Metric]:
    files = []
    for file in paths:
        with suppress(FileNotFoundError):  # a dead process's file was removed at this very moment
            if file.stat().st_size:  # the client fails on an empty file, which was made at this very moment
                files.append(str(file))
    return list(cast("Any", MultiProcessCollector.merge)(files))


def _scraped_lately() -> bool:
    try:
        return time() - (directory() / _SCRAPED).stat().st_mtime < _SCRAPED_LATELY_SECONDS
    except (OSError, ConfigurationError):
        return False


def _bury_the_dead(path: Path) -> None:
    """Remove the gauges of dead processes: uvicorn has no hook for that, and `kill -9` runs none."""
    for pid in {file.stem.rpartition("_")[2] for file in path.glob("gauge_live*.db")}:
        if pid.isdigit() and not _lives(int(pid)):
            _bury(int(pid))


def _bury(pid: int) -> None:
    with suppress(OSError, ConfigurationError):  # another process was faster, or the directory is gone
        cast("Any", mark_process_dead)(pid, str(directory()))


def _bury_oneself() -> None:
    _bury(os.getpid())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    try:  # a zombie counts as dead, even if its parent has not noticed yet
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return True
    return not stat.rpartition(")")[2].startswith(" Z")
