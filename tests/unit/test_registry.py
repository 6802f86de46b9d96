"""Which event types a registry knows, and what it says of descriptors that are wrong."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from choreography.v1 import lifecycle_pb2, options_pb2
from farandole.envelope import Event, StoredMessage, decode
from farandole.errors import ConfigurationError
from farandole.partitions import partition_of
from farandole.registry import Registry
from orders.v1 import order_events_pb2, order_pb2
from shipping.v1 import shipping_events_pb2
from tests.unit.schemas import BYTES, INT32, SchemaFile, field, map_field

WHERE = "events.binpb"
DESCRIPTORS = Path(__file__).parents[2] / "generated/descriptors.binpb"
OWN = {
    "choreography.v1.DeadLetterDiscarded",
    "choreography.v1.DeadLetterRecorded",
    "choreography.v1.DeadLetterRedriven",
    "choreography.v1.DeadLetterSuperseded",
    "choreography.v1.DefinitionActivated",
    "choreography.v1.DefinitionRetired",
    "choreography.v1.EventUnreadable",
    "choreography.v1.PartitionTick",
    "choreography.v1.SagaCompensated",
    "choreography.v1.SagaCompleted",
    "choreography.v1.SagaFailed",
    "choreography.v1.SagaStalled",
    "choreography.v1.SagaTimedOut",
    "choreography.v1.StepOverdue",
    "choreography.v1.StepVoided",
}
"""The platform's own events."""


