"""What stands in Redis during a run, without asking it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

from model import store
from model.terms import (
    TTL_SECONDS,
    WRITE_DEADLINE_SECONDS,
    Outcome,
    Place,
)
from model.wires import Wire

_EPOCH = b", epoch "


class Reigns(store.Reigns):
    """The first one here is `here 0`, the next `here 1`."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._current: dict[str, str] = {}
        self._masters: dict[bytes, bytes] = {}

    def forget(self) -> None:
        """A new run."""
        self._names.clear()
        self._current.clear()
        self._masters.clear()

    def meet_master(self, where: str, process: str) -> None:
        """A master of a cluster reigns.

        Args:
            process: What its reign begins with; the configuration epoch follows.
        """
        number = sum(name.startswith(where.encode()) for name in self._masters.values())
        self._masters.setdefault(process.encode(), f"{where} {number}".encode())

    def of_master(self, reign: Any) -> Any:
        """Return what the reign of a master is called, as it stands in an entry; anything else as it is."""
        if not isinstance(reign, bytes) or not self._masters:
            return reign
        run_id, replid, *rest = [*reign.split(b"."), b""]
        process = run_id + b"." + replid
        if reign in self._masters:  # where a mutation leaves the epoch out
            return self._masters[reign]
        epoch = b".".join(rest).rstrip(b".")
        return self._masters[process] + _EPOCH + epoch if process in self._masters else reign

    def real_of_master(self, name: bytes) -> bytes:
        """Return the reign of a master that is called so."""
        master, *epoch = name.split(_EPOCH)
        process = next(process for process, its in self._masters.items() if its == master)
        return b".".join((process, *epoch))

    def meet(self, where: str, reign: str) -> None:
        """A server reigns."""
        number = sum(name.startswith(where) for name in self._names.values())
        self._names.setdefault(reign, f"{where} {number}")
        self._current[where] = reign

    def name(self, reign: str) -> str:
        return self._names.get(reign, reign)

    def real(self, name: str) -> str:
        return next((reign for reign, its in self._names.items() if its == name), name)

    def shown(self, key: bytes) -> str:
        """Return a key, with the names."""
        text = key.decode()
        for reign, name in self._names.items():
            text = text.replace(reign, name)
        return text

    def is_of_the_past(self, key: bytes) -> bool:
        """Whether it holds a reign that is over."""
        return any(reign.encode() in key for reign in self._names.keys() - self._current.values())


