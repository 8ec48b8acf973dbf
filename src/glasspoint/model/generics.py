"""The type variables that generic functions and classes share."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["ItemT", "ResultT"]

ItemT = TypeVar("ItemT")
"""One of several things that are treated alike."""

ResultT = TypeVar("ResultT")
"""What a call returns."""
