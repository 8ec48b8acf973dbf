"""The names of a thread's keys. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from glasspoint.model.scope import key_part

__all__ = ["Keyspace"]

# Changed whenever what the keys hold changes meaning, so that two releases side by side never share a thread.
_FORMAT = 1
# In the order of `scripts/prelude.lua`.
_PARTS = ("ids", "docs", "blobs", "names", "writes", "meta", "seal")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """All keys of one `RedisSaver`.

    A saver by itself stores under `<prefix>:history:…`. A saver that belongs to a target stores under
    `<prefix>:fallback:…:<target>:…`, where no other target and no saver by itself looks.

    Thread ids are percent-encoded, so that no two threads share a key whatever characters they hold; the
    braces make the thread the cluster hash tag, so that all keys of a thread stand on one node.

    Attributes:
        prefix: What every key begins with.
        copy: Names a copy that is built beside a thread, on its node; `""` for the thread itself.
        target: The id of the target that the threads belong to; `""` for a saver by itself.

    Example:
        >>> Keyspace("app").of_thread("a}:x")[0]
        'app:history:1:{a%7D%3Ax}:ids'
    """

    prefix: str
    copy: str = ""
    target: str = ""

    def of_thread(self, thread_id: str) -> list[str]:
        """Return the thread's keys in the order of `scripts/prelude.lua`, the registry last if there is one.

        A copy that is built is not registered: its thread is not there before it is adopted.
        """
        registry = [self.registry] if self.registry and not self.copy else []
        return [*self.parts_of_thread(thread_id), *registry]

    def parts_of_thread(self, thread_id: str) -> list[str]:
        """Return the keys that belong to the thread alone."""
        beside = f"copy:{self.copy}:" if self.copy else ""
        return [f"{self._begin}{{{key_part(thread_id)}}}:{beside}{part}" for part in _PARTS]

    @property
    def registry(self) -> str:
        """The key that names every thread of a target; `""` for a saver by itself."""
        return f"{self._begin}threads" if self.target else ""

    @property
    def pattern(self) -> str:
        """What SCAN has to match: one key of each thread that has data here, and of nothing else."""
        return f"{self._begin}{{*}}:meta"

    def thread_of(self, key: bytes) -> str | None:
        """Return the thread that a key found with `pattern` belongs to, `None` if it is no such key."""
        tag = key.decode(errors="replace").removeprefix(f"{self._begin}{{").removesuffix("}:meta")
        return unquote(tag) if self.parts_of_thread(unquote(tag))[5].encode() == key else None

    def thread_of_member(self, member: bytes) -> str | None:
        """Return the thread that a member of the registry stands for, `None` if it stands for none."""
        thread_id = unquote(member.decode(errors="replace"))
        return thread_id if thread_id and key_part(thread_id).encode() == member else None

    @property
    def _begin(self) -> str:
        place = f"fallback:{_FORMAT}:{self.target}" if self.target else f"history:{_FORMAT}"
        return f"{key_part(self.prefix)}:{place}:"
