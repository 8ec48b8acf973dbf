"""Run by `test_multiprocess.py` with PROMETHEUS_MULTIPROC_DIR set: one process, its registries, its forks."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.telemetry import Telemetry
from glasspoint.telemetry.multiprocess import AllProcesses, _this_process

FORKS = 30


def value(name: str, **labels: str) -> float | None:
    everything: Any = AllProcesses()
    wanted = {"saver": "default", **labels}
    for family in text_string_to_metric_families(generate_latest(everything).decode()):
        for sample in family.samples:
            if (sample.name, sample.labels) == (name, wanted):
                return sample.value
    return None


def hits() -> float | None:
    return value("glasspoint_l1_reads_total", result="hit")


def hit(telemetry: Telemetry) -> None:
    with telemetry.operation("get_tuple", None) as operation:
        operation.l1_result = "hit"


def child(telemetry: Telemetry) -> None:
    """What a forked worker begins with: no saver, and no lock that somebody holds who is not there."""
    signal.alarm(20)
    [own] = _this_process
    assert own.watched == 0
    hit(telemetry)
    own.publish()
    os._exit(0)


# Two registries: one set of families, so that neither overwrites what the other counts.
one, two = (create_telemetry(registry=CollectorRegistry()) for _ in range(2))
hit(one)
hit(two)
assert hits() == 2

with CachedPostgresSaver.from_conn_string(
    os.environ["POSTGRES_URL"], redis_url=os.environ["REDIS_URL"], pool_max_size=4, telemetry=one
) as saver:
    saver.setup()
    over = threading.Event()

    def publish_all_the_time() -> None:
        while not over.is_set():
            _this_process[0].publish()

    publishing = threading.Thread(target=publish_all_the_time, daemon=True)
    publishing.start()
    for _ in range(FORKS):
        pid = os.fork()
        if not pid:
            child(one)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    over.set()
    publishing.join()
    assert hits() == 2 + FORKS
    assert value("glasspoint_pool_max_connections") == 4, "the children had no pool"
    assert value("glasspoint_active_tier", tier="cached") == 1

assert value("glasspoint_pool_max_connections") == 0
assert value("glasspoint_l1_breaker_open") is None, "there is no saver any more"
