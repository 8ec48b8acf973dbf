"""Texts and numbers that PostgreSQL's jsonb refuses are stored all the same, by every saver, and read back as
they were, by LangGraph's own saver, too."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, StateGraph
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from drawn import BEYOND_JSONB
from glasspoint import MemorySaver, RedisSaver, create_telemetry
from glasspoint.errors import SerializationError
from states import counts, exact, open_saver, open_upstream
from steps import Thread, drain, settled

Values = dict[str, Any]


async def values_of(saver: BaseCheckpointSaver[str], thread: Thread) -> Values:
    found = await saver.aget_tuple(thread.config)
    assert found is not None
    return found.checkpoint["channel_values"]


def state(thread: Thread, value: Any) -> Values:
    return {"messages": [f"message {thread.number}"], "turn": thread.number, "text": value}


@pytest.mark.parametrize("value", BEYOND_JSONB, ids=ascii)
async def test_it_is_read_back_from_redis_and_from_postgresql(
    value: Any, database: str, redis_url: str
) -> None:
    registry, thread = CollectorRegistry(), Thread("a")
    async with (
        open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver,
        open_upstream(database) as upstream,
        Redis.from_url(redis_url) as redis,
    ):
        await thread.put(saver, text=value)
        await settled(saver)
        assert exact(await values_of(saver, thread)) == exact(state(thread, value))
        assert counts(registry, "glasspoint_l1_reads_total", "result")["hit"] == 1
        assert exact(await values_of(upstream, thread)) == exact(state(thread, value))
        await redis.flushall()
        assert exact(await values_of(saver, thread)) == exact(state(thread, value))


@pytest.mark.parametrize("value", BEYOND_JSONB, ids=ascii)
async def test_a_checkpoint_that_does_not_change_it_has_it_too(
    value: Any, database: str, redis_url: str
) -> None:
    """And Redis follows: it is as cheap as any other value that stays."""
    registry, thread = CollectorRegistry(), Thread("a")
    async with (
        open_saver(database, redis_url, telemetry=create_telemetry(registry=registry)) as saver,
        open_upstream(database) as upstream,
    ):
        config, checkpoint, metadata, versions = thread.next_put(saver, text=value)
        thread.newest = await saver.aput(config, checkpoint, metadata, versions)
        kept = versions["text"]
        await settled(saver)
        config, checkpoint, metadata, versions = thread.next_put(saver, text=value)
        checkpoint["channel_versions"]["text"] = kept
        changed = {channel: version for channel, version in versions.items() if channel != "text"}
        await saver.aput(config, checkpoint, metadata, changed)
        await settled(saver)
        assert exact(await values_of(saver, thread)) == exact(state(thread, value))
        assert counts(registry, "glasspoint_l1_reads_total", "result") == {"hit": 1}
        assert exact(await values_of(upstream, thread)) == exact(state(thread, value))


@pytest.mark.parametrize("tier", ["redis", "memory"])
@pytest.mark.parametrize("value", BEYOND_JSONB, ids=ascii)
async def test_a_lower_tier_keeps_it_and_hands_it_on(
    value: Any, tier: str, database: str, redis_url: str
) -> None:
    telemetry, thread = create_telemetry(registry=CollectorRegistry()), Thread("a")
    async with (
        MemorySaver(telemetry=telemetry)
        if tier == "memory"
        else RedisSaver.from_conn_string(redis_url, key_prefix="lower", telemetry=telemetry) as lower,
        open_saver(database, redis_url) as saver,
        open_upstream(database) as upstream,
    ):
        await thread.put(lower, text=value)
        assert exact(await values_of(lower, thread)) == exact(state(thread, value))
        assert (await drain(lower, saver)).checkpoints == 1
        assert exact(await values_of(saver, thread)) == exact(state(thread, value))
        assert exact(await values_of(upstream, thread)) == exact(state(thread, value))


class State(TypedDict):
    text: str
    turns: Annotated[int, lambda one, other: one + other]


async def test_a_conversation_goes_on_with_a_text_with_nul(database: str, redis_url: str) -> None:
    """As it comes out of a PDF, and stays in the state while other channels change."""
    text, config = "page 1\0page 2", Thread("a").config

    builder = StateGraph(State).add_node("count", lambda state: {"turns": 1}).add_edge(START, "count")
    for turn in range(1, 4):
        async with open_saver(database, redis_url) as saver:
            graph = builder.compile(saver)
            given: Any = {"text": text, "turns": 0} if turn == 1 else {"turns": 0}
            assert await graph.ainvoke(given, config) == {"text": text, "turns": turn}
    async with open_upstream(database) as upstream:
        read = await builder.compile(upstream).aget_state(config)
        assert read.values == {"text": text, "turns": 3}


class Turned:
    """A cipher that a test can follow."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "turned", plaintext[::-1]

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "turned"
        return ciphertext[::-1]


async def test_it_is_encrypted_like_any_other_value(database: str, redis_url: str) -> None:
    thread, serde = Thread("a"), EncryptedSerializer(Turned())
    async with (
        open_saver(database, redis_url, serde=serde) as saver,
        open_upstream(database, serde=serde) as upstream,
        await psycopg.AsyncConnection.connect(database) as conn,
    ):
        await thread.put(saver, text="secret\0text")
        assert exact(await values_of(upstream, thread)) == exact(state(thread, "secret\0text"))
        rows = await conn.execute("SELECT type, blob FROM checkpoint_blobs WHERE channel = 'text'")
        ((kind, blob),) = await rows.fetchall()
        assert kind == "msgpack+turned"
        assert b"terces" in blob
        rows = await conn.execute("SELECT count(*) FROM checkpoints WHERE checkpoint::text ~ 'secret'")
        assert await rows.fetchone() == (0,)


async def test_what_a_serializer_would_silently_change_is_refused(database: str, redis_url: str) -> None:
    """The msgpack of LangGraph makes "?" of a lone surrogate; its JSON is not encrypted."""
    thread = Thread("a")
    async with open_saver(database, redis_url, serde=EncryptedSerializer(Turned())) as saver:
        with pytest.raises(SerializationError, match=r"channel 'text': a text is not valid Unicode.*serde"):
            await thread.put(saver, text="half \ud800")
        assert await saver.aget_tuple(thread.config) is None


async def test_a_value_without_a_version_cannot_be_kept_apart(database: str, redis_url: str) -> None:
    async with open_saver(database, redis_url) as saver:
        config, checkpoint, metadata, versions = Thread("a").next_put(saver)
        checkpoint["channel_values"]["loose:end"] = "a\0b"
        with pytest.raises(SerializationError, match=r"channel 'loose:end' as JSON: a text holds a NUL"):
            await saver.aput(config, checkpoint, metadata, versions)
