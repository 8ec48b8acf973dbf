"""The live page for a server with threads: `serve_telemetry`."""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING

from glasspoint.telemetry.live.requests import (
    CONNECTION,
    MOST_BODY_BYTES,
    TOO_LARGE,
    Answer,
    Post,
    Request,
    Stream,
    as_text,
)
from glasspoint.telemetry.live.viewers import KEEP_ALIVE, SEND_SECONDS, SILENT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

    from glasspoint.telemetry.live.site import Site
    from glasspoint.telemetry.live.viewers import Viewer

__all__ = ["respond"]


def respond(site: Site, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request whose path is one of the live page's."""
    request = _request(environ)
    found = site.route(request)
    if isinstance(found, Post):
        found = _post(found, environ)
    if isinstance(found, Stream):
        woken = threading.Event()
        viewer = site.hub.join(site, found.peers, woken.set)
        if viewer is not None:
            if (connection := environ.get(CONNECTION)) is not None:
                connection.settimeout(SEND_SECONDS)
            start_response(_status(found.status), list(found.headers))
            return _events(site, viewer, woken)
        found = site.too_many()
    start_response(_status(found.status), list(found.headers))
    return [found.body if request.method != "HEAD" else b""]


def _events(site: Site, viewer: Viewer, woken: threading.Event) -> Iterator[bytes]:
    """Yield what the viewer receives. The server closes this generator when the client has left."""
    try:
        while True:
            is_over = viewer.is_over
            sent = viewer.take()
            if sent:
                yield sent
            elif is_over:
                return
            elif not woken.wait(SILENT_SECONDS):
                yield KEEP_ALIVE
            woken.clear()
    finally:
        site.hub.leave(site, viewer)


def _post(post: Post, environ: WSGIEnvironment) -> Answer:
    length = environ.get("CONTENT_LENGTH") or ""
    if not (length.isascii() and length.isdigit()):
        return as_text(HTTPStatus.LENGTH_REQUIRED, "A request of this kind needs a Content-Length.")
    if len(length) > 9 or int(length) > MOST_BODY_BYTES:
        return TOO_LARGE
    body = environ["wsgi.input"].read(int(length))
    return asyncio.run(_answer(post, body))


async def _answer(post: Post, body: bytes) -> Answer:
    return await post.answer(body)


def _request(environ: WSGIEnvironment) -> Request:
    headers = [
        (name[len("HTTP_") :].replace("_", "-"), str(value))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    headers.append(("content-type", environ.get("CONTENT_TYPE") or ""))
    return Request.of(
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"],
        environ.get("QUERY_STRING", ""),
        headers,
        environ.get("REMOTE_ADDR"),
    )


def _status(status: HTTPStatus) -> str:
    return f"{status.value} {status.phrase}"
