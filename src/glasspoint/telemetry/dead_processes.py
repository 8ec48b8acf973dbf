"""The files of dead processes become one, so that a scrape does not take longer with each worker that ends.

In the Prometheus client's `PROMETHEUS_MULTIPROC_DIR` a process keeps its counters, histograms and summaries
in files of its own. They count after its end, too, so nobody removes them. Here they are added up, in one
file for each kind (`counter_merged.db`), which the client reads like any other.

Each scrape takes a lock, so that no scrape sees half of a merge, and no two processes merge at once. A merge:

1. The sums are written to `<kind>_merged.tmp`, which nobody reads.
2. The plan, a list of what was added up, is put into the directory by renaming. From now on the merge counts.
3. The sums replace those of the last merge, what was added up is removed, and then the plan.

If the process is killed before step 2, nothing has happened. After it, the next scrape does step 3 again.
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
        """Begin anew in a child: a thread of the parent may hold the lock."""
        self.lock = threading.Lock()


_in_this_process = _InThisProcess()
os.register_at_fork(after_in_child=_in_this_process.renew)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep every other scrape and merge of a directory waiting, in all processes.

    Raises:
        OSError: The directory is gone.
    """
    with _in_this_process.lock, open(path / _LOCK, "ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)  # gone with this process, and not inherited by a child
        yield


def merge(path: Path, lives: Callable[[int], bool]) -> None:
    """Merge the files of dead processes. Call it while `alone`.

    Nothing is merged if the client was told to name its files otherwise than by process ids: nobody can tell
    then which process is dead.

    Args:
        path: The directory.
        lives: Whether a process lives.

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
        with suppress(*_UNREADABLE):  # it stays, and the client says what is wrong with it
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
    """Do what a plan says, if one is there: once more, if a process was killed while it did so."""
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
