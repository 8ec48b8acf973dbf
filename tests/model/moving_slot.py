"""Every schedule of the burst protocol on two masters of a Redis Cluster, between which one slot moves.

    python tests/model/moving_slot.py [--break RULE] [--moves 2] [--failovers 1] [--evictions 0] [--readers 1]

One scope, whose slot is on one of two masters. Each writer (one saver) does one burst of puts; each reader
reads once. All interleavings are walked, depth first. A move takes the entry to the other master as it is. A
failover replaces a master by its replica, whose copy of the entry may be older: a step is copied to the
replica later, or never. A hit is stale if a write that was acknowledged before the read began is newer.

The rules, and what happens without one:

    reign-field     a step deletes an entry that names another reign. Broken: it believes the entry.
    config-epoch    the reign holds the master's configuration epoch, which grows when a slot arrives. Broken:
                    an entry that went away and came back is believed, although a failover elsewhere has lost
                    a change of it.
    confirm         the writer asks whether its intent still stands before it acknowledges.
    fence           a reader that looks at PostgreSQL during a burst does not warm up.

With `--late`, a process knows the configuration epoch from its last look, as in the library. Then a hit may
be late, until the process looks again, but not stale after that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

__all__ = ["RULES", "Bounds", "walk"]

T = TypeVar("T")

RULES = ("reign-field", "config-epoch", "confirm", "fence")


class Reign(NamedTuple):
    """A reign of a master: its process, and its configuration epoch."""

    process: int
    epoch: int


class Entry(NamedTuple):
    """The entry: image (0: none), intents (burst, armed), the lease's reader (-1: none), the reign."""

    image: int = 0
    intents: tuple[tuple[int, bool], ...] = ()
    lease: int = -1
    reign: Reign | None = None


NOTHING = Entry()


class Writer(NamedTuple):
    """A writer: where it is, its next put, the newest id of its burst, and what it knows."""

    at: str = "begin"
    put: int = 0
    newest: int = 0
    is_contested: bool = False
    is_covered: bool = False


class Reader(NamedTuple):
    """A reader: where it is, what it must not be older than, whether it has a lease, what it found."""

    at: str = "read"
    needs: int = 0
    has_lease: bool = False
    value: int = 0


class State(NamedTuple):
    """The masters' entries, the replicas' copies, PostgreSQL, the processes, and the faults that are left."""

    entries: tuple[Entry, ...]
    copies: tuple[Entry, ...]
    reigns: tuple[Reign, ...]
    known: tuple[int, ...]  # each process's look at the owner's configuration epoch
    owner: int
    committed: int
    fences: frozenset[int]
    acknowledged: int
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    moves: int
    failovers: int
    evictions: int


@dataclass(frozen=True)
class Bounds:
    """What is walked: the rule that is broken, the puts of each writer, and how many faults there may be."""

    broken: str = ""
    puts: tuple[tuple[int, ...], ...] = ((2, 3),)
    readers: int = 1
    moves: int = 2
    failovers: int = 1
    evictions: int = 0
    late: bool = False


