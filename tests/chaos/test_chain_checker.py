"""The checker of the chain finds every kind of violation in histories written by hand, and excuses what is
documented."""

from __future__ import annotations

from typing import Any

from chaos.chain_checker import WHATS, ChainVerdict, Standing, judge_chain, settled_moments
from chaos.chain_faults import KINDS, chain_schedule
from chaos.chain_history import Attempt, Ran, Stored

ASIDE = "t (set aside)"
ONE = ["said 1", "charge 1 #a", "confirm 1"]
TWO = [*ONE, "said 2", "charge 2 #a", "confirm 2"]
ANEW = ["said 3", "charge 3 #b", "confirm 3"]
FORK = [*ONE, "said 3", "charge 3 #b", "confirm 3"]

ALWAYS_CACHED = [Standing(0, 0.0, "cached", whole=True)]
OUTAGE = [*ALWAYS_CACHED, Standing(0, 2.0, "redis", whole=False), Standing(0, 8.0, "cached", whole=True)]


def did(word: str, start: float, words: list[str] | None = None, **facts: Any) -> Attempt:
    """An acknowledged attempt of a tenth of a second; `tier` for both its ends, `found` in the same."""
    tier = facts.pop("tier", "cached")
    facts = {"worker": "a", "thread": "t", "outcome": "ok" if words else "L2UnavailableError", **facts}
    facts = {"end": start + 0.1, "is_promised": True, "tier_before": tier, "tier_after": tier, **facts}
    return Attempt(word=word, start=start, words=words, found_at=start, found_in=tier, did="said", **facts)


def stands(*states: list[str], thread: str = "t", since: str = "") -> list[Stored]:
    """A line of checkpoints in PostgreSQL."""
    ids = [f"{since}{number} {words[-1]}" for number, words in enumerate(states)]
    original = "t" if thread != "t" else ""
    return [
        Stored(thread, each, parent, "loop", words, original)
        for each, parent, words in zip(ids, ["", *ids], states, strict=False)
    ]


def judged(
    attempts: list[Attempt],
    stored: list[Stored],
    *ran: Ran,
    standings: list[Standing] = ALWAYS_CACHED,
    **more: Any,
) -> ChainVerdict:
    return judge_chain(attempts, ran, stored, standings, **more)


def found(verdict: ChainVerdict) -> set[str]:
    return {violation.what for violation in verdict.violations}


def test_settled_is_when_every_place_is() -> None:
    standings = [
        Standing(0, 1.0, "cached", whole=True),
        Standing(1, 0.0, "", whole=False),
        Standing(1, 2.0, "cached", whole=False),
        Standing(1, 3.0, "cached", whole=True),
        Standing(0, 4.0, "", whole=False),
        Standing(0, 5.0, "redis", whole=False),
        Standing(0, 6.0, "cached", whole=True),
    ]
    assert settled_moments(standings) == [(3.0, 4.0), (6.0, float("inf"))]


def test_a_thread_that_goes_on_is_right() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 3.0, TWO, tier="redis", found=ONE), did("x", 9.0, found=TWO)]
    verdict = judged(attempts, stands(ONE, TWO), standings=OUTAGE)
    assert not verdict.violations
    assert not verdict.excused
    assert verdict.checked["gone on"] == 1


# ------------------------------------------------------------ lost, doubled, unmarked


def test_what_is_nowhere_is_lost() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 3.0, TWO, tier="redis")]
    assert found(judged(attempts, stands(ONE), standings=OUTAGE)) == {"lost", "shorter"}


def test_what_stands_aside_is_not_lost() -> None:
    attempts = [did("1", 1.0, ONE), did("3", 3.0, ANEW, tier="redis", found=[])]
    stored = [*stands(ONE), *stands(ANEW, thread=ASIDE, since="9")]
    verdict = judged(attempts, stored, standings=OUTAGE)
    assert not verdict.violations
    assert verdict.excused == {"begun anew": 1, "set aside": 1}


def test_what_stands_twice_is_doubled() -> None:
    again = stands(ONE, since="5")
    assert found(judged([did("1", 1.0, ONE, made=ONE[1:])], [*stands(ONE), *again])) == {"doubled"}


