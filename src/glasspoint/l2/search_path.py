"""Makes sure that a new connection finds the tables in the schema that the caller names.

LangGraph's statements name no schema, and neither do ours. So the `search_path` of a connection decides. Two
cases, for each new connection:

    no pooler   the `search_path` is set for the session
    a pooler    nothing is set: the setting would reach other clients, or be lost between two transactions.
                The role's own `search_path` must lead to the schema

If the connection then still leads to another schema, it is refused. The error says what to do. Open this file
when that happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import sql
from psycopg.rows import tuple_row

from glasspoint.errors import ConfigurationError
from glasspoint.l2.sql import query

if TYPE_CHECKING:
    import psycopg

__all__ = ["enter_schema"]

_ENTER: Final = query("enter_schema_directly")
_WHERE: Final = query("where_am_i")


async def enter_schema(
    connection: psycopg.AsyncConnection[Any], schema: str, *, has_session: bool = True
) -> None:
    """Make sure that a schema is the first one in which a connection looks for its tables.

    Args:
        connection: A connection in autocommit.
        schema: The name of the schema, not quoted.
        has_session: `False`: a pooler in transaction mode is known to be in between.

    Raises:
        ConfigurationError: The schema does not exist, or the role may not use it; or a pooler is in between,
            and the role's `search_path` leads to another schema.
    """
    async with connection.cursor(row_factory=tuple_row) as cursor:
        params = {"has_session": has_session, "pid": connection.info.backend_pid, "schema": schema}
        await cursor.execute(_ENTER, params, prepare=False)
        row = await cursor.fetchone()
        is_set = row is not None and bool(row[0])
        await cursor.execute(_WHERE, params, prepare=False)
        row = await cursor.fetchone()
    assert row is not None
    current, exists, role, database = row
    if current == schema:
        return
    names = [_quoted(connection, each) for each in (schema, role, database)]
    if is_set or not exists:
        what = "may not use the schema" if exists else "finds no schema"
        raise ConfigurationError(
            f"The role {role!r} {what} {schema!r} in the database {database!r}: CREATE SCHEMA IF NOT EXISTS "
            f"{names[0]} AUTHORIZATION {names[1]}, or GRANT USAGE ON SCHEMA {names[0]} TO {names[1]}."
        )
    raise ConfigurationError(
        f"The connection leads to the schema {current!r}, not to {schema!r}. A pooler is in between (or "
        "prepare_threshold is None, which says so), where a setting of the session would reach other "
        f"clients. Give it to the role: ALTER ROLE {names[1]} IN DATABASE {names[2]} SET search_path = "
        f"{names[0]}; or to a database of PgBouncer: connect_query='SET search_path TO {names[0]}'. Then let "
        "the pooler connect anew (PgBouncer: RECONNECT)."
    )


def _quoted(connection: psycopg.AsyncConnection[Any], name: str) -> str:
    return sql.Identifier(name).as_string(connection)
