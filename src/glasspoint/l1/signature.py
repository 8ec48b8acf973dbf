"""Signatures on the fields of an entry: whoever changed one without the key is found out.

HMAC (RFC 2104) with SHA-256, truncated to 16 bytes: half of the hash, as its section 5 asks for at least.
Each field is signed on its own, because a put sends only the channels that changed, and writes come from
other processes; so each signature binds the place of its field as well, and no field can be moved.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from glasspoint.errors import ConfigurationError

if TYPE_CHECKING:
    from glasspoint.scope import Scope

__all__ = ["SIZE", "Signer", "signing_key_of"]

SIZE = 16
"""Bytes of a signature."""

_DOMAIN = b"glasspoint.l1.entry.1"
_KEY_BYTES_MIN = 16


def signing_key_of(key: bytes | str) -> bytes:
    """Return a key as bytes; of a text, its UTF-8.

    Raises:
        ConfigurationError: It is too short, or neither bytes nor text.
    """
    if not isinstance(key, bytes | str):
        raise ConfigurationError(f"l1_signing_key must be bytes or a string, not {type(key).__name__}.")
    secret = key.encode() if isinstance(key, str) else key
    if len(secret) < _KEY_BYTES_MIN:
        raise ConfigurationError(
            f"l1_signing_key has {len(secret)} bytes: it needs at least {_KEY_BYTES_MIN} that nobody can "
            "guess, for example what `openssl rand -hex 32` prints."
        )
    return secret


class Signer:
    """Holds the key; it shows in no text of this object."""

    __slots__ = ("_hmac",)

    def __init__(self, key: bytes | str) -> None:
        """Args:
        key: At least 16 bytes that nobody can guess; of a text, its UTF-8.

        Raises:
            ConfigurationError: It is too short, or neither bytes nor text.
        """
        if not isinstance(key, bytes | str):
            raise ConfigurationError(f"l1_signing_key must be bytes or a string, not {type(key).__name__}.")
        secret = key.encode() if isinstance(key, str) else key
        if len(secret) < _KEY_BYTES_MIN:
            raise ConfigurationError(
                f"l1_signing_key has {len(secret)} bytes: it needs at least {_KEY_BYTES_MIN} that nobody can "
                "guess, for example what `openssl rand -hex 32` prints."
            )
        self._hmac = hmac.new(secret, _framed(_DOMAIN), "sha256")

    def sign(self, scope: Scope, name: bytes, value: bytes, checkpoint_id: bytes = b"") -> bytes:
        """Return the signature of a field.

        Args:
            name: The field's.
            checkpoint_id: Which checkpoint it belongs to, if its name does not say.
        """
        signature = self._hmac.copy()
        thread_id, checkpoint_ns = scope
        # The length before each part: no two places are ever spelt alike.
        signature.update(
            _framed(thread_id.encode())
            + _framed(checkpoint_ns.encode())
            + _framed(name)
            + _framed(checkpoint_id)
        )
        signature.update(value)
        return signature.digest()[:SIZE]

    def verified(self, scope: Scope, name: bytes, signed: bytes, checkpoint_id: bytes = b"") -> bytes | None:
        """Return a field's value without the signature at its end, `None` if that is not right."""
        value = signed[:-SIZE]
        right = self.sign(scope, name, value, checkpoint_id)
        return value if hmac.compare_digest(right, signed[-SIZE:]) else None


def _framed(part: bytes) -> bytes:
    return len(part).to_bytes(8) + part
