"""`glasspoint top`: the figures of running processes, in a pipe and in a terminal."""

from __future__ import annotations

import http.server
import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from typer.testing import CliRunner, Result

import preforked
from command_line import assert_fits, environment, running_glasspoint
from glasspoint.cli.commands import app
from glasspoint.cli.endpoints import DEFAULT_URL, Endpoint
from glasspoint.embedded import EmbeddedRedis
from glasspoint.errors import ConfigurationError
from glasspoint.telemetry.http import serve_telemetry
from terminal import glasspoint_in_a_terminal
from workers import Worker

SECRET = "canary-Gefluester-0452"
INTERVAL = 0.2


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def top(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["top", *args], env={"COLUMNS": str(columns)})


def read(*urls: str, columns: int = 80) -> str:
    """Return the text of one interval."""
    result = top(*urls, "--interval", str(INTERVAL), columns=columns)
    assert result.exit_code == 0, result.output
    assert_fits(result.stdout, columns=columns)
    return result.stdout


@contextmanager
def served(answer: Callable[[], tuple[int, bytes]]) -> Iterator[str]:
    """Serve whatever a function returns; its URL has no path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = answer()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def working(worker: Worker, work: Callable[[Worker], None]) -> Iterator[str]:
    """Serve a worker that does the same after each reading."""

    def answer() -> tuple[int, bytes]:
        text = worker.text()
        work(worker)
        return 200, text.encode()

    with served(answer) as url:
        yield url


def three_hits_and_a_miss(worker: Worker) -> None:
    saver = next(iter(worker.savers))
    worker.call("get_tuple", 3, saver, l1_result="hit", served_by="l1")
    worker.call("get_tuple", 1, saver, l1_result="miss", served_by="l2")
    worker.call("put", 2, saver, l1_write="announced", l1_seconds=0.001, l2_seconds=0.002)


def opened(*savers: str) -> Worker:
    worker = Worker(*savers)
    for name in worker.savers:
        worker.open(name, breaker="closed")
    return worker


def nobody() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# -------------------------------------------------------------------- one reading


def test_it_prints_what_one_interval_saw() -> None:
    with working(opened(), three_hits_and_a_miss) as url:
        text = read(url)
    assert re.search(r"^hit ratio +75\.0%$", text, re.MULTILINE)
    rates = dict(re.findall(r"^ *(reads|hits|misses|writes|in L2 PostgreSQL) +([\d.]+)", text, re.MULTILINE))
    by_name = {name: float(rate) for name, rate in rates.items()}
    assert by_name["reads"] == pytest.approx(4 / 3 * by_name["hits"], rel=0.1)
    assert by_name["hits"] == pytest.approx(3 * by_name["misses"], rel=0.1)
    assert 0 < by_name["writes"] <= 2 / INTERVAL
    assert "announced" in text
    assert re.search(r"^state +tier cached · breaker closed$", text, re.MULTILINE)


def test_json_has_the_sum_and_each() -> None:
    with (
        working(opened(), three_hits_and_a_miss) as one,
        working(opened("a"), three_hits_and_a_miss) as two,
    ):
        result = top(one, two, nobody(), "--json", "--interval", str(INTERVAL))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [url.removeprefix("http://") for url in (one, two)]
    first, second, missing = found["each"].values()
    assert list(found["each"])[:2] == names
    assert missing == {"error": "does not answer: connection refused"}
    assert found["ok"]
    assert found["sum"]["savers"] == ["a", "default"]
    assert found["sum"]["reads"]["hit_ratio"] == pytest.approx(0.75)
    rates = [each["reads"]["results"]["hit"] for each in (first, second)]
    assert found["sum"]["reads"]["results"]["hit"] == pytest.approx(sum(rates))
    assert all(0 < rate <= 3 / INTERVAL * 1.001 for rate in rates)


@pytest.mark.parametrize("columns", [80, 130])
def test_several_processes_are_shown_together_and_each(columns: int) -> None:
    hanging = socket.create_server(("127.0.0.1", 0))
    with (
        hanging,
        working(opened(), three_hits_and_a_miss) as one,
        working(opened(), three_hits_and_a_miss) as two,
        served(lambda: (200, b'other_total{a="b"} 5\n')) as stranger,
        served(lambda: (200, b"<html>\nglasspoint_ of the world\n")) as page,
        served(lambda: (403, b"")) as guarded,
    ):
        nowhere, hangs = nobody(), f"127.0.0.1:{hanging.getsockname()[1]}"
        text = read(one, two, stranger, page, guarded, nowhere, hangs, columns=columns)
    assert "2 of 7 processes answer" in text
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines() if line.strip()}

    def row(url: str) -> str:
        return re.sub(r" \(for \d+ s\)$", "", rows[url.removeprefix("http://")])

    assert "75%" in row(one)
    assert "75%" in row(two)
    assert row(stranger) == "answers, but shows no metrics of Glasspoint's"
    assert row(page) == "answers, but with something that is no Prometheus metrics"
    assert row(guarded) == "answers with the status 403 (Forbidden)"
    assert row(nowhere) == "does not answer: connection refused"
    assert row(hangs) == "does not answer within 3 s"


def test_the_savers_of_a_process_are_shown_each() -> None:
    def work(worker: Worker) -> None:
        worker.call("get_tuple", 2, saver="orders", l1_result="hit", served_by="l1")
        worker.call("get_tuple", 2, saver="chat", l1_result="miss", served_by="l2")

    with working(opened("orders", "chat"), work) as url:
        text = read(url)
    assert re.search(r"^ +saver chat +[\d.]+ +0%", text, re.MULTILINE)
    assert re.search(r"^ +saver orders +[\d.]+ +100%", text, re.MULTILINE)


@pytest.mark.parametrize("is_restart", [True, False])
def test_a_process_that_answers_anew_says_so_until_there_are_rates(is_restart: bool) -> None:
    before = opened()
    three_hits_and_a_miss(before)
    answers = iter([(200, before.text()) if is_restart else (503, ""), (200, opened().text())])

    def answer() -> tuple[int, bytes]:
        status, text = next(answers)
        return status, text.encode()

    with working(opened(), three_hits_and_a_miss) as another, served(answer) as url:
        text = read(another, url)
    was = "has been restarted" if is_restart else "answers"
    assert f"{url.removeprefix('http://')} {was}: its rates come with the next reading" in " ".join(
        text.split()
    )


def test_what_waits_and_savers_that_differ_are_shown() -> None:
    differing, empty = Worker("orders", "chat"), Worker()
    differing.open("orders", breaker="closed", journal_pending=12, quarantined=lambda: 3)
    differing.open("chat", tier="redis")
    empty.call("get_tuple")  # all its savers are closed
    with working(differing, lambda worker: None) as one, working(empty, lambda worker: None) as two:
        text = " ".join(read(one, two).split())
        nothing = " ".join(read(two).split())
    assert "tiers cached 1×, redis 1×" in text
    assert "12 in the journal · 3 quarantined" in text
    assert "no saver is open" in nothing


def test_calls_that_fail_are_shown() -> None:
    with working(opened(), lambda worker: worker.fail("put")) as url:
        text = read(url)
    assert re.search(r"^FAILED CALLS +put [\d.]+/s$", text, re.MULTILINE)


def test_without_any_answer_it_fails_at_once_and_with_one_sentence() -> None:
    """At once: the interval is an hour."""
    first, second = nobody(), nobody()
    result = top("--once", "--interval", "3600", first, f"http://me:{SECRET}@{second}")
    assert result.exit_code == 1
    assert result.stdout == ""
    refused = "does not answer: connection refused"
    assert result.stderr == f"error: There are no figures: {first} {refused}; {second} {refused}.\n"


def test_without_any_answer_json_says_so() -> None:
    result = top("--json", nobody())
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["ok"], found["sum"]) == (False, None)
    assert "connection refused" in found["error"]


def test_hostile_names_are_shown_harmlessly() -> None:
    hostile = "\x1b[2J\x9b31m\u202egnp.\r"

    def work(worker: Worker) -> None:
        worker.call("get_tuple", saver=hostile, l1_result=hostile, served_by="l1")
        worker.call(hostile, saver="default", l1_write=hostile)

    with working(opened("default", hostile), work) as url:
        texts = [read(url), top(url, "--json", "--interval", str(INTERVAL)).stdout]
    for text in texts:
        assert not set(hostile) & set(text) - set("[2J31mgnp.")
    assert "saver \\x1b[2J" in texts[0]
    assert hostile in json.loads(texts[1])["sum"]["savers"]


@pytest.mark.parametrize("form", ["{0}", "http://{0}", "http://{0}/", "http://{0}/metrics", "http://a:b@{0}"])
def test_a_url_may_be_short(form: str) -> None:
    with serve_telemetry(0, registry=opened().registry) as server:
        address = server.url.removeprefix("http://")
        assert f"glasspoint top  {address} " in read(form.format(address))


def test_a_url_with_a_path_is_taken_as_it_is() -> None:
    assert str(Endpoint("https://pod/telemetry/metrics").url) == "https://pod/telemetry/metrics"
    assert Endpoint("https://pod/telemetry/metrics").name == "pod/telemetry/metrics"
    assert str(Endpoint(DEFAULT_URL).url) == "http://127.0.0.1:9464/metrics"


@pytest.mark.parametrize("url", ["", ":1", "redis://host/metrics", f"ftp://me:{SECRET}@host"])
def test_what_is_no_url_is_an_error_of_one_line(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no URL of metrics"):
        Endpoint(url)
    result = top("--once", "--", url)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert SECRET not in result.stderr


def test_without_httpx_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['httpx'] = None; from glasspoint.cli.main import main; main()"
    source = preforked.of_libraries()
    ended = preforked.run(code, "top", "--once", env=environment(), timeout=60, source=source)
    assert ended.returncode == 1
    assert "pip install 'glasspoint[cli]'" in ended.stderr
    assert "Traceback" not in ended.stderr


# -------------------------------------------------------------------- in a terminal


def test_in_a_terminal_it_follows_real_processes_through_a_death_and_a_return(
    database: str, own_redis: EmbeddedRedis
) -> None:
    servers = {"POSTGRES_URL": database, "REDIS_URL": own_redis.url}

    def traffic(port: str = "0") -> tuple[str, preforked.Popen]:
        running = together.enter_context(
            running_glasspoint("traffic", "--port", port, "--people", "1", **servers)
        )
        assert isinstance(running.process, preforked.Popen)
        return running.wait_for(r"metrics: http://(\S+)/metrics", errors=True)[1], running.process

    with ExitStack() as together:
        first, _ = traffic()
        second, process = traffic()
        with glasspoint_in_a_terminal("top", first, second, "--interval", "0.5") as terminal:
            terminal.wait_for("2 of 2 processes answer")
            for each in (first, second):
                terminal.wait_for(rf"{each} +[\d.]+ +(\d+%|–)")
            terminal.wait_for(r"writes +[1-9]")
            process.kill()
            process.wait()
            terminal.wait_for("1 of 2 processes answer")
            terminal.wait_for(f"{second} +does not answer: connection refused")
            terminal.wait_for(rf"{first} +[\d.]+ +\d+%")
            traffic(second.rpartition(":")[2])
            # A busy machine may have read it twice before it draws, and then there are rates already.
            terminal.wait_for(rf"{second} +(has been restarted: its rates|[\d.]+ +(\d+%|–))")
            terminal.wait_for(rf"{second} +[\d.]+ +(\d+%|–)")
            assert terminal.end(signal.SIGINT) == 0
            assert "Traceback" not in terminal.written


def test_in_a_terminal_it_waits_for_a_process_that_is_not_there_yet() -> None:
    address, worker = nobody(), opened()
    with glasspoint_in_a_terminal("top", address, "--interval", "0.2") as terminal:
        terminal.wait_for(f"{address} +does not answer: connection refused")
        with serve_telemetry(int(address.rpartition(":")[2]), registry=worker.registry):
            terminal.wait_for("tier cached")
        terminal.wait_for(f"{address} +does not answer")
        assert terminal.end(signal.SIGINT) == 0
