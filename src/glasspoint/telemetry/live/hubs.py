"""The hub: a thread that tells all open pages what is new, four times a second.

It begins with the first page, and ends half a minute after the last one has closed, so that a page that is
loaded again finds what it had. Meanwhile the recorder observes calls, and `recent` keeps turns. While the hub
does not run, nothing is recorded but the timeline.

All viewers share what was read and encoded. Each viewer has a queue, so the thread waits for none of them.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from time import monotonic, time
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

from glasspoint.telemetry.events import failures
from glasspoint.telemetry.live.processes import Processes
from glasspoint.telemetry.live.recorder import BATCH, Recorder
from glasspoint.telemetry.live.turns import CONVERSATIONS, recent
from glasspoint.telemetry.live.viewers import Viewer, encode, event
from glasspoint.telemetry.live.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.live.options import Live
    from glasspoint.telemetry.live.peers import Peers
    from glasspoint.telemetry.live.timeline import Level

__all__ = ["FEED", "HISTORY", "Hub", "Shown"]

FEED = 200
"""The number of calls that a page keeps, and that are shown in a second."""

HISTORY = 300
"""The number of figures that are kept: five minutes."""

_TICK_SECONDS = 0.25
_FIGURES_SECONDS = 1.0


class Shown(Protocol):
    """What one server serves: its `Site`."""

    live: Live
    peers: Peers

    def hello(self) -> dict[str, Any]:
        """Return what a page is told first."""
        ...

    def states(self) -> dict[str, str]:
        """Return the states of the actions, in words."""
        ...


class Hub:
    """Feeds the pages that show the savers of one registry."""

    linger_seconds: ClassVar[float] = 30.0
    """How long recording goes on after the last page has closed."""

    guard: ClassVar[threading.Lock] = threading.Lock()
    _of: ClassVar[WeakKeyDictionary[CollectorRegistry, Hub]] = WeakKeyDictionary()

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Hub:
        """Return the hub of a registry."""
        with cls.guard:
            hub = cls._of.get(registry)
            if hub is None:
                hub = cls._of[registry] = cls(registry)
            return hub

    def __init__(self, registry: CollectorRegistry) -> None:
        self.watch = Watch.of(registry)
        self._registry = ref(registry)
        self._lock = threading.Lock()
        self._viewers: dict[Shown, list[Viewer]] = {}
        self._keepers: set[Shown] = set()
        self._left_at = 0.0
        self._run: _Run | None = None
        _hubs.add(self)

    def mark(self, kind: str, text: str, level: Level = "info") -> None:
        """Put a line on the timeline.

        Args:
            kind: What it is about: `fault`, `story`, or another kind of the timeline.
            text: What happened, without content of conversations.
            level: `info`, `good`, `warning` or `error`.
        """
        self.watch.timeline.add(kind, level, text)

    def join(self, site: Shown, peers: Iterable[str], wake: Callable[[], object]) -> Viewer | None:
        """Add a viewer, and begin to record if it is the first. `hello` is in its queue at once.

        Args:
            site: What serves the page.
            peers: The names of the processes that it follows, beside this one.
            wake: Called in any thread when the viewer has something to take.

        Returns:
            The viewer; `None` if the site has as many as it may have.
        """
        viewer = Viewer(peers, wake)
        with self._lock:
            there = self._viewers.setdefault(site, [])
            if len(there) >= site.live.max_viewers:
                return None
            viewer.put(event("hello", 0, encode(site.hello())))
            there.append(viewer)
            self._running().welcome(site, viewer)
        return viewer

    def leave(self, site: Shown, viewer: Viewer) -> None:
        """Remove a viewer. May be called twice."""
        viewer.end()
        with self._lock:
            there = self._viewers.get(site, [])
            if viewer in there:
                there.remove(viewer)
                self._left_at = monotonic()

    def keep(self, site: Shown) -> None:
        """Record also while no page of a site is open, until `close`."""
        with self._lock:
            self._keepers.add(site)
            self._viewers.setdefault(site, [])
            self._running()

    def close(self, site: Shown, reason: str) -> None:
        """End all viewers of a site, and tell them why."""
        with self._lock:
            there = self._viewers.pop(site, [])
            self._keepers.discard(site)
            self._left_at = monotonic()
        for viewer in there:
            viewer.end(event("bye", 0, encode({"reason": reason})))

    def forget_the_parent(self) -> None:
        """In a child after a fork, forget the parent's viewers: they are connected to the parent."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        self._viewers = {}
        self._run = None

    # ---------------------------------------------------------------- for the thread

    def _running(self) -> _Run:
        if self._run is None:
            self._run = _Run(self)
        return self._run

    def viewers(self) -> list[tuple[Shown, list[Viewer]]]:
        """Return the viewers of every site that had one since the hub runs."""
        with self._lock:
            return [(site, list(there)) for site, there in self._viewers.items()]

    def registry(self) -> CollectorRegistry | None:
        """Return the registry, if anything else refers to it."""
        return self._registry()

    def ends(self, run: _Run) -> bool:
        """Tell whether a run ends now: nobody looks, and nobody has for half a minute."""
        with self._lock:
            is_new = self._run is run
            is_watched = any(self._viewers.values()) or monotonic() - self._left_at < self.linger_seconds
            if is_new and not is_watched:
                run.detach()
            if is_new and (is_watched or self._keepers) and self._registry() is not None:
                return False
            if is_new:
                self._run = None
                self._viewers = {}
            run.end()
            return True


