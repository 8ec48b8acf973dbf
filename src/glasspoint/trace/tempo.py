"""Reads spans from a Grafana Tempo, over HTTP: it searches for the conversation's traces, then reads each.

For traces that are older than a few minutes, Tempo wants a time range, and refuses ranges that are too long
(by default, more than a week). So a long time is searched week by week.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httpx

from glasspoint.errors import ConfigurationError, TraceUnavailableError
from glasspoint.trace.files import Reading
from glasspoint.trace.otlp import parse_json, spans_of, trace_id_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from glasspoint.trace.spans import Span

__all__ = ["Tempo", "header", "headers_from_variable", "quoted"]

_WEEK_SECONDS = 7 * 24 * 3600
_AHEAD_SECONDS = 300
_AT_ONCE = 8
_LONGEST_REASON = 160


class Tempo:
    """A client of a Tempo, for a `with` block.

    Args:
        url: The base URL, with a path if Tempo is behind a proxy; `user:password@` in it is sent as basic
            authentication.
        headers: Headers of each request: a tenant (`X-Scope-OrgID`), an `Authorization`. Never shown.
        timeout_seconds: How long one response may take.

    Raises:
        ConfigurationError: The URL is not valid.
    """

    def __init__(
        self, url: str, *, headers: Sequence[tuple[str, str]] = (), timeout_seconds: float = 10.0
    ) -> None:
        try:
            parsed = httpx.URL(url)
            self._client = httpx.Client(
                base_url=parsed,
                headers=[("Accept", "application/json"), *headers],
                timeout=timeout_seconds,
                # A redirect would lead to a login page, and take the credentials there.
                follow_redirects=False,
            )
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise ConfigurationError(
                "The URL of Tempo cannot be read; it looks like http://host:3200"
            ) from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            self._client.close()
            raise ConfigurationError(
                "The URL of Tempo has to begin with http:// or https://, and name a host."
            )
        self._shown = str(parsed.copy_with(userinfo=b"", query=None, fragment=None))
        self._timeout_seconds = timeout_seconds
        self._is_old = False

    def __enter__(self) -> Tempo:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self, wanted: Sequence[str], *, since_seconds: float, limit: int) -> Reading:
        """Read all spans of the traces that name a conversation.

        Args:
            wanted: The names that the conversation may have on spans: its id, plain and hashed.
            since_seconds: How far back to search.
            limit: The maximum number of traces; the newest are read.

        Raises:
            TraceUnavailableError: Tempo does not answer, refuses, or does not respond as a Tempo would.
        """
        reading = Reading()
        found = self._search(wanted, since_seconds, limit)
        if not found:
            reading.remarks.append("A Tempo may find a turn only 30 s after its end (query_end_cutoff).")
        if len(found) >= limit:
            reading.remarks.append(f"Only {limit:,} traces were read; there may be more (--limit).")
        missing = 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for spans, remark in pool.map(self._trace, sorted(found, key=found.__getitem__)[-limit:]):
                reading.spans += spans
                missing += not spans
                if remark and remark not in reading.remarks:
                    reading.remarks.append(remark)
        if missing:
            traces = "1 trace was" if missing == 1 else f"{missing:,} traces were"
            reading.remarks.append(f"{traces} found by Tempo's search, but cannot be had any more.")
        return reading

    def _search(self, wanted: Sequence[str], since_seconds: float, limit: int) -> dict[str, int]:
        """Return trace id -> start, in nanoseconds since 1970."""
        query = " || ".join(f"span.gen_ai.conversation.id = {quoted(each)}" for each in wanted)
        found: dict[str, int] = {}
        end = int(time()) + _AHEAD_SECONDS
        first = end - _AHEAD_SECONDS - int(since_seconds)
        while end > first and len(found) < limit:
            start = max(first, end - _WEEK_SECONDS)
            result = self._get(
                "api/search", {"q": f"{{ {query} }}", "start": start, "end": end, "limit": limit, "spss": 1}
            )
            if result.status_code != httpx.codes.OK:
                raise self._refused(result)
            body = self._body(result)
            if not isinstance(body.get("traces", []), list) or not {"traces", "metrics"} & body.keys():
                raise self._stranger()
            for each in body.get("traces", []):
                trace_id = trace_id_of(each.get("traceID")) if isinstance(each, dict) else ""
                if trace_id:
                    began = str(each.get("startTimeUnixNano", ""))
                    found[trace_id] = int(began) if began.isascii() and began.isdigit() else 0
            end = start
        return found

    def _trace(self, trace_id: str) -> tuple[list[Span], str]:
        """Return a trace's spans, and a remark about it. Without spans, the trace is not there any more."""
        result = None
        if not self._is_old:
            result = self._get(f"api/v2/traces/{trace_id}", {})
        if result is None or result.status_code == httpx.codes.NOT_FOUND:
            newer, result = result, self._get(f"api/traces/{trace_id}", {})
            if newer is not None and result.status_code == httpx.codes.OK:
                self._is_old = True  # an old Tempo has only the second path
        if result.status_code == httpx.codes.NOT_FOUND:
            return [], ""
        if result.status_code != httpx.codes.OK:
            raise self._refused(result)
        body = self._body(result)
        remark = ""
        if body.get("status") in ("PARTIAL", 1):
            remark = f"Tempo gave only a part of a trace: {_one_line(str(body.get('message', '')))}".rstrip(
                ": "
            )
        return [span for span in spans_of(body) if span.trace_id == trace_id], remark

    def _get(self, path: str, parameters: dict[str, Any]) -> httpx.Response:
        try:
            return self._client.get(path, params=parameters)
        except httpx.TimeoutException:
            raise TraceUnavailableError(
                f"{self._shown} did not answer within {self._timeout_seconds:g} s. Is Tempo busy, or behind "
                "a firewall? A shorter --since makes the search easier."
            ) from None
        except httpx.HTTPError as error:
            reason = _one_line(str(error)) or type(error).__name__
            raise TraceUnavailableError(
                f"{self._shown} cannot be reached ({reason}). Check the URL, and that Tempo is up."
            ) from None

    def _body(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            body = parse_json(answer.content)
        except ValueError:
            raise self._stranger() from None
        if not isinstance(body, dict):
            raise self._stranger()
        return body

    def _refused(self, answer: httpx.Response) -> TraceUnavailableError:
        status = answer.status_code
        if status in (401, 403):
            todo = "it wants credentials: --header, or TEMPO_HEADERS (Authorization, X-Scope-OrgID)."
        elif answer.is_redirect:
            todo = "it sends somewhere else, to a login page perhaps. Ask Tempo itself, or send credentials."
        elif status == httpx.codes.NOT_FOUND:
            todo = "there is no /api/search. Is this the base URL of a Tempo (port 3200), not of Grafana?"
        elif status == httpx.codes.TOO_MANY_REQUESTS:
            todo = "it is asked too often; try again later, or with a shorter --since."
        else:
            # Show plain text only, which is Tempo's own: the HTML page of a proxy does not help.
            is_text = answer.headers.get("content-type", "").startswith("text/plain")
            todo = _one_line(answer.text) if is_text else ""
            todo = todo or "look at Tempo's log."
        return TraceUnavailableError(f"{self._shown} answered {status} {answer.reason_phrase}: {todo}")

    def _stranger(self) -> TraceUnavailableError:
        return TraceUnavailableError(
            f"{self._shown} answers, but not as a Tempo does. Is this the base URL of a Tempo (port 3200)?"
        )


def quoted(text: str) -> str:
    r"""Return a text as a TraceQL string, by Go's rules, so that no text can end the string or the query.

    Example:
        >>> print(quoted('a"b'))
        "a\"b"
    """
    # JSON's escapes are Go's, too, if nothing else is escaped.
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)


def header(text: str) -> tuple[str, str]:
    """Parse a header in the form of curl's `-H`: `Name: value`.

    Raises:
        ConfigurationError: It is not a header. The message does not contain it.
    """
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not _is_value(value):
        raise ConfigurationError("A header of --header cannot be read: write 'Name: value'.")
    return name, value


def headers_from_variable(text: str) -> Iterator[tuple[str, str]]:
    """Parse `TEMPO_HEADERS`, which has the form of `OTEL_EXPORTER_OTLP_HEADERS`.

    That is `name=value,name=value`, with percent-encoded values.

    Raises:
        ConfigurationError: It cannot be parsed. The message does not contain it.
    """
    for pair in filter(str.strip, text.split(",")):
        name, equals, value = pair.partition("=")
        name, value = name.strip(), unquote(value.strip())
        if not equals or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not _is_value(value):
            raise ConfigurationError(
                "TEMPO_HEADERS cannot be read: write name=value,name=value, values percent-encoded."
            )
        yield name, value


def _is_value(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"
