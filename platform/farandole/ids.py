"""Ids that follow from what they name: whoever makes one again gets the same."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from urllib.parse import quote

from google.protobuf.message import Message

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1")


def canonical_digest(body: Message) -> bytes:
    """SHA-256 of the body's deterministic serialization."""
    return hashlib.sha256(body.SerializeToString(deterministic=True)).digest()


def content_id(event_type: str, key: str, data: bytes) -> str:
    """The id of an event that came without one: the same content has the same id."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join((event_type, key, hashlib.sha256(data).hexdigest()))))


def derived_id(parts: Sequence[str]) -> str:
    """The id of what follows from `parts`: deriving it again gives the same id. Parts hold no line feed."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


def message_id(source: str, event_id: str) -> str:
    """`Nats-Msg-Id` of an event: its identity, source and id, unambiguously joined."""
    return f"{quote(source, safe='')}/{quote(event_id, safe='')}"
