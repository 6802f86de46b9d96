"""Dead letters: what is kept, shown and published of an event that was given up on."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from farandole.envelope import MALFORMED_HEADERS, MAX_BODY_BYTES, Publication, Reason, Unreadable
from farandole.registry import Registry

CORRELATOR = "correlator"
"""The participant that gives up on what no one can read."""
PREFIX_BYTES = 4096
"""How much of a body is kept where the whole can't be."""

_MAX_HEADER_CHARACTERS = 1024
_MAX_COPIED_CHARACTERS = 16 * 1024
"""Of all copied headers together: a copy must stay below the broker's payload limit, which counts headers too."""
_MAX_SUBJECT_TYPE_BYTES = 512
"""The broker closes a connection that sends a longer line than 4096 bytes, and an unknown type may nearly fill one."""
_HEADER_NAME = re.compile(r"[!-9;-~]+")
_PLAIN = re.compile(r"[\x20-\x7e]*")
_NOT_PLAIN = re.compile(r"[^\x20-\x24\x26-\x7e]")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One delivery that was given up on (`choreography.v1.DeadLetter`)."""

    participant: str
    sequence: int
    """Of the event in the stream `EVENTS`; unique together with the participant."""
    subject: str
    event_type: str
    key: str
    """The correlation key, where the body could be read that far."""
    reason: Reason
    detail: str
    stream_time: datetime
    headers: Mapping[str, str]
    body_size: int
    body_sha256: str
    payload: bytes | None = field(default=None, repr=False)
    """The serialized message of `event_type`, redacted, where the body could be decoded."""
    body_prefix: bytes = field(default=b"", repr=False)

    @property
    def id(self) -> str:
        """`<participant>-<sequence>`."""
        return f"{self.participant}-{self.sequence}"


def parse_dead_letter_id(text: str) -> tuple[str, int] | None:
    """Participant and sequence of a dead letter's id; None where it can't be one."""
    participant, _, sequence = text.rpartition("-")
    if participant and re.fullmatch(r"[1-9]\d{0,17}", sequence, re.ASCII):
        return participant, int(sequence)
    return None


def dead_letter_of(unreadable: Unreadable, registry: Registry) -> DeadLetter:
    """What the correlator keeps of a message that no one can read, with nothing in it that must not be shown.

    Bytes of the body are kept only where its type is known and has nothing to redact: of an unknown type, nobody can
    tell what they hold.
    """
    message = unreadable.message
    event_type = registry.get(message.type)
    payload: bytes | None = None
    prefix = b""
    if unreadable.body is not None and event_type is not None:
        payload = event_type.redactor.redact(unreadable.body).SerializeToString(deterministic=True)
    elif event_type is not None and not event_type.redactor.is_needed and _is_consistent(unreadable):
        prefix = message.data[:PREFIX_BYTES]
    return DeadLetter(
        participant=CORRELATOR,
        sequence=message.sequence,
        subject=message.subject,
        event_type=message.type,
        key=unreadable.key,
        reason=unreadable.reason,
        detail=unreadable.detail,
        stream_time=message.time,
        headers=dict(message.headers),
        body_size=len(message.data),
        body_sha256=hashlib.sha256(message.data).hexdigest(),
        payload=payload,
        body_prefix=prefix,
    )


def dead_letter_publication(dead_letter: DeadLetter, unreadable: Unreadable) -> Publication:
    """The copy for the stream `DEADLETTERS`, whole and not redacted: only who may read that stream sees it.

    Headers that would steer the broker (`Nats-*`) or pass for ours are not copied, nor what a header can't carry. A
    body above the limit is replaced by a JSON document with its size, its SHA-256 and its first bytes, and a type that
    is too long for a subject is cut.
    """
    data = unreadable.message.data
    headers = _copied(unreadable.message.headers)
    headers |= {
        "farandole-participant": dead_letter.participant,
        "farandole-sequence": str(dead_letter.sequence),
        "farandole-subject": _header_value(dead_letter.subject),
        "farandole-reason": dead_letter.reason.name,
        "farandole-detail": _header_value(dead_letter.detail),
        "Nats-Msg-Id": dead_letter.id,
    }
    if len(data) > MAX_BODY_BYTES:
        headers["farandole-body"] = "summary"
        summary = {
            "size": len(data),
            "sha256": dead_letter.body_sha256,
            "prefix": base64.b64encode(data[:PREFIX_BYTES]).decode(),
        }
        data = json.dumps(summary).encode()
    return Publication(
        key=dead_letter.key or dead_letter.id,
        subject=f"deadletters.{dead_letter.participant}.{_subject_type(dead_letter.event_type)}",
        headers=headers,
        data=data,
    )


def _is_consistent(unreadable: Unreadable) -> bool:
    """Whether the subject's type is the only one that the message claims."""
    return unreadable.reason is not Reason.TYPE_MISMATCH


def _copied(headers: Mapping[str, str]) -> dict[str, str]:
    copied: dict[str, str] = {}
    room = _MAX_COPIED_CHARACTERS
    for name, value in headers.items():
        lower = name.lower()
        if name == MALFORMED_HEADERS or lower.startswith(("nats-", "farandole-")):
            continue
        size = len(name) + len(value)
        if size <= room and _HEADER_NAME.fullmatch(name) and _PLAIN.fullmatch(value):
            copied[name] = value
            room -= size
    return copied


def _subject_type(event_type: str) -> str:
    """As much of a type as a subject has room for, ending in no empty token."""
    return event_type.encode()[:_MAX_SUBJECT_TYPE_BYTES].decode(errors="ignore").rstrip(".")


def _header_value(text: str) -> str:
    """As one line of printable ASCII, everything else percent-encoded."""
    encoded = _NOT_PLAIN.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode(errors="replace")), text)
    return encoded[:_MAX_HEADER_CHARACTERS].strip()
