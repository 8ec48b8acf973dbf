"""`glasspoint trace`: what it makes of recorded spans, in the terminal and as JSON."""

from __future__ import annotations

import hashlib
import json
import re
import tracemalloc
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver
from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from prometheus_client import CollectorRegistry
from rich.console import Console
from typer.testing import CliRunner

import agent_turn
import dice
from command_line import assert_fits, glasspoint
from glasspoint import CachedPostgresSaver, configure_telemetry, conversation_turn
from glasspoint.cli.commands import app
from glasspoint.cli.trace import from_files, show
from glasspoint.demo.telemetry import observe
from glasspoint.errors import ConfigurationError, TraceNotFoundError
from glasspoint.telemetry import create_telemetry
from glasspoint.telemetry.redacting import RedactingExporter
from glasspoint.telemetry.thread_ids import ThreadIds
from glasspoint.trace import files
from glasspoint.trace.conversation import Conversation, conversation_from, walk
from glasspoint.trace.facts import moment
from glasspoint.trace.otlp import parse_json, spans_of
from glasspoint.trace.page import page_of
from recorded import START, THREAD, line, read, request, span, turn

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\x1b]0;owned\x07[bold]\u202etxt"


def shown(conversation: Conversation, *, columns: int = 80, last: int | None = None, **more: Any) -> str:
    """A conversation as it is printed into a pipe."""
    out = StringIO()
    told = {"all_spans": False, "as_json": False, "page": None} | more
    show(conversation, Console(file=out, width=columns, highlight=False), last=last, **told)
    return out.getvalue()


def conversation(*spans: dict[str, Any], thread_id: str = THREAD) -> Conversation:
    """What is made of spans that were recorded."""
    hashed = hashlib.sha256(thread_id.encode()).hexdigest()[:16]
    return conversation_from(spans_of(request(*spans)), [thread_id, hashed], thread_id=thread_id)


def trees(made: Conversation) -> list[tuple[int | None, list[tuple[str, int]]]]:
    return [
        (each.number, [(node.span.name, depth) for node, depth in walk(each.roots)]) for each in made.turns
    ]


# ---- a real conversation -------------------------------------------------------------------------------


async def converse(
    database: str, redis_url: str, path: Path, *, thread_id: str, thread_ids: ThreadIds = "plain"
) -> None:
    """Three turns, the last one a fork of the first; in each a subgraph, a tool and a model."""
    written = RedactingExporter(FileSpanExporter(path), thread_ids=thread_ids, capture_content=False)
    configured = configure_telemetry(
        service_name="concierge",
        thread_ids=thread_ids,
        set_global=False,
        span_processors=[SimpleSpanProcessor(written)],
    )
    telemetry = create_telemetry(
        registry=CollectorRegistry(), tracer_provider=configured.tracer_provider, thread_ids=thread_ids
    )
    async with (
        configured,
        # A machine that is busy elsewhere is not to look like a Redis that does not answer.
        CachedPostgresSaver.from_conn_string(
            database, redis_url=redis_url, l1_timeout_seconds=2.5, telemetry=telemetry
        ) as saver,
    ):
        await saver.setup()
        graph = agent_turn.build(saver)
        config: dict[str, Any] = {"configurable": {"thread_id": thread_id}}
        said = {"messages": [("user", "hello")]}
        async with conversation_turn(thread_id, agent_name="concierge", telemetry=telemetry):
            await graph.ainvoke(said, config)
        forked = await newest(saver, thread_id)
        async with conversation_turn(thread_id, agent_name="concierge", telemetry=telemetry):
            await graph.ainvoke(said, config)
        config["configurable"]["checkpoint_id"] = forked
        async with conversation_turn(thread_id, agent_name="concierge", telemetry=telemetry):
            await graph.ainvoke(said, config)


async def newest(saver: BaseCheckpointSaver[Any], thread_id: str) -> str:
    found = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
    assert found is not None
    return str(found.checkpoint["id"])


