"""The open pages: each has a bounded queue of events, which its connection sends.

A page that reads too slowly is dropped, because nothing else may wait for it: neither the hub, nor the other
pages, nor a call of a saver.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["KEEP_ALIVE", "SEND_SECONDS", "SILENT_SECONDS", "Viewer", "event"]

QUEUE = 64
"""The number of events that may wait for a page."""

SEND_SECONDS = 10.0
"""How long a connection may take nothing before it is dropped."""

SILENT_SECONDS = 10.0
"""After so long without an event, a comment is sent, so that both sides notice a dead connection."""

KEEP_ALIVE = b":\n\n"


def event(name: str, number: int, text: str) -> bytes:
    r"""Return an event as it is sent.

    Args:
        name: Its name.
        number: Its number.
        text: What `encode` has returned.

    Example:
        >>> event("bye", 7, encode({"reason": "end"}))
        b'event: bye\nid: 7\ndata: {"reason":"end"}\n\n'
    """
    return f"event: {name}\nid: {number}\ndata: {text}\n\n".encode("ascii")


def encode(data: object) -> str:
    """Return JSON in ASCII. Infinities and what is no number become null.

    It holds no line break, whatever the texts in it hold, and lone surrogates are escaped.
    """
    try:
        return json.dumps(data, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if data - data == 0 else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(each) for each in data] if isinstance(data, list | tuple) else data


class Viewer:
    """One open page.

    Attributes:
        peers: The names of the processes that it follows, beside this one.
        is_over: Whether nothing more will come; what is in the queue can still be taken.
    """

    def __init__(self, peers: Iterable[str], wake: Callable[[], object]) -> None:
        """Begin with an empty queue.

        Args:
            peers: See the attribute.
            wake: Called in any thread when there is something to take.
        """
        self.peers = tuple(peers)
        self.is_over = False
        self._wake = wake
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()

    def put(self, sent: bytes) -> bool:
        """Queue an event. Returns whether there was room; if not, the page is dropped, and takes no more."""
        with self._lock:
            if self.is_over:
                return False
            if len(self._queue) >= QUEUE:
                self.is_over = True
                self._queue.clear()
            else:
                self._queue.append(sent)
        self._call()
        return not self.is_over

    def end(self, last: bytes | None = None) -> None:
        """Send no more, but a last event."""
        with self._lock:
            if last is not None and not self.is_over:
                self._queue.append(last)
            self.is_over = True
        self._call()

    def take(self) -> bytes:
        """Return what is queued, and remove it from the queue; empty if there is nothing."""
        with self._lock:
            taken = b"".join(self._queue)
            self._queue.clear()
            return taken

    def _call(self) -> None:
        try:
            self._wake()
        except RuntimeError:  # its event loop has ended
            self.is_over = True
