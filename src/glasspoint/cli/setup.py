"""`glasspoint setup`: creates the tables and triggers, with a role that may, before the service starts."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import psycopg

from glasspoint.cli.parts import connected
from glasspoint.errors import GlasspointError, SchemaError
from glasspoint.l2 import schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from glasspoint.l2.schema import ForeignWrites
    from glasspoint.l2.types import Connection
    from glasspoint.model.password import Password

__all__ = ["Task", "run_setup"]

Task = Literal["set up", "renew the signing key", "remove"]


async def run_setup(
    postgres_url: str,
    task: Task,
    *,
    foreign_writes: ForeignWrites,
    schema_name: str | None = None,
    password: Password | None = None,
    connect_timeout_seconds: float = 5.0,
    dry_run: bool = False,
) -> list[str]:
    """Do one task, and report the result.

    Args:
        postgres_url: PostgreSQL, in any form that the saver takes.
        task: The task; `remove` drops everything that is Glasspoint's, and nothing that is LangGraph's.
        foreign_writes: Whether to create triggers that note the writes of other software.
        schema_name: The schema of the tables; if `None`, the one that the `search_path` leads to.
        password: The source of PostgreSQL's password, in place of the URL's.
        connect_timeout_seconds: How long connecting may take.
        dry_run: Whether to change nothing, and return the SQL as a script for psql. A role that may read is
            enough for that.

    Returns:
        What was done, one sentence in each line; or the lines of the script. Comments in the script say where
        and with which role to run it, or that there is nothing to do.

    Raises:
        GlasspointError: The task failed, or triggers were wanted and could not be created. The message says
            why, and never holds a password.
    """
    async with _connected(postgres_url, schema_name, password, connect_timeout_seconds) as conn:
        if dry_run:
            return await _script(conn, task, foreign_writes, schema_name)
        return await _do(conn, task, foreign_writes)


async def _script(
    conn: Connection, task: Task, foreign_writes: ForeignWrites, schema_name: str | None
) -> list[str]:
    database = conn.info.dbname.replace("\n", " ")
    if task == "remove":
        script = await schema.removal_script(conn)
        about = "remove what is Glasspoint's from"
    else:
        parts = [await schema.set_up_script(conn, foreign_writes=foreign_writes)]
        if task == "renew the signing key":
            parts.append(await schema.renewal_script(conn))
        script = "\n".join(filter(None, parts))
        about = "set up"
    if not script:
        return [f"-- Nothing to do: the database {database} is as it should be."]
    lines = [
        f"-- What glasspoint setup would run to {about} the database {database}, as it is now.",
        "-- To run it: psql --set ON_ERROR_STOP=1 --file FILE, as the owner of LangGraph's tables.",
    ]
    if task != "remove":
        lines += [
            "-- A role that only uses the tables needs, and nothing more:",
            *(f"--   {grant} TO the_role;" for grant in schema.GRANTS.split(", and ")),
        ]
    if schema_name is not None:
        lines += ["", f"SET search_path TO {_quoted(schema_name)};"]
    return [*lines, "", script]


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


@asynccontextmanager
async def _connected(
    postgres_url: str, schema_name: str | None, password: Password | None, connect_timeout_seconds: float
) -> AsyncIterator[Connection]:
    """Open a connection, and turn PostgreSQL's refusals into errors that say what to do."""
    options = {
        "schema": schema_name,
        "password": password,
        "connect_timeout_seconds": connect_timeout_seconds,
    }
    async with connected(postgres_url, options, primary=True) as connection:
        try:
            yield connection
        except psycopg.errors.InsufficientPrivilege as exc:
            raise SchemaError(
                f"PostgreSQL refused: {exc.diag.message_primary}. Run this with the owner of the tables. "
                f"(A role that only uses them needs: {schema.GRANTS}.)"
            ) from exc
        except psycopg.Error as exc:
            raise GlasspointError(
                f"PostgreSQL refused: {exc.diag.message_primary or type(exc).__name__}."
            ) from exc


async def _do(conn: Connection, task: Task, foreign_writes: ForeignWrites) -> list[str]:
    where = f"the database {conn.info.dbname}"
    if task == "remove":
        await schema.remove(conn)
        return [f"Glasspoint's triggers and tables are removed from {where}; LangGraph's are as they were."]
    await schema.set_up(conn, foreign_writes=foreign_writes)
    done = [f"The tables are up to date in {where}."]
    if task == "renew the signing key":
        await schema.renew_signing_key(conn)
        done.append("The signing key is renewed: savers believe nothing that Redis holds from before.")
    if await schema.triggers_stand(conn):
        done.append("Triggers note what other software writes.")
        return done
    done.append("There are no triggers: the cache does not notice what other software writes.")
    if foreign_writes == "watch":
        raise SchemaError(" ".join([*done, await schema.why_no_triggers(conn)]))
    return done
