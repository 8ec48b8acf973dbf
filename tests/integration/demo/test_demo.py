"""`glasspoint demo`, run as a newcomer runs it."""

from __future__ import annotations

import http.server
import io
import re
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess

import httpx
import psycopg
import pytest
import redis
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from rich.console import Console

import preforked
from command_line import (
    END_SECONDS,
    assert_fits,
    assert_gone,
    environment,
    glasspoint,
    running_glasspoint,
)
from glasspoint.demo.model import RecallingChatModel
from glasspoint.demo.servers import Servers
from glasspoint.demo.story import tell_story
from glasspoint.demo.telemetry import observe
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import ConfigurationError

RESULTS = ["absent", "hit", "miss", "unavailable", "miss", "redis", "miss"]


@pytest.fixture(scope="module")
def story() -> CompletedProcess[str]:
    """`glasspoint demo --once`, through a pipe. Its page is looked at while the story is told."""
    with running_glasspoint("demo", "--once", "--port", "0") as demo:
        address = demo.wait_for(r"(http://127\.0\.0\.1:\d+/live#token=[\w-]{16,})$")[1]
        assert "Watch it live, until the story has ended:" in demo.seen
        assert "PostgreSQL" not in demo.seen  # it comes before the servers
        url, _, token = address.partition("/live#token=")
        assert httpx.get(f"{url}/live").status_code == 200
        headers = {"X-Glasspoint-Token": token}
        pressed = httpx.post(f"{url}/live/actions/kill_redis", json={}, headers=headers).json()
        assert pressed["error"].startswith("The story is being told")
        output, errors = demo.process.communicate(timeout=END_SECONDS)
        status = demo.process.returncode
    assert status is not None
    return CompletedProcess([], status, demo.seen + output, errors)


def test_the_name_is_remembered_through_all_six_acts(story: CompletedProcess[str]) -> None:
    assert story.returncode == 0, story.stdout + story.stderr
    assert re.findall(r"^── (\d) of 6", story.stdout, re.MULTILINE) == ["1", "2", "3", "4", "5", "6", "6"]
    assert re.findall(r"as expected, (?:L1 says|the tier is) (\w+)", story.stdout) == RESULTS
    assert re.findall(r"^ +agent +(.*)", story.stdout, re.MULTILINE)[1:] == ["철수라고 하셨어요."] * 6
    assert "a new epoch" in " ".join(story.stdout.split())
    assert "WRONG" not in story.stdout


def test_each_turn_shows_its_tiers_its_trace_and_its_counters(story: CompletedProcess[str]) -> None:
    turns = re.split(r"^── ", story.stdout, flags=re.MULTILINE)[1:]
    assert len(turns) == 7
    for turn in turns:
        for shown in ("L1 Redis", "L2 PostgreSQL", "invoke_agent glasspoint-demo", "checkpoint.get_tuple"):
            assert shown in turn
        in_redis = turn.startswith("6 of 6 · PostgreSQL killed")
        assert re.search(rf"checkpoint\.{'redis' if in_redis else 'l2'}\.put .* ms", turn)
    hit, unavailable = turns[1], turns[3]
    assert re.search(r"checkpoint\.get_tuple  hit  from L1 +[\d.]+ ms", hit)
    assert re.search(r"l1_reads_total +hit \+", hit)
    assert re.search(r"checkpoint\.get_tuple  unavailable  from L2 +[\d.]+ ms", unavailable)
    assert re.search(r"write_through_total +.*journalled \+", unavailable)
    assert re.search(r"log +WARNING glasspoint", unavailable)


def test_the_end_says_that_everything_is_gone(story: CompletedProcess[str]) -> None:
    assert re.search(
        r"The name was remembered in all 7 turns.*Everything that was started is gone again",
        story.stdout,
        re.DOTALL,
    )


def test_the_output_is_fit_for_a_pipe(story: CompletedProcess[str]) -> None:
    assert_fits(story.stdout, columns=80)
    assert story.stderr == ""


def test_the_traffic_without_live_serves_metrics_alone_and_ends_with_ctrl_c() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_glasspoint("demo", "--no-live", "--port", str(port)) as demo:
            demo.wait_for(f"Port {port} is taken")
            url = demo.wait_for(r"Metrics: (http://127\.0\.0\.1:\d+/metrics)")[1]
            assert "token" not in demo.seen
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url.replace("/metrics", "/live"), timeout=60)
            servers = demo.servers()
            demo.wait_for(r"^[1-9]\d* turns, .* hits .* read .* put .* pool \d+/10")
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert b"glasspoint_l1_reads_total{" in answer.read()
            status, errors = demo.end(signal.SIGINT)
    assert (status, errors) == (0, "")
    assert servers
    assert_gone(servers)
    assert_fits(demo.seen, columns=80)


