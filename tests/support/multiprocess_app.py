"""What `test_multiprocess.py` has served by several workers: a turn writes and reads one checkpoint."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from glasspoint import CachedPostgresSaver, create_telemetry
from glasspoint.telemetry.http import telemetry_app
from steps import Thread

POOL_SIZE = 3

# Made when the module is imported: with `gunicorn --preload`, before the workers are forked.
telemetry = create_telemetry()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.saver = await CachedPostgresSaver.create(
        os.environ["POSTGRES_URL"],
        os.environ["REDIS_URL"],
        pool_max_size=POOL_SIZE,
        audit_ratio=0,
        telemetry=telemetry,
    )
    yield
    await app.state.saver.close()


app = FastAPI(lifespan=lifespan)


@app.get("/turn/{thread_id}")
async def turn(thread_id: str) -> dict[str, Any]:
    """A turn of a conversation that nobody else has."""
    thread = Thread(thread_id)
    await thread.put(app.state.saver)
    await thread.put_writes(app.state.saver, "x")
    assert await thread.turn(app.state.saver) == 1
    return {"pid": os.getpid()}


app.mount("/", telemetry_app())
