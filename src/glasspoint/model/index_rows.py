"""Checks that the names in a write fit into PostgreSQL's index rows. All tiers refuse the same writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasspoint.errors import InvalidConfigError

if TYPE_CHECKING:
    from glasspoint.model.codec import EncodedPut
    from glasspoint.model.scope import Scope

__all__ = ["check_put", "check_writes"]

# PostgreSQL's `BTMaxItemSize`: three rows must fit on a page. PostgreSQL compresses a row first, so it may
# accept a longer one. But that depends on the text, and the other tiers do not compress.
_ROW_BYTES = 2704

# A row: the header, the number of a write, and the alignment. For each text in it: its length and alignment.
_OVERHEAD_BYTES = 8 + 4 + 8
_OVERHEAD_BYTES_A_TEXT = 4 + 3

# Texts with at most this many characters in total always fit: a character has at most 4 bytes in UTF-8.
_CERTAIN_CHARACTERS = (_ROW_BYTES - _OVERHEAD_BYTES - 4 * _OVERHEAD_BYTES_A_TEXT) // 4


def check_put(scope: Scope, put: EncodedPut) -> None:
    """Check the names of a checkpoint, and of the channels and versions of its values.

    Raises:
        InvalidConfigError: The names are too long for PostgreSQL. Nothing was stored.
    """
    _check(scope, put.checkpoint_id)
    for channel, (version, _) in put.blobs.items():
        _check(scope, channel, version)
    for channel, version in put.voids.items():
        _check(scope, channel, version)


def check_writes(scope: Scope, checkpoint_id: str, task_id: str) -> None:
    """Check the names of a task's writes.

    Raises:
        InvalidConfigError: The names are too long for PostgreSQL. Nothing was stored.
    """
    _check(scope, checkpoint_id, task_id)


def _check(scope: Scope, *names: str) -> None:
    texts = (*scope, *names)
    if sum(map(len, texts)) <= _CERTAIN_CHARACTERS:
        return
    size = _OVERHEAD_BYTES + sum(
        len(text.encode(errors="replace")) + _OVERHEAD_BYTES_A_TEXT for text in texts
    )
    if size > _ROW_BYTES:
        raise InvalidConfigError(
            f"The names of this write are too long: together they take up to {size} bytes in an index of "
            f"PostgreSQL, which takes {_ROW_BYTES} for a row. Nothing was stored. The longest is "
            f"{max(map(len, texts))} characters: shorten the thread_id, the checkpoint_ns, or the names of "
            "channels."
        )
