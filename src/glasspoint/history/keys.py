"""The names of a thread's keys in Redis. Pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from glasspoint.model.scope import key_part
from glasspoint.redis.topology import RANGES, SLOTS, range_of, slot_of, tag_of_range, tag_of_slot

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
    All keys of a thread have one hash tag, which stands in braces, so that all of them are on one node of a
    Redis Cluster.

        {<thread>}:ids            a thread, which is its own hash tag
        index                     the list of threads; its name has no hash tag
        threads                   the list of a target's threads
        {<tag>}:index             in a cluster, one of the `SLOTS` lists, with a tag of the same slot
        {<tag>}:<thread>:ids      a thread of a target, in a cluster
        {<tag>}:threads           one of its `RANGES` lists, with the same tag as its threads

    In a cluster, the slot of the thread id decides which list names a thread. The tag of the list has this
    slot, of a target one in the same range. So the thread, its list and its entry in the cache are usually on
    one master, and a master that is lost costs the same threads everywhere.

    Without a target, there is a list for each slot because threads of older releases have the tag `<thread>`.

    Attributes:
        prefix: The beginning of every key.
        copy: The token of a copy that is built beside a thread, on its node; `""`: the thread itself.
        target: The id of the target that the threads belong to; `""`: none.
        in_cluster: Whether Redis is a Redis Cluster.

    Example:
        >>> Keyspace("app").of_thread("a}:x")[0]
        'app:history:1:{a%7D%3Ax}:ids'
    """

    prefix: str
    copy: str = ""
    target: str = ""
    in_cluster: bool = False

    def of_thread(self, thread_id: str) -> list[str]:
        """Return the thread's keys in the order of `scripts/prelude.lua`, its list last.

        A copy is not in the list before it is adopted.
        """
        registry = [] if self.copy else [self.registry_of(thread_id)]
        return [*self.parts_of_thread(thread_id), *registry]

    def parts_of_thread(self, thread_id: str) -> list[str]:
        """Return the keys that belong to the thread alone."""
        beside = f"copy:{self.copy}:" if self.copy else ""
        thread = key_part(thread_id)
        tagged = f"{{{self._tag(thread)}}}:{thread}" if self._has_ranges else f"{{{thread}}}"
        begin = f"{self._begin}{tagged}:{beside}"
        return [begin + part for part in _PARTS]

    @property
    def registries(self) -> list[str]:
        """The keys of the lists of threads: one, in a cluster one for each slot or range of slots."""
        if not self.in_cluster:
            return [self._registry("")]
        tags = map(tag_of_range, range(RANGES)) if self.target else map(tag_of_slot, range(SLOTS))
        return [self._registry(f"{{{tag}}}:") for tag in tags]

    def registry_of(self, thread_id: str) -> str:
        """Return the key of the list that names a thread."""
        return self._registry(f"{{{self._tag(key_part(thread_id))}}}:" if self.in_cluster else "")

    def keys_of_nobody(self) -> dict[str, list[str]]:
        """Return for each list of a target the keys of a thread id that it may name.

        For a script about the list.
        """
        threads = map(tag_of_range, range(RANGES)) if self._has_ranges else [""]
        return {self.registry_of(each): self.of_thread(each) for each in threads}

    @property
    def pattern(self) -> str:
        """A pattern for SCAN that matches one key of each thread with data, and nothing else."""
        return f"{self._begin}{{*}}:*:meta" if self._has_ranges else f"{self._begin}{{*}}:meta"

    def thread_of(self, key: bytes) -> str | None:
        """Return the thread of a key that was found with `pattern`, `None` if it is no such key."""
        name = key.decode(errors="replace").removeprefix(f"{self._begin}{{").removesuffix(":meta")
        tag, _, thread = name.partition("}:")
        thread_id = unquote(thread if self._has_ranges else tag.removesuffix("}"))
        return thread_id if self.parts_of_thread(thread_id)[5].encode() == key else None

    def thread_of_member(self, member: bytes) -> str | None:
        """Return the thread that a member of a list names, `None` if it names none."""
        thread_id = unquote(member.decode(errors="replace"))
        return thread_id if thread_id and key_part(thread_id).encode() == member else None

    def _registry(self, tagged: str) -> str:
        return f"{self._begin}{tagged}{'threads' if self.target else 'index'}"

    def _tag(self, thread: str) -> str:
        """Return the hash tag of a thread's list, in a cluster."""
        return tag_of_range(range_of(thread)) if self.target else tag_of_slot(slot_of(thread))

    @property
    def _has_ranges(self) -> bool:
        return self.in_cluster and bool(self.target)

    @property
    def _begin(self) -> str:
        place = f"fallback:{_FORMAT}:{self.target}" if self.target else f"history:{_FORMAT}"
        return f"{key_part(self.prefix)}:{place}:"
