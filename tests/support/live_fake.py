"""Plays the server of the live page without a saver, so that a test chooses what the page has to show.

`python tests/support/live_fake.py --scenario fault --port 9464` serves it; tests start it in a thread. It
sends what the real server sends, in the same form and with the same headers.
"""

from __future__ import annotations

import argparse
import json
import mimetypes
import random
import threading
import time
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from places import SRC

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = SRC / "telemetry" / "live" / "page"
TOKEN = "a-token-of-the-fake"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HOSTILE = (
    "</script><img src=x onerror=\"window.owned='img'\">",
    "\"'><svg onload=window.owned='svg'>",
    "javascript:window.owned='link'",
    "__proto__",
    "\u202e\u2028 a name that is wider than any column of the page would ever like it to be, and goes on",
)
Scenario = Literal["calm", "fault", "quiet", "hostile", "peers", "empty"]

ACTIONS = (
    (
        "flush_redis",
        "Flush Redis",
        "All cached state is gone. Each conversation's next read is a miss.",
        "Redis",
    ),
    ("kill_redis", "Kill Redis", "SIGKILL. PostgreSQL answers alone, and the breaker opens.", "Redis"),
    ("restore_redis", "Start Redis from an old snapshot", "It holds old states. None is believed.", "Redis"),
    ("stop_postgres", "Stop PostgreSQL", "Conversations go on in Redis alone.", "PostgreSQL"),
    ("start_postgres", "Start PostgreSQL", "What was written meanwhile is drained into it.", "PostgreSQL"),
    ("hold_lock", "Hold a lock for 5 s", "Writes to one table wait.", "PostgreSQL"),
    ("squeeze_pool", "Squeeze the pool", "Two connections for everybody: callers wait.", "Pool"),
)


