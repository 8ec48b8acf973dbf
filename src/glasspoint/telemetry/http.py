"""Serves `/metrics`, `/healthz` and `/readyz`, and the live page at `/live` if that is asked for.

They come from a server thread (`serve_telemetry`) or from an ASGI app (`telemetry_app`).

The Prometheus client encodes the metrics: as text, or as OpenMetrics with exemplars when the `Accept` header
asks for that. `/healthz` says only that the process is alive. `/readyz` says whether its savers can serve
writes now (see `readiness`). Every other path is 404.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, make_asgi_app, make_wsgi_app

from glasspoint.errors import ConfigurationError
from glasspoint.telemetry import multiprocess
from glasspoint.telemetry.live.options import chosen
from glasspoint.telemetry.live.requests import CONNECTION
from glasspoint.telemetry.readiness import READY_TIERS, check_ready_tiers, readiness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
    from types import TracebackType
    from typing import TypeAlias
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.live.options import Live
    from glasspoint.telemetry.live.site import Site

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    ASGIApplication: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

__all__ = ["TelemetryServer", "serve_telemetry", "telemetry_app"]

_log = logging.getLogger("glasspoint.telemetry")

_METRICS, _HEALTHZ, _READYZ, _LIVE = "/metrics", "/healthz", "/readyz", "/live"

_FRESH = ("Cache-Control", "no-store")

# After this time, the thread of a client that connects but sends nothing ends.
_REQUEST_TIMEOUT_SECONDS = 30.0

# How often the thread checks whether it must end, which is how long `close` waits at most.
_POLL_SECONDS = 0.1


def serve_telemetry(
    port: int,
    *,
    host: str = "127.0.0.1",
    registry: CollectorRegistry | None = None,
    ready_tiers: Collection[str] = READY_TIERS,
    live: bool | Live | None = None,
) -> TelemetryServer:
    """Serve `/metrics`, `/healthz` and `/readyz` from a daemon thread, until `close`.

    The server has neither TLS nor a password: use a `host` beyond loopback only in networks where that does
    not matter.

    Args:
        port: The port to listen on; 0 for any free port, see `TelemetryServer.port`.
        host: The address to listen on; by default only this machine can connect.
        registry: The registry to serve; the process's default registry if `None`. If
            `PROMETHEUS_MULTIPROC_DIR` is set, `/metrics` shows all processes of that directory instead; only
            one of them can have the port.
        ready_tiers: The tiers in which `/readyz` responds with 200 if the saver can serve writes; all by
            default.
        live: Whether to serve the live page at `/live`, too; or what it shows. By default what
            `GLASSPOINT_LIVE` says, which is no if it is not set.

    Raises:
        ConfigurationError: The address cannot be listened on; or `ready_tiers` names no tier, or one that
            does not exist; or a variable of the live page cannot be used.

    Example:
        >>> with serve_telemetry(0) as server:
        ...     server.url == f"http://127.0.0.1:{server.port}"
        True
    """
    return TelemetryServer(port, host=host, registry=registry, ready_tiers=ready_tiers, live=live)


def telemetry_app(
    registry: CollectorRegistry | None = None,
    *,
    ready_tiers: Collection[str] = READY_TIERS,
    live: bool | Live | None = None,
) -> ASGIApplication:
    """Return an ASGI app with `/metrics`, `/healthz` and `/readyz`, to be served or mounted.

    Mounted at `/telemetry`, the app serves `/telemetry/metrics`, `/telemetry/healthz` and
    `/telemetry/readyz`. Mounted at `/metrics`, it serves that path (as `/metrics/`, where Starlette
    redirects to).

    Args:
        registry: What to serve; the process's default registry if `None`. Where `PROMETHEUS_MULTIPROC_DIR` is
            set, `/metrics` is that of all its processes instead, whichever of them is asked.
        ready_tiers: In which tiers `/readyz` answers 200, if the saver can serve writes; by default in all.
        live: Whether to serve the live page at `/live`, too; or what it shows. By default what
            `GLASSPOINT_LIVE` says, which is no if it is not set.

    Raises:
        ConfigurationError: `ready_tiers` names no tier, or one that does not exist; or a variable of the live
            page cannot be used.
    """
    check_ready_tiers(ready_tiers)
    served = REGISTRY if registry is None else registry
    site = _site(live, served)
    metrics: ASGIApplication = make_asgi_app(_source(served))

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            if site is not None:
                site.close()
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        else:
            path = _path_below_mount(scope)
            if site is not None and _is_live(path):
                from glasspoint.telemetry.live import asgi

                await asgi.respond(site, path, scope, receive, send)
                return
            result = _answer(scope["method"], path)
            if result is None and path == _METRICS:
                await metrics(scope, receive, send)
                return
            if result is None:
                result = _ready_answer(scope["method"], await readiness(served, ready_tiers))
            headers = [(name.lower().encode(), value.encode()) for name, value in result.headers]
            await send({"type": "http.response.start", "status": result.status.value, "headers": headers})
            await send({"type": "http.response.body", "body": result.body})

    return app


class TelemetryServer:
    """A running server thread, made by `serve_telemetry`. It ends with `close`, or with the process."""

    def __init__(
        self,
        port: int,
        *,
        host: str,
        registry: CollectorRegistry | None,
        ready_tiers: Collection[str],
        live: bool | Live | None = None,
    ) -> None:
        """Start the server. The arguments are those of `serve_telemetry`."""
        check_ready_tiers(ready_tiers)
        live = chosen(live)
        try:
            self._server = _Server(host, port)
        except (OSError, OverflowError) as exc:
            raise ConfigurationError(
                f"Telemetry cannot be served on {host!r}, port {port} ({exc}): free that address or name "
                "another; port 0 takes any that is free."
            ) from exc
        served = REGISTRY if registry is None else registry
        self._site = _site(live or False, served, loop=_running_loop())
        self._server.set_app(_wsgi_app(served, ready_tiers, self._site))
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(_POLL_SECONDS,),
            name=f"glasspoint-telemetry-{self.port}",
            daemon=True,
        )
        self._thread.start()
        also = "" if self._site is None else f"; the live page is {self.url}{_LIVE}"
        _log.info("Telemetry is served on %s/metrics, /healthz and /readyz%s", self.url, also)

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """The base URL, `http://host:port`, without a slash at its end."""
        return self._server.url()

    def close(self) -> None:
        """Stop listening, and wait until the thread has ended. May be called twice."""
        if self._site is not None:
            self._site.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    headers: list[tuple[str, str]]


def _answer(method: str, path: str) -> _Answer | None:
    """Return the response; `None` if the metrics or the readiness have to be read for it."""
    if path not in (_METRICS, _HEALTHZ, _READYZ):
        return _text(HTTPStatus.NOT_FOUND, f"not found: try {_METRICS}, {_HEALTHZ} or {_READYZ}\n")
    allowed = ("GET",) if path == _METRICS else ("GET", "HEAD")
    if method not in allowed:
        return _text(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed\n", ("Allow", ", ".join(allowed)))
    if path != _HEALTHZ:
        return None
    return _for_method(method, _text(HTTPStatus.OK, "ok\n", _FRESH))


def _ready_answer(method: str, found: dict[str, Any]) -> _Answer:
    status = HTTPStatus.OK if found["ready"] else HTTPStatus.SERVICE_UNAVAILABLE
    text = json.dumps(found, ensure_ascii=False, indent=2) + "\n"
    return _for_method(method, _text(status, text, _FRESH, content_type="application/json"))


def _for_method(method: str, answer: _Answer) -> _Answer:
    return answer if method == "GET" else answer._replace(body=b"")


def _text(
    status: HTTPStatus,
    text: str,
    *headers: tuple[str, str],
    content_type: str = "text/plain; charset=utf-8",
) -> _Answer:
    body = text.encode()
    base = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    return _Answer(status, body, [*base, *headers])


def _path_below_mount(scope: Message) -> str:
    """Return the path of a request as this app knows it, wherever the app is mounted.

    There are three forms of `path`:

    - As ASGI says, it begins with `root_path`, the place of the mount.
    - Older frameworks cut `root_path` off.
    - Behind a proxy that strips a prefix of its own, `path` lacks the beginning of `root_path`.
    """
    path: str = scope["path"]
    mount: str = scope.get("root_path", "").rstrip("/")
    for start in (i for i, char in enumerate(mount) if char == "/"):
        if f"{path}/".startswith(f"{mount[start:]}/"):
            path = path[len(mount) - start :]
            break
    if path in ("", "/") and mount.endswith((_METRICS, _HEALTHZ, _READYZ, _LIVE)):
        return mount[mount.rindex("/") :]
    return path


async def _lifespan(receive: Receive, send: Send) -> None:
    """Complete the server's lifespan messages. The app has nothing to open or close."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _site(
    live: bool | Live | None, registry: CollectorRegistry, *, loop: asyncio.AbstractEventLoop | None = None
) -> Site | None:
    """Return the live page, if it is asked for. Only then it is imported."""
    found = chosen(live)
    if found is None:
        return None
    from glasspoint.telemetry.live.site import Site

    return Site(found, registry, loop=loop)


