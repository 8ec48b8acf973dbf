"""The live page for tests: a server of either kind, and pages that read its events."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR
from typing import Any, Literal

import httpx
import uvicorn
from prometheus_client import CollectorRegistry

from glasspoint.telemetry.http import serve_telemetry, telemetry_app
from glasspoint.telemetry.live import Live

Kind = Literal["thread", "app"]
KINDS: tuple[Kind, ...] = ("thread", "app")


@contextmanager
def serving(kind: Kind, registry: CollectorRegistry, live: Live | bool | None = True) -> Iterator[str]:
    """Serve the live page over a real socket, and yield the URL. At the end, the server must end, too."""
    if kind == "thread":
        with serve_telemetry(0, registry=registry, live=live) as server:
            yield server.url
    else:
        with serving_app(telemetry_app(registry, live=live)) as url:
            yield url


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """Serve an app by uvicorn, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        while not server.started:
            thread.join(0.005)
            assert thread.is_alive(), "uvicorn has not started"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        is_hanging = thread.is_alive()
        server.force_exit = True
        thread.join(20)
    assert not is_hanging, "uvicorn waits for an open stream"


class Page:
    """An open page: it collects the events that it receives."""

    def __init__(self, url: str, path: str = "/live/events", **headers: str) -> None:
        """Open the page, and wait for the status of the answer."""
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.is_over = False
        self._client = httpx.Client(base_url=url, timeout=30, verify=False)  # no certificates to load
        request = self._client.build_request("GET", path, headers=headers)
        self._response = self._client.send(request, stream=True)
        self.status = self._response.status_code
        self.headers = self._response.headers
        self.text = "" if self.status == 200 else self._response.read().decode()
        self._thread = threading.Thread(target=self._read, name="page")
        if self.status == 200:
            self._thread.start()
        else:
            self.close()

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the data of all events of that name."""
        return [data for each, data in list(self.events) if each == name]

    def newest(self, name: str) -> dict[str, Any]:
        """Return the data of the last event of that name; empty if there was none."""
        return next(iter(self.of(name)[::-1]), {})

    @property
    def calls(self) -> list[dict[str, Any]]:
        """All calls of the feed."""
        return [call for data in self.of("calls") for call in data["calls"]]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of the timeline."""
        return [line for data in self.of("timeline") for line in data["lines"]]

    @property
    def conversations(self) -> dict[str | None, dict[str, Any]]:
        """The conversations as they were told last, by their threads."""
        return {each["thread"]: each for data in self.of("conversations") for each in data["conversations"]}

    def close(self) -> None:
        """Leave."""
        if self._thread.is_alive():  # it waits for the next event
            with suppress(OSError):
                self._response.extensions["network_stream"].get_extra_info("socket").shutdown(SHUT_RDWR)
        self._response.close()
        if self._thread.is_alive():
            self._thread.join(30)
        self._client.close()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        name = ""
        try:
            for line in self._response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.events.append((name, json.loads(line.removeprefix("data: "))))
        except (httpx.HTTPError, httpx.StreamError, RuntimeError, OSError, AttributeError):
            pass  # closed while it was read
        self.is_over = True
