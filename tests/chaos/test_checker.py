"""The checker finds every kind of violation in histories written by hand, and excuses what is documented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.checker import FINAL, WHATS, Verdict, judge, longest_without_writing
from chaos.history import Operation, Pending, Truth
from chaos.windows import ALWAYS, Cut, Outage

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


def judged(
    *done: Operation,
    has: Truth | None = None,
    outages: tuple[Outage, ...] = (),
    cuts: tuple[Cut, ...] = (),
) -> Verdict:
    truths = {"": has or truth(list(done))}
    return judge(done, truths, bound_seconds=BOUND, outages=outages, cuts=cuts)


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
    other = dict.fromkeys(everything.pending, "of somebody else")
    assert found(judged(*done, has=replace(everything, pending=other))) == {"lost"}


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
    verdict = judged(*done, read(C1, 3.1, worker="a", turn=1))
    assert not verdict.violations
    assert excused(verdict) == {"stale", "twice"}
    assert found(judged(*done, read(C1, 3.1, worker="b", turn=1))) == {"twice"}, "somebody else's read"
    assert found(judged(*done, read(C1, 3.1, worker="a"))) == {"twice"}, "a read besides"


def test_an_answered_turn_stays_in_the_conversation() -> None:
    first = did("turn", 1, turn=1, answered=[1])
    assert all_is_well(judged(first, did("turn", 2, turn=2, answered=[1, 2])))
    verdict = judged(first, did("turn", 2, turn=2, answered=[2]), did("turn", 3, turn=3, answered=[2, 3]))
    assert [violation.what for violation in verdict.violations] == ["forgotten"], "and it is told once"


# ------------------------------------------------------------ two databases


def judged_of_both(*done: Operation, said_in: dict[tuple[str, str, str], list[str]] | None = None) -> Verdict:
    of_each = {name: truth([each for each in done if each.database == name]) for name in "xy"}
    truths = of_each | {"x": replace(of_each["x"], said_in=said_in or {})}
    return judge(done, truths, bound_seconds=BOUND)


def test_each_database_is_judged_by_what_it_holds_itself() -> None:
    """The thread ids are the same: a newer checkpoint of the one is no stale read of the other."""
    here = put(C1, 1, database="x"), read(C1, 5, database="x", said_in=["x"])
    there = put(C2, 2, database="y"), read(C2, 5, database="y", said_in=["y"])
    assert all_is_well(judged_of_both(*here, *there))
    verdict = judged_of_both(*here, *there, read(C1, 9, database="y"))
    assert found(verdict) == {"crossed", "phantom", "stale", "backwards"}


def test_a_read_that_shows_a_message_of_another_database_is_crossed() -> None:
    assert found(judged_of_both(put(C1, 1, database="x"), read(C1, 2, database="x", said_in=["x", "y"]))) == {
        "crossed"
    }


def test_a_row_that_holds_a_message_of_another_database_is_crossed() -> None:
    done = put(C1, 1, database="x")
    assert all_is_well(judged_of_both(done, said_in={("t", "", C1): ["x"]}))
    verdict = judged_of_both(done, said_in={("t", "", C1): ["x", "y"]})
    assert [(each.what, each.evidence) for each in verdict.violations] == [("crossed", (done,))]


# ------------------------------------------------------------ PostgreSQL went back


RESTORED = Cut("a backup was restored", "", since=(10, 11), until=(20, 22), renews=True)
TRUNCATED = Cut("the tables were truncated", "", since=ALWAYS, until=(20, 22), renews=True)
CUTS = pytest.mark.parametrize("cut", [RESTORED, TRUNCATED])


@CUTS
def test_what_was_acknowledged_in_the_lost_time_may_be_gone(cut: Cut) -> None:
    done = put(C2, 15), writes(C2, 16), did("turn", 15, 17, turn=1, answered=[1])
    later = read(None, 21), did("turn", 30, 31, turn=2, answered=[2]), ran(21, within=21)
    assert all_is_well(judged(*done, *later, has=Truth({}, {}), cuts=(cut,)))
    assert found(judged(*done, *later, has=Truth({}, {}))) == {"lost", "stale", "twice", "forgotten"}


@CUTS
def test_what_was_acknowledged_before_the_copy_or_after_the_cut_stays(cut: Cut) -> None:
    after = put(C3, 23)
    assert found(judged(after, has=Truth({}, {}), cuts=(cut,))) == {"lost"}
    assert found(judged(after, read(None, 30), cuts=(cut,))) == {"stale"}
    before = put(C1, 9), read(None, 30)
    assert found(judged(*before, cuts=(RESTORED,))) == {"stale"}
    assert found(judged(*before, has=Truth({}, {}), cuts=(RESTORED,))) == {"lost", "stale"}
    assert all_is_well(judged(*before, has=Truth({}, {}), cuts=(TRUNCATED,)))


def test_what_was_under_way_as_the_copy_was_made_or_put_back_may_be_there_or_not() -> None:
    for write in put(C1, 9.95, end=10.05), put(C1, 19.95, end=20.05), put(C1, 19.95, outcome="killed"):
        assert all_is_well(judged(write, read(C1, 30), cuts=(RESTORED,)))
        assert all_is_well(judged(write, read(None, 30), has=Truth({}, {}), cuts=(RESTORED,)))


@CUTS
def test_what_is_gone_is_not_read_when_the_window_is_over(cut: Cut) -> None:
    lost = put(C2, 15)
    here = judged(lost, read(C2, 21), has=Truth({}, {}), cuts=(cut,))
    assert all_is_well(here), "PostgreSQL does not answer yet"
    inside = judged(lost, read(C2, 22 + BOUND - 0.1), has=Truth({}, {}), cuts=(cut,))
    assert not inside.violations
    assert excused(inside) == {"phantom"}
    assert inside.in_window[0].span == (22, 22 + BOUND - 0.1)
    assert found(judged(lost, read(C2, 22 + BOUND + 0.1), has=Truth({}, {}), cuts=(cut,))) == {"phantom"}
    pending = put(C1, 23), writes(C1, 15), read(C1, 30, DONE)
    assert found(judged(*pending, cuts=(cut,))) == {"phantom"}


def test_the_window_of_a_cut_lasts_until_the_reader_can_reach_postgresql() -> None:
    done = put(C2, 15), read(C2, 22 + BOUND + 1, worker="worker1-003")
    for worker, what in (None, set()), (1, set()), (2, {"phantom"}):
        outages = (Outage(24, 26, "postgres", worker),)
        assert found(judged(*done, has=Truth({}, {}), cuts=(RESTORED,), outages=outages)) == what


def test_a_state_that_was_seen_may_go_backwards_only_over_a_cut() -> None:
    done = put(C1, 9), put(C2, 15, outcome="killed", worker="k"), read(C2, 19), read(C1, 26)
    assert all_is_well(judged(*done, cuts=(RESTORED,)))
    assert found(judged(*done)) == {"backwards"}
    assert found(judged(*done, cuts=(RESTORED._replace(since=(18, 19)),))) == {"backwards"}


def test_what_a_second_backup_brings_back_may_be_read_again() -> None:
    second = Cut("a backup was restored", "", since=(10, 11), until=(40, 42), renews=True)
    done = put(C1, 9), read(C1, 50)
    truncated = TRUNCATED._replace(until=(30, 31))
    assert all_is_well(judged(*done, cuts=(truncated, second)))
    assert found(judged(*done, cuts=(truncated,))) == {"phantom"}


def test_a_write_under_keys_of_the_past_may_be_missed_for_as_long_as_the_bound() -> None:
    """Its process did not know of the cut yet, and Redis confirmed what nobody reads."""
    inside = judged(put(C1, 23), put(C2, 24), read(C1, 26), cuts=(RESTORED,))
    assert not inside.violations
    assert excused(inside) == {"stale"}
    assert found(judged(put(C1, 23), put(C2, 24), read(C1, 28), cuts=(RESTORED,))) == {"stale"}
    assert found(judged(put(C1, 23), put(C2, 30), read(C1, 31), cuts=(RESTORED,))) == {"stale"}


# ------------------------------------------------------------ damaged


def damaged(turn_began: float, put_at: float, *, cuts: tuple[Cut, ...] = (RESTORED,)) -> Verdict:
    done = [did("turn", turn_began, put_at + 1, turn=1, answered=[1]), put(C3, put_at)]
    less = dict.fromkeys(truth(done).checkpoints, "without a channel")
    return judged(*done, read(C3, 40, value="without a channel"), has=Truth(less, {}), cuts=cuts)


def test_a_checkpoint_that_lacks_what_was_put_is_damaged() -> None:
    assert found(damaged(1, 2, cuts=())) == {"damaged"}
    assert found(damaged(22 + BOUND + 0.1, 30)) == {"damaged"}, "the turn began when the window was over"


def test_a_turn_that_began_before_the_end_of_the_window_may_damage() -> None:
    for began in 19, 22 + BOUND - 0.1:
        verdict = damaged(began, 30)
        assert not verdict.violations
        assert excused(verdict) == {"damaged"}
    assert found(damaged(1, 2)) == {"damaged"}, "that turn was over before the cut"


def test_a_damaged_checkpoint_may_forget_turns_that_are_older_than_the_backup() -> None:
    done = [
        did("turn", 1, 2, turn=1, answered=[1]),
        did("turn", 19, 24, turn=2, outcome="killed"),
        put(C1, 23),
        read(C1, 30, value="without a channel", turn=3),
        did("turn", 30, 31, turn=3, answered=[3]),
    ]
    less = Truth(dict.fromkeys(truth(done).checkpoints, "without a channel"), {})
    assert excused(judged(*done, has=less, cuts=(RESTORED,))) == {"damaged", "forgotten"}
    later = TRUNCATED._replace(until=(50, 51))
    assert excused(judged(*done, has=Truth({}, {}), cuts=(RESTORED, later))) == {"forgotten"}
    whole = replace(done[3], value=done[2].value)
    assert found(judged(*done[:3], whole, done[4], cuts=(RESTORED,))) == {"forgotten"}


def test_an_error_of_a_turn_is_explained_by_a_cut_that_fell_into_it() -> None:
    turn = did("turn", 19, 23, turn=1, outcome="EmptyInputError", unexpected="EmptyInputError()")
    assert judged(turn, cuts=(RESTORED,)).upset == [turn]
    assert judged(turn).upset == []
    late = replace(turn, start=22 + BOUND + 0.1, end=40)
    assert judged(late, cuts=(RESTORED,)).upset == []


# ------------------------------------------------------------ other software


def foreign(what: Operation) -> Operation:
    return replace(what, worker="foreign-001", confirmed=False)


def deleted(start: float, **facts: Any) -> Operation:
    return foreign(did("delete", start, **facts))


def test_a_foreign_write_may_be_missed_for_as_long_as_the_bound() -> None:
    done = put(C1, 1), foreign(put(C2, 2))
    assert excused(judged(*done, read(C1, 2.1 + BOUND - 0.1))) == {"stale"}
    assert found(judged(*done, read(C1, 2.1 + BOUND + 0.1))) == {"stale"}
    assert all_is_well(judged(*done, read(C2, 2.1 + BOUND + 0.1)))


def test_nobody_sweeps_while_postgresql_cannot_be_reached() -> None:
    done = put(C1, 1), foreign(put(C2, 2)), read(C1, 2.1 + BOUND + 1)
    assert excused(judged(*done, outages=(Outage(3, 4, "postgres"),))) == {"stale"}
    assert found(judged(*done, outages=(Outage(3, 4, "postgres", worker=1),))) == {"stale"}, "others do"
    assert found(judged(*done, outages=(Outage(3, 4, "redis"),))) == {"stale"}, "nobody reads it, either"


def test_a_turn_that_began_in_the_window_may_pass_a_foreign_one_by() -> None:
    done = (
        put(C1, 1),
        foreign(did("turn", 1.5, 2.2, turn=1, answered=[1])),
        foreign(put(C2, 2)),
        read(C1, 2.5, worker="a", turn=2),
        did("turn", 2.4, 3, turn=2, answered=[2]),
    )
    assert excused(judged(*done)) == {"stale", "forgotten"}
    besides = replace(done[3], turn=0)
    assert found(judged(*done[:3], besides, done[4])) == {"forgotten"}, "not that turn's read"
    late = replace(done[3], start=9, end=9.1), replace(done[4], start=8.9, end=9.5)
    assert found(judged(*done[:3], *late)) == {"stale", "forgotten"}


def test_a_value_that_was_changed_in_its_place_is_seen_when_the_window_is_over() -> None:
    done = put(C1, 1), foreign(put(C1, 2, value="changed"))
    assert all_is_well(judged(*done, read(C1, 7, value="changed")))
    assert excused(judged(*done, read(C1, 4))) == {"stale"}
    assert found(judged(*done, read(C1, 7))) == {"stale"}


def test_a_deleted_thread_is_not_read_any_more_when_the_window_is_over() -> None:
    done = put(C1, 1), deleted(2)
    nothing = Truth({}, {})
    assert all_is_well(judged(*done, read(None, 3), has=nothing))
    assert excused(judged(*done, read(C1, 4), has=nothing)) == {"phantom"}
    assert found(judged(*done, read(C1, 6), has=nothing)) == {"phantom"}
    assert all_is_well(judged(*done, put(C2, 6), read(C2, 7), has=truth([put(C2, 6)])))
    assert found(judged(*done, put(C2, 6), read(None, 7), has=truth([put(C2, 6)]))) == {"stale"}


def test_a_deletion_that_failed_may_have_been_done_or_not() -> None:
    done = put(C1, 1), deleted(2, outcome="OperationalError")
    assert all_is_well(judged(*done, read(None, 9), has=Truth({}, {})))
    assert all_is_well(judged(*done, read(C1, 9)))


def test_a_restart_takes_nothing_and_writes_under_keys_of_before_may_be_missed() -> None:
    restart = Cut("a restart", "", since=(20, 22), until=(20, 22), by=None, is_sure=False, renews=True)
    done = put(C1, 19), put(C2, 23)
    assert excused(judged(*done, read(C1, 26), cuts=(restart,))) == {"stale"}
    assert found(judged(*done, read(C1, 27), cuts=(restart,))) == {"stale"}
    assert found(judged(*done, has=Truth({}, {}), cuts=(restart,))) == {"lost"}
    turn = did("turn", 19, 23, turn=1, outcome="KeyError", unexpected="KeyError()")
    assert judged(turn, cuts=(restart,)).upset == []


def test_a_crash_may_take_what_other_software_did_not_make_durable_and_nothing_else() -> None:
    crash = Cut("a crash", "", since=(19, 20), until=(20, 21), by="foreign", is_sure=False, renews=True)
    theirs = foreign(put(C1, 19.5))
    assert all_is_well(judged(theirs, read(None, 30), has=Truth({}, {}), cuts=(crash,)))
    assert all_is_well(judged(theirs, read(C1, 30), cuts=(crash,)))
    assert found(judged(theirs, has=Truth({}, {}))) == {"lost"}
    assert found(judged(foreign(put(C1, 18)), has=Truth({}, {}), cuts=(crash,))) == {"lost"}
    assert found(judged(put(C1, 19.5), has=Truth({}, {}), cuts=(crash,))) == {"lost"}


# ------------------------------------------------------------ the longest time without writing


def test_the_time_without_writing_is_from_the_first_failure_to_the_next_success() -> None:
    failed = put(C1, 1, outcome="L2UnavailableError"), put(C1, 2, outcome="L2DeadlineError")
    seconds, thread = longest_without_writing([*failed, put(C1, 4)])
    assert (seconds, thread) == (pytest.approx(3.1), "t")  # type: ignore[comparison-overlap]
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
