"""The promise that every read must keep, and what a statement has changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from glasspoint.model import codec
from model import store
from model.cast import Actor, Process
from model.entries import Reigns
from model.printed import text_of
from model.terms import (
    SCOPE,
    Violation,
)


@dataclass
class Effect:
    """What a statement changed.

    Attributes:
        rows: (table, key, row or `None`).
        required: It is acknowledged, or one that is acknowledged found its row there: every read that begins
            from now on must show it.
        has_row: Whether the journal says that Redis was not told of it.
        is_untold: Whether its process has met a failure since.
        excused: Names of processes that may read the state before it nevertheless, because they trusted Redis
            when the row was made, and have met no failure since; until a sweep ends that began after it.
        late: Likewise, because they were late when it was acknowledged; until they look.
        astray: The process that has written it, if that was late itself: all others may read the state before
            it, until a row is made.
        resets: Whether nothing that was before it counts any more.
    """

    rows: tuple[tuple[str, Any, Any], ...]
    required: bool = False
    has_row: bool = False
    is_untold: bool = False
    excused: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    astray: str | None = None
    resets: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether all must show it."""
        return self.required and not self.excused and not self.late and self.astray is None

    def must_be_shown_by(self, process: Process) -> bool:
        """Whether a read that begins now must show it."""
        is_excused = process.name in self.excused or process.name in self.late
        return self.required and not is_excused and self.astray in (None, process.name)