class Walk:
    """The steps of one model."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def start(self) -> State:
        """The first state: an image that fits stands on the first master, copied to its replica."""
        reigns = (Reign(0, 1), Reign(1, 2))
        processes = len(self.bounds.puts) + self.bounds.readers
        reign = Reign(0, 0) if self.bounds.broken == "config-epoch" else reigns[0]
        entries = Entry(image=1, reign=reign), NOTHING
        return State(
            entries,
            entries,
            reigns,
            (1,) * processes,
            0,
            1,
            frozenset(),
            1,
            tuple(Writer() for _ in self.bounds.puts),
            tuple(Reader() for _ in range(self.bounds.readers)),
            self.bounds.moves,
            self.bounds.failovers,
            self.bounds.evictions,
        )

    def steps(self, s: State) -> Iterator[tuple[str, State]]:
        """Yield every step that is possible now, with the state after it."""
        yield from self._faults(s)
        for i, writer in enumerate(s.writers):
            yield from self._look(s, i)
            yield from self._write(s, i, writer)
        for i, reader in enumerate(s.readers):
            yield from self._look(s, len(s.writers) + i)
            yield from self._read(s, i, reader)

    # ------------------------------------------------------------------ Redis

    def _faults(self, s: State) -> Iterator[tuple[str, State]]:
        here, there = s.owner, 1 - s.owner
        if s.copies != s.entries:
            yield "replicate", s._replace(copies=s.entries)
        if s.moves:
            entries = _with(_with(s.entries, there, s.entries[here]), here, NOTHING)
            copies = _with(_with(s.copies, there, s.entries[here]), here, NOTHING)
            reigns = _with(s.reigns, there, Reign(s.reigns[there].process, self._next_epoch(s)))
            yield (
                f"the slot moves to {there}",
                s._replace(entries=entries, copies=copies, reigns=reigns, owner=there, moves=s.moves - 1),
            )
        if s.failovers:
            process = max(reign.process for reign in s.reigns) + 1
            reigns = _with(s.reigns, here, Reign(process, self._next_epoch(s)))
            yield (
                f"{here} fails over",
                s._replace(
                    entries=_with(s.entries, here, s.copies[here]), reigns=reigns, failovers=s.failovers - 1
                ),
            )
        if s.evictions and s.entries[here] != NOTHING:
            yield "evict", s._replace(entries=_with(s.entries, here, NOTHING), evictions=s.evictions - 1)

    @staticmethod
    def _next_epoch(s: State) -> int:
        return max(reign.epoch for reign in s.reigns) + 1

    def _look(self, s: State, process: int) -> Iterator[tuple[str, State]]:
        now = s.reigns[s.owner].epoch
        if self.bounds.late and s.known[process] != now:
            yield f"p{process} looks", s._replace(known=_with(s.known, process, now))

    def _reign(self, s: State, process: int) -> Reign:
        """The reign that a process's script names. Redis itself compares the process, by the guard."""
        reign = s.reigns[s.owner]
        if self.bounds.broken == "config-epoch":
            return Reign(reign.process, 0)
        return Reign(reign.process, s.known[process]) if self.bounds.late else reign

    def _entry(self, s: State, process: int) -> Entry:
        """The entry as a step finds it: nothing, if it names another reign."""
        entry = s.entries[s.owner]
        if self.bounds.broken == "reign-field" or entry.reign == self._reign(s, process):
            return entry
        return NOTHING

    def _store(self, s: State, process: int, entry: Entry) -> State:
        """Store what a step leaves. An empty hash does not exist."""
        is_empty = entry._replace(reign=None) == NOTHING
        stored = NOTHING if is_empty else entry._replace(reign=self._reign(s, process))
        return s._replace(entries=_with(s.entries, s.owner, stored))

    # ------------------------------------------------------------------ processes

    def _write(self, s: State, i: int, w: Writer) -> Iterator[tuple[str, State]]:
        ids, entry = self.bounds.puts[i], self._entry(s, i)
        own = dict(entry.intents)

        def then(state: State, **changes: object) -> State:
            return state._replace(writers=_with(state.writers, i, w._replace(**changes)))  # type: ignore[arg-type]

        if w.at == "begin":
            armed = not entry.intents
            others = entry.intents if armed else _disarmed(entry.intents)
            intents = tuple(sorted((*others, (i, armed))))
            yield (
                f"w{i} BEGIN",
                then(self._store(s, i, entry._replace(intents=intents, lease=-1)), at="statement"),
            )
        elif w.at == "statement":
            id_ = ids[w.put]
            is_covered = w.is_covered and i in s.fences
            after = s._replace(committed=max(s.committed, id_), fences=s.fences | {i})
            yield (
                f"w{i} commits {id_}",
                then(
                    after,
                    at="ack" if is_covered or self.bounds.broken == "confirm" else "confirm",
                    newest=max(w.newest, id_) if id_ > s.committed else w.newest,
                    is_contested=w.is_contested or bool(s.fences - {i}),
                    is_covered=True,
                ),
            )
        elif w.at == "confirm":
            if i in own:
                yield f"w{i} CONFIRM", then(s, at="ack")
            else:
                lost = entry._replace(image=0, intents=_disarmed(entry.intents), lease=-1)
                yield f"w{i} CONFIRM: lost", then(self._store(s, i, lost), at="ack", is_contested=True)
        elif w.at == "ack":
            done = w.put + 1 == len(ids)
            after = s._replace(acknowledged=max(s.acknowledged, ids[w.put]))
            yield f"w{i} ack {ids[w.put]}", then(after, at="commit" if done else "statement", put=w.put + 1)
        elif w.at == "commit":
            rest = tuple(each for each in entry.intents if each[0] != i)
            if own.get(i) and not w.is_contested and w.newest > entry.image:
                left = entry._replace(image=w.newest, intents=rest, lease=-1)
            else:
                left = Entry(0, _disarmed(rest), -1)
            yield f"w{i} COMMIT {left.image}", then(self._store(s, i, left), at="unfence")
        elif w.at == "unfence":
            yield f"w{i} unfence", then(s._replace(fences=s.fences - {i}), at="done")

    def _read(self, s: State, i: int, r: Reader) -> Iterator[tuple[str, State]]:
        process = len(s.writers) + i
        entry = self._entry(s, process)

        def then(state: State, **changes: object) -> State:
            return state._replace(readers=_with(state.readers, i, r._replace(**changes)))  # type: ignore[arg-type]

        if r.at == "read":
            needs = s.acknowledged
            if entry.intents:
                yield f"r{i} READ: busy", then(s, at="select", needs=needs)
            elif entry.image:
                is_late = self.bounds.late and s.known[process] != s.reigns[s.owner].epoch
                what = "" if entry.image >= needs else " late" if is_late else " STALE"
                yield f"r{i} READ: hit {entry.image}, needs {needs}{what}", then(s, at="read again")
            else:
                leased = self._store(s, process, entry._replace(lease=i))
                yield f"r{i} READ: miss", then(leased, at="select", needs=needs, has_lease=True)
        elif r.at == "select":
            is_fenced = bool(s.fences) and self.bounds.broken != "fence"
            at = "warm up" if r.has_lease and not is_fenced else "read again"
            yield f"r{i} SELECT {s.committed}", then(s, at=at, value=s.committed)
        elif r.at == "warm up":
            if entry.lease == i and not entry.intents and r.value:
                warm = self._store(s, process, Entry(r.value))
                yield f"r{i} WARM_UP {r.value}", then(warm, at="read again")
            else:
                yield f"r{i} WARM_UP: refused", then(s, at="read again")
        elif r.at == "read again" and r.needs != -1:
            yield f"r{i} begins again", then(s, at="last", needs=-1, has_lease=False, value=0)
        elif r.at == "last" and entry.image and not entry.intents:
            is_late = self.bounds.late and s.known[process] != s.reigns[s.owner].epoch
            if entry.image < s.acknowledged and not is_late:
                yield f"r{i} READ: hit {entry.image}, needs {s.acknowledged} STALE", then(s, at="done")