async def test_a_conversation_is_shown_with_its_fork_its_nodes_and_where_reads_came_from(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "spans.jsonl"
    await converse(database, redis_url, path, thread_id="for trace")
    made = from_files("for trace", [path])
    first, second, third = made.numbered
    assert [each.number for each in (first, second, third)] == [1, 2, 3]
    assert [each.is_fork for each in made.numbered] == [False, False, True]
    assert [[origin.turn for origin in each.origins] for each in made.numbered] == [[], [first], [first]]
    assert first.reads.by_server == {"l2": 2}
    assert first.reads.by_result == {"absent": 2}
    assert second.reads.by_server == {"l1": 2}
    # The read between the turns is no turn, but was made, and is shown.
    assert [each.number for each in made.turns] == [1, None, 2, 3]
    printed = shown(made)
    assert_fits(printed, columns=80)
    for each in ("agent", "remember", "notes", "note", "look_up", "Model"):
        assert re.search(rf"[├└]─ {each} +\+[\d.]+ ms +[\d.]+ ms$", printed, re.MULTILINE), each
    assert re.search(r"^── turn 3 .* concierge\n   a fork: goes on from turn 1, ", printed, re.MULTILINE)
    # How much later is not said if the end of turn 1's burst is later than the beginning of turn 2.
    assert re.search(r"^── turn 2 .* concierge\n   goes on from turn 1\b", printed, re.MULTILINE)
    assert re.search(r"[├└]─ get_tuple  hit  from L1 ", printed)
    assert re.search(r"[├└]─ put  announced  (wait [\d.]+ · )?L1 [\d.]+ · L2 [\d.]+ ms +\+", printed)
    assert re.search(r"^turns +3, 1 trace outside of them; ", printed, re.MULTILINE)
    assert "checkpoint.l1.read" not in printed
    assert "checkpoint.l1.read" in shown(made, all_spans=True)


async def test_a_conversation_whose_id_is_hashed_is_found_by_its_id(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "spans.jsonl"
    await converse(database, redis_url, path, thread_id="alice@example.org", thread_ids="hashed")
    assert "alice" not in path.read_text("utf-8")
    made = from_files("alice@example.org", [path])
    assert len(made.numbered) == 3
    hashed = hashlib.sha256(b"alice@example.org").hexdigest()[:16]
    assert f"conversation alice@example.org  (on its spans: {hashed})" in shown(made)
    assert len(from_files(hashed, [path]).numbered) == 3


async def test_a_conversation_whose_id_is_left_out_is_not_found_and_it_is_said_why(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "spans.jsonl"
    await converse(database, redis_url, path, thread_id="alice", thread_ids="none")
    with pytest.raises(TraceNotFoundError, match=r"\d+ calls .* CHECKPOINT_TELEMETRY_THREAD_IDS=none"):
        from_files("alice", [path])


# ---- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], Path]:
    """The demo, run with `--spans`."""
    path = tmp_path_factory.mktemp("demo") / "spans of mine.jsonl"
    return glasspoint("demo", "--once", "--spans", str(path)), path


@pytest.mark.slow
def test_the_demo_says_how_to_look_at_its_conversation_and_that_works(
    played: tuple[CompletedProcess[str], Path], tmp_path: Path
) -> None:
    demo, path = played
    assert demo.returncode == 0, demo.stderr
    told = re.search(r"^  glasspoint trace (demo-\S+) --file '(.*)'$", demo.stdout, re.MULTILINE)
    assert told is not None, demo.stdout
    assert told[2] == str(path)
    page = tmp_path / "page.html"
    traced = glasspoint("trace", told[1], "--file", told[2])
    assert (traced.returncode, traced.stderr) == (0, "")
    assert_fits(traced.stdout, columns=80)
    assert re.findall(r"^── turn (\d)", traced.stdout, re.MULTILINE) == list("1234567")
    assert re.findall(r"^   goes on from turn (\d), ", traced.stdout, re.MULTILINE) == list("123456")
    first_reads = [
        re.search(r"get_tuple  (\S+)  from (\w+)", each) for each in traced.stdout.split("\n── turn ")[1:]
    ]
    assert [each and each.groups() for each in first_reads] == [
        ("absent", "L2"),
        ("hit", "L1"),
        ("miss", "L2"),
        ("unavailable", "L2"),
        ("miss", "L2"),
        ("?", "REDIS"),
        ("miss", "L2"),
    ]
    assert re.search(
        r"^reads +\d+ from L1 Redis, \d+ from L2 PostgreSQL, \d+ from Redis alone \(\d+%\s+hits\); not hits",
        traced.stdout,
        re.MULTILINE,
    )
    as_json = glasspoint("trace", told[1], "--file", told[2], "--json", "--last", "2", "--html", str(page))
    report = json.loads(as_json.stdout)
    turns = [each for each in report["turns"] if each["number"] is not None]  # the others drain
    assert [each["number"] for each in turns] == [6, 7]
    assert turns[1]["goes_on_from"][0]["turn"] == 6
    assert sum(report["reads"]["served_by"].values()) == 14
    assert "glasspoint trace" in page.read_text("utf-8")


def test_the_demo_adds_to_a_file_and_writes_only_its_story(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(line(turn(1, trace=1)), "utf-8")
    with observe(lost=pytest.fail, spans_file=path) as observed:
        with observed.turn("told"):
            pass
        assert observed.spans_file is not None
        observed.spans_file.shutdown()
        with observed.turn("untold"):
            pass
    assert "untold" not in path.read_text("utf-8")
    assert [len(from_files(each, [path]).turns) for each in (THREAD, "told")] == [1, 1]


def test_a_file_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"spans\.jsonl cannot be written: No such file or directory"),
        observe(lost=pytest.fail, spans_file=tmp_path / "nowhere" / "spans.jsonl"),
    ):
        pass


def test_a_missing_exporter_is_an_error_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.json.file", None)
    with (
        pytest.raises(ConfigurationError, match=r"pip install 'glasspoint\[otlp-file\]'"),
        observe(lost=pytest.fail, spans_file=tmp_path / "spans.jsonl"),
    ):
        pass


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        ((THREAD,), 2, "say where to look"),
        ((THREAD, "--file", "FILE", "--since", "soon"), 2, "'soon' is no age"),
        ((THREAD, "--file", "nowhere.jsonl"), 1, "error: nowhere.jsonl cannot be read: No such file"),
        (("somebody else", "--file", "FILE"), 1, "error: No span of the conversation somebody else in"),
        (("", "--file", "FILE"), 1, "error: The thread id is empty"),
    ],
    ids=["nowhere to look", "no age", "no file", "no such conversation", "empty"],
)
def test_wrong_usage_is_told_from_failure(
    args: tuple[str, ...], status: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(line(turn(1, trace=1)), "utf-8")
    told = [str(path) if each == "FILE" else each for each in args]
    ended = CliRunner().invoke(app, ["trace", *told], env={"COLUMNS": "200", "TEMPO_URL": ""})
    assert ended.exit_code == status
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


# ---- files ---------------------------------------------------------------------------------------------


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "spans.jsonl"
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))
    return path