def _faults(serialized: bytes) -> list[tuple[str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        Registry.of_descriptor_set(serialized, where=WHERE)
    return [(fault.where, fault.reason) for fault in caught.value.faults]


def test_generated_classes_and_their_marks() -> None:
    registry = Registry.of_classes(
        [order_events_pb2.OrderCreated, shipping_events_pb2.OrderShipped, shipping_events_pb2.ShippingFailed]
    )
    own = {"orders.v1.OrderCreated", "shipping.v1.OrderShipped", "shipping.v1.ShippingFailed"}
    assert set(registry.types) == own | OWN
    created, shipped, failed = (registry.types[name] for name in sorted(own))
    assert (created.key_field, created.is_commit, created.is_failure, created.has_reason) == (
        "order_id",
        False,
        False,
        False,
    )
    assert (shipped.is_commit, shipped.is_failure) == (True, False)
    assert (failed.is_commit, failed.is_failure, failed.has_reason) == (False, True, True)
    assert created.message_class is order_events_pb2.OrderCreated
    assert registry.types["choreography.v1.SagaTimedOut"].message_class is lifecycle_pb2.SagaTimedOut
    assert registry.get("orders.v1.OrderLine") is None


def test_a_class_that_is_no_event_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"orders\.v1\.OrderLine: is not marked"):
        Registry.of_classes([order_events_pb2.OrderCreated, order_pb2.OrderLine])


def test_a_descriptor_set_gives_the_same_types_without_generated_code() -> None:
    registry = Registry.of_descriptor_set(DESCRIPTORS.read_bytes(), where=WHERE)
    assert set(registry.types) >= OWN | {"orders.v1.OrderCreated", "shipping.v1.OrderShipped"}
    created = registry.types["orders.v1.OrderCreated"]
    assert created.message_class is not order_events_pb2.OrderCreated
    assert (created.key_field, created.redactor.is_needed) == ("order_id", True)
    assert registry.types["choreography.v1.SagaTimedOut"].message_class is lifecycle_pb2.SagaTimedOut


def test_files_may_come_in_any_order() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    turned = descriptor_pb2.FileDescriptorSet(file=reversed(files.file))
    registry = Registry.of_descriptor_set(turned.SerializeToString(), where=WHERE)
    assert "orders.v1.OrderCreated" in registry.types


def test_a_nested_event_has_its_full_name() -> None:
    file = SchemaFile()
    inner = file.message("Outer").nested_type.add(name="Inner")
    inner.options.Extensions[options_pb2.event] = True
    field(inner, "id", key=True)
    registry = Registry.of_descriptor_set(file.serialized(), where=WHERE)
    assert file.type_of("Outer.Inner") in registry.types


def test_a_set_without_the_library_s_files_gets_the_library_s() -> None:
    """`buf build` leaves nothing out, but a team may build its set without what this library brings."""
    file = SchemaFile()
    file.event()
    assert file.type_of("Happened") in Registry.of_descriptor_set(file.serialized(), where=WHERE).types


@pytest.mark.parametrize("serialized", [b"no descriptor set", b"\xff" * 100, DESCRIPTORS.read_bytes()[:-10]])
def test_what_is_no_descriptor_set_is_refused_with_the_remedy(serialized: bytes) -> None:
    [(where, reason)] = _faults(serialized)
    assert where == WHERE
    assert "buf build --as-file-descriptor-set" in reason


def test_missing_imports_are_all_named() -> None:
    file = SchemaFile()
    file.event()
    file.proto.dependency.extend(["a/missing.proto", "b/missing.proto"])
    assert [(where, reason.split(";")[0]) for where, reason in _faults(file.serialized())] == [
        (WHERE, "lacks the imported file a/missing.proto"),
        (WHERE, "lacks the imported file b/missing.proto"),
    ]


def test_a_file_that_contradicts_itself_is_named() -> None:
    file = SchemaFile()
    field(file.event(), "n", of="no.such.Type")
    [(where, _)] = _faults(file.serialized())
    assert where == f"{WHERE}: {file.proto.name}"


def test_files_that_import_each_other_are_refused() -> None:
    one, other = SchemaFile(), SchemaFile()
    one.proto.dependency.append(other.proto.name)
    other.proto.dependency.append(one.proto.name)
    both = descriptor_pb2.FileDescriptorSet(file=[one.proto, other.proto])
    assert _faults(both.SerializeToString())


def test_every_wrong_event_is_named_at_once() -> None:
    file = SchemaFile()
    none = file.event("None")
    none.field[0].options.ClearExtension(options_pb2.correlation_key)
    field(file.event("Two"), "other_id", key=True)
    file.event("Number").field[0].type = INT32
    file.event("Bytes").field[0].type = BYTES
    file.event("List").field[0].label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    field(
        file.event("Rule"), "text", rules=lambda rules: rules.cel.add(id="x", message="m", expression="this.nonsense(")
    )
    file.event("Fine")
    faults = dict(_faults(file.serialized()))
    key = "needs exactly one field with (choreography.v1.correlation_key), has"
    one = "the correlation key must be one string"
    rule = faults.pop(f"{WHERE}: {file.type_of('Rule')}")
    assert "has a validation rule that does not compile" in rule
    assert faults == {
        f"{WHERE}: {file.type_of('None')}": f"{key} none",
        f"{WHERE}: {file.type_of('Two')}": f"{key} id, other_id",
        f"{WHERE}: {file.type_of('Number')}.id": one,
        f"{WHERE}: {file.type_of('Bytes')}.id": one,
        f"{WHERE}: {file.type_of('List')}.id": one,
    }


@pytest.mark.parametrize("where", ["field", "list", "map", "deep"])
def test_a_rule_that_does_not_compile_is_found_before_any_event_comes(where: str) -> None:
    file = SchemaFile()
    inner = file.message("Inner")
    field(inner, "text", rules=lambda rules: rules.cel.add(id="x", message="m", expression="this.nonsense("))
    middle = file.message("Middle")
    field(middle, "inner", of=file.type_of("Inner"))
    event = file.event()
    if where == "map":
        map_field(event, file.type_of("Happened"), "held", of=file.type_of("Inner"))
    else:
        held = "Middle" if where == "deep" else "Inner"
        field(event, "held", of=file.type_of(held), repeated=where == "list")
    [(place, reason)] = _faults(file.serialized())
    assert place == f"{WHERE}: {file.type_of('Happened')}"
    assert f"does not compile, in {file.type_of('Inner')}" in reason


def test_a_rule_that_an_empty_message_can_t_meet_is_no_fault() -> None:
    file = SchemaFile()
    event = file.event()
    field(event, "n", INT32, rules=lambda rules: rules.cel.add(id="x", message="m", expression="10 / this > 1"))
    assert file.type_of("Happened") in Registry.of_descriptor_set(file.serialized(), where=WHERE).types


def test_two_registries_may_know_different_types_of_one_name() -> None:
    """As a correlator under test does, or one that compares two editions of a team's events."""
    one, other = SchemaFile(), SchemaFile()
    other.package = other.proto.package = one.package
    other.proto.name = one.proto.name
    field(one.event(), "old", rules=lambda rules: setattr(rules.string, "min_len", 1))
    field(other.event(), "new", INT32, rules=lambda rules: setattr(rules.int32, "gte", 1))
    for file, body in ((one, b'{"id":"a","old":"x"}'), (other, b'{"id":"a","new":1}')):
        registry = Registry.of_descriptor_set(file.serialized(), where=WHERE)
        subject = f"events.{partition_of('a')}.{file.type_of('Happened')}"
        event = decode(registry, StoredMessage(subject, {}, body, 1, datetime.now(UTC)))
        assert isinstance(event, Event), event
