"""The README and the pages of docs/: programs run, links lead somewhere, quoted figures were measured.

A program is named by its page and its heading. To add one, name it in `PRINTS` with what it prints; or in
`EXCERPTS`, if it is a part of a program, with the code that it needs before it.
"""

from __future__ import annotations

import os
import re
import textwrap
import urllib.request
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

import preforked
from command_line import COMMAND
from glasspoint import CachedPostgresSaver, Settings
from glasspoint.cli.commands import app
from glasspoint.errors import ConfigurationError
from glasspoint.model.option_types import names_of
from glasspoint.savers.options import OpenCachedOptions
from otlp import collecting
from places import ROOT

README = (ROOT / "README.md").read_text("utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED_FROM = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]

CHAT = "README.md#your-own-application-in-ten-minutes"
SERVERS = "usage.md#servers-to-try-it-on"

PRINTS = {
    CHAT: "cached, http://127.0.0.1:",
    SERVERS: "export POSTGRES_URL='postgresql://",
    "usage.md#one-saver-asynchronous": "You have said 3 things so far.",
    "usage.md#one-saver-synchronous": "You have said 1 things so far.",
    "usage.md#without-a-block": "None",
    "usage.md#on-a-pool-of-your-own": "None",
    "usage.md#with-fallbacks-from-the-environment": "cached None",
    "usage.md#how-do-i-get-a-list-of-conversations": "[]",
    "fallback.md#redissaver-by-itself": "[]",
    "processes.md#flask-and-django": "",
    "telemetry.md#with-a-registry-of-its-own": "'glasspoint_l1_reads_total",
}

BUILDER = """
import asyncio, os
import glasspoint
from glasspoint import CachedPostgresSaver, get_checkpointer
from langgraph.graph import END, START, MessagesState, StateGraph

POSTGRES_URL, REDIS_URL = os.environ["POSTGRES_URL"], os.environ["REDIS_URL"]
builder = StateGraph(MessagesState)
builder.add_node("answer", lambda state: {"messages": [("ai", "Hello")]})
builder.add_edge(START, "answer")
graph = builder.compile()
thread_id = "42"
inputs, config = {"messages": [("user", "Hello")]}, {"configurable": {"thread_id": thread_id}}
"""
BOTO3 = (
    BUILDER
    + """
import sys, types
client = types.SimpleNamespace(generate_db_auth_token=lambda **parameters: "unused")
sys.modules["boto3"] = types.SimpleNamespace(client=lambda name: client)
"""
)
# Another program may listen on the port that the page names, and each server is closed at the end.
LIVE = """
import asyncio, atexit, secrets, types
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from glasspoint.telemetry import http
serve, app = http.serve_telemetry, types.SimpleNamespace(mount=lambda path, app: None)
redis, registry, provider = None, CollectorRegistry(), TracerProvider()
def serve_telemetry(port, **options):
    atexit.register(serve(0, **options).close)
http.serve_telemetry = serve_telemetry
"""

EXCERPTS = {
    "live.md#how-do-i-see-it": LIVE,
    "live.md#how-do-i-see-it (2)": LIVE,
    "live.md#how-do-i-see-turns": LIVE,
    "live.md#how-do-i-add-my-own-buttons": LIVE,
    "processes.md#notebooks": BUILDER,
    "processes.md#notebooks (2)": BUILDER,
    "side-by-side.md#moving-in-from-another-database-from-sqlite-from-redis-or-from-memory": BUILDER
    + "from langgraph.checkpoint.memory import InMemorySaver\n",
    "side-by-side.md#what-if-the-password-changes": BOTO3,
    "telemetry.md#turns": BUILDER,
    "telemetry.md#turns (2)": BUILDER + 'question = "hello"\n',
    "telemetry.md#for-applications-configure_telemetry": BUILDER,
}
"""Parts of programs, and the code that they need before them. `await` may stand anywhere in them."""

OWN_SDK = "telemetry.md#i-have-an-opentelemetry-sdk-already"

ELSEWHERE = {"telemetry.md#several-processes": "test_multiprocess.py", OWN_SDK: "test_readme.py"}
"""Programs that another test runs, because they need a server of their own."""


STRICT = "import warnings; warnings.simplefilter('error', ResourceWarning)\n"
"""What is left open is an error, as with `python -W error::ResourceWarning`."""


class Program(NamedTuple):
    name: str
    code: str


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def prose_of(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def headings_of(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)}


def programs() -> Iterator[Program]:
    for page in PAGES:
        heading = ""
        found: list[Program] = []
        for title, language, code in re.findall(
            r"^#+ ([^\n]+)$|^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
        ):
            if title:
                heading = slug(title)
            elif language == "python":
                found.append(Program(f"{page.name}#{heading}", code))
        for _, under in groupby(found, key=lambda program: program.name):
            for number, program in enumerate(under, start=1):
                yield program if number == 1 else program._replace(name=f"{program.name} ({number})")


PROGRAMS = dict(programs())


@pytest.fixture
def database(empty_database: str) -> str:
    """Here it matters who makes the tables."""
    return empty_database


@pytest.fixture
def environment(database: str, redis_url: str) -> dict[str, str]:
    """What a newcomer exports. With a key, because the chain warns of a database without a password."""
    key = {"CHECKPOINT_L1_SIGNING_KEY": "sixteen bytes..!"}
    return {**os.environ, "POSTGRES_URL": database, "REDIS_URL": redis_url, **key}


def run(code: str, environment: dict[str, str]) -> str:
    done = preforked.run(STRICT + code, env=environment, timeout=60, reads="\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_every_program_of_the_pages_is_run() -> None:
    assert sorted(PROGRAMS) == sorted([*PRINTS, *EXCERPTS, *ELSEWHERE])
    for test in ELSEWHERE.values():
        assert list((ROOT / "tests").rglob(test))


@pytest.mark.parametrize("name", sorted(PRINTS.keys() - {CHAT}))
def test_a_program_runs_as_it_stands(name: str, environment: dict[str, str]) -> None:
    assert PRINTS[name] in run(PROGRAMS[name], environment)


@pytest.mark.parametrize("name", sorted(EXCERPTS))
def test_a_part_of_a_program_runs_with_what_it_takes_from_elsewhere(
    name: str, environment: dict[str, str]
) -> None:
    body = textwrap.indent(PROGRAMS[name], "    ")
    run(f"{EXCERPTS[name]}\n\nasync def cell():\n{body}\n\nasyncio.run(cell())\n", environment)


@pytest.mark.parametrize("has_processor", [True, False], ids=["as the page says", "without the processor"])
def test_in_an_sdk_of_your_own_the_calls_stand_below_what_caused_them(
    environment: dict[str, str], *, has_processor: bool
) -> None:
    code = PROGRAMS[OWN_SDK]
    if not has_processor:
        code = code.replace("provider.add_span_processor(GraphSpans())\n", "")
        assert code != PROGRAMS[OWN_SDK]
    conversation = f"""
{BUILDER}
async def main():
    async with get_checkpointer() as saver, glasspoint.conversation_turn(thread_id, agent_name="chat"):
        await graph.copy(update={{"checkpointer": saver}}).ainvoke(inputs, config)
asyncio.run(main())
provider.shutdown()
"""
    with collecting() as collector:
        run(code + conversation, environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    names = {span.span_id: span.name for span in collector.spans}
    assert [span.name for span in collector.spans if not span.parent_id] == ["invoke_agent chat"]
    above = {(call.name, names[call.parent_id]) for call in collector.spans if call.name in _CALLS}
    below_what_caused_them = {
        ("checkpoint.put_writes", "answer"),
        ("checkpoint.put_writes", "LangGraph"),  # the input of the graph
        ("checkpoint.put", "LangGraph"),
        ("checkpoint.get_tuple", "LangGraph"),
    }
    assert above == (
        below_what_caused_them if has_processor else {(call, "invoke_agent chat") for call in _CALLS}
    )


_CALLS = {"checkpoint.get_tuple", "checkpoint.put", "checkpoint.put_writes"}


@pytest.fixture
def port_free_chat() -> str:
    """The README's program, on any free port: another program may listen on the one that it names."""
    code = PROGRAMS[CHAT]
    assert "serve_telemetry(9464)" in code
    assert "http://127.0.0.1:9464/metrics" in README
    return code.replace("serve_telemetry(9464)", "serve_telemetry(0)")


def test_a_newcomer_sees_at_metrics_and_in_the_trace_what_the_readme_shows(
    port_free_chat: str, environment: dict[str, str], tmp_path: Path
) -> None:
    metrics, said = _converse(port_free_chat, environment, tmp_path, "Hello", "Still there?")
    assert said == ["1 so far. You began with: Hello", "2 so far. You began with: Hello"]
    shown = re.findall(r"^glasspoint_\w+\{.*\} [\d.]+$", README, re.MULTILINE)
    [wanted] = re.findall(r"grep -E '(.+)'$", README, re.MULTILINE)
    assert shown == [line for line in metrics if re.search(wanted, line)]

    # Times, waits and bursts differ from run to run.
    trace = _shown_by_trace(tmp_path, environment)
    [pictured] = re.findall(
        r"^```console\n\$ glasspoint trace 42 .*?\n(.*?)^```", README, re.DOTALL | re.MULTILINE
    )
    assert _steps(pictured) == _steps(trace[trace.index("── turn 2") :])
    assert "absent  from L2" in trace.partition("── turn 2")[0]
    assert "get_tuple  hit  from L1" in pictured

    _, said = _converse(port_free_chat, environment, tmp_path, "And now?")
    assert said == ["3 so far. You began with: Hello"]


def _converse(
    code: str, environment: dict[str, str], directory: Path, *texts: str
) -> tuple[list[str], list[str]]:
    """Say something to the program, look at its metrics, and end it. Return the metrics and the answers."""
    with preforked.Popen(code, env=environment, cwd=directory, has_stdin=True) as chat:
        assert chat.stdin is not None
        assert chat.stdout is not None
        assert chat.stderr is not None
        try:
            opened = chat.stdout.readline()
            assert opened.startswith(PRINTS[CHAT]), opened + chat.stderr.read()
            said = []
            for text in texts:
                print(text, file=chat.stdin, flush=True)
                said.append(chat.stdout.readline().removeprefix("you: ").strip())
            with urllib.request.urlopen(opened.split()[1]) as page:
                metrics = page.read().decode().splitlines()
            print(file=chat.stdin, flush=True)
            assert chat.wait(timeout=60) == 0, chat.stderr.read()
            assert chat.stderr.read() == ""
            return metrics, said
        finally:
            chat.kill()


def _shown_by_trace(directory: Path, environment: dict[str, str]) -> str:
    done = preforked.run(
        COMMAND, *("trace", "42", "--file", "spans.jsonl"), cwd=directory, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _steps(trace: str) -> list[str]:
    return sorted(re.findall(r"[├└]─ (get_tuple|put|put_writes)\b", trace))


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_readme_quotes_the_figures_of_the_run_that_the_docs_show() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    quoted = {
        "64 reads of cached conversations at once": "hit, 10 messages, 64 callers, calls/s",
        'turns of 16 conversations at once, `durability="async"`': "turn, 16 conversations, async",
        'turns of one conversation, `durability="exit"`': "turn, 1 conversation, exit",
    }
    for says, target in quoted.items():
        measured = re.search(rf"^\| {re.escape(target)} \| pool \| [^|]*\| ([\d.]+) ", page, re.MULTILINE)
        assert measured, target
        assert f"| {says} | {measured[1]} |" in README


def test_the_readmes_settings_are_those_of_the_page_of_settings() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    defaults = dict(re.findall(r"^\| `(\w+)` \| .+? \| .*? \| (.*?) \| ?.*?\|$", page, re.MULTILINE))
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| .+ \| (.*?) \|$", table, re.MULTILINE))
    assert shown
    assert shown.items() <= defaults.items()


def test_every_option_is_in_the_table_and_the_other_way_round() -> None:
    table = USAGE.partition("## Which options are there?")[2].partition("\n##")[0]
    rows = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    options = {option for row in rows for option in re.findall(r"`(\w+)`", row)}
    assert options == names_of(OpenCachedOptions) - {
        "last_used"
    }  # which the fallback chain gives its own saver


def test_the_table_of_options_has_the_defaults_of_the_settings() -> None:
    table = USAGE.partition("## Which options are there?")[2].partition("\n##")[0]
    rows = dict(re.findall(r"^\| (`.+?`) \| .+ \| (.+?) \|$", table, re.MULTILINE))
    same = {
        "cache_ttl": "cache_ttl",
        "key_prefix": "key_prefix",
        "l1_timeout_seconds": "l1_timeout",
        "write_deadline_seconds": "write_deadline",
        "on_l1_outage": "on_l1_outage",
        "audit_ratio": "audit_ratio",
        "on_fork": "on_fork",
        "foreign_writes": "foreign_writes",
        "sweep_interval_seconds": "sweep_interval",
        "pool_timeout_seconds": "pool_timeout",
        "connect_timeout_seconds": "connect_timeout",
        "prepare_threshold": "prepare_threshold",
    }
    for option, field in same.items():
        shown = rows[f"`{option}`"].strip('`"')
        default = Settings.model_fields[field].default
        assert (shown if isinstance(default, str) else float(shown)) == default, option


@pytest.mark.parametrize("page", ["README.md", "docs/usage.md"])
def test_every_extra_that_a_page_tells_to_install_is_one(page: str) -> None:
    extras = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    named = re.findall(r"(?:glasspoint|[`'.])\[([\w,-]+)\]", (ROOT / page).read_text("utf-8"))
    assert named
    assert {extra for each in named for extra in each.split(",")} <= set(extras)


async def test_a_pipeline_is_refused_as_the_page_says() -> None:
    with pytest.raises(ConfigurationError, match="pipeline"):
        CachedPostgresSaver.from_conn_string(
            "postgresql://127.0.0.1:1", redis_url="redis://127.0.0.1:1", pipeline=True
        )  # type: ignore[call-arg]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_are_there_with_their_options(page: Path) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, rest in re.findall(
        r"(?:`|^\$ (?:\w+=\S+ )*)glasspoint ([a-z]+)([^`\n]*)", page.read_text("utf-8"), re.MULTILINE
    ):
        assert command in known
        options = {option for each in known[command].params for option in each.opts}
        assert set(re.findall(r" (--[\w-]+)", rest.partition(" #")[0])) <= options, command


@pytest.mark.parametrize("page", LINKED_FROM, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if "://" in target:
            continue
        path, _, section = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), target
        if section:
            assert section in headings_of(file), target


@pytest.mark.parametrize(
    "name",
    [
        "CachedPostgresSaver",
        "CachedPostgresSaver.create",
        "AsyncPostgresSaver",
        "AsyncPostgresSaver.from_conn_string",
        "AsyncConnectionPool",
        "MemorySaver",
        "create_cached_postgres_checkpointer",
        "create_redis_checkpointer",
        "get_checkpointer",
        "POSTGRES_URL",
        "REDIS_URL",
        "postgresql+asyncpg://",
        "86400",
        "CachedPostgresSaver initialized",
        "SELECT COUNT(*) FROM checkpoints;",
        "내 이름은 철수야",
        "내 이름이 뭐라고 했지?",
    ],
)
def test_what_a_user_comes_with_is_found(name: str) -> None:
    assert name in README or name in USAGE