def test_a_file_is_read_whatever_else_stands_in_it(tmp_path: Path) -> None:
    whole = line(turn(1, trace=1), read(2, trace=1, parent=1))
    path = write(
        tmp_path,
        "\n",
        "not JSON\n",
        '{"resourceMetrics": []}\n',
        "[1, 2]\n",
        "\udcff\udcfe\n",
        "[" * 100_000 + "\n",
        line(turn(9, trace=9, thread="other")),
        line(span("GET /", 3, trace=2)),
        whole,
        whole,  # sent again
        line(turn(5, trace=5))[:-40],  # its writer was killed
    )
    made = from_files(THREAD, [path])
    assert trees(made) == [(1, [("invoke_agent concierge", 0), ("checkpoint.get_tuple", 1)])]
    assert made.remarks == [
        "spans.jsonl: the last line is cut off; its writer was stopped, or is still writing.",
        "spans.jsonl: 4 lines are no OTLP JSON, and left out.",
    ]
    assert "note  spans.jsonl: 4 lines" in shown(made)


def test_a_conversation_is_put_together_from_the_files_of_two_pods(tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_text(line(turn(1, trace=1), service__name="chat", k8s__pod__name="chat-a"), "utf-8")
    second = turn(2, trace=2, at=3 * 24 * 3600 * 1000, links=((1, 1),))
    paths[1].write_text(line(second, service__name="chat", k8s__pod__name="chat-b"), "utf-8")
    printed = shown(from_files(THREAD, paths), columns=100)
    assert re.search(r"^── turn 1 .*chat@chat-a\n", printed, re.MULTILINE)
    assert re.search(r"^── turn 2 .*chat@chat-b\n   goes on from turn 1, 3 days later", printed, re.MULTILINE)


@pytest.mark.parametrize("content", ["", "\n", '{"resourceLogs": []}\n', "\x1f\x8b\x08 compressed"])
def test_a_file_without_spans_is_told_from_one_without_the_conversation(content: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no spans in it.*glasspoint demo --spans"):
        from_files(THREAD, [write(tmp_path, content)])


def test_other_conversations_are_named_when_one_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, *(line(turn(n, trace=n, thread=f"thread {n}")) for n in range(1, 8)))
    with pytest.raises(TraceNotFoundError, match=r"There are others: thread 7, thread 6, .*thread 3, …"):
        from_files(THREAD, [path])
    monkeypatch.setattr(files, "_KEPT_NAMES", 2)
    with pytest.raises(TraceNotFoundError, match=r"There are others: thread 7, thread 6(?!,)"):
        from_files(THREAD, [path])


def test_a_line_that_is_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 2000)
    huge = line(turn(5, trace=5, note="x" * 10_000))
    made = from_files(THREAD, [write(tmp_path, huge, line(turn(1, trace=1)), huge)])
    assert [each.trace_id for each in made.turns] == [f"{1:032x}"]
    assert made.remarks == ["spans.jsonl: 2 lines are no OTLP JSON, and left out."]


