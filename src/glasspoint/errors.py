"""Everything that Glasspoint raises on purpose.

Each class also derives from what a caller would catch without knowing Glasspoint: `ValueError` for bad
input, `ConnectionError` for a server that cannot be reached, and so on. Every message says what happened,
to what, and what to do next; none ever holds a password or a piece of state.
"""

from __future__ import annotations

__all__ = [
    "ConfigurationError",
    "DeltaChainError",
    "EmbeddedServerUnavailable",
    "GlasspointError",
    "InvalidConfigError",
    "L1Error",
    "L1UnavailableError",
    "L2DeadlineError",
    "L2UnavailableError",
    "SaverClosedError",
    "SchemaError",
    "SerializationError",
    "ThreadExistsError",
    "ThreadInUseError",
    "ThreadNotFoundError",
    "WrongTypeError",
]


class GlasspointError(Exception):
    """The base of them all."""


class ConfigurationError(GlasspointError, ValueError):
    """A setting, a URL or a client that was passed in cannot be used as it is."""


class InvalidConfigError(GlasspointError, ValueError):
    """The `config` of a call names no conversation: no `configurable`, or an unusable `thread_id`,
    `checkpoint_ns` or `checkpoint_id`."""


class SerializationError(GlasspointError, ValueError):
    """A value of the state cannot be serialised. Neither PostgreSQL nor Redis was touched."""


class L2UnavailableError(GlasspointError, ConnectionError):
    """PostgreSQL cannot be reached, or no connection of the pool came free in time."""


class L2DeadlineError(GlasspointError, TimeoutError):
    """PostgreSQL did not finish in time; the message says whether anything of it may have been done."""


class SchemaError(GlasspointError, PermissionError):
    """The checkpoint tables are missing and this database role may not create them."""


class L1Error(GlasspointError):
    """Redis answered a step with an error. The saver survives it; a caller sees it only from `setup`."""


class L1UnavailableError(L1Error, ConnectionError):
    """Redis cannot be reached, or did not answer in time."""


class WrongTypeError(ConfigurationError, TypeError):
    """An argument is of a type that can only be a mistake, such as one string in place of a list of them."""


class ThreadExistsError(GlasspointError, ValueError):
    """A thread is to be copied to one that is there already. Nothing was changed."""


class ThreadNotFoundError(GlasspointError, LookupError):
    """A thread is to be copied that is not there. Nothing was changed."""


class ThreadInUseError(GlasspointError, RuntimeError):
    """A thread is to be deleted, or copied to, while something is being written to it. Nothing was changed.

    Attributes:
        thread_ids: The threads that are in use, or some of them.
    """

    def __init__(self, message: str, thread_ids: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.thread_ids = thread_ids


class DeltaChainError(GlasspointError, ValueError):
    """What is to be deleted is needed to rebuild a `DeltaChannel` of a checkpoint that stays. Nothing was
    changed."""


class SaverClosedError(GlasspointError, RuntimeError):
    """The saver was closed and then used."""


class EmbeddedServerUnavailable(GlasspointError, RuntimeError):
    """The demo's PostgreSQL or Redis cannot be started on this machine."""
