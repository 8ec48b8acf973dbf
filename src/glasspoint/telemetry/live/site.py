"""The routes of the live page, without a server: `wsgi` and `asgi` connect them to one.

| route | answers |
| --- | --- |
| GET `/live` | the page; `/live/` leads there |
| GET `/live/static/<file>` | what the page loads |
| GET `/live/events` | the stream of events; `?peers=a,b` chooses among the peers |
| GET `/live/turns/<trace id>` | the waterfall of a turn, with the turns of its conversation |
| POST `/live/actions/<name>` | what the button has done |
| POST `/live/chat` | what the agent says |
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from functools import cache
from http import HTTPStatus
from importlib import resources
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from glasspoint._version import __version__
from glasspoint.errors import GlasspointError
from glasspoint.telemetry import multiprocess
from glasspoint.telemetry.events import failures
from glasspoint.telemetry.live.hubs import FEED, Hub
from glasspoint.telemetry.live.peers import Peers
from glasspoint.telemetry.live.requests import Answer, Post, Request, Stream, as_json, as_text, framed
from glasspoint.telemetry.live.security import refusal, refusal_of_post
from glasspoint.telemetry.live.spans import is_set_up
from glasspoint.telemetry.live.timeline import LINES
from glasspoint.telemetry.live.turns import CONVERSATIONS, certainly_kept, recent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from importlib.resources.abc import Traversable

    from prometheus_client import CollectorRegistry

    from glasspoint.telemetry.live.options import Action, Live, Reply

__all__ = ["LIVE", "Site"]

LIVE = "/live"

_EVENTS, _CHAT = f"{LIVE}/events", f"{LIVE}/chat"
_STATIC, _TURNS, _ACTIONS = f"{LIVE}/static/", f"{LIVE}/turns/", f"{LIVE}/actions/"
_GET, _POST = ("GET", "HEAD"), ("POST",)
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "png": "image/png",
    "woff2": "font/woff2",
}
_STARTED = time()
_RUN_SECONDS = 120.0
_LONGEST_THREAD_ID = 200


class Site:
    """The live page, as one server serves it."""

    def __init__(
        self, live: Live, registry: CollectorRegistry, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Serve nothing yet.

        Args:
            live: What the application has chosen.
            registry: The registry that the savers report to.
            loop: The event loop for buttons and the chat; that of the request if `None`.
        """
        self.live = live
        self.hub = Hub.of(registry)
        self.peers = Peers(live.peers or {})
        self._registry = registry  # the hub itself keeps no registry alive
        self._actions = {each.name: each for each in live.actions}
        self._under_way: set[str] = set()
        self._loop = loop
        if live.keep:
            self.hub.keep(self)

    def close(self, reason: str = "the server closes") -> None:
        """End all streams."""
        self.hub.close(self, reason)

    def route(self, request: Request) -> Answer | Stream | Post:
        """Return the answer to a request, or how to get it."""
        refused = refusal(request, self.live)
        if refused is not None:
            return as_text(*refused)
        path = request.path
        allowed = _methods(path)
        if request.method not in allowed:
            return as_text(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed", ("Allow", ", ".join(allowed)))
        if path == f"{LIVE}/":
            return as_text(HTTPStatus.PERMANENT_REDIRECT, "see /live", ("Location", f"..{LIVE}"))
        if path == LIVE:
            return _file("index.html")
        if path == _EVENTS:
            return self._stream(request)
        if path.startswith(_STATIC):
            return _file(path.removeprefix(_STATIC))
        if path.startswith(_TURNS):
            return _turn(path.removeprefix(_TURNS))
        if path == _CHAT or path.startswith(_ACTIONS):
            return self._post(request)
        return _not_found()

    def hello(self) -> dict[str, Any]:
        """Return what a page is told first."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started": round(_STARTED, 3),
            "thread_ids": self.hub.watch.thread_ids(),
            "spans": is_set_up(),
            "multiprocess": multiprocess.is_on(),
            "peers": list(self.live.peers or ()),
            "limits": {"feed": FEED, "timeline": LINES, "conversations": CONVERSATIONS},
            "actions": [
                {
                    "name": each.name,
                    "label": each.label,
                    "hint": each.hint,
                    "group": each.group,
                    "doing": each.doing or f"{each.label} …",
                    "level": each.level,
                }
                for each in self.live.actions
            ],
            "chat": self.live.chat is not None,
        }

    def states(self) -> dict[str, str]:
        """Return the states of the actions, in words."""
        try:
            return {str(name): str(state) for name, state in self.live.tells().items()}
        except Exception as exc:
            failures.report("Live.tells", exc, "events")
            return {}

    def too_many(self) -> Answer:
        """Return the answer if a stream cannot be opened."""
        return as_text(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{self.live.max_viewers} live pages are open already: close one of them.",
            ("Retry-After", "10"),
        )

    # ---------------------------------------------------------------- helpers

    def _stream(self, request: Request) -> Stream | Answer:
        known = tuple(self.live.peers or ())
        asked = parse_qs(request.query, keep_blank_values=True, max_num_fields=10).get("peers")
        if asked is None:
            return Stream(known)
        names = {each.strip() for text in asked for each in text.split(",") if each.strip()}
        if not names <= set(known):
            return as_text(
                HTTPStatus.BAD_REQUEST,
                "A peer is not known: choose among those that were named at the start.",
            )
        return Stream(tuple(each for each in known if each in names))

    def _post(self, request: Request) -> Answer | Post:
        refused = refusal_of_post(request, self.live)
        if refused is not None:
            return as_json(refused.status, {"error": refused.text})
        if request.path == _CHAT:
            chat = self.live.chat
            return Post(lambda body: self._talk(chat, body)) if chat is not None else _not_found()
        action = self._actions.get(request.path.removeprefix(_ACTIONS))
        return Post(lambda body: self._act(action)) if action is not None else _not_found()

    async def _act(self, action: Action) -> Answer:
        if action.name in self._under_way:
            return as_json(HTTPStatus.CONFLICT, {"error": f"{action.label}: it is still under way."})
        self._under_way.add(action.name)
        timeline = self.hub.watch.timeline
        # At once, because what follows from it may be told before it is done.
        line = timeline.add("fault", action.level, action.doing or f"{action.label} …")
        try:
            said = await self._run(action.run)
        except Exception as exc:
            text = _in_words(exc)
            timeline.complete(line, "fault", "error", f"{action.label}: {text}")
            return as_json(HTTPStatus.BAD_GATEWAY, {"error": text})
        finally:
            self._under_way.discard(action.name)
        timeline.complete(line, "fault", action.level, said)
        return as_json(HTTPStatus.OK, {"said": said})

    async def _talk(self, chat: Callable[[str, str], Awaitable[Reply]], body: bytes) -> Answer:
        asked = _asked(body)
        if asked is None:
            return as_json(
                HTTPStatus.BAD_REQUEST, {"error": 'The body must be {"thread": "…", "text": "…"}.'}
            )
        try:
            with certainly_kept():  # the answer leads to its turn
                reply = await self._run(lambda: chat(*asked))
        except Exception as exc:
            return as_json(HTTPStatus.BAD_GATEWAY, {"error": _in_words(exc)})
        return as_json(HTTPStatus.OK, {"text": reply.text, "trace_id": reply.trace_id, "note": reply.note})

    async def _run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run what an application has given."""

        async def running() -> Any:
            async with asyncio.timeout(_RUN_SECONDS):
                return await work()

        loop = self._loop
        if loop is None or loop is asyncio.get_running_loop() or not loop.is_running():
            return await running()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(running(), loop))