def test_what_is_not_asked_for_is_neither_parsed_nor_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[object] = []

    def parse(text: bytes) -> object:
        parsed.append(None)
        return parse_json(text)

    monkeypatch.setattr(files, "parse_json", parse)
    monkeypatch.setattr(files, "LONGEST_LINE", 10_000)
    path = tmp_path / "spans.jsonl"
    others = line(*(turn(n, trace=n, thread=f"thread {n}") for n in range(1000, 1010)))
    with path.open("w", encoding="utf-8") as file:
        for _ in range(100):
            file.write(others)
        file.write("{" * 1_000_000 + "\n")
        file.write(line(turn(1, trace=1, thread="the-one")))
    tracemalloc.start()
    try:
        assert len(from_files("the-one", [path]).turns) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000
    assert len(parsed) == 2


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is no file"):
        from_files(THREAD, [tmp_path])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(f"{7:032x}"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "resourceSpans",
                        "batches",
                        "trace",
                        "scopeSpans",
                        "spans",
                        "resource",
                        "attributes",
                        "key",
                    ),
                    *(
                        "value",
                        "stringValue",
                        "intValue",
                        "arrayValue",
                        "kvlistValue",
                        "values",
                        "links",
                        "events",
                    ),
                    *(
                        "traceId",
                        "spanId",
                        "parentSpanId",
                        "startTimeUnixNano",
                        "endTimeUnixNano",
                        "status",
                        "code",
                    ),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@settings(max_examples=dice.rounds(60))
@given(
    found=JSON, in_span=st.dictionaries(st.sampled_from(["attributes", "links", "events", "status"]), JSON)
)
def test_nothing_that_stands_in_json_makes_reading_or_showing_fail(found: Any, in_span: Any) -> None:
    list(spans_of(found))
    odd = turn(1, trace=1) | in_span
    made = conversation(odd, turn(2, trace=2, links=((1, 1),)))
    shown(made)
    shown(made, as_json=True)
    page_of(made, made.turns)


def test_ids_are_read_as_digits_and_as_base64() -> None:
    as_tempo = {
        "traceId": "AAAAAAAAAAABI0VniavN7w==",
        "spanId": "AAAAAAAAEjQ=",
        "parentSpanId": "AAAAAAAAAAA=",
    }
    (found,) = spans_of({"batches": request(span("a", 1) | as_tempo)["resourceSpans"]})
    assert (found.trace_id, found.span_id, found.parent_id) == (
        "00000000000000000123456789abcdef",
        "0000000000001234",
        "",
    )
    (found,) = spans_of(request(span("a", 1) | {"traceId": "ABCDEF" + "0" * 26}))
    assert found.trace_id == "abcdef" + "0" * 26
    (found,) = spans_of(request(span("a", 1) | {"parentSpanId": "not base64!!"}))
    assert found.parent_id == ""


