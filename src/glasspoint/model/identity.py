"""The identity: which data the entries in Redis belong to. L2 keeps it, and L1 puts it into keys."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Identity", "next_era"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of L2, for one cache.

    Attributes:
        database: The database, 12 hexadecimal digits. A renewal does not change it.
        generation: 16 random hexadecimal digits. A renewal makes new ones: when L2 has changed behind the
            cache, or when the cache has moved to another Redis. All processes read them from PostgreSQL. In a
            Redis Cluster, `-` and an era may follow.
        reign: The Redis that the cache is attached to, `<run_id>.<master_replid>`.
        secret: The key that signs the entries.
    """

    database: str
    generation: str
    reign: str
    secret: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """`<database>.<generation>` without the era: the part of each key that names the identity."""
        return f"{self.database}.{self.generation.partition('-')[0]}"

    @property
    def era(self) -> str:
        """The era: a part of the reign in each entry of a Redis Cluster, so not of the keys.

        A process that still has the era before deletes the entries of the new one, and the other way round.
        So no process reads an entry that a write in another era has passed by. `""`: it is the first era.
        """
        return self.generation.partition("-")[2]


def next_era(generation: str, era: str) -> str:
    """Return a generation in another era.

    Args:
        era: Random hexadecimal digits.
    """
    return f"{generation.partition('-')[0]}-{era}"
