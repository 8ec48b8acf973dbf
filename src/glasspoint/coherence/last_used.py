"""The identity that was last in use, stored in Redis for processes that start while PostgreSQL is away.

A process in the tier `cached` leaves a record in Redis. There is one for each *target*: the PostgreSQL that a
process is configured for. In a Redis Cluster, the record stands once for each range of slots
(`redis.topology.RANGES`), so that it is usually on the master that has the cached state. The record tells
under which keys the cached states stand, and what signs them. A process of the same target reads the record
when it opens the tier `redis`, and continues from these states.

The record is signed with a secret that Redis does not know. Processes share the secret through their settings
(see `l2.target.fallback_secret`). PostgreSQL's signing key is not stored in plain form. It is combined with a
pad: the HMAC of a fresh random salt under that secret (a one-time pad of a pseudo-random function, RFC 2104).
Without such a secret, no record is written, and none is trusted.
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
from glasspoint.redis.topology import RANGES, tag_of_range

__all__ = ["LastUsed"]

if TYPE_CHECKING:
    from typing import Any

# It changes with the meaning of the record.
_FORMAT = 1

_SALT_BYTES = 16
_PAD_BYTES = 32  # the size of HMAC-SHA-256, and of the keys that PostgreSQL makes

_SIGNED_AS = Scope("", "")
_NAME = b"last-used"


class LastUsed:
    """Writes and reads the record of one target."""

    def __init__(self, target_id: str, secret: bytes, *, key_prefix: str, signing_key: bytes | None) -> None:
        """Name the target.

        Args:
            target_id: 16 hexadecimal digits, see `l2.target`.
            secret: At least 16 bytes that the target's processes share, and Redis does not know.
            key_prefix: The first part of every key.
            signing_key: Signs the entries, in place of the key that PostgreSQL keeps; `None`: PostgreSQL's
                key does.
        """
        key = f"{quote(key_prefix, safe='')}:last-used:{_FORMAT}:{target_id}"
        self.key = key.encode()
        """The key in Redis of a hash with one field."""
        self.keys_in_cluster = tuple(f"{key}:{{{tag_of_range(number)}}}".encode() for number in range(RANGES))
        """In a Redis Cluster, the key for each range of slots."""
        self.field = b"record"
        """That field."""
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
        """Return the identity in a record, `None` if the signature is wrong or the signing key is missing."""
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
