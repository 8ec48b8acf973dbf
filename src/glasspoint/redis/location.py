"""Reads a Redis URL and the mode: whether there is one server, a Redis Cluster, or a service of sentinels.

Open this to change which URLs are taken. `client` opens what this has read; `detection` asks a server.

    redis://[user:password@]host[:6379][/db]                        one server (rediss://: with TLS)
    unix:///path                                                    one server, at a unix socket
    redis+sentinel://[user:password@]host[:26379],…/service[/db]    the master that these sentinels name
    redis+cluster://[user:password@]host[:6379],…                   a Redis Cluster that has these nodes

With the mode `cluster` or `sentinel`, a plain URL is read as if its scheme named the mode. The grammar is the
one that other libraries use; redis-py itself knows only the first two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode

from redis.asyncio.connection import parse_url

from glasspoint.errors import ConfigurationError
from glasspoint.model.urls import split_url

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from glasspoint.model.option_types import RedisMode

__all__ = ["EXAMPLES", "PORTS", "SCHEMES", "SENTINEL_EXAMPLE", "Kind", "Location", "locate"]

Kind = Literal["single", "cluster", "sentinel"]

EXAMPLE = "redis://user:password@host:6379/0"
SENTINEL_EXAMPLE = "redis+sentinel://user:password@host1:26379,host2:26379,host3:26379/mymaster/0"
CLUSTER_EXAMPLE = "redis+cluster://user:password@host1:6379,host2:6379"

EXAMPLES: dict[Kind, str] = {
    "single": EXAMPLE,
    "cluster": CLUSTER_EXAMPLE,
    "sentinel": SENTINEL_EXAMPLE,
}
PORTS: dict[Kind, int] = {"single": 6379, "cluster": 6379, "sentinel": 26379}
"""The port that is meant if a URL names none."""

SCHEMES: dict[str, Kind | None] = {
    "redis": None,
    "rediss": None,
    "unix": "single",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
"""Scheme -> the kind that it names; `None`: it names none."""

# An option with this prefix is one of the connections to the sentinels: sentinel_password, for example.
_OF_SENTINELS = "sentinel_"


@dataclass(frozen=True, slots=True)
class Location:
    """Where Redis is. `repr` shows no password.

    Attributes:
        kind: What the URL and the mode name. A `single` server may turn out to be a node of a cluster, or a
            sentinel, if it is asked.
        url: The URL, for a single server.
        hosts: The hosts and ports of the nodes, or of the sentinels.
        service: The name that the sentinels know the master by.
        options: redis-py's options of the connections to Redis: user, password, db, and those in the query.
        sentinel_options: redis-py's options of the connections to the sentinels.
    """

    kind: Kind
    url: str = field(repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def locate(url: object, mode: RedisMode = "auto") -> Location:
    """Read a URL of Redis.

    Args:
        url: The URL.
        mode: What it leads to. `auto`: what its scheme says.

    Raises:
        ConfigurationError: The URL cannot be understood, or contradicts the mode. The message does not repeat
            the URL, which may hold a password.
    """
    named = mode if mode != "auto" else None
    parts = split_url(url, "Redis", SCHEMES, EXAMPLES[named or _hinted(url)], many_hosts=True)
    said = SCHEMES[parts.scheme]
    if said and named and said != named:
        raise ConfigurationError(
            f"The Redis URL begins with {parts.scheme}://, but the mode (CHECKPOINT_REDIS_MODE, redis_mode) "
            f"is {named}: change one of the two. {named} goes with {EXAMPLES[named]}."
        )
    kind: Kind = said or named or "single"
    if kind == "single":
        _check_single(parts)
        return Location(kind, str(url))
    try:
        return _of_many(kind, str(url), parts)
    except ConfigurationError:
        raise
    except Exception as exc:
        raise ConfigurationError(
            f"The Redis URL cannot be understood ({type(exc).__name__}): it must look like "
            f"{EXAMPLES[kind]}, with no options in its query but those of redis-py."
        ) from None


def _hinted(url: object) -> Kind:
    scheme = url.partition("://")[0].lower() if isinstance(url, str) else ""
    return SCHEMES.get(scheme) or "single"


def _check_single(parts: SplitResult) -> None:
    if parts.scheme == "unix":
        return
    hosts = parts.netloc.rpartition("@")[2]
    if "," in hosts:
        raise ConfigurationError(
            f"The Redis URL names several hosts, and does not say whether they are sentinels "
            f"({SENTINEL_EXAMPLE}) or nodes of a cluster ({CLUSTER_EXAMPLE}). Write one of these schemes, or "
            "set CHECKPOINT_REDIS_MODE."
        )
    # redis-py would silently use the database 0, or join the digits of several parts.
    _database(
        parts.path[1:].removesuffix("/"),
        EXAMPLE,
        f" If that is the name of a service of sentinels, write {SENTINEL_EXAMPLE}.",
    )


def _of_many(kind: Kind, url: str, parts: SplitResult) -> Location:
    """Return the location that a URL with one or several hosts names."""
    own, of_sentinels = [], []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if kind == "sentinel" and name.startswith(_OF_SENTINELS):
            of_sentinels.append((name.removeprefix(_OF_SENTINELS), value))
        else:
            own.append((name, value))
    user = parts.netloc.rpartition("@")[0]
    scheme = "rediss" if parts.scheme.startswith("rediss") else "redis"
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{user}{'@' if user else ''}?{urlencode(own)}"))
    sentinel_options: dict[str, Any] = dict(parse_url(f"{scheme}://?{urlencode(of_sentinels)}"))
    hosts = tuple(_host(each, PORTS[kind]) for each in parts.netloc.rpartition("@")[2].split(","))
    if not all(host for host, _ in hosts):
        raise ConfigurationError(f"The Redis URL names no host: it must look like {EXAMPLES[kind]}.")
    service, database = _path(kind, parts.path)
    if database is not None:
        options.setdefault("db", database)
    if kind == "cluster" and options.get("db"):
        raise ConfigurationError(
            f"The Redis URL names the database {options['db']} of a cluster, which has only 0: leave it out."
        )
    has_tls = scheme == "rediss"
    for each in (options, sentinel_options):
        each.pop("connection_class", None)
        each["ssl"] = has_tls
    if has_tls:  # one authority for both, unless an option of the sentinels says otherwise
        shared = {name: value for name, value in options.items() if name.startswith("ssl_")}
        sentinel_options = {**shared, **sentinel_options}
    return Location(kind, url, hosts, service, options, sentinel_options)


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = split_url(f"redis://{text}", "Redis", ("redis",), EXAMPLE)
    return unquote(parts.hostname or ""), parts.port or default_port


def _path(kind: Kind, path: str) -> tuple[str, int | None]:
    """Return the service and the database that a path names."""
    names = [unquote(each) for each in path.removeprefix("/").removesuffix("/").split("/")]
    service = names.pop(0) if kind == "sentinel" else ""
    if kind == "sentinel" and (not service or (service.isdigit() and not names)):
        raise ConfigurationError(
            f"The Redis URL does not name the service whose master the sentinels know: it must look like "
            f"{SENTINEL_EXAMPLE} (mymaster is the service, 0 the database)."
        )
    return service, _database("/".join(names), EXAMPLES[kind])


def _database(name: str, example: str, hint: str = "") -> int | None:
    """Return the number of the database that a path names, `None` if it names none."""
    if not name:
        return None
    if not (name.isascii() and name.isdigit()):
        raise ConfigurationError(
            f"The Redis URL names the database {name!r}: it must be a whole number, as in {example}.{hint}"
        )
    return int(name)