class _Said(NamedTuple):
    """An event without its number."""

    name: str
    text: str

    @classmethod
    def of(cls, name: str, data: object) -> _Said:
        return cls(name, encode(data))


class _Run:
    """What the hub has while it runs. Only its thread uses it, after it was made."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._recorder = Recorder()
        self._is_attached = False
        self._newcomers: deque[tuple[Shown, Viewer]] = deque()
        self._number = 0
        self._timeline_to = 0
        self._figures_at = 0.0
        self._processes = Processes(hub.registry)
        self._before: dict[str, Any] | None = None
        self._history: dict[Shown, deque[str]] = {}
        self._calls: deque[dict[str, Any]] = deque(maxlen=FEED)
        self._threads: OrderedDict[str, int] = OrderedDict()
        self._changed_threads: set[str] = set()
        self._soon = threading.Event()
        recent.open()
        _, self._timeline_to = hub.watch.timeline.since(0)
        threading.Thread(target=self._keep_telling, name="glasspoint-live", daemon=True).start()

    def welcome(self, site: Shown, viewer: Viewer) -> None:
        """Attach the recorder, and let the thread send a newcomer what there is. With the hub's lock."""
        if not self._is_attached:
            self._is_attached = True
            self._hub.watch.attach(self._recorder.observer)
        self._newcomers.append((site, viewer))
        self._soon.set()

    def detach(self) -> None:
        """Detach the recorder. With the hub's lock."""
        if self._is_attached:
            self._is_attached = False
            self._hub.watch.detach()

    def end(self) -> None:
        """Record nothing more. With the hub's lock."""
        self.detach()
        recent.close()

    # ---------------------------------------------------------------- the thread

    def _keep_telling(self) -> None:
        while True:
            self._soon.wait(_TICK_SECONDS)
            self._soon.clear()
            try:
                self._tick()
            except Exception as exc:
                failures.report("the thread of the live page", exc, "events")
            if self._hub.ends(self):
                return

    def _tick(self) -> None:
        # In this order: who comes in between is a newcomer, and none of everybody, until the next tick.
        everybody = self._hub.viewers()
        newcomers = [self._newcomers.popleft() for _ in range(len(self._newcomers))]
        new = {id(viewer) for _, viewer in newcomers}
        old = [(site, [viewer for viewer in there if id(viewer) not in new]) for site, there in everybody]
        self._send(old, self._news())
        for site, viewer in newcomers:
            self._send([(site, [viewer])], self._all(site, viewer))
        now = monotonic()
        if now - self._figures_at >= _FIGURES_SECONDS:
            # A pause of the process is not made up for.
            late = now - self._figures_at > 2 * _FIGURES_SECONDS
            self._figures_at = now if late else self._figures_at + _FIGURES_SECONDS
            self._tell_figures(everybody)
            self._send(everybody, self._conversations_that_changed())

    def _news(self) -> list[_Said]:
        said = []
        calls, skipped = self._recorder.take()
        if calls or skipped:
            self._calls.extend(calls)
            self._count_threads(calls)
            said.append(_Said.of("calls", {"calls": calls, "skipped": skipped}))
        lines, self._timeline_to = self._hub.watch.timeline.since(self._timeline_to)
        if lines:
            said.append(_Said.of("timeline", {"lines": lines}))
        return said

    def _all(self, site: Shown, viewer: Viewer) -> list[_Said]:
        """Return what a newcomer is sent: all that was there before its first news."""
        lines, _ = self._hub.watch.timeline.since(0, at_most=self._timeline_to)
        said = [_Said.of("timeline", {"lines": lines})]
        if viewer.peers == tuple(site.live.peers or ()):
            history = ",".join(self._history.get(site, ()))
            said.insert(0, _Said("history", f'{{"figures":[{history}]}}'))
        if self._calls:
            said.append(_Said.of("calls", {"calls": list(self._calls)[-BATCH:], "skipped": 0}))
        conversations = recent.all()
        known = {each["thread"] for each in conversations}
        conversations += self._without_turns(each for each in self._threads if each not in known)
        if conversations:
            said.append(_Said.of("conversations", {"conversations": conversations[-CONVERSATIONS:]}))
        return said

    # ---------------------------------------------------------------- figures

    def _tell_figures(self, viewers: Sequence[tuple[Shown, list[Viewer]]]) -> None:
        registry = self._hub.registry()
        if registry is None:
            return
        self._processes.read()
        here = self._processes.here()
        if here is None:
            return
        is_first = self._before is None
        self._compare(here)
        at = round(time(), 3)
        for site, there in viewers:
            everybody = tuple(site.live.peers or ())
            site.peers.ask(everybody)
            states = site.states()
            # The history is that of a page that follows everybody, which is what a page does by default.
            for peers in {everybody, *(viewer.peers for viewer in there)}:
                total, each = self._processes.figures(site.peers, peers)
                data = {"at": at, "sum": total, "each": each, "actions": states}
                if peers == everybody and not is_first:  # the first has no rates
                    kept = self._history.setdefault(site, deque(maxlen=HISTORY))
                    kept.append(encode({"at": at, "sum": data["sum"]}))
                self._send(
                    [(site, [viewer for viewer in there if viewer.peers == peers])],
                    [_Said.of("figures", data)],
                )
        for gone in self._history.keys() - dict(viewers).keys():
            del self._history[gone]

    def _compare(self, here: dict[str, Any]) -> None:
        """Put on the timeline what no event tells, but the figures do."""
        before, self._before = self._before, here
        if before is None:
            return
        add = self._hub.watch.timeline.add
        was, is_ = before["journal_pending"], here["journal_pending"]
        if is_ and not was:
            add("journal", "warning", "{row} in the journal: what Redis still has to forget", is_)
        elif was and not is_:
            add("journal", "good", "the journal is empty")
        was, is_ = (sum(each["undrained_threads"].values()) for each in (before, here))
        if is_ and not was:
            add("drain", "warning", "{thread} of lower tiers not in PostgreSQL yet", is_)
        elif was and not is_:
            add("drain", "good", "all threads of lower tiers are in PostgreSQL")

    # ---------------------------------------------------------------- conversations

    def _count_threads(self, calls: Iterable[Mapping[str, Any]]) -> None:
        for call in calls:
            thread = call["thread"]
            if thread is not None:
                self._threads[thread] = self._threads.get(thread, 0) + 1
                self._threads.move_to_end(thread)
                self._changed_threads.add(thread)
        while len(self._threads) > CONVERSATIONS:
            self._threads.popitem(last=False)

    def _conversations_that_changed(self) -> list[_Said]:
        conversations = recent.changed()
        threads, self._changed_threads = self._changed_threads, set()
        conversations += self._without_turns(each for each in threads if not recent.knows(each))
        return [_Said.of("conversations", {"conversations": conversations})] if conversations else []

    def _without_turns(self, threads: Iterable[str]) -> list[dict[str, Any]]:
        return [
            {"thread": each, "agent": "", "turns": [], "calls": self._threads[each]}
            for each in threads
            if each in self._threads
        ]

    # ---------------------------------------------------------------- sending

    def _send(self, viewers: Sequence[tuple[Shown, list[Viewer]]], said: Iterable[_Said]) -> None:
        for each in said:
            if not any(there for _, there in viewers):
                return
            self._number += 1
            sent = event(each.name, self._number, each.text)
            for site, there in viewers:
                for viewer in there:
                    if not viewer.put(sent):
                        self._hub.leave(site, viewer)


_hubs: WeakSet[Hub] = WeakSet()


def _after_fork_in_child() -> None:
    Hub.guard = threading.Lock()
    for each in list(_hubs):
        each.forget_the_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
