"""`glasspoint trace --tempo`, against a server that answers as Tempo's documentation says."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from glasspoint.cli.commands import app
from glasspoint.trace.tempo import header, headers_from_variable, quoted
from recorded import START, THREAD, line, read, request, span, turn
from tempo import Tempo, running_tempo

SECRET = "canary-Gefluester-0451"
AGE = "3650d"
SHIFT_MS = 0.0


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("TEMPO_URL", "TEMPO_HEADERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tempo() -> Iterator[Tempo]:
    with running_tempo() as running:
        yield running


def ago(hours: float) -> float:
    """The `at` of a span that began so long ago."""
    return (time.time_ns() - START) / 1e6 - hours * 3_600_000


def three_turns(thread: str = THREAD) -> list[dict[str, Any]]:
    return [
        request(
            turn(1, trace=1, at=ago(100), took=20, thread=thread),
            read(2, trace=1, parent=1, at=ago(100), served_by="l2", thread=thread),
            span("checkpoint.l2.select", 3, trace=1, parent=2, at=ago(100)),
            service__name="chat",
        ),
        request(
            turn(4, trace=2, at=ago(50), thread=thread, links=((1, 1),), failed=True),
            read(5, trace=2, parent=4, at=ago(50), thread=thread),
        ),
        request(turn(6, trace=3, at=ago(1), thread=thread, links=((2, 4),))),
    ]


def trace(*args: str, url: str, **variables: str) -> Result:
    environment = {"COLUMNS": "300", "TEMPO_URL": url, **variables}
    return CliRunner().invoke(app, ["trace", *args], env=environment)


@pytest.mark.parametrize("is_old", [False, True], ids=["v2", "before v2"])
def test_a_tempo_gives_what_the_file_gives(is_old: bool, tempo: Tempo, tmp_path: Path) -> None:
    requests = three_turns()
    path = tmp_path / "spans.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in requests), "utf-8")
    tempo.hold(requests)
    tempo.is_old = is_old
    found = trace(THREAD, "--json", url=tempo.url)
    assert found.exit_code == 0, found.stderr
    report = json.loads(found.stdout)
    assert report == json.loads(trace(THREAD, "--file", str(path), "--json", url="").stdout)
    assert [each["goes_on_from"] and each["goes_on_from"][0]["turn"] for each in report["turns"]] == [
        [],
        1,
        2,
    ]
    assert [each["failed"] for each in report["turns"]] == [False, True, False]


def test_a_tempo_is_asked_for_the_id_and_its_hash(tempo: Tempo) -> None:
    hashed = hashlib.sha256(THREAD.encode()).hexdigest()[:16]
    tempo.hold(three_turns(hashed))
    assert len(json.loads(trace(THREAD, "--json", url=tempo.url).stdout)["turns"]) == 3


@pytest.mark.parametrize(
    "thread",
    [
        '" } || { true } || { "',
        "back\\slash\\",
        "line\nbreak\ttab\x00",
        "이름 🙂 `raw`",
        "\\u0022",
        "\x7f\u2028",
    ],
)
def test_a_thread_id_never_ends_its_string_in_the_query(thread: str, tempo: Tempo) -> None:
    tempo.hold(three_turns(thread))
    tempo.hold([request(turn(9, trace=9, at=ago(1), thread="somebody else"))])
    found = trace(thread, "--json", url=tempo.url)
    assert found.exit_code == 0, found.stderr
    assert len(json.loads(found.stdout)["turns"]) == 3


def test_quoting_follows_the_rules_of_go() -> None:
    assert quoted('a"b\\c\n\x07é🙂') == '"a\\"b\\\\c\\n\\u0007é🙂"'


def test_a_long_time_is_searched_week_by_week(tempo: Tempo) -> None:
    tempo.hold(three_turns())
    tempo.hold([request(turn(9, trace=9, at=ago(24 * 20), thread=THREAD))])
    assert len(json.loads(trace(THREAD, "--json", url=tempo.url).stdout)["turns"]) == 3
    tempo.searches.clear()
    assert len(json.loads(trace(THREAD, "--json", "--since", "30d", url=tempo.url).stdout)["turns"]) == 4
    ranges = [(int(each["start"]), int(each["end"])) for each in tempo.searches]
    assert len(ranges) == 5
    assert [start for start, _ in ranges[:-1]] == [end for _, end in ranges[1:]]
    assert ranges[0][1] - ranges[-1][0] >= 30 * 86400


def test_headers_reach_tempo_and_nobody_else(tempo: Tempo) -> None:
    tempo.hold(three_turns())
    found = trace(
        THREAD,
        *("--header", "X-Scope-OrgID: seven"),
        url=tempo.url,
        TEMPO_HEADERS=f"authorization=Bearer%20{SECRET}",
    )
    assert found.exit_code == 0
    assert {each["x-scope-orgid"] for each in tempo.headers} == {"seven"}
    assert {each["authorization"] for each in tempo.headers} == {f"Bearer {SECRET}"}
    assert SECRET not in found.output
    assert header("X-A:b: c") == ("X-A", "b: c")
    assert list(headers_from_variable("a=b%2C, c=d,")) == [("a", "b,"), ("c", "d")]


def test_a_password_in_the_url_is_sent_and_never_shown(tempo: Tempo) -> None:
    url = tempo.url.replace("//", f"//me:{SECRET}@")
    tempo.status = 401
    refused = trace(THREAD, url=url)
    assert refused.exit_code == 1
    assert tempo.headers[0]["authorization"].startswith("Basic ")
    tempo.url = url.replace(url.rpartition(":")[2], "1")
    for failed in (refused, trace(THREAD, url=tempo.url), trace(THREAD, url=f"ftp://me:{SECRET}@host")):
        assert failed.exit_code == 1
        assert SECRET not in failed.output


@pytest.mark.parametrize(
    "wrong", [f"{SECRET}", f"x y: {SECRET}", f"a: {SECRET}\nb: c", f": {SECRET}", f"a: é{SECRET}"]
)
def test_a_header_that_cannot_be_read_is_not_shown(wrong: str, tempo: Tempo) -> None:
    for failed in (
        trace(THREAD, "--header", wrong, url=tempo.url),
        trace(THREAD, url=tempo.url, TEMPO_HEADERS=wrong.replace(": ", " ")),
    ):
        assert failed.exit_code == 1
        assert "cannot be read: write" in failed.stderr
        assert SECRET not in failed.output
    assert not tempo.headers


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ({"status": 401}, "answered 401 Unauthorized: it wants credentials: --header, or TEMPO_HEADERS"),
        ({"status": 403}, "answered 403 Forbidden: it wants credentials"),
        (
            {"status": 404},
            "there is no /api/search. Is this the base URL of a Tempo (port 3200), not of Grafana?",
        ),
        ({"status": 302, "location": "http://127.0.0.1:1/login"}, "it sends somewhere else, to a login page"),
        ({"status": 429}, "it is asked too often"),
        (
            {"status": 500, "content": b"error\nfinding blocks"},
            "answered 500 Internal Server Error: error finding",
        ),
        (
            {"status": 502, "content": b"<html>", "content_type": "text/html"},
            "502 Bad Gateway: look at Tempo's log",
        ),
        ({"status": 200, "content": b"<html>hello"}, "answers, but not as a Tempo does"),
        ({"status": 200, "content": b'[{"title": "a dashboard"}]'}, "answers, but not as a Tempo does"),
        ({"status": 200, "content": b'{"status": "success"}'}, "answers, but not as a Tempo does"),
        ({"status": 200, "content": b'{"traces": {}}'}, "answers, but not as a Tempo does"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(behaviour: dict[str, Any], says: str, tempo: Tempo) -> None:
    for name, value in behaviour.items():
        setattr(tempo, name, value)
    failed = trace(THREAD, url=tempo.url)
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"error: {tempo.url}")
    assert says in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert len(tempo.headers) == 1, "a redirect is not followed"


def test_a_tempo_that_is_not_there_is_said_to_be_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    failed = trace(THREAD, url=url)
    assert failed.exit_code == 1
    assert failed.stderr.startswith(f"error: {url} cannot be reached (")
    assert "Check the URL, and that Tempo is up." in failed.stderr


def test_a_tempo_that_hangs_is_not_waited_for(tempo: Tempo) -> None:
    tempo.hangs = True
    failed = trace(THREAD, "--timeout", "0.2", url=tempo.url)
    assert failed.exit_code == 1
    assert "did not answer within 0.2 s" in failed.stderr


def test_a_conversation_that_is_not_there_is_said_to_be_so(tempo: Tempo) -> None:
    tempo.hold(three_turns("somebody else"))
    failed = trace(THREAD, url=tempo.url)
    assert failed.exit_code == 1
    assert "error: No span of the conversation 42 in Tempo" in failed.stderr
    assert "CHECKPOINT_TELEMETRY_THREAD_IDS=none" in failed.stderr
    assert "may find a turn only 30 s after its end" in failed.stderr


def test_what_tempo_leaves_out_is_said(tempo: Tempo) -> None:
    tempo.hold(three_turns())
    tempo.partial, tempo.lost = f"{2:032x}", f"{3:032x}"
    printed = trace(THREAD, url=tempo.url).stdout
    assert "note  Tempo gave only a part of a trace: Trace exceeds maximum size" in printed
    assert "note  1 trace was found by Tempo's search, but cannot be had any more." in printed
    tempo.lost = ""
    printed = trace(THREAD, "--limit", "2", url=tempo.url).stdout
    assert "note  Only 2 traces were read; there may be more (--limit)." in printed


def test_a_file_is_read_even_if_the_environment_names_a_tempo(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(line(turn(1, trace=1)), "utf-8")
    assert trace(THREAD, "--file", str(path), url="http://127.0.0.1:1").exit_code == 0
