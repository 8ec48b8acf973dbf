"""What boards, rules and alerts ask, asked of a real Prometheus that watched conversations in trouble."""

from __future__ import annotations

import signal
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

import preforked
from command_line import Running, assert_gone, environment, glasspoint
from dashboards import queries, rules
from dashboards.observe import TRAFFIC, Backing, missing
from real_prometheus import Prometheus

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}")

# The pool is squeezed: six people, and two connections.
SQUEEZED = {**TRAFFIC, "CHECKPOINT_POOL_MAX_SIZE": "2", "CHECKPOINT_POOL_MIN_SIZE": "1"}
FALLS_SOON = {"CHECKPOINT_CONNECT_TIMEOUT": "1", "CHECKPOINT_PROBE_INTERVAL": "0.5"}
ASKED = [each for each in queries.expressions(values={"__rate_interval": "15s"}) if each.language == "promql"]
RULES = rules.expressions()


@pytest.fixture(scope="module")
def observed() -> Iterator[Prometheus]:
    """It has seen a start without PostgreSQL, the way back, a flush, Redis killed, and broken connections."""
    with Backing(traffic=SQUEEZED, talks=False, scrape_interval="1s") as backing, ExitStack() as stack:
        prometheus = Prometheus(backing.prometheus_url)
        stack.callback(prometheus.close)
        assert glasspoint("setup", POSTGRES_URL=backing.postgres.url).returncode == 0
        backing.postgres.stop()
        backing.start_traffic(**FALLS_SOON)
        prometheus.wait_for('glasspoint_active_tier{tier="redis"} == 1')
        prometheus.wait_for('ALERTS{alertname="GlasspointPostgresDown", alertstate="pending"}')
        prometheus.wait_for('glasspoint_operation_duration_seconds_count{operation="put"} > 20')
        backing.postgres.start()
        prometheus.wait_for('glasspoint_active_tier{tier="cached"} == 1')
        prometheus.wait_for("glasspoint_l1_reads_total > 5")
        backing.redis.flush()
        prometheus.wait_for('glasspoint_l1_warm_ups_total{result="stored"} > 0')
        backing.redis.kill()
        prometheus.wait_for("glasspoint_l1_breaker_open == 1")
        backing.redis.start()
        prometheus.wait_for("glasspoint_l1_breaker_open == 0")
        with psycopg.connect(backing.postgres.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        prometheus.wait_for(
            "sum(glasspoint_l2_retries_total) > 0 or sum(glasspoint_pool_connections_lost_total) > 0"
        )
        _wait_for_normal_traffic(prometheus)
        yield prometheus


def _wait_for_normal_traffic(prometheus: Prometheus) -> None:
    prometheus.wait_for('increase(glasspoint_l1_reads_total{result="hit"}[10s]) > 5')
    # Its connection was broken, too: the next scrape is whole again.
    exporters = ("pg_up == 1", "pg_stat_activity_count", "pg_database_size_bytes", "redis_up")
    for exported in ("glasspoint_storage_bytes", *exporters):
        prometheus.wait_for(exported)
    for name in dict.fromkeys(name for name, promql in RULES if _has_data(name, promql)):
        prometheus.wait_for(name)


def _has_data(name: str, promql: str) -> bool:
    """What is recorded; alerts are quiet. A subquery looks at every full minute, or five: that takes long."""
    return ":" in name and not promql.endswith((":1m])", ":5m])"))


@pytest.mark.parametrize("asked", ASKED, ids=lambda each: f"{each.board}: {each.panel} {each.ref_id}")
def test_a_panel_has_an_answer(observed: Prometheus, asked: queries.Expression) -> None:
    # An exporter may have missed the last scrape, if the machine is busy.
    series = observed.wait_for(asked.text) if asked.has_data else observed.query(asked.text)
    sys.stdout.write(f"{asked.board}: {asked.panel} {asked.ref_id}: {len(series)} series\n")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule[0])
def test_a_rule_can_be_evaluated(observed: Prometheus, rule: tuple[str, str]) -> None:
    name, promql = rule
    series = observed.query(promql)
    assert series or not _has_data(name, promql)


def test_no_rule_failed(observed: Prometheus) -> None:
    groups = observed.get("rules")["groups"]
    assert len(groups) > 0
    failed = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
    assert not failed


def test_what_went_wrong_is_seen(observed: Prometheus) -> None:
    for seen in (
        'glasspoint_fallback_events_total{from_tier="cached",to_tier="redis"} > 0',
        'glasspoint_fallback_events_total{reason="recovered"} > 0',
        "sum(glasspoint_drained_checkpoints_total) > 0",
        'glasspoint_l1_breaker_transitions_total{to="open"} > 0',
        "glasspoint_l1_epoch_changes_total > 0",
        'sum(glasspoint_write_through_total{l1="journalled"}) > 0',
        "glasspoint_pool_wait_seconds_sum > 0",
    ):
        assert observed.query(seen), seen


def test_the_command_says_where_everything_is_and_leaves_nothing_behind() -> None:
    program = (
        "from runpy import run_module; run_module('dashboards.observe', run_name='__main__', alter_sys=True)"
    )
    options = "--prometheus-port", "0", "--port", "0", "--people", "1"
    with preforked.Popen(program, *options, env=environment()) as process:
        try:
            observing = Running(process)
            url = observing.wait_for(r"^Prometheus +(http://\S+)")[1]
            alerts = observing.wait_for(r"^Alerts +(http://\S+)")[1]
            metrics = observing.wait_for(r"^Metrics +(http://\S+)")[1]
            observing.wait_for("Ctrl-C ends it all")
            for page in (alerts, url, metrics):
                with urllib.request.urlopen(page, timeout=60) as answer:
                    assert answer.status == 200
            with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=60) as answer:
                assert b"GlasspointWriteErrorBudgetBurn" in answer.read()
            started = observing.servers()
            assert observing.end(signal.SIGINT) == (0, "")
        finally:
            process.kill()
    assert len(started) >= 6
    assert_gone(started)