def _methods(path: str) -> tuple[str, ...]:
    if path == _EVENTS:
        return _GET[:1]
    return _POST if path == _CHAT or path.startswith(_ACTIONS) else _GET


def _not_found() -> Answer:
    return as_text(HTTPStatus.NOT_FOUND, "not found: try /live")


def _in_words(error: Exception) -> str:
    """Return what failed. Only the texts of our own errors are known to hold no content."""
    if isinstance(error, GlasspointError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"It took longer than {_RUN_SECONDS:.0f} s."
    return f"It failed ({type(error).__name__})."


def _asked(body: bytes) -> tuple[str, str] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    thread_id, text = found.get("thread"), found.get("text")
    if not (isinstance(thread_id, str) and isinstance(text, str)):
        return None
    if not 0 < len(thread_id) <= _LONGEST_THREAD_ID or not text.strip():
        return None
    return thread_id, text


@cache
def _files() -> Mapping[str, Traversable]:
    """Return the files that may be served, by their names below `static/`: no other name can be asked for."""
    found: dict[str, Traversable] = {}
    waiting = [("", resources.files("glasspoint.telemetry.live").joinpath("page"))]
    while waiting:
        prefix, folder = waiting.pop()
        for each in folder.iterdir() if folder.is_dir() else ():
            if each.is_dir():
                waiting.append((f"{prefix}{each.name}/", each))
            else:
                found[f"{prefix}{each.name}"] = each
    return found


def _file(name: str) -> Answer:
    file = _files().get(name)
    if file is None:
        return _not_found()
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    return Answer.of(
        HTTPStatus.OK, file.read_bytes(), _CONTENT_TYPES.get(suffix, "text/plain; charset=utf-8")
    )


def _turn(trace_id: str) -> Answer:
    found = recent.conversation_with(trace_id) if _TRACE_ID.fullmatch(trace_id) else None
    if found is None:
        return as_text(HTTPStatus.NOT_FOUND, "This turn is not kept: only the last turns are, in memory.")
    from glasspoint.trace.page import live_page_of

    conversation, turn = found
    page = live_page_of(conversation, at=turn)
    return Answer.of(
        HTTPStatus.OK,
        page.text.encode("utf-8", "replace"),
        _CONTENT_TYPES["html"],
        common=framed(page.policy),
    )