@pytest.mark.parametrize(
    "odd",
    [{"traceId": "0" * 32}, {"spanId": "no digits"}, {"spanId": None}, {"startTimeUnixNano": "soon"}],
)
def test_a_span_without_an_id_or_a_beginning_is_left_out_and_the_others_are_not(odd: dict[str, Any]) -> None:
    assert [each.name for each in spans_of(request(span("odd", 1) | odd, span("b", 2)))] == ["b"]


def test_numbers_are_read_as_text_and_as_numbers_and_what_is_no_value_is_none() -> None:
    values: dict[str, Any] = {
        "as text": {"intValue": "-7"}, "as number": {"intValue": 7}, "odd": {"intValue": {}}, "none": {},
        "bytes": {"bytesValue": "aGk="}, "nobody knows": {"newValue": []},
    }  # fmt: skip
    pairs = [{"key": key, "value": value} for key, value in values.items()]
    (found,) = spans_of(request(span("a", 1) | {"attributes": pairs, "startTimeUnixNano": 1.5e18}))
    assert found.start == 1_500_000_000_000_000_000
    assert found.attributes == {
        "as text": -7, "as number": 7, "odd": None, "none": None, "bytes": "aGk=", "nobody knows": None,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["arrayValue", "kvlistValue"])
def test_attributes_may_be_nested_as_deeply_as_somebody_likes(kind: str) -> None:
    value: dict[str, Any] = {"stringValue": "inside"}
    for _ in range(300):
        value = {kind: {"values": [value if kind == "arrayValue" else {"key": "k", "value": value}]}}
    (found,) = spans_of(request(span("a", 1) | {"attributes": [{"key": "deep", "value": value}]}))
    assert "…" in str(found.attributes["deep"])
    assert "inside" not in str(found.attributes["deep"])


# ---- turns ---------------------------------------------------------------------------------------------


def test_without_turns_spans_are_shown_trace_by_trace() -> None:
    made = conversation(
        span("POST /chat", 1, trace=1, took=30),
        read(2, trace=1, parent=1),
        span("checkpoint.put", 3, trace=1, parent=1, thread=THREAD),
        read(5, trace=2, at=100, links=((1, 3),)),
    )
    assert trees(made) == [
        (None, [("POST /chat", 0), ("checkpoint.get_tuple", 1), ("checkpoint.put", 1)]),
        (None, [("checkpoint.get_tuple", 0)]),
    ]
    printed = shown(made)
    assert "turns         none: the application does not use conversation_turn, 2 traces" in printed
    assert "reads from outside of turns, trace 00000000, 70.0 ms later" in printed


def test_of_a_trace_with_several_conversations_only_what_is_of_this_one_is_shown() -> None:
    spans = [
        span("job", 1, trace=1, took=100),
        turn(2, trace=1, parent=1, thread="other"),
        read(3, trace=1, parent=2, thread="other"),
        turn(4, trace=1, parent=1, at=10),
        read(5, trace=1, parent=4, at=11),
        span("node of nobody's", 6, trace=1, parent=2),
        span("nor this", 9, trace=1, parent=1),
        span("checkpoint.delete_thread", 7, trace=1, parent=1, thread=THREAD, at=50),
        # An agent that the other conversation's turn calls, with this one's memory.
        turn(8, trace=1, parent=2, at=70),
    ]
    assert trees(conversation(*spans)) == [
        (None, [("job", 0), ("checkpoint.delete_thread", 1)]),
        (1, [("invoke_agent concierge", 0), ("checkpoint.get_tuple", 1)]),
        (2, [("invoke_agent concierge", 0)]),
    ]


