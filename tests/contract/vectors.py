"""The golden wire vectors under docs/vectors: reading them, and adding one on purpose.

    python -m tests.contract.vectors orders.v1.OrderCreated < body.json

writes the vector of an event type that has none, from a ProtoJSON body. A vector that exists is never written anew:
it is what others have implemented against.
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from farandole.envelope import StoredMessage, encode
from farandole.ids import canonical_digest, content_id
from farandole.partitions import partition_of
from farandole.registry import EventType, Registry

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "docs/vectors"
CHECKSUMS = DIRECTORY / "SHA256SUMS"
STREAM_TIME = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
"""The time of the stream in every vector."""


def registry() -> Registry:
    """Every event of this repository."""
    path = ROOT / "generated/descriptors.binpb"
    return Registry.of_descriptor_set(path.read_bytes(), where=path.name)


def body_of(message: dict[str, Any]) -> bytes:
    """The bytes of a vector's body: hex, text, or a unit that is repeated between a prefix and a suffix."""
    if "body_hex" in message:
        return bytes.fromhex(message["body_hex"])
    if "body_repeated" in message:
        parts = message["body_repeated"]
        return (
            bytes.fromhex(parts["prefix_hex"])
            + bytes.fromhex(parts["unit_hex"]) * int(parts["count"])
            + bytes.fromhex(parts["suffix_hex"])
        )
    return str(message["body"]).encode()


def stored_message(message: dict[str, Any], *, subject: str = "") -> StoredMessage:
    """A vector's message as the stream would hold it."""
    return StoredMessage(
        subject=subject or message["stored_subject"],
        headers=message["headers"],
        data=body_of(message),
        sequence=1,
        time=STREAM_TIME,
    )


def text_of(time: datetime) -> str:
    """A time as the vectors write it."""
    return time.isoformat().replace("+00:00", "Z")


def event_vector(event_type: EventType, protojson: str) -> dict[str, Any]:
    """The vector of one event: with every header in Protobuf, and without any in JSON."""
    body = json_format.Parse(protojson, event_type.message_class())
    source, event_id, causation_id = "a service/é 100%", "6f1e2d3c-0000-5000-8000-0000000000aa", "cause of it"
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    time = STREAM_TIME - timedelta(seconds=1)
    publication = encode(
        event_type,
        body,
        source=source,
        event_id=event_id,
        time=time,
        causation_id=causation_id,
        traceparent=traceparent,
    )
    partition = partition_of(publication.key)
    text = json.dumps(json_format.MessageToDict(body), separators=(",", ":"), ensure_ascii=False)
    return {
        "event_type": event_type.name,
        "correlation_key": publication.key,
        "partition": partition,
        "published_subject": publication.subject,
        "stored_subject": f"events.{partition}.{event_type.name}",
        "protojson": json.loads(text),
        "canonical_sha256": canonical_digest(body).hex(),
        "messages": [
            {
                "name": "Protobuf with every header",
                "headers": dict(publication.headers),
                "body_hex": publication.data.hex(),
                "event": {
                    "source": source,
                    "id": event_id,
                    "time": text_of(time),
                    "causation_id": causation_id,
                    "traceparent": traceparent,
                },
            },
            {
                "name": "JSON without any header",
                "headers": {},
                "body": text,
                "event": {
                    "source": "anonymous",
                    "id": content_id(event_type.name, publication.key, text.encode()),
                    "time": text_of(STREAM_TIME),
                    "causation_id": "",
                    "traceparent": "",
                },
            },
        ],
    }


def checksum_line(path: Path) -> str:
    """A file's line in SHA256SUMS."""
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}"


def write(path: Path, vector: Any) -> None:
    """Writes a file that does not exist yet, and its checksum."""
    with path.open("x", encoding="utf-8") as file:
        json.dump(vector, file, indent=2, ensure_ascii=False)
        file.write("\n")
    known = CHECKSUMS.read_text().splitlines() if CHECKSUMS.exists() else []
    CHECKSUMS.write_text("\n".join(sorted([*known, checksum_line(path)], key=lambda line: line.split()[1])) + "\n")


def main(name: str) -> str:
    """Adds the vector of one event type; returns what to tell."""
    event_type = registry().get(name)
    if event_type is None:
        return f"{name} is not an event of generated/descriptors.binpb"
    path = DIRECTORY / f"{name}.json"
    if path.exists():
        return f"{path.relative_to(ROOT)} exists, and vectors do not change: others have implemented against it"
    write(path, event_vector(event_type, sys.stdin.read()))
    return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) or 0)
