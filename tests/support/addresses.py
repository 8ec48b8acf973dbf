"""Where a server of a test listens: its lines say so."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

__all__ = ["address_in"]


def address_in(lines: Iterable[str], said: list[str]) -> str:
    """Read the lines of a server until one has its address on loopback; without one, the test fails.

    Args:
        said: Receives the lines that were read.
    """
    for line in lines:
        said.append(line)
        if address := re.search(r"http://127\.0\.0\.1:\d+", line):
            return address[0]
    pytest.fail("".join(said))
