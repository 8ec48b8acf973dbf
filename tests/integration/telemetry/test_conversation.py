"""A turn is linked to the one before, wherever and whenever that was; and nobody but telemetry sees how."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import copy_context
from operator import add
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, StaticSampler
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import generate_latest
from psycopg.types.json import Jsonb
from redis.asyncio import Redis

from glasspoint import (
    CachedPostgresSaver,
    MemorySaver,
    conversation_turn,
    create_redis_checkpointer,
    create_telemetry,
)
from glasspoint.errors import ConfigurationError, SerializationError
from glasspoint.model import traceparent
from glasspoint.telemetry.conversation import _TurnContext
from recorder import Recorder, attributes
from states import config_of, counts, exact, numbered_id, open_saver, open_upstream
from steps import Thread, drain, settled, until

TIERS = ("cached", "redis", "memory")
AGENT = "invoke_agent concierge"


class State(TypedDict):
    said: Annotated[list[str], add]


class Remembered(TypedDict):
    remembered: Annotated[list[str], add]


class Inner(Remembered):
    said: list[str]


def build(saver: BaseCheckpointSaver[str]) -> Any:
    """A graph with a subgraph that has a memory, and so a namespace, of its own."""
    inner = StateGraph(Inner, output_schema=Remembered)
    inner.add_node("note", lambda state: {"remembered": [f"{len(state['said'])} said"]})
    inner.add_edge(START, "note")
    inner.add_edge("note", END)
    outer = StateGraph(State)
    outer.add_node("recall", inner.compile(checkpointer=True))
    outer.add_node("answer", lambda state: {"said": ["answer"]})
    outer.add_edge(START, "recall")
    outer.add_edge("recall", "answer")
    outer.add_edge("answer", END)
    return outer.compile(checkpointer=saver)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(params=TIERS)
async def tier(
    request: pytest.FixtureRequest, database: str, redis_url: str, recorder: Recorder
) -> AsyncIterator[Any]:
    async with opened(request.param, database, redis_url, recorder) as saver:
        yield saver


@asynccontextmanager
async def opened(tier: str, database: str, redis_url: str, recorder: Recorder) -> AsyncIterator[Any]:
    saver: Any
    if tier == "cached":
        async with open_saver(database, redis_url, telemetry=recorder.telemetry) as saver:
            yield saver
        return
    if tier == "redis":
        saver = await create_redis_checkpointer(redis_url, telemetry=recorder.telemetry)
    else:
        saver = MemorySaver(telemetry=recorder.telemetry)
    async with saver:
        yield saver


async def talk(
    saver: Any, recorder: Recorder, thread_id: str = "42", config: Any = None, **options: Any
) -> ReadableSpan:
    """Have one turn; return its span."""
    before = len(recorder.named(AGENT))
    with conversation_turn(thread_id, agent_name="concierge", telemetry=recorder.telemetry, **options):
        await build(saver).ainvoke({"said": ["hello"]}, config or {"configurable": {"thread_id": thread_id}})
    return recorder.named(AGENT)[before]


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


async def stored_metadata(database: str, thread_id: str = "42") -> list[dict[str, Any]]:
    async with await psycopg.AsyncConnection.connect(database) as conn:
        rows = await conn.execute(
            "SELECT metadata FROM checkpoints WHERE thread_id = %s ORDER BY checkpoint_ns, checkpoint_id",
            (thread_id,),
        )
        return [metadata for (metadata,) in await rows.fetchall()]


async def overwrite(database: str, value: object) -> None:
    """Put something else where the traceparent stands, as nobody should."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        await conn.execute(
            "UPDATE checkpoints SET metadata = jsonb_set(metadata, %s, %s)", ([traceparent.KEY], Jsonb(value))
        )


# ------------------------------------------------------------------ the span of a turn


async def test_a_turn_is_a_span_by_the_conventions_for_agents(recorder: Recorder) -> None:
    options: dict[str, Any] = {"telemetry": recorder.telemetry}
    with conversation_turn("42", agent_name="concierge", turn_number=3, **options) as span:
        assert trace.get_current_span() is span
    async with conversation_turn("42", **options) as span:
        assert trace.get_current_span() is span
    named, nameless = recorder.spans
    assert (named.name, nameless.name) == (AGENT, "invoke_agent")
    assert named.kind is SpanKind.INTERNAL
    known = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "langgraph",
        "gen_ai.conversation.id": "42",
        "session.id": "42",
    }
    assert attributes(named) == known | {"gen_ai.agent.name": "concierge", "glasspoint.turn": 3}
    assert attributes(nameless) == known
    assert not trace.get_current_span().get_span_context().is_valid