def test_spans_without_parents_and_in_circles_are_shown_once() -> None:
    made = conversation(
        turn(1, trace=1, took=50),
        read(2, trace=1, parent=99, at=1),
        read(3, trace=1, parent=4, at=2),
        read(4, trace=1, parent=3, at=3),
        read(5, trace=1, parent=5, at=4),
    )
    assert trees(made)[0] == (1, [("invoke_agent concierge", 0)])
    assert sorted(found.span_id[-1] for found in made.turns[1].spans) == ["2", "3", "4", "5"]
    shown(made)


def test_spans_may_be_nested_as_deeply_as_somebody_likes() -> None:
    spans = [turn(1, trace=1, took=5000)]
    spans += [span(f"node {n}", n, trace=1, parent=n - 1, at=n) for n in range(2, 3000)]
    made = conversation(*spans)
    printed = shown(made)
    assert_fits(printed, columns=80)
    assert "node 2999" in printed
    page_of(made, made.turns)


def test_turns_have_the_applications_numbers_if_it_has_one_for_each() -> None:
    def numbers(*told: int | None) -> list[int | None]:
        given_numbers: list[dict[str, Any]] = [
            {} if each is None else {"glasspoint__turn": each} for each in told
        ]
        spans = [turn(n, trace=n, at=n, **more) for n, more in enumerate(given_numbers, start=1)]
        return [each.number for each in conversation(*spans).turns]

    assert numbers(7, 8, 9) == [7, 8, 9]
    assert numbers(7, None, 9) == [1, 2, 3]
    assert numbers(7, 7, 9) == [1, 2, 3]


def test_a_turn_says_where_it_goes_on_from_even_if_that_is_not_here() -> None:
    made = conversation(
        turn(1, trace=1, links=((77, 77),)),
        turn(2, trace=2, at=1000, links=((1, 1),)),
        turn(3, trace=3, at=2000),
    )
    printed = shown(made)
    assert f"   goes on from trace {77:032x}, which is not here" in printed
    assert "   goes on from turn 1, 999 ms later" in printed
    assert "   not linked to any turn before it" in printed


def test_what_failed_and_what_happened_is_said() -> None:
    retried = {
        "name": "glasspoint.l2.retry",
        "timeUnixNano": str(START + 2_000_000),
        "attributes": [{"key": "reason", "value": {"stringValue": "connection_lost"}}],
    }
    made = conversation(
        turn(1, trace=1, took=20, failed=True, error__type="builtins.LookupError"),
        span("look_up", 2, trace=1, parent=1, failed=True, error__type="builtins.LookupError"),
        read(3, trace=1, parent=1, at=1, served_by="l2", glasspoint__tier="redis"),
        span("checkpoint.l1.read", 4, trace=1, parent=3, at=1, failed=True),
        span("checkpoint.l1.read", 8, trace=1, parent=3, at=1, failed=True),
        span("checkpoint.l2.select", 5, trace=1, parent=3, at=2, took=4, events=(retried,)),
        span("checkpoint.l2.acquire", 6, trace=1, parent=3, at=1, took=3),
        span("chat", 7, trace=1, parent=1, gen_ai__operation__name="chat", gen_ai__request__model="m-1"),
    )
    printed = shown(made, columns=100)
    assert re.search(r"^── turn 1 .*  failed$", printed, re.MULTILINE)
    assert re.search(r"─ look_up  failed: LookupError +\+", printed)
    assert re.search(r"─ get_tuple  miss  from L2  tier redis  l1\.read failed  ", printed)
    assert re.search(r"! l2\.retry  reason=connection_lost +\+2\.00 ms$", printed, re.MULTILINE)
    assert re.search(r"─ chat  m-1 +\+", printed)
    assert re.search(
        r"^failed +4 spans: invoke_agent concierge \(turn 1\), look_up \(turn 1\), 2 ×", printed, re.MULTILINE
    )


def test_without_turns_the_newest_traces_are_shown() -> None:
    made = conversation(*(read(n, trace=n, at=n * 1000) for n in (1, 2, 3)))
    printed = shown(made, last=2)
    assert len(re.findall(r"^── outside of turns", printed, re.MULTILINE)) == 2
    assert "the last 2 of 3" in printed


def test_a_turn_goes_on_from_another_one_once_and_never_from_itself() -> None:
    links = ((1, 1), (1, 1), (2, 2))
    _, second = conversation(turn(1, trace=1), turn(2, trace=2, at=1000, links=links)).turns
    assert [each.trace_id for each in second.origins] == [f"{1:032x}"]


