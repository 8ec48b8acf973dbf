"""A request and its answer, as the routes of the live page see them: of either kind of server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

__all__ = [
    "CONNECTION",
    "HEADERS",
    "MOST_BODY_BYTES",
    "TOO_LARGE",
    "Answer",
    "Post",
    "Request",
    "Stream",
    "as_json",
    "as_text",
    "framed",
]

MOST_BODY_BYTES = 4096

CONNECTION = "glasspoint.connection"
"""The key of a WSGI environment with the client's socket, whose timeout a stream sets."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

HEADERS = (
    ("Content-Security-Policy", f"{POLICY}; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
"""What every answer of the live page carries."""


def framed(policy: str) -> tuple[tuple[str, str], ...]:
    """Return the headers for what the page shows in a frame, as no other page can.

    In its sandbox, the frame has an origin of its own, so nothing in it can reach the page's token. A browser
    does not open in a tab what has both a sandbox and an opener policy.

    Args:
        policy: Its own Content-Security-Policy.
    """
    others = (each for each in HEADERS[1:] if each[0] != "Cross-Origin-Opener-Policy")
    return (
        ("Content-Security-Policy", f"{policy}; frame-ancestors 'self'; sandbox allow-scripts"),
        *others,
    )


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its body.

    Attributes:
        method: In capitals.
        path: The path below the mount, `/live…`.
        query: What stands behind the `?`.
        headers: The headers, by their names in small letters. Of a header that came twice, both values, with
            a comma.
        client: The address of the client; `None` if the server does not tell it.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    client: str | None

    def header(self, name: str) -> str | None:
        """Return a header; `None` if it is missing."""
        return self.headers.get(name)

    @classmethod
    def of(
        cls, method: str, path: str, query: str, headers: Iterable[tuple[str, str]], client: str | None
    ) -> Request:
        """Make a request. The names of headers may be in any letters, and may come twice."""
        found: dict[str, str] = {}
        for name, value in headers:
            key = name.lower()
            found[key] = f"{found[key]},{value}" if key in found else value
        return cls(method, path, query, found, client)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls,
        status: HTTPStatus,
        body: bytes,
        content_type: str,
        *headers: tuple[str, str],
        common: tuple[tuple[str, str], ...] = HEADERS,
    ) -> Answer:
        """Make an answer with the headers that every answer carries, or with those of `framed`."""
        own = (("Content-Type", content_type), ("Content-Length", str(len(body))))
        return cls(status, body, (*own, *headers, *common))


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of events, which the server opens with `Hub.join`."""

    peers: tuple[str, ...]
    status: HTTPStatus = HTTPStatus.OK
    headers: tuple[tuple[str, str], ...] = (
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("X-Accel-Buffering", "no"),
        *HEADERS,
    )


@dataclass(frozen=True, slots=True)
class Post:
    """A request that is answered when its body was read, of `MOST_BODY_BYTES` at most."""

    answer: Callable[[bytes], Awaitable[Answer]]


def as_text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> Answer:
    """Return a sentence as the answer."""
    return Answer.of(status, f"{text}\n".encode(), "text/plain; charset=utf-8", *headers)


def as_json(status: HTTPStatus, data: Mapping[str, Any]) -> Answer:
    """Return JSON as the answer."""
    return Answer.of(status, json.dumps(data).encode(), "application/json")


TOO_LARGE = as_text(
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body of at most {MOST_BODY_BYTES} bytes is taken."
)
