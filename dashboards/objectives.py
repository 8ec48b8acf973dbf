"""The service level objectives, for the boards and the alerts: change them here, then `make generate`.

A burn rate is how many times faster than planned the errors that an objective allows are used up: 1 uses up
30 days' allowance in 30 days, 14.4 in two days. 1, 6 and 14.4 are usual thresholds of multi-window alerts.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BURN_RATES",
    "DISK_GIB",
    "OBJECTIVES",
    "READ_AVAILABILITY",
    "READ_LATENCY",
    "WRITE_AVAILABILITY",
    "WRITE_LATENCY",
    "Objective",
]

BURN_RATES = (1.0, 6.0, 14.4)

DISK_GIB = 100
"""The disk that PostgreSQL may fill, in GiB, as long as nobody says otherwise on the board."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What share of the calls has to be good.

    Attributes:
        name: What the boards call it.
        slo: What the alerts call it.
        target: The share, below 1.
        operations: The calls that count, as the label `operation` names them.
        within_seconds: A good call takes no longer: the bound of one of the histogram's buckets. `None`: a
            good call is one that does not fail.
    """

    name: str
    slo: str
    target: float
    operations: tuple[str, ...]
    within_seconds: float | None = None


_READS = ("get_tuple",)
_WRITES = ("put", "put_writes")

READ_AVAILABILITY = Objective("reads that succeed", "read-availability", 0.999, _READS)
WRITE_AVAILABILITY = Objective("writes that succeed", "write-availability", 0.999, _WRITES)
READ_LATENCY = Objective("reads in time", "read-latency", 0.99, _READS, within_seconds=0.1024)
WRITE_LATENCY = Objective("writes in time", "write-latency", 0.99, _WRITES, within_seconds=0.4096)

OBJECTIVES = (READ_AVAILABILITY, WRITE_AVAILABILITY, READ_LATENCY, WRITE_LATENCY)
