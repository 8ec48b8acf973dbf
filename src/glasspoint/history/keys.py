"""The names of a thread's keys. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

__all__ = ["Keyspace"]

# Changed whenever what the keys hold changes meaning, so that two releases side by side never share a thread.
_FORMAT = 1
# In the order of `scripts/prelude.lua`.
_PARTS = ("ids", "docs", "blobs", "names", "writes", "meta", "seal")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """All keys of one `RedisSaver`.

    Thread ids are percent-encoded, so that no two threads share a key whatever characters they hold; the
    braces make the thread the cluster hash tag, so that all keys of a thread stand on one node.

    Attributes:
        prefix: What every key begins with.
        copy: Names a copy that is built beside a thread, on its node; `""` for the thread itself.

    Example:
        >>> Keyspace("app").of_thread("a}:x")[0]
        'app:history:1:{a%7D%3Ax}:ids'
    """

    prefix: str
    copy: str = ""

    def of_thread(self, thread_id: str) -> list[str]:
        """Return the thread's keys."""
        beside = f"copy:{self.copy}:" if self.copy else ""
        return [f"{self._begin}{{{_quote(thread_id)}}}:{beside}{part}" for part in _PARTS]

    @property
    def pattern(self) -> str:
        """What SCAN has to match: one key of each thread that has data here, and of nothing else."""
        return f"{self._begin}{{*}}:meta"

    def thread_of(self, key: bytes) -> str | None:
        """Return the thread that a key found with `pattern` belongs to, `None` if it is no such key."""
        tag = key.decode().removeprefix(f"{self._begin}{{").removesuffix("}:meta")
        return unquote(tag) if self.of_thread(unquote(tag))[5].encode() == key else None

    @property
    def _begin(self) -> str:
        return f"{_quote(self.prefix)}:history:{_FORMAT}:"


def _quote(text: str) -> str:
    return quote(text, safe="")
