"""Names the PostgreSQL that a process is configured for, while that PostgreSQL cannot be asked.

Open this file when a process reads the threads of another application from Redis, or does not find its own.

The fallback chain keeps threads in Redis during an outage. A `Target` names the database that they will be
drained into, so that another application, or staging, neither reads nor drains them. It is made from the
connection string and the environment alone, as libpq resolves them.
"""

from __future__ import annotations

import configparser
import hashlib
import hmac
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from glasspoint.l2.pool import postgres_conninfo

__all__ = ["Target", "fallback_secret"]

_ID_BYTES = 8
_LABEL = b"glasspoint.fallback"

# About 50 ms and 16 MB for each guess.
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_PBKDF2_ROUNDS = 600_000

_SETTING = re.compile(r"(?:-c\s*|--)([A-Za-z_.-]+)=(\S*)")
_NAME = re.compile(r'"(?:[^"]|"")*"|[^,]+')


@dataclass(frozen=True, slots=True)
class Target:
    """A PostgreSQL, as a connection string names it. It holds no user and no password.

    Two spellings of one server (its name and its address, or PgBouncer and the server behind it) are two
    targets: they cannot be compared while the server is away.

    Attributes:
        host: Host names or socket directories, separated by commas and sorted, because their order in the
            connection string does not matter. `""` is libpq's default socket directory.
        port: One port, or one for each host, separated by commas.
        database: The name of the database.
        schema: The configured schema, or the `search_path` that the connection string sets. `""`: neither.

    Example:
        >>> Target.of("postgresql://me:secret@db.example:5433/app").name
        'db.example:5433/app'
    """

    host: str
    port: str
    database: str
    schema: str = ""

    @classmethod
    def of(cls, conn_string: str, *, schema: str | None = None) -> Self:
        """Resolve a connection string as libpq does, with the environment and a service file.

        Args:
            conn_string: As for `postgres_conninfo`.
            schema: As for `open_pool`.

        Raises:
            ConfigurationError: The connection string cannot be understood.
        """
        given = _resolved(conn_string)
        hosts = [_host(each) for each in (given.get("host") or given.get("hostaddr") or "").split(",")]
        ports = [each.strip() or _default_port() for each in (given.get("port") or "").split(",")]
        if len(hosts) > 1:
            ports = ports * len(hosts) if len(ports) == 1 else ports
            pairs = sorted(zip(hosts, ports, strict=False))
            hosts, ports = [host for host, _ in pairs], [port for _, port in pairs]
        return cls(
            host=",".join(hosts),
            port=",".join(dict.fromkeys(ports) if len(set(ports)) == 1 else ports),
            database=given.get("dbname") or given.get("user") or "",
            schema=schema or _search_path(given.get("options") or ""),
        )

    @property
    def id(self) -> str:
        """16 hexadecimal digits that name the target in the keys of Redis."""
        text = json.dumps([self.host, self.port, self.database, self.schema], separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=_ID_BYTES, usedforsecurity=False).hexdigest()

    @property
    def name(self) -> str:
        """The target as a log line shows it."""
        schema = f", schema {self.schema}" if self.schema else ""
        return f"{self.host or 'local socket'}:{self.port}/{self.database}{schema}"


def fallback_secret(
    conn_string: str,
    signing_key: bytes | str | None,
    *,
    schema: str | None = None,
    password_rotates: bool = False,
) -> bytes | None:
    """Return the key that signs the fallback chain's threads in Redis. It is the same in every process.

    PostgreSQL, which keeps the signing key of the cache, is away when this key is needed. So the key is made
    from what every process with this target has: the setting `CHECKPOINT_L1_SIGNING_KEY`, or else the
    password of the connection string or of `PGPASSWORD`. A password file is not read: set the key instead.

    The call takes about 50 ms if the key is made from the password.

    Args:
        conn_string: As for `Target.of`.
        signing_key: The setting, if it is set.
        schema: As for `Target.of`.
        password_rotates: Whether the password is asked for before each connection. Such a password is not the
            same in every process, so no key is made from it.

    Returns:
        32 bytes, or `None` if there is neither a key nor a password that stays.

    Raises:
        ConfigurationError: The connection string cannot be understood.
    """
    if signing_key:
        key = signing_key.encode() if isinstance(signing_key, str) else signing_key
        return hmac.digest(key, _LABEL, "sha256")  # another key than that of the cache's entries
    password = None if password_rotates else _resolved(conn_string).get("password")
    if not password:
        return None
    # People choose passwords, so they can be guessed. A signature in Redis tells whether a guess is right, to
    # everyone with access to Redis. scrypt makes each guess cost 16 MB and 50 ms. The target is the salt, so
    # one list of guesses does not serve for two databases.
    salt = _LABEL + Target.of(conn_string, schema=schema).id.encode()
    try:
        return hashlib.scrypt(password.encode(), salt=salt, dklen=32, **_SCRYPT)
    except (AttributeError, ValueError):  # FIPS: scrypt is missing, or is refused
        return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _PBKDF2_ROUNDS)


def _resolved(conn_string: str) -> dict[str, str]:
    """Return every parameter: from the connection string, else the service file, else the environment."""
    given = {k: str(v) for k, v in conninfo_to_dict(postgres_conninfo(conn_string)).items() if v is not None}
    service = _of_service(given["service"]) if given.get("service") else {}
    return {**_defaults(), **service, **given}


def _defaults() -> dict[str, str]:
    """Return libpq's values for parameters that are not set. libpq also reads the service of `PGSERVICE`."""
    options = pq.Conninfo.get_defaults()
    return {each.keyword.decode(): each.val.decode() for each in options if each.val}


def _default_port() -> str:
    return next(
        (
            each.compiled.decode()
            for each in pq.Conninfo.get_defaults()
            if each.keyword == b"port" and each.compiled
        ),
        "5432",
    )


def _of_service(name: str) -> dict[str, str]:
    """Read a service that the connection string names. libpq's defaults do not include it."""
    own = os.environ.get("PGSERVICEFILE")
    paths = [Path(own) if own else Path.home() / ".pg_service.conf"]
    if shared := os.environ.get("PGSYSCONFDIR"):
        paths.append(Path(shared) / "pg_service.conf")
    for path in paths:
        parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=("#",), strict=False)
        try:
            parser.read_string(path.read_text("utf-8"))
        except (OSError, ValueError, configparser.Error):
            continue
        if parser.has_section(name):
            return dict(parser.items(name))
    return {}


def _host(name: str) -> str:
    name = name.strip()
    return name if name.startswith(("/", "@")) else name.lower()


def _search_path(options: str) -> str:
    """Return the `search_path` of backend options, as PostgreSQL reads it; the last one counts."""
    # A character after a backslash stands for itself. If it is a space, NUL keeps its place until the end.
    text = re.sub(r"\\(.)", lambda found: "\0" if found[1].isspace() else found[1], options)
    found = ""
    for name, value in _SETTING.findall(text):
        if name.lower().replace("-", "_") == "search_path":
            names = [each.strip() for each in _NAME.findall(value.replace("\0", " "))]
            found = ",".join(
                each[1:-1].replace('""', '"') if each.startswith('"') else each.lower()
                for each in names
                if each
            )
    return found
