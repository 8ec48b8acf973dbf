"""What is explored of identity: PostgreSQL is not what it was, others write to it, the cache moves."""

from __future__ import annotations

from glasspoint.model.scope import Scope
from model.outages import SWEEP
from model.scenarios import DELETE, READ, put, put_writes
from model.terms import Scenario

OTHER = Scope("other", "")

IDENTITIES = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "put || reader that opens",
            {"w": [put(2)], "r": [READ, READ]},
            before=[put(1)],
            opening="r",
        ),
        Scenario(
            "put, its sweeper || reader that opens",
            {"w": [put(2)], "s": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            shares={"s": "w"},
            opening="r",
        ),
        Scenario(
            "put, its slow sweeper || reader that opens",
            {"w": [put(2)], "s": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            shares={"s": "w"},
            opening="r",
            slow="s",
        ),
        Scenario(
            "put, its sweeper and reader || reader that opens",
            {"w": [put(2)], "s": [SWEEP], "v": [READ], "r": [READ]},
            before=[put(1)],
            shares={"s": "w", "v": "w"},
            opening="r",
        ),
        Scenario(
            "put, its sweeper || reader that opens || sweeper",
            {"w": [put(2)], "s": [SWEEP], "r": [READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "w"},
            opening="r",
        ),
        Scenario(
            "put_writes, its sweeper, twice, and reader",
            {"w": [put_writes(1)], "s": [SWEEP, SWEEP], "v": [READ, READ]},
            before=[put(1)],
            shares={"s": "w", "v": "w"},
        ),
        Scenario(
            "put || reader, its sweeper",
            {"p": [put(2)], "r": [READ, READ], "s": [SWEEP]},
            before=[put(1)],
            shares={"s": "r"},
        ),
        Scenario(
            "two puts, their sweeper || reader, its sweeper",
            {"p": [put(2), put(3)], "s": [SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "p", "t": "r"},
        ),
        Scenario(
            "delete_thread || reader, its sweeper",
            {"d": [DELETE], "r": [READ, READ], "s": [SWEEP]},
            before=[put(1)],
            shares={"s": "r"},
        ),
        Scenario(
            "delete_thread, its sweeper || reader that opens",
            {"d": [DELETE], "s": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            shares={"s": "d"},
            opening="r",
        ),
    )
}

FOREIGN_WRITES = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "foreign put || reader, its sweeper || new reader",
            {"f": [put(2)], "r": [READ, READ], "s": [SWEEP], "n": [READ]},
            before=[put(1)],
            shares={"s": "r"},
            foreign="f",
            new="n",
        ),
        Scenario(
            "foreign put elsewhere, foreign put || sweeper || reader that opens",
            {"f": [put(2, scope=OTHER), put(2)], "s": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            foreign="f",
            opening="r",
        ),
        Scenario(
            "foreign put_writes || put || sweeper || reader",
            {"f": [put_writes(1, "other")], "p": [put(2)], "s": [SWEEP], "r": [READ]},
            before=[put(1)],
            foreign="f",
        ),
        Scenario(
            "foreign delete_thread || put, its sweeper || reader",
            {"f": [DELETE], "p": [put(2)], "s": [SWEEP], "r": [READ]},
            before=[put(1)],
            shares={"s": "p"},
            foreign="f",
        ),
        Scenario(
            "foreign delete_thread || reader, cold || sweeper",
            {"f": [DELETE], "r": [READ, READ], "s": [SWEEP]},
            before=[put(1)],
            cold=True,
            foreign="f",
        ),
    )
}

TWO_SERVERS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "put_writes, its sweeper || reader on another Redis",
            {"w": [put_writes(1)], "s": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            shares={"s": "w"},
            there="r",
        ),
        Scenario(
            "reader, its sweeper || put on another Redis",
            {"r": [READ, READ], "s": [SWEEP], "p": [put(2)]},
            before=[put(1)],
            shares={"s": "r"},
            there="p",
        ),
        Scenario(
            "put_writes, its sweeper, twice || reader on another Redis, its sweeper",
            {"w": [put_writes(1)], "s": [SWEEP, SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "w", "t": "r"},
            there="r",
        ),
    )
}

CHANGING = IDENTITIES | FOREIGN_WRITES | TWO_SERVERS