async def test_all_of_a_turn_stands_under_its_span(database: str, redis_url: str, recorder: Recorder) -> None:
    async with opened("cached", database, redis_url, recorder) as saver:
        await talk(saver, recorder)
    [(name, children)] = recorder.forest()
    assert name == AGENT
    assert {name for name, _ in children} == {
        "checkpoint.get_tuple",
        "checkpoint.put",
        "checkpoint.put_writes",
    }


@pytest.mark.parametrize("error", [ValueError("canary"), asyncio.CancelledError("canary")])
def test_a_turn_that_fails_says_so_but_not_what_was_said(error: BaseException, recorder: Recorder) -> None:
    with (
        pytest.raises(type(error)),
        conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry),
    ):
        raise error
    [span] = recorder.spans
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"].endswith(type(error).__name__)
    assert "canary" not in span.to_json()
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_turn_is_entered_once(recorder: Recorder) -> None:
    turn = conversation_turn("42", telemetry=recorder.telemetry)
    with turn:
        pass
    with pytest.raises(RuntimeError, match="call conversation_turn again"), turn:
        pass


async def test_a_stream_that_is_not_read_to_its_end_ends_its_turn(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """A server may close it in another task, and so in another context."""

    async def stream() -> AsyncIterator[str]:
        async with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
            yield "one"
            yield "two"

    pieces: Any = stream()
    assert await asyncio.create_task(anext(pieces)) == "one"
    await asyncio.create_task(pieces.aclose())
    assert [span.name for span in recorder.spans] == [AGENT]
    assert not caplog.records


# ------------------------------------------------------------------ links


async def test_each_turn_is_linked_to_the_one_before_and_to_no_other(tier: Any, recorder: Recorder) -> None:
    """The graph has a subgraph with a namespace of its own, too: no turn is linked to itself."""
    turns = [await talk(tier, recorder) for _ in range(3)]
    assert len({ids(turn)[0] for turn in turns}) == 3
    assert [linked(turn) for turn in turns] == [[], [ids(turns[0])], [ids(turns[1])]]
    [link] = turns[1].links
    assert link.context.is_remote
    assert dict(link.attributes or {})["glasspoint.link"] == "previous_turn"
    assert not [span for span in recorder.spans if span.links and span.name != AGENT]


async def test_the_link_is_found_in_postgresql_as_in_redis_and_by_another_saver(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    async with (
        opened("cached", database, redis_url, recorder) as saver,
        opened("cached", database, redis_url, recorder) as another,
        Redis.from_url(redis_url) as redis,
    ):
        first = await talk(saver, recorder)
        await settled(saver)
        second = await talk(another, recorder)
        await settled(another)
        await redis.flushall()
        third = await talk(saver, recorder)
    assert (linked(second), linked(third)) == ([ids(first)], [ids(second)])
    reads = [attributes(span)["glasspoint.served_by"] for span in recorder.named("checkpoint.get_tuple")]
    assert {"l1", "l2"} <= set(reads)


async def test_the_link_goes_along_from_tier_to_tier(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    """What was written in memory is drained into Redis, and from there into PostgreSQL."""
    async with (
        opened("memory", database, redis_url, recorder) as memory,
        opened("redis", database, redis_url, recorder) as redis,
        opened("cached", database, redis_url, recorder) as cached,
    ):
        first = await talk(memory, recorder)
        await drain(memory, redis)
        second = await talk(redis, recorder)
        await drain(redis, cached)
        third = await talk(cached, recorder)
    assert (linked(second), linked(third)) == ([ids(first)], [ids(second)])


async def test_time_travel_links_to_the_turn_that_is_forked(tier: Any, recorder: Recorder) -> None:
    first = await talk(tier, recorder)
    state = await build(tier).aget_state({"configurable": {"thread_id": "42"}})
    await talk(tier, recorder)
    forked = await talk(tier, recorder, config=state.config)
    assert linked(forked) == [ids(first)]
    assert linked(await talk(tier, recorder)) == [ids(forked)]


async def test_a_fork_of_a_turn_that_was_not_sampled_is_not_linked_to_the_newest_instead(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    config, unsampled = {"configurable": {"thread_id": "42"}}, Recorder(ALWAYS_OFF)
    async with opened("cached", database, redis_url, unsampled) as saver:
        await build(saver).ainvoke({"said": ["hello"]}, config)
        state = await build(saver).aget_state(config)
    async with opened("cached", database, redis_url, recorder) as saver:
        assert linked(await talk(saver, recorder)) == []
        assert linked(await talk(saver, recorder, config=state.config)) == []


async def test_a_copied_thread_links_to_the_turn_it_was_copied_from(tier: Any, recorder: Recorder) -> None:
    first = await talk(tier, recorder)
    await tier.acopy_thread("42", "copy")
    assert linked(await talk(tier, recorder, "copy")) == [ids(first)]


async def test_a_turn_in_a_turn_is_not_linked_to_what_it_stands_in(tier: Any, recorder: Recorder) -> None:
    first = await talk(tier, recorder)
    with conversation_turn("42", agent_name="outer", telemetry=recorder.telemetry):
        await build(tier).ainvoke({"said": ["hello"]}, {"configurable": {"thread_id": "42"}})
        inner = await talk(tier, recorder)
    [outer] = recorder.named("invoke_agent outer")
    assert linked(outer) == [ids(first)]
    assert linked(inner) == []


async def test_another_conversation_is_not_this_turns(tier: Any, recorder: Recorder) -> None:
    """A turn that looks into another thread is not linked to it; the look itself is."""
    other = await talk(tier, recorder, "other")
    with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
        await tier.aget_tuple(config_of("other"))
        await Thread("other").put(tier)
    assert linked(recorder.named(AGENT)[-1]) == []
    [read] = [span for span in recorder.named("checkpoint.get_tuple") if span.links]
    assert linked(read) == [ids(other)]
    await tier.aget_tuple(config_of("other", "", numbered_id(1)))
    assert linked(recorder.named("checkpoint.get_tuple")[-1]) == [ids(recorder.named("checkpoint.put")[-1])]


async def test_without_a_turn_the_spans_of_the_saver_are_linked(tier: Any, recorder: Recorder) -> None:
    thread, tracer = Thread("42"), recorder.provider.get_tracer("an application")
    with tracer.start_as_current_span("first"):
        await thread.put(tier)
        await tier.aget_tuple(thread.config)
    with tracer.start_as_current_span("second"):
        await tier.aget_tuple(thread.config)
    [put], reads = recorder.named("checkpoint.put"), recorder.named("checkpoint.get_tuple")
    assert [linked(read) for read in reads] == [[], [ids(put)]], "not to the trace that it stands in"


async def test_what_goes_on_after_a_turn_belongs_to_none(tier: Any, recorder: Recorder) -> None:
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await Thread("42").put(tier)

    with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
        task = asyncio.create_task(later())
    over.set()
    await task
    await tier.aget_tuple(config_of("42"))
    assert linked(recorder.named("checkpoint.get_tuple")[0]) == [ids(recorder.named("checkpoint.put")[0])]


async def test_a_synchronous_turn_is_linked_too(database: str, redis_url: str, recorder: Recorder) -> None:
    def turn() -> None:
        with (
            CachedPostgresSaver.from_conn_string(
                database, redis_url=redis_url, telemetry=recorder.telemetry
            ) as saver,
            conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry),
        ):
            saver.setup()
            build(saver).invoke({"said": ["hello"]}, {"configurable": {"thread_id": "42"}})

    await asyncio.to_thread(turn)
    await asyncio.to_thread(turn)
    first, second = recorder.named(AGENT)
    assert linked(second) == [ids(first)]
    assert not [span for span in recorder.spans if span.links and span.name != AGENT]


# ------------------------------------------------------------------ nobody sees it


async def test_no_caller_sees_it(tier: Any, recorder: Recorder) -> None:
    await talk(tier, recorder)
    thread, old = Thread("42"), Thread("old")
    with conversation_turn("old", telemetry=recorder.telemetry):
        for _ in range(2):
            config, checkpoint, metadata, versions = old.next_put(tier)
            old.newest = await tier.aput(config, {**checkpoint, "v": 3}, metadata, versions)  # has a parent
    newest = await tier.aget_tuple(thread.config)
    found = [newest, await tier.aget_tuple(newest.parent_config), await tier.aget_tuple(old.config)]
    found += [each async for each in tier.alist(None)]
    found += [each async for each in tier.alist(thread.config, filter={"source": "loop"})]
    found += [(await build(tier).aget_state(thread.config))]
    found += [each async for each in build(tier).aget_state_history({"configurable": {"thread_id": "42"}})]
    assert len(found) > 10
    for each in found:
        assert traceparent.KEY not in each.metadata


async def test_no_filter_finds_it(database: str, tier: Any, recorder: Recorder) -> None:
    turn = await talk(tier, recorder)
    trace_id, span_id = ids(turn)
    text = f"00-{trace_id:032x}-{span_id:016x}-01"
    assert [each async for each in tier.alist(config_of("42"), filter={})]
    for wanted in ({traceparent.KEY: text}, {traceparent.KEY: text, "source": "loop"}):
        assert not [each async for each in tier.alist(config_of("42"), filter=wanted)]


async def test_in_the_database_it_is_one_key_more_and_upstream_reads_all_else_alike(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    async with (
        opened("cached", database, redis_url, recorder) as saver,
        open_upstream(database) as upstream,
        Redis.from_url(redis_url) as redis,
    ):
        turn = await talk(saver, recorder)
        stored = await stored_metadata(database)
        trace_id, span_id = ids(turn)
        assert {each.pop(traceparent.KEY) for each in stored} == {f"00-{trace_id:032x}-{span_id:016x}-01"}
        ours = [each async for each in saver.alist(None)]
        theirs = [each async for each in upstream.alist(None)]
        hit = await saver.aget_tuple(config_of("42"))
        await redis.flushall()
        miss = await saver.aget_tuple(config_of("42"))
        theirs += [await upstream.aget_tuple(config_of("42"))] * 2  # type: ignore[list-item]
        for mine, other in zip([*ours, hit, miss], theirs, strict=True):
            assert mine is not None
            metadata = {k: v for k, v in other.metadata.items() if k != traceparent.KEY}
            assert exact(mine) == exact(other._replace(metadata=metadata))  # type: ignore[arg-type]
        # A conversation goes on with upstream's saver, and with ours again.
        await build(upstream).ainvoke({"said": ["hello"]}, {"configurable": {"thread_id": "42"}})
        await redis.flushall()  # which upstream's saver does not know of
        answer = await build(saver).ainvoke({"said": ["hello"]}, {"configurable": {"thread_id": "42"}})
        assert len(answer["said"]) == 6


@pytest.mark.parametrize("tier_name", TIERS)
async def test_what_a_caller_stores_under_the_reserved_key_is_left_out(
    tier_name: str, database: str, redis_url: str
) -> None:
    forged = f"00-{'a' * 32}-{'b' * 16}-01"
    async with opened(tier_name, database, redis_url, Recorder(ALWAYS_OFF)) as tier:
        config, checkpoint, metadata, versions = Thread("42").next_put(tier)
        forging: Any = {**config, "metadata": {traceparent.KEY: forged, "kept": 1}}
        await tier.aput(forging, checkpoint, {**metadata, traceparent.KEY: forged}, versions)
        if tier_name == "cached":
            stored = await stored_metadata(database)
        else:
            stored = [each.metadata async for each in tier.export_thread("42")]
    assert [each.pop("kept") for each in stored] == [1]
    assert stored == [metadata]


async def test_a_checkpoint_of_an_old_format_is_linked_to_its_writer_too(
    tier: Any, recorder: Recorder
) -> None:
    """Upstream's own code reads it, because it is completed from its parent."""
    old = Thread("42")
    with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
        for _ in range(2):
            config, checkpoint, metadata, versions = old.next_put(tier)
            old.newest = await tier.aput(config, {**checkpoint, "v": 3}, metadata, versions)
    with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
        assert (await tier.aget_tuple(old.config)).metadata["step"] == 2
    first, second = recorder.named(AGENT)
    assert linked(second) == [ids(first)]


async def test_an_audit_finds_the_cache_consistent(database: str, redis_url: str, recorder: Recorder) -> None:
    thread = Thread("42")
    async with open_saver(database, redis_url, telemetry=recorder.telemetry, audit_ratio=1.0) as saver:
        for _ in range(3):
            with conversation_turn("42", telemetry=recorder.telemetry):
                await thread.put(saver)
                await saver.aget_tuple(thread.config)
            await until(lambda: not saver._parts.auditor._running)
    assert counts(recorder.registry, "glasspoint_l1_audits_total", "verdict") == {"consistent": 3}


# ------------------------------------------------------------------ sampling, and without an SDK


def test_metadata_without_it_are_handed_on_as_they_are() -> None:
    """A read costs one look for the key, when nobody traces."""
    metadata = {"source": "loop"}
    assert traceparent.without(metadata) is metadata


@pytest.mark.parametrize(
    "recorder",
    [Recorder(ALWAYS_OFF), Recorder(StaticSampler(Decision.RECORD_ONLY))],
    ids=["off", "recorded only"],
)
async def test_a_turn_that_nobody_can_look_at_leaves_nothing(
    recorder: Recorder, database: str, redis_url: str
) -> None:
    async with opened("cached", database, redis_url, recorder) as saver:
        with conversation_turn("42", telemetry=recorder.telemetry):
            await Thread("42").put(saver)
    assert all(traceparent.KEY not in each for each in await stored_metadata(database))


async def test_a_writer_that_was_not_sampled_is_no_link_and_no_fault(
    database: str, redis_url: str, recorder: Recorder
) -> None:
    async with opened("cached", database, redis_url, recorder) as saver:
        await talk(saver, recorder)
        await overwrite(database, f"00-{'a' * 32}-{'b' * 16}-00")
        async with Redis.from_url(redis_url) as redis:
            await redis.flushall()
        assert linked(await talk(saver, recorder)) == []
    assert not counts(recorder.registry, "glasspoint_traceparents_ignored_total", "reason")


async def test_without_an_sdk_the_database_holds_what_upstreams_would(database: str, redis_url: str) -> None:
    from prometheus_client import CollectorRegistry

    thread, telemetry = Thread("42"), create_telemetry(registry=CollectorRegistry())
    async with (
        open_saver(database, redis_url, telemetry=telemetry) as saver,
        open_upstream(database) as upstream,
    ):
        with conversation_turn("42", agent_name="concierge", telemetry=telemetry):
            await thread.put(saver)
        await Thread("theirs").put(upstream)
    assert await stored_metadata(database) == await stored_metadata(database, "theirs")


# ------------------------------------------------------------------ garbage


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "malformed"),
        ("canary", "malformed"),
        (f"00-{'0' * 32}-{'b' * 16}-01", "malformed"),
        (f"00-{'a' * 32}-{'0' * 16}-01", "malformed"),
        (f"00-{'A' * 32}-{'b' * 16}-01", "malformed"),
        (f"01-{'a' * 32}-{'b' * 16}-01", "malformed"),
        (f"00-{'a' * 32}-{'b' * 16}-0１", "malformed"),
        (17, "malformed"),
        ({"a": ["b"]}, "malformed"),
        (f"00-{'a' * 32}-{'b' * 16}-01-", "too_long"),
        (f"00-{'a' * 32}-{'b' * 16}-01" * 10_000, "too_long"),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_a_traceparent_that_cannot_be_used_is_ignored_and_counted(
    value: object, reason: str, database: str, redis_url: str, recorder: Recorder
) -> None:
    async with opened("cached", database, redis_url, recorder) as saver:
        await Thread("42").put(saver)
        await settled(saver)
        await overwrite(database, value)
        async with Redis.from_url(redis_url) as redis:
            await redis.flushall()
        for served_by in ("l2", "l1"):
            with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
                found = await saver.aget_tuple(config_of("42"))
            assert found is not None
            assert traceparent.KEY not in found.metadata
            assert attributes(recorder.named("checkpoint.get_tuple")[-1])["glasspoint.served_by"] == served_by
    assert not [span for span in recorder.spans if span.links]
    assert counts(recorder.registry, "glasspoint_traceparents_ignored_total", "reason") == {reason: 2}
    assert not [span for span in recorder.spans if "canary" in span.to_json()]


async def test_nothing_that_was_said_is_told_in_any_tier(
    tier: Any, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    canary, graph = "canary-Gefluester-0451", build(tier)
    config = {"configurable": {"thread_id": "42"}}
    for _ in range(2):
        with conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry):
            await graph.ainvoke({"said": [canary]}, config)
            await graph.aupdate_state(config, {"said": [canary]}, as_node="answer")
    with (
        pytest.raises(SerializationError) as caught,
        conversation_turn("42", agent_name="concierge", telemetry=recorder.telemetry),
    ):
        await Thread("42").put(tier, canary=[canary, object()])
    said = [str(caught.value), *(span.to_json() for span in recorder.spans)]
    said += [generate_latest(recorder.registry).decode(), *(record.getMessage() for record in caplog.records)]
    assert len(said) > 20
    assert not [text for text in said if canary in text]


# ------------------------------------------------------------------ a turn that nobody ends


async def stream(recorder: Recorder, thread_id: str = "42") -> AsyncIterator[int]:
    """What a web handler hands to its client, piece by piece, inside a turn."""
    with conversation_turn(thread_id, telemetry=recorder.telemetry):
        for number in range(3):
            yield number


@pytest.mark.parametrize("closed_by", ["the event loop", "another task", "a copy of the context"])
async def test_a_stream_that_nobody_reads_to_its_end_ends_its_turn(
    closed_by: str, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = recorder.provider.get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        abandoned = stream(recorder)
        assert await anext(abandoned) == 0
        with tracer.start_as_current_span("in the turn"):
            pass
        if closed_by == "the event loop":
            del abandoned
            gc.collect()
        elif closed_by == "another task":
            await asyncio.create_task(abandoned.aclose())  # type: ignore[attr-defined]
        else:
            await asyncio.get_running_loop().create_task(
                abandoned.aclose(),  # type: ignore[attr-defined]
                context=copy_context(),
            )
        await until(lambda: recorder.named("invoke_agent"))
        assert trace.get_current_span() is request, "the turn is over here, too"
        with tracer.start_as_current_span("after it"):
            pass
        with conversation_turn("43", telemetry=recorder.telemetry):
            pass
        assert trace.get_current_span() is request
    turn, after = recorder.named("invoke_agent")
    [inside], [behind] = recorder.named("in the turn"), recorder.named("after it")
    assert inside.parent == turn.context
    assert behind.parent == after.parent == turn.parent == request.get_span_context()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_streams_that_nobody_reads_to_their_end_leave_nothing(recorder: Recorder) -> None:
    """A worker that lives for long begins many, each inside of what the one before has left."""
    for number in range(1, 31):
        abandoned = stream(recorder)
        await anext(abandoned)
        del abandoned
        await until(lambda number=number: len(recorder.named("invoke_agent")) == number)  # type: ignore[misc]
    assert all(span.parent is None for span in recorder.named("invoke_agent"))
    gc.collect()
    assert sum(isinstance(each, _TurnContext) for each in gc.get_objects()) < 10


async def test_a_turn_inside_a_stream_that_is_closed_late_stays_current(recorder: Recorder) -> None:
    """Two streams in one task, of which the first is closed while the second is read."""
    first, second = stream(recorder, "1"), stream(recorder, "2")
    await anext(first)
    await anext(second)
    await first.aclose()  # type: ignore[attr-defined]
    assert attributes_of_current()["gen_ai.conversation.id"] == "2"
    await second.aclose()  # type: ignore[attr-defined]
    assert not trace.get_current_span().get_span_context().is_valid


def attributes_of_current() -> Any:
    current = trace.get_current_span()
    assert isinstance(current, ReadableSpan)
    return current.attributes


# ------------------------------------------------------------------ thread ids


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize(
    ("way", "shown"),
    [("plain", "a person"), ("hashed", hashlib.sha256(b"a person").hexdigest()[:16]), ("none", None)],
)
async def test_thread_ids_can_be_hashed_or_left_out(
    way: Any, shown: str | None, by: str, database: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "environment":
        monkeypatch.setenv("CHECKPOINT_TELEMETRY_THREAD_IDS", way)
    recorder = Recorder()
    recorder.telemetry = create_telemetry(
        registry=recorder.registry,
        saver_name="another",
        tracer_provider=recorder.provider,
        thread_ids=way if by == "argument" else None,
    )
    for tier in TIERS:
        async with opened(tier, database, redis_url, recorder) as saver:
            first = await talk(saver, recorder, "a person")
            assert linked(await talk(saver, recorder, "a person")) == [ids(first)]
            await saver.adelete_thread("a person")
    for span in recorder.spans:
        assert attributes(span).get("gen_ai.conversation.id") == shown, span.name
        if way != "plain":
            assert "a person" not in span.to_json()
    assert attributes(first).get("session.id") == shown


def test_a_way_that_does_not_exist_is_an_error_but_not_in_a_conversation(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match="thread_ids is none of plain, hashed, none"):
        create_telemetry(thread_ids="some")  # type: ignore[arg-type]
    monkeypatch.setenv("CHECKPOINT_TELEMETRY_THREAD_IDS", "some")
    with pytest.raises(ConfigurationError, match="CHECKPOINT_TELEMETRY_THREAD_IDS is none of"):
        create_telemetry()
    monkeypatch.setattr(trace, "get_tracer", lambda *args: recorder.provider.get_tracer("test"))
    with conversation_turn("a person"):
        pass
    [span] = recorder.spans
    assert "a person" not in span.to_json()
