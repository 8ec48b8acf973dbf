"""Everything that Glasspoint raises on purpose.

Each class also derives from what a caller would catch without knowing Glasspoint: `ValueError` for bad
input, `ConnectionError` for a server that cannot be reached, and so on. Every message says what happened,
to what, and what to do next; none ever holds a password or a piece of state.
"""

from __future__ import annotations

import asyncio

__all__ = [
    "BlockingCallError",
    "ConfigurationError",
    "DeltaChainError",
    "EmbeddedServerUnavailable",
    "ForkedError",
    "GlasspointError",
    "InvalidConfigError",
    "L1Error",
    "L1UnavailableError",
    "L2DeadlineError",
    "L2RefusedError",
    "L2UnavailableError",
    "NotFoundError",
    "RedisRefusedError",
    "RedisUnavailableError",
    "SaverClosedError",
    "SchemaError",
    "SerializationError",
    "ThreadDamagedError",
    "ThreadExistsError",
    "ThreadForkedError",
    "ThreadInUseError",
    "ThreadMovedError",
    "ThreadTamperedError",
    "ThreadUnknownError",
    "TraceNotFoundError",
    "TraceUnavailableError",
    "WrongLoopError",
    "WrongTypeError",
]


class GlasspointError(Exception):
    """The base of them all."""


class ConfigurationError(GlasspointError, ValueError):
    """A setting, a URL or a client that was passed in cannot be used as it is."""


class InvalidConfigError(GlasspointError, ValueError):
    """The `config` of a call names no conversation.

    It has no `configurable`, or an unusable `thread_id`, `checkpoint_ns` or `checkpoint_id`.
    """


class SerializationError(GlasspointError, ValueError):
    """A value of the state cannot be serialised. Neither PostgreSQL nor Redis was touched."""


class L2UnavailableError(GlasspointError, ConnectionError):
    """PostgreSQL cannot be reached, or no connection of the pool came free in time."""


class L2DeadlineError(GlasspointError, TimeoutError):
    """PostgreSQL did not finish in time; the message says whether anything of it may have been done."""


class L2RefusedError(GlasspointError, RuntimeError):
    """PostgreSQL answered with an error, and nothing was done.

    Its disk is full, something is too large for it, or a constraint or a trigger refuses. The error of
    psycopg is the cause.

    Attributes:
        sqlstate: What PostgreSQL calls it, five characters.
        is_passing: Whether the same call may succeed later, once the server is repaired.
    """

    def __init__(self, message: str, *, sqlstate: str, is_passing: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_passing = is_passing


class SchemaError(GlasspointError, PermissionError):
    """The checkpoint tables cannot be used.

    They are missing, are not as this version needs them, or this database role may not use or create them.
    """


class L1Error(GlasspointError):
    """Redis answered a step with an error. The saver survives it; a caller sees it only from `setup`."""


class L1UnavailableError(L1Error, ConnectionError):
    """Redis cannot be reached, or did not answer in time."""


class RedisUnavailableError(GlasspointError, ConnectionError):
    """Redis, used as a store, cannot be reached or did not answer in time.

    Whether it did a write that was under way is not known; the write may be repeated.
    """


class RedisRefusedError(GlasspointError, RuntimeError):
    """Redis, used as a store, refused a step: it is full, read-only, or this user may not.

    Nothing of the step was done; only if the user has lost a right since the saver was opened, a part may
    have been done.
    """


class ThreadMovedError(GlasspointError, ConnectionError):
    """The thread is being drained into another store, or has been: ask that one.

    Attributes:
        moved: Whether it is there already; `False` while the drain is under way.
        moved_to: The id of the thread that it was set aside as, `None` if it kept its own.
    """

    def __init__(self, message: str, *, moved: bool, moved_to: str | None = None) -> None:
        super().__init__(message)
        self.moved = moved
        self.moved_to = moved_to


class ThreadUnknownError(GlasspointError, LookupError):
    """PostgreSQL is away, and Redis holds nothing of the thread: whether it has a history is not known."""


class NotFoundError(GlasspointError, LookupError):
    """A command was asked to show a thread, a namespace or a checkpoint that is not there."""


class ThreadExistsError(GlasspointError, ValueError):
    """A thread cannot be copied onto one that has data already."""


class ThreadForkedError(GlasspointError, RuntimeError):
    """A checkpoint would have forked its thread, so that an answer is not seen any more. It was not stored.

    Only with `on_fork="raise"`. Repeat the turn: it then goes on from what the other run wrote.

    Attributes:
        kind: `shadows`: another run's answer would have been lost; `shadowed`: this one's;
            `older_than_parent`: this one's, because a clock is behind.
    """

    def __init__(self, message: str, kind: str = "shadows") -> None:
        super().__init__(message)
        self.kind = kind


class ThreadDamagedError(GlasspointError, RuntimeError):
    """Redis has evicted a part of the thread, or all of it, so that nothing of it can be believed."""


class ThreadTamperedError(ThreadDamagedError):
    """A part of the thread in Redis is not signed with this process's key. Nothing of it was used."""


class DeltaChainError(GlasspointError, ValueError):
    """Checkpoints cannot be removed, because a delta channel of one that stays is rebuilt from them.

    Or a delta channel cannot be rebuilt, because a checkpoint is its own ancestor.
    """

    @classmethod
    def of_circle(cls, checkpoint_id: str) -> DeltaChainError:
        """Name a checkpoint that the walk to its ancestors has met twice."""
        return cls(
            f"A delta channel cannot be rebuilt: the checkpoint {checkpoint_id} is its own ancestor, so the "
            "channel has no beginning. Correct parent_checkpoint_id, or go on from another checkpoint (an "
            "older checkpoint_id in the config), or delete the thread."
        )


class BlockingCallError(GlasspointError, asyncio.InvalidStateError):
    """A synchronous method was called on the thread that runs the saver's event loop."""


class WrongTypeError(ConfigurationError, TypeError):
    """An argument is of a type that can only be a mistake, such as one string in place of a list of them."""


class ThreadInUseError(GlasspointError, RuntimeError):
    """A thread is to be deleted, or copied to, while something is being written to it. Nothing was changed.

    Attributes:
        thread_ids: The threads that are in use, or some of them.
    """

    def __init__(self, message: str, thread_ids: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.thread_ids = thread_ids


class SaverClosedError(GlasspointError, RuntimeError):
    """The saver was closed and then used."""


class ForkedError(GlasspointError, RuntimeError):
    """The saver was opened before a `fork()`, and used in the child. Nothing was done."""


class WrongLoopError(GlasspointError, RuntimeError):
    """An asynchronous method was called on another event loop than the one that the saver was opened on."""


class EmbeddedServerUnavailable(GlasspointError, RuntimeError):
    """The demo's PostgreSQL or Redis cannot be started on this machine."""


class TraceUnavailableError(GlasspointError, ConnectionError):
    """A Tempo cannot be reached, refuses, or is none."""


class TraceNotFoundError(GlasspointError, LookupError):
    """There is no span of the conversation where `glasspoint trace` looked."""
