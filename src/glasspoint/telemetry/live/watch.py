"""Knows the telemetry objects that report to one registry, and attaches observers to them while needed.

While no page is open, a saver's calls have no observer of the live page, except for rare events.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary, WeakSet

from glasspoint.telemetry import multiprocess, thread_ids
from glasspoint.telemetry.events import BreakerChanged, Observer
from glasspoint.telemetry.live.timeline import Timeline, line_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.events import Event, SaverStatus, Telemetry

__all__ = ["Watch"]


class Watch:
    """The telemetry objects of one registry."""

    guard: ClassVar[threading.Lock] = threading.Lock()
    _of: ClassVar[WeakKeyDictionary[CollectorRegistry, Watch]] = WeakKeyDictionary()
    _of_the_process: ClassVar[Watch | None] = None

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Watch:
        """Return the watch of a registry. With several processes, all registries of a process share one."""
        with cls.guard:
            watch = cls._of.get(registry)
            if watch is None:
                if multiprocess.is_on():
                    watch = cls._of_the_process = cls._of_the_process or cls()
                cls._of[registry] = watch = watch or cls()
            return watch

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._lock = threading.Lock()
        self._telemetry: WeakSet[Telemetry] = WeakSet()
        self._make: Callable[[Telemetry], Observer] | None = None
        _watches.add(self)

    def observer(self, saver_name: str) -> Observer:
        """Return the observer that a saver's telemetry has from its beginning."""
        return _RareEvents(self, saver_name)

    def attach(self, make: Callable[[Telemetry], Observer]) -> None:
        """Attach an observer to every telemetry object of the registry, also to later ones.

        Args:
            make: Makes the observer of one telemetry object.
        """
        with self._lock:
            self._make = make
            for each in list(self._telemetry):
                each.attach((make(each),))

    def detach(self) -> None:
        """Detach the observers."""
        with self._lock:
            self._make = None
            for each in list(self._telemetry):
                each.attach(())

    def thread_ids(self) -> str:
        """Return how the telemetry objects show thread ids; what hides most, if they differ."""
        with self._lock:
            known = [each.observers for each in self._telemetry]
        ways = {getattr(each, "thread_ids", None) for observers in known for each in observers}
        return next((way for way in ("none", "hashed", "plain") if way in ways), thread_ids.choose(None))

    def join(self, telemetry: Telemetry) -> None:
        """Remember a telemetry object for as long as it lives."""
        with self._lock:
            self._telemetry.add(telemetry)
            if self._make is not None:
                telemetry.attach((self._make(telemetry),))

    def forget_the_parent(self) -> None:
        """In a child after a fork, stop what the parent's pages have asked for."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self.detach()
        self.timeline.forget_the_parent()


class _RareEvents(Observer):
    """Puts the rare events of one saver on the timeline. The events of every call are not among them."""

    def __init__(self, watch: Watch, saver_name: str) -> None:
        self._watch = watch
        self._saver = saver_name

    def joined(self, telemetry: Telemetry) -> None:
        self._watch.join(telemetry)

    def emitted(self, event: Event) -> None:
        if isinstance(event, BreakerChanged) and event.is_probe:
            return  # an open breaker probes Redis every few seconds
        line = line_of(event)
        if line is not None:
            self._watch.timeline.add(*line, saver=self._saver)

    def opened(self, status: SaverStatus) -> None:
        if status.active:
            self._watch.timeline.add("saver", "info", f"saver opened, tier {status.tier}", saver=self._saver)

    def closed(self, status: SaverStatus) -> None:
        if status.active:
            self._watch.timeline.add("saver", "info", f"saver closed, tier {status.tier}", saver=self._saver)


_watches: WeakSet[Watch] = WeakSet()


def _after_fork_in_child() -> None:
    Watch.guard = threading.Lock()
    for each in list(_watches):
        each.forget_the_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
