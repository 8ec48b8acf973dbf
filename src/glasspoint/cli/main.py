"""The entry point of the program `glasspoint`. The commands themselves are in `commands.py`."""

from __future__ import annotations

import sys

__all__ = ["main"]

_OF_THE_EXTRA = {"typer", "rich", "httpx"}


def main() -> None:
    """Run the command line. Without the extra `cli`, print how to install it, and exit with status 1."""
    try:
        from glasspoint.cli.commands import run

        run()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _OF_THE_EXTRA:
            raise
        print(
            "The command glasspoint needs an extra: pip install 'glasspoint[cli]' "
            "(for glasspoint demo: 'glasspoint[demo]')",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
