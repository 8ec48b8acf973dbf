"""Parses OTLP in JSON, in all its forms: from the collector's file exporter, an SDK's, or a Tempo.

They differ in three ways:

- Ids are hexadecimal digits (as OTLP says) or base64 (as protobuf does by default, and Tempo).
- Numbers are JSON numbers or text.
- `resourceSpans` is called `batches` by some.

A span that cannot be understood is left out, and no content can make reading fail.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any

from glasspoint.trace.spans import Event, Link, Span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glasspoint.trace.spans import Value

__all__ = ["parse_json", "spans_of", "trace_id_of"]

_HEX = re.compile(r"[0-9a-fA-F]+")
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_FAILED = (2, "2", "STATUS_CODE_ERROR")
_DEEPEST = 6
_LATEST = 2**63 - 1
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8


def parse_json(text: str | bytes) -> object:
    """Read JSON.

    Raises:
        ValueError: It is no JSON, or it is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def spans_of(found: object) -> Iterator[Span]:
    """Yield the spans of an `ExportTraceServiceRequest`, a `TracesData`, or a Tempo's response."""
    found = _object(found)
    inner = found.get("trace")
    if isinstance(inner, dict):
        found = inner
    for of_resource in _objects(found.get("resourceSpans")) or _objects(found.get("batches")):
        resource = _attributes(_object(of_resource.get("resource")).get("attributes"))
        groups = of_resource.get("scopeSpans") or of_resource.get("instrumentationLibrarySpans")
        for of_scope in _objects(groups):
            scope = _object(of_scope.get("scope") or of_scope.get("instrumentationLibrary"))
            for each in _objects(of_scope.get("spans")):
                span = _span(each, resource, _text(scope.get("name")))
                if span is not None:
                    yield span


def trace_id_of(value: object) -> str:
    """Return a trace id as 32 hexadecimal digits, also if leading zeros are missing; empty if it is none.

    Tempo's search omits leading zeros.
    """
    return _id(value, _TRACE_ID_BYTES)


def _span(found: dict[str, Any], resource: dict[str, Value], scope: str) -> Span | None:
    trace_id = _id(found.get("traceId"), _TRACE_ID_BYTES)
    span_id = _id(found.get("spanId"), _SPAN_ID_BYTES)
    start = _number(found.get("startTimeUnixNano"))
    if not (trace_id and span_id and start):
        return None
    status = _object(found.get("status"))
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=_id(found.get("parentSpanId"), _SPAN_ID_BYTES),
        name=_text(found.get("name")),
        start=start,
        end=max(start, _number(found.get("endTimeUnixNano"))),
        attributes=_attributes(found.get("attributes")),
        resource=resource,
        scope=scope,
        kind=_kind(found.get("kind")),
        failed=status.get("code") in _FAILED,
        status=_text(status.get("message")),
        links=tuple(_links(found.get("links"))),
        events=tuple(
            Event(
                _text(each.get("name")),
                _number(each.get("timeUnixNano")),
                _attributes(each.get("attributes")),
            )
            for each in _objects(found.get("events"))
        ),
    )


def _links(found: object) -> Iterator[Link]:
    for each in _objects(found):
        trace_id = _id(each.get("traceId"), _TRACE_ID_BYTES)
        span_id = _id(each.get("spanId"), _SPAN_ID_BYTES)
        if trace_id and span_id:
            yield Link(trace_id, span_id, _attributes(each.get("attributes")))


def _id(value: object, size: int) -> str:
    """Return an id as hexadecimal digits; empty if there is none, or if it is all zeros."""
    if not isinstance(value, str):
        return ""
    found = ""
    if len(value) == 4 * -(-size // 3):  # in base64, an id never has as many characters as in digits
        try:
            found = base64.b64decode(value, validate=True).hex()
        except (ValueError, binascii.Error):
            found = ""
    if len(found) != 2 * size:
        found = value.lower().zfill(2 * size) if _HEX.fullmatch(value) else ""
    return found if len(found) == 2 * size and found.strip("0") else ""


def _kind(value: object) -> str:
    if isinstance(value, str):
        return value.removeprefix("SPAN_KIND_").lower()
    number = _number(value)
    return _KINDS[number] if number < len(_KINDS) else ""


def _attributes(found: object) -> dict[str, Value]:
    return {_text(pair.get("key")): _value(pair.get("value"), 0) for pair in _objects(found)}


def _value(found: object, depth: int) -> Value:
    if not isinstance(found, dict) or not found:
        return None
    kind, value = next(iter(found.items()))
    if kind == "intValue":
        return _integer(value)
    if kind == "arrayValue":
        inner = _objects(_object(value).get("values"))
        return "…" if depth >= _DEEPEST else [_value(each, depth + 1) for each in inner]
    if kind == "kvlistValue":
        pairs = _objects(_object(value).get("values"))
        if depth >= _DEEPEST:
            return "…"
        return {_text(pair.get("key")): _value(pair.get("value"), depth + 1) for pair in pairs}
    if isinstance(value, str | bool | int | float):
        return value
    return None


def _integer(value: object) -> Value:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}", value, re.ASCII):
        return int(value)
    return value if isinstance(value, str | int | float) else None


def _number(value: object) -> int:
    """Return a number of at least 0; 0 if the value is no such number."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value, re.ASCII):
        value = int(value)
    if isinstance(value, float) and 0 <= value <= _LATEST:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LATEST else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
