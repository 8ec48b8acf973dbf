"""Who may ask for the live page, and who may press a button: every rule has a request that it refuses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from glasspoint.errors import ConfigurationError
from glasspoint.settings import Settings
from glasspoint.telemetry.http import serve_telemetry, telemetry_app
from glasspoint.telemetry.live import Action, Live, Reply, hub
from live import KINDS, Kind, serving

TOKEN = "a-token-that-nobody-guesses"
SCRIPT = "/live/static/main.js"
POSTS = ("/live/actions/flush_redis", "/live/chat")
RIGHT = {"X-Glasspoint-Token": TOKEN, "Content-Type": "application/json"}
CHAT = b'{"thread": "t", "text": "hello"}'


class Pressed:
    """Buttons and a chat that count how often they were used."""

    def __init__(self) -> None:
        self.times = 0

    async def press(self) -> str:
        self.times += 1
        return "Redis was flushed."

    async def talk(self, thread_id: str, text: str) -> Reply:
        self.times += 1
        return Reply(f"{thread_id} said {text}", "0" * 31 + "1")

    def live(self, **options: Any) -> Live:
        options.setdefault("token", TOKEN)
        action = Action("flush_redis", "Flush Redis", "All cached state is lost", self.press, "Redis")
        return Live(actions=[action], chat=self.talk, **options)


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLASSPOINT_LIVE", "GLASSPOINT_LIVE_HOSTS", "GLASSPOINT_LIVE_PEERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pressed() -> Pressed:
    return Pressed()


def client(live: Live | bool, registry: CollectorRegistry, came_from: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(telemetry_app(registry, live=live), client=(came_from, 50_000))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9464")


@pytest.fixture
async def page(registry: CollectorRegistry, pressed: Pressed) -> AsyncIterator[httpx.AsyncClient]:
    async with client(pressed.live(), registry) as found:
        yield found


@pytest.mark.parametrize("path", ["/live", "/live/", "/live/events", SCRIPT, "/live/turns/x", "/livex"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_service_has_no_live_page_unless_it_asks_for_one(
    registry: CollectorRegistry, kind: Kind, path: str
) -> None:
    with serving(kind, registry, live=None) as url:
        assert httpx.get(f"{url}{path}").status_code == 404


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:9464",
        "127.0.0.9:9464",
        "localhost",
        "LOCALHOST:1",
        "[::1]",
        "[::1]:9464",
    ],
)
async def test_this_machine_is_served_under_its_own_names(page: httpx.AsyncClient, host: str) -> None:
    assert (await page.get(SCRIPT, headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9464",
        "127.0.0.1.evil.example",
        "localhost.evil.example:9464",
        "localhost.",
        "127.0.0.1, evil.example",
        "evil.example@127.0.0.1",
        "[::1].evil.example",
        "[::1",
        "::1",
        "[::ffff:10.0.0.1]",
        "127.0.0.1:evil",
        "2130706433",
        "0.0.0.0:9464",
        "10.0.0.1",
        "",
    ],
)
async def test_a_name_that_was_rebound_to_this_machine_is_refused(page: httpx.AsyncClient, host: str) -> None:
    """DNS rebinding: the browser sends the attacker's name, because it believes to talk to the attacker."""
    for path in ("/live", "/live/events", SCRIPT, "/live/turns/1"):
        response = await page.get(path, headers={"Host": host})
        assert response.status_code == 421, path
        assert "GLASSPOINT_LIVE_HOSTS" in response.text
    for path in POSTS:
        assert (await page.post(path, headers=RIGHT | {"Host": host}, content=CHAT)).status_code == 421


def test_a_second_host_header_does_not_count(registry: CollectorRegistry) -> None:
    with serving("thread", registry) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0)) as wire:
            wire.sendall(f"GET {SCRIPT} HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n".encode())
            assert b" 421 " in wire.recv(4096).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    "came_from", ["10.0.0.9", "192.168.1.1", "::ffff:10.0.0.9", "2001:db8::1", "testclient"]
)
async def test_another_machine_is_refused_unless_hosts_are_named(
    registry: CollectorRegistry, came_from: str
) -> None:
    async with client(True, registry, came_from) as app:
        response = await app.get(SCRIPT)
        assert response.status_code == 403
        assert "GLASSPOINT_LIVE_HOSTS" in response.text


