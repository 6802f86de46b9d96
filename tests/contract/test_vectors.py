"""The golden wire vectors: what is published, byte for byte, and what is refused, with its reason."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from typing import Any

import pytest
from google.protobuf import json_format

from farandole.bodies import MAX_JSON_VALUES, MAX_NESTED_MESSAGES
from farandole.correlator.time_outs import TimeOut, guarded
from farandole.envelope import Event, Publication, Unreadable, decode, encode
from farandole.ids import canonical_digest, content_id, derived_id, message_id
from farandole.partitions import PARTITIONS, is_key, partition_key, partition_of
from farandole.reasons import Reason
from farandole.registry import Registry
from tests.contract import vectors
from tests.contract.vectors import CHECKSUMS, DIRECTORY, body_of, checksum_line, stored_message, text_of

REGISTRY = vectors.registry()
TYPES = sorted(REGISTRY.types)


def _load(name: str) -> Any:
    return json.loads((DIRECTORY / f"{name}.json").read_text())


def _named(file: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in _load(file)]


def _shown(event: Event) -> dict[str, str]:
    return {
        "correlation_key": event.key,
        "source": event.source,
        "id": event.id,
        "time": text_of(event.time),
        "causation_id": event.causation_id,
        "traceparent": event.traceparent,
    }


def test_every_event_has_a_vector_and_every_vector_an_event() -> None:
    others = {"accepted", "refused", "keys", "identities", "participants", "dead_letters", "time_outs"}
    assert {path.stem for path in DIRECTORY.glob("*.json")} == {*TYPES, *others}


def test_no_vector_has_changed() -> None:
    """A change needs a second one, in SHA256SUMS: vectors are never written anew in passing."""
    files = sorted(DIRECTORY.glob("*.json"), key=lambda path: path.name)
    assert [checksum_line(path) for path in files] == CHECKSUMS.read_text().splitlines()


def test_a_vector_that_exists_is_not_written_anew() -> None:
    assert "exists" in vectors.main("orders.v1.OrderCreated")
    assert "is not an event" in vectors.main("orders.v1.OrderLine")


@pytest.mark.parametrize("name", TYPES)
def test_an_event_is_encoded_byte_for_byte(name: str) -> None:
    vector = _load(name)
    event_type = REGISTRY.types[name]
    body = json_format.ParseDict(vector["protojson"], event_type.message_class())
    message = vector["messages"][0]
    expected = message["event"]
    publication = encode(
        event_type,
        body,
        source=expected["source"],
        event_id=expected["id"],
        time=datetime.fromisoformat(expected["time"]),
        causation_id=expected["causation_id"],
        traceparent=expected["traceparent"],
    )
    assert publication.data.hex() == message["body_hex"]
    assert publication.headers == message["headers"]
    assert publication.subject == vector["published_subject"]
    assert (publication.key, partition_of(publication.key)) == (vector["correlation_key"], vector["partition"])


@pytest.mark.parametrize("name", TYPES)
def test_an_event_is_decoded_from_protobuf_and_from_json(name: str) -> None:
    vector = _load(name)
    for message in vector["messages"]:
        event = decode(REGISTRY, stored_message(message, subject=vector["stored_subject"]))
        assert isinstance(event, Event), event
        assert _shown(event) == {"correlation_key": vector["correlation_key"], **message["event"]}
        assert event.type == vector["event_type"]
        assert event.partition == vector["partition"]
        assert json_format.MessageToDict(event.body) == vector["protojson"]
        assert event.digest.hex() == canonical_digest(event.body).hex() == vector["canonical_sha256"]


@pytest.mark.parametrize("vector", _named("accepted"))
def test_what_must_be_accepted_is(vector: dict[str, Any]) -> None:
    event = decode(REGISTRY, stored_message(vector))
    assert isinstance(event, Event), event
    assert _shown(event) == vector["event"]
    assert json_format.MessageToDict(event.body) == vector["protojson"]


@pytest.mark.parametrize("vector", _named("refused"))
def test_what_must_be_refused_is_for_its_reason(vector: dict[str, Any]) -> None:
    refused = decode(REGISTRY, stored_message(vector))
    assert isinstance(refused, Unreadable), refused
    assert refused.reason.name == vector["reason"]
    assert refused.detail, "a reason in words is what an operator reads"


def test_every_reason_for_which_no_one_can_read_a_message_has_a_vector() -> None:
    of_participants = {Reason.REJECTED.name, Reason.RETRIES_EXHAUSTED.name, Reason.CRASHED.name}
    assert {vector["reason"] for vector in _load("refused")} == set(Reason.__members__) - of_participants


@pytest.mark.parametrize(
    ("name", "shorten"),
    [
        ("one byte too large", 1),
        ("more than 10,000 nested messages", 1),
        ("more than 10,000 JSON values in an unknown field", 4),  # the object's own three members count too
        ("JSON nested more than 100 deep", 1),
    ],
)
def test_the_limits_are_exact(name: str, shorten: int) -> None:
    assert (MAX_NESTED_MESSAGES, MAX_JSON_VALUES) == (10_000, 10_000)
    [vector] = [vector for vector in _load("refused") if vector["name"] == name]
    parts = vector["body_repeated"]
    within = parts | {"count": parts["count"] - shorten}
    if "suffix_hex" in within and name.startswith("JSON nested"):
        within["suffix_hex"] = parts["suffix_hex"][len(b"]".hex()) :]
    outcome = decode(REGISTRY, stored_message(vector | {"body_repeated": within}))
    reason = outcome.reason if isinstance(outcome, Unreadable) else None
    # the nested one still breaks a rule, since an order has at most 100 lines; but it has been looked at
    assert reason in (None, Reason.RULE_VIOLATION, Reason.INVALID_KEY), outcome


def test_keys_belong_to_their_partitions() -> None:
    keys = _load("keys")
    assert {key: partition_of(key) for key in keys["partitions"]} == keys["partitions"]
    assert set(keys["partitions"].values()) == set(range(PARTITIONS)), "every partition has a key among the vectors"
    assert all(is_key(key) for key in keys["partitions"])
    assert [partition_key(partition) for partition in range(PARTITIONS)] == keys["partition_keys"]
    assert [partition_of(key) for key in keys["partition_keys"]] == list(range(PARTITIONS))
    assert not any(is_key(text) for text in keys["not_keys"])


def test_identities_are_derived_as_they_were() -> None:
    identities = _load("identities")
    assert identities["namespace"] == str(uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1"))
    for vector in identities["content_ids"]:
        derived = content_id(vector["event_type"], vector["correlation_key"], vector["body"].encode())
        assert derived == vector["id"]
    for vector in identities["derived_ids"]:
        assert derived_id(vector["parts"]) == vector["id"]
    for vector in identities["message_ids"]:
        assert message_id(vector["source"], vector["id"]) == vector["nats_msg_id"]


@pytest.mark.parametrize("vector", _named("time_outs"))
async def test_a_time_out_is_compared_with_the_last_commit_event(vector: dict[str, Any]) -> None:
    async def last_stored_on(subject: str) -> int:
        return int(vector["last_stored"].get(subject, 0))

    async def stored_behind(subject: str, after: int) -> list[tuple[int, str]]:
        assert after == vector["position"] < vector["last_stored"][subject]
        return [(vector["last_stored"][subject], "ord-42")]  # what has not been read may be the saga's own commit event

    publication = Publication("ord-42", "events.ord-42.choreography.v1.SagaTimedOut", {"ce-id": "1"}, b"")
    published = await guarded(
        [TimeOut(publication, vector["commit_subject"])],
        position=vector["position"],
        last_stored_on=last_stored_on,
        stored_behind=stored_behind,
    )
    expected = vector["headers"]
    assert [p.headers for p in published] == ([] if expected is None else [{"ce-id": "1", **expected}])


def test_a_repeated_body_is_what_it_says() -> None:
    """The vectors' own short form, since a wrong one would make the tests above say less than they seem to."""
    [vector] = [vector for vector in _load("refused") if vector["name"] == "half a million empty submessages"]
    data = body_of(vector)
    order = REGISTRY.types["orders.v1.OrderCreated"].message_class.FromString(data)
    assert len(order.lines) == 500_000  # type: ignore[attr-defined]


def test_generated_classes_read_the_same_as_descriptors() -> None:
    """A participant knows its events from generated classes, a correlator from the descriptor set."""
    from orders.v1 import order_events_pb2

    generated = Registry.of_classes([order_events_pb2.OrderCreated])
    vector = _load("orders.v1.OrderCreated")
    for message in vector["messages"]:
        stored = stored_message(message, subject=vector["stored_subject"])
        one, other = decode(generated, stored), decode(REGISTRY, stored)
        assert isinstance(one, Event)
        assert isinstance(other, Event)
        assert (one.fact, _shown(one)) == (other.fact, _shown(other))
