"""The copy of a dead letter for the stream `DEADLETTERS`, as docs/wire-contract.md has it. Pure.

The correlator makes one of what no one can read, a participant of what it gives up on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping

from farandole.bodies import MAX_BODY_BYTES
from farandole.envelope import MALFORMED_HEADERS, Publication, StoredMessage
from farandole.reasons import Reason

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


def dead_letter_id(participant: str, sequence: int) -> str:
    """`<participant>-<sequence in EVENTS>`, by which a dead letter is known."""
    return f"{participant}-{sequence}"


def dead_letter_copy(message: StoredMessage, *, participant: str, key: str, reason: Reason, detail: str) -> Publication:
    """The copy of a stored message that `participant` gives up on, whole and not redacted: only who may read the stream
    `DEADLETTERS` sees it. What is published under `key` after it comes after it.

    Headers that would steer the broker (`Nats-*`) or pass for ours are not copied, nor what a header can't carry. A
    body above the limit is replaced by a JSON document with its size, its SHA-256 and its first bytes, and a type that
    is too long for a subject is cut.
    """
    identity = dead_letter_id(participant, message.sequence)
    headers = _copied(message.headers)
    headers |= {
        "farandole-participant": participant,
        "farandole-sequence": str(message.sequence),
        "farandole-subject": _header_value(message.subject),
        "farandole-reason": reason.name,
        "farandole-detail": _header_value(detail),
        "Nats-Msg-Id": identity,
    }
    data = message.data
    if len(data) > MAX_BODY_BYTES:
        headers["farandole-body"] = "summary"
        summary = {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "prefix": base64.b64encode(data[:PREFIX_BYTES]).decode(),
        }
        data = json.dumps(summary).encode()
    return Publication(
        key=key,
        subject=f"deadletters.{participant}.{_subject_type(message.type)}",
        headers=headers,
        data=data,
    )


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
    """As one line of printable ASCII, everything else percent-encoded; what is too long is cut between characters."""
    written: list[str] = []
    room = _MAX_HEADER_CHARACTERS
    for character in text:
        plain = _NOT_PLAIN.fullmatch(character) is None
        encoded = character if plain else "".join(f"%{byte:02X}" for byte in character.encode(errors="replace"))
        room -= len(encoded)
        if room < 0:
            break
        written.append(encoded)
    return "".join(written).strip()
