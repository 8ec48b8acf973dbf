"""A branch that is set aside has one name, whatever becomes of it before all of it is above."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from glasspoint.fallback.draining import _moved, _with
from glasspoint.model.codec import PendingWrites
from glasspoint.model.lineage import SetAside, branch_of, from_fork, name_apart
from glasspoint.model.scope import Scope
from states import numbered_id

# Namespace -> checkpoints that the tier has made, by number. What it has not made is older than all of those.
OWN = st.dictionaries(st.sampled_from(["", "a:1", "b:2"]), st.sets(st.integers(10, 30), max_size=5))
BROUGHT = st.dictionaries(st.sampled_from(["", "a:1", "b:2"]), st.integers(1, 9))


@given(BROUGHT, OWN, st.integers(10, 30), st.booleans())
def test_the_name_stays_as_the_branch_grows(
    brought: dict[str, int], own: dict[str, set[int]], seen: int, has_fork: bool
) -> None:
    """The first drain has seen what was made up to a moment, the second one all."""

    def name(until: int) -> str | None:
        branches = []
        for namespace in ["", "a:1", "b:2"]:
            first = brought.get(namespace)
            numbers = sorted({first, *own.get(namespace, ())} - {None})
            parents = {numbered_id(n): numbered_id(n - 1) for n in numbers if n <= until}
            if not parents:
                continue
            # Whether what it goes on from is found above, too, makes no difference.
            branch = branch_of(namespace, parents, [] if has_fork or first is None else [numbered_id(first)])
            fork = numbered_id(first) if has_fork and first is not None else None
            branches.append(from_fork(branch, fork))
        if not any(number <= until for some in own.values() for number in some):
            return None  # nothing to set aside
        return name_apart("42", branches).thread_id

    before, after = name(seen), name(30)
    assert before in (None, after)


def test_what_is_set_aside_moves_with_its_writes_and_its_metadata_are_marked_and_else_unchanged() -> None:
    aside = SetAside("42", "42 (set aside)", datetime(2026, 1, 1, tzinfo=UTC))
    writes = PendingWrites(Scope("42", "sub"), numbered_id(7), [])
    assert _moved(writes, aside) == PendingWrites(Scope("42 (set aside)", "sub"), numbered_id(7), [])
    assert _with('{"n": 1.0e2}', {"x": 1}) == '{"n": 1.0e2, "x": 1}'
    assert _with("{}", {"x": 1}) == '{"x": 1}'
    assert _with("", {"x": 1}) == ""
