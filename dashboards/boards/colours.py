"""One meaning, one colour, on every board, out of the palette of Okabe and Ito: colour-blind people can tell
them apart.

A series gets its colour from a word of its name. Percentiles also differ by their line: dots, dashes, solid.
"""

from __future__ import annotations

__all__ = ["BAD", "GOOD", "NEUTRAL", "PERCENTILE_LINES", "WARNING", "colour_of"]

GOOD = FROM_L1 = "#009E73"
FROM_L2 = "#0072B2"
IN_PASSING = "#56B4E9"
BY_DESIGN = "#CC79A7"
WARNING = "#E69F00"
BAD = "#D55E00"
NEUTRAL = "#999999"
TIME = ("#D6CBEA", "#A58BCB", "#7B5EA7")

_WORDS = {
    # Redis answered, and it is as it should be.
    FROM_L1: "hit hits, l1 stored applied covered consistent ok cached closed committed up",
    # PostgreSQL answers, or will the next time.
    FROM_L2: "miss l2 discarded",
    # A write is under way; nobody has to do anything.
    IN_PASSING: "busy announced overtaken not_first fenced raced half_open",
    # Something else was asked for than the newest state, or a scope that is not cached.
    BY_DESIGN: "historical skipped kept bypassed interrupted",
    # Degraded, but right.
    WARNING: "incomplete journalled contested redis rolled_back evicted waiting down",
    # Somebody has to look.
    BAD: "unavailable error errors memory open stale tampered timeouts lost",
    NEUTRAL: "cancelled idle limit none expired absent",
}
_COLOURS = {word: colour for colour, words in _WORDS.items() for word in words.split()}
_PERCENTILES = dict(zip(("p50", "p95", "p99"), TIME, strict=True))

PERCENTILE_LINES: dict[str, dict[str, object]] = {
    "p50": {"fill": "dot", "dash": [0, 8]},
    "p95": {"fill": "dash", "dash": [10, 8]},
    "p99": {"fill": "solid"},
}


def colour_of(name: str) -> str | None:
    """Return the colour of a series by its name; `None`: any will do."""
    words = name.split()
    found = [_COLOURS[word] for word in words if word in _COLOURS]
    found += [_PERCENTILES[word] for word in words if word in _PERCENTILES]
    return found[0] if found else None
