"""`glasspoint setup`: the tables and triggers, made once by a role that may, before the service starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import psycopg

from glasspoint.errors import GlasspointError, L2UnavailableError, SchemaError
from glasspoint.l2 import schema
from glasspoint.l2.pool import in_one_line, postgres_conninfo

if TYPE_CHECKING:
    from glasspoint.l2.schema import Connection, ForeignWrites

__all__ = ["Task", "run_setup"]

Task = Literal["set up", "renew the signing key", "remove"]


async def run_setup(postgres_url: str, task: Task, *, foreign_writes: ForeignWrites) -> list[str]:
    """Do one task, and say what stands afterwards.

    Args:
        postgres_url: PostgreSQL, in any form that the saver takes.
        task: `remove` drops everything of Glasspoint's own, and nothing of LangGraph's.
        foreign_writes: Whether triggers are made that note what other software writes.

    Returns:
        What was done, a sentence a line.

    Raises:
        GlasspointError: It could not be done, or triggers were wanted and do not stand; the message says why.
            It never holds a password.
    """
    conninfo = postgres_conninfo(postgres_url)
    try:
        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as exc:
        reason = in_one_line(exc, conninfo)
        raise L2UnavailableError(
            f"PostgreSQL cannot be reached: {reason}. Check POSTGRES_URL, and that the server is up."
        ) from None
    async with connection:
        conn = cast("Connection", connection)
        try:
            return await _do(conn, task, foreign_writes)
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
