"""Asking for sagas: one, many, all counted, page by page, while they run; and how a wrong question is answered."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

import pytest

from tests.e2e.running_stack import JSON, SAGAS, Stack, eventually, in_parallel, json_values, order, order_subject

INVALID_ARGUMENT = 3
NOT_FOUND = 5

SETTLED = 23
"""Three pages of seven and two more."""


@pytest.fixture(scope="module")
def settled(stack: Stack) -> Sequence[str]:
    """Sagas that have ended, some of them otherwise than well; their keys in the order in which they did."""
    keys = [f"settled-{number:02}" for number in range(SETTLED)]
    for number, key in enumerate(keys):
        changes = {"card": "card-declined"} if number % 5 == 0 else {}
        stack.nats.publish(order_subject(key), order(key, **changes))
    in_parallel(stack.ended, keys, workers=4)
    return keys


def of_the_settled(sagas: Sequence[JSON]) -> list[str]:
    return [saga["saga_id"] for saga in sagas if saga["saga_id"].startswith("settled-")]


def test_an_unknown_saga_is_not_found(stack: Stack) -> None:
    refusal = stack.refusal(f"{SAGAS}/GetSaga", {"saga_id": "nobody-ordered-this"})
    assert refusal.code == NOT_FOUND
    assert "nobody-ordered-this" in refusal.message
    assert (refusal.info["domain"], refusal.info["reason"]) == ("farandole", "SAGA_NOT_FOUND")
    assert refusal.info["metadata"] == {"saga_id": "nobody-ordered-this"}


def test_a_saga_of_an_unknown_definition_is_not_found(stack: Stack, settled: Sequence[str]) -> None:
    refusal = stack.refusal(f"{SAGAS}/GetSaga", {"saga_id": settled[1], "definition": "order-fulfillment"})
    assert refusal.code == NOT_FOUND
    assert "did you mean order-fulfilment?" in refusal.message
    named = stack.ask(f"{SAGAS}/GetSaga", {"saga_id": settled[1], "definition": "order-fulfilment"})
    assert named["saga"]["saga_id"] == settled[1]


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetSaga", {}, "saga_id"),
        ("GetSaga", {"saga_id": "two words"}, "saga_id"),
        ("WatchSaga", {"saga_id": "a.b"}, "saga_id"),
        ("ListSagas", {"filter": "colour = red"}, "filter"),
        ("ListSagas", {"filter": "status = NO_SUCH_STATUS"}, "filter"),
        ("ListSagas", {"filter": "status ="}, "filter"),
        ("ListSagas", {"filter": 'update_time < "yesterday"'}, "filter"),
        ("ListSagas", {"filter": "(" * 2000}, "filter"),
        ("ListSagas", {"filter": "status = RUNNING OR " * 250}, "filter"),
        ("ListSagas", {"order_by": "colour"}, "order_by"),
        ("ListSagas", {"page_size": -1}, "page_size"),
        ("ListSagas", {"page_token": "nonsense"}, "page_token"),
        ("ListSagas", {"page_token": "e30"}, "page_token"),
        ("SummarizeSagas", {"filter": "colour = red"}, "filter"),
        ("ListSagaDefinitions", {"page_size": -1}, "page_size"),
        ("ListSagaDefinitions", {"page_token": "nonsense"}, "page_token"),
        ("GetSagaDefinition", {}, "name"),
        ("GetSagaDefinition", {"name": "order-fulfilment", "version": -1}, "version"),
    ],
)
def test_a_wrong_question_names_its_field(stack: Stack, method: str, request_: JSON, field: str) -> None:
    refusal = stack.refusal(f"{SAGAS}/{method}", request_)
    assert refusal.code == INVALID_ARGUMENT, refusal
    assert refusal.fields == [field]
    assert refusal.message.startswith(f"{field}: ")
    assert refusal.info["domain"] == "farandole"


def test_a_page_token_belongs_to_its_filter_and_order(stack: Stack, settled: Sequence[str]) -> None:
    page = stack.ask(f"{SAGAS}/ListSagas", {"page_size": 7})
    token = page["next_page_token"]
    for other in ({"filter": "status = COMPLETED"}, {"order_by": "start_time"}, {"order_by": "update_time desc"}):
        refusal = stack.refusal(f"{SAGAS}/ListSagas", {"page_size": 7, "page_token": token, **other})
        assert (refusal.code, refusal.fields) == (INVALID_ARGUMENT, ["page_token"])
    changed = token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]
    assert stack.refusal(f"{SAGAS}/ListSagas", {"page_size": 7, "page_token": changed}).fields == ["page_token"]


@pytest.mark.parametrize("order_by", ["", "update_time desc", "start_time", "start_time desc", "deadline"])
def test_paging_visits_each_saga_once_and_in_order(stack: Stack, settled: Sequence[str], order_by: str) -> None:
    request = {"order_by": order_by, "page_size": 7}
    visited = list(stack.pages(f"{SAGAS}/ListSagas", "sagas", request))
    keys = [saga["saga_id"] for saga in visited]
    assert len(set(keys)) == len(keys)
    assert set(settled) <= set(keys)
    by = (order_by or "update_time").split()[0]
    times = [datetime.fromisoformat(saga[by]) for saga in visited]
    assert times == sorted(times, reverse=order_by.endswith("desc"))
    assert not any("history" in saga for saga in visited)


def test_lists_are_filtered(stack: Stack, settled: Sequence[str]) -> None:
    failed = [key for number, key in enumerate(settled) if number % 5 == 0]
    succeeded = [key for key in settled if key not in failed]
    assert set(of_the_settled(stack.sagas("status = COMPENSATED"))) == set(failed)
    assert set(of_the_settled(stack.sagas("status = COMPLETED AND health = ON_TIME"))) == set(succeeded)
    assert set(of_the_settled(stack.sagas("cause = STEP_FAILURE"))) == set(failed)
    assert of_the_settled(stack.sagas(f'saga_id = "{settled[3]}" OR saga_id = "{settled[4]}"')) != []
    assert of_the_settled(stack.sagas("status = RUNNING")) == []
    assert stack.sagas('definition = "another"') == []

    middle = stack.saga(settled[11])["start_time"]
    before = of_the_settled(stack.sagas(f'start_time < "{middle}"'))
    after = of_the_settled(stack.sagas(f'start_time >= "{middle}"'))
    assert (sorted(before), sorted(after)) == (list(settled[:11]), list(settled[11:]))


def test_a_summary_adds_up_to_the_list(stack: Stack, settled: Sequence[str]) -> None:
    def both() -> tuple[JSON, list[JSON]] | None:
        summary, listed = stack.ask(f"{SAGAS}/SummarizeSagas"), stack.sagas()
        return (summary, listed) if int(summary["total"]) == len(listed) else None

    summary, listed = eventually(both, "nothing new starts in between")
    counted = Counter((saga["definition"], saga["status"], saga["health"]) for saga in listed)
    assert {(c["definition"], c["status"], c["health"]): int(c["count"]) for c in summary["counts"]} == counted
    of_failed = stack.ask(f"{SAGAS}/SummarizeSagas", {"filter": "cause = STEP_FAILURE"})
    assert {count["status"] for count in of_failed["counts"]} == {"SAGA_STATUS_COMPENSATED"}
    nothing = stack.ask(f"{SAGAS}/SummarizeSagas", {"filter": 'saga_id = "nobody-ordered-this"'})
    assert nothing.get("counts", []) == []


def test_watching_begins_before_the_saga_and_ends_with_it(stack: Stack) -> None:
    command = stack.grpcurl("correlator").command(f"{SAGAS}/WatchSaga", {"saga_id": "watched-1"}, seconds=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                watching.wait(0.5)  # it waits: there is no such saga
            stack.nats.publish(order_subject("watched-1"), order("watched-1"))
            said, complaints = watching.communicate(timeout=30)
        finally:
            watching.kill()
    assert watching.returncode == 0, complaints
    seen = [answer["saga"] for answer in json_values(said)]
    revisions = [int(saga["revision"]) for saga in seen]
    assert revisions == sorted(set(revisions))
    assert [saga["status"] for saga in seen[:-1]] == ["SAGA_STATUS_RUNNING"] * (len(seen) - 1)
    assert seen[-1] == stack.saga("watched-1")
    assert seen[-1]["status"] == "SAGA_STATUS_COMPLETED"


def test_watching_an_ended_saga_answers_once(stack: Stack, settled: Sequence[str]) -> None:
    assert stack.answers(f"{SAGAS}/WatchSaga", {"saga_id": settled[1]}) == [{"saga": stack.saga(settled[1])}]


def test_the_definition_is_told_as_it_is_followed(stack: Stack) -> None:
    listed = stack.ask(f"{SAGAS}/ListSagaDefinitions")["definitions"]
    assert [(one["name"], one["version"]) for one in listed] == [("drone-delivery", 1), ("order-fulfilment", 1)]
    definition = stack.ask(f"{SAGAS}/GetSagaDefinition", {"name": "order-fulfilment"})["definition"]
    assert definition == listed[1]
    assert definition["initiating_event"] == "orders.v1.OrderCreated"
    assert definition["commit_event"] == "shipping.v1.OrderShipped"
    assert definition["deadline"] == "1800s"
    assert [(step["name"], step["participant"]) for step in definition["steps"]] == [
        ("place-order", "orders"),
        ("reserve-items", "inventory"),
        ("take-payment", "payments"),
        ("ship-order", "shipping"),
        ("complete-order", "orders"),
    ]
    same = stack.ask(f"{SAGAS}/GetSagaDefinition", {"name": "order-fulfilment", "version": 1})
    assert same["definition"] == definition


@pytest.mark.parametrize(
    ("request_", "hint"),
    [
        ({"name": "order-fulfillment"}, "did you mean order-fulfilment?"),
        ({"name": "order-fulfilment", "version": 7}, "no version 7"),
    ],
)
def test_an_unknown_definition_is_not_found(stack: Stack, request_: JSON, hint: str) -> None:
    refusal = stack.refusal(f"{SAGAS}/GetSagaDefinition", request_)
    assert refusal.code == NOT_FOUND
    assert hint in refusal.message
    assert refusal.info["reason"] == "SAGA_DEFINITION_NOT_FOUND"


@pytest.mark.parametrize("name", ["orders", "inventory", "payments", "shipping"])
def test_every_participant_tells_its_contract(stack: Stack, name: str) -> None:
    """And it is what the definition says of it."""
    [answer] = stack.grpcurl(name).answers("choreography.v1.ParticipantService/GetContract", {})
    written = json.dumps(answer)
    definition = stack.ask(f"{SAGAS}/GetSagaDefinition", {"name": "order-fulfilment"})["definition"]
    own = [step for step in definition["steps"] if step["participant"] == name]
    assert own
    for step in own:
        assert step["success"] in written
        for event in (*step.get("triggers", []), *step.get("failures", [])):
            assert event in written


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("orders.v1.OrderService/GetOrder", {"order_id": "nobody-ordered-this"}, "ORDER_NOT_FOUND"),
        ("payments.v1.PaymentService/GetPayment", {"order_id": "nobody-ordered-this"}, "PAYMENT_NOT_FOUND"),
        ("shipping.v1.ShippingService/GetShipment", {"order_id": "nobody-ordered-this"}, "SHIPMENT_NOT_FOUND"),
        ("inventory.v1.InventoryService/GetStock", {"sku": "no-such-article"}, "SKU_NOT_FOUND"),
    ],
)
def test_what_a_service_does_not_know_is_not_found(stack: Stack, method: str, request_: JSON, reason: str) -> None:
    refusal = stack.refusal(method, request_)
    assert (refusal.code, refusal.info["domain"], refusal.info["reason"]) == (NOT_FOUND, "farandole", reason)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lines": []}, "lines"),
        ({"currency": "euros"}, "currency"),
        ({"customerId": ""}, "customer_id"),
        ({"orderId": "two words"}, "order_id"),
        ({"lines": [{"sku": "widget", "quantity": 0, "unitPriceCents": 1}]}, "lines[0].quantity"),
    ],
)
def test_an_order_that_breaks_a_rule_is_refused_with_its_field(stack: Stack, changes: JSON, field: str) -> None:
    refusal = stack.refusal("orders.v1.OrderService/PlaceOrder", order("refused-1", **changes))
    assert refusal.code == INVALID_ARGUMENT
    assert refusal.fields == [field]
    assert stack.refusal("orders.v1.OrderService/GetOrder", {"order_id": "refused-1"}).code == NOT_FOUND
