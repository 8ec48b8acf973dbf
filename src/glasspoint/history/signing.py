"""Signs and verifies a thread's fields: a field that was made without the key is refused, unread. No I/O.

The fallback chain signs its threads (see "Signed" in `docs/fallback.md`). A `RedisSaver` without a key does
not: `Fields` leaves everything as it is.

Each field has a signature of its own, because a put sends only the channels that changed, and pending writes
come from other processes. The signature covers the thread, the namespace and the field's place, so a field
cannot be moved. Some scripts replace a field, but keep one part of it: the parent's id, or the task path of a
write. So these two parts have signatures of their own. They are texts, so the signature follows as text,
after a byte that no text holds.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

from glasspoint.errors import ThreadTamperedError
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import SIZE

if TYPE_CHECKING:
    from glasspoint.redis.signature import ScopeSigner, Signer

__all__ = ["Fields", "SignedFields", "tampered"]

_MARK = b"\xff"


def tampered(what: str) -> ThreadTamperedError:
    """Return the error for a field with a wrong signature.

    Args:
        what: The kind of field, such as "a value".
    """
    return ThreadTamperedError(
        f"This thread cannot be read: in Redis, {what} of it is not signed with this process's key (or the "
        "process has none), and nothing of the thread was used. If the key was changed "
        "(CHECKPOINT_L1_SIGNING_KEY, or without it the password of PostgreSQL), let a process with the "
        "former key drain the thread. If not, somebody else writes to this Redis: lock them out, and delete "
        "the thread."
    )


class Fields:
    """The fields of one thread, unsigned: stored and read as they are."""

    def parent(self, namespace: str, checkpoint_id: str, parent_id: str) -> bytes:
        """Return the parent's id (`""`: no parent) in its stored form."""
        return parent_id.encode()

    def metadata(self, namespace: str, checkpoint_id: str, rest_of_head: bytes, metadata: bytes) -> bytes:
        """Return the metadata in their stored form."""
        return metadata

    def document(
        self, namespace: str, checkpoint_id: str, rest_of_head: bytes, metadata: bytes, document: bytes
    ) -> bytes:
        """Return the document in its stored form. `metadata` is not in its stored form."""
        return document

    def value(self, namespace: str, channel: bytes, version: bytes, value: bytes) -> bytes:
        """Return a packed value in its stored form."""
        return value

    def path(self, namespace: str, place: bytes, path: bytes) -> bytes:
        """Return a write's task path in its stored form. `place` is checkpoint id NUL task NUL index."""
        return path

    def data(self, namespace: str, place: bytes, channel: bytes, type_: bytes, data: bytes) -> bytes:
        """Return a write's bytes in their stored form."""
        return data

    # The methods below take the stored form, and return the original, or raise `ThreadTamperedError`.

    def read_parent(self, namespace: str, checkpoint_id: str, stored: bytes) -> bytes:
        """Read a parent's id."""
        return stored

    def read_metadata(self, namespace: str, checkpoint_id: str, rest_of_head: bytes, stored: bytes) -> bytes:
        """Read metadata. If they can be read, the rest of the head is trusted, too."""
        return stored

    def read_document(
        self, namespace: str, checkpoint_id: str, rest_of_head: bytes, metadata: bytes, stored: bytes
    ) -> bytes:
        """Read a document; `metadata` has been read."""
        return stored

    def read_value(self, namespace: str, channel: bytes, version: bytes, stored: bytes) -> bytes:
        """Read a packed value."""
        return stored

    def read_path(self, namespace: str, place: bytes, stored: bytes) -> bytes:
        """Read a task path."""
        return stored

    def read_data(self, namespace: str, place: bytes, channel: bytes, type_: bytes, stored: bytes) -> bytes:
        """Read a write's bytes."""
        return stored


