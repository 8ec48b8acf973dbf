"""What an application chooses about the live page, and what the environment says about it."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from glasspoint.telemetry.live.timeline import Level

__all__ = ["Action", "Live", "Reply", "chosen"]

_log = logging.getLogger("glasspoint.telemetry")

LIVE, HOSTS, PEERS = "GLASSPOINT_LIVE", "GLASSPOINT_LIVE_HOSTS", "GLASSPOINT_LIVE_PEERS"

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]*[a-z0-9])?")
_PEER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_ACTION_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_MOST_PEERS = 16
_RESERVED = "here"


@dataclass(frozen=True)
class Reply:
    """The answer of the agent that a page's chat talks to.

    Attributes:
        text: What the agent says.
        trace_id: The trace of the turn, as 32 hexadecimal digits, if it is recorded.
        note: What the page says below the answer, for example why the agent has forgotten something.
    """

    text: str
    trace_id: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Action:
    """A button on the page.

    Attributes:
        name: Its name in the address of the request: small letters, digits, `_`, `-`.
        label: The text on the button.
        hint: What happens, in one sentence.
        run: Does it, and returns a sentence for the timeline. If it raises a `GlasspointError`, the page
            shows the text of that error.
        group: The heading above the button.
        doing: What the timeline says at once when the button is pressed, such as "Redis is being killed …":
            what follows from a press is often told before `run` returns. By default the label.
        level: The level of its lines on the timeline: `warning` for a fault, `info` for a recovery.
    """

    name: str
    label: str
    hint: str
    run: Callable[[], Awaitable[str]]
    group: str = ""
    doing: str = ""
    level: Level = "warning"


@dataclass(frozen=True)
class Live:
    """What the live page shows, and to whom.

    Buttons and the chat run on the event loop on which `serve_telemetry` was called. Outside of a loop, each
    call has a loop of its own, in a thread. `telemetry_app` runs them on its server's loop.

    Attributes:
        hosts: Host names under which the page may be asked for, beyond `localhost` and the addresses of this
            machine's loopback. If there are none, only clients on this machine are served. If there are,
            clients from anywhere are: use names only where a proxy asks users for a password. By default
            what `GLASSPOINT_LIVE_HOSTS` says, separated by commas.
        peers: Other processes to follow: name -> URL of their `/metrics`, at most 16. By default what
            `GLASSPOINT_LIVE_PEERS` says, as in `a=http://a:9464/metrics,b=http://b:9464/metrics`.
        actions: Buttons.
        chat: Talks to an agent: thread id and text -> its reply.
        max_viewers: How many pages may be open at once.
        token: The secret that requests must carry that press a button or talk. `None`: none are accepted.
        tells: Returns the state of actions in words: name of the action -> state. It runs once a second.
        keep: Whether to record figures and turns also while no page is open.

    Raises:
        ConfigurationError: A value cannot be used.
    """

    hosts: Sequence[str] | None = None
    peers: Mapping[str, str] | None = None
    actions: Sequence[Action] = ()
    chat: Callable[[str, str], Awaitable[Reply]] | None = None
    max_viewers: int = 8
    token: str | None = None
    tells: Callable[[], Mapping[str, str]] = field(default=dict)
    keep: bool = False

    def __post_init__(self) -> None:
        # Frozen, but complete from here on: what was not given is what the environment says.
        hosts = _split(HOSTS) if self.hosts is None else self.hosts
        if isinstance(hosts, str):
            raise ConfigurationError("hosts is a single text: pass a tuple of host names.")
        object.__setattr__(self, "hosts", tuple(_host(each) for each in hosts))
        peers = _peers_of_the_environment() if self.peers is None else dict(self.peers)
        object.__setattr__(self, "peers", _checked_peers(peers))
        object.__setattr__(self, "actions", tuple(self.actions))
        names = [each.name for each in self.actions]
        if len(set(names)) < len(names) or not all(_ACTION_NAME.fullmatch(each) for each in names):
            raise ConfigurationError(
                "The name of an action is used twice, or holds other characters than small letters, digits, "
                "_ and -."
            )
        if type(self.max_viewers) is not int or self.max_viewers < 1:
            raise ConfigurationError("max_viewers must be a whole number, 1 or more.")
        if self.token is not None and len(self.token) < 16:
            raise ConfigurationError("token is too short: use secrets.token_urlsafe().")


def chosen(live: bool | Live | None) -> Live | None:
    """Return what an application has chosen; `None` if there is to be no live page.

    Args:
        live: As passed to `serve_telemetry` or `telemetry_app`.

    Raises:
        ConfigurationError: A variable of the environment cannot be used.
    """
    if isinstance(live, Live):
        return live
    if live is None:
        _warn_of_misspelt_variables()
        word = os.environ.get(LIVE, "").strip().lower()
        if word not in _YES + _NO:
            raise ConfigurationError(f"{LIVE} cannot be understood: it must be 1 or 0.")
        live = word in _YES
    if not isinstance(live, bool):
        raise ConfigurationError(f"live is a {type(live).__name__}: it must be True, False or a Live.")
    return Live() if live else None


def _split(variable: str) -> list[str]:
    return [each.strip() for each in os.environ.get(variable, "").split(",") if each.strip()]


def _host(name: object) -> str:
    """Return a host name as `Host` has it, in small letters; an IPv6 address has its brackets."""
    text = name.strip().lower() if isinstance(name, str) else ""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
        return f"[{address}]" if address.version == 6 else str(address)
    except ValueError:
        pass
    if not _HOST_NAME.fullmatch(text):
        raise ConfigurationError(
            f"hosts ({HOSTS}) holds what is no host name: write names alone, without a port, a scheme or *, "
            "as in telemetry.example.com,10.0.0.7."
        )
    return text


def _peers_of_the_environment() -> dict[str, str]:
    found = {}
    for each in _split(PEERS):
        name, equals, url = each.partition("=")
        if not equals:
            raise ConfigurationError(f"{PEERS} cannot be understood: write name=URL,name=URL.")
        found[name.strip()] = url.strip()
    return found


def _checked_peers(peers: Mapping[str, str]) -> dict[str, str]:
    if len(peers) > _MOST_PEERS:
        raise ConfigurationError(f"There are {len(peers)} peers: a page follows at most {_MOST_PEERS}.")
    for name, url in peers.items():
        if not _PEER_NAME.fullmatch(name) or name == _RESERVED:
            raise ConfigurationError(
                f"A peer has a name that cannot be used ({PEERS}): letters, digits and _.:- are allowed, "
                f"64 at most, and {_RESERVED!r} is this process."
            )
        if not _is_url(url):
            raise ConfigurationError(
                f"The URL of the peer {name} cannot be used: it must be http://host:port/metrics or "
                "https://…, without a user or a password."
            )
    return dict(peers)


def _is_url(url: object) -> bool:
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and port != 0
    )


def _warn_of_misspelt_variables() -> None:
    known: Collection[str] = (LIVE, HOSTS, PEERS)
    for name in sorted(os.environ):
        if name.startswith(LIVE[:-1]) and name not in known:
            meant = get_close_matches(name, known, 1, 0.8)
            if meant:
                _log.warning("The variable %s is not read: did you mean %s?", name, meant[0])
