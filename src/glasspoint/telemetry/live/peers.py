"""Reads `/metrics` of other processes, for all pages together.

Peers are those that were named when the server was started. A browser chooses among their names, and never
names a URL: otherwise anybody who can open the page could make this process send requests. What a peer
answers is data: it has a bounded size and time, redirects are not followed, and text that is no metrics is
shown as an error.
"""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.request
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from glasspoint.telemetry import scraping
from glasspoint.telemetry.figures import Change, TextReader, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Peers"]

_TIMEOUT_SECONDS = 2.0
_PIECE_BYTES = 64 * 1024

# What was read is shown for so long, if no newer answer comes.
_OLD_SECONDS = 5.0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


class _Found(NamedTuple):
    at: float
    what: Change | str


class Peers:
    """The peers of one site."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        """Ask nobody yet.

        Args:
            urls: Name -> URL of the metrics.
        """
        self._peers = {name: _Peer(name, url) for name, url in urls.items()}

    def ask(self, names: Iterable[str]) -> None:
        """Begin to read peers, each in a thread, unless the last request to it is still under way."""
        for name in names:
            if name in self._peers:
                self._peers[name].ask()

    def latest(self, name: str) -> Change | str:
        """Return what changed in a peer; or, as a text, why that is not known."""
        peer = self._peers.get(name)
        return "is no peer" if peer is None else peer.latest()


class _Peer:
    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._url = url
        # Without the proxies of the environment: peers are next to us.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        self._reader = TextReader()
        self._window = Window()
        self._found: _Found | None = None
        self._lock = threading.Lock()
        _peers.add(self)

    def ask(self) -> None:
        if self._lock.acquire(blocking=False):
            threading.Thread(target=self._ask, name=f"glasspoint-live-{self._name}", daemon=True).start()

    def latest(self) -> Change | str:
        found = self._found
        if found is None:
            return scraping.NO_NEWS
        return found.what if monotonic() - found.at < _OLD_SECONDS else "does not answer"

    def forget_the_parent(self) -> None:
        """In a child after a fork, forget a request of the parent."""
        self._lock = threading.Lock()
        self._found = None

    def _ask(self) -> None:
        lock = self._lock
        try:
            reading = self._reader.read(self._text())
            if reading.is_glasspoint:
                self._found = _Found(monotonic(), self._window.add(reading))
            else:
                self._found = _Found(monotonic(), scraping.NOT_OURS)
        except Exception as exc:
            self._found = _Found(monotonic(), _in_words(exc))
        finally:
            lock.release()

    def _text(self) -> str:
        until = monotonic() + _TIMEOUT_SECONDS
        request = urllib.request.Request(self._url, headers={"Accept": scraping.ACCEPTED})
        with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            pieces, size = [], 0
            while piece := response.read1(_PIECE_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > scraping.LONGEST_BYTES:
                    raise _TooMuchError
                if monotonic() > until:
                    raise TimeoutError
            return b"".join(pieces).decode("utf-8", "replace")


class _TooMuchError(Exception):
    pass


def _in_words(error: Exception) -> str:
    """Say why a peer could not be read, without what it has sent."""
    match error:
        case urllib.error.HTTPError():
            error.close()
            return scraping.refused(error.code)
        case _TooMuchError():
            return scraping.TOO_LONG
        case TimeoutError() | urllib.error.URLError(reason=TimeoutError()):
            return scraping.is_late(_TIMEOUT_SECONDS)
        case OSError() | http.client.HTTPException():
            return scraping.unreachable(error, foreign=False)
        case ValueError():
            return scraping.NO_METRICS
    return f"cannot be read ({type(error).__name__})"


_peers: WeakSet[_Peer] = WeakSet()


def _after_fork_in_child() -> None:
    for each in list(_peers):
        each.forget_the_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