class Promise:
    """What reads are promised, and who is excused from it: by this, every read of a run is judged.

    Attributes:
        base: The tables with which a run begins.
        effects: What the statements of the run have changed, one after the other.
        views: What PostgreSQL has shown to a read of the explored scope, one after the other.
        is_lossy: Whether the entry may have lost something.
        violation: The first one of the run.
        reads: How many reads were judged, in all runs.
        excused: How many were not, because the process was behind.
        is_used, is_changed: Whether the last step has asked what is promised, and whether it has changed it.
        processes, actors: Who acts in the run.
    """

    base: store.Tables

    def __init__(self, reigns: Reigns) -> None:
        self._reigns = reigns
        self._view_of: dict[Any, str] = {}
        self._view_in: dict[Any, str] = {}
        self.serde: Any = None
        self.is_used = self.is_changed = False
        self.reads = 0
        self.excused = 0
        self.violation: Violation | None = None
        self.effects: list[Effect] = []
        self.views: list[str] = []
        self.is_lossy = False
        self.processes: dict[str, Process] = {}
        self.actors: list[Actor] = []

    def begin(self, processes: dict[str, Process], actors: list[Actor]) -> None:
        """A new run."""
        self.processes, self.actors = processes, actors
        self.views = [self.view(self.base)]
        self.effects = []
        self.is_lossy = False

    def judge(self, actor: Actor, found: str) -> None:
        """The promise, by which a read is judged.

        While the entry loses nothing: what PostgreSQL held at some moment of the read. When it has lost an
        intent, readers can no longer be sent to PostgreSQL while that write is under way, so: what PostgreSQL
        held at some moment, with every write that was acknowledged before the read; others may be missing,
        each as a whole. Of a process that is late, what was acknowledged since may be missing, too, and what
        PostgreSQL has lost may be there.
        """
        assert actor.began is not None
        self.is_used = True
        self.reads += 1
        if self.is_lossy:
            allowed = {self.view(tables) for tables in actor.possible}
        else:
            allowed = set(self.views[actor.began :])
        if found not in allowed and self.violation is None:
            self.violation = Violation(f"{actor.name} read {found}, but PostgreSQL held {sorted(allowed)}")

    def possible(self, process: Process) -> frozenset[store.Tables]:
        """The tables with every effect that a process must show, and with or without each of the others."""
        self.is_used = True
        settled, first = self.settled()
        possible = {settled}
        for effect in self.effects[first:]:
            with_it = {applied(tables, effect) for tables in possible}
            possible = with_it if effect.must_be_shown_by(process) else possible | with_it
        return frozenset(possible)

    def settled(self) -> tuple[store.Tables, int]:
        """The tables with the first effects, as far as all must show them, and how many these are."""
        tables, number = self.base, 0
        resets = [n for n, effect in enumerate(self.effects) if effect.resets and effect.is_settled]
        for number in range(max(resets, default=0), len(self.effects)):
            if not self.effects[number].is_settled:
                return tables, number
            tables = applied(tables, self.effects[number])
        return tables, len(self.effects)

    def require(self, number: int, writer: Process) -> None:
        self.is_changed = True
        effect = self.effects[number]
        effect.required = True
        effect.late |= {
            p.name for p in self.processes.values() if p.is_late and not p.is_wary and p is not writer
        }
        effect.astray = writer.name if writer.is_late and not effect.has_row else None
        keys = {key for _, key, _ in effect.rows}
        resets = [n for n, each in enumerate(self.effects[:number]) if each.resets]
        for earlier in range(max(resets, default=0), number):
            found = self.effects[earlier]
            if not found.required and keys & {key for _, key, _ in found.rows}:
                found.has_row, found.excused = effect.has_row, set(effect.excused)
                self.require(earlier, writer)

    def add(self, effect: Effect, after: store.Tables) -> None:
        """PostgreSQL has changed; these are its tables now."""
        self.is_changed = True
        self.effects.append(effect)
        for actor in self.actors:
            actor.possible |= {applied(tables, effect) for tables in actor.possible}
        view = self.view(after)
        if view != self.views[-1]:
            self.views.append(view)

    def excuse(self, effect: Effect, who: str) -> None:
        """A row was made for an effect, or should have been."""
        self.is_changed = True
        [writer] = [actor.process for actor in self.actors if actor.name == who.split("/")[0]]
        effect.has_row, effect.astray = True, None
        effect.excused = {p.name for p in self.processes.values() if p is not writer and not p.is_wary}
        self.is_lossy = self.is_lossy or writer.is_foreign

    def has_recorded(self, who: str) -> None:
        for actor in [actor for actor in self.actors if actor.who == who]:
            for number in actor.effects:
                self.excuse(self.effects[number], who)
            for effect in self.effects:
                if effect.astray == actor.process.name:
                    self.excuse(effect, who)

    def is_wary(self, process: Process) -> None:
        """A process has met a failure, or knows that what it trusted is of the past."""
        self.is_changed = True
        process.is_wary = True
        for number in self.effects_of(process):
            self.effects[number].is_untold = True
        for effect in self.effects:
            effect.excused.discard(process.name)
            effect.late.discard(process.name)

    def has_asked(self, process: Process, statement: tuple[Any, ...], answer: Any) -> None:
        """A process has done a statement. What does it know now, and is it the last one of a sweep?"""
        label = statement[0]
        self.is_changed = self.is_changed or label in _TELLING
        if label == "renew" and answer is not None:
            process.is_late = False
        if process.is_disconnected:
            process.is_disconnected = False
            self.is_wary(process)
        if label in ("look", "greet"):
            process.is_late = False
            if not self._fits(process, answer):
                self.is_wary(process)
                process.sweeps = frozenset()
                return
        if label == "look":
            process.is_wary = False
            process.sweeps = frozenset(n for n, effect in enumerate(self.effects) if effect.has_row)
        if label == "delete rows" or (label == "look" and not answer[-1]):
            # The entries were dropped.
            for number in process.sweeps:
                self.effects[number].excused -= self.users_of_keys(process)
            process.sweeps = frozenset()

    def has_dropped(self, process: Process) -> None:
        """The entry is gone: whoever reads it under these keys sees what was written until now."""
        self.is_changed = True
        for number in self.effects_of(process):
            self.effects[number].excused -= self.users_of_keys(process)

    def effects_of(self, process: Process) -> set[int]:
        """What its calls that are under way have changed."""
        return {number for actor in self.actors if actor.process is process for number in actor.effects}

    def users_of_keys(self, process: Process) -> set[str]:
        """The names of all processes that use the same keys."""
        keys = process.saver._parts.identity.identity
        return {p.name for p in self.processes.values() if p is process or self._identity(p) == keys}

    def _fits(self, process: Process, answer: Any) -> bool:
        """Whether PostgreSQL is what the keys of a process say."""
        facts, row, is_marked, _ = answer
        identity = self._identity(process)
        if identity is None or row is None:
            return False
        reign = self._reigns.real(row.reign)
        return (
            (row.generation, row.facts, is_marked) == (identity.generation, facts, True)
            and reign == identity.reign
            and reign == process.saver._l1.server.reign
        )

    def _identity(self, process: Process) -> Any:
        return None if process.is_foreign else process.saver._parts.identity.identity

    def view(self, tables: store.Tables) -> str:
        """What a read of the explored scope shows in these tables."""
        seen = tables.checkpoints, tables.blobs, tables.writes
        if seen not in self._view_in:
            self._view_in[seen] = self._view(tables)
        return self._view_in[seen]

    def _view(self, tables: store.Tables) -> str:
        _, (row, _) = store.execute(tables, "", ("select", SCOPE, None))
        if row not in self._view_of:
            stored = store.stored_checkpoint(SCOPE, row)
            serde = self.serde
            self._view_of[row] = text_of(stored and codec.decode_tuple(serde, stored))
        return self._view_of[row]


_TELLING = ("look", "greet", "renew", "delete rows")
"""The statements from which a process learns what it may trust."""

TABLES = ("checkpoints", "blobs", "writes")


def changed_rows(after: store.Tables, touched: Iterable[tuple[str, Any]]) -> tuple[Any, ...]:
    """The rows that a statement changed, or found as it wanted them."""
    return tuple(sorted((name, key, dict(getattr(after, name)).get(key)) for name, key in touched))


def applied(tables: store.Tables, effect: Effect) -> store.Tables:
    rows: dict[str, dict[Any, Any]] = {name: dict(getattr(tables, name)) for name in TABLES}
    for name, key, row in effect.rows:
        if row is None:
            rows[name].pop(key, None)
        else:
            rows[name][key] = row
    fields: dict[str, Any] = {name: frozenset(each.items()) for name, each in rows.items()}
    return store.Tables(**fields)
