"""The service level objectives, for the boards and the alerts: change them here, then `make dashboards`.

A burn rate is how many times faster than planned the errors that an objective allows are used up: 1 uses up
30 days' allowance in 30 days, 14.4 in two days. 1, 6 and 14.4 are usual thresholds of multi-window alerts.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AVAILABILITY",
    "BURN_RATES",
    "DISK_GIB",
    "OBJECTIVES",
    "READ_LATENCY",
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
        target: The share, below 1.
        operations: The calls that count, as the label `operation` names them.
        within_seconds: A good call takes no longer: the bound of one of the histogram's buckets. `None`: a
            good call is one that does not fail.
    """

    name: str
    target: float
    operations: tuple[str, ...]
    within_seconds: float | None = None


AVAILABILITY = Objective("reads and writes without error", 0.999, ("get_tuple", "put", "put_writes"))
READ_LATENCY = Objective("reads in time", 0.99, ("get_tuple",), within_seconds=0.1024)
WRITE_LATENCY = Objective("writes in time", 0.99, ("put", "put_writes"), within_seconds=0.4096)

OBJECTIVES = (AVAILABILITY, READ_LATENCY, WRITE_LATENCY)