def test_what_a_run_that_was_cut_off_still_puts_is_no_double() -> None:
    """The attempt goes on from what a task of that run has written."""
    cut_off = did("1", 1.0, outcome="TimeoutError", made=ONE[1:])
    took_over = did("2", 2.0, ONE)
    stored = [*stands(ONE), *stands(ONE, since="5")]
    verdict = judged([cut_off, took_over], stored)
    assert not verdict.violations
    assert verdict.excused == {"taken over": 1}
    assert found(judged([did("1", 1.0, ONE, made=ONE[1:]), took_over], stored)) == {"doubled"}


def test_what_stands_in_two_threads_is_doubled() -> None:
    stored = [*stands(["said 1"], ONE), *stands(["said 1"], ONE, thread=ASIDE)]
    assert "doubled" in found(judged([did("1", 1.0, ONE)], stored))
    fell = did("1", 1.0, ONE, tier_before="redis", tier_after="memory")
    assert judged([fell], stored).excused["put in two tiers"] == 1


def test_the_state_that_a_branch_goes_on_from_stands_in_both() -> None:
    attempts = [
        did("1", 1.0, ONE),
        did("3", 3.0, FORK, tier="redis", found=ONE),
        did("2", 4.0, TWO, worker="b"),
    ]
    stored = [*stands(ONE, TWO), *stands(ONE, FORK, thread=ASIDE)]
    assert not judged(attempts, stored, standings=OUTAGE).violations


def test_the_words_of_an_input_are_those_of_the_state_before() -> None:
    stored = [*stands(ONE), Stored("t", "1", "0 confirm 1", "input", ONE)]
    assert not judged([did("1", 1.0, ONE)], stored).violations


def test_a_branch_says_where_it_belongs() -> None:
    stored = [*stands(ONE), *stands(ANEW, FORK, thread=ASIDE, since="9")]
    attempts = [did("1", 1.0, ONE), did("3", 3.0, ANEW, tier="redis")]
    stored[-1].original = ""
    assert "unmarked" not in found(judged(attempts, stored, standings=OUTAGE))
    stored[-2].original = ""
    assert "unmarked" in found(judged(attempts, stored, standings=OUTAGE))


# ------------------------------------------------------------ shorter, torn


def test_a_state_in_cached_never_becomes_shorter() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 2.0, TWO), did("x", 6.0, found=ONE)]
    assert found(judged(attempts, stands(ONE, TWO))) == {"shorter"}


def test_a_write_that_redis_did_not_hear_of_may_be_missed_for_a_moment() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 2.0, TWO), did("3", 3.0, FORK, found=ONE)]
    attempts.append(did("x", 9.0, found=FORK))
    stored = [*stands(ONE, TWO), *stands(ONE, FORK)[1:]]
    verdict = judged(attempts, stored)
    assert not verdict.violations
    assert verdict.excused == {"in the window": 3}


def test_what_was_said_after_such_a_miss_is_a_line_of_its_own_in_every_tier() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 2.0, TWO), did("3", 3.0, FORK, found=ONE)]
    stored = [*stands(ONE, TWO), *stands(ONE, FORK)[1:]]
    later = did("x", 9.0, tier="redis", found=FORK)
    assert not found(judged([*attempts, later], stored, standings=OUTAGE))
    without_a_miss = [*attempts[:2], did("3", 3.0, FORK, found=TWO), later]
    assert "torn" in found(judged(without_a_miss, stored, standings=OUTAGE))


def test_what_was_acknowledged_in_cached_is_not_set_aside() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 2.0, TWO), did("x", 3.0, found=ONE)]
    stored = [*stands(ONE), *stands(ONE, TWO, thread=ASIDE)]
    assert "shorter" in found(judged(attempts, stored))
    assert "shorter" not in found(judged(attempts, [*stored, *stands(TWO, since="1")]))


def test_a_state_in_cached_never_vanishes() -> None:
    attempts = [did("1", 1.0, ONE), did("x", 6.0, found=[])]
    assert found(judged(attempts, stands(ONE))) == {"shorter"}