class World:
    """A believable application: every call of `second` is one second of it."""

    def __init__(self, scenario: Scenario, start: float) -> None:
        self.scenario, self.now = scenario, start
        self.random = random.Random(7)
        self.tick = 0
        self.lines: list[dict[str, Any]] = []
        self.epochs = 0
        self.journal = 0
        self.turns: dict[str, list[dict[str, Any]]] = {}
        self.kept: list[dict[str, Any]] = []
        self.names = list(HOSTILE) if scenario == "hostile" else [f"demo-{n}" for n in range(1, 9)]
        if scenario not in ("empty", "quiet"):
            self.mark("saver", "info", "The saver is open, in the tier cached.")

    def mark(self, kind: str, level: str, text: str) -> None:
        if self.scenario == "hostile":
            text = f"{text} {self.random.choice(HOSTILE)}"
        self.lines.append({"at": self.now, "kind": kind, "level": level, "saver": "default", "text": text})

    def second(self) -> dict[str, Any]:
        """Go on by a second, and return its figures."""
        self.now += 1
        self.tick += 1
        if self.scenario in ("quiet", "empty"):
            return self._figures(0, {}, 0, {}, "cached", "closed")
        redis, postgres = True, True
        if self.scenario == "fault":
            redis = not 200 <= self.tick < 245
            postgres = self.tick < 270
            told = {
                130: ("fault", "warning", "Redis was flushed: 412 keys are gone."),
                200: ("fault", "error", "Redis was killed (SIGKILL)."),
                201: (
                    "breaker",
                    "error",
                    "The breaker is open: Redis does not answer. PostgreSQL answers alone.",
                ),
                215: ("breaker", "info", "The breaker lets one call through, to see whether Redis answers."),
                245: ("fault", "info", "Redis was started, from an old snapshot."),
                246: (
                    "epoch",
                    "warning",
                    "Redis is another server process than before: nothing of before is believed.",
                ),
                247: ("breaker", "good", "The breaker is closed: Redis is asked again."),
                249: ("journal", "good", "31 scopes were dropped from Redis, as the journal said."),
                270: ("fault", "error", "PostgreSQL was stopped."),
                272: (
                    "tier",
                    "error",
                    "cached -> redis: PostgreSQL cannot be reached. Conversations go on in Redis.",
                ),
            }.get(self.tick)
            if told:
                self.mark(*told)
        tier = "cached" if postgres or self.tick < 272 else "redis"
        reads = 42 + 9 * self.random.random() + 12 * (self.tick % 60 < 30)
        if tier == "redis":
            results = {"redis": reads}
        elif not redis:
            results = {"unavailable": reads}
            self.journal = min(31, self.journal + 1)
        else:
            cold = (
                max(0.0, 1 - (self.tick - 130) / 12) if self.scenario == "fault" and self.tick >= 130 else 0
            )
            cold = max(
                cold, 1 - (self.tick - 247) / 12 if self.scenario == "fault" and self.tick > 247 else 0
            )
            missed = 0.03 + 0.8 * cold
            results = {
                "hit": reads * (1 - missed - 0.05),
                "miss": reads * missed,
                "busy": reads * 0.03,
                "absent": reads * 0.02,
                "incomplete": 0.0,
            }
            self.journal = 0
        if self.tick == 246 and self.scenario == "fault":
            self.epochs += 1
        writes = 31 + 6 * self.random.random()
        if tier == "redis":
            wrote = {"redis": writes}
        elif not redis:
            wrote = {"journalled": writes}
        else:
            wrote = {"announced": writes * 0.22, "covered": writes * 0.77, "contested": writes * 0.01}
        breaker = "closed" if redis else ("half_open" if self.tick % 15 == 0 else "open")
        return self._figures(reads, results, writes, wrote, tier, breaker)

    def _figures(
        self,
        reads: float,
        results: dict[str, float],
        writes: float,
        wrote: dict[str, float],
        tier: str,
        breaker: str,
    ) -> dict[str, Any]:
        def took(rate: float, p50: float, p99: float) -> dict[str, Any]:
            if not rate:
                return {"rate": 0.0, "p50": None, "p99": None}
            jitter = 0.8 + 0.5 * self.random.random()
            return {"rate": rate, "p50": p50 * jitter, "p99": p99 * jitter}

        tried = sum(results.get(each, 0) for each in ("hit", "miss", "busy", "incomplete", "unavailable"))
        missed, down = results.get("miss", 0), bool(results.get("unavailable"))
        said = HOSTILE[0] if self.scenario == "hostile" else "4f1c09ab7d21"
        return {
            "savers": [HOSTILE[1] if self.scenario == "hostile" else "default"],
            "reads": {
                "rate": reads,
                "results": results,
                "hit_ratio": results.get("hit", 0) / tried if tried else None,
            },
            "hit": took(results.get("hit", 0), 0.0006, 0.0024),
            "miss": took(missed, 0.0034, 0.019),
            "writes": {"results": wrote, **took(writes, 0.0019, 0.009 if not down else 0.03)},
            "l1": None if tier == "memory" else took(0 if down else reads + 0.4 * writes, 0.0003, 0.0011),
            "l2": took(0 if tier == "redis" else missed + writes, 0.0012, 0.007),
            "warm_ups": {
                "results": {"stored": missed * 0.96, "fenced": missed * 0.04} if missed else {},
                **took(missed, 0.0005, 0.002),
            },
            "errors": {},
            "pool": {
                "in_use": min(10, int(2 + (8 if down else 3) * self.random.random())),
                "idle": 3,
                "max": 10,
                "waiting": 4 if down and self.tick % 3 else 0,
            },
            "redis_pool": {"in_use": 2, "idle": 6},
            "tier": tier,
            "breaker": None if tier == "memory" else breaker,
            "identity": said,
            "no_identity_because": "",
            "epoch_changes": self.epochs,
            "identity_changes": 0,
            "open_bursts": int(3 * self.random.random()) if reads else 0,
            "journal_pending": self.journal,
            "quarantined": 0,
            "undrained_threads": {"redis": 8} if tier == "redis" else {},
            "forks": 0,
            "turns": {"outcomes": {"ok": reads / 3.2}, **took(reads / 3.2, 0.021, 0.09)},
            "process": {"cpu": 0.07 + 0.05 * self.random.random(), "rss": 1.21e8},
        }

    def conversation(self) -> dict[str, Any]:
        """Let one conversation go on by a turn."""
        thread = self.random.choice(self.names)
        turns = self.turns.setdefault(thread, [])
        from_l2 = self.random.random() < 0.2
        asked = self.random.random() < 0.12
        turns.append(
            {
                "trace_id": f"{self.random.getrandbits(128):032x}",
                "number": (turns[-1]["number"] if turns else 0) + 1,
                "at": self.now,
                "ms": 8 + 90 * self.random.random() ** 3 + 20 * from_l2,
                "outcome": "interrupted" if asked else "error" if self.random.random() < 0.04 else "ok",
                "reads": {"l1": 0 if from_l2 else 2, "l2": 2 if from_l2 else 0},
                "interrupts": ["raised"] if asked else [],
                "follows": turns[-1]["trace_id"] if turns else None,
            }
        )
        del turns[:-20]
        agent = HOSTILE[2] if self.scenario == "hostile" else "concierge"
        return {"thread": thread, "agent": agent, "turns": turns}

    def calls(self, number: int) -> list[dict[str, Any]]:
        """Return the last calls."""
        found = []
        for each in range(number):
            op = self.random.choice(("get_tuple", "put", "put_writes", "put_writes"))
            read = op == "get_tuple"
            result = (
                self.random.choices(("hit", "miss", "busy", "absent"), (88, 6, 3, 3))[0]
                if read
                else "covered"
            )
            failed = self.random.random() < 0.01
            found.append(
                {
                    "at": self.now + each / max(number, 1),
                    "thread": self.random.choice([*self.names, None]),
                    "ns": self.random.choice(("", "", "summarise"))
                    if self.scenario != "hostile"
                    else HOSTILE[3],
                    "op": op,
                    "result": result,
                    "level": ("l1" if result == "hit" else "l2") if read else None,
                    "ms": 0.5 + 3 * self.random.random() ** 4 * (1 if result == "hit" else 8),
                    "outcome": "error" if failed else "ok",
                    "error": (HOSTILE[0] if self.scenario == "hostile" else "PoolTimeout")
                    if failed
                    else None,
                    "saver": "default",
                    "trace_id": f"{self.random.getrandbits(128):032x}"
                    if self.random.random() < 0.8
                    else None,
                }
            )
        return found


