"""The names of a thread's keys in Redis. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from glasspoint.model.scope import key_part

__all__ = ["Keyspace"]

# Must change when the meaning of the stored data changes: two releases side by side must not share a thread.
_FORMAT = 1
# In the order of `scripts/prelude.lua`.
_PARTS = ("ids", "docs", "blobs", "names", "writes", "meta", "seal")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """All keys of one `RedisSaver`.

    A saver without a target stores under `<prefix>:history:…`. A saver with a target stores under
    `<prefix>:fallback:…:<target>:…`, where no other saver looks.

    Thread ids are percent-encoded, so that two threads never share a key, whatever characters their ids hold.
    The braces make the thread id the cluster hash tag, so that all keys of a thread are on one node.

    Attributes:
        prefix: The beginning of every key.
        copy: The token of a copy that is built beside a thread, on its node; `""`: the thread itself.
        target: The id of the target that the threads belong to; `""`: none.

    Example:
        >>> Keyspace("app").of_thread("a}:x")[0]
        'app:history:1:{a%7D%3Ax}:ids'
    """

    prefix: str
    copy: str = ""
    target: str = ""

    def of_thread(self, thread_id: str) -> list[str]:
        """Return the thread's keys in the order of `scripts/prelude.lua`; with a target, the registry last.

        A copy is not in the registry before it is adopted.
        """
        registry = [self.registry] if self.registry and not self.copy else []
        return [*self.parts_of_thread(thread_id), *registry]

    def parts_of_thread(self, thread_id: str) -> list[str]:
        """Return the keys that belong to the thread alone."""
        beside = f"copy:{self.copy}:" if self.copy else ""
        return [f"{self._begin}{{{key_part(thread_id)}}}:{beside}{part}" for part in _PARTS]

    @property
    def registry(self) -> str:
        """The key of the list of a target's threads; `""` without a target."""
        return f"{self._begin}threads" if self.target else ""

    @property
    def pattern(self) -> str:
        """A pattern for SCAN that matches one key of each thread with data, and nothing else."""
        return f"{self._begin}{{*}}:meta"

    def thread_of(self, key: bytes) -> str | None:
        """Return the thread of a key that was found with `pattern`, `None` if it is no such key."""
        tag = key.decode(errors="replace").removeprefix(f"{self._begin}{{").removesuffix("}:meta")
        return unquote(tag) if self.parts_of_thread(unquote(tag))[5].encode() == key else None

    def thread_of_member(self, member: bytes) -> str | None:
        """Return the thread that a member of the registry names, `None` if it names none."""
        thread_id = unquote(member.decode(errors="replace"))
        return thread_id if thread_id and key_part(thread_id).encode() == member else None

    @property
    def _begin(self) -> str:
        place = f"fallback:{_FORMAT}:{self.target}" if self.target else f"history:{_FORMAT}"
        return f"{key_part(self.prefix)}:{place}:"