@pytest.mark.parametrize("came_from", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
async def test_this_machine_has_several_addresses(registry: CollectorRegistry, came_from: str) -> None:
    async with client(True, registry, came_from) as app:
        assert (await app.get(SCRIPT)).status_code == 200


async def test_a_client_of_unknown_origin_is_another_machine(registry: CollectorRegistry) -> None:
    app = telemetry_app(registry, live=True)

    async def without_client(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "client": None}, receive, send)

    transport = httpx.ASGITransport(without_client)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as asking:
        assert (await asking.get(SCRIPT)).status_code == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("telemetry.example.com", 200),
        ("Telemetry.Example.com:8443", 200),
        ("10.0.0.7", 200),
        ("[2001:db8::7]:80", 200),
        ("evil.example", 421),
        ("localhost", 421),
        ("127.0.0.1", 421),
    ],
)
async def test_named_hosts_are_served_to_everybody_under_these_names_alone(
    registry: CollectorRegistry, host: str, status: int
) -> None:
    live = Live(hosts=("Telemetry.example.com", "10.0.0.7", "2001:db8::7"))
    async with client(live, registry, "10.0.0.9") as app:
        assert (await app.get(SCRIPT, headers={"Host": host})).status_code == status


async def test_hosts_are_named_by_the_environment_too(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSPOINT_LIVE", "1")
    monkeypatch.setenv("GLASSPOINT_LIVE_HOSTS", "a.example, b.example")
    transport = httpx.ASGITransport(telemetry_app(registry), client=("10.0.0.9", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://b.example") as app:
        assert (await app.get(SCRIPT)).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/live", "/live/nothing", "/live/events?peers=x", SCRIPT, "/live/turns/1"])
def test_every_answer_forbids_what_the_page_does_not_need(
    registry: CollectorRegistry, kind: Kind, path: str
) -> None:
    with serving(kind, registry) as url:
        headers = httpx.get(f"{url}{path}").headers
    policy = headers["content-security-policy"]
    for part in (
        "default-src 'none'",
        "script-src 'self';",
        "style-src 'self';",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ):
        assert part in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize("name", ["localhost:9464", "127.0.0.1:9464"])
async def test_no_origin_is_allowed_to_read_answers(page: httpx.AsyncClient, name: str) -> None:
    """Not even an answer to a preflight."""
    headers = {"Host": name, "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (
        await page.options("/live/chat", headers=headers),
        await page.get(SCRIPT, headers={"Host": name, "Origin": "https://evil.example"}),
    ):
        assert response.status_code in (403, 405)
        assert not [each for each in response.headers if each.startswith("access-control-")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/live/events", SCRIPT, "/live/turns/1"])
async def test_another_page_in_the_same_browser_cannot_load_it(
    page: httpx.AsyncClient, site: str, path: str
) -> None:
    """Otherwise it could take the places of all viewers."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert (await page.get(path, headers=headers)).status_code == 403
    framed = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert (await page.get(path, headers=framed)).status_code == 403


async def test_a_link_may_lead_to_the_page(page: httpx.AsyncClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await page.get(SCRIPT, headers=link)).status_code == 200
    assert (await page.get("/live/events", headers=link)).status_code == 403


@pytest.mark.parametrize("path", POSTS)
async def test_the_page_itself_presses_buttons_and_talks(
    page: httpx.AsyncClient, path: str, pressed: Pressed
) -> None:
    headers = RIGHT | {"Origin": "http://127.0.0.1:9464", "Sec-Fetch-Site": "same-origin"}
    response = await page.post(path, headers=headers, content=CHAT)
    assert response.status_code == 200
    assert response.json() in (
        {"said": "Redis was flushed."},
        {"text": "t said hello", "trace_id": "0" * 31 + "1", "note": ""},
    )
    assert pressed.times == 1


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"X-Glasspoint-Token": "another-token-of-that-length"}, 403),
        ({"X-Glasspoint-Token": TOKEN[:-1]}, 403),
        ({"X-Glasspoint-Token": f"{TOKEN},{TOKEN}"}, 403),
        ({"X-Glasspoint-Token": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:80"}, 403),
        ({"Origin": "http://127.0.0.1:9464.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9464/x"}, 403),
        ({"Origin": "file://127.0.0.1:9464"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": ""}, 415),
    ],
)
async def test_whoever_is_not_the_page_presses_nothing(
    page: httpx.AsyncClient, path: str, changed: dict[str, str], status: int, pressed: Pressed
) -> None:
    response = await page.post(path, headers=RIGHT | changed, content=CHAT)
    assert response.status_code == status
    assert pressed.times == 0


@pytest.mark.parametrize("path", POSTS)
async def test_without_a_token_nothing_can_be_pressed(
    registry: CollectorRegistry, path: str, pressed: Pressed
) -> None:
    async with client(pressed.live(token=None), registry) as app:
        for token in ("", "None", TOKEN):
            headers = RIGHT | {"X-Glasspoint-Token": token}
            assert (await app.post(path, headers=headers, content=CHAT)).status_code == 403
    assert pressed.times == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_is_small(registry: CollectorRegistry, kind: Kind, pressed: Pressed) -> None:
    with serving(kind, registry, pressed.live()) as url:
        small = CHAT.ljust(4096)
        assert httpx.post(f"{url}/live/chat", headers=RIGHT, content=small).status_code == 200
        assert httpx.post(f"{url}/live/chat", headers=RIGHT, content=small + b" ").status_code == 413
        assert pressed.times == 1
        # Without a length, as long as the client likes.
        endless = httpx.post(f"{url}/live/chat", headers=RIGHT, content=iter([b" " * 4000] * 3))
        assert endless.status_code in (411, 413)
    assert pressed.times == 1


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "five", "99999999999999999999", "٣"])
def test_a_length_that_is_none_is_refused(registry: CollectorRegistry, length: str, pressed: Pressed) -> None:
    with serving("thread", registry, pressed.live()) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0)) as wire:
            head = f"POST /live/chat HTTP/1.1\r\nHost: localhost\r\nX-Glasspoint-Token: {TOKEN}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            wire.sendall(head.encode())
            assert wire.recv(4096).split()[1] in (b"411", b"413")
    assert pressed.times == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"x"',
        b"{",
        b"[" * 4000,
        b"\xff",
        b'{"thread": "t"}',
        b'{"thread": 1, "text": "x"}',
        b'{"thread": "", "text": "x"}',
        b'{"thread": "t", "text": " "}',
        b'{"thread": "' + b"t" * 201 + b'", "text": "x"}',
    ],
)
async def test_a_message_that_is_none_is_refused(
    page: httpx.AsyncClient, body: bytes, pressed: Pressed
) -> None:
    response = await page.post("/live/chat", headers=RIGHT, content=body)
    assert response.status_code == 400
    assert "thread" in response.json()["error"]
    assert pressed.times == 0


@pytest.mark.parametrize(
    "name",
    [
        "../options.py",
        "../../http.py",
        "..%2foptions.py",
        "%2e%2e/options.py",
        "vendor/../../options.py",
        "/etc/passwd",
        "//etc/passwd",
        "C:\\x",
        "vendor",
        "vendor/",
        "vendor/uplot",
        "",
        ".",
        "main.js\0",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_other_file_can_be_asked_for(registry: CollectorRegistry, kind: Kind, name: str) -> None:
    """Sent as it is: a client would tidy the path."""
    with serving(kind, registry) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 0)) as wire:
            path = f"/live/static/{name}".replace("\0", "%00")
            wire.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert wire.recv(4096).split()[1] == b"404"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/live", "GET, HEAD"),
        ("PUT", SCRIPT, "GET, HEAD"),
        ("DELETE", "/live/events", "GET"),
        ("HEAD", "/live/events", "GET"),
        ("POST", "/live/turns/1", "GET, HEAD"),
        ("GET", "/live/chat", "POST"),
        ("HEAD", "/live/actions/flush_redis", "POST"),
        ("GET", "/live/actions/flush_redis", "POST"),
    ],
)
def test_a_route_has_its_methods(
    registry: CollectorRegistry, kind: Kind, method: str, path: str, allow: str, pressed: Pressed
) -> None:
    with serving(kind, registry, pressed.live()) as url:
        response = httpx.request(method, f"{url}{path}", headers=RIGHT)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert pressed.times == 0


@pytest.mark.parametrize("kind", KINDS)
def test_head_has_no_body(registry: CollectorRegistry, kind: Kind) -> None:
    with serving(kind, registry) as url:
        response = httpx.head(f"{url}{SCRIPT}")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 1000
    assert response.content == b""


async def test_a_button_that_is_unknown_is_not_found(page: httpx.AsyncClient) -> None:
    for name in ("", "other", "../chat", "flush_redis/x"):
        assert (await page.post(f"/live/actions/{name}", headers=RIGHT, content=b"{}")).status_code in (
            404,
            400,
        )


async def test_a_button_is_pressed_once_at_a_time(registry: CollectorRegistry) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slowly() -> str:
        begun.set()
        await may_end.wait()
        return "It is done."

    live = Live(actions=[Action("slow", "Slow", "Takes its time", slowly)], token=TOKEN)
    async with client(live, registry) as app:
        first = asyncio.create_task(app.post("/live/actions/slow", headers=RIGHT, content=b"{}"))
        await begun.wait()
        second = await app.post("/live/actions/slow", headers=RIGHT, content=b"{}")
        assert (second.status_code, "under way" in second.json()["error"]) == (409, True)
        may_end.set()
        assert (await first).json() == {"said": "It is done."}
        assert (await app.post("/live/actions/slow", headers=RIGHT, content=b"{}")).status_code == 200


async def test_a_press_is_told_before_what_follows_from_it(registry: CollectorRegistry) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    timeline = hub(registry).watch.timeline

    async def kill() -> str:
        hub(registry).mark("breaker", "Redis does not answer", "warning")
        begun.set()
        await may_end.wait()
        return "Redis was killed."

    actions = [Action("kill", "Kill Redis", "SIGKILL", kill, doing="Redis is being killed …")]
    async with client(Live(actions=actions, token=TOKEN), registry) as app:
        pressed = asyncio.create_task(app.post("/live/actions/kill", headers=RIGHT, content=b"{}"))
        await begun.wait()
        seen, last = timeline.since(0)  # a page has seen it
        assert [(each["level"], each["text"]) for each in seen] == [
            ("warning", "Redis is being killed …"),
            ("warning", "Redis does not answer"),
        ]
        may_end.set()
        await pressed
        assert [each["text"] for each in timeline.since(last)[0]] == ["Redis was killed."]


async def test_what_is_done_at_once_is_one_line_in_the_place_of_the_press(
    registry: CollectorRegistry,
) -> None:
    async def start() -> str:
        hub(registry).mark("breaker", "Redis answers")
        return "Redis is back."

    actions = [Action("start", "Start Redis", "It starts", start, level="info")]
    async with client(Live(actions=actions, token=TOKEN), registry) as app:
        await app.post("/live/actions/start", headers=RIGHT, content=b"{}")
    lines, _ = hub(registry).watch.timeline.since(0)
    assert [(each["level"], each["text"]) for each in lines] == [
        ("info", "Redis is back."),
        ("info", "Redis answers"),
    ]


async def test_an_error_s_text_is_shown_only_if_it_is_ours(registry: CollectorRegistry) -> None:
    """The text of another error may quote what was said."""
    errors: dict[str, Exception] = {
        "ours": ConfigurationError("Redis is stopped already."),
        "others": ValueError("secret content"),
    }

    def failing(error: Exception) -> Any:
        async def fail() -> str:
            raise error

        return fail

    actions = [Action(name, name, "It fails", failing(error)) for name, error in errors.items()]
    async with client(Live(actions=actions, token=TOKEN), registry) as app:
        ours, others = [
            (await app.post(f"/live/actions/{name}", headers=RIGHT, content=b"{}")).json() for name in errors
        ]
    assert ours == {"error": "Redis is stopped already."}
    assert others == {"error": "It failed (ValueError)."}
    lines, _ = hub(registry).watch.timeline.since(0)
    assert "secret content" not in str(lines)
    assert [(line["kind"], line["level"]) for line in lines] == [("fault", "error")] * 2


async def test_buttons_run_on_the_loop_on_which_the_server_was_started(registry: CollectorRegistry) -> None:
    """What they use, a saver for example, belongs to that loop."""
    loops: list[Any] = []

    async def press() -> str:
        loops.append(asyncio.get_running_loop())
        return "Done."

    live = Live(actions=[Action("press", "Press", "Does nothing", press)], token=TOKEN)
    with serve_telemetry(0, registry=registry, live=live) as server:
        async with httpx.AsyncClient(base_url=server.url) as app:
            response = await app.post("/live/actions/press", headers=RIGHT, content=b"{}")
    assert response.json() == {"said": "Done."}
    assert loops == [asyncio.get_running_loop()]


def test_outside_of_a_loop_a_button_has_a_loop_of_its_own(
    registry: CollectorRegistry, pressed: Pressed
) -> None:
    with serve_telemetry(0, registry=registry, live=pressed.live()) as server:
        response = httpx.post(f"{server.url}/live/actions/flush_redis", headers=RIGHT, content=b"{}")
    assert response.json() == {"said": "Redis was flushed."}
    assert pressed.times == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": "a.example"},
        {"hosts": ("a.example:80",)},
        {"hosts": ("https://a.example",)},
        {"hosts": ("*",)},
        {"hosts": ("",)},
        {"peers": {"here": "http://a/metrics"}},
        {"peers": {"a b": "http://a/metrics"}},
        {"peers": {"a": "file:///etc/passwd"}},
        {"peers": {"a": "ftp://a/metrics"}},
        {"peers": {"a": "http://user:password@a/metrics"}},
        {"peers": {"a": "http:///metrics"}},
        {"peers": {"a": "http://a:99999/metrics"}},
        {"peers": {"a": "http://a/ HTTP/1.1\r\nX: y"}},
        {"peers": {f"p{i}": "http://a/metrics" for i in range(17)}},
        {"max_viewers": 0},
        {"max_viewers": True},
        {"token": "short"},
        {"actions": [Action("A b", "", "", lambda: asyncio.sleep(0, ""))]},
        {"actions": [Action("a", "", "", lambda: asyncio.sleep(0, ""))] * 2},
    ],
)
def test_a_choice_that_cannot_be_used_is_refused_at_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Live(**wrong)
    assert "password" not in str(refused.value).replace("a user or a password", "")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GLASSPOINT_LIVE", "maybe"),
        ("GLASSPOINT_LIVE_HOSTS", "http://a.example"),
        ("GLASSPOINT_LIVE_PEERS", "http://a:9464/metrics"),
        ("GLASSPOINT_LIVE_PEERS", "a=nowhere"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    registry: CollectorRegistry, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSPOINT_LIVE", "1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=r"GLASSPOINT_LIVE|URL of the peer a"):
        serve_telemetry(0, registry=registry)


@pytest.mark.parametrize(("value", "is_served"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_environment_turns_it_on(
    registry: CollectorRegistry, value: str, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLASSPOINT_LIVE", value)
    with serve_telemetry(0, registry=registry) as server:
        assert httpx.get(f"{server.url}{SCRIPT}").is_success == is_served
    with serve_telemetry(0, registry=registry, live=False) as server:
        assert httpx.get(f"{server.url}{SCRIPT}").status_code == 404


def test_a_misspelt_variable_is_named_in_the_log(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("GLASSPOINT_LIVE_HOST", "a.example")
    serve_telemetry(0, registry=registry).close()
    assert "GLASSPOINT_LIVE_HOST is not read: did you mean GLASSPOINT_LIVE_HOSTS?" in caplog.text


def test_a_right_variable_is_no_misspelt_setting_of_the_saver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("GLASSPOINT_LIVE", "GLASSPOINT_LIVE_HOSTS", "GLASSPOINT_LIVE_PEERS"):
        monkeypatch.setenv(name, "1")
    Settings.from_environment()
    assert not caplog.text
