"""What makes a definition valid, and what its tables say."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from choreography.v1 import saga_definition_pb2
from farandole.definition import Definition, Outcome, Problem, StepKind, validate
from tests.unit.saga_histories import ORDER_FULFILMENT, REGISTRY

KNOWN = frozenset(REGISTRY.types)
PLACE, RESERVE, PAY, SHIP, COMPLETE = range(5)

Message = saga_definition_pb2.SagaDefinition


def problems_of(change: Callable[[Message], object]) -> list[Problem]:
    """What is wrong with order-fulfilment after a change."""
    message = ORDER_FULFILMENT.to_message()
    change(message)
    return validate(message, KNOWN)


def test_order_fulfilment_is_valid() -> None:
    assert validate(ORDER_FULFILMENT.to_message(), KNOWN) == []


def test_a_definition_survives_the_way_through_its_message() -> None:
    again = Definition.of_message(ORDER_FULFILMENT.to_message())
    assert again == ORDER_FULFILMENT
    assert again.digest == ORDER_FULFILMENT.digest
    assert (again.deadline, again.steps[PAY].deadline) == (timedelta(minutes=30), timedelta(minutes=1))
    assert (again.steps[COMPLETE].compensation, again.steps[SHIP].kind) == (None, StepKind.PIVOT)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "version", 2),
        lambda m: setattr(m, "description", "other"),
        lambda m: setattr(m.deadline, "seconds", 1),
        lambda m: setattr(m.steps[SHIP].compensation.deadline, "seconds", 1),
        lambda m: m.steps[PLACE].compensation.triggers.reverse(),
    ],
)
def test_another_content_has_another_digest(change: Callable[[Message], object]) -> None:
    message = ORDER_FULFILMENT.to_message()
    change(message)
    assert Definition.of_message(message).digest != ORDER_FULFILMENT.digest


def test_the_digest_is_stable() -> None:
    """It is stored beside sagas: a change of it would look like a changed definition."""
    plain = Definition("a", 1, "", timedelta(seconds=1), "x.v1.A", "x.v1.A", ())
    assert plain.digest == "3bf180e209d94f0eb38b78bb0eb9b5d02200ea743e5e9a76499672e229607e6b"


def test_roles_say_what_each_event_means() -> None:
    roles = ORDER_FULFILMENT.roles
    created = roles["orders.v1.OrderCreated"]
    assert (created.outcome, created.step, created.is_initiating) == (Outcome.SUCCESS, PLACE, True)
    assert (created.starts, created.undoes) == ((RESERVE,), ())
    released = roles["inventory.v1.ItemsReleased"]
    assert (released.outcome, released.step, released.is_initiating) == (Outcome.COMPLETION, RESERVE, False)
    assert (released.starts, released.undoes) == ((), (PLACE,))
    assert roles["shipping.v1.ShippingFailed"].outcome is Outcome.FAILURE
    assert ORDER_FULFILMENT.event_types == set(roles)
    assert len(roles) == 12
    assert ORDER_FULFILMENT.pivot == SHIP


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        pytest.param(
            lambda m: setattr(m, "name", "Order Fulfilment"), "name", "does not match regex", id="schema rule"
        ),
        pytest.param(lambda m: setattr(m, "version", 0), "version", "greater than or equal to 1", id="version"),
        pytest.param(lambda m: m.ClearField("deadline"), "deadline", "required", id="no deadline"),
        pytest.param(
            lambda m: setattr(m.steps[PAY].deadline, "seconds", 0), "steps[2].deadline", "greater than 0s", id="zero"
        ),
        pytest.param(
            lambda m: setattr(m.steps[PAY].compensation.deadline, "seconds", 10**10),
            "steps[2].compensation.deadline",
            "at most 3650 days",
            id="a duration beyond all dates",
        ),
        pytest.param(
            lambda m: setattr(m.steps[PAY].compensation, "completion", "payments.v1.PaymentRefundet"),
            "steps[2].compensation.completion",
            "payments.v1.PaymentRefundet is no known event type; did you mean payments.v1.PaymentRefunded?",
            id="unknown type",
        ),
        pytest.param(
            lambda m: m.steps[PLACE].compensation.triggers.append("choreography.v1.SagaTimedOut"),
            "steps[0].compensation.triggers[2]",
            "a time-out of the saga triggers every compensation",
            id="lifecycle event",
        ),
        pytest.param(
            lambda m: setattr(m.steps[PAY], "name", "reserve-items"),
            "steps[2].name",
            "reserve-items is the name of steps[1] already",
            id="repeated name",
        ),
        pytest.param(
            lambda m: m.steps[PAY].failures.append("inventory.v1.ReservationFailed"),
            "steps[2].failures[1]",
            "inventory.v1.ReservationFailed is the failure of reserve-items already",
            id="an event that means two things",
        ),
        pytest.param(
            lambda m: m.steps[PAY].all_of.append("inventory.v1.ItemsReserved"),
            "steps[2].all_of",
            "has one of them",
            id="triggers and all_of",
        ),
        pytest.param(
            lambda m: m.steps[PAY].ClearField("triggers"),
            "steps[2]",
            "take-payment has neither `triggers` nor `all_of`",
            id="no trigger",
        ),
        pytest.param(
            lambda m: m.steps[PLACE].triggers.append("orders.v1.OrderCompleted"),
            "steps[0].triggers",
            "nothing triggers the step",
            id="triggered initiating step",
        ),
        pytest.param(
            lambda m: m.steps[PAY].triggers.append("drones.v1.DroneProvisioned"),
            "steps[2].triggers[1]",
            "nothing in the definition produces drones.v1.DroneProvisioned",
            id="trigger from elsewhere",
        ),
        pytest.param(
            lambda m: m.steps[COMPLETE].triggers.append("orders.v1.OrderCancelled"),
            "steps[4].triggers[1]",
            "OrderCancelled is a completion of the compensation of place-order",
            id="step started by an undoing",
        ),
        pytest.param(
            lambda m: m.steps[COMPLETE].failures.append("drones.v1.DroneUnavailable"),
            "steps[4].failures",
            "RETRIABLE step can't fail for good",
            id="retriable step that fails",
        ),
        pytest.param(
            lambda m: setattr(m.steps[COMPLETE].compensation, "completion", "drones.v1.DroneReleased"),
            "steps[4].compensation",
            "RETRIABLE step is never undone",
            id="retriable step that is undone",
        ),
        pytest.param(
            lambda m: m.steps[PLACE].compensation.triggers.append("drones.v1.DroneUnavailable"),
            "steps[0].compensation.triggers[2]",
            "nothing in the definition produces drones.v1.DroneUnavailable",
            id="compensation triggered from elsewhere",
        ),
        pytest.param(
            lambda m: m.steps[PLACE].compensation.triggers.append("orders.v1.OrderCancelled"),
            "steps[0].compensation.triggers[2]",
            "the completion of this same compensation",
            id="compensation that triggers itself",
        ),
        pytest.param(
            lambda m: m.steps[PLACE].compensation.triggers.append("shipping.v1.OrderShipped"),
            "steps[0].compensation.triggers[2]",
            "is the success of ship-order",
            id="compensation triggered by a success",
        ),
        pytest.param(
            lambda m: setattr(m.steps[PAY], "kind", saga_definition_pb2.STEP_KIND_PIVOT),
            "steps[3].kind",
            "one PIVOT, and take-payment is one already",
            id="two pivots",
        ),
        pytest.param(
            lambda m: setattr(m.steps[SHIP], "kind", saga_definition_pb2.STEP_KIND_COMPENSATABLE),
            "steps",
            "no step is the PIVOT",
            id="no pivot",
        ),
        pytest.param(
            lambda m: setattr(m, "commit_event", "shipping.v1.ShippingFailed"),
            "commit_event",
            "is the success of no step; did you mean shipping.v1.OrderShipped?",
            id="commit event that is no success",
        ),
        pytest.param(
            lambda m: setattr(m, "initiating_event", "orders.v1.OrderCancelled"),
            "initiating_event",
            "orders.v1.OrderCancelled is a completion of the compensation of place-order",
            id="initiating event that undoes",
        ),
        pytest.param(
            lambda m: setattr(m, "commit_event", "orders.v1.OrderCompleted"),
            "steps[3].success",
            "the success of the PIVOT is the commit event, orders.v1.OrderCompleted",
            id="pivot of another commit event",
        ),
        pytest.param(
            lambda m: m.steps[RESERVE].triggers.__setitem__(0, "inventory.v1.ItemsReserved"),
            "steps[1]",
            "reserve-items can never start",
            id="unreachable",
        ),
        pytest.param(
            lambda m: m.steps[COMPLETE].triggers.append("payments.v1.PaymentProcessed"),
            "steps[4].kind",
            "can start before the commit event",
            id="retriable before the commit event",
        ),
        pytest.param(
            lambda m: setattr(m.steps[COMPLETE], "kind", saga_definition_pb2.STEP_KIND_COMPENSATABLE),
            "steps[4].kind",
            "starts after the commit event, shipping.v1.OrderShipped: make it RETRIABLE",
            id="compensatable after the commit event",
        ),
        pytest.param(
            lambda m: m.steps[SHIP].triggers.append("inventory.v1.ItemsReserved"),
            "steps[2].kind",
            "ship-order can commit the saga while take-payment may still fail",
            id="compensatable beside the commit event",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_field(change: Callable[[Message], object], path: str, reason: str) -> None:
    known = KNOWN | {"drones.v1.DroneProvisioned", "drones.v1.DroneUnavailable", "drones.v1.DroneReleased"}
    message = ORDER_FULFILMENT.to_message()
    change(message)
    found = validate(message, known)
    assert [problem.path for problem in found][:1] == [path], found
    assert reason in found[0].reason


def test_every_fault_is_reported_at_once() -> None:
    def spoil(message: Message) -> None:
        message.name = "Not A Name"
        message.steps[RESERVE].success = "inventory.v1.ItemReserved"
        message.steps[SHIP].participant = ""

    paths = {problem.path for problem in problems_of(spoil)}
    assert {"name", "steps[1].success", "steps[2].triggers[0]", "steps[3].participant"} <= paths


def test_an_empty_message_is_refused_without_a_crash() -> None:
    assert {"name", "version", "deadline", "initiating_event", "commit_event"} <= {
        problem.path for problem in validate(Message(), KNOWN)
    }
    assert validate(Message(steps=[saga_definition_pb2.StepDefinition()]), KNOWN)


def test_marks_of_commit_and_failure_are_not_needed() -> None:
    """Other teams' schemas may not carry them: the definition says what each event is."""
    message = ORDER_FULFILMENT.to_message()
    message.commit_event = message.steps[SHIP].success = message.steps[COMPLETE].triggers[0] = "orders.v1.Unmarked"
    message.steps[PAY].failures[0] = message.steps[RESERVE].compensation.triggers[0] = "orders.v1.UnmarkedFailure"
    assert validate(message, KNOWN | {"orders.v1.Unmarked", "orders.v1.UnmarkedFailure"}) == []


def test_a_pivot_may_come_first() -> None:
    """A saga that is never undone: its initiating event commits it."""
    message = ORDER_FULFILMENT.to_message()
    del message.steps[1:4]
    message.commit_event = "orders.v1.OrderCreated"
    message.steps[0].kind = saga_definition_pb2.STEP_KIND_PIVOT
    message.steps[0].ClearField("compensation")
    message.steps[1].triggers[:] = ["orders.v1.OrderCreated"]
    assert validate(message, KNOWN) == []
