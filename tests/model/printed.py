"""Results as text: to compare, and to read in a counterexample."""

from __future__ import annotations

import json
from typing import Any


def short(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) < 200 else f"{text[:200]} …"


def text_of(found: Any) -> str:
    """A checkpoint tuple as text; two are equal if and only if they are the same in every field."""
    return json.dumps(found, sort_keys=True, default=repr)
