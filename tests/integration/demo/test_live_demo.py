"""The demo's part of the live page, over HTTP: its buttons on real servers, its chat, its story."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr
from rich.cells import cell_len
from rich.console import Console

from command_line import Running, assert_fits, assert_gone, glasspoint, running_afresh, running_glasspoint
from dice import rounds
from glasspoint.demo import chat as chats
from glasspoint.demo.app import App
from glasspoint.demo.faults import Timing
from glasspoint.demo.model import RecallingChatModel
from glasspoint.demo.page import DemoPage
from glasspoint.demo.page_calls import PageCalls
from glasspoint.demo.servers import Servers
from glasspoint.demo.story import tell_story
from glasspoint.demo.telemetry import Observed, observe
from glasspoint.embedded import EmbeddedPostgres, EmbeddedRedis
from glasspoint.errors import GlasspointError, L2DeadlineError
from glasspoint.telemetry.http import serve_telemetry
from steps import seeded_dice, until

NAME, QUESTION, KNOWN = "내 이름은 철수야", "내 이름이 뭐라고 했지?", "철수라고 하셨어요."

# Faults that end by themselves end soon, and only after what they are to show.
TIMING = Timing(takeover=0.3, lock=3.0, squeeze=2.0, snapshot=3600.0)
QUICK = {
    "probe_interval": 0.2,
    "write_deadline": 1.0,
    "pool_timeout": 1.0,
    "connect_timeout": 2.0,
    "l1_timeout": 2.0,
    "audit_ratio": 0.0,
}


@dataclass
class Stage:
    """The demo after its story: servers, application, page, and a client that has the token."""

    http: httpx.AsyncClient
    page: DemoPage
    servers: Servers
    app: App
    observed: Observed
    output: StringIO

    async def post(self, path: str, **body: str) -> dict[str, Any]:
        answer = await self.http.post(path, json=body)
        found: dict[str, Any] = answer.json()
        return found

    async def press(self, name: str) -> str:
        answer = await self.post(f"/live/actions/{name}")
        assert "said" in answer, answer
        return str(answer["said"])

    async def refused(self, name: str) -> str:
        return str((await self.post(f"/live/actions/{name}"))["error"])

    async def talk(self, text: str, thread_id: str = "me") -> dict[str, Any]:
        return await self.post("/live/chat", thread=thread_id, text=text)

    async def answered(self, text: str) -> dict[str, Any] | None:
        """Say something, and return the reply; `None` if the turn has failed."""
        reply = await self.talk(text)
        return reply if "text" in reply else None

    async def ask(self, thread_id: str = "me") -> str:
        """Ask for the name until the turn is no error, as somebody at the page would."""
        answer = await until(lambda: self._answer(thread_id))
        return str(answer)

    async def _answer(self, thread_id: str) -> str | None:
        return (await self.talk(QUESTION, thread_id)).get("text")

    async def hello(self) -> dict[str, Any]:
        return await self._first("hello")

    async def timeline(self) -> list[str]:
        return [each["text"] for each in await self.lines()]

    async def lines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._first("timeline"))["lines"]
        return found

    async def _first(self, wanted: str) -> dict[str, Any]:
        async with self.http.stream("GET", "/live/events") as events:
            event = ""
            async for line in events.aiter_lines():
                if line.startswith("event:"):
                    event = line.removeprefix("event:").strip()
                elif line.startswith("data:") and event == wanted:
                    found: dict[str, Any] = json.loads(line.removeprefix("data:"))
                    return found
        raise AssertionError(f"{wanted} never came")

    def count(self, metric: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.observed.registry.collect()
            for sample in family.samples
            if sample.name == f"glasspoint_{metric}" and labels.items() <= sample.labels.items()
        )

    def state(self, name: str) -> str:
        return self.page.faults.states().get(name, "")

    async def talks_well(self) -> None:
        """Wait until the traffic has turns and no failures: what was broken works again."""
        tally = self.app.traffic.tally

        async def is_well() -> bool:
            failed, turns = tally.failed, tally.turns
            await until(lambda: tally.turns >= turns + 3)
            return tally.failed == failed

        await until(is_well, seconds=60)


@asynccontextmanager
async def staged(
    postgres: EmbeddedPostgres,
    redis: EmbeddedRedis,
    *,
    people: int = 2,
    own: tuple[str, ...] = ("PostgreSQL", "Redis"),
) -> AsyncIterator[Stage]:
    redis.forget_snapshot()
    servers = Servers(
        postgres.url,
        redis.url,
        postgres if "PostgreSQL" in own else None,
        redis if "Redis" in own else None,
        signing_key=SecretStr("nobody can guess this"),
    )
    output = StringIO()
    with observe(lost=pytest.fail) as observed:
        page = DemoPage(Console(file=output, width=80), observed, own=own, timing=TIMING)
        settings = servers.settings(fallbacks=("redis", "memory"), defaults=QUICK)
        app = App(
            settings,
            observed,
            people=people,
            leaves_conversations=servers.all_own,
            cannot_start=page.cannot_start,
        )
        with serve_telemetry(0, registry=observed.registry, live=page.live) as server:
            headers = {"X-Glasspoint-Token": page.token}
            async with (
                httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as http,
                page.working_on(servers, app),
            ):
                running = asyncio.create_task(app.run())
                try:
                    await until(lambda: running.done() or app.traffic.tally.turns)
                    yield Stage(http, page, servers, app, observed, output)
                finally:
                    running.cancel()
                    with suppress(asyncio.CancelledError):
                        await running


@pytest.fixture
async def stage(own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis) -> AsyncIterator[Stage]:
    async with staged(own_postgres, own_redis) as found:
        yield found
    assert found.app.traffic.tally.forgotten == 0


async def test_after_a_flush_reads_miss_and_nothing_is_forgotten(stage: Stage) -> None:
    await stage.talk(NAME)
    before = stage.count("l1_reads_total", result="miss")
    assert await stage.press("flush_redis") == "Redis was flushed: nothing is cached any more."
    assert await stage.ask() == KNOWN
    assert stage.count("l1_reads_total", result="miss") > before


async def test_the_name_is_known_while_redis_is_dead_and_hits_return_with_redis(stage: Stage) -> None:
    await stage.talk(NAME)
    assert await stage.press("kill_redis") == "Redis was killed."
    assert stage.state("kill_redis") == "dead"
    assert await stage.press("kill_redis") == "Redis is dead already."
    assert await stage.refused("flush_redis") == "Redis is dead: bring it back first."
    assert await stage.ask() == KNOWN
    assert stage.count("l1_reads_total", result="unavailable") > 0
    assert stage.app.tier == "cached"
    assert await stage.press("start_redis") == "Redis is back, and empty."
    assert stage.state("kill_redis") == ""
    hits = stage.count("l1_reads_total", result="hit")
    await until(lambda: stage.count("l1_reads_total", result="hit") > hits)
    assert await stage.ask() == KNOWN


async def test_an_old_snapshot_is_another_epoch_and_its_states_are_not_believed(stage: Stage) -> None:
    await stage.talk("내 이름은 영희야")
    assert "snapshot of 0 s ago" in await stage.press("restore_redis")  # the first one saves it
    await stage.talk(NAME)
    epochs = stage.count("l1_epoch_changes_total")
    said = await stage.press("restore_redis")
    assert "keys of another process, of which none is believed" in said
    assert await stage.ask() == KNOWN
    await until(lambda: stage.count("l1_epoch_changes_total") > epochs)
    assert await stage.ask() == KNOWN
    assert any("another server process" in line for line in await stage.timeline())


async def test_without_postgres_a_new_pod_works_in_redis_and_all_is_drained_afterwards(stage: Stage) -> None:
    await stage.talk(NAME)
    assert "a new pod takes over" in await stage.press("stop_postgres")
    assert stage.state("stop_postgres").startswith("stopped")
    await until(lambda: stage.app.tier == "redis")
    assert stage.count("active_tier", tier="redis") == 1
    assert await stage.press("stop_postgres") == "PostgreSQL is stopped already."
    assert await stage.refused("hold_lock") == "PostgreSQL is stopped: bring it back first."
    assert await stage.ask() == KNOWN
    assert await stage.press("start_postgres") == "PostgreSQL is back."
    assert await stage.press("start_postgres") == "PostgreSQL runs already."
    await until(lambda: stage.app.tier == "cached")
    assert stage.count("drained_checkpoints_total") > 0
    assert await stage.ask() == KNOWN
    lines = "\n".join(await stage.timeline())
    for told in (
        "PostgreSQL was stopped",
        "tier cached → redis",
        "works in the tier redis",
        "tier redis → cached",
    ):
        assert told in lines
    await stage.talks_well()


async def test_a_conversation_that_began_anew_is_told_with_its_answer(stage: Stage) -> None:
    assert (await until(lambda: stage.answered(NAME)))["note"] == ""
    await stage.press("flush_redis")  # a COMMIT that comes later finds no intent, and stores nothing
    await stage.press("stop_postgres")
    await until(lambda: stage.app.tier == "redis")
    reply = await until(lambda: stage.answered(QUESTION))
    assert reply["text"] != KNOWN
    assert "began anew, because Redis had no cached state of it" in reply["note"]
    await stage.press("start_postgres")
    await until(lambda: stage.app.tier == "cached")
    reply = await until(lambda: stage.answered(QUESTION))
    assert (reply["text"], "is here again" in reply["note"]) == (KNOWN, True)


async def test_a_fault_is_a_warning_and_a_recovery_is_information(stage: Stage) -> None:
    for name in ("kill_redis", "start_redis", "stop_postgres", "start_postgres"):
        await stage.press(name)
    levels = {each["text"].partition(":")[0]: each["level"] for each in await stage.lines()}
    assert levels["Redis was killed."] == levels["PostgreSQL was stopped"] == "warning"
    assert levels["Redis is back, and empty."] == levels["PostgreSQL is back."] == "info"


async def test_a_deadline_of_ours_is_told_as_it_is() -> None:
    calls = PageCalls("not yet")
    calls.open()

    async def late() -> None:
        raise L2DeadlineError("PostgreSQL did not answer within 3 s.")

    with pytest.raises(L2DeadlineError, match="did not answer within 3 s"):
        await calls.run(late)


async def test_without_both_servers_the_app_works_in_memory_and_recovers(stage: Stage) -> None:
    await stage.press("stop_postgres")
    await stage.press("kill_redis")
    assert await stage.press("restart_app") == "The app was restarted, and works in the tier memory."
    await stage.talk(NAME)
    assert await stage.ask() == KNOWN
    await stage.press("start_redis")
    await until(lambda: stage.app.tier == "redis")
    await stage.press("start_postgres")
    await until(lambda: stage.app.tier == "cached")
    assert await stage.ask() == KNOWN


async def test_a_held_lock_fails_puts_at_their_deadline_and_ends_by_itself(stage: Stage) -> None:
    failed = {"operation": "put", "outcome": "error"}
    errors = stage.count("operation_duration_seconds_count", **failed)
    assert "is locked for 3 s" in await stage.press("hold_lock")
    assert stage.state("hold_lock").startswith("held for ")
    assert await stage.press("hold_lock") == "The lock is held already."
    answer = await stage.talk(NAME)
    assert "Traceback" not in answer["error"]
    await until(lambda: stage.count("operation_duration_seconds_count", **failed) > errors)
    await until(lambda: not stage.state("hold_lock"))
    await until(lambda: "The lock is released" in stage.output.getvalue())
    assert (await stage.talk(NAME))["text"]
    await stage.talks_well()


async def test_a_squeezed_pool_has_one_connection_left_for_a_while(stage: Stage) -> None:
    assert "9 of the pool's 10 connections are held for 2 s" in await stage.press("squeeze_pool")
    assert stage.count("pool_connections", state="in_use") >= 9
    assert await stage.press("squeeze_pool") == "The pool is squeezed already."
    assert (await stage.talk(NAME))["text"]
    await until(lambda: not stage.state("squeeze_pool"))
    await until(lambda: stage.count("pool_connections", state="in_use") < 9)


async def test_a_restart_of_the_app_ends_a_squeeze(stage: Stage) -> None:
    await stage.press("squeeze_pool")
    assert await stage.press("restart_app") == "The app was restarted, and works in the tier cached."
    await until(lambda: not stage.state("squeeze_pool"))
    await stage.talks_well()


async def test_a_press_without_the_token_does_nothing(stage: Stage) -> None:
    del stage.http.headers["X-Glasspoint-Token"]
    answer = await stage.http.post("/live/actions/kill_redis", json={})
    assert answer.status_code == 403
    assert stage.servers.own_redis is not None
    assert stage.servers.own_redis.running


async def test_every_fault_stands_on_the_timeline_and_in_the_terminal(stage: Stage) -> None:
    told = [await stage.press(name) for name in ("flush_redis", "kill_redis", "start_redis", "stop_postgres")]
    told.append(f"Squeeze the pool: {await stage.refused('squeeze_pool')}")
    lines, printed = await stage.timeline(), " ".join(stage.output.getvalue().split())
    for each in told:
        assert each in lines
        assert each in printed
    assert all(cell_len(line) <= 80 for line in stage.output.getvalue().splitlines())
    await stage.press("start_postgres")


@pytest.mark.dice
async def test_whatever_is_pressed_in_whatever_order_the_demo_recovers(stage: Stage) -> None:
    await stage.talk(NAME)
    dice, names = seeded_dice(), [each["name"] for each in (await stage.hello())["actions"]]
    pressed = []
    for _ in range(rounds(30)):
        pressed.append(asyncio.create_task(stage.post(f"/live/actions/{dice.choice(names)}")))
        await asyncio.sleep(dice.choice((0, 0, 0.01, 0.2)))
    answers = await asyncio.gather(*pressed)
    assert not [each for each in answers if "It failed" in each.get("error", "")]
    await stage.press("start_redis")
    await stage.press("start_postgres")
    await until(lambda: stage.app.tier == "cached", seconds=60)
    await until(lambda: not stage.page.faults.states(), seconds=60)
    assert await stage.ask() == KNOWN
    await stage.talks_well()


async def test_the_chat_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "say it in 500 characters" in (await stage.talk("가" * 501))["error"]
    assert "1 to 60 printable characters" in (await stage.talk(NAME, "a\nb"))["error"]
    assert "1 to 60 printable characters" in (await stage.talk(NAME, "a" * 61))["error"]
    monkeypatch.setattr(chats, "_MOST_TURNS", 2)
    monkeypatch.setattr(chats, "_MOST_THREADS", 2)
    assert [(await stage.talk(NAME)).get("text") is not None for _ in range(3)] == [True, True, False]
    assert "begin another one" in (await stage.talk(NAME))["error"]
    assert (await stage.talk(NAME, "another"))["text"]
    assert "2 conversations already" in (await stage.talk(NAME, "a third"))["error"]


async def test_a_conversation_of_the_chat_has_one_turn_at_a_time(stage: Stage) -> None:
    answers = await asyncio.gather(*(stage.talk(NAME) for _ in range(3)))
    assert sorted("text" in each for each in answers) == [False, False, True]
    assert [each["error"] for each in answers if "error" in each] == [
        "This conversation has a turn under way: wait for its answer."
    ] * 2


async def test_a_turn_of_the_chat_has_a_trace_and_a_thread_of_its_own(stage: Stage) -> None:
    reply = await stage.talk(NAME, "me")
    assert len(reply["trace_id"]) == 32
    assert (await stage.talk(QUESTION, "somebody else"))["text"] != KNOWN
    assert await stage.ask("chat-me") == KNOWN  # the id that the page shows


async def test_a_turn_that_a_restart_cuts_off_is_told_in_a_sentence(stage: Stage) -> None:
    await stage.press("hold_lock")
    talking = asyncio.create_task(stage.talk(NAME))
    await until(lambda: stage.count("pool_connections", state="in_use") > 0)
    await stage.press("restart_app")
    assert (await talking)["error"].endswith((".", "again."))


async def test_only_servers_of_the_demo_have_buttons(
    own_postgres: EmbeddedPostgres, own_redis: EmbeddedRedis
) -> None:
    async with staged(own_postgres, own_redis, own=()) as stage:
        names = {each["name"] for each in (await stage.hello())["actions"]}
        assert names == {"squeeze_pool", "restart_app"}
        await stage.talk(NAME, "me")
        assert await stage.ask() == KNOWN
    with psycopg.connect(own_postgres.url) as connection:  # nothing stays on a user's servers
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)


async def test_before_the_story_has_ended_buttons_and_chat_say_so(database: str, redis_url: str) -> None:
    with observe(lost=pytest.fail) as observed:
        page = DemoPage(Console(file=StringIO()), observed, own={"PostgreSQL", "Redis"})
        for asking in (page.live.actions[0].run(), page.chat.answer("me", NAME)):
            with pytest.raises(GlasspointError, match="The story is being told"):
                await asking
        assert set(page.faults.states().values()) == {"not now"}


async def test_the_page_tells_the_story_that_the_terminal_tells(database: str, redis_url: str) -> None:
    servers, out = Servers(database, redis_url, own_postgres=None, own_redis=None), StringIO()
    told: list[tuple[str, str]] = []
    with observe(lost=pytest.fail) as observed:
        assert await tell_story(
            Console(file=out, width=80),
            servers,
            observed,
            RecallingChatModel(),
            thread_id="told",
            mark=lambda text, level: told.append((text, level)),
        )
    printed = " ".join(out.getvalue().split())
    assert re.findall("── (. of 6 · [^·]+?) (?:·|Nobody|Fresh|Redis was flushed)", printed) == [
        text.partition(".")[0].partition(" · skipped")[0] for text, _ in told if " of 6 · " in text
    ]
    assert [text for text, level in told if level == "good"][:2] == [
        "Act 1: as expected, L1 says absent.",
        "Act 2: as expected, L1 says hit.",
    ]
    assert told[-1] == ("The name was remembered in all 3 turns.", "good")
    assert told[-1][0] in printed
    assert not any(NAME in text for text, _ in told)


# ---------------------------------------------------------------- the command


def address_of(demo: Running) -> str:
    return demo.wait_for(r"(http://127\.0\.0\.1:\d+/live#token=[\w-]{16,})$")[1]


def press(address: str, name: str, **options: Any) -> httpx.Response:
    url, _, token = address.partition("/live#token=")
    headers = {"X-Glasspoint-Token": token}
    return httpx.post(f"{url}/live/actions/{name}", json={}, headers=headers, **options)


def test_a_page_without_live_is_wrong_usage() -> None:
    assert glasspoint("demo", "--open", "--no-live").returncode == 2


@pytest.mark.parametrize("is_starting", [False, True])
def test_ctrl_c_leaves_nothing_whatever_was_pressed(is_starting: bool) -> None:
    with running_glasspoint("demo", "--port", "0") as demo:
        address = address_of(demo)
        demo.wait_for(r"^[1-9]\d* turns, ")
        servers = demo.servers()
        folders = {each for server in servers for each in server.cmdline() if "/glasspoint-" in each}
        if is_starting:
            for each in ("kill_redis", "stop_postgres"):
                assert "said" in press(address, each).json()
            with suppress(httpx.TimeoutException):  # it is being started when Ctrl-C comes
                press(address, "start_postgres", timeout=0.01)
        else:
            for each in ("hold_lock", "squeeze_pool", "kill_redis"):
                assert "said" in press(address, each).json()
        servers += demo.servers()
        assert demo.end(signal.SIGINT) == (0, "")
    assert_gone(servers)
    assert folders
    assert not [each for each in folders if Path(each).exists()]
    assert_fits(demo.seen, columns=80)


def test_a_demo_in_the_background_of_a_script_ends_with_sigterm() -> None:
    """A shell without job control lets commands in the background ignore SIGINT."""
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with running_afresh("demo", "--no-live", "--once") as demo:
            signal.signal(signal.SIGINT, ignored)
            demo.wait_for("1 of 6")
            servers = demo.servers()
            status, errors = demo.end(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert status == 130
    assert errors.strip() == "Interrupted; everything that was started is gone."
    assert servers
    assert_gone(servers)