def test_a_branch_that_shadows_a_history_is_found() -> None:
    attempts = [did("1", 1.0, ONE), did("3", 3.0, ANEW, tier="redis", found=[])]
    stored = [*stands(ONE), *stands(ANEW, since="9")]
    assert "torn" in found(judged(attempts, stored, standings=OUTAGE))


def test_what_was_drained_is_there_after_the_promotion() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 3.0, TWO, tier="redis"), did("x", 9.0, found=ONE)]
    assert found(judged(attempts, stands(ONE, TWO), standings=OUTAGE)) == {"shorter"}


def test_what_is_not_drained_yet_may_be_missed() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 3.0, TWO, tier="redis"), did("x", 5.0, found=ONE)]
    verdict = judged(attempts, stands(ONE, TWO), standings=OUTAGE)
    assert not verdict.violations
    assert verdict.excused == {"not drained yet": 1}


def test_a_turn_above_that_began_before_the_drain_cannot_know_of_it() -> None:
    attempts = [
        did("1", 1.0, ONE),
        did("2", 3.0, TWO, tier="redis"),
        did("3", 7.0, FORK, end=9.0, found=ONE, worker="b"),
    ]
    stored = [*stands(ONE, TWO), *stands(ONE, FORK)[1:]]
    verdict = judged(attempts, stored, standings=OUTAGE)
    assert not verdict.violations
    assert verdict.excused == {"not drained yet": 1, "run beside its drain": 1}
    attempts[-1].start = attempts[-1].found_at = 8.5
    assert found(judged(attempts, stored, standings=OUTAGE)) == {"shorter", "torn"}


def test_a_lower_tier_has_all_of_a_state_or_nothing() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 1.5, TWO), did("x", 3.0, found=ONE, tier="redis")]
    assert found(judged(attempts, stands(ONE, TWO), standings=OUTAGE)) == {"shorter"}
    attempts[-1].found = []
    assert not judged(attempts, stands(ONE, TWO), standings=OUTAGE).violations


def test_a_branch_that_began_before_may_lack_what_was_written_beside_it() -> None:
    attempts = [
        did("1", 1.0, ONE),
        did("3", 3.0, FORK, tier="redis", found=ONE),
        did("2", 4.0, TWO, worker="b"),
        did("x", 5.0, found=FORK, tier="redis"),
    ]
    stored = [*stands(ONE, TWO), *stands(ONE, FORK, thread=ASIDE)]
    verdict = judged(attempts, stored, standings=OUTAGE)
    assert not verdict.violations
    assert verdict.excused["beside a branch"] == 1


def test_a_checkpoint_has_what_its_parent_has() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 2.0, TWO)]
    assert found(judged(attempts, stands(ONE, ["said 2"], TWO))) == {"torn"}


# ------------------------------------------------------------ twice


def test_a_task_of_an_answered_turn_does_not_run_again() -> None:
    attempts = [did("1", 1.0, ONE), did("2", 3.0, tier="redis", found=ONE)]
    again = Ran("a", "t", "1", "charge", 3.05, "redis")
    assert found(judged(attempts, stands(ONE), again, standings=OUTAGE)) == {"twice"}


def test_a_task_whose_turn_was_cut_off_may_run_again() -> None:
    attempts = [did("1", 0.5, end=None, outcome="killed"), did("1", 1.0, ONE)]
    first, again = (Ran("a", "t", "1", "charge", at, "cached") for at in (0.6, 1.05))
    assert not judged(attempts, stands(ONE), first, again).violations


def test_a_task_may_run_again_above_before_it_is_drained() -> None:
    attempts = [did("1", 3.0, ONE, tier="redis"), did("2", 5.0)]
    again = Ran("a", "t", "1", "charge", 5.05, "cached")
    verdict = judged(attempts, stands(ONE), again, standings=OUTAGE)
    assert not verdict.violations
    assert verdict.excused == {"run again: not drained yet": 1}


def test_what_a_subgraph_did_before_it_asked_is_not_done_again() -> None:
    asked = did("2?", 1.0, [*ONE, "said 2?", "charge 2? #a"], asked=True, durability="sync")
    resumed = did("3", 6.0, [*ONE, "said 2?", "charge 2? #a", "confirm 2? 3 #a"])
    stored = stands(*(each.words or [] for each in (asked, resumed)))
    first, again = (Ran("a", "t", "2?", "prepare", at, "cached") for at in (1.05, 6.05))
    assert not judged([asked, resumed], stored, first).violations
    assert found(judged([asked, resumed], stored, first, again)) == {"twice"}
    asked.durability = "async"
    assert not judged([asked, resumed], stored, first, again).violations