class SignedFields(Fields):
    """The fields of one thread, signed and verified."""

    def __init__(self, signer: Signer, thread_id: str) -> None:
        """Take the key and the thread.

        Args:
            signer: Signs for the target.
            thread_id: The thread that the fields belong to.
        """
        self._signer = signer
        self._thread_id = thread_id
        self._signers: dict[str, ScopeSigner] = {}

    def parent(self, namespace: str, checkpoint_id: str, parent_id: str) -> bytes:
        """Return the id and its signature. No parent has no signature, because a script removes parents."""
        if not parent_id:
            return b""
        return self._with_text(namespace, _name(b"parent", checkpoint_id.encode()), parent_id.encode())

    def metadata(self, namespace: str, checkpoint_id: str, rest_of_head: bytes, metadata: bytes) -> bytes:
        """Return the metadata and a signature of them and of the rest of the head."""
        name = _name(b"metadata", checkpoint_id.encode(), rest_of_head)
        return metadata + self._of(namespace).sign(name, metadata)

    def document(
        self, namespace: str, checkpoint_id: str, rest_of_head: bytes, metadata: bytes, document: bytes
    ) -> bytes:
        """Return the document and a signature of it, the rest of the head and the metadata."""
        name = _name(b"document", checkpoint_id.encode(), rest_of_head, metadata)
        return document + self._of(namespace).sign(name, document)

    def value(self, namespace: str, channel: bytes, version: bytes, value: bytes) -> bytes:
        """Return the value and its signature."""
        return value + self._of(namespace).sign(_name(b"value", channel, version), value)

    def path(self, namespace: str, place: bytes, path: bytes) -> bytes:
        """Return the path and its signature."""
        return self._with_text(namespace, _name(b"path", place), path)

    def data(self, namespace: str, place: bytes, channel: bytes, type_: bytes, data: bytes) -> bytes:
        """Return a write's bytes and their signature."""
        return data + self._of(namespace).sign(_name(b"write", place, channel, type_), data)

    def read_parent(self, namespace: str, checkpoint_id: str, stored: bytes) -> bytes:
        """Read a parent's id."""
        if not stored:
            return b""
        name = _name(b"parent", checkpoint_id.encode())
        return self._verified_text(namespace, name, stored, "a parent's id")

    def read_metadata(self, namespace: str, checkpoint_id: str, rest_of_head: bytes, stored: bytes) -> bytes:
        """Read metadata. If they can be read, the rest of the head is trusted, too."""
        name = _name(b"metadata", checkpoint_id.encode(), rest_of_head)
        return self._verified(namespace, name, stored, "the metadata of a checkpoint")

    def read_document(
        self, namespace: str, checkpoint_id: str, rest_of_head: bytes, metadata: bytes, stored: bytes
    ) -> bytes:
        """Read a document; `metadata` has been read."""
        name = _name(b"document", checkpoint_id.encode(), rest_of_head, metadata)
        return self._verified(namespace, name, stored, "a checkpoint")

    def read_value(self, namespace: str, channel: bytes, version: bytes, stored: bytes) -> bytes:
        """Read a packed value."""
        return self._verified(namespace, _name(b"value", channel, version), stored, "a value")

    def read_path(self, namespace: str, place: bytes, stored: bytes) -> bytes:
        """Read a task path."""
        return self._verified_text(
            namespace, _name(b"path", place), stored, "the task path of a pending write"
        )

    def read_data(self, namespace: str, place: bytes, channel: bytes, type_: bytes, stored: bytes) -> bytes:
        """Read a write's bytes."""
        return self._verified(namespace, _name(b"write", place, channel, type_), stored, "a pending write")

    def _of(self, namespace: str) -> ScopeSigner:
        signer = self._signers.get(namespace)
        if signer is None:
            signer = self._signers[namespace] = self._signer.of(Scope(self._thread_id, namespace))
        return signer

    def _with_text(self, namespace: str, name: bytes, text: bytes) -> bytes:
        return text + _MARK + b64encode(self._of(namespace).sign(name, text))

    def _verified(self, namespace: str, name: bytes, signed: bytes, what: str) -> bytes:
        value = self._of(namespace).verified(name, signed)
        if value is None:
            raise tampered(what)
        return value

    def _verified_text(self, namespace: str, name: bytes, signed: bytes, what: str) -> bytes:
        text, _, signature = signed.partition(_MARK)
        try:
            raw = b64decode(signature, validate=True)
        except binascii.Error:
            raw = b""
        if len(raw) != SIZE:
            raise tampered(what)
        return self._verified(namespace, name, text + raw, what)


def _name(*parts: bytes) -> bytes:
    """Join the parts of a field's name, so that two different names never have the same bytes."""
    return b"".join(len(part).to_bytes(8) + part for part in parts)
