"""Helpers for all that Glasspoint prints: the width, durations, and text from outside.

Colour never carries information alone: the words say the same, for pipes and for `NO_COLOR`.
rich is imported only where it is used: the live page needs the texts, but not the extra that installs rich.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

__all__ = ["WIDTH", "Block", "milliseconds", "plain", "style_of_result", "styled_result"]

WIDTH = 80
"""The maximum width in characters. In wider lines the eye would lose the way from a name to its duration."""

_RESULT_STYLES = {"hit": "green", "miss": "yellow", "absent": "yellow", "unavailable": "red"}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def milliseconds(nanoseconds: float) -> str:
    """Return a duration as text, with three significant digits.

    Example:
        >>> milliseconds(1_234_000), milliseconds(42_000_000)
        ('1.23 ms', '42.0 ms')
    """
    value = nanoseconds / 1e6
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} ms"


def styled_result(result: str) -> Text:
    """Return an L1 result as a coloured word."""
    from rich.text import Text

    return Text(result, style_of_result(result))


def style_of_result(result: str) -> str:
    """Return the style of an L1 result; empty if it has none."""
    return _RESULT_STYLES.get(result, "")


def plain(text: str) -> str:
    r"""Return text from outside, made safe for a terminal.

    Characters that move the cursor, change colours or reverse the line are shown as escape sequences.

    Example:
        >>> print(plain("a\x1b[2Jb"))
        a\x1b[2Jb
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode() if unicodedata.category(each) in _UNSEEN else each
        for each in text
    )


class Block:
    """Indented content, followed by empty lines, without spaces at the ends of its lines.

    Rich fills lines up with spaces, which would otherwise stand in a file that the output is piped to.
    """

    def __init__(
        self, content: RenderableType, *, indent: int = 3, lines_after: int = 1, widest: int = WIDTH
    ) -> None:
        self._content = content
        self._widest = widest
        self._lines_after = lines_after
        self._indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        width = min(options.max_width, self._widest) - self._indent
        for line in console.render_lines(self._content, options.update_width(width), pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                yield Segment(" " * self._indent)
                yield from line[:-1]
                yield Segment(line[-1].text.rstrip(), line[-1].style)
            yield Segment.line()
        yield from [Segment.line()] * self._lines_after
