"""docs/wire-contract.md says what the code does."""

from __future__ import annotations

import re
import shlex
import uuid

from farandole.envelope import (
    MAX_ATTRIBUTE_BYTES,
    MAX_BODY_BYTES,
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
    MAX_NESTED_MESSAGES,
    Event,
    Reason,
    StoredMessage,
    decode,
    encode,
)
from farandole.partitions import PARTITIONS, partition_of
from tests.contract.vectors import DIRECTORY, ROOT, STREAM_TIME, registry, text_of

PAGE = (ROOT / "docs/wire-contract.md").read_text(encoding="utf-8")
REGISTRY = registry()


def test_the_bare_publication_on_the_page_is_an_event() -> None:
    [command] = re.findall(r"^nats pub (.*)$", PAGE, re.MULTILINE)
    subject, body = shlex.split(command)
    _, key, name = subject.split(".", 2)
    event = decode(REGISTRY, StoredMessage(f"events.{partition_of(key)}.{name}", {}, body.encode(), 1, STREAM_TIME))
    assert isinstance(event, Event), event
    assert (event.key, event.type) == (key, name)


def test_the_page_names_every_reason() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(Reason.__members__)


def test_the_page_names_every_header_that_is_published() -> None:
    rows = set(re.findall(r"^\| `([A-Za-z-]+)` \|", PAGE, re.MULTILINE)) - set(Reason.__members__)
    event_type = REGISTRY.types["shipping.v1.OrderShipped"]
    body = event_type.message_class(order_id="a", tracking_number="T")
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    published = encode(
        event_type, body, source="s", causation_id="c", traceparent=traceparent, time=STREAM_TIME
    ).headers
    assert rows == set(published)


def test_the_page_has_the_limits_and_the_namespace() -> None:
    for fact in (
        f"{MAX_BODY_BYTES:,} bytes",
        f"{MAX_NESTED_MESSAGES:,} messages",
        f"{MAX_JSON_VALUES:,} values",
        f"most {MAX_JSON_DEPTH} deep",
        f"{MAX_ATTRIBUTE_BYTES} bytes",
        f"mod {PARTITIONS}",
        str(uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1")),
        text_of(STREAM_TIME),
    ):
        assert fact in " ".join(PAGE.split()), fact


def test_the_page_names_the_files_of_vectors() -> None:
    named = set(re.findall(r"^\| `([a-z]+\.json)` \|", PAGE, re.MULTILINE))
    assert named == {path.name for path in DIRECTORY.glob("*.json") if path.stem not in REGISTRY.types}