class Entries:
    """What stands in the Redis servers, as the explorer knows it, and what they have yet to be sent.

    Attributes:
        wires: Connections to the servers that no gate stands in front of.
        reigns: The reigns of the servers, by names that are the same in every run.
        now: The entries.
        ttls: Milliseconds that an entry has to live, as Redis said last.
        unsent: Commands that go to a server before the next script.
        replayed: What Redis did in the run that is repeated; `None` if Redis is asked.
        outcomes: What Redis did in this run.
        history: The entries as they were after every change.
        first: Where the entry is that the run begins with, and `base`, what it is.
        suffix: How the keys of the explored scope end.
    """

    first: Place
    suffix: bytes

    def __init__(self, wires: dict[str, Wire]) -> None:
        self.wires = wires
        self.reigns = Reigns()
        self.now: dict[Place, dict[bytes, bytes]] = {}
        self.ttls: dict[Place, int] = {}
        self.unsent: dict[str, list[tuple[Any, ...]]] = {}
        self.replayed: deque[Outcome] | None = None
        self.outcomes: list[Outcome] = []
        self.history: list[dict[Place, dict[bytes, bytes]]] = []
        self.base: dict[bytes, bytes] = {}

    def saw(self, place: Place, entry: Sequence[bytes], ttl: int) -> bool:
        """Learn what an entry is after a script, and return whether it lasts as long as the intents in it."""
        self.ttls[place] = ttl
        self.now.pop(place, None)
        found = dict(zip(entry[::2], entry[1::2], strict=True))
        if found:
            self.now[place] = found
        return not any(is_live(*item) for item in found.items()) or ttl >= WRITE_DEADLINE_SECONDS * 1000

    def remember(self) -> None:
        """Keep the entries as they are, for a Redis that restarts from here."""
        if self.now != self.history[-1]:
            self.history.append(dict(self.now))

    def live_intents(self) -> list[str]:
        intents = [
            self.plain(place, field_)
            for place, entry in self.now.items()
            if not self.reigns.is_of_the_past(place[1])
            for field_, value in entry.items()
            if is_live(field_, value)
        ]
        return list(dict.fromkeys(intents))

    def expire(self, intent: str) -> None:
        for place, entry in list(self.now.items()):
            for field_, value in entry.items():
                if self.plain(place, field_) == intent:
                    past = b"1:" + value.rpartition(b":")[2]
                    self.send(place[0], ("HSET", place[1], field_, past))
                    self.now[place] = self.now[place] | {field_: past}

    def put_back(self) -> None:
        """Make the entries in Redis what they were at this point of an earlier run."""
        self.unsent = {where: [("FLUSHDB",), *self.commands_to_store(where)] for where in self.wires}

    def commands_to_store(self, where: str) -> list[tuple[Any, ...]]:
        commands: list[tuple[Any, ...]] = []
        for place, entry in self.now.items():
            if place[0] == where:
                ttl = self.ttls.get(place, 0)
                fields = [part for item in entry.items() for part in item]
                commands.append(("HSET", place[1], *fields))
                commands.append(("PEXPIRE", place[1], ttl if ttl > 0 else int(TTL_SECONDS * 1000)))
        return commands

    def send(self, where: str, *commands: tuple[Any, ...]) -> None:
        if self.replayed is None:
            self.unsent.setdefault(where, []).extend(commands)

    def state(self) -> tuple[Any, ...]:
        """What of all that a run can depend on."""
        return tuple(
            sorted(
                (self.reigns.shown(key), self.canonical(entry))
                for (_, key), entry in self.now.items()
                if not self.reigns.is_of_the_past(key)
            )
        )

    def run(self, where: str, key: bytes, script: tuple[Any, ...]) -> Outcome:
        """Send a script, and look what it leaves."""
        look = ("HGETALL", key), ("PTTL", key)
        return Outcome(*self.wires[where].send(*self.unsent.pop(where, ()), script, *look)[-3:])

    def replay(self) -> Outcome | None:
        """Return what Redis did next in the run that is repeated; `None`: ask Redis."""
        return None if self.replayed is None else self.replayed.popleft()

    def record(self, outcome: Outcome) -> None:
        """Remember what Redis did."""
        self.outcomes.append(outcome)

    def canonical(self, entry: dict[bytes, bytes]) -> tuple[Any, ...]:
        """Without the clock: what a name ends with, and what of a deadline is not whether it has passed."""
        return tuple(sorted((UNIQUE.sub(b"", k), self._canonical_value(k, v)) for k, v in entry.items()))

    def _canonical_value(self, field_: bytes, value: bytes) -> bytes:
        if field_.startswith(b"i:"):
            return b"live" + value[-2:] if len(value) > 10 else b"expired" + value[-2:]
        if field_ == b"reign":
            reign: bytes = self.reigns.of_master(value)
            return reign
        return UNIQUE.sub(b"", value) if field_ == b"lease" else value

    def canonical_answer(self, answer: Any) -> Any:
        """A result of a step, likewise."""
        if isinstance(answer, bytes):
            return UNIQUE.sub(b"", answer)
        if isinstance(answer, list):
            if len(answer) == 2 and isinstance(answer[1], list) and isinstance(answer[1][0], bytes):
                return answer[0], self.canonical(dict(zip(answer[1][::2], answer[1][1::2], strict=True)))
            return tuple(self.canonical_answer(each) for each in answer)
        return answer

    def label(self, place: Place) -> tuple[str, ...]:
        """What a key is called in a move: nothing, if it is that which the run began with."""
        if place == self.first:
            return ()
        return (self.reigns.shown(place[1].removesuffix(self.suffix)).partition(":2:")[2],)

    def plain(self, place: Place, field_: bytes) -> str:
        """What an intent is called in a move."""
        if not field_.startswith(b"i:"):
            return ""
        return "@".join((UNIQUE.sub(b"", field_).decode(), *self.label(place)))


def is_live(field_: bytes, value: bytes) -> bool:
    return field_.startswith(b"i:") and len(value) > 10


UNIQUE = re.compile(rb"(?<=[a-z0-9_])\.\d{9,}\.\d{1,6}$")
