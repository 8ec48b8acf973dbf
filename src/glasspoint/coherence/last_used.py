"""What was last in use: for a process that starts while PostgreSQL is away, and cannot ask it.

A process that works in the tier `cached` leaves a record in Redis, a key for each target (which PostgreSQL it
is configured for). The record says under which keys the cached states stand, and what they are signed with.
A process of the same target reads it when it opens the tier `redis`, and goes on from these states.

The record is signed with a secret that Redis does not know: processes share it through their settings (see
`l2.target.fallback_secret`). The key that PostgreSQL keeps for the entries is not stored as it is: it is
combined with a pad, which an HMAC of a fresh random salt makes from that secret (a one-time pad of a
pseudo-random function, RFC 2104). Without such a secret no record is written, and none is believed.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote

from glasspoint.model.identity import Identity
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import Signer

__all__ = ["LastUsed"]

if TYPE_CHECKING:
    from typing import Any

# Changed whenever the record changes meaning.
_FORMAT = 1

_SALT_BYTES = 16
_PAD_BYTES = 32  # of HMAC-SHA-256; PostgreSQL makes keys of as many

_SIGNED_AS = Scope("", "")
_NAME = b"last-used"


class LastUsed:
    """Writes and reads the record of one target."""

    def __init__(self, target_id: str, secret: bytes, *, key_prefix: str, signing_key: bytes | None) -> None:
        """Name the target.

        Args:
            target_id: 16 hexadecimal digits, see `l2.target`.
            secret: At least 16 bytes that the target's processes share, and Redis does not know.
            key_prefix: What every key begins with.
            signing_key: What entries are signed with in place of the key that PostgreSQL keeps, if that is
                so.
        """
        self.key = f"{quote(key_prefix, safe='')}:last-used:{_FORMAT}:{target_id}".encode()
        """The key in Redis: a hash of the one field `record`."""
        self._pad_key = hmac.digest(secret, b"glasspoint.last-used.pad", "sha256")
        self._signing_key = signing_key
        self._signer = Signer(hmac.digest(secret, b"glasspoint.last-used.signature", "sha256"), target_id).of(
            _SIGNED_AS
        )

    def pack(self, identity: Identity) -> bytes:
        """Return the record of an identity."""
        salt = secrets.token_bytes(_SALT_BYTES)
        fields: dict[str, Any] = {
            "database": identity.database,
            "generation": identity.generation,
            "reign": identity.reign,
        }
        if self._signing_key is None:
            fields["salt"] = base64.b64encode(salt).decode()
            fields["key"] = base64.b64encode(self._padded(salt, identity.secret)).decode()
        record = json.dumps(fields).encode()
        return record + self._signer.sign(_NAME, record)

    def unpack(self, signed: bytes) -> Identity | None:
        """Return the identity of a record, `None` if the signature is wrong, or the record is of no use."""
        record = self._signer.verified(_NAME, signed)
        if record is None:
            return None
        fields = json.loads(record)
        key = self._signing_key
        if key is None:
            if "key" not in fields:  # written by a process with a signing key of its own
                return None
            key = self._padded(base64.b64decode(fields["salt"]), base64.b64decode(fields["key"]))
        return Identity(fields["database"], fields["generation"], fields["reign"], key)

    def _padded(self, salt: bytes, key: bytes) -> bytes:
        pad = hmac.digest(self._pad_key, salt, "sha256")
        if len(key) != _PAD_BYTES:
            raise ValueError(f"the key that PostgreSQL keeps has {len(key)} bytes, not {_PAD_BYTES}")
        return bytes(a ^ b for a, b in zip(key, pad, strict=True))
