"""Redis is reached with TLS: one server, a Redis Cluster, and the master that sentinels name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.cli.check import run_checks
from redis_nodes import IN_CLUSTER, SLOTS, slot_of, start_node, wait
from redis_tls import HAS_TLS, Certificate, TlsRedis, TlsSentinel, certified
from sentinels import SERVICE
from states import counts, open_saver
from steps import Thread, until

pytestmark = pytest.mark.skipif(
    not HAS_TLS, reason="needs redis-server 7 with TLS, and openssl: apt-get install redis-server openssl"
)


@pytest.fixture(scope="module")
def certificate() -> Iterator[Certificate]:
    with certified() as made:
        yield made


@contextmanager
def single(certificate: Certificate) -> Iterator[str]:
    with TlsRedis(certificate) as server:
        yield f"rediss://127.0.0.1:{server.tls_port}/0"


@contextmanager
def cluster(certificate: Certificate) -> Iterator[str]:
    """Two masters. The URL names one, so that the other is found."""
    with ExitStack() as started:
        options, make = (*IN_CLUSTER, "--tls-cluster", "yes"), partial(TlsRedis, certificate)
        servers = [cast("TlsRedis", started.enter_context(start_node(*options, make=make))) for _ in range(2)]
        for number, server in enumerate(servers):
            with server._client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                half = (number * SLOTS // 2, (number + 1) * SLOTS // 2 - 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", *half)
                if number:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].tls_port)
        for server in servers:
            with server._client() as client:
                wait(lambda client=client: is_whole(client))
        yield f"rediss+cluster://127.0.0.1:{servers[1].tls_port}"


def is_whole(client: Any) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return bool(info["cluster_state"] == "ok" and info["cluster_size"] == "2")


@contextmanager
def sentinel(certificate: Certificate) -> Iterator[str]:
    with TlsRedis(certificate) as master:
        monitored = f"sentinel monitor {SERVICE} 127.0.0.1 {master.tls_port} 1"
        with TlsSentinel(certificate, monitored) as server:
            yield f"rediss+sentinel://127.0.0.1:{server.tls_port}/{SERVICE}/0"


@pytest.mark.parametrize("kind", [single, cluster, sentinel])
async def test_the_cache_is_used_and_a_certificate_that_is_not_trusted_is_named(
    kind: Any, certificate: Certificate, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    threads = [Thread("a"), Thread("b")]
    assert {slot_of(thread.thread_id) // (SLOTS // 2) for thread in threads} == {0, 1}
    registry = CollectorRegistry()

    def hits() -> int:
        return counts(registry, "glasspoint_l1_reads_total", "result").get("hit", 0)

    async def is_hit(saver: CachedPostgresSaver, thread: Thread) -> bool:
        before = hits()
        assert await thread.turn(saver) == thread.number
        return hits() > before

    with kind(certificate) as url:
        trusted, telemetry = url + certificate.query, create_telemetry(registry=registry)
        async with open_saver(database, trusted, telemetry=telemetry) as saver:
            for thread in threads:
                await thread.put(saver)
                await until(lambda thread=thread: is_hit(saver, thread))  # type: ignore[misc]
        assert await found(database, trusted) == ("ok", True)
        caplog.clear()
        async with open_saver(database, url) as saver:
            assert await threads[0].turn(saver) == 1, "PostgreSQL answers"
        if kind is single:  # elsewhere, `check` alone tells it
            assert any("certificate verify failed" in r.getMessage() for r in caplog.records)
        status, is_named = await found(database, url)
        assert status == "failed"
        assert is_named


async def found(database: str, url: str) -> tuple[str, bool]:
    """What `check` finds of Redis; whether it passes, or names the certificate."""
    found = {each.name: each async for each in run_checks(database, url, timeout_seconds=15.0)}
    redis = found["Redis"]
    return redis.status, redis.status == "ok" or "certificate verify failed" in redis.detail