def walk(bounds: Bounds) -> tuple[int, list[str]]:
    """Walk every schedule. Return the number of states, and the steps to a stale hit, if there is one."""
    model = Walk(bounds)
    start = model.start()
    parents: dict[State, tuple[State, str] | None] = {start: None}
    stack = [start]
    while stack:
        state = stack.pop()
        for name, after in model.steps(state):
            if name.endswith("STALE"):
                path, at = [name], parents[state]
                while at is not None:
                    path.append(at[1])
                    at = parents[at[0]]
                return len(parents), path[::-1]
            if after not in parents:
                parents[after] = state, name
                stack.append(after)
    return len(parents), []


def _disarmed(intents: tuple[tuple[int, bool], ...]) -> tuple[tuple[int, bool], ...]:
    return tuple((burst, False) for burst, _ in intents)


def _with(items: tuple[T, ...], at: int, item: T) -> tuple[T, ...]:
    return (*items[:at], item, *items[at + 1 :])


def main() -> None:
    """Walk once, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--break", dest="broken", default="", choices=("", *RULES))
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--puts", default="2,3", help="of each writer, greater than 1: 2,4/3,5")
    for name, default in (("moves", 2), ("failovers", 1), ("evictions", 0), ("readers", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    puts = tuple(tuple(map(int, each.split(","))) for each in args.puts.split("/"))
    bounds = Bounds(
        args.broken, puts, args.readers, args.moves, args.failovers, args.evictions, late=args.late
    )
    states, path = walk(bounds)
    found = f"COUNTEREXAMPLE: {' | '.join(path)}" if path else "no stale hit"
    sys.stdout.write(f"{states} states, {found}\n")
    sys.exit(1 if path else 0)


if __name__ == "__main__":
    main()
