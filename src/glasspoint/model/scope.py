"""The scope, one `(thread_id, checkpoint_ns)`: the unit of caching, and how a call's `config` names it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

from glasspoint.errors import InvalidConfigError, WrongTypeError

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

__all__ = [
    "FIRST_TIME",
    "Scope",
    "check_lengths",
    "checkpoint_id_of",
    "first_id_of",
    "is_ordered_id",
    "key_part",
    "list_of_ids",
    "listed_scope_of",
    "run_ids_of",
    "scope_of",
    "time_of_id",
    "validate_thread_id",
]

# LangGraph's checkpoint ids are UUIDs of version 6: lower-case hexadecimal with dashes at fixed places. All
# collations of PostgreSQL and of Redis sort such ids in the same way, and only such ids. So only these may be
# compared outside PostgreSQL, to find the newer one.
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

FIRST_TIME = datetime(1582, 10, 15, tzinfo=UTC)
"""The first moment that a UUID of version 6 can hold (RFC 9562, 5.6). Its clock ticks every 100 ns."""

_TICKS_A_MICROSECOND = 10

# A row of a PostgreSQL index holds 2704 bytes (see `index_rows`). This limit leaves room for LangGraph's ids.
_LONGEST_BYTES = 2500


class Scope(NamedTuple):
    """One conversation thread, and one namespace in it: that of the root graph, or of a subgraph."""

    thread_id: str
    checkpoint_ns: str

    @property
    def is_cached(self) -> bool:
        """Whether Redis may hold an entry of this scope. Subgraphs that live for one run are not cached.

        LangGraph names such a subgraph after its task, `node:task id`. So each run has a new one, and only a
        resume reads it again. All processes use the same rule, so writes to it need not be announced to them.
        A subgraph that keeps its state has no task id in its namespace. Names of nodes hold no `:`.
        """
        return ":" not in self.checkpoint_ns


def scope_of(config: RunnableConfig) -> Scope:
    """Read the scope from a call's config.

    Args:
        config: The config from LangGraph: `{"configurable": {"thread_id": …, "checkpoint_ns": …}}`. If
            `checkpoint_ns` is missing, it is that of the root graph, the empty string.

    Raises:
        InvalidConfigError: There is no `configurable`; the `thread_id` is missing or empty; one of the two is
            not a string, or cannot be stored (NUL, lone surrogates); or they are too long.
    """
    return _scope_of(_configurable(config))


def listed_scope_of(config: RunnableConfig | None) -> Scope | None:
    """Read the scope from the config of a listing, which may leave out more.

    Args:
        config: As for `scope_of`; or `None` or `{}`, for all threads. If `checkpoint_ns` is `None` or
            missing, the listing means all namespaces; the result then has the root's, the empty string.

    Raises:
        InvalidConfigError: As for `scope_of`.
    """
    if config is None or config == {}:
        return None
    configurable = _configurable(config)
    if "checkpoint_ns" in configurable and configurable["checkpoint_ns"] is None:
        configurable = {**configurable, "checkpoint_ns": ""}
    return _scope_of(configurable)


def _scope_of(configurable: dict[str, Any]) -> Scope:
    if "thread_id" not in configurable:
        raise InvalidConfigError(
            'The config names no thread: pass config={"configurable": {"thread_id": "…"}}, '
            "a string that stays the same for all turns of one conversation."
        )
    thread_id = validate_thread_id(configurable["thread_id"])
    scope = Scope(thread_id, _storable("checkpoint_ns", configurable.get("checkpoint_ns", "")))
    if scope.checkpoint_ns:
        check_lengths(scope)
    return scope


def check_lengths(scope: Scope) -> None:
    """Check that a scope is short enough for the indexes of PostgreSQL's tables.

    Raises:
        InvalidConfigError: The scope is too long.
    """
    # A character takes at most 4 bytes.
    if 4 * (len(scope.thread_id) + len(scope.checkpoint_ns)) <= _LONGEST_BYTES:
        return
    size = len(scope.thread_id.encode()) + len(scope.checkpoint_ns.encode())
    if size > _LONGEST_BYTES:
        what = "thread_id and the checkpoint_ns have" if scope.checkpoint_ns else "thread_id has"
        raise InvalidConfigError(
            f"The {what} {size} bytes, and may have {_LONGEST_BYTES}: an index of PostgreSQL takes no longer "
            "rows. Use a shorter id, or a hash of it."
        )


def checkpoint_id_of(config: RunnableConfig) -> str | None:
    """Return the checkpoint id in a config, `None` if the config asks for the newest checkpoint.

    Raises:
        InvalidConfigError: The id is not a string, or cannot be stored.
    """
    checkpoint_id = _configurable(config).get("checkpoint_id")
    return _storable("checkpoint_id", checkpoint_id) if checkpoint_id else None


def validate_thread_id(thread_id: object) -> str:
    """Return `thread_id`, if it is a usable name for a thread.

    Raises:
        InvalidConfigError: It is empty, not a string, too long, or cannot be stored.
    """
    if thread_id == "":
        raise InvalidConfigError("The thread_id is empty: pass a string that names one conversation.")
    named = _storable("thread_id", thread_id)
    check_lengths(Scope(named, ""))
    return named


def list_of_ids(name: str, ids: Iterable[object]) -> list[Any]:
    """Return ids as a list.

    Args:
        name: The name of the argument, in the plural, such as `thread_ids`.
        ids: The ids. They are not checked.

    Raises:
        WrongTypeError: `ids` is a single id, or is not iterable.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise WrongTypeError(f"{name} is a single {type(ids).__name__}: pass [{name[:-1]}], a list of ids.")
    return list(ids)


