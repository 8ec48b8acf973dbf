"""The live page for an ASGI server: `telemetry_app`.

A stream of events ends when the client leaves, and when the server shuts down. ASGI has no message for the
second: a server waits for its open requests, and a stream never ends by itself. So uvicorn is asked, in the
two ways that it offers. Another server needs a timeout for its graceful shutdown.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from glasspoint.telemetry.live.requests import MOST_BODY_BYTES, TOO_LARGE, Answer, Post, Request, Stream
from glasspoint.telemetry.live.viewers import KEEP_ALIVE, SEND_SECONDS, SILENT_SECONDS, encode, event

if TYPE_CHECKING:
    from glasspoint.telemetry.live.site import Site
    from glasspoint.telemetry.live.viewers import Viewer

__all__ = ["respond"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_LOOK_SECONDS = 0.25


async def respond(site: Site, path: str, scope: Message, receive: Receive, send: Send) -> None:
    """Answer a request.

    Args:
        site: The live page.
        path: The path below the mount, which is one of the live page's.
        scope, receive, send: The request.
    """
    request = _request(path, scope)
    found = site.route(request)
    if isinstance(found, Post):
        body = await _body(receive)
        found = await found.answer(body) if body is not None else TOO_LARGE
    if isinstance(found, Stream):
        woken, loop = asyncio.Event(), asyncio.get_running_loop()
        viewer = site.hub.join(site, found.peers, lambda: loop.call_soon_threadsafe(woken.set))
        if viewer is not None:
            await _stream(site, viewer, woken, found, receive, send)
            return
        found = site.too_many()
    await send(_start(found))
    await send({"type": "http.response.body", "body": found.body if request.method != "HEAD" else b""})


async def _stream(
    site: Site, viewer: Viewer, woken: asyncio.Event, stream: Stream, receive: Receive, send: Send
) -> None:
    ending = _Ending(receive)
    gone = asyncio.create_task(_until_gone(receive))
    gone.add_done_callback(lambda _: woken.set())
    loop = asyncio.get_running_loop()
    sent_at = loop.time()
    try:
        await send(_start(stream))
        while not gone.done():
            if ending.is_near():
                viewer.end(event("bye", 0, encode({"reason": "the server shuts down"})))
            is_over = viewer.is_over
            sent = viewer.take()
            if not sent and is_over:
                break
            if not sent and loop.time() - sent_at >= SILENT_SECONDS:
                sent = KEEP_ALIVE
            if sent:
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": sent, "more_body": True})
                sent_at = loop.time()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await woken.wait()
            woken.clear()
        if not gone.done():
            await send({"type": "http.response.body", "body": b""})
    except (TimeoutError, OSError):
        pass  # the client reads nothing, or has left: the server closes the connection
    finally:
        gone.cancel()
        site.hub.leave(site, viewer)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Ending:
    """Tells whether the server is about to shut down, if it is uvicorn.

    Its handler of SIGTERM is a method of the server, which has `should_exit`. If it runs in a thread, it has
    no such handler; but when it shuts down, it takes `keep_alive` from all requests, whose method `receive`
    is.
    """

    def __init__(self, receive: Receive) -> None:
        self._request = getattr(receive, "__self__", None)
        self._had_keep_alive = getattr(self._request, "keep_alive", None) is True

    def is_near(self) -> bool:
        if self._had_keep_alive and getattr(self._request, "keep_alive", None) is False:
            return True
        return any(
            getattr(getattr(signal.getsignal(each), "__self__", None), "should_exit", False) is True
            for each in (signal.SIGTERM, signal.SIGINT)
        )


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request; `None` if it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += bytes(message.get("body", b""))
        if len(body) > MOST_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _start(found: Answer | Stream) -> Message:
    headers = [(name.lower().encode(), value.encode()) for name, value in found.headers]
    return {"type": "http.response.start", "status": found.status.value, "headers": headers}


def _request(path: str, scope: Message) -> Request:
    client = scope.get("client")
    return Request.of(
        scope["method"],
        path,
        scope.get("query_string", b"").decode("latin-1"),
        ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]),
        client[0] if client else None,
    )
