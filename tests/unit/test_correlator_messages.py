"""The correlator's values as messages; what can't be read any more does not take the rest with it."""

from __future__ import annotations

from dataclasses import replace

from google.protobuf import json_format

from choreography.v1 import dead_letter_pb2
from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.messages import (
    dead_letter_message,
    definition_message,
    definitions_by_version,
    saga_message,
)
from farandole.correlator.queries import StoredDefinition
from farandole.testing.store_conformance import at, definition, given_up, saga

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


def test_a_dead_letter_says_whose_step_gave_up_and_what_became_of_it() -> None:
    letter = replace(given_up(7, at_sequence=9).dead_letter, state=DeadLetterState.DISCARDED, close_time=at(12))
    assert json_format.MessageToDict(dead_letter_message(letter)) == {
        "deadLetterId": "payments-7",
        "participant": "payments",
        "sequence": "7",
        "subject": "events.12.orders.v1.OrderCreated",
        "eventType": "orders.v1.OrderCreated",
        "sagaId": "a",
        "reason": "DEAD_LETTER_REASON_RETRIES_EXHAUSTED",
        "detail": "tried 3 times",
        "streamTime": "2026-03-01T09:00:07.123456Z",
        "definition": "order-fulfilment",
        "step": "take-payment",
        "compensation": True,
        "attempts": 3,
        "state": "DEAD_LETTER_STATE_DISCARDED",
        "closeTime": "2026-03-01T09:00:12.123456Z",
    }


def test_states_of_dead_letters_have_the_numbers_of_their_messages() -> None:
    told = {name.removeprefix("DEAD_LETTER_STATE_"): number for name, number in dead_letter_pb2.DeadLetterState.items()}
    del told["UNSPECIFIED"]
    assert told == {state.name: state.value for state in DeadLetterState}
