"""What is explored in a Redis Cluster: the slot of the scope moves, while others read, write and sweep."""

from __future__ import annotations

from model.outages import SWEEP
from model.scenarios import DELETE, READ, put, put_writes
from model.terms import HERE, THERE, Scenario, SlotStep


def moved(to: str) -> list[SlotStep]:
    """The slot moves, in three steps."""
    return [SlotStep(to, ("begin",)), SlotStep(to, ("carry",)), SlotStep(to, ("arrive",))]


def moved_at_once(to: str) -> list[SlotStep]:
    """The slot moves, in one step."""
    return [SlotStep(to, ("begin", "carry", "arrive"))]


_AWAY = [SlotStep(THERE, ("begin",)), SlotStep(THERE, ("carry",))]
CALLED_OFF_AT_ONCE = [*_AWAY, SlotStep(THERE, ("call off",))]
"""The slot is on its way, and stays: its key comes back before anybody asks for it."""

MOVING = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "put || reader || the slot moves",
            {"w": [put(2)], "r": [READ, READ]},
            before=[put(1)],
            slot=moved(THERE),
        ),
        Scenario(
            "put || reader, its sweeper || reader || the slot moves",
            {"w": [put(2)], "r": [READ, READ], "s": [SWEEP], "t": [READ]},
            before=[put(1)],
            shares={"s": "r"},
            slot=moved(THERE),
        ),
        Scenario(
            "put || reader, its sweeper || sweep, read || the slot moves",
            {"w": [put(2)], "r": [READ, READ, READ], "s": [SWEEP], "t": [SWEEP, READ]},
            before=[put(1)],
            shares={"s": "r"},
            slot=moved(THERE),
            newest=THERE,
        ),
        Scenario(
            "sweep, put || sweep, sweep, read || the slot moves and comes back",
            {"w": [SWEEP, put(2)], "r": [SWEEP, SWEEP, READ]},
            before=[put(1)],
            slot=[*moved_at_once(THERE), *moved_at_once(HERE)],
        ),
        Scenario(
            "burst of two, its sweeper || reader, its sweeper || the slot moves and comes back",
            {"w": [put(2), put(3)], "s": [SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "w", "t": "r"},
            slot=[*moved(THERE), *moved(HERE)],
        ),
        Scenario(
            "two puts, their sweepers || reader || the slot moves and comes back",
            {"p": [put(2)], "s": [SWEEP], "q": [put(3)], "t": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            shares={"s": "p", "t": "q"},
            slot=[*moved_at_once(THERE), *moved_at_once(HERE)],
        ),
        Scenario(
            "delete_thread, its sweeper || reader, its sweeper || the slot moves and comes back",
            {"d": [DELETE], "s": [SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "d", "t": "r"},
            slot=[*moved_at_once(THERE), *moved_at_once(HERE)],
        ),
        Scenario(
            "put_writes, its sweeper and reader || reader, its sweeper || the slot moves, called off",
            {"w": [put_writes(1)], "s": [SWEEP], "v": [READ, READ], "r": [READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "w", "v": "w", "t": "r"},
            slot=CALLED_OFF_AT_ONCE,
        ),
        Scenario(
            "a row || sweeper || reader, its sweeper || the slot moves, called off",
            {"s": [SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            behind=[put(2)],
            shares={"t": "r"},
            new="sr",
            slot=CALLED_OFF_AT_ONCE,
        ),
    )
}

_COMES_BACK_LATER = [*_AWAY, SlotStep(THERE, ("stay",)), SlotStep(THERE, ("bring back",))]

CALLED_OFF = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "a row || sweeper, its reader || the slot stays, its key comes later",
            {"s": [SWEEP], "r": [READ, READ]},
            before=[put(1)],
            behind=[put(2)],
            shares={"r": "s"},
            new="s",
            slot=_COMES_BACK_LATER,
            replaces=True,
        ),
        Scenario(
            "put, its sweeper || reader, its sweeper || the slot stays, its key comes later",
            {"w": [put(2)], "s": [SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "w", "t": "r"},
            slot=_COMES_BACK_LATER,
            replaces=True,
        ),
        Scenario(
            "put, sweep, read || sweep, read || the slot stays, its key comes later",
            {"w": [put(2), SWEEP, READ], "r": [SWEEP, READ]},
            before=[put(1)],
            slot=_COMES_BACK_LATER,
        ),
        Scenario(
            "put || sweep, sweep, read || the slot stays, its key comes later",
            {"w": [put(2)], "r": [SWEEP, SWEEP, READ]},
            before=[put(1)],
            slot=_COMES_BACK_LATER,
            replaces=True,
        ),
        Scenario(
            "delete_thread, its sweeper || reader, its sweeper || the slot stays, its key comes later",
            {"d": [DELETE], "s": [SWEEP], "r": [READ, READ], "t": [SWEEP]},
            before=[put(1)],
            shares={"s": "d", "t": "r"},
            slot=_COMES_BACK_LATER,
            replaces=True,
        ),
    )
}
"""The owner serves the slot again before the key has come back, so that writes pass it by."""