def _is_live(path: str) -> bool:
    return path == _LIVE or path.startswith(f"{_LIVE}/")


def _source(registry: CollectorRegistry) -> Any:
    """Return the source of the metrics: this process's registry, or the files of all processes."""
    return multiprocess.AllProcesses() if multiprocess.is_on() else registry


def _wsgi_app(
    registry: CollectorRegistry, ready_tiers: Collection[str], site: Site | None
) -> WSGIApplication:
    metrics = make_wsgi_app(_source(registry))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if site is not None and _is_live(path):
            from glasspoint.telemetry.live import wsgi

            return wsgi.respond(site, environ, start_response)
        result = _answer(method, path)
        if result is None and path == _METRICS:
            page: Iterable[bytes] = metrics(environ, start_response)
            return page
        if result is None:
            result = _ready_answer(method, asyncio.run(readiness(registry, ready_tiers)))
        start_response(f"{result.status.value} {result.status.phrase}", result.headers)
        return [result.body]

    return app


class _Wire(io.BufferedIOBase):
    """What a client is sent. A client that takes nothing for too long has left, as far as WSGI is told."""

    def __init__(self, wire: io.BufferedIOBase) -> None:
        self._wire = wire

    def writable(self) -> bool:
        return True

    def write(self, sent: Any) -> int:
        try:
            return self._wire.write(sent)
        except TimeoutError as exc:
            raise ConnectionAbortedError(*exc.args) from None


class _Handler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)

    def get_environ(self) -> WSGIEnvironment:
        environ = super().get_environ()
        environ[CONNECTION] = self.connection
        return environ

    def setup(self) -> None:
        super().setup()
        self.wfile = _Wire(self.wfile)


class _Server(ThreadingMixIn, WSGIServer):
    """A server with one thread per request, so that a slow scrape does not delay `/healthz`."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        super().__init__((str(address[0]), port), _Handler)

    def url(self) -> str:
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def server_bind(self) -> None:
        # HTTPServer's own method asks the resolver for this machine's name, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        threading.Thread(
            target=self.process_request_thread,
            args=(request, client_address),
            name=f"{threading.current_thread().name}-request",
            daemon=True,
        ).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client disconnected, or sent nothing for too long.
        _log.debug("A telemetry request ended early", exc_info=True)
