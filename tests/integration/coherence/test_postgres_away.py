"""While PostgreSQL is away, a process that runs goes on with hits, for as long as Redis is trusted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from databases import with_tables
from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError, L2UnavailableError
from states import counts, open_saver
from steps import Thread, settled, until

FAILED_SWEEPS = 5
QUICK: dict[str, Any] = {
    "pool_max_size": 1,  # a sweep finds that it is broken: so no write is sent on it, and left in doubt
    "pool_timeout_seconds": 0.2,
    "write_deadline_seconds": 0.2,
    "sweep_interval_seconds": 0.01,
}


async def test_hits_go_on_while_postgresql_is_away_and_end_with_the_trust_in_redis(
    own_postgres: EmbeddedPostgres,
    own_redis: EmbeddedRedis,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the looks at the identity and the journal that fail, nor writes that fail, end them. A restart
    of Redis does: nobody can say then whether its entries are what PostgreSQL has."""
    database = with_tables(own_postgres)
    read, written, cold = Thread("read"), Thread("written"), Thread("cold")
    telemetry = create_telemetry(registry=registry)
    async with open_saver(database, own_redis.url, telemetry=telemetry, **QUICK) as saver:
        for thread in (read, written):
            await thread.put(saver)
            await settled(saver)
            assert await thread.turn(saver) == 1
        sweeps = _failing_sweeps(saver, monkeypatch)
        own_postgres.stop()
        await until(lambda: sweeps["failed"] >= FAILED_SWEEPS)
        before = counts(registry, "glasspoint_l1_reads_total", "result")["hit"]
        for _ in range(3):
            with pytest.raises(GlasspointError):
                await written.put(saver)
            assert await read.turn(saver) == 1
            assert await written.turn(saver) == 1
        after = counts(registry, "glasspoint_l1_reads_total", "result")["hit"]
        assert after - before == 6
        with pytest.raises(L2UnavailableError):
            await cold.turn(saver)
        failed = sweeps["failed"]
        await until(lambda: sweeps["failed"] >= failed + FAILED_SWEEPS)
        assert await read.turn(saver) == await written.turn(saver) == 1

        own_redis.kill()
        own_redis.start()
        with pytest.raises(L2UnavailableError):
            await read.turn(saver)
        own_postgres.start()

        async def reads() -> bool:
            try:
                return await read.turn(saver) == 1
            except GlasspointError:
                return False

        await until(reads)


def _failing_sweeps(saver: CachedPostgresSaver, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the sweeps: those that PostgreSQL has not answered have `failed`."""
    sweeper, sweeps = saver._parts.sweeper, Counter[str]()
    try_ = sweeper._try

    async def counted(work: Any) -> bool:
        done = await try_(work)
        sweeps["worked" if done else "failed"] += 1
        return done

    monkeypatch.setattr(sweeper, "_try", counted)
    return sweeps
