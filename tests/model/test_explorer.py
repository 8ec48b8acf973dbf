"""In every schedule a read shows what it must, and without any one rule of the protocol it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

import dice
from glasspoint.embedded import EmbeddedRedis
from glasspoint.l1 import cache
from glasspoint.l1 import steps as steps_of_l1
from model.explorer import FAULTS, Counterexample, Report, explore, table
from model.identities import CHANGING
from model.mutations import MUTATIONS, Mutation, mutated, steps
from model.outages import OUTAGES, QUARANTINED, REFUSED_ONCE
from model.rules_of_identity import RULES_OF_IDENTITY
from model.rules_of_outages import RULES_OF_OUTAGES
from model.scenarios import LARGE, SCENARIOS
from model.terms import CHANGES, Move, Outcome, Scenario, Touched
from model.world import World

# `make explore` goes through all schedules with a fault, too; here it is a sample.
EXHAUSTIVE = dice.EXPLORING
SAMPLE = 160
SAMPLE_OF_LARGE = 30
SAMPLE_OF_BURSTS = 100
SAMPLE_OF_OUTAGES = 20
MOST_OF_OUTAGES = 120
MOST_OF_TWO_FAULTS = 200
SAMPLE_OF_CHANGES = 20
AT_MOST = 10_000
SEED = 20261123

pytestmark = pytest.mark.dice


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest) -> Iterator[list[Report]]:
    """What has been explored; shown at the end."""
    found: list[Report] = []
    yield found
    plugins = request.config.pluginmanager
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        plugins.getplugin("terminalreporter").write_line(f"\n{table(found)}\nSamples are of seed {SEED}.")


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_every_schedule_keeps_the_promises(
    scenario: Scenario, explored_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    report = explore(scenario, explored_redis)
    reports.append(report)
    assert report.exhaustive
    assert report.schedules >= report.states > 20


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_fault_at_any_step_breaks_no_promise(
    scenario: Scenario, explored_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    at_most = None if EXHAUSTIVE else SAMPLE
    report = explore(scenario, explored_redis, faults=FAULTS, at_most=at_most, seed=SEED)
    reports.append(report)
    assert set(report.faults) == set(FAULTS)
    assert report.exhaustive or report.runs == SAMPLE


@pytest.mark.parametrize("scenario", LARGE.values(), ids=LARGE)
def test_a_sample_of_a_large_scenario_keeps_the_promises(
    scenario: Scenario, explored_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    for faults in (), FAULTS:
        at_most = (AT_MOST if faults else None) if EXHAUSTIVE else SAMPLE_OF_LARGE
        report = explore(scenario, explored_redis, faults=faults, at_most=at_most, seed=SEED)
        reports.append(report)
        assert report.states > SAMPLE_OF_LARGE


@pytest.mark.parametrize(
    ("scenario", "faults"),
    [
        pytest.param("burst of two || reader", ("lapse", "lose_fences"), id="a reader, all has expired"),
        pytest.param("burst of two || put", ("lapse", "lose_fences"), id="another writer, all has expired"),
        pytest.param("burst of two || put", ("evict",), id="both intents are evicted"),
        pytest.param(
            "burst of two || reader", ("cut", "evict"), id="a retry in doubt, and the intent is evicted"
        ),
    ],
)
def test_a_burst_that_has_lost_all_that_it_had_announced_breaks_no_promise(
    scenario: str, faults: tuple[str, ...], explored_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    """Two faults in a schedule. A process that stands still long enough goes on after its intent and its
    fence have expired."""
    at_most = None if EXHAUSTIVE else SAMPLE_OF_BURSTS
    report = explore(SCENARIOS[scenario], explored_redis, faults=faults, budget=2, at_most=at_most, seed=SEED)
    reports.append(report)
    assert set(report.faults) == set(faults)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule)
def test_without_a_rule_a_counterexample_is_found(mutation: Mutation, explored_redis: EmbeddedRedis) -> None:
    with mutated(mutation), pytest.raises(Counterexample, match=mutation.finds):
        explore(
            (SCENARIOS | LARGE)[mutation.scenario],
            explored_redis,
            faults=mutation.faults,
            budget=mutation.budget,
            start=mutation.start,
        )


@pytest.mark.parametrize("scenario", OUTAGES.values(), ids=OUTAGES)
def test_while_redis_is_away_no_promise_is_broken(
    scenario: Scenario, explored_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    """Also with two faults in a schedule, but for the limit below, and for a Redis that reigns anew: that
    takes its time."""
    at_most = None if EXHAUSTIVE else MOST_OF_OUTAGES
    reports.append(explore(scenario, explored_redis, at_most=at_most, seed=SEED))
    if EXHAUSTIVE:
        reports.append(explore(scenario, explored_redis, faults=FAULTS))
        return
    for left_out in ("crash", "cancel"), ("evict", "lapse"):
        faults = [kind for kind in FAULTS if kind not in ("restart", "failover", *left_out)]
        report = explore(
            scenario, explored_redis, faults=faults, budget=2, at_most=SAMPLE_OF_OUTAGES, seed=SEED
        )
        reports.append(report)
        assert report.exhaustive or report.runs == SAMPLE_OF_OUTAGES
        assert report.faults


def test_while_a_scope_is_in_quarantine_no_promise_is_broken(
    explored_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    report = explore(QUARANTINED, explored_redis, faults=["forbid"], budget=1, start=REFUSED_ONCE)
    reports.append(report)
    assert report.exhaustive
    assert report.states > 20


@pytest.mark.parametrize("mutation", RULES_OF_OUTAGES, ids=lambda mutation: mutation.rule)
def test_without_a_rule_of_outages_a_counterexample_is_found(
    mutation: Mutation, explored_redis: EmbeddedRedis
) -> None:
    with mutated(mutation), pytest.raises(Counterexample, match=mutation.finds):
        explore(
            {**OUTAGES, QUARANTINED.name: QUARANTINED}[mutation.scenario],
            explored_redis,
            faults=mutation.faults,
            budget=len(mutation.faults),
            start=mutation.start,
        )


@pytest.mark.parametrize("scenario", CHANGING.values(), ids=CHANGING)
def test_whatever_becomes_of_postgresql_no_promise_is_broken(
    scenario: Scenario, explored_redis: EmbeddedRedis, another_redis: EmbeddedRedis, reports: list[Report]
) -> None:
    """Also with a fault of another kind in the same schedule, but for the limit below, for statements that
    nobody waits for any more, and for what takes its time."""
    others = ("evict", "lapse", "unsaid", "unheard", "refuse", "cut_off", "open")
    for faults, budget in ((), 0), (CHANGES, 1), ((*CHANGES, *others), 2):
        report = explore(
            scenario,
            explored_redis,
            faults=faults,
            budget=budget,
            at_most=AT_MOST if EXHAUSTIVE else SAMPLE_OF_CHANGES,
            seed=SEED,
            elsewhere=another_redis,
        )
        reports.append(report)
        assert len(report.faults) > 1 or not budget


@pytest.mark.parametrize("mutation", RULES_OF_IDENTITY, ids=lambda mutation: mutation.rule)
def test_without_a_rule_of_identity_a_counterexample_is_found(
    mutation: Mutation, explored_redis: EmbeddedRedis, another_redis: EmbeddedRedis
) -> None:
    with mutated(mutation), pytest.raises(Counterexample, match=mutation.finds):
        explore(
            CHANGING[mutation.scenario],
            explored_redis,
            faults=mutation.faults,
            budget=len(mutation.faults),
            start=mutation.start,
            elsewhere=another_redis,
        )


LATE_WRITER = CHANGING["put || reader that opens"]


@pytest.mark.parametrize(
    ("change", "then"),
    [
        pytest.param("renew", steps("r", "look", "read", "select"), id="renew"),
        pytest.param(
            "attach", (*steps("r", "select"), ("wait", "r"), *steps("r", "look", "renew")), id="attach"
        ),
    ],
)
def test_a_process_that_ends_before_it_has_noticed_is_one_fault_too_many(
    change: str, then: Sequence[Move], explored_redis: EmbeddedRedis
) -> None:
    """The limit that docs/protocol.md names. If this fails, the limit is gone: say so there."""
    start = (*steps("w", "begin", "put snapshot"), *steps("r", "look"), (change,), *steps("r", "look"), *then)
    with pytest.raises(Counterexample, match="in the end a read of observer returned"):
        explore(LATE_WRITER, explored_redis, faults=[change, "crash"], budget=2, start=start)


def test_what_a_process_writes_before_it_has_noticed_is_missing_elsewhere_until_it_has(
    explored_redis: EmbeddedRedis,
) -> None:
    """The window that docs/protocol.md names: the others have keys that such a process does not know."""
    no_window = Mutation(
        "others may miss it",
        (
            (
                "model.promise",
                "effect.astray = writer.name if writer.is_late and not effect.has_row else None",
                "effect.astray = None",
            ),
        ),
        LATE_WRITER.name,
    )
    with mutated(no_window), pytest.raises(Counterexample, match="r read"):
        explore(LATE_WRITER, explored_redis, faults=["renew"])


PUT_AND_READER = Scenario(
    "put || reader",
    {name: SCENARIOS["two puts || reader"].actors[name] for name in "pr"},
    SCENARIOS["two puts || reader"].before,
)


_OF_UNKNOWN_OUTCOME: dict[str, tuple[Move, ...]] = {
    "crash": (),
    "cancel": (("cancel", "p"), *steps("p", "drop")),
}


@pytest.mark.parametrize("first", ["evict", "lapse"])
@pytest.mark.parametrize("second", ["crash", "cancel"])
def test_an_intent_that_is_lost_and_a_write_of_unknown_outcome_are_one_fault_too_many(
    first: str, second: str, explored_redis: EmbeddedRedis
) -> None:
    """The limit that docs/protocol.md names. If this fails, the limit is gone: say so there."""
    intent = "i:p_0_2" if second == "crash" else "i:doubt"
    lost: Move = ("evict",) if first == "evict" else ("lapse", intent)
    start = (*steps("p", "begin", "put snapshot"), *_OF_UNKNOWN_OUTCOME[second], lost, *steps("r", "read"))
    with pytest.raises(Counterexample, match="in the end a read of observer returned"):
        explore(PUT_AND_READER, explored_redis, faults=[first, second], budget=2, start=start)


@pytest.mark.parametrize("faults", [("crash", "cut"), ("evict", "cut"), ("lapse", "refuse")], ids="-".join)
def test_two_faults_of_other_kinds_break_no_promise(
    faults: tuple[str, ...], explored_redis: EmbeddedRedis
) -> None:
    at_most = None if EXHAUSTIVE else MOST_OF_TWO_FAULTS
    report = explore(PUT_AND_READER, explored_redis, faults=faults, budget=2, at_most=at_most, seed=SEED)
    assert report.exhaustive or report.runs == MOST_OF_TWO_FAULTS
    assert set(report.faults) == set(faults)


@pytest.mark.parametrize("order", [1, -1])
def test_modules_that_are_mutated_together_use_each_other(order: int) -> None:
    edits = (
        ("glasspoint.l1.cache", "_READS = 3", "_READS = 4"),
        ("glasspoint.l1.steps", "_LARGE_BYTES = 1_000_000", "_LARGE_BYTES = 1"),
    )
    with mutated(Mutation("no rule", edits[::order], "no scenario")):
        seen_by_cache = cache.Cache.read.__globals__
        assert seen_by_cache["_READS"] == 4
        assert seen_by_cache["Steps"] is steps_of_l1.Steps
        assert steps_of_l1.Steps.run.__globals__["_LARGE_BYTES"] == 1


def test_after_a_mutation_everything_is_as_before(explored_redis: EmbeddedRedis) -> None:
    mutation = MUTATIONS[0]
    with mutated(mutation):
        pass
    assert explore(SCENARIOS[mutation.scenario], explored_redis).exhaustive


def test_a_scenario_is_explored_whole(explored_redis: EmbeddedRedis) -> None:
    """Two puts take seven steps each: BEGIN, the snapshot, the effect, CONFIRM, the end of the burst, COMMIT
    (or DROP), the removal of the fence. That is 14! / (7! 7!)."""
    both = SCENARIOS["two puts || reader"]
    actors = {name: calls for name, calls in both.actors.items() if name != "r"}
    assert explore(Scenario("two puts", actors, both.before), explored_redis).schedules == 3432


def test_a_sample_of_everything_is_everything(explored_redis: EmbeddedRedis) -> None:
    scenario = PUT_AND_READER
    faults = ("crash", "evict")
    whole = explore(scenario, explored_redis, faults=faults)
    sample = explore(scenario, explored_redis, faults=faults, at_most=10_000, seed=SEED)
    assert sample.exhaustive
    assert (sample.states, sample.faults) == (whole.states, whole.faults)


@pytest.mark.parametrize("scenario", SCENARIOS if EXHAUSTIVE else ["fork put || reader"])
def test_the_order_of_steps_that_touch_nothing_in_common_does_not_matter(
    scenario: str, explored_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So one order is left out. A search that walks both meets the same states, each as often."""
    spared = explore(SCENARIOS[scenario], explored_redis, faults=["crash"])
    monkeypatch.setattr(Touched, "is_apart_from", lambda *_: False)
    whole = explore(SCENARIOS[scenario], explored_redis, faults=["crash"])
    assert (spared.states, spared.schedules, spared.faults) == (whole.states, whole.schedules, whole.faults)
    assert spared.runs < whole.runs


