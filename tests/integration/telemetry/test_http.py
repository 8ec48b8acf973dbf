"""`/metrics` and `/healthz` answer from a thread and from a mounted app alike."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import preforked
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry.http import serve_telemetry, telemetry_app

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0; charset=utf-8"}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def registry() -> CollectorRegistry:
    """One counter, with an exemplar."""
    registry = CollectorRegistry()
    Counter("turns", "Turns taken.", registry=registry).inc(3, exemplar={"trace_id": TRACE_ID})
    return registry


@pytest.fixture
def url(registry: CollectorRegistry) -> Iterator[str]:
    with serve_telemetry(0, registry=registry) as server:
        yield server.url


@pytest.fixture(params=["thread", "app"])
async def served(
    request: pytest.FixtureRequest, registry: CollectorRegistry
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of either: the thread over a real socket, the ASGI app directly."""
    if request.param == "app":
        async with client(telemetry_app(registry)) as app:
            yield app
    else:
        with serve_telemetry(0, registry=registry) as server:
            async with httpx.AsyncClient(base_url=server.url) as http:
                yield http


def mounted(at: str, app: Any, *, scheme: str) -> Any:
    """Mount as Starlette does: `root_path` grows, and `path` stays whole, or is cut off (before 0.33)."""

    async def outer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        root, path = scope.get("root_path", ""), scope["path"]
        if scheme == "proxy that keeps its prefix":
            root, path = "/proxy", "/proxy" + path
        elif scheme == "proxy that strips its prefix":
            root = "/proxy"
        elif scheme == "mount that cuts the path":
            path = path[len(at) :]
        await app({**scope, "root_path": root + at, "path": path}, receive, send)

    return outer


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


async def test_metrics_are_prometheus_text(served: httpx.AsyncClient) -> None:
    response = await served.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    samples = {sample.name: sample.value for family in parse_text(response.text) for sample in family.samples}
    assert samples["turns_total"] == 3
    assert TRACE_ID not in response.text, "the text format knows no exemplars"


async def test_openmetrics_has_exemplars(served: httpx.AsyncClient) -> None:
    response = await served.get("/metrics", headers=OPENMETRICS)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    [family] = parse_openmetrics(response.text)
    exemplar = family.samples[0].exemplar
    assert exemplar is not None
    assert exemplar.labels == {"trace_id": TRACE_ID}


async def test_a_scrape_can_ask_for_some_metrics_only(served: httpx.AsyncClient) -> None:
    assert "turns_total 3.0" in (await served.get("/metrics?name[]=turns_total")).text
    assert "turns_total" not in (await served.get("/metrics?name[]=others_total")).text


async def test_healthz_says_that_the_process_lives(served: httpx.AsyncClient) -> None:
    response = await served.get("/healthz")
    assert (response.status_code, response.text.strip()) == (200, "ok")
    head = await served.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/", "/ready", "/metrics/", "/healthz/x", "/x/metrics", "/favicon.ico", "/%2e%2e/metrics"]
)
async def test_everything_else_is_404(served: httpx.AsyncClient, path: str) -> None:
    assert (await served.get(path)).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_other_methods_are_refused(served: httpx.AsyncClient, path: str, method: str) -> None:
    response = await served.request(method, path)
    assert response.status_code == 405
    assert "GET" in response.headers["allow"]


