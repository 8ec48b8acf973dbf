"""Passwords that are fetched before each new connection: tokens that expire (IAM, Entra), for example."""

from __future__ import annotations

import asyncio
import inspect
import shlex
import subprocess
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from glasspoint.errors import ConfigurationError, GlasspointError, L2UnavailableError, WrongTypeError

__all__ = ["Password", "PasswordCommand", "ask_password"]

Password: TypeAlias = Callable[[], str | Awaitable[str]]
"""A function that returns PostgreSQL's password. If it is synchronous, it runs in a thread; several calls may
run at once."""


class PasswordCommand:
    """A command that writes the password to its standard output.

    No shell runs it, so `$`, `|` and `~` have no special meaning. Its standard error is this process's.
    """

    def __init__(self, command: str, *, timeout_seconds: float) -> None:
        """Take the command.

        Args:
            command: The program and its arguments, quoted as for a POSIX shell.
            timeout_seconds: How long the program may run before it is killed.

        Raises:
            ConfigurationError: The quotes do not match, or the command is empty.
        """
        try:
            self._arguments = shlex.split(command)
        except ValueError:
            self._arguments = []
        if not self._arguments:
            raise ConfigurationError(
                "CHECKPOINT_POSTGRES_PASSWORD_COMMAND is no command: it must be a program with its "
                "arguments, quoted as for a shell."
            )
        self._timeout_seconds = timeout_seconds

    def __call__(self) -> str:
        """Run the command, and block until it ends.

        Returns:
            The output of the command, without the line breaks at its end.

        Raises:
            ConfigurationError: The program cannot be started.
            L2UnavailableError: The program failed, or took too long.
        """
        program = self._arguments[0]
        try:
            done = subprocess.run(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=self._timeout_seconds,
                check=False,
            )
        except OSError as exc:
            raise ConfigurationError(
                f"CHECKPOINT_POSTGRES_PASSWORD_COMMAND cannot be run ({exc.strerror}): is {program!r} "
                "installed, and executable?"
            ) from None
        except subprocess.TimeoutExpired:
            raise L2UnavailableError(
                f"The command that returns PostgreSQL's password ({program!r}) took longer than "
                f"{self._timeout_seconds:g} s (CHECKPOINT_CONNECT_TIMEOUT)."
            ) from None
        if done.returncode:
            raise L2UnavailableError(
                f"The command that returns PostgreSQL's password ({program!r}) failed, with exit status "
                f"{done.returncode}. What it says stands in the standard error of this process."
            )
        return done.stdout.decode(errors="replace").rstrip("\r\n")


async def ask_password(password: Password, *, timeout_seconds: float) -> str:
    """Call the function that returns the password.

    Args:
        password: The function.
        timeout_seconds: How long the function may take.

    Raises:
        ConfigurationError: Its result is not a usable password.
        L2UnavailableError: The function raised an error, or took too long.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            result: object
            if inspect.iscoroutinefunction(password):
                result = await password()
            else:
                result = await asyncio.to_thread(password)
            if inspect.isawaitable(result):
                result = await result
    except GlasspointError:
        raise
    except TimeoutError as exc:
        raise L2UnavailableError(
            f"The function that returns PostgreSQL's password did not return within {timeout_seconds:g} s."
        ) from exc
    except Exception as exc:
        raise L2UnavailableError(
            f"The function that returns PostgreSQL's password raised {type(exc).__name__}: see the error "
            "that this one was caused by."
        ) from exc
    if not isinstance(result, str):
        raise WrongTypeError(
            f"The password for PostgreSQL is of the type {type(result).__name__}: it must be a string."
        )
    if not result or "\0" in result:
        raise ConfigurationError("The password for PostgreSQL is empty, or holds a NUL character.")
    return result
