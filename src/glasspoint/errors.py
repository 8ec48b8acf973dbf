"""The errors that Glasspoint raises on purpose.

Each class also derives from the built-in error that fits: `ValueError` for bad input, `ConnectionError` for a
server that cannot be reached, and so on. So a caller can catch it without knowing Glasspoint. Every message
says what happened, to what, and what to do next. No message holds a password or a piece of state.
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
    """The base class of all errors of Glasspoint."""


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
    """PostgreSQL did not finish in time. The message says whether a part of the work may have been done."""


class L2RefusedError(GlasspointError, RuntimeError):
    """PostgreSQL returned an error, and nothing was done.

    Its disk is full, for example, or a value is too large, or a constraint or a trigger refuses. The error of
    psycopg is the cause (`__cause__`).

    Attributes:
        sqlstate: PostgreSQL's code of the error, five characters.
        is_passing: Whether the same call may succeed later, once the server is repaired.
    """

    def __init__(self, message: str, *, sqlstate: str, is_passing: bool = False) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.is_passing = is_passing


class SchemaError(GlasspointError, PermissionError):
    """The checkpoint tables cannot be used.

    They are missing, do not fit this version, or this database role may not use or create them.
    """


class L1Error(GlasspointError):
    """Redis returned an error for a step. A saver survives that, because PostgreSQL answers alone."""


class L1UnavailableError(L1Error, ConnectionError):
    """Redis cannot be reached, or did not answer in time.

    Pruning raises it, and so do writes with `on_l1_outage="raise"`.
    """


class RedisUnavailableError(GlasspointError, ConnectionError):
    """Redis, used as a store, cannot be reached or did not answer in time.

    A write that was under way may or may not have been done. It may be repeated.
    """


class RedisRefusedError(GlasspointError, RuntimeError):
    """Redis, used as a store, refused a step: it is full or read-only, or its user lacks a right.

    Nothing of the step was done, unless the user has lost a right since the saver was opened: then a part may
    have been done.
    """


class ThreadMovedError(GlasspointError, ConnectionError):
    """The thread is being moved (drained) into another store, or was moved. Use that store.

    Attributes:
        moved: Whether the move is complete; `False` while it is under way.
        moved_to: The new id of the thread, if it was set aside; `None` if it kept its own id.
    """

    def __init__(self, message: str, *, moved: bool, moved_to: str | None = None) -> None:
        super().__init__(message)
        self.moved = moved
        self.moved_to = moved_to


class ThreadUnknownError(GlasspointError, LookupError):
    """PostgreSQL is away, and Redis holds nothing of the thread. The thread may still have a history."""


class NotFoundError(GlasspointError, LookupError):
    """A command was asked to show a thread, a namespace or a checkpoint that does not exist."""


class ThreadExistsError(GlasspointError, ValueError):
    """A thread cannot be copied, because the target thread already has data."""


class ThreadForkedError(GlasspointError, RuntimeError):
    """A checkpoint was not stored, because it would have forked its thread and hidden an answer.

    Raised only with `on_fork="raise"`. Repeat the turn: it then continues from what the other run wrote.

    Attributes:
        kind: The answer that would have been hidden. `shadows`: that of another run. `shadowed`: that of this
            run. `older_than_parent`: that of this run, because a clock is behind.
    """

    def __init__(self, message: str, kind: str = "shadows") -> None:
        super().__init__(message)
        self.kind = kind


class ThreadDamagedError(GlasspointError, RuntimeError):
    """Redis has evicted the thread or a part of it, so nothing of the thread can be trusted."""


class ThreadTamperedError(ThreadDamagedError):
    """A part of the thread in Redis is not signed with this process's key. The thread was not used."""


class DeltaChainError(GlasspointError, ValueError):
    """A delta channel cannot be rebuilt from its checkpoints, or could not be after this call.

    Either a checkpoint that stays needs those that are to be removed, or a checkpoint is its own ancestor.
    """

    @classmethod
    def of_circle(cls, checkpoint_id: str) -> DeltaChainError:
        """Make the error about a checkpoint that appears twice among its own ancestors."""
        return cls(
            f"A delta channel cannot be rebuilt: the checkpoint {checkpoint_id} is its own ancestor, so the "
            "channel has no beginning. Correct parent_checkpoint_id, or go on from another checkpoint (an "
            "older checkpoint_id in the config), or delete the thread."
        )


class BlockingCallError(GlasspointError, asyncio.InvalidStateError):
    """A synchronous method was called on the thread that runs the saver's event loop."""


class WrongTypeError(ConfigurationError, TypeError):
    """An argument has a type that can only be a mistake, such as one string in place of several."""


class ThreadInUseError(GlasspointError, RuntimeError):
    """A thread cannot be deleted or copied to, because a write to it is under way. Nothing was changed.

    Attributes:
        thread_ids: The threads in use, or some of them.
    """

    def __init__(self, message: str, thread_ids: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.thread_ids = thread_ids


class SaverClosedError(GlasspointError, RuntimeError):
    """The saver was used after it was closed."""


class ForkedError(GlasspointError, RuntimeError):
    """The saver was opened before a `fork()` and then used in the child. Nothing was done."""


class WrongLoopError(GlasspointError, RuntimeError):
    """An asynchronous method was called on an event loop that the saver was not opened on."""


class EmbeddedServerUnavailable(GlasspointError, RuntimeError):
    """The demo's PostgreSQL or Redis cannot be started on this machine."""


class TraceUnavailableError(GlasspointError, ConnectionError):
    """Tempo cannot be reached or refuses the request, or the server is not a Tempo."""


class TraceNotFoundError(GlasspointError, LookupError):
    """`glasspoint trace` found no span of the conversation where it looked."""
