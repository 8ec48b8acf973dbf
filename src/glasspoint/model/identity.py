"""The identity: which data the entries in Redis belong to. L2 keeps it, and L1 puts it into keys."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of L2, for one cache.

    Attributes:
        database: The database, 12 hexadecimal digits. A renewal does not change it.
        generation: 16 random hexadecimal digits. A renewal makes new ones: when L2 has changed behind the
            cache, or when the cache has moved to another Redis. All processes read them from PostgreSQL.
        reign: The Redis that the cache is attached to, `<run_id>.<master_replid>`.
        secret: The key that signs the entries.
    """

    database: str
    generation: str
    reign: str
    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """`<database>.<generation>`, the part of each key that names the identity."""
        return f"{self.database}.{self.generation}"
