"""Results in a form that is the same in every run: to compare, and to read in a counterexample."""

from __future__ import annotations

import json
from typing import Any

from model.entries import UNIQUE, canonical


def canonical_answer(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return UNIQUE.sub(b"", answer)
    if isinstance(answer, list):
        if len(answer) == 2 and isinstance(answer[1], list) and isinstance(answer[1][0], bytes):
            return answer[0], canonical(dict(zip(answer[1][::2], answer[1][1::2], strict=True)))
        return tuple(canonical_answer(each) for each in answer)
    return answer


def short(answer: Any) -> str:
    text = repr(canonical_answer(answer))
    return text if len(text) < 200 else f"{text[:200]} …"


def text_of(found: Any) -> str:
    """A checkpoint tuple as text; two are equal if and only if they are the same in every field."""
    return json.dumps(found, sort_keys=True, default=repr)
