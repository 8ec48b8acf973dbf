"""Reads the figures of all processes that a page shows, once a second for all pages together.

There are three kinds: this process; with `PROMETHEUS_MULTIPROC_DIR`, the other processes of that directory;
and peers, which are asked over HTTP.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from glasspoint.telemetry import multiprocess
from glasspoint.telemetry.figures import Change, Figures, Window, read_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from glasspoint.telemetry.live.peers import Peers

__all__ = ["HERE", "Processes"]

HERE = "here"
"""The name of this process."""

_MOST_SHOWN = 16
"""The number of processes of the directory that are shown each. The sum is that of all."""


_MOST_NAMES = 50
_LONGEST = 200


class Processes:
    """The processes that one hub shows."""

    def __init__(self, registry: Callable[[], CollectorRegistry | None]) -> None:
        """Read nothing yet.

        Args:
            registry: Returns the registry that the savers of this process report to.
        """
        self._registry = registry
        self._window = Window()
        self._here: Change | None = None
        self._windows: dict[int, Window] = {}
        self._each: dict[str, dict[str, Any]] = {}
        self._all: Change | None = None
        self._window_of_all = Window()

    def read(self) -> None:
        """Read this process, and the others of the directory, if there is one."""
        registry = self._registry()
        if registry is None:
            return
        if not multiprocess.is_on():
            self._here = self._all = self._window.add(read_registry(registry))
            self._each = {HERE: Figures.of(self._here).as_dict()}
            return
        self._all = self._window_of_all.add(read_registry(registry, source=multiprocess.AllProcesses()))
        found = multiprocess.each_process()
        own = os.getpid()
        if own in found:
            self._here = self._window.add(read_registry(registry, source=found.pop(own)))
        elif self._here is None:
            self._here = Window().add(read_registry(registry, source=CollectorRegistry()))
        shown = sorted(found)[:_MOST_SHOWN]
        self._windows = {pid: self._windows.get(pid) or Window() for pid in shown}
        # Read without our registry: the identity of this process is not that of another one.
        nothing = CollectorRegistry()
        changes = {HERE: self._here} | {
            f"process {pid}": self._windows[pid].add(read_registry(nothing, source=found[pid]))
            for pid in shown
        }
        figures = {name: Figures.of(each).as_dict() for name, each in changes.items()}
        # Others without savers are not shown: a master that has forked the workers, for example.
        self._each = {name: each for name, each in figures.items() if name == HERE or each["savers"]}

    def here(self) -> dict[str, Any] | None:
        """Return the figures of this process; `None` if nothing was read yet."""
        return self._each.get(HERE)

    def figures(self, peers: Peers, names: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the sum of all processes, and the figures of each.

        Args:
            peers: Reads peers.
            names: The peers that count.
        """
        assert self._here is not None
        assert self._all is not None
        each: dict[str, Any] = dict(self._each)
        changes = [self._all]
        for name in names:
            found = peers.latest(name)
            if isinstance(found, Change):
                changes.append(found)
                each[name] = _bounded(Figures.of(found).as_dict())
            else:
                each[name] = {"error": found}
        is_alone = len(changes) == 1 and self._all is self._here
        return each[HERE] if is_alone else _bounded(Figures.of(*changes).as_dict()), each


def _bounded(figures: Any) -> Any:
    """Return figures with few and short texts, whatever names a peer has sent."""
    if isinstance(figures, str):
        return figures[:_LONGEST]
    if isinstance(figures, dict):
        return {key[:_LONGEST]: _bounded(value) for key, value in islice(figures.items(), _MOST_NAMES)}
    return [_bounded(each) for each in figures[:_MOST_NAMES]] if isinstance(figures, list) else figures
