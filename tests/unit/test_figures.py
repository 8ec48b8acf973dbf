"""Figures: rates, ratios and percentiles of what happened between two readings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge

from command_line import environment
from glasspoint.telemetry.catalogue import METRICS
from glasspoint.telemetry.events import EpochChanged, IdentityChanged, TurnEnded
from glasspoint.telemetry.figures import (
    Change,
    Figures,
    TextReader,
    Timing,
    Window,
    quantile,
    read_registry,
)
from glasspoint.telemetry.metrics import BUCKETS_OF_READS, Families
from workers import Worker


def hits(worker: Worker, times: int) -> None:
    worker.call("get_tuple", times, l1_result="hit", served_by="l1")


# -------------------------------------------------------------------- one process


def test_rates_are_the_growth_between_two_readings_by_the_time_between_them() -> None:
    worker = Worker()
    hits(worker, 1000)
    before = worker.read(at=100.0)
    hits(worker, 30)
    worker.call("get_tuple", 10, l1_result="miss", served_by="l2")
    worker.call("get_tuple", 4, l1_result="absent")
    worker.call("put", 8, l1_write="announced", l1_seconds=0.001, l2_seconds=0.003)
    worker.call("put_writes", 2, l1_write="covered", l2_seconds=0.003)
    worker.fail("put")
    found = Figures.of(Change.between(before, worker.read(at=102.0)))
    assert found.reads.rate == 22.0
    assert {name: rate for name, rate in found.reads.results.items() if rate} == {
        "hit": 15.0,
        "miss": 5.0,
        "absent": 2.0,
    }
    assert found.reads.hit_ratio == 0.75  # what is absent could not have been a hit
    assert (found.hit.rate, found.miss.rate) == (15.0, 5.0)
    assert found.writes.rate == 5.5
    assert {name: rate for name, rate in found.writes.results.items() if rate} == {
        "announced": 4.0,
        "covered": 1.0,
    }
    assert found.l1 is not None
    assert found.l2 is not None
    assert (found.l1.rate, found.l2.rate) == (4.0, 5.0)
    assert found.errors == {"put": 0.5}


def test_a_fresh_registry_has_figures_of_nothing() -> None:
    for registry in (CollectorRegistry(), Worker().registry):
        reading = read_registry(registry)
        found = Figures.of(Change.between(reading, replace(read_registry(registry), at=reading.at + 1)))
        assert (found.reads.rate, found.reads.hit_ratio) == (0.0, None)
        assert found.hit == found.miss == Timing(0.0, None, None)
        assert (found.l1, found.l2, found.pool, found.tier, found.breaker) == (None, None, None, None, None)
        assert found.savers == []
        assert found.process is None
    assert Figures.of() == Figures.of(Change(read_registry(CollectorRegistry())))


def test_percentiles_are_of_what_happened_between_the_readings() -> None:
    worker = Worker()
    worker.observe("read_duration_seconds", 20.0, "l1", "hit", times=500)
    before = worker.read(at=0.0)
    worker.observe("read_duration_seconds", 0.0005, "l1", "hit", times=90)
    worker.observe("read_duration_seconds", 0.06, "l1", "hit", times=10)
    found = Figures.of(Change.between(before, worker.read(at=1.0)))
    low, high = BUCKETS_OF_READS[0], BUCKETS_OF_READS[1]
    assert found.hit.p50 == pytest.approx(low + (high - low) * 50 / 90)
    assert found.hit.p99 is not None
    assert 0.0512 < found.hit.p99 <= 0.1024
    assert found.miss.p50 is None


def test_text_and_registry_tell_the_same() -> None:
    worker = Worker("default", 'a "hostile" {name} \\ \n\x1b[2J\u2028}')
    worker.open()
    pairs = [(worker.read(0.0), worker.read_text(0.0))]
    hits(worker, 7)
    worker.call("put", 3, saver=list(worker.savers)[1], l1_write="journalled")
    pairs.append((worker.read(2.0), worker.read_text(2.0)))
    registry, text = (Figures.of(Change.between(*each)) for each in zip(*pairs, strict=True))
    assert registry == text
    assert registry.reads.rate == 3.5
    assert registry.savers == ["default"]


def test_a_text_with_time_stamps_carriage_returns_and_foreign_metrics_is_read() -> None:
    text = (
        'other_total{a="b"} 5\r\n'
        'glasspoint_forks_total{saver="a b} c",kind="shadows",outcome="stored"} 3 1700000000000\r\n'
        'glasspoint_l1_epoch_changes_total{saver="a b} c"} 2\r\n'
        'glasspoint_pool_max_connections{saver="x"} NaN\r\n'
        'glasspoint_operation_duration_seconds_bucket{saver="x",operation="put",outcome="ok",le="?"} 1\r\n'
        "process_cpu_seconds_total 1.5 1700000000000\r\n"
    )
    reading = TextReader().read(text)
    found = Figures.of(Change(reading))
    assert (found.forks, found.epoch_changes, found.pool) == (3, 2, None)
    assert not TextReader().read('other_total{a="b"} 5\n').is_glasspoint
    assert TextReader().read("# TYPE glasspoint_forks_total counter\n").is_glasspoint


@pytest.mark.parametrize(
    "line",
    [
        "glasspoint_forks_total",
        "glasspoint_forks_total{ 3",
        'glasspoint_forks_total{a="b"} x',
        "glasspoint_{}",
    ],
)
def test_what_is_no_metric_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        TextReader().read(line)


def test_totals_and_states_are_the_present_ones() -> None:
    worker = Worker()
    telemetry = worker.savers["default"]
    telemetry.emit(EpochChanged())
    telemetry.emit(IdentityChanged("restart"))
    telemetry.emit(TurnEnded("agent", "interrupted", 0.5, None))
    worker.open(breaker="open", journal_pending=4, quarantined=lambda: 2, identity="ab12")
    found = Figures.of(Change(worker.read(0.0)))
    assert (found.epoch_changes, found.identity_changes) == (1, 1)
    assert (found.breaker, found.journal_pending, found.quarantined) == ("open", 4, 2)
    assert (found.tier, found.savers, found.identity) == ("cached", ["default"], "ab12")
    assert found.turns.rate == 0.0  # one reading tells of no growth


def test_turns_are_added_up_over_agents() -> None:
    worker = Worker()
    before = worker.read(0.0)
    for turn in (TurnEnded("a", "ok", 0.05, None), TurnEnded("b", "ok", 0.05, None)):
        worker.savers["default"].emit(turn)
    worker.savers["default"].emit(TurnEnded("b", "error", 0.05, None))
    found = Figures.of(Change.between(before, worker.read(1.0))).turns
    assert (found.rate, found.outcomes["ok"], found.outcomes["error"]) == (3.0, 2.0, 1.0)
    assert found.p50 is not None
    assert 0.04 < found.p50 <= 0.16


def test_calls_in_a_lower_tier_are_shown_as_that_tiers() -> None:
    worker = Worker()
    worker.open(tier="redis")
    before = worker.read(0.0)
    worker.call("get_tuple", 6, served_by="redis", tier="redis")
    worker.call("put", 4, served_by="redis", tier="redis")
    found = Figures.of(Change.between(before, worker.read(2.0)))
    assert (found.reads.results["redis"], found.writes.results["redis"]) == (3.0, 2.0)
    assert (found.reads.results["memory"], found.tier, found.reads.hit_ratio) == (0.0, "redis", None)


def test_each_saver_of_a_process_can_be_looked_at_alone() -> None:
    worker = Worker("a", "b")
    before = worker.read(0.0)
    worker.call("get_tuple", 3, saver="a", l1_result="hit", served_by="l1")
    worker.call("get_tuple", 1, saver="b", l1_result="miss", served_by="l2")
    change = Change.between(before, worker.read(1.0))
    assert Figures.of(change).reads.rate == 4.0
    assert Figures.of(change, saver="a").reads.hit_ratio == 1.0
    assert Figures.of(change, saver="b").reads.hit_ratio == 0.0
    assert Figures.of(change, saver="c").reads.rate == 0.0


def test_figures_are_json() -> None:
    worker = Worker()
    worker.open()
    found = Figures.of(Change(worker.read(0.0)))
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False)) == found.as_dict()


# -------------------------------------------------------------------- a restart


def test_a_restarted_process_has_no_rates_until_its_second_reading() -> None:
    old, new = Worker(), Worker()
    hits(old, 1000)
    window = Window()
    window.add(old.read(0.0))
    hits(new, 10)
    first = window.add(new.read(1.0))
    assert first.is_restart
    assert Figures.of(first).reads.rate == 0.0
    hits(new, 5)
    second = window.add(new.read(2.0))
    assert not second.is_restart
    assert Figures.of(second).reads.rate == 5.0


def test_another_process_whose_counters_are_larger_is_no_burst_of_calls() -> None:
    """As behind a load balancer, and after a restart that nobody saw: when a process started tells it."""
    small, large = Worker(), Worker()
    for worker, started in ((small, 100.0), (large, 50.0)):
        Gauge("process_start_time_seconds", "help", registry=worker.registry).set(started)
    hits(large, 100_000)
    change = Change.between(small.read(0.0), large.read(1.0))
    assert change.is_restart
    assert Figures.of(change).reads.rate == 0.0


def test_a_process_that_counts_less_in_one_series_only_has_been_restarted() -> None:
    old, new = Worker(), Worker()
    old.fail("put")
    hits(old, 1)
    hits(new, 500)
    assert Change.between(old.read(0.0), new.read(1.0)).is_restart


def test_readings_at_the_same_moment_have_no_rates() -> None:
    worker = Worker()
    before = worker.read(1.0)
    hits(worker, 5)
    assert Figures.of(Change.between(before, worker.read(1.0))).reads.rate == 0.0


def test_a_window_tells_of_its_length_and_no_more() -> None:
    worker, window = Worker(), Window(length=3)
    rates = []
    for second in range(5):
        rates.append(Figures.of(window.add(worker.read(float(second)))).reads.rate)
        hits(worker, 10 if second == 0 else 0)
    assert rates == [0.0, 10.0, 5.0, 0.0, 0.0]


# -------------------------------------------------------------------- several processes


def test_the_sum_of_processes_adds_histograms_by_bucket() -> None:
    """Nine fast processes and a slow one: the mean of their percentiles would be far off."""
    changes = []
    for number in range(10):
        worker = Worker()
        before = worker.read(0.0)
        worker.observe("read_duration_seconds", 5.0 if number == 9 else 0.0005, "l1", "hit", times=10)
        changes.append(Change.between(before, worker.read(1.0)))
    found = Figures.of(*changes).hit
    assert found.rate == pytest.approx(100.0)
    assert found.p50 is not None
    assert found.p50 < 0.0008
    assert found.p99 is not None
    assert found.p99 > 1.6


def test_processes_that_are_read_at_different_intervals_count_by_their_rates() -> None:
    changes = []
    for seconds in (1.0, 10.0):
        worker = Worker()
        before = worker.read(0.0)
        hits(worker, int(4 * seconds))
        changes.append(Change.between(before, worker.read(seconds)))
    assert Figures.of(*changes).reads.rate == pytest.approx(8.0)


def test_states_of_processes_are_combined_by_what_they_mean() -> None:
    changes = []
    for tier, in_memory in (("cached", 0), ("memory", 3), ("memory", 2)):
        worker = Worker()
        worker.open(
            tier=tier,
            breaker="closed" if tier == "cached" else None,
            journal_pending=7,
            undrained_threads={"redis": 5, "memory": in_memory},
        )
        Counter("process_cpu_seconds", "help", registry=worker.registry).inc()
        Gauge("process_resident_memory_bytes", "help", registry=worker.registry).set(1e8)
        changes.append(Change(worker.read(0.0)))
    found = Figures.of(*changes)
    assert found.tier == {"cached": 1, "memory": 2}
    assert (found.breaker, found.journal_pending) == ("closed", 7)  # they see one journal
    assert found.undrained_threads == {"redis": 5, "memory": 5}  # one Redis, but each its own memory
    assert found.process is not None
    assert (found.process.cpu, found.process.rss) == (0.0, 3e8)


_PROCESSES = """
import os
from dataclasses import replace
from prometheus_client import CollectorRegistry
from glasspoint import Telemetry
from glasspoint.telemetry.figures import Figures, Window, read_registry
from glasspoint.telemetry.metrics import Metrics
from glasspoint.telemetry.multiprocess import AllProcesses

