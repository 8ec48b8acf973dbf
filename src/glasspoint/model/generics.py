"""The type variables that generic functions and classes share."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["ItemT", "ResultT"]

ItemT = TypeVar("ItemT")
"""An item of a collection."""

ResultT = TypeVar("ResultT")
"""The result of a call."""
