"""A role of PostgreSQL that has to give a password, on a server that trusts everybody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from glasspoint.embedded import EmbeddedPostgres


@contextmanager
def role_with_password(postgres: EmbeddedPostgres, database: str, password: str) -> Iterator[str]:
    """A role that owns nothing.

    Yields:
        Its name.
    """
    name = f"plain_{uuid4().hex}"
    data = postgres.directory / "data"
    with psycopg.connect(postgres.url, autocommit=True) as conn:
        statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        conn.execute(statement.format(sql.Identifier(name), sql.Literal(password)))
        # (Written by the server, who owns the file.)
        lines = f"local all {name} scram-sha-256\\nlocal all all trust\\n"
        _rewrite_hba(conn, data, lines)
        try:
            yield name
        finally:
            _rewrite_hba(conn, data, "local all all trust\\n")
            with psycopg.connect(database, autocommit=True) as there:
                there.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def _rewrite_hba(conn: psycopg.Connection[Any], data: Any, lines: str) -> None:
    copy = sql.SQL("COPY (SELECT regexp_split_to_table({}, '\\\\n')) TO {}")
    conn.execute(copy.format(sql.Literal(lines), sql.Literal(str(data / "pg_hba.conf"))))
    conn.execute("SELECT pg_reload_conf()")
