"""Signs the fields of an entry. A field that was made without the key is refused before it is parsed.

A signature is a keyed BLAKE2b (RFC 7693) of 16 bytes. Its key is derived from a secret and a context. The
context is the generation of the cache, so a field of another generation is refused.

Each field is signed on its own, because a put sends only the channels that changed, and pending writes come
from other processes. So a signature also covers the scope and the name of its field: a field that was moved
elsewhere is refused.

A Python in FIPS mode has no keyed BLAKE2b. It uses HMAC-SHA-256 (RFC 2104) instead, truncated to 16 bytes.
That is as safe. It is slower for an entry of a few kB, and faster for a larger one if the processor has
instructions for SHA-256. Processes with and without FIPS mode refuse each other's fields, as processes with
different keys do.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from glasspoint.model.scope import Scope

__all__ = ["SIZE", "ScopeSigner", "Signer", "secret_of"]

SIZE = 16
"""The length of a signature in bytes."""

_DOMAIN = b"glasspoint.l1.entry"


def secret_of(key: bytes | str) -> bytes:
    """Return the bytes of an `l1_signing_key`, checked before; a text is encoded as UTF-8."""
    return key.encode() if isinstance(key, str) else key


class Signer:
    """Signs and verifies fields with one key. The `repr` of this object does not show the key."""

    __slots__ = ("_keyed",)

    def __init__(self, secret: bytes | str, context: str = "") -> None:
        """Take the key.

        Args:
            secret: At least 16 bytes that nobody can guess, or a text of as many.
            context: The context in which the signatures are valid: the generation of the cache.
        """
        self._keyed = _keyed(hmac.digest(secret_of(secret), _framed(_DOMAIN) + context.encode(), "sha256"))

    def of(self, scope: Scope) -> ScopeSigner:
        """Return the signer of one scope's fields."""
        keyed = self._keyed.copy()
        keyed.update(_framed(scope.thread_id.encode()) + _framed(scope.checkpoint_ns.encode()))
        return ScopeSigner(keyed)


class ScopeSigner:
    """Signs and verifies the fields of one scope. `Signer.of` makes one for each entry."""

    __slots__ = ("_start",)

    def __init__(self, keyed: _Keyed) -> None:
        """Take the hash to begin with.

        Args:
            keyed: A hash that has read the key and the scope already.
        """
        self._start = keyed.copy

    def sign(self, name: bytes, value: bytes) -> bytes:
        """Return the signature of a field.

        Args:
            name: The field's name, and anything else that the value must stay together with.
        """
        # The length stands before each part except the last. So two fields never give the same bytes.
        keyed = self._start()
        keyed.update(len(name).to_bytes(8) + name)
        keyed.update(value)
        return keyed.digest()[:SIZE]

    def verified(self, name: bytes, signed: bytes) -> bytes | None:
        """Return a field's value without the signature at its end, `None` if that signature is wrong."""
        value = signed[:-SIZE]
        return value if hmac.compare_digest(self.sign(name, value), signed[-SIZE:]) else None


class _Keyed(Protocol):
    def copy(self) -> Self: ...
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


def _keyed(key: bytes) -> _Keyed:
    try:
        return hashlib.blake2b(key=key, digest_size=SIZE)
    except (AttributeError, TypeError, ValueError):  # FIPS: blake2b is missing, takes no key, or is refused
        return hmac.new(key, digestmod="sha256")


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8) + part
