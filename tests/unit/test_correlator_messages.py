"""What can't be read any more does not take the rest with it."""

from __future__ import annotations

from farandole.correlator.messages import definition_message, definitions_by_version, saga_message
from farandole.correlator.queries import StoredDefinition
from farandole.testing.store_conformance import definition, saga

BROKEN = StoredDefinition("order-fulfilment", 1, "digest", b"\xff\xff")


def test_a_definition_that_can_not_be_read_is_told_by_its_name() -> None:
    message = definition_message(BROKEN)
    assert (message.name, message.version) == ("order-fulfilment", 1)
    assert not message.steps


def test_a_saga_whose_definition_can_not_be_read_is_told_without_participants() -> None:
    for definitions in (definitions_by_version([BROKEN]), {}):
        message = saga_message(saga("a"), definitions)
        assert [step.name for step in message.steps] == ["create-order", "take-payment", "ship"]
        assert [step.participant for step in message.steps] == ["", "", ""]
    known = definitions_by_version([StoredDefinition.of(definition())])
    assert [step.participant for step in saga_message(saga("a"), known).steps] == ["", "", "shipping"]
