"""Reads `/metrics` of several processes again and again, for `glasspoint top`."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

import httpx

from glasspoint.console import plain
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry import scraping
from glasspoint.telemetry.figures import TextReader, Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from glasspoint.telemetry.figures import Change

__all__ = ["DEFAULT_URL", "Endpoint", "client", "endpoints_of", "poll_all"]

DEFAULT_URL = "http://127.0.0.1:9464"

_METRICS = "/metrics"

_LONGEST_TROUBLE = 200

_HOW_A_URL_LOOKS = "it looks like http://host:9464/metrics, and /metrics may be left out."


class Endpoint:
    """One `/metrics`, and the last that was heard of it.

    Attributes:
        url: The URL, which may hold a password.
        name: Host and port, and a path that is not `/metrics`; safe for a terminal.
        change: What has changed between the last two readings; `None` if it does not answer now.
        trouble: Why it does not answer, in words that are safe for a terminal.
        since: Since when it does not answer, in seconds of a clock that never goes back.
    """

    def __init__(self, url: str) -> None:
        """Take a URL, without reading it.

        Raises:
            ConfigurationError: This is no URL of HTTP.
        """
        try:
            parsed = httpx.URL(url if "://" in url else f"http://{url}")
            is_http = parsed.scheme in ("http", "https") and bool(parsed.host)
        except (httpx.InvalidURL, ValueError, UnicodeError):
            is_http = False
        if not is_http:
            raise ConfigurationError(f"{_without_password(url)!r} is no URL of metrics: {_HOW_A_URL_LOOKS}")
        self.url = parsed.copy_with(path=_METRICS) if parsed.path == "/" else parsed
        path = self.url.path if self.url.path != _METRICS else ""
        self.name = plain(self.url.netloc.decode("ascii", "replace") + path)
        self.change: Change | None = None
        self.trouble = scraping.NO_NEWS
        self.since = monotonic()
        self._text = TextReader()
        self._window = Window()

    @property
    def answers(self) -> bool:
        """Whether the last reading was one of Glasspoint's metrics."""
        return self.change is not None

    async def poll(self, client: httpx.AsyncClient, *, timeout_seconds: float) -> None:
        """Read the metrics once; a failure is kept in `trouble`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                text = await self._get(client)
            reading = self._text.read(text)
        except TimeoutError:
            self._fail(scraping.is_late(timeout_seconds))
        except httpx.TransportError as error:
            self._fail(scraping.unreachable(error))
        except (_UnexpectedError, httpx.HTTPError) as error:
            self._fail(str(error))
        except ValueError:
            self._fail(scraping.NO_METRICS)
        else:
            if reading.is_glasspoint:
                self.change, self.trouble = self._window.add(reading), ""
            else:
                self._fail(scraping.NOT_OURS)

    async def _get(self, client: httpx.AsyncClient) -> str:
        async with client.stream("GET", self.url) as answer:
            if answer.status_code != HTTPStatus.OK:
                raise _UnexpectedError(scraping.refused(answer.status_code))
            body = bytearray()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > scraping.LONGEST_BYTES:
                    raise _UnexpectedError(scraping.TOO_LONG)
            return body.decode("utf-8")

    def _fail(self, trouble: str) -> None:
        if self.change is not None:
            self.since = monotonic()
        self.change, self.trouble = None, plain(trouble[:_LONGEST_TROUBLE])


class _UnexpectedError(Exception):
    """The endpoint answers with something else than metrics."""


def endpoints_of(urls: Iterable[str]) -> list[Endpoint]:
    """Return an endpoint for each URL, in their order; a URL that is given twice counts once.

    Raises:
        ConfigurationError: One of them is no URL of HTTP.
    """
    found = {str(each.url): each for each in map(Endpoint, urls)}
    return list(found.values())


def client() -> httpx.AsyncClient:
    """Return the client to read endpoints with, for an `async with`."""
    return httpx.AsyncClient(
        headers={"Accept": scraping.ACCEPTED},
        timeout=None,  # `poll` has one for all of it
        # A redirect would lead to a login page, and take the credentials there.
        follow_redirects=False,
    )


async def poll_all(
    endpoints: Iterable[Endpoint], client: httpx.AsyncClient, *, timeout_seconds: float
) -> None:
    """Read all endpoints once, at the same time."""
    await asyncio.gather(*(each.poll(client, timeout_seconds=timeout_seconds) for each in endpoints))


def _without_password(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    host = rest.rpartition("@")[2]
    return f"{scheme}{separator}{host}"
