"""Tells whether the move of a slot of a Redis Cluster was called off, after keys have left its owner.

Open this file when a cache on a cluster begins anew although nothing has failed over.

While a slot moves, its keys leave its owner one after the other (MIGRATE). If the move is called off (SETSLOT
… STABLE), the owner serves the slot without these keys. Writes pass them by: a step finds no entry, and
neither does the DROP of a sweep. When such a key comes back later, perhaps in place of a newer entry (MIGRATE
… REPLACE), it names the reign of the owner, and nothing in it tells that it is outdated. So the cache begins
another era (`model.identity`), as soon as a process sees that a move was called off.

Each look at a master compares what it finds with what the last look found:

    a slot was on its way to a node; it is not any more, and the master still owns it     called off
    the master has executed MIGRATE since; no slot was or is on its way, none is gone     called off, between
                                                                                          two looks
    anything else                                                                         a move, or nothing

The server counts its calls of MIGRATE, so a move may begin and be called off between two looks. It is not
seen then if another slot leaves the same master at that time, because that slot explains the calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from glasspoint.redis.topology import lines_of, open_slots_in

__all__ = ["Sight", "calls_of_migrate", "has_to_ask", "sight_of", "what_was_called_off"]

_CALLS = re.compile(rb"cmdstat_migrate:calls=(\d+)")


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look has found at a master.

    Attributes:
        process: The server process: see `epoch.Server.process`.
        calls: How often this process has executed MIGRATE.
        owned: The slots that it owns.
        leaving: The slots that are on their way to another node: slot, and the id of this node.
        known: The ranges of its slots in the topology that was known then.
    """

    process: tuple[str, ...]
    calls: int
    owned: frozenset[int]
    leaving: frozenset[tuple[int, str]]
    known: tuple[tuple[int, int], ...] = ()


def calls_of_migrate(info: bytes) -> int:
    """Return how often a server has executed MIGRATE, from its INFO commandstats."""
    found = _CALLS.search(info)
    return int(found[1]) if found else 0


def sight_of(
    info: bytes, nodes: str, *, process: tuple[str, ...], known: tuple[tuple[int, int], ...]
) -> Sight:
    """Return what a master has told.

    Args:
        info: INFO commandstats.
        nodes: CLUSTER NODES.
        process: See `Sight.process`.
        known: See `Sight.known`.
    """
    [own] = [line for line in lines_of(nodes) if "myself" in line[2].split(",")]
    owned: set[int] = set()
    for each in own[8:]:
        first, _, last = each.partition("-")
        if not each.startswith("["):
            owned |= set(range(int(first), int(last or first) + 1))
    leaving = frozenset((each.slot, each.other) for each in open_slots_in([own]) if each.leaves)
    return Sight(process, calls_of_migrate(info), frozenset(owned), leaving, known)


def has_to_ask(
    last: Sight | None, *, calls: int, process: tuple[str, ...], known: tuple[tuple[int, int], ...]
) -> bool:
    """Tell whether a master has to be asked for its slots. In most looks, it has not."""
    return (
        last is None
        or bool(last.leaving)
        or (last.calls, last.process, last.known) != (calls, process, known)
    )


def what_was_called_off(last: Sight | None, now: Sight) -> str:
    """Return what has happened, for the log; `""` if no move was called off."""
    if last is None or last.process != now.process:
        return ""  # what was there before another process is not trusted
    stayed = sorted({slot for slot, _ in last.leaving - now.leaving} & now.owned)
    if stayed:
        slots = f"slot{'s' * (len(stayed) > 1)} {', '.join(map(str, stayed))}"
        return f"the move of {slots} was called off"
    # The operator may have set the counter back (CONFIG RESETSTAT).
    has_executed = now.calls > 0 and now.calls != last.calls
    is_explained = last.leaving or now.leaving or last.owned - now.owned
    return "keys have left (MIGRATE), but no slot" if has_executed and not is_explained else ""
