"""Compression of what stands in an entry, with Zstandard: fewer bytes in Redis, and on the way to it.

Each value is compressed on its own, because a put sends only the channels that changed. Short values stay as
they are, and so does what would gain too little: what is encrypted, or compressed already. Level 1: on the
messages of a chat level 3 saves little more (3.8 times instead of 3.65 for 100 of them), and takes 1.6 times
as long.

Every process reads both, whatever it writes, so a fleet can be switched process by process.
"""

from __future__ import annotations

import threading
from typing import Literal

import zstandard

__all__ = ["LARGEST", "MIN_BYTES", "Packer", "packer_of", "unpack"]

MIN_BYTES = 1024
"""What is shorter stays plain, unless told otherwise: it would save a few hundred bytes at most."""

LARGEST = 64 * 1024 * 1024
"""What is longer stays plain, and a frame that says it holds more is not unpacked: a few bytes can hold a
gigabyte, and whoever can write to Redis could fill the memory of every process that reads."""

_LEVEL = 1

# A frame that saves less than this share is not worth unpacking: ciphertext, images.
_SAVES_AT_LEAST = 0.1


class Packer:
    """Compresses values that are long enough, and gain by it."""

    __slots__ = ("_min_bytes",)

    def __init__(self, *, min_bytes: int = MIN_BYTES) -> None:
        """Take what is worth compressing.

        Args:
            min_bytes: What is shorter stays plain.
        """
        self._min_bytes = min_bytes

    def pack(self, data: bytes) -> bytes | None:
        """Return the frame that holds a value, `None` if the value had better stay as it is."""
        if not self._min_bytes <= len(data) <= LARGEST:
            return None
        frame = _contexts.compressor.compress(data)
        return frame if len(frame) <= (1 - _SAVES_AT_LEAST) * len(data) else None


def packer_of(compression: Literal["off", "zstd"], min_bytes: int) -> Packer | None:
    """Return what the settings ask for: `None`, nothing is compressed."""
    return Packer(min_bytes=min_bytes) if compression == "zstd" else None


def unpack(frame: bytes) -> bytes:
    """Return the value that a frame holds.

    Raises:
        ValueError: It does not say how much that is, or nothing, or more than `LARGEST`.
        zstandard.ZstdError: It is damaged, or something stands behind it.
    """
    if not 0 < zstandard.frame_content_size(frame) <= LARGEST:
        raise ValueError("a frame of no size, or of too great a size")
    return _contexts.decompressor.decompress(frame, allow_extra_data=False)


class _Contexts(threading.local):
    """The library's working memory: costly to make for each value, and not to be shared between threads."""

    def __init__(self) -> None:
        # A checksum, because a frame with a flipped bit may well unpack.
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()