# ------------------------------------------------------------ forgotten


def test_a_subgraph_forgets_nothing_while_all_turns_are_in_one_tier() -> None:
    first, lacking = did("1", 1.0, ONE, made=ONE[1:]), did("2", 6.0, TWO, lacks=["charge 1 #a"])
    stored = stands(ONE, TWO)
    assert found(judged([first, lacking], stored)) == {"forgotten"}
    between = did("x", 3.0, outcome="killed", end=None)
    assert not judged([first, between, lacking], stored).violations
    first.tier_before = "redis"
    verdict = judged([first, lacking], stored)
    assert not verdict.violations
    assert verdict.excused["memory begun anew"] == 1


def test_a_subgraph_that_was_cut_off_before_it_stored_anything_does_nothing_when_its_run_goes_on() -> None:
    first, lacking = did("1", 1.0, ONE, made=ONE[1:]), did("2", 6.0, TWO, lacks=["charge 1 #a"])
    first.did = "went on"
    verdict = judged([first, lacking], stands(ONE, TWO))
    assert not verdict.violations
    assert verdict.excused["cut off before its subgraph"] == 1
    first.made.insert(0, "another")
    assert found(judged([first, lacking], stands(ONE, TWO))) == {"forgotten"}


# ------------------------------------------------------------ needless


def aside(*beside: Attempt, **more: Any) -> ChainVerdict:
    attempts = [did("1", 1.0, ONE), did("3", 3.0, FORK, tier="redis", found=ONE), *beside]
    attempts.sort(key=lambda each: each.start)
    stored = [*stands(ONE), *stands(ONE, FORK, thread=ASIDE)]
    return judged(attempts, stored, standings=OUTAGE, **more)


def test_a_branch_that_goes_on_is_not_set_aside() -> None:
    assert found(aside()) == {"needless"}
    assert found(aside(did("x", 2.0), away=[(1.9, 5.0)])) == {"needless"}, "it cannot have written"


def test_a_branch_of_a_subgraph_alone_is() -> None:
    attempts = [did("1", 1.0, ONE), did("x", 3.0, tier="redis", found=ONE)]
    verdict = judged(attempts, [*stands(ONE), *stands(ONE, thread=ASIDE)], standings=OUTAGE)
    assert not verdict.violations
    assert verdict.excused["a subgraph's"] == 1


def test_a_branch_beside_which_somebody_may_have_written_is() -> None:
    assert not aside(did("x", 2.0)).violations
    assert not aside(did("x", 4.0, end=None, outcome="killed", tier="")).violations


# ------------------------------------------------------------ errors


def test_errors_that_no_outage_explains_are_found() -> None:
    assert found(judged([did("1", 1.0, outcome="KeyError", is_promised=False)], [])) == {"error"}
    assert not judged([did("1", 1.0)], []).violations


def test_a_full_disk_is_an_explanation_while_it_is_full() -> None:
    full = did("1", 1.0, outcome="DiskFull", is_promised=False)
    assert not judged([full], [], full=[(0.5, 1.5)]).violations
    assert found(judged([full], [], full=[(2.0, 3.0)])) == {"error"}


def test_there_is_a_test_for_every_kind() -> None:
    kinds = {"lost", "doubled", "shorter", "torn", "forgotten", "twice", "needless", "unmarked", "error"}
    assert set(WHATS) == kinds


# ------------------------------------------------------------ the faults


def test_a_seed_gives_the_same_faults_again() -> None:
    assert chain_schedule(1, 30.0, 3, kills_workers=True) == chain_schedule(1, 30.0, 3, kills_workers=True)
    kinds = {each.kind for each in chain_schedule(1, 300.0, 3, kills_workers=True)}
    assert kinds == set(KINDS)
    assert not any(each.kind == "worker killed" for each in chain_schedule(1, 300.0, 3, kills_workers=False))
