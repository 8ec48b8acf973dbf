"""Loads the SQL of Glasspoint from the `.sql` files beside this module, once, at import.

A file consists of blocks. A block is a statement, or a part that several statements include:

    -- name: count_rows
    -- Counts the rows of one cache in the journal.
    --
    -- params   cache
    -- returns  one row: the number
    SELECT count(*) FROM glasspoint_l1_journal WHERE cache = %(cache)s

Open the files when a statement does the wrong thing, and this module when a block is not found. The rules:

- A name is unique over all files.
- A line that is a comment is not sent. The comment below the name says what the block does, which parameters
  it has itself, and what it returns.
- A line `-- include: other_name` stands for the text of another block, indented as the line is.
- `%(name)s` is a parameter of psycopg. `%(name)b` is a parameter that is sent in the binary format: as text,
  every byte of a blob would be sent and parsed as two.
- `{name}` is filled in by `psycopg.sql.SQL(…).format`, for example with the name of a table in a certain
  schema, which cannot be a parameter. Some blocks of `setup.sql`, `identity.sql` and `sessions.sql` have it.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, LiteralString, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["BLOCKS", "Block", "Include", "compose", "parse", "query"]

_DIRECTIVE = re.compile(r"( *)-- (name|include): ([a-z0-9_]+)")
_MISTYPED = re.compile(r" *--+ *(name|include)s?\b *:")


class Include(NamedTuple):
    """A line that stands for another block.

    Attributes:
        name: The name of that block.
        indent: The spaces that the line begins with.
    """

    name: str
    indent: str


@dataclass(frozen=True, slots=True)
class Block:
    """One named block.

    Attributes:
        comment: The lines of the comment below its name.
        lines: The lines of its SQL, without comments.
    """

    comment: list[str] = field(default_factory=list)
    lines: list[str | Include] = field(default_factory=list)


def parse(texts: Iterable[str]) -> dict[str, Block]:
    """Return the blocks of some files by their names.

    Args:
        texts: The contents of the files.

    Raises:
        ValueError: A name occurs twice, a line is nearly a name or an include, or SQL stands before the first
            name of a file.
    """
    blocks: dict[str, Block] = {}
    for text in texts:
        block: Block | None = None
        for line in text.splitlines():
            if line.startswith("-- name: "):
                name = _directive(line).name
                if name in blocks:
                    raise ValueError(f"Two blocks have the name {name!r}.")
                block = blocks[name] = Block()
            elif block is None:
                if line and not line.startswith("--"):
                    raise ValueError(f"The line {line!r} belongs to no block.")
            elif not line.lstrip(" ").startswith("--"):
                block.lines.append(line)
            elif _MISTYPED.match(line):
                block.lines.append(_directive(line))
            elif not block.lines:
                block.comment.append(line)
    return blocks


def _directive(line: str) -> Include:
    found = _DIRECTIVE.fullmatch(line)
    if found is None or (found[2] == "name" and found[1]):
        raise ValueError(f"The line {line!r} is nearly a name or an include.")
    return Include(name=found[3], indent=found[1])


@cache
def query(*names: str) -> LiteralString:
    """Return a statement of the files: see `compose`."""
    return compose(BLOCKS, *names)


def compose(blocks: Mapping[str, Block], *names: str) -> LiteralString:
    """Return the text of blocks that follow each other.

    Args:
        blocks: Where they are looked up.

    Raises:
        LookupError: There is no block of this name, or of one that it includes; or a block includes itself.
    """
    # As literal as a text in the code: the files are a part of it, and nothing in them comes from outside.
    return "\n".join(_resolved(name, blocks, ()) for name in names)


def _resolved(name: str, blocks: Mapping[str, Block], within: tuple[str, ...]) -> str:
    if name not in blocks or name in within:
        path = "".join(f", included by {outer!r}" for outer in reversed(within))
        problem = "includes itself" if name in blocks else "is in no .sql file"
        raise LookupError(f"The block {name!r}{path} {problem}.")
    lines = []
    for line in blocks[name].lines:
        if isinstance(line, Include):
            text = _resolved(line.name, blocks, (*within, name))
            lines.append(textwrap.indent(text, line.indent) if line.indent else text)
        else:
            lines.append(line)
    return "\n".join(lines).strip("\n")


def _texts() -> list[str]:
    files = (file for file in resources.files(__package__).iterdir() if file.name.endswith(".sql"))
    return [file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)]


BLOCKS: Mapping[str, Block] = parse(_texts())
"""The blocks of all files, by their names."""
