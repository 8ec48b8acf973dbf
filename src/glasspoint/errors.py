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
    "WrongLoopError",
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


class BlockingCallError(GlasspointError, asyncio.InvalidStateError):
    """A synchronous method was called on the thread that runs the saver's event loop."""


class SaverClosedError(GlasspointError, RuntimeError):
    """The saver was closed and then used."""


class WrongLoopError(GlasspointError, RuntimeError):
    """An asynchronous method was called on another event loop than the one that the saver was opened on."""


class EmbeddedServerUnavailable(GlasspointError, RuntimeError):
    """The demo's PostgreSQL or Redis cannot be started on this machine."""
