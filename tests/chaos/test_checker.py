"""The checker finds every kind of violation in histories written by hand, and excuses what is documented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import FINAL, WHATS, Outage, Verdict, judge, longest_without_writing
from chaos.history import Operation, Pending, Truth

BOUND = 3.0
C1, C2, C3 = "c1", "c2", "c3"
DONE: Pending = ("task", "log", "said")


def did(kind: str, start: float, end: float | None = None, **facts: Any) -> Operation:
    """One acknowledged operation; with `end=None` it takes a tenth of a second."""
    facts = {"outcome": "ok", "worker": "a", "confirmed": True, **facts}
    if facts["outcome"] == "killed":
        return Operation(kind=kind, thread="t", start=start, **facts)
    return Operation(kind=kind, thread="t", start=start, end=start + 0.1 if end is None else end, **facts)


def put(checkpoint: str, start: float, **facts: Any) -> Operation:
    return did("put", start, **{"checkpoint": checkpoint, "value": f"of {checkpoint}", **facts})


def writes(checkpoint: str, start: float, *pending: Pending, **facts: Any) -> Operation:
    return did("put_writes", start, checkpoint=checkpoint, pending=list(pending or [DONE]), **facts)


def read(checkpoint: str | None, start: float, *pending: Pending, **facts: Any) -> Operation:
    value = f"of {checkpoint}" if checkpoint else None
    facts = {"worker": "b", "value": value, **facts}
    return did("read", start, checkpoint=checkpoint, pending=list(pending), **facts)


def truth(done: list[Operation]) -> Truth:
    """What PostgreSQL would have if it had everything that was ever tried."""
    checkpoints = {(d.thread, "", d.checkpoint or ""): d.value or "" for d in done if d.kind == "put"}
    pending = {
        (d.thread, "", d.checkpoint or "", task, channel): value
        for d in done
        if d.kind == "put_writes"
        for task, channel, value in d.pending
    }
    return Truth(checkpoints, pending)


def judged(*done: Operation, has: Truth | None = None, outages: tuple[Outage, ...] = ()) -> Verdict:
    return judge(done, has or truth(list(done)), bound_seconds=BOUND, outages=outages)


def found(verdict: Verdict) -> set[str]:
    return {violation.what for violation in verdict.violations}


def excused(verdict: Verdict) -> set[str]:
    return {violation.what for violation in verdict.in_window}


def all_is_well(verdict: Verdict) -> bool:
    return not verdict.violations and not verdict.in_window


# ------------------------------------------------------------ stale


def test_a_read_of_the_newest_state_is_right() -> None:
    assert all_is_well(judged(put(C1, 1), put(C2, 2), writes(C2, 3), read(C2, 4, DONE)))


def test_a_read_that_began_before_the_acknowledgement_may_miss_it() -> None:
    assert all_is_well(judged(put(C1, 1), put(C2, 2, end=3), read(C1, 2.9)))
    assert all_is_well(judged(put(C1, 1), writes(C1, 2, end=3), read(C1, 2.9)))


def test_a_read_that_misses_an_acknowledged_checkpoint_is_stale() -> None:
    verdict = judged(put(C1, 1), put(C2, 2), read(C1, 2.2))
    assert found(verdict) == {"stale"}
    assert [each.checkpoint for each in verdict.violations[0].evidence] == [C2, C1]


def test_a_read_that_finds_nothing_after_an_acknowledged_checkpoint_is_stale() -> None:
    assert found(judged(put(C1, 1), read(None, 2))) == {"stale"}


def test_a_read_that_misses_an_acknowledged_pending_write_is_stale() -> None:
    assert found(judged(put(C1, 1), writes(C1, 2), read(C1, 3))) == {"stale"}


def test_a_read_of_one_checkpoint_needs_only_that() -> None:
    assert all_is_well(judged(put(C1, 1), put(C2, 2), read(C1, 3, wanted=C1)))
    assert found(judged(put(C1, 1), put(C2, 2), read(None, 3, wanted=C1))) == {"stale"}


def test_a_replaced_special_write_is_stale_and_an_ordinary_one_stays() -> None:
    first, second = ("task", "__error__", "first"), ("task", "__error__", "second")
    done = put(C1, 1), writes(C1, 2, first), writes(C1, 3, second)
    assert found(judged(*done, read(C1, 4, first))) == {"stale"}
    assert all_is_well(judged(*done, read(C1, 4, second)))
    assert all_is_well(judged(*done[:2], writes(C1, 3, second, outcome="killed"), read(C1, 4, first)))


@pytest.mark.parametrize("outcome", ["killed", "L2UnavailableError"])
def test_what_was_not_acknowledged_may_be_seen_or_not(outcome: str) -> None:
    unknown = put(C2, 2, outcome=outcome)
    assert all_is_well(judged(put(C1, 1), unknown, read(C1, 3)))
    assert all_is_well(judged(put(C1, 1), unknown, read(C2, 3)))


# ------------------------------------------------------------ the window


def test_a_write_that_redis_did_not_confirm_may_be_missed_for_as_long_as_the_bound() -> None:
    unheard = put(C2, 2, confirmed=False)
    inside = judged(put(C1, 1), unheard, read(C1, 2.2 + BOUND - 0.2))
    assert not inside.violations
    assert excused(inside) == {"stale"}
    assert found(judged(put(C1, 1), unheard, read(C1, 2.2 + BOUND))) == {"stale"}


def test_the_bound_counts_from_the_end_of_an_outage_that_hid_redis_from_all() -> None:
    done = put(C1, 1), put(C2, 2, confirmed=False), read(C1, 2.2 + BOUND)
    assert excused(judged(*done, outages=(Outage(1.5, 3.0),))) == {"stale"}
    assert found(judged(*done, outages=(Outage(0.5, 1.5),))) == {"stale"}, "the outage was over by then"


def test_the_window_excuses_nothing_that_redis_confirmed() -> None:
    """Even if the read misses something that the window excuses as well."""
    done = put(C1, 1), put(C2, 2, confirmed=False), writes(C1, 2.1), read(C1, 2.4)
    assert found(judged(*done)) == {"stale"}


# ------------------------------------------------------------ lost, phantom, differs


def test_an_acknowledged_write_that_is_not_there_in_the_end_is_lost() -> None:
    done = [put(C1, 1), writes(C1, 2)]
    everything = truth(done)
    assert all_is_well(judged(*done))
    assert found(judged(*done, has=replace(everything, checkpoints={}))) == {"lost"}
    assert found(judged(*done, has=replace(everything, pending={}))) == {"lost"}
    other = dict.fromkeys(everything.checkpoints, "of somebody else")
    assert found(judged(*done, has=replace(everything, checkpoints=other))) == {"lost"}


@pytest.mark.parametrize("outcome", ["killed", "L2UnavailableError"])
def test_what_was_not_acknowledged_is_not_lost(outcome: str) -> None:
    assert all_is_well(judged(put(C1, 1, outcome=outcome), has=Truth({}, {})))


def test_no_window_excuses_a_loss() -> None:
    assert found(judged(put(C1, 1, confirmed=False), has=Truth({}, {}))) == {"lost"}


def test_a_read_of_what_postgresql_does_not_have_is_a_phantom() -> None:
    done = [put(C1, 1, outcome="killed"), read(C1, 2)]
    assert found(judged(*done, has=Truth({}, {}))) == {"phantom"}
    done = [put(C1, 1), writes(C1, 2, outcome="killed"), read(C1, 3, DONE)]
    assert found(judged(*done, has=replace(truth(done), pending={}))) == {"phantom"}


def test_a_read_of_what_nobody_wrote_is_a_phantom() -> None:
    assert found(judged(put(C1, 1), read(C1, 2, value="of a dream"))) == {"phantom"}
    dream = ("task", "log", "dreamt")
    assert found(judged(put(C1, 1), writes(C1, 2), read(C1, 3, dream))) == {"phantom"}


def test_what_is_read_in_the_end_is_what_postgresql_has() -> None:
    """Also what was never acknowledged: a worker that was killed leaves no older state behind."""
    done = put(C1, 1), put(C2, 2, outcome="killed", worker="k"), writes(C2, 1.5, outcome="killed", worker="k")
    assert all_is_well(judged(*done, read(C2, 30, DONE, worker=FINAL)))
    assert found(judged(*done, read(C1, 30, worker=FINAL))) == {"differs"}
    assert found(judged(*done, read(C2, 30, worker=FINAL))) == {"differs"}


# ------------------------------------------------------------ backwards


def test_what_was_seen_stays_seen_even_if_it_was_never_acknowledged() -> None:
    done = put(C1, 1), put(C2, 2, outcome="killed", worker="k"), read(C2, 3)
    assert found(judged(*done, read(C1, 4))) == {"backwards"}
    assert all_is_well(judged(*done, read(C2, 4)))


def test_a_pending_write_that_was_seen_stays_seen() -> None:
    done = put(C1, 1), writes(C1, 2, outcome="L2UnavailableError"), read(C1, 3, DONE)
    assert found(judged(*done, read(C1, 4))) == {"backwards"}


def test_a_write_that_is_under_way_may_be_seen_by_one_and_not_by_another() -> None:
    """Redis may have forgotten that it is under way; nothing is promised before it is acknowledged."""
    assert all_is_well(judged(put(C1, 1), put(C2, 2, end=5), read(C2, 3), read(C1, 4)))


# ------------------------------------------------------------ twice, forgotten


def ran(start: float, within: float, **facts: Any) -> Operation:
    return did("run", start, task="task", within=within, **facts)


def test_a_task_is_not_run_again_by_a_call_that_began_after_its_writes() -> None:
    done = put(C1, 1), ran(1.5, within=1.2), writes(C1, 2)
    assert all_is_well(judged(*done))
    assert found(judged(*done, ran(4, within=3))) == {"twice"}


def test_a_task_may_run_again_whose_writes_were_not_acknowledged_or_only_an_error() -> None:
    killed = writes(C1, 2, outcome="killed", worker="k")
    assert all_is_well(judged(put(C1, 1), killed, ran(4, within=3)))
    failed = writes(C1, 2, ("task", "__error__", "oh"))
    assert all_is_well(judged(put(C1, 1), failed, ran(4, within=3)))


def test_a_call_that_began_with_a_read_in_the_window_may_run_a_task_again() -> None:
    done = put(C1, 1), writes(C1, 2, confirmed=False), ran(3.5, within=3)
    assert found(judged(*done)) == {"twice"}, "it read what was there, and ran the task all the same"
    verdict = judged(*done, read(C1, 3.1, worker="a"))
    assert not verdict.violations
    assert excused(verdict) == {"stale", "twice"}
    assert found(judged(*done, read(C1, 3.1, worker="b"))) == {"twice"}, "somebody else's read"


def test_an_answered_turn_stays_in_the_conversation() -> None:
    first = did("turn", 1, turn=1, answered=[1])
    assert all_is_well(judged(first, did("turn", 2, turn=2, answered=[1, 2])))
    verdict = judged(first, did("turn", 2, turn=2, answered=[2]), did("turn", 3, turn=3, answered=[2, 3]))
    assert [violation.what for violation in verdict.violations] == ["forgotten"], "and it is told once"


# ------------------------------------------------------------ the longest time without writing


def test_the_time_without_writing_is_from_the_first_failure_to_the_next_success() -> None:
    failed = put(C1, 1, outcome="L2UnavailableError"), put(C1, 2, outcome="L2DeadlineError")
    assert longest_without_writing([*failed, put(C1, 4)]) == (pytest.approx(3.1), "t")
    assert longest_without_writing([put(C1, 1), put(C2, 9)]) == (0.0, ""), "nobody tried in between"


def test_a_conversation_that_never_writes_again_counts_until_the_end() -> None:
    other = replace(put(C3, 9), thread="other")
    done = [put(C1, 1, outcome="L2UnavailableError"), put(C1, 7, outcome="L2UnavailableError"), other]
    assert longest_without_writing(done)[0] >= 6


def test_a_turn_that_was_broken_off_counts_and_one_that_stumbled_does_not() -> None:
    killed = did("turn", 1, turn=1, outcome="killed", worker="k"), put(C1, 2, worker="k")
    assert longest_without_writing([*killed, put(C2, 5)])[0] == pytest.approx(3.0)
    answered = did("turn", 3, turn=1)
    assert longest_without_writing([*killed, answered, put(C2, 5)]) == (0.0, ""), "nothing was left to write"
    stumbled = did("turn", 1, 2, turn=1, outcome="StumbledError")
    assert longest_without_writing([stumbled, put(C2, 5)]) == (0.0, "")


def test_every_kind_of_violation_is_tested_here() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{what}"' in text for what in WHATS)