def test_a_replay_from_what_was_recorded_is_a_replay_on_redis(explored_redis: EmbeddedRedis) -> None:
    """Leaving Redis out while an earlier run is repeated changes no state that is met."""
    scenario = SCENARIOS["the same put_writes twice"]
    recorded = explore(scenario, explored_redis, faults=("lapse",))
    with pytest.MonkeyPatch.context() as patch:
        begin = World.begin

        def begin_on_redis(world: World, path: tuple[tuple[str, ...], ...], _: tuple[Outcome, ...]) -> None:
            begin(world)
            for move in path:
                world.do(move)

        patch.setattr(World, "begin", begin_on_redis)
        replayed = explore(scenario, explored_redis, faults=("lapse",))
    assert recorded == replayed


def test_a_redis_that_was_killed_and_has_loaded_a_snapshot_is_not_believed(
    own_redis: EmbeddedRedis,
) -> None:
    """The other tests only make it reign anew: a process takes its time."""
    scenario = SCENARIOS["burst of two || reader"]
    report = explore(scenario, own_redis, faults=["reboot"], at_most=30, seed=SEED)
    assert report.faults["reboot"] > 10
    keys_hold_no_epoch = next(m for m in MUTATIONS if m.faults == ("restart",))
    with mutated(keys_hold_no_epoch), pytest.raises(Counterexample):
        explore(scenario, own_redis, faults=["reboot"])
