"""What is explored of outages: writers that Redis does not hear, the journal, and who trusts Redis when."""

from __future__ import annotations

from model.scenarios import DELETE, READ, put, put_writes
from model.terms import Call, Move, Scenario

SWEEP = Call("sweep", lambda saver: saver._parts.sweeper.round())
COMPACT = Call("compact", lambda saver: saver._l2.journal.compact())

OUTAGES = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "put_writes || reader of the same process || reader",
            {"w": [put_writes(1)], "v": [READ, READ], "r": [READ, READ]},
            before=[put(1)],
            shares={"v": "w"},
        ),
        Scenario(
            "put_writes || reader of the same process",
            {"w": [put_writes(1)], "v": [READ, READ, READ]},
            before=[put(1)],
            shares={"v": "w"},
        ),
        Scenario(
            "put || reader of the same process || sweeper",
            {"w": [put(2)], "v": [READ, READ], "s": [SWEEP]},
            before=[put(1)],
            shares={"v": "w"},
        ),
        Scenario(
            "put_writes, its sweeper || reader || new reader",
            {"w": [put_writes(1)], "s": [SWEEP], "r": [READ], "n": [READ, READ]},
            before=[put(1)],
            shares={"s": "w"},
            new="n",
        ),
        Scenario(
            "read, put_writes || its sweeper, twice || its reader",
            {"w": [READ, put_writes(1)], "s": [SWEEP, SWEEP], "v": [READ]},
            before=[put(1)],
            shares={"s": "w", "v": "w"},
        ),
        Scenario(
            "put_writes || reader || sweeper",
            {"w": [put_writes(1)], "r": [READ, READ], "s": [SWEEP]},
            before=[put(1)],
        ),
        Scenario(
            "delete_thread || new reader || sweeper",
            {"d": [DELETE], "n": [READ, READ], "s": [SWEEP]},
            before=[put(1)],
            new="n",
        ),
        Scenario(
            "a row || sweeper || sweeper || new reader",
            {"s": [SWEEP], "t": [SWEEP], "n": [READ]},
            before=[put(1)],
            behind=[put(2)],
            new="stn",
        ),
        Scenario(
            "a row || sweeper || put_writes || reader",
            {"s": [SWEEP], "w": [put_writes(1)], "r": [READ]},
            before=[put(1)],
            leftover=True,
        ),
        Scenario(
            "a row || sweeper || put_writes || compaction || reader",
            {"s": [SWEEP], "w": [put_writes(1)], "c": [COMPACT], "r": [READ]},
            before=[put(1)],
            leftover=True,
        ),
        Scenario(
            "a row || put_writes, its new sweeper and reader || reader",
            {"w": [put_writes(1)], "s": [SWEEP], "v": [READ], "r": [READ]},
            before=[put(1)],
            leftover=True,
            shares={"s": "w", "v": "w"},
            new="w",
        ),
    )
}

QUARANTINED = Scenario(
    "read, put_writes || its sweeper || its reader || reader",
    {"w": [READ, put_writes(1)], "s": [SWEEP], "v": [READ], "r": [READ]},
    before=[put(1)],
    leftover=True,
    shares={"s": "w", "v": "w"},
)
"""A scope that Redis refuses to one process. Too large to explore from its beginning: see `REFUSED_ONCE`."""

REFUSED_ONCE: tuple[Move, ...] = (
    ("forbid", "w"),
    ("step", "w", "read"),
    ("step", "w", "select"),
    ("allow", "w"),
    ("step", "s", "look"),
)
"""The beginning: it is in quarantine, and the sweeper is about to try it again."""