def test_the_page_says_what_spans_call_the_conversation_and_cuts_off_long_values() -> None:
    hashed = hashlib.sha256(THREAD.encode()).hexdigest()[:16]
    made = conversation(turn(1, trace=1, thread=hashed, note="x" * 12_000))
    page = page_of(made, made.turns)
    assert f"On its spans, the conversation is called {hashed}." in page
    assert "… (2,000 more characters)" in page


def test_a_time_that_no_calendar_has_is_a_question_mark() -> None:
    assert moment(2**63 * 10**9) == "?"


def test_what_a_model_and_a_tool_have_done_is_said_and_how_long_what_took_minutes() -> None:
    tokens: dict[str, Any] = {"gen_ai__usage__input_tokens": 12, "gen_ai__response__model": "m-1"}
    made = conversation(
        turn(1, trace=1, took=90_000),
        span("chat", 2, trace=1, parent=1, gen_ai__operation__name="chat", took=60_000, **tokens),
        span("look_up", 3, trace=1, parent=1, gen_ai__operation__name="execute_tool"),
        read(4, trace=1, parent=1, at=1, took=3000, served_by="l2"),
        span("checkpoint.l1.read", 5, trace=1, parent=4, at=1, took=1500),
        span("checkpoint.l2.select", 6, trace=1, parent=4, at=1600, took=1200),
        read(7, trace=1, parent=1, at=5, failed=True) | {"attributes": []},
    )
    printed = shown(made, columns=140)
    assert "m-1  12 → ? tokens" in printed
    assert "1 min 30 s" in printed
    assert "L1 1.50 s · L2 1.20 s" in printed
    assert "from" not in printed.split("get_tuple")[-1].splitlines()[0], "a read that failed has no server"


def test_the_last_turns_keep_their_numbers_and_what_came_after_them() -> None:
    spans = [turn(n, trace=n, at=n * 1000, links=((n - 1, n - 1),) if n > 1 else ()) for n in range(1, 6)]
    made = conversation(*spans, read(9, trace=9, at=4500))
    printed = shown(made, last=2)
    assert re.findall(r"^── (turn \d|outside of turns)", printed, re.MULTILINE) == [
        "turn 4",
        "outside of turns",
        "turn 5",
    ]
    assert "the last 3 of 6" in printed
    assert "   goes on from turn 3, " in printed


def test_calls_at_the_same_time_are_not_counted_twice() -> None:
    made = conversation(
        turn(1, trace=1, took=100),
        read(2, trace=1, parent=1, at=10, took=20),
        span("checkpoint.put", 3, trace=1, parent=1, at=15, took=25, thread=THREAD),
        span("checkpoint.put_writes", 4, trace=1, parent=1, at=90, took=30, thread=THREAD),
    )
    assert made.turns[0].saver_duration == 40_000_000  # 10 to 40, and 90 to the turn's end
    assert "100 ms in all, 40.0 ms of it with the checkpointer at work (40%)" in shown(made)


# ---- what others wrote ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80])
def test_hostile_names_neither_reach_the_terminal_nor_break_its_lines(columns: int) -> None:
    made = conversation(
        turn(1, trace=1, thread=HOSTILE, links=((7, 7),)) | {"name": f"invoke_agent {HOSTILE}"},
        read(2, trace=1, parent=1, thread=HOSTILE, glasspoint__l1__result=HOSTILE, served_by=HOSTILE),
        span(HOSTILE, 3, trace=1, parent=1, failed=True, error__type=HOSTILE),
        span("철" * 60, 4, trace=1, parent=1),
        span("", 5, trace=1, parent=1),
        thread_id=HOSTILE,
    )
    for printed in (shown(made, columns=columns), shown(made, columns=columns, all_spans=True)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", printed)
        assert_fits(printed, columns=columns)
        assert "[bold]" in printed.replace("\n", "").replace(" ", "")
        assert "철철" in printed
        assert "(no name)" in printed


def test_parsing_refuses_what_is_nested_too_deeply() -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json("[" * 1_000_000)
