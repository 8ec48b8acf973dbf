"""Merges the metric files of dead processes, so that a scrape does not slow down with each worker that ends.

In the Prometheus client's `PROMETHEUS_MULTIPROC_DIR`, each process keeps its counters, histograms and
summaries in files of its own. Their values still count after the process has ended, so the client never
removes them. This module adds them up in one file for each kind (`counter_merged.db`), which the client reads
like any other.

Each scrape takes a lock: no scrape sees half of a merge, and no two processes merge at once. A merge:

1. Write the sums to `<kind>_merged.tmp`, which no process reads.
2. Put the plan, a list of the merged files, into the directory by renaming. From now on the merge counts.
3. Replace the sums of the last merge by the new ones, remove the merged files, and then remove the plan.

If the process is killed before step 2, nothing has changed. If it is killed later, the next scrape repeats
step 3.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import struct
import threading
from collections import defaultdict
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import mmap_dict, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = ["alone", "merge"]

_KINDS = ("counter", "histogram", "summary")

_LOCK = "glasspoint_merge.lock"
_PLAN = "glasspoint_merge.json"

_UNREADABLE = (RuntimeError, ValueError, struct.error)

_MmapedDict = cast("Any", mmap_dict.MmapedDict)


class _InThisProcess:
    """The part of the lock that keeps the threads of this process apart."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def renew(self) -> None:
        """Make a new lock in a child after a fork: a thread of the parent may hold the old one."""
        self.lock = threading.Lock()


_in_this_process = _InThisProcess()
os.register_at_fork(after_in_child=_in_this_process.renew)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Let every other scrape and merge of a directory wait, in all processes.

    Raises:
        OSError: The directory is gone.
    """
    with _in_this_process.lock, open(path / _LOCK, "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # released if this process ends; a child does not inherit it
        yield


def merge(path: Path, lives: Callable[[int], bool]) -> None:
    """Merge the files of dead processes. Call it inside `alone`.

    It merges nothing if the client does not name its files by process ids: other names do not show which
    process is dead.

    Args:
        path: The directory.
        lives: Returns whether the process with an id is alive.

    Raises:
        OSError: The directory is gone, or full. Nothing is lost then, or counted twice.
    """
    _finish(path)
    for kind in _KINDS:
        _sums(path, kind).unlink(missing_ok=True)
    if not _are_named_by_process_id(path):
        return
    merged: list[str] = []
    for kind in _KINDS:
        dead = [file for file in path.glob(f"{kind}_*.db") if _is_dead(file, lives)]
        merged += _add_up(path, kind, dead)
    if merged:
        plan = path / f"{_PLAN}.tmp"
        plan.write_text(json.dumps(merged), "ascii")
        plan.replace(path / _PLAN)
        _finish(path)


def _are_named_by_process_id(path: Path) -> bool:
    look = getattr(values.ValueClass, "_MmapedValue__check_for_pid_change", None)
    known = inspect.getclosurevars(look).nonlocals if look is not None else {}
    return known.get("process_identifier") is os.getpid or any(path.glob(f"*_{os.getpid()}.db"))


def _is_dead(file: Path, lives: Callable[[int], bool]) -> bool:
    pid = file.stem.rpartition("_")[2]
    return pid.isdigit() and not lives(int(pid))


def _add_up(path: Path, kind: str, files: Iterable[Path]) -> list[str]:
    """Write the sums of some files, and of the last merge; return the names of the files."""
    added = []
    sums: defaultdict[str, float] = defaultdict(float)
    for file in files:
        with suppress(*_UNREADABLE):  # the file stays, and the client reports what is wrong with it
            _add(sums, _values(file))
            added.append(file.name)
    if added:
        before = path / f"{kind}_merged.db"
        if before.exists():
            _add(sums, _values(before))
        with closing(_MmapedDict(str(_sums(path, kind)))) as file_of_sums:
            for key, value in sums.items():
                file_of_sums.write_value(key, value, 0.0)
    return added


def _values(file: Path) -> list[tuple[str, float]]:
    if not file.stat().st_size:
        return []
    return [(key, value) for key, value, *_ in _MmapedDict.read_all_values_from_file(str(file))]


def _add(sums: defaultdict[str, float], values: Iterable[tuple[str, float]]) -> None:
    for key, value in values:
        sums[key] += value


def _finish(path: Path) -> None:
    """Carry out the plan, if there is one. A plan that was carried out in part before does no harm."""
    plan = path / _PLAN
    try:
        merged = json.loads(plan.read_text("ascii"))
    except FileNotFoundError:
        return
    for kind in _KINDS:
        with suppress(FileNotFoundError):
            _sums(path, kind).replace(path / f"{kind}_merged.db")
    for name in merged:
        (path / name).unlink(missing_ok=True)
    plan.unlink()


def _sums(path: Path, kind: str) -> Path:
    return path / f"{kind}_merged.tmp"
