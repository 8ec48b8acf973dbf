"""One entry of the cache, signed, as Redis has it."""

from __future__ import annotations

import json

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from glasspoint.l1.entry import image_fields
from glasspoint.model import codec
from glasspoint.model.codec import StoredCheckpoint
from glasspoint.model.scope import Scope
from glasspoint.redis.signature import Signer
from states import numbered_id

SCOPE = Scope("t", "ns")
SERDE = JsonPlusSerializer()
VERSIONS = {"messages": "1.5", "turn": "1.5", "gone": "1.5"}


def stored() -> StoredCheckpoint:
    document = {
        "v": 4,
        "id": numbered_id(1),
        "channel_values": {"turn": 1},
        "channel_versions": VERSIONS,
        "versions_seen": {},
    }
    return StoredCheckpoint(
        scope=SCOPE,
        checkpoint_id=numbered_id(1),
        parent_id=None,
        document=document,
        metadata={"step": 1},
        values={"messages": ("1.5", codec.Encoded(*SERDE.dumps_typed(["hello"])))},
        writes=codec.encode_writes(SERDE, [("messages", "x"), ("turn", None)], "a:b", "~p", last_wins=False),
        document_json=json.dumps(document),
        metadata_json='{"step": 1}',
    )


def as_bytes(fields: list[bytes | str]) -> list[bytes]:
    return [part.encode() if isinstance(part, str) else part for part in fields]


SIGNER = Signer(b"k" * 16, "this generation")
FIELDS = as_bytes(image_fields(stored(), SIGNER))