RESTING_SECONDS = 4.0
"""How often a fake says something that rests: less often, and its page would take it for dead."""


class Fake:
    """The server, and what a test may do to it."""

    def __init__(
        self,
        scenario: Scenario,
        *,
        demo: bool = True,
        rate: int = 12,
        port: int = 0,
        prefix: str = "",
        beat: float = 1.0,
    ) -> None:
        self.scenario, self.demo, self.rate, self.prefix, self.beat = scenario, demo, rate, prefix, beat
        self.refuses: tuple[int, str] | None = None
        self.bye: str | None = None
        self.done: dict[str, str] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.viewers = 0
        self.sent = 0
        self.forgets_turns = False
        self.loses_turns = False
        self.gives_no_connection = False
        self.redis_is_away = False
        self.a_master_is_away = False
        self.note = ""
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.repeats: tuple[str, str, str] | None = None
        self._told = threading.Condition()
        self._rests = False
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}/live"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.1)

    def wait_for(self, sent: int) -> None:
        """Wait until so many events have been sent."""
        with self._told:
            assert self._told.wait_for(lambda: self.sent >= sent, timeout=60)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Be so busy as its options say. Afterwards it rests: each figure costs the browser that shows it."""
        self._rest(False)
        try:
            yield
        finally:
            self._rest(True)

    def _rest(self, rests: bool) -> None:
        with self._told:
            self._rests = rests
            self._told.notify_all()

    def _has_rested(self) -> None:
        with self._told:
            self._told.wait_for(lambda: not self._rests, timeout=RESTING_SECONDS)

    def close(self) -> None:
        self.closing.set()
        self._rest(False)
        self._server.shutdown()
        self._server.server_close()

    def play(self, handler: BaseHTTPRequestHandler, chosen: str) -> None:
        number = 0

        def send(event: str, data: Any) -> None:
            nonlocal number
            number += 1
            text = f"id: {number}\nevent: {event}\ndata: {json.dumps(data)}\n\n"
            handler.wfile.write(text.encode())
            handler.wfile.flush()
            with self._told:
                self.sent += 1
                self._told.notify_all()

        peers = [each for each in chosen.split(",") if each]
        if self.scenario == "peers":
            peers = peers or ["worker-a", "worker-b"]
        before = 0 if self.scenario in ("empty",) else 300
        world = World(self.scenario, time.time() - before)
        hostile = self.scenario == "hostile"
        send(
            "hello",
            {
                "version": "0.9.0",
                "pid": 4711,
                "started": world.now,
                "thread_ids": "plain",
                "spans": self.scenario != "quiet",
                "peers": peers,
                "limits": {"feed": 200, "timeline": 500, "conversations": 50},
                "actions": [
                    {"name": name, "label": HOSTILE[0] if hostile else label, "hint": hint, "group": group}
                    for name, label, hint, group in (ACTIONS if self.demo else ())
                ],
                "chat": self.demo,
            },
        )
        history = []
        for _ in range(before):
            figures = world.second()
            history.append({"at": world.now, "sum": figures})
            if world.tick % 12 == 0 and self.scenario not in ("quiet", "empty"):
                world.conversation()
        send("history", {"figures": history})
        send("timeline", {"lines": world.lines})
        send(
            "conversations",
            {
                "conversations": [
                    {"thread": thread, "agent": HOSTILE[2] if hostile else "concierge", "turns": turns}
                    for thread, turns in world.turns.items()
                ]
            },
        )
        shown = len(world.lines)
        marked = set(self.done)
        while not self.closing.is_set() and self.refuses is None:
            self._has_rested()
            if self.bye is not None:
                send("bye", {"reason": self.bye})
                return
            figures = world.second()
            if self.gives_no_connection:
                figures["pool"] = {"in_use": 0, "idle": 0, "max": 10, "waiting": 6}
                figures["errors"] = {"put": 3.0}
            if self.redis_is_away or self.a_master_is_away:
                figures["breaker"] = "open"
            if self.redis_is_away:
                figures["hit"] = {"rate": 0.0, "p50": None, "p99": None}
                figures["reads"] |= {"results": {"unavailable": figures["reads"]["rate"]}, "hit_ratio": 0.0}
            each: dict[str, Any] = {"here": figures}
            for name in peers:
                each[name] = world.second()
            if len(peers) > 1:
                each[peers[-1]] = {"error": "does not answer: connection refused"}
            for name in self.done.keys() - marked:
                world.mark("fault", "warning", f"{name} was done.")
                marked.add(name)
            if self.repeats is not None:
                world.mark(*self.repeats)
            states = dict.fromkeys(self.done, "done")
            if self.scenario == "fault":
                states |= {"stop_postgres": "stopped", "kill_redis": "running"}
            send("figures", {"at": time.time(), "sum": figures, "each": each, "actions": states})
            if len(world.lines) > shown:
                world.lines[-1]["at"] = time.time()
                send("timeline", {"lines": world.lines[shown:]})
                shown = len(world.lines)
            if self.scenario not in ("quiet", "empty"):
                for _ in range(4):
                    world.now = time.time()
                    send(
                        "calls",
                        {
                            "calls": world.calls(min(50, max(1, self.rate // 4))),
                            "skipped": max(0, self.rate - 200),
                        },
                    )
                    if self.closing.wait(self.beat / 4):
                        return
                told = world.conversation()
                if self.loses_turns:
                    told = told | {"turns": told["turns"][::2]}
                send("conversations", {"conversations": [told]})
            elif self.closing.wait(self.beat):
                return


def _handler_of(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, status: int, body: bytes, kind: str, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            fixed = {
                "Content-Security-Policy": POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Cross-Origin-Opener-Policy": "same-origin",
                "Cache-Control": "no-store",
            } | {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in fixed.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            path = unquote(asked.path).removeprefix(fake.prefix)
            fake.asked.append(("GET", self.path, None))
            if path == "/live":
                self._answer(200, (PAGE / "index.html").read_bytes(), "text/html")
            elif path.startswith("/live/static/"):
                file = (PAGE / path.removeprefix("/live/static/")).resolve()
                if not file.is_relative_to(PAGE) or not file.is_file():
                    self._answer(404, b"There is no such file.", "text/plain")
                    return
                kind = mimetypes.guess_type(file.name)[0] or "text/plain"
                self._answer(200, file.read_bytes(), kind)
            elif path == "/live/events":
                self._events(parse_qs(asked.query).get("peers", [""])[0])
            elif path.startswith("/live/turns/"):
                self._turn(path.rpartition("/")[2])
            else:
                self._answer(404, b"Nothing is here.", "text/plain")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            path = self.path.removeprefix(fake.prefix)
            fake.asked.append(("POST", path, body))
            if self.headers.get("X-Glasspoint-Token") != TOKEN:
                status, said = 403, {"error": "The token is missing or wrong."}
            elif path == "/live/chat":
                status, said = (
                    200,
                    {
                        "text": f"You said: {body['text']}",
                        "trace_id": f"{len(fake.asked):032x}",
                        "note": fake.note,
                    },
                )
            elif path == "/live/actions/hold_lock":
                status, said = 409, {"error": "PostgreSQL is stopped, so no lock can be held."}
            else:
                name = path.rpartition("/")[2]
                fake.may_answer.wait(60)
                fake.done[name] = "done"
                status, said = 200, {"said": f"{name} was done."}
            self._answer(status, json.dumps(said).encode(), "application/json")

        def _turn(self, trace_id: str) -> None:
            if fake.forgets_turns:
                self._answer(404, b"This turn is not kept any more.", "text/plain")
                return
            page = f"<!doctype html><title>Turn</title><h1>Turn {trace_id}</h1>"
            policy = "default-src 'none'; frame-ancestors 'self'; sandbox allow-scripts"
            self._answer(
                200,
                page.encode(),
                "text/html",
                Content_Security_Policy=policy,
                Cross_Origin_Opener_Policy="",
            )

        def _events(self, peers: str) -> None:
            if fake.refuses:
                self._answer(fake.refuses[0], fake.refuses[1].encode(), "text/plain")
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.close_connection = True
            fake.viewers += 1
            try:
                fake.play(self, peers)
            except OSError:
                pass
            finally:
                fake.viewers -= 1

    return Handler


@contextmanager
def faked(scenario: Scenario, **options: Any) -> Iterator[Fake]:
    """Serve in a thread."""
    fake = Fake(scenario, **options)
    thread = threading.Thread(target=fake.serve, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.close()
        thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenario", default="calm")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=int, default=12)
    parser.add_argument("--no-demo", action="store_true")
    parser.add_argument("--prefix", default="")
    arguments = parser.parse_args()
    served = Fake(
        arguments.scenario,
        demo=not arguments.no_demo,
        rate=arguments.rate,
        port=arguments.port,
        prefix=arguments.prefix,
    )
    print(f"{served.url}#token={TOKEN}", flush=True)  # noqa: T201
    served.serve()
