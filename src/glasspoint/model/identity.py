"""Identity: which data the entries in Redis belong to, as L2 names it and L1 uses it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of L2, for one cache.

    Attributes:
        database: Which database's conversations, 12 hexadecimal digits. It outlives a renewal.
        generation: 16 random hexadecimal digits, made anew when L2 is not what it was, or when the cache has
            moved to another Redis. All processes read the same one in PostgreSQL.
        reign: The Redis that the cache is attached to, `<run_id>.<master_replid>`.
        secret: What entries are signed with.
    """

    database: str
    generation: str
    reign: str
    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """`<database>.<generation>`, as it stands in every key."""
        return f"{self.database}.{self.generation}"
