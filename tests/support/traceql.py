"""TraceQL as the project uses it: every query of the boards and the docs, and which spans it selects.

`selected` is our own reading of the language; tests/packaging/test_real_tempo.py holds it against Tempo's.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dashboards.queries import expressions
from glasspoint.trace.spans import Span, Value
from places import DOCS, ROOT

__all__ = ["Asked", "asked", "selected"]

PAGES = (*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "dashboards" / "README.md")

# A query in a page, and what the pages have in place of a conversation's id and a trace's.
_IN_PAGE = re.compile(r"`(\{ [^`]* \}[^`]*)`")
_CONVERSATION, _TRACE = "42", "0af7651916cd43dd8448eb211c80319c"
_LONGER = re.compile(r"\bduration > [\d.]+\w+")

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|&&|\|\||[()]|=~|!=|[=<>]|[\w.:]+')
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Asked:
    """One query, and where it is asked."""

    where: str
    text: str

    def about(self, conversation: str, trace_id: str) -> str:
        """Return the query for this conversation and this trace, and for spans of any duration."""
        text = self.text.replace(f'"{_CONVERSATION}"', f'"{conversation}"').replace(_TRACE, trace_id)
        return _LONGER.sub("duration > 1us", text)


def asked() -> list[Asked]:
    """Return every query of the boards, then those of the pages, each once."""
    values = {"conversation": _CONVERSATION, "trace": _TRACE}
    found = {
        each.text: f"{each.board}: {each.panel}"
        for each in expressions(values=values)
        if each.language == "traceql"
    }
    for page in PAGES:
        for text in _IN_PAGE.findall(page.read_text("utf-8")):
            # In a table of Markdown, a bar is escaped.
            found.setdefault(text.replace("\\|", "|"), page.name)
    return [Asked(where, text) for text, where in found.items() if text.startswith("{")]


def selected(query: str, spans: Sequence[Span]) -> set[tuple[str, str]]:
    """Return trace id and span id of each span that a query selects."""
    chosen: list[Span] | None = None
    for part in query.partition(" | ")[0].split(" >> "):
        matches = _Condition(part).matches
        below = None if chosen is None else _all_below(chosen, spans)
        chosen = [span for span in spans if matches(span) and (below is None or _ids(span) in below)]
    return {_ids(span) for span in chosen or ()}


def _ids(span: Span) -> tuple[str, str]:
    return span.trace_id, span.span_id


def _all_below(chosen: Sequence[Span], spans: Sequence[Span]) -> set[tuple[str, str]]:
    tops = {_ids(span) for span in chosen}
    by_ids = {_ids(span): span for span in spans}

    def above(span: Span) -> Iterator[tuple[str, str]]:
        while span.parent_id and (parent := by_ids.get((span.trace_id, span.parent_id))) is not None:
            yield _ids(parent)
            span = parent

    return {_ids(span) for span in spans if tops & set(above(span))}


class _Condition:
    """`{ a = "b" && (c > 1ms || d =~ "e.*") }`, read by descent: or, and, one comparison."""

    def __init__(self, text: str) -> None:
        assert text.startswith("{ "), text
        assert text.endswith(" }"), text
        inner = text[2:-2]
        self._left = _TOKEN.findall(inner)
        assert "".join(self._left) == re.sub(r'("(?:[^"\\]|\\.)*")|\s', r"\1", inner), text
        self.matches = self._any_of()
        assert not self._left, text

    def _any_of(self) -> Callable[[Span], bool]:
        of = [self._all_of()]
        while self._next_is("||"):
            of.append(self._all_of())
        return lambda span: any(each(span) for each in of)

    def _all_of(self) -> Callable[[Span], bool]:
        of = [self._one()]
        while self._next_is("&&"):
            of.append(self._one())
        return lambda span: all(each(span) for each in of)

    def _one(self) -> Callable[[Span], bool]:
        if self._next_is("("):
            inner = self._any_of()
            assert self._next_is(")")
            return inner
        field, comparison, value = (self._left.pop(0) for _ in range(3))
        compare, wanted = _COMPARISONS[comparison], _literal(value)
        return lambda span: any(compare(found, wanted) for found in _field(span, field))

    def _next_is(self, token: str) -> bool:
        if self._left[:1] == [token]:
            self._left.pop(0)
            return True
        return False


def _literal(text: str) -> str | float:
    if text.startswith('"'):
        return text[1:-1]
    if number := re.fullmatch(r"([\d.]+)(us|ms|s)?", text):
        return float(number[1]) * _SECONDS[number[2] or "s"]
    return text


def _field(span: Span, name: str) -> list[Value]:
    """Return the values of a field: none, if the span lacks it, and then no comparison holds."""
    if name.startswith("span."):
        value = span.attributes.get(name.removeprefix("span."))
        return [] if value is None else [value]
    values: Mapping[str, list[Value]] = {
        "name": [span.name],
        "duration": [span.duration / 1e9],
        "status": ["error" if span.failed else "unset"],
        "kind": [span.kind],
        "trace:id": [span.trace_id],
        "link:traceID": [link.trace_id for link in span.links],
        "event:name": [event.name for event in span.events],
    }
    return values[name]


_COMPARISONS: Mapping[str, Callable[..., bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=~": lambda found, pattern: re.fullmatch(pattern, found) is not None,
}