def process(hits):
    if pid := os.fork():
        os.waitpid(pid, 0)
        return
    telemetry = Telemetry("default", (Metrics("default", CollectorRegistry()),))
    for _ in range(hits):
        with telemetry.operation("get_tuple", None) as operation:
            operation.l1_result, operation.served_by = "hit", "l1"
    os._exit(0)

window, registry = Window(), CollectorRegistry()
for second, processes in enumerate([(1000,), (7, 3), (), (4,)]):
    for hits in processes:
        process(hits)
    change = window.add(replace(read_registry(registry, source=AllProcesses()), at=float(second)))
    print(Figures.of(change).reads.rate, change.is_restart)
"""


def test_a_directory_of_several_processes_is_one_sum_also_when_they_end(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _PROCESSES],
        env=environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.stdout.splitlines() == ["0.0 False", "10.0 False", "0.0 False", "4.0 False"], ended.stderr


# -------------------------------------------------------------------- whatever happens

RESULTS = st.sampled_from(("hit", "miss", "absent", "busy", "historical"))
CALLS = st.lists(st.tuples(st.sampled_from((0, 1)), RESULTS, st.integers(1, 5)), max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(CALLS, st.booleans(), st.floats(0.01, 100)), min_size=1, max_size=6))
def test_rates_are_never_negative_and_the_sum_is_that_of_its_parts(
    rounds: list[tuple[list[tuple[int, str, int]], bool, float]],
) -> None:
    workers, windows, at = [Worker(), Worker()], [Window(), Window()], 0.0
    for window, worker in zip(windows, workers, strict=True):
        window.add(worker.read(at))
    for calls, restarts, seconds in rounds:
        at += seconds
        if restarts:
            workers[0] = Worker()
        expected = [0, 0]
        for number, result, times in calls:
            workers[number].call("get_tuple", times, l1_result=result, served_by="l1")
            expected[number] += times
        changes = [window.add(worker.read(at)) for window, worker in zip(windows, workers, strict=True)]
        each, total = [Figures.of(change) for change in changes], Figures.of(*changes)
        for one, truth in zip(each, expected, strict=True):
            assert 0 <= one.reads.rate <= truth / seconds * (1 + 1e-9)
            assert sum(one.reads.results.values()) == pytest.approx(one.reads.rate)
        assert each[1].reads.rate == pytest.approx(expected[1] / seconds)
        assert total.reads.rate == pytest.approx(sum(one.reads.rate for one in each))
        for result, rate in total.reads.results.items():
            assert rate == pytest.approx(sum(one.reads.results[result] for one in each))
        assert total.reads.hit_ratio is None or 0 <= total.reads.hit_ratio <= 1


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_grow_with_their_share_and_stay_within_the_bounds(
    observed: list[int], low: float, high: float
) -> None:
    bounds = [*(2.0**n for n in range(len(observed) - 1)), math.inf]
    buckets = {bound: float(sum(observed[: n + 1])) for n, bound in enumerate(bounds)}
    first, second = (quantile(share, buckets) for share in sorted((low, high)))
    if not sum(observed):
        assert first is second is None
    else:
        assert first is not None
        assert second is not None
        assert 0 <= first <= second <= bounds[-2]


def test_a_quantile_is_interpolated_within_its_bucket_as_in_promql() -> None:
    buckets = {1.0: 10.0, 2.0: 20.0, 4.0: 20.0, math.inf: 20.0}
    assert quantile(0.25, buckets) == pytest.approx(0.5)
    assert quantile(0.75, buckets) == pytest.approx(1.5)
    assert quantile(1.0, buckets) == pytest.approx(2.0)
    assert quantile(0.5, {1.0: 0.0, math.inf: 0.0}) is None
    assert quantile(0.99, {1.0: 1.0, math.inf: 10.0}) == 1.0
    assert quantile(0.99, {math.inf: 10.0}) is None
    # Rates: 0.1 + 0.2 is a little more than 0.3, and the next bucket that holds anything is far away.
    assert quantile(0.5, {1.0: 0.3, 8.0: 0.3, 64.0: 2 * (0.1 + 0.2), math.inf: 2 * (0.1 + 0.2)}) == 1.0


# -------------------------------------------------------------------- what a reading costs


def test_a_reading_of_this_process_holds_what_figures_are_made_of_and_nothing_else() -> None:
    worker = Worker()
    worker.open(tier="cached", active=True)
    hits(worker, 3)
    worker.call("put", l1_write="announced", l1_seconds=0.1, l2_seconds=0.1, encode_seconds=0.1)
    worker.fail("put")
    all_of_it = read_registry(worker.registry, metrics=METRICS)
    used = read_registry(worker.registry)
    before = replace(read_registry(CollectorRegistry()), at=all_of_it.at - 1)
    assert Figures.of(Change(replace(used, at=all_of_it.at), before)) == Figures.of(Change(all_of_it, before))
    assert "burst_writes" in all_of_it.buckets
    assert "burst_writes" not in used.buckets


def test_a_reading_of_this_process_collects_no_metric_that_it_does_not_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Worker()
    hits(worker, 1)

    def collected() -> list[Any]:
        raise AssertionError("nobody needs this")

    families = Families.of(worker.registry)
    for name in ("burst_writes", "entry_bytes", "pool_wait_seconds"):
        monkeypatch.setattr(families.counted[name], "collect", collected)
    assert read_registry(worker.registry).values["l1_reads_total"]["default", "hit"] == 1


def test_a_reading_does_not_measure_the_tables() -> None:
    worker = Worker()
    asked: list[bool] = []

    def storage() -> dict[str, Any]:
        asked.append(True)
        return {}

    worker.open(tier="cached", active=True, storage=storage)
    read_registry(worker.registry)
    assert not asked