@pytest.mark.parametrize(
    "scheme",
    ["mount", "mount that cuts the path", "proxy that keeps its prefix", "proxy that strips its prefix"],
)
@pytest.mark.parametrize(
    ("mount", "path", "finds"),
    [
        ("/telemetry", "/telemetry/metrics", "metrics"),
        ("/telemetry", "/telemetry/healthz", "health"),
        ("/telemetry", "/telemetry/", None),
        ("/telemetry", "/telemetry/x", None),
        ("/a/b", "/a/b/metrics", "metrics"),
        ("/metrics", "/metrics/", "metrics"),
        ("/metrics", "/metrics/x", None),
        ("/healthz", "/healthz/", "health"),
        ("/a/metrics", "/a/metrics/", "metrics"),
        ("/xmetrics", "/xmetrics/", None),
        ("/m", "/m/metrics", "metrics"),
        ("/h", "/h/healthz", "health"),
    ],
)
async def test_it_works_wherever_it_is_mounted(
    registry: CollectorRegistry, mount: str, path: str, finds: str | None, scheme: str
) -> None:
    async with client(mounted(mount, telemetry_app(registry), scheme=scheme)) as app:
        response = await app.get(path)
    assert response.status_code == (404 if finds is None else 200)
    if finds:
        assert ("turns_total 3.0" if finds == "metrics" else "ok") in response.text


def test_head_has_the_headers_of_get_and_no_body(url: str) -> None:
    """Seen on the wire: a client would hide what is too much."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0)) as client:
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    assert b"Content-Length: 3" in head
    assert body == b""


async def test_the_app_lives_with_its_server(registry: CollectorRegistry) -> None:
    """A server that serves the app alone starts and ends it by the lifespan protocol."""
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return next(incoming)

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    await telemetry_app(registry)({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_without_a_registry_the_process_s_own_is_served() -> None:
    with serve_telemetry(0) as server:
        assert "python_info" in httpx.get(f"{server.url}/metrics").text


def test_only_this_machine_can_reach_it_unless_told_otherwise(url: str) -> None:
    assert httpx.URL(url).host == "127.0.0.1"


def test_an_ipv6_address_gives_a_url_that_works(registry: CollectorRegistry) -> None:
    try:
        server = serve_telemetry(0, host="::1", registry=registry)
    except ConfigurationError:
        pytest.skip("this machine has no IPv6")
    with server:
        assert server.url == f"http://[::1]:{server.port}"
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_close_frees_port_and_threads(registry: CollectorRegistry) -> None:
    with serve_telemetry(0, registry=registry) as server:
        names = {thread.name: thread.daemon for thread in threading.enumerate()}
        assert names[f"glasspoint-telemetry-{server.port}"], "a daemon: it never keeps a process alive"
        httpx.get(f"{server.url}/metrics")
    server.close()  # again: harmless
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)
    assert f"glasspoint-telemetry-{server.port}" not in {thread.name for thread in threading.enumerate()}
    with serve_telemetry(server.port, registry=registry) as again:
        assert again.port == server.port


def test_every_thread_has_a_name_and_a_silent_client_holds_nobody_up(
    url: str, registry: CollectorRegistry
) -> None:
    with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0)) as silent:
        silent.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more
        assert httpx.get(f"{url}/healthz").status_code == 200
        port = httpx.URL(url).port
        names = [t.name for t in threading.enumerate() if "telemetry" in t.name]
        assert f"glasspoint-telemetry-{port}-request" in names
        assert not [t.name for t in threading.enumerate() if re.match(r"Thread-\d+", t.name)]


@pytest.mark.parametrize("clash", ["taken", 70_000, -1, "no such host"])
def test_an_address_that_cannot_be_had_says_what_to_do(clash: str | int, registry: CollectorRegistry) -> None:
    with serve_telemetry(0, registry=registry) as taken:
        make: Callable[[], Any] = {
            "taken": lambda: serve_telemetry(taken.port, registry=registry),
            "no such host": lambda: serve_telemetry(0, host="no-such-host.invalid", registry=registry),
        }.get(str(clash), lambda: serve_telemetry(int(clash), registry=registry))
        with pytest.raises(ConfigurationError, match=r"cannot be served .* name another"):
            make()


@pytest.mark.slow
def test_a_running_server_does_not_keep_the_process_alive() -> None:
    code = "from glasspoint.telemetry.http import serve_telemetry; serve_telemetry(0)"
    done = preforked.run(code, env=os.environ, timeout=30, is_taken_down=True)
    assert done.returncode == 0, done.stderr
