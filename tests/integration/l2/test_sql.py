"""The SQL files: named blocks that say what they do, are all used, and are composed by name."""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path

import psycopg
import pytest

from glasspoint.l2 import schema, schema_statements
from glasspoint.l2.sql import BLOCKS, Include, compose, parse, query
from glasspoint.l2.writing import storing
from places import SRC
from states import open_saver
from steps import STORING

PARAMETER = re.compile(r"%\((\w+)\)[sb]")

INCLUDED = {line.name for block in BLOCKS.values() for line in block.lines if isinstance(line, Include)}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_says_what_it_does_and_what_it_takes(name: str) -> None:
    block = BLOCKS[name]
    comment = "\n".join(block.comment)
    assert comment, "a comment below the name"
    own = {
        parameter for line in block.lines if isinstance(line, str) for parameter in PARAMETER.findall(line)
    }
    # `channel_1` to `channel_4` are described together, as `channel_n`.
    described = {re.sub(r"_\d$", "_n", parameter) for parameter in own}
    assert described <= set(re.findall(r"\w+", comment.partition("params ")[2]))


def test_every_block_is_used() -> None:
    code = "\n".join(path.read_text("utf-8") for path in SRC.rglob("*.py"))
    named = {
        name for call in re.findall(r"\bquery\(([^()]*)\)", code) for name in re.findall(r'"(\w+)"', call)
    }
    beginnings = {"own", "own_journalled", "with", "with_journalled"}
    assert named | beginnings | {*STORING} | INCLUDED == set(BLOCKS)


_STATEMENT = re.compile(
    r"\b(SELECT\b.*\bFROM|INSERT INTO|DELETE FROM|UPDATE \S+ SET|(CREATE|DROP) TABLE)\b", re.DOTALL
)


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_no_statement_for_postgresql_stands_in_the_code(path: Path) -> None:
    if path.name == "sqlite.py":  # reads another kind of database
        return
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }
    assert [text for text in texts if _STATEMENT.search(text)] == []


def test_every_block_that_is_included_is_there() -> None:
    for name in BLOCKS:
        assert "-- include:" not in query(name)


def test_comments_are_not_sent() -> None:
    for name in BLOCKS:
        assert "--" not in query(name)


async def test_postgresql_understands_what_stores_checkpoints_and_writes(
    database: str, redis_url: str
) -> None:
    async with (
        open_saver(database, redis_url),
        await psycopg.AsyncConnection.connect(database, autocommit=True) as conn,
    ):
        texts = [storing(name, is_journalled=each) for name in STORING for each in (False, True)]
        for number, text in enumerate(texts):
            numbers = {name: f"${n}" for n, name in enumerate(dict.fromkeys(PARAMETER.findall(text)), 1)}
            plain = PARAMETER.sub(lambda found, numbers=numbers: numbers[found[1]], text)  # type: ignore[misc]
            await conn.execute(f"PREPARE s{number} AS {plain}")


def test_a_function_of_the_triggers_changes_only_with_the_version_of_the_tables() -> None:
    # The body in a database is compared with the one in the file, byte by byte, white space included. Another
    # body under the same version: a database that an older release has set up would have no triggers.
    bodies = hashlib.sha256("".join(schema_statements.FUNCTIONS.values()).encode()).hexdigest()
    assert (schema.VERSION, bodies[:16]) == (4, "6adea09bc568508a")


def test_blocks_are_composed_by_name() -> None:
    blocks = parse(
        [
            "-- About the file.\n\n"
            "-- name: all\n-- Reads all.\nSELECT\n-- It is all.\n    -- include: columns\nFROM t\n\n",
            "-- name: columns\n-- Two.\na,\nb\n\n-- name: limited\n-- An end.\nLIMIT 1",
        ]
    )
    assert compose(blocks, "all") == "SELECT\n    a,\n    b\nFROM t"
    assert compose(blocks, "all", "limited") == "SELECT\n    a,\n    b\nFROM t\nLIMIT 1"
    assert blocks["all"].comment == ["-- Reads all."]


def test_a_name_that_is_not_there_is_an_error_that_says_where_it_was_wanted() -> None:
    with pytest.raises(LookupError, match=r"The block 'no_such_block' is in no \.sql file\."):
        query("no_such_block")
    blocks = parse(["-- name: outer\n-- include: middle\n-- name: middle\n-- include: lost"])
    path = r"'lost', included by 'middle', included by 'outer' is in no \.sql file"
    with pytest.raises(LookupError, match=path):
        compose(blocks, "outer")


def test_a_block_that_includes_itself_is_an_error() -> None:
    blocks = parse(["-- name: a\n-- include: b\n-- name: b\n-- include: a"])
    with pytest.raises(LookupError, match="'a', included by 'b', included by 'a' includes itself"):
        compose(blocks, "a")


def test_a_name_that_occurs_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="Two blocks have the name 'a'"):
        parse(["-- name: a\nSELECT 1", "-- name: a\nSELECT 2"])


@pytest.mark.parametrize(
    "line", ["-- includes: b", "--include: b", "-- include:b", "-- include: b,", "  -- name: b", "-- name: B"]
)
def test_a_line_that_is_nearly_a_name_or_an_include_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="is nearly a name or an include"):
        parse([f"-- name: a\nSELECT 1\n{line}"])


def test_sql_before_the_first_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="'SELECT 1' belongs to no block"):
        parse(["SELECT 1\n-- name: a\nSELECT 2"])
