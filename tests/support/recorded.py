"""Spans as they are recorded: OTLP JSON, made up."""

from __future__ import annotations

import json
from typing import Any

START = 1_795_444_678_000_000_000
THREAD = "42"


def ids(number: int) -> tuple[str, str]:
    """A trace id and a span id."""
    return f"{number:032x}", f"{number:016x}"


def attribute(key: str, value: Any) -> dict[str, Any]:
    kind = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}[type(value)]
    return {"key": key, "value": {kind: str(value) if kind == "intValue" else value}}


def span(
    name: str,
    number: int,
    *,
    trace: int = 1,
    parent: int = 0,
    at: float = 0,
    took: float = 1,
    thread: str | None = None,
    links: tuple[tuple[int, int], ...] = (),
    failed: bool = False,
    events: tuple[dict[str, Any], ...] = (),
    **attributes: Any,
) -> dict[str, Any]:
    """A span; times are milliseconds, `__` in the name of an attribute is a dot."""
    found = {key.replace("__", "."): value for key, value in attributes.items()}
    if thread is not None:
        found["gen_ai.conversation.id"] = thread
    start = START + int(at * 1e6)
    return {
        "traceId": ids(trace)[0],
        "spanId": ids(number)[1],
        "parentSpanId": ids(parent)[1] if parent else "",
        "name": name,
        "kind": 1,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + int(took * 1e6)),
        "attributes": [attribute(key, value) for key, value in found.items()],
        "links": [
            {
                "traceId": ids(of_trace)[0],
                "spanId": ids(of_span)[1],
                "attributes": [attribute("glasspoint.link", "previous_turn")],
            }
            for of_trace, of_span in links
        ],
        "events": list(events),
        "status": {"code": 2} if failed else {},
    }


def turn(number: int, *, trace: int, thread: str = THREAD, **more: Any) -> dict[str, Any]:
    """The span of a turn."""
    told = {"gen_ai__operation__name": "invoke_agent", "gen_ai__agent__name": "concierge", **more}
    return span("invoke_agent concierge", number, trace=trace, thread=thread, **told)


def read(
    number: int, *, trace: int, thread: str = THREAD, served_by: str = "l1", **more: Any
) -> dict[str, Any]:
    """The span of a read."""
    result = "hit" if served_by == "l1" else "miss"
    told = {
        "glasspoint__l1__result": result,
        "glasspoint__served_by": served_by,
        "glasspoint__tier": "cached",
    }
    return span("checkpoint.get_tuple", number, trace=trace, thread=thread, **(told | more))


def request(*spans: dict[str, Any], scope: str = "glasspoint", **resource: Any) -> dict[str, Any]:
    """What an exporter sends at once."""
    named = [attribute(key.replace("__", "."), value) for key, value in resource.items()]
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": named},
                "scopeSpans": [{"scope": {"name": scope}, "spans": list(spans)}],
            }
        ]
    }


def line(*spans: dict[str, Any], **resource: Any) -> str:
    """A line of a file."""
    return json.dumps(request(*spans, **resource), ensure_ascii=False) + "\n"