def run_ids_of(run_ids: Iterable[object]) -> list[str]:
    """Return the ids of runs as texts, as the metadata of checkpoints hold them.

    Args:
        run_ids: Texts, or UUIDs as in LangChain.

    Raises:
        InvalidConfigError: An id is neither, or cannot be stored.
    """
    return [str(each) if isinstance(each, UUID) else _storable("run_id", each) for each in run_ids]


def key_part(text: str) -> str:
    """Return a text percent-encoded, as a part of a Redis key: it then holds no separator."""
    return quote(text, safe="")


def is_ordered_id(checkpoint_id: str) -> bool:
    """Tell whether an id sorts the same way in PostgreSQL, in Redis and here."""
    return _UUID.fullmatch(checkpoint_id) is not None


def time_of_id(checkpoint_id: str) -> datetime:
    """Return the time at which an id was made (UTC), `FIRST_TIME` if it is not a UUID."""
    try:
        digits = UUID(checkpoint_id).hex
    except ValueError:
        return FIRST_TIME
    ticks = int(digits[:12], 16) << 12 | int(digits[13:16], 16)
    return FIRST_TIME + timedelta(microseconds=ticks // _TICKS_A_MICROSECOND)


def first_id_of(moment: datetime) -> str:
    """Return the lowest id of a moment: ids that sort before it are older."""
    ticks = (moment - FIRST_TIME) // timedelta(microseconds=1) * _TICKS_A_MICROSECOND
    return f"{ticks >> 28:08x}-{ticks >> 12 & 0xFFFF:04x}-6{ticks & 0xFFF:03x}-0000-000000000000"


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    given: object = config
    configurable = given.get("configurable") if isinstance(given, dict) else None
    if not isinstance(configurable, dict):
        raise InvalidConfigError(
            'The config has no "configurable": pass config={"configurable": {"thread_id": "…"}}.'
        )
    return configurable


def _storable(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidConfigError(_wrong_type(name, value))
    if "\0" in value:
        raise InvalidConfigError(f"The {name} holds a NUL character, which PostgreSQL cannot store.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidConfigError(
            f"The {name} holds a lone surrogate, which is not valid Unicode text and cannot be stored."
        ) from None
    return value


def _wrong_type(name: str, value: object) -> str:
    """Return what to do about an id that is not a string.

    `str(…)` is not always safe advice. The text of `None` would be the same for all users, and the text of an
    object would be its address.
    """
    if value is None:
        return (
            f"The {name} is None: what should have set it did not. Find out why, and pass a string of its "
            'own. (Do not convert it: the text "None" would be the same for everybody.)'
        )
    if isinstance(value, UUID | int) and not isinstance(value, bool):
        return f"The {name} must be a string, not {type(value).__name__}: pass str(…) of it."
    return f"The {name} must be a string, not {type(value).__name__}."
