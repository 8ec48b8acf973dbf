"""What is explored: who does what at the same time."""

from __future__ import annotations

from typing import Any

from glasspoint.model.scope import Scope
from model.terms import CONFIG, SCOPE, Call, Scenario
from states import config_of, numbered_id


def put(
    number: int,
    *,
    parent: int | None = None,
    fork: int | None = None,
    bare: bool = False,
    scope: Scope = SCOPE,
) -> Call:
    """Store the `number`th checkpoint.

    Args:
        parent: The one before, by default; 0 for none.
        fork: It brings no values, and refers to those that this one brought.
        bare: It brings the channel `turn` only, and refers to the parent's `log`.
        scope: Where; of another one than `SCOPE` nobody reads.
    """
    parent = number - 1 if parent is None else parent
    log = fork or (parent if bare else number)
    versions = {"log": f"{log:032}.5", "turn": f"{number:032}.5"}
    checkpoint: Any = {
        "v": 4,
        "id": numbered_id(number),
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {"log": [log], "turn": number},
        "channel_versions": versions,
        "versions_seen": {},
        "updated_channels": None,
    }
    brings = ["turn"] if fork or bare else ["log", "turn"]
    config = config_of(*scope, numbered_id(parent) if parent else None)
    new = {channel: versions[channel] for channel in brings}
    return Call(f"put {number}", lambda saver: saver.aput(config, checkpoint, {"step": number}, new))


def put_writes(
    number: int, task: str = "task", *, channels: tuple[str, ...] = ("log",), value: Any = None
) -> Call:
    """Store pending writes of the `number`th checkpoint."""
    config = config_of(*SCOPE, numbered_id(number))
    writes = [(channel, [task, value]) for channel in channels]
    return Call(f"put_writes {number} {task}", lambda saver: saver.aput_writes(config, writes, task))


def special(number: int, value: str, task: str = "task") -> Call:
    """Store a special write, which replaces the one before."""
    return put_writes(number, task, channels=("__interrupt__",), value=value)


READ = Call("read", lambda saver: saver.aget_tuple(CONFIG), reads=True)
READER = [READ]  # two of the very same are symmetric
DELETE = Call("delete_thread", lambda saver: saver.adelete_thread(SCOPE.thread_id))
PRUNE = Call("prune", lambda saver: saver.aprune([SCOPE.thread_id], strategy="delete"))

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("burst of two || reader", {"p": [put(2), put(3)], "r": [READ, READ]}, before=[put(1)]),
        Scenario(
            "burst with an own read || reader",
            {"p": [put(2), READ, put_writes(2), READ], "r": [READ]},
            before=[put(1)],
        ),
        Scenario(
            "put, its put_writes || reader || reader, cold",
            {"p": [put(2), put_writes(2)], "r": READER, "s": READER},
            before=[put(1)],
            cold=True,
        ),
        Scenario(
            "fork put || reader",
            {"p": [put(3, parent=0, fork=1)], "r": [READ, READ]},
            before=[put(1), put(2)],
        ),
        Scenario(
            "special writes of one process || reader",
            {"v": [special(1, "one")], "w": [special(1, "two")], "r": [READ, READ]},
            before=[put(1), special(1, "zero")],
            shares={"w": "v"},
            slow="vw",
        ),
        Scenario("two puts || reader", {"p": [put(2)], "q": [put(3)], "r": [READ]}, before=[put(1)]),
        Scenario("burst of two || put", {"p": [put(2), put(4)], "q": [put(3)]}, before=[put(1)]),
        Scenario("two puts, cold", {"p": [put(2)], "q": [put(3, bare=True)]}, before=[put(1)], cold=True),
        Scenario("put || its put_writes", {"p": [put(2)], "w": [put_writes(2)]}, before=[put(1)]),
        Scenario(
            "the same put_writes twice",
            {"v": [put_writes(1, value="first")], "w": [put_writes(1, value="second")]},
            before=[put(1)],
        ),
        Scenario(
            "special writes upon another || special writes",
            {"v": [special(1, "one")], "w": [special(1, "two")]},
            before=[put(1), special(1, "zero")],
        ),
        Scenario(
            "burst of two || delete_thread", {"p": [put(2), put_writes(2)], "d": [DELETE]}, before=[put(1)]
        ),
        Scenario("put || prune", {"p": [put(2)], "d": [PRUNE]}, before=[put(1)]),
    )
}
"""Each is explored whole."""

LARGE = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "burst of two || delete_thread || reader",
            {"p": [put(2), put_writes(2)], "d": [DELETE], "r": [READ]},
            before=[put(1)],
        ),
        Scenario("put || prune || reader", {"p": [put(2)], "d": [PRUNE], "r": [READ]}, before=[put(1)]),
        Scenario(
            "burst of two || put || reader",
            {"p": [put(2), put(4)], "q": [put(3)], "r": [READ]},
            before=[put(1)],
        ),
        Scenario(
            "burst of two || burst of two || reader",
            {"p": [put(2), put_writes(2)], "q": [put(3), put_writes(3)], "r": [READ]},
            before=[put(1)],
        ),
        Scenario(
            "put || its put_writes || reader",
            {"p": [put(2)], "w": [put_writes(2)], "r": [READ]},
            before=[put(1)],
        ),
        Scenario(
            "the same put_writes twice || reader",
            {"v": [put_writes(1, value="first")], "w": [put_writes(1, value="second")], "r": [READ]},
            before=[put(1)],
        ),
    )
}
"""Each is explored whole by `make explore` only."""
