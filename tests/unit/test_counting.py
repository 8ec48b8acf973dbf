"""Calls are counted some at a time, and whoever looks sees them all."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from command_line import environment
from glasspoint import Telemetry
from glasspoint.telemetry.events import Operation, SaverStatus
from glasspoint.telemetry.metrics import BUCKETS_OF_READS, Families, Metrics

COUNT = "glasspoint_operation_duration_seconds_count"


def call(telemetry: Telemetry) -> None:
    with telemetry.operation("put", None) as operation:
        operation.l1_write = "covered"


def counted(registry: CollectorRegistry) -> float | None:
    labels = {"saver": "default", "operation": "put", "outcome": "ok"}
    return registry.get_sample_value(COUNT, labels)


def test_every_look_counts_what_has_ended_since_the_last() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry("default", (Metrics("default", registry),))
    for number in range(1, 100):
        call(telemetry)
        assert counted(registry) == number
    call(telemetry)
    assert (
        f'{COUNT}{{operation="put",outcome="ok",saver="default"}} 100.0' in generate_latest(registry).decode()
    )


def test_savers_of_one_registry_are_counted_by_the_same_look() -> None:
    registry = CollectorRegistry()
    for name in ("default", "default", "other"):
        call(Telemetry(name, (Metrics(name, registry),)))
    assert counted(registry) == 2
    assert registry.get_sample_value(COUNT, {"saver": "other", "operation": "put", "outcome": "ok"}) == 1


def test_zeros_are_made_by_who_looks_at_them_and_by_no_opening() -> None:
    """All of them take milliseconds, and not every process is scraped."""
    registry = CollectorRegistry()
    Metrics("default", registry)
    families = Families.of(registry).counted
    assert not any(family._metrics for family in families.values())
    text = generate_latest(registry.restricted_registry(["glasspoint_l1_reads_total"])).decode()
    assert 'glasspoint_l1_reads_total{result="hit",saver="default"} 0.0' in text
    assert [name for name, family in families.items() if family._metrics] == ["l1_reads_total"]
    [read_without_a_scrape] = Families.of(registry).collect(["forks_total"])
    assert read_without_a_scrape.samples
    assert 'glasspoint_l2_retries_total{operation="put"' in generate_latest(registry).decode()


def test_without_anybody_who_looks_no_more_than_some_wait() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("default", registry)
    telemetry = Telemetry("default", (metrics,))
    waiting = Families.of(registry).ended.waiting
    for _ in range(1000):
        call(telemetry)
        assert len(waiting) < 32
    metrics.closed(SaverStatus(None, None))
    assert not waiting


def test_where_other_processes_look_each_call_is_counted_at_once(tmp_path: Path) -> None:
    """The Prometheus client decides when it is imported, so in a process of its own."""
    code = """
from prometheus_client import CollectorRegistry
from glasspoint import Telemetry
from glasspoint.telemetry.metrics import Families, Metrics

registry = CollectorRegistry()
with Telemetry("default", (Metrics("default", registry),)).operation("put", None) as operation:
    operation.l1_write = "covered"
assert not Families.of(registry).ended.waiting
"""
    variables = environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)


def test_no_call_is_lost_or_counted_twice_whatever_threads_do() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry("default", (Metrics("default", registry),))

    def call_often() -> None:
        for _ in range(2000):
            call(telemetry)

    threads = [threading.Thread(target=call_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        counted(registry)
    assert counted(registry) == 4 * 2000


def test_a_call_that_waits_to_be_counted_holds_on_to_no_error() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry("default", (Metrics("default", registry),))

    class Failed(Exception):
        pass

    def fail() -> weakref.ref[Failed]:
        error = Failed("what was said")
        with pytest.raises(Failed), telemetry.operation("put", None):
            raise error
        return weakref.ref(error)

    held = fail()
    gc.collect()
    assert len(Families.of(registry).ended.waiting) == 1
    assert held() is None


def test_what_cannot_be_counted_fails_no_scrape() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry("default", (Metrics("default", registry),))
    with telemetry.operation("put", None) as operation:
        operation.outcome = []  # type: ignore[assignment]
    call(telemetry)
    generate_latest(registry)
    assert counted(registry) == 1, "the one that failed is gone, the other is not"


def ended(telemetry: Telemetry, seconds: float, read: int, *, trace_id: str | None = None) -> Operation:
    operation = telemetry.operation("get_tuple", None)
    operation.l1_result, operation.served_by, operation.trace_id = "hit", "l1", trace_id
    operation.seconds, operation.bytes_read, operation.decode_seconds = seconds, read, seconds / 2
    return operation


@pytest.mark.parametrize("trace_id", [None, "0" * 32])
def test_calls_that_are_counted_together_count_as_they_would_one_by_one(trace_id: str | None) -> None:
    """Among them values on a bucket's bound, and values above the last one."""
    values = [(bound * factor, n) for n, bound in enumerate(BUCKETS_OF_READS) for factor in (0.99, 1, 1.01)]
    scraped = []
    for looks_each_time in (True, False):
        registry = CollectorRegistry()
        metrics = Metrics("default", registry)
        telemetry = Telemetry("default", (metrics,))
        for seconds, size in values[-31:]:  # fewer than are counted without a look
            metrics.operation_ended(ended(telemetry, seconds, 1024 * 4**size, trace_id=trace_id))
            if looks_each_time:
                counted(registry)
        scraped.append(
            {
                (sample.name, *sorted(sample.labels.items())): sample.value
                for family in registry.collect()
                for sample in family.samples
                if not sample.name.endswith("timestamp_seconds")
            }
        )
    assert scraped[0] == pytest.approx(scraped[1])
    for name in (
        "operation_duration_seconds",
        "read_duration_seconds",
        "entry_bytes",
        "serde_duration_seconds",
    ):
        found = sum(value for key, value in scraped[1].items() if key[0] == f"glasspoint_{name}_count")
        assert found == 31, name