def test_an_interrupted_story_leaves_no_server_behind() -> None:
    with running_glasspoint("demo", "--once") as demo:
        demo.wait_for("1 of 6")
        servers = demo.servers()
        status, errors = demo.end(signal.SIGINT)
    assert servers
    assert_gone(servers)
    assert status == 130
    assert errors.strip() == "Interrupted; everything that was started is gone."


def test_a_reader_that_goes_away_leaves_no_server_and_no_traceback_behind() -> None:
    with running_glasspoint("demo", "--once") as demo:
        demo.wait_for("1 of 6")
        servers = demo.servers()
        assert demo.process.stdout is not None
        demo.process.stdout.close()
        assert demo.process.wait(timeout=60) != 0
        assert demo.process.stderr is not None
        assert "Traceback" not in demo.process.stderr.read()
    assert_gone(servers)


def test_servers_of_the_environment_are_used_and_left_as_they_were(
    database: str, own_redis: EmbeddedRedis
) -> None:
    with redis.Redis(port=own_redis.port) as client:
        client.set("somebody's", "data")
        urls = {"POSTGRES_URL": database, "REDIS_URL": own_redis.url}
        played = glasspoint("demo", "--once", **urls, CHECKPOINT_KEY_PREFIX="shop", COLUMNS="60")
        assert client.keys() == [b"somebody's"]
    assert played.returncode == 0, played.stdout + played.stderr
    assert_fits(played.stdout, columns=60)
    assert own_redis.running
    assert re.findall(r"as expected, L1 says (\w+)", played.stdout) == RESULTS[:3]
    assert len(re.findall(r"^── [456] of 6 .* skipped$", played.stdout, re.MULTILINE)) == 3
    with psycopg.connect(database) as connection:
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_an_unreachable_server_of_the_environment_is_an_error_of_one_line() -> None:
    failed = glasspoint("demo", "--once", POSTGRES_URL="postgresql://me:geheim@127.0.0.1:1/db")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: PostgreSQL cannot be reached")
    assert "Traceback" not in failed.stderr
    assert "geheim" not in failed.stdout + failed.stderr


class ForgetfulChatModel(RecallingChatModel):
    """Never knows the name."""

    def _generate(self, messages: list[BaseMessage], *args: object, **kwargs: object) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage("글쎄요."))])


async def _tell(servers: Servers, model: BaseChatModel) -> tuple[bool, str]:
    out = io.StringIO()
    with observe(lost=pytest.fail) as observed:
        as_expected = await tell_story(
            Console(file=out, width=80), servers, observed, model, thread_id="told"
        )
    return as_expected, out.getvalue()


async def test_a_forgotten_name_makes_the_story_fail_and_is_said(database: str, redis_url: str) -> None:
    servers = Servers(database, redis_url, own_postgres=None, own_redis=None)
    as_expected, output = await _tell(servers, ForgetfulChatModel())
    assert not as_expected
    assert output.count("WRONG  the answer does not say 철수") == 3


async def test_an_unexpected_l1_result_makes_the_story_fail_and_is_said(database: str) -> None:
    with EmbeddedRedis() as redis_server:
        redis_server.kill()
        servers = Servers(database, redis_server.url, own_postgres=None, own_redis=redis_server)
        redis_server.start()
        redis_server.flush = lambda: None  # type: ignore[method-assign]  # a flush that flushes nothing
        as_expected, output = await _tell(servers, RecallingChatModel())
    assert not as_expected
    assert "WRONG  the read was answered by hit, expected miss" in output


@contextmanager
def _otlp_receiver() -> Iterator[tuple[str, list[str]]]:
    """A server that takes what an OTLP exporter posts, and notes the paths."""
    paths: list[str] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            server.shutdown()
            thread.join()


def test_spans_go_to_an_otlp_endpoint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with _otlp_receiver() as (endpoint, paths):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        with observe(lost=pytest.fail) as observed, observed.turn("a thread"):
            assert observed.exports_to == "127.0.0.1"
    assert paths == ["/v1/traces"]


def test_a_dead_otlp_endpoint_is_said_and_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    lost: list[str] = []
    with observe(lost=lost.append) as observed, observed.turn("a thread"):
        pass
    assert len(lost) == 1


def test_a_missing_otlp_exporter_is_an_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with (
        pytest.raises(ConfigurationError, match=r"pip install 'glasspoint\[otlp\]'"),
        observe(lost=pytest.fail),
    ):
        pass


def test_the_demo_does_not_need_langchain() -> None:
    program = "import sys; sys.modules['langchain'] = None; import glasspoint.demo.play, glasspoint.cli.check"
    done = preforked.run(program, env=environment(), timeout=60, source=preforked.of_libraries())
    assert done.returncode == 0, done.stderr


def test_the_version_is_printed() -> None:
    from glasspoint import __version__

    assert glasspoint("--version").stdout == f"glasspoint {__version__}\n"
