"""A participant that gives up on an event: its saga is quarantined and says so, all others go on, and people decide."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running_stack import (
    CARD,
    DEAD_LETTERS,
    JSON,
    ROOT,
    SAGAS,
    RefusedError,
    Stack,
    Tools,
    assert_no_secrets,
    definitions,
    dispositions,
    eventually,
    in_parallel,
    order,
    order_subject,
    running,
)

RECORDED = "choreography.v1.DeadLetterRecorded"
REDRIVEN = "choreography.v1.DeadLetterRedriven"
DISCARDED = "choreography.v1.DeadLetterDiscarded"
SUPERSEDED = "choreography.v1.DeadLetterSuperseded"
VOIDED = "choreography.v1.StepVoided"
TIMED_OUT = "choreography.v1.SagaTimedOut"
OPEN = "state = OPEN"
INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION = 3, 5, 9
GET_STATUS = "choreography.v1.ParticipantService/GetStatus"

ILLEGIBLE, NOWHERE, FROZEN = "illegible", "nowhere", "card-frozen"
"""Addresses, and a card, on which the samples give up or fail."""
FROZEN_ACCOUNT = "the bank has frozen the account that the money came from"


def place(stack: Stack, order_id: str, **changes: Any) -> None:
    stack.nats.store(order_subject(order_id), order(order_id, **changes))


def quarantined(stack: Stack, saga_id: str) -> JSON:
    """A saga once it is quarantined."""
    return when(stack, saga_id, health="QUARANTINED")


def when(stack: Stack, saga_id: str, *, status: str = "", health: str = "", seconds: float = 30) -> JSON:
    """A saga once it has this status and this health."""

    def look() -> JSON | None:
        try:
            saga = stack.saga(saga_id)
        except RefusedError:
            return None  # it has not started yet
        is_so = status in ("", saga["status"].removeprefix("SAGA_STATUS_"))
        is_so &= health in ("", saga["health"].removeprefix("SAGA_HEALTH_"))
        return saga if is_so else None

    return eventually(look, f"{saga_id} is {status} {health}", seconds)


def of_type(saga: JSON, event_type: str) -> list[JSON]:
    return [entry for entry in saga["history"] if entry["event_type"] == event_type]


def all_applied(saga: JSON, *event_types: str) -> bool:
    """Whether each of these is in the history once, applied."""
    found = [(entry["event_type"], entry["disposition"]) for entry in saga["history"]]
    return all([two for two in found if two[0] == one] == [(one, "DISPOSITION_APPLIED")] for one in event_types)


def steps(saga: JSON) -> dict[str, str]:
    """The status of each step."""
    return {step["name"]: step["status"].removeprefix("STEP_STATUS_") for step in saga["steps"]}


def dead_letter(stack: Stack, saga_id: str) -> JSON:
    """The one dead letter of a saga, in full."""
    [listed] = stack.dead_letters(f'saga_id = "{saga_id}"')
    found: JSON = stack.ask(f"{DEAD_LETTERS}/GetDeadLetter", {"dead_letter_id": listed["dead_letter_id"]})
    letter: JSON = found["dead_letter"]
    return letter


def when_state(stack: Stack, saga_id: str, state: str) -> JSON:
    """The one dead letter of a saga, once it is in this state."""

    def look() -> JSON | None:
        letter = dead_letter(stack, saga_id)
        return letter if letter["state"] == f"DEAD_LETTER_STATE_{state}" else None

    return eventually(look, f"the dead letter of {saga_id} is {state}")


def redrive(stack: Stack, letter: JSON, reason: str) -> str:
    """Has a dead letter tried again, as ada; what is printed."""
    return stack.farandole("deadletters", "redrive", letter["dead_letter_id"], "--reason", reason, "--actor", "ada")


def discard(stack: Stack, letter: JSON, reason: str) -> str:
    """Goes on without a dead letter, as ada; what is printed."""
    return stack.farandole("deadletters", "discard", letter["dead_letter_id"], "--reason", reason, "--actor", "ada")


def decide_by_event(stack: Stack, event_type: str, letter: JSON, reason: str) -> None:
    """The same by an event of one's own, as any program may publish it."""
    names = {"sagaId": "saga_id", "definition": "definition", "step": "step", "participant": "participant"}
    body = {name: letter[field] for name, field in names.items()}
    body |= {"sequence": letter["sequence"], "actor": "ada", "reason": reason}
    stack.nats.store(f"events.{letter['saga_id']}.{event_type}", body)


def queue(stack: Stack, participant: str, saga_id: str) -> list[tuple[str, str]]:
    """(type, state) of what a participant has not finished of a saga, as it tells itself."""
    [answer] = stack.grpcurl(participant).answers(GET_STATUS, {"saga_id": saga_id})
    waiting = answer["status"].get("queue", [])
    return [(event["event_type"], event["state"].removeprefix("QUEUED_EVENT_STATE_")) for event in waiting]


def kill(stack: Stack, participant: str) -> None:
    """kill -9; returns once the participant, started again by its supervisor, serves."""
    before = stack.pid(participant)
    os.kill(before, signal.SIGKILL)
    eventually(
        lambda: stack.pid(participant) != before and stack.grpcurl(participant).health().status == "SERVING",
        f"{participant} serves again",
        60,
    )


def diagnosis(stack: Stack, saga_id: str) -> JSON:
    found: JSON = stack.ask(f"{SAGAS}/DiagnoseSaga", {"saga_id": saga_id})["diagnosis"]
    return found


def assert_nothing_is_shown(stack: Stack, saga_id: str, *more: str) -> None:
    """What the saga's order hides stands in no answer, on no screen and in no log."""
    answers = [
        stack.saga(saga_id),
        diagnosis(stack, saga_id),
        stack.sagas(),
        stack.dead_letters(),
        stack.farandole("sagas", "list"),
        stack.farandole("sagas", "show", saga_id),
        stack.farandole("sagas", "diagnose", saga_id),
        stack.farandole("deadletters", "list"),
        stack.logs(),
    ]
    for letter in stack.dead_letters(f'saga_id = "{saga_id}"'):
        answers.append(dead_letter(stack, saga_id))
        answers.append(stack.farandole("deadletters", "show", letter["dead_letter_id"]))
    assert_no_secrets(*answers)
    for text in map(json.dumps, answers):
        for secret in more:
            assert secret not in text, f"{secret!r} is shown: {text[:2000]}"


# ---- a step that is given up on, in the stack of the samples


@pytest.fixture(scope="module")
def given_up(own_stack: Stack) -> JSON:
    """The saga of an order whose address nobody can read, once shipping has given up on it."""
    place(own_stack, "unread", address=ILLEGIBLE)
    return quarantined(own_stack, "unread")


def test_the_saga_runs_on_and_is_quarantined(own_stack: Stack, given_up: JSON) -> None:
    assert given_up["status"] == "SAGA_STATUS_RUNNING"
    assert dispositions(given_up) == [
        ("orders.v1.OrderCreated", "APPLIED"),
        ("inventory.v1.ItemsReserved", "APPLIED"),
        ("payments.v1.PaymentProcessed", "APPLIED"),
        (RECORDED, "APPLIED"),
    ]
    *_, paid, recorded = given_up["history"]
    assert (recorded["source"], recorded["causation_id"]) == ("shipping", paid["id"])
    assert recorded["payload"]["sequence"] == paid["sequence"]
    assert recorded["payload"]["step"] == "ship-order"
    assert steps(given_up)["ship-order"] == "RUNNING"
    [listed] = own_stack.sagas("health = QUARANTINED AND status = RUNNING")
    assert listed["saga_id"] == "unread"


def test_the_dead_letter_tells_who_gave_up_on_what_and_why(own_stack: Stack, given_up: JSON) -> None:
    letter = dead_letter(own_stack, "unread")
    paid = given_up["history"][2]
    assert letter["dead_letter_id"] == f"shipping-{paid['sequence']}"
    assert (letter["participant"], letter["definition"], letter["step"]) == (
        "shipping",
        "order-fulfilment",
        "ship-order",
    )
    assert (letter["reason"], letter["detail"]) == ("DEAD_LETTER_REASON_REJECTED", "nobody can read the address")
    assert (letter["state"], letter["attempts"]) == ("DEAD_LETTER_STATE_OPEN", 1)
    assert not letter.get("compensation")
    assert "close_time" not in letter
    assert letter["event_type"] == "payments.v1.PaymentProcessed"
    assert (letter["headers"]["ce-id"], letter["headers"]["ce-source"]) == (paid["id"], "payments")
    assert (letter["payload"]["orderId"], letter["payload"]["address"]) == ("unread", "[REDACTED]")
    [listed] = own_stack.dead_letters("state = OPEN")
    assert listed.items() <= letter.items()


def test_the_copy_is_in_the_stream_of_dead_letters(own_stack: Stack, given_up: JSON) -> None:
    """As it was, for programs that may read the events too."""
    subject = "deadletters.shipping.payments.v1.PaymentProcessed"
    copy = json.loads(own_stack.nats("stream", "get", "DEADLETTERS", "--last-for", subject, "--json"))
    headers = BytesParser().parsebytes(base64.b64decode(copy["hdrs"]).partition(b"\r\n")[2])
    paid = given_up["history"][2]
    assert (headers["farandole-participant"], headers["farandole-sequence"]) == ("shipping", paid["sequence"])
    assert (headers["farandole-reason"], headers["farandole-detail"]) == ("REJECTED", "nobody can read the address")
    assert headers["ce-id"] == paid["id"]
    original = json.loads(own_stack.nats("stream", "get", "EVENTS", paid["sequence"], "--json"))
    assert (copy["data"], ILLEGIBLE.encode() in base64.b64decode(copy["data"])) == (original["data"], True)


@pytest.mark.usefixtures("given_up")
def test_the_diagnosis_names_the_dead_letter(own_stack: Stack) -> None:
    letter = dead_letter(own_stack, "unread")
    told = diagnosis(own_stack, "unread")
    assert told["dead_letter_ids"] == [letter["dead_letter_id"]]
    [awaited] = told["awaited"]
    assert (awaited["step"], awaited["participant"]) == ("ship-order", "shipping")
    for words in ("QUARANTINED", letter["dead_letter_id"], "nobody can read the address", "redriven, or discarded"):
        assert words in told["summary"]
    [waiting] = awaited["participant_diagnosis"]["status"]["queue"]
    assert (waiting["sequence"], waiting["state"]) == (letter["sequence"], "QUEUED_EVENT_STATE_DEAD_LETTERED")


@pytest.mark.usefixtures("given_up")
def test_people_see_it_at_the_command_line(own_stack: Stack) -> None:
    identity = dead_letter(own_stack, "unread")["dead_letter_id"]
    [line] = [line for line in own_stack.farandole("deadletters", "list").splitlines() if identity in line]
    for word in ("OPEN", "payments.v1.PaymentProcessed", "unread", "ship-order", "REJECTED", "nobody can read"):
        assert word in line
    shown = own_stack.farandole("deadletters", "show", identity)
    for word in ("OPEN", "shipping", "ship-order", "once", "REJECTED", "nobody can read the address", "[REDACTED]"):
        assert word in shown
    diagnosed = own_stack.farandole("sagas", "diagnose", "unread")
    for command in (f"show {identity}", f"redrive {identity} --reason WHY", f"discard {identity} --reason WHY"):
        assert f"  farandole deadletters {command}\n" in diagnosed
        assert command.startswith("show") or f"  farandole deadletters {command}\n" in shown
    [line] = [line for line in diagnosed.splitlines() if line.startswith("shipping ")]
    assert "DEAD_LETTERED" in line
    [line] = [line for line in own_stack.farandole("sagas", "list").splitlines() if line.startswith("unread ")]
    for word in ("RUNNING", "QUARANTINED", "ship-order (shipping)"):
        assert word in line
    shown = own_stack.farandole("sagas", "show", "unread")
    given_up_on = "gave up on payments.v1.PaymentProcessed for ship-order, REJECTED after 1 try: nobody can read"
    assert f"held up by  dead letter {identity}: shipping {given_up_on} the address" in shown
    assert shown.rstrip().endswith("farandole sagas diagnose unread")
    watched = own_stack.try_farandole("sagas", "watch", "unread", "--timeout", "5").stdout
    assert watched.splitlines()[-1] == "order-fulfilment unread is RUNNING and QUARANTINED"


@pytest.mark.usefixtures("given_up")
def test_all_other_sagas_go_on(own_stack: Stack) -> None:
    own_stack.all_taken_in("behind-the-unread")
    assert own_stack.saga("unread")["health"] == "SAGA_HEALTH_QUARANTINED"
    assert {name: one.status for name, one in own_stack.health().items() if one.status != "SERVING"} == {}


@pytest.mark.usefixtures("given_up")
def test_what_the_event_hides_is_shown_to_nobody(own_stack: Stack) -> None:
    assert_nothing_is_shown(own_stack, "unread", ILLEGIBLE)


def test_later_events_wait_behind_it_across_a_crash_until_it_is_discarded(own_stack: Stack) -> None:
    """Redriven it fails again, and its tries are counted on; discarded, what waits behind it is carried out."""
    stack, key = own_stack, "unread-then-corrected"
    place(stack, key, address=ILLEGIBLE)
    paid = of_type(quarantined(stack, key), "payments.v1.PaymentProcessed")[0]
    corrected = paid["payload"] | {"address": "8 Plain Lane"}
    stack.nats.store(f"events.{key}.payments.v1.PaymentProcessed", corrected)
    stuck = [
        ("payments.v1.PaymentProcessed", "DEAD_LETTERED"),
        ("payments.v1.PaymentProcessed", "WAITING"),
    ]
    eventually(lambda: queue(stack, "shipping", key) == stuck, "the corrected one waits")

    kill(stack, "shipping")
    stack.nats.store(f"events.{key}.payments.v1.PaymentProcessed", corrected | {"amountCents": 2600})
    stack.all_taken_in("behind-the-crash")
    stuck.append(stuck[-1])
    assert queue(stack, "shipping", key) == stuck
    letter = dead_letter(stack, key)
    assert (letter["state"], letter["attempts"]) == ("DEAD_LETTER_STATE_OPEN", 1)

    assert f"farandole sagas watch {key}\n" in redrive(stack, letter, "perhaps it dries")
    eventually(lambda: dead_letter(stack, key)["attempts"] == 2, "it was tried once more")
    assert queue(stack, "shipping", key) == stuck
    saga = quarantined(stack, key)
    assert [len(of_type(saga, event_type)) for event_type in (RECORDED, REDRIVEN)] == [2, 1]

    discard(stack, letter, "the customer has sent the address again")
    saga = stack.completed(key)
    assert saga["health"] == "SAGA_HEALTH_ON_TIME"
    assert [(e["payload"]["actor"], e["disposition"]) for e in of_type(saga, DISCARDED)] == [
        ("ada", "DISPOSITION_APPLIED")
    ]
    assert stack.shipment(key)["status"] == "SHIPMENT_STATUS_SHIPPED"
    assert queue(stack, "shipping", key) == []
    closed = when_state(stack, key, "DISCARDED")
    assert closed["attempts"] == 2
    assert closed["close_time"] == of_type(saga, DISCARDED)[0]["stream_time"]
    assert_nothing_is_shown(stack, key, ILLEGIBLE, "8 Plain Lane")


def test_a_compensation_that_is_given_up_on(own_stack: Stack) -> None:
    """COMPENSATION_FAILED, again after a redrive in vain; discarded, it goes on with what people did in its stead."""
    stack, key = own_stack, "frozen"
    before = stack.stock()
    place(stack, key, card=FROZEN, address=NOWHERE)
    saga = when(stack, key, status="COMPENSATION_FAILED", health="QUARANTINED")
    assert (saga["cause"], steps(saga)["take-payment"]) == ("SAGA_CAUSE_STEP_FAILURE", "COMPENSATING")
    letter = dead_letter(stack, key)
    assert (letter["participant"], letter["step"], letter["compensation"]) == ("payments", "take-payment", True)
    assert (letter["reason"], letter["detail"]) == ("DEAD_LETTER_REASON_REJECTED", FROZEN_ACCOUNT)
    assert (letter["event_type"], letter["attempts"]) == ("shipping.v1.ShippingFailed", 1)
    told = diagnosis(stack, key)
    assert told["dead_letter_ids"] == [letter["dead_letter_id"]]
    for words in ("COMPENSATION_FAILED", "undo take-payment", FROZEN_ACCOUNT, "reserve-items, place-order"):
        assert words in told["summary"]
    assert stack.payment(key)["status"] == "PAYMENT_STATUS_PROCESSED"
    [line] = [line for line in stack.farandole("sagas", "list").splitlines() if line.startswith(f"{key} ")]
    assert "COMPENSATION_FAILED" in line

    kill(stack, "payments")
    redrive(stack, letter, "the bank has been asked")
    eventually(lambda: dead_letter(stack, key)["attempts"] == 2, "it was tried once more")
    saga = when(stack, key, status="COMPENSATION_FAILED", health="QUARANTINED")
    assert [entry["payload"]["attempts"] for entry in of_type(saga, RECORDED)] == [1, 2]

    discard(stack, letter, "paid out in cash")
    when_state(stack, key, "DISCARDED")
    when(stack, key, status="COMPENSATING", health="ON_TIME")
    assert queue(stack, "payments", key) == []
    refunded = {"orderId": key, "paymentId": "cash", "amountCents": 2500, "reason": "paid out in cash"}
    stack.nats.store(f"events.{key}.payments.v1.PaymentRefunded", refunded)
    saga = stack.ended(key)
    assert (saga["status"], saga["health"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_HEALTH_ON_TIME")
    assert stack.order(key)["status"] == "ORDER_STATUS_CANCELLED"
    assert stack.stock() == before, "its items are back"
    assert_nothing_is_shown(stack, key, FROZEN)


# ---- the deadline comes while something is quarantined


@pytest.fixture(scope="module")
def hasty(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose sagas are due after twelve seconds."""
    directory = tmp_path_factory.mktemp("hasty")
    sagas = definitions(directory / "sagas", s1800="12s")
    with running(directory / "home", tools, {"FARANDOLE_SAGAS": str(sagas)}) as stack:
        yield stack


def assert_superseded(stack: Stack, key: str) -> JSON:
    """The time-out has passed the dead letter of ship-order: the step is void, and all else is undone."""

    def look() -> JSON | None:
        saga = stack.saga(key)
        is_told = all_applied(saga, TIMED_OUT, SUPERSEDED) and {"VOIDED"} == {
            steps(saga)[step] for step in ("ship-order", "complete-order")
        }
        return saga if is_told else None

    saga = eventually(look, "shipping and orders have voided their steps")
    assert (saga["status"], saga["cause"], saga["health"]) == (
        "SAGA_STATUS_COMPENSATED",
        "SAGA_CAUSE_DEADLINE",
        "SAGA_HEALTH_ON_TIME",
    )
    assert steps(saga) == {
        "place-order": "COMPENSATED",
        "reserve-items": "COMPENSATED",
        "take-payment": "COMPENSATED",
        "ship-order": "VOIDED",
        "complete-order": "VOIDED",
    }
    [timed_out], [superseded] = (of_type(saga, one) for one in (TIMED_OUT, SUPERSEDED))
    [voided] = [entry for entry in of_type(saga, VOIDED) if entry["payload"]["step"] == "ship-order"]
    assert (voided["source"], voided["causation_id"]) == ("shipping", timed_out["id"])
    assert (superseded["source"], superseded["causation_id"]) == ("shipping", timed_out["id"])
    assert all_applied(saga, "payments.v1.PaymentRefunded", "inventory.v1.ItemsReleased", "orders.v1.OrderCancelled")
    assert stack.payment(key)["status"] == "PAYMENT_STATUS_REFUNDED"
    assert stack.order(key)["status"] == "ORDER_STATUS_CANCELLED"
    with pytest.raises(RefusedError):
        stack.shipment(key)
    letter = when_state(stack, key, "SUPERSEDED")
    assert letter["close_time"] == superseded["stream_time"]
    assert queue(stack, "shipping", key) == []
    assert diagnosis(stack, key).get("dead_letter_ids", []) == []
    return saga


def test_a_time_out_passes_the_dead_letter_of_a_step(hasty: Stack) -> None:
    before = hasty.stock()
    place(hasty, "unread-in-time", address=ILLEGIBLE)
    assert quarantined(hasty, "unread-in-time")["status"] == "SAGA_STATUS_RUNNING"
    hasty.ended("unread-in-time")
    assert_superseded(hasty, "unread-in-time")
    assert hasty.stock() == before


def test_a_time_out_passes_it_too_when_the_participant_comes_back(hasty: Stack) -> None:
    """The rest is undone without it; the saga stays quarantined until it has heard."""
    before = hasty.stock()
    place(hasty, "unread-and-away", address=ILLEGIBLE)
    quarantined(hasty, "unread-and-away")
    hasty.farandole("stop", "shipping")
    saga = hasty.ended("unread-and-away")
    assert (saga["status"], saga["cause"], saga["health"]) == (
        "SAGA_STATUS_COMPENSATED",
        "SAGA_CAUSE_DEADLINE",
        "SAGA_HEALTH_QUARANTINED",
    )
    assert hasty.stock() == before
    assert steps(saga)["ship-order"] == "RUNNING"
    assert "ship-order" in diagnosis(hasty, "unread-and-away")["summary"]
    hasty.farandole("start", "shipping")
    assert_superseded(hasty, "unread-and-away")
    assert hasty.stock() == before


def test_two_participants_that_give_up_on_one_saga(hasty: Stack) -> None:
    """Shipping on its step, and payments, at the deadline, on undoing its own: the time-out passes the first alone."""
    key = "unread-and-frozen"
    before = hasty.stock()
    place(hasty, key, card=FROZEN, address=ILLEGIBLE)
    quarantined(hasty, key)
    saga = when(hasty, key, status="COMPENSATION_FAILED", health="QUARANTINED")

    def settled() -> JSON | None:
        """Everybody has heard the time-out: nothing but the payment is left to undo."""
        saga = hasty.saga(key)
        is_void = steps(saga)["ship-order"] == "VOIDED"
        return saga if is_void and all_applied(saga, SUPERSEDED, "orders.v1.OrderCancelled") else None

    saga = eventually(settled, "shipping has voided its step, and the order is cancelled")
    assert (saga["status"], saga["cause"], saga["health"]) == (
        "SAGA_STATUS_COMPENSATION_FAILED",
        "SAGA_CAUSE_DEADLINE",
        "SAGA_HEALTH_QUARANTINED",
    )
    assert hasty.stock() == before
    letters = {one["participant"]: one for one in hasty.dead_letters(f'saga_id = "{key}"')}
    assert {name: one["state"].removeprefix("DEAD_LETTER_STATE_") for name, one in letters.items()} == {
        "shipping": "SUPERSEDED",
        "payments": "OPEN",
    }
    assert letters["payments"]["event_type"] == TIMED_OUT
    assert letters["payments"]["compensation"]
    assert diagnosis(hasty, key)["dead_letter_ids"] == [letters["payments"]["dead_letter_id"]]
    discard(hasty, letters["payments"], "paid out in cash")
    refunded = {"orderId": key, "paymentId": "cash", "amountCents": 2500, "reason": "paid out in cash"}
    hasty.nats.store(f"events.{key}.payments.v1.PaymentRefunded", refunded)
    saga = hasty.ended(key)
    assert (saga["status"], saga["health"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_HEALTH_ON_TIME")


# ---- trouble that goes away, in a team's own stack


DEFINITION = """\
name: stock-keeping
version: 1
description: What is ordered is set aside until it is paid.
deadline: "1800s"
initiating_event: orders.v1.OrderCreated
commit_event: payments.v1.PaymentProcessed

steps:
  - name: order
    participant: shop
    kind: COMPENSATABLE
    success: orders.v1.OrderCreated

  - name: reserve
    participant: stockroom
    kind: COMPENSATABLE
    triggers: [orders.v1.OrderCreated]
    success: inventory.v1.ItemsReserved
    compensation:
      triggers: [payments.v1.PaymentFailed]
      completion: inventory.v1.ItemsReleased
      deadline: "300s"

  - name: pay
    participant: shop
    kind: PIVOT
    triggers: [inventory.v1.ItemsReserved]
    success: payments.v1.PaymentProcessed
    failures: [payments.v1.PaymentFailed]

  - name: pack
    participant: stockroom
    kind: RETRIABLE
    triggers: [payments.v1.PaymentProcessed]
    success: shipping.v1.OrderShipped
"""

STACK_FILE = """\
services:
  - name: nats
    broker: embedded
  - name: correlator
    command: [farandole, correlator]
    grpc_port: 50051
    depends_on: [nats]
  - name: stockroom
    command: [python, -m, tests.e2e.jamming_stockroom]
    grpc_port: 50052
    depends_on: [nats]
"""


class Stockroom:
    """A stack with a stockroom in it, whose gate can be jammed. The shop is `nats pub`."""

    def __init__(self, stack: Stack, jams: Path) -> None:
        self.stack = stack
        self._jams = jams

    @contextmanager
    def jammed(self, what: str) -> Iterator[None]:
        """Nothing can be done with `reserve` or `release` meanwhile, or without `power`, or at `night`."""
        (self._jams / what).touch()
        try:
            yield
        finally:
            (self._jams / what).unlink()

    def shop(self, event_type: str, key: str, **fields: Any) -> None:
        """The shop publishes an event about an order."""
        self.stack.nats.store(f"events.{key}.{event_type}", {"orderId": key, **fields})

    def pay(self, key: str, cents: int = 2500) -> None:
        self.shop(
            "payments.v1.PaymentProcessed",
            key,
            paymentId="cash",
            amountCents=cents,
            currency="EUR",
            address="collected",
        )

    def done(self, key: str) -> list[str]:
        """What was done for an order, in order."""
        with closing(sqlite3.connect(self.stack.home / "data/stockroom.db")) as database:
            rows = database.execute("SELECT done FROM work WHERE done LIKE ? ORDER BY number", (f"% {key}",))
            return [done.removesuffix(f" {key}") for (done,) in rows]

    def tries(self, key: str) -> list[JSON]:
        """What the stockroom has logged about tries that failed."""
        logged = (json.loads(line) for line in (self.stack.home / "logs/stockroom.log").read_text().splitlines())
        return [one for one in logged if one.get("saga_id") == key and "attempts" in one]


@pytest.fixture(scope="module")
def stockroom(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stockroom]:
    directory = tmp_path_factory.mktemp("stockroom")
    (directory / "sagas").mkdir()
    (directory / "sagas/stock-keeping.yaml").write_text(DEFINITION)
    (directory / "farandole.yaml").write_text(STACK_FILE)
    (directory / "jams").mkdir()
    stack = Stack(
        directory / "home",
        tools,
        {
            "FARANDOLE_SAGAS": str(directory / "sagas"),
            "FARANDOLE_DESCRIPTORS": str(ROOT / "generated/descriptors.binpb"),
            "FARANDOLE_TEST_JAMS": str(directory / "jams"),
            "PYTHONPATH": str(ROOT),
        },
    )
    stack.ports["stockroom"] = stack.ports["orders"]
    stack.environment["FARANDOLE_PORT_STOCKROOM"] = str(stack.ports["stockroom"])
    file = str(directory / "farandole.yaml")
    stack.farandole("up", "--file", file)
    try:
        yield Stockroom(stack, directory / "jams")
    finally:
        stack.farandole("down", "--file", file)


def test_a_step_is_tried_thrice_with_growing_pauses_and_redriven_when_its_trouble_is_gone(stockroom: Stockroom) -> None:
    stack, key = stockroom.stack, "jammed"
    with stockroom.jammed("reserve"):
        place(stack, key)
        saga = quarantined(stack, key)
        assert saga["status"] == "SAGA_STATUS_RUNNING"
        letter = dead_letter(stack, key)
        assert (letter["reason"], letter["attempts"]) == ("DEAD_LETTER_REASON_RETRIES_EXHAUSTED", 3)
        assert letter["detail"] == (
            "GateJammedError: the gate is jammed on the way to [REDACTED], paid by '[REDACTED]'"
        )
        first, second, third = stockroom.tries(key)
        assert [one["attempts"] for one in (first, second, third)] == [1, 2, 3]
        assert (first["retry_seconds"], second["retry_seconds"]) == (0.5, 1.0)
        times = [datetime.fromisoformat(one["timestamp"]) for one in (first, second, third)]
        # what is logged is committed: the pause began a little before
        assert (times[1] - times[0]).total_seconds() >= 0.4
        assert (times[2] - times[1]).total_seconds() >= 0.9
        assert (third["level"], third["dead_letter_id"]) == ("error", letter["dead_letter_id"])
        assert "GateJammedError" in first["exception"]
        assert stockroom.done(key) == []

        redrive(stack, letter, "too soon")
        eventually(lambda: dead_letter(stack, key)["attempts"] == 6, "it was tried as often again")
        assert quarantined(stack, key)["status"] == "SAGA_STATUS_RUNNING"
        kill(stack, "stockroom")
        assert queue(stack, "stockroom", key) == [("orders.v1.OrderCreated", "DEAD_LETTERED")]

    redrive(stack, letter, "the gate is open")
    saga = when(stack, key, health="ON_TIME")
    when_state(stack, key, "REDRIVEN")
    eventually(lambda: all_applied(stack.saga(key), "inventory.v1.ItemsReserved"), "the items are reserved")
    stockroom.pay(key)
    saga = stack.completed(key)
    assert saga["health"] == "SAGA_HEALTH_ON_TIME"
    assert [disposition for _, disposition in dispositions(saga)] == ["APPLIED"] * len(saga["history"])
    assert [entry["payload"]["attempts"] for entry in of_type(saga, RECORDED)] == [3, 6]
    assert len(of_type(saga, REDRIVEN)) == 2
    assert stockroom.done(key) == ["reserve", "pack-2500"]
    assert queue(stack, "stockroom", key) == []
    letter = dead_letter(stack, key)
    assert (letter["attempts"], letter["close_actor"], letter["close_reason"]) == (6, "ada", "the gate is open")
    assert letter["close_time"] == of_type(saga, REDRIVEN)[1]["stream_time"]
    assert_nothing_is_shown(stack, key)


def test_an_undoing_whose_trouble_is_gone_is_redriven_to_compensated(stockroom: Stockroom) -> None:
    stack, key = stockroom.stack, "jammed-on-the-way-back"
    with stockroom.jammed("release"):
        place(stack, key)
        eventually(lambda: stockroom.done(key) == ["reserve"], "the items are reserved")
        stockroom.shop("payments.v1.PaymentFailed", key, reason="nobody pays")
        saga = when(stack, key, status="COMPENSATION_FAILED", health="QUARANTINED")
        assert saga["cause"] == "SAGA_CAUSE_STEP_FAILURE"
        assert steps(saga)["reserve"] == "COMPENSATING"
        letter = dead_letter(stack, key)
        assert (letter["reason"], letter["attempts"]) == ("DEAD_LETTER_REASON_RETRIES_EXHAUSTED", 3)
        assert (letter["step"], letter["compensation"], letter["event_type"]) == (
            "reserve",
            True,
            "payments.v1.PaymentFailed",
        )
        assert letter["detail"] == "GateJammedError: the gate is jammed on the way back"
        kill(stack, "stockroom")
        assert queue(stack, "stockroom", key) == [("payments.v1.PaymentFailed", "DEAD_LETTERED")]
        assert stack.saga(key)["status"] == "SAGA_STATUS_COMPENSATION_FAILED"

    redrive(stack, letter, "the gate is open")
    saga = stack.ended(key)
    assert (saga["status"], saga["health"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_HEALTH_ON_TIME")
    assert steps(saga)["reserve"] == "COMPENSATED"
    assert dispositions(saga) == [
        ("orders.v1.OrderCreated", "APPLIED"),
        ("inventory.v1.ItemsReserved", "APPLIED"),
        ("payments.v1.PaymentFailed", "APPLIED"),
        (RECORDED, "APPLIED"),
        (REDRIVEN, "APPLIED"),
        ("inventory.v1.ItemsReleased", "APPLIED"),
        ("choreography.v1.SagaCompensated", "APPLIED"),
    ]
    assert stockroom.done(key) == ["reserve", "release"]
    assert dead_letter(stack, key)["state"] == "DEAD_LETTER_STATE_REDRIVEN"
    assert_nothing_is_shown(stack, key)


def test_a_failure_that_many_share_is_redriven_at_once_and_each_saga_goes_on_where_it_stood(
    stockroom: Stockroom,
) -> None:
    """Ten of one failure, one of which is discarded, beside one of another failure that stays as it is."""
    stack, other = stockroom.stack, "another-failure"
    place(stack, other)
    eventually(lambda: stockroom.done(other) == ["reserve"], "its items are reserved")
    wanted = f"{OPEN} AND sequence > {stack.nats.stream('EVENTS')['state']['last_seq']}"
    keys = [f"alike-{number}" for number in range(10)]
    with stockroom.jammed("reserve"), stockroom.jammed("release"):
        in_parallel(lambda key: place(stack, key), keys, 4)
        stockroom.shop("payments.v1.PaymentFailed", other, reason="nobody pays")
        for key in keys:
            quarantined(stack, key)
            for cents in (2500, 2600):  # which of them was heard first is seen by what is packed
                stockroom.pay(key, cents)
        when(stack, other, status="COMPENSATION_FAILED", health="QUARANTINED")
        stuck = [
            ("orders.v1.OrderCreated", "DEAD_LETTERED"),
            ("payments.v1.PaymentProcessed", "WAITING"),
            ("payments.v1.PaymentProcessed", "WAITING"),
        ]
        eventually(lambda: all(queue(stack, "stockroom", key) == stuck for key in keys), "all are stuck")

    of_one, of_other = groups_by_failure(stack, wanted)
    assert (of_one["open"], of_one["step"], of_one["eventType"]) == ("10", "reserve", "orders.v1.OrderCreated")
    assert of_one["detail"] == "GateJammedError: the gate is jammed on the way to [REDACTED], paid by '[REDACTED]'"
    assert (of_other["open"], of_other["step"], of_other["eventType"]) == (
        "1",
        "reserve",
        "payments.v1.PaymentFailed",
    )
    listed = stack.farandole("deadletters", "list", "--group-by", "failure", "--filter", wanted)
    suggested = [shlex.split(line) for line in listed.splitlines() if "deadletters redrive" in line]
    assert [words[-2:] for words in suggested] == [["--filter", of_one["filter"]], ["--filter", of_other["filter"]]]

    without = keys.pop()
    told = stack.answers(
        f"{DEAD_LETTERS}/DiscardDeadLetters",
        {
            "dead_letter_id": dead_letter(stack, without)["dead_letter_id"],
            "actor": "grace",
            "reason": "reserved by hand",
        },
    )
    assert [(one["progress"]["matched"], one["progress"].get("told", "0")) for one in told] == [("1", "0"), ("1", "1")]
    eventually(lambda: stockroom.done(without) == ["pack-2500"], "it goes on without the event")
    when_state(stack, without, "DISCARDED")

    command = [*suggested[0][1:], "--yes", "--actor", "ada"]
    refused = stack.try_farandole(*suggested[0][1:])
    assert (refused.returncode, "9 open dead letters match" in refused.stderr) == (2, True), "nobody can be asked"
    assert "9 dead letters are redriven" in stack.farandole(*command)
    for key in keys:
        saga = stack.completed(key)
        assert stockroom.done(key) == ["reserve", "pack-2500"]
        assert queue(stack, "stockroom", key) == []
        [redriven] = of_type(saga, REDRIVEN)
        assert (redriven["payload"]["actor"], redriven["payload"]["reason"]) == ("ada", "WHY")
    assert stack.farandole(*command) == "no open dead letter matches\n"

    assert stockroom.done(other) == ["reserve"]
    assert stack.saga(other)["status"] == "SAGA_STATUS_COMPENSATION_FAILED"
    [*_, last] = stack.answers(
        f"{DEAD_LETTERS}/RedriveDeadLetters", {"filter": of_other["filter"], "actor": "ada", "reason": "it is free"}
    )
    assert (last["progress"]["matched"], last["progress"]["told"]) == ("1", "1")
    assert stack.ended(other)["status"] == "SAGA_STATUS_COMPENSATED"
    assert stockroom.done(other) == ["reserve", "release"]

    reserved = {"reservationId": "by-hand", "amountCents": 2500, "currency": "EUR", "card": CARD, "address": "here"}
    stockroom.shop("inventory.v1.ItemsReserved", without, **reserved)
    stack.completed(without)
    shown = stack.farandole("sagas", "show", without)
    [line] = [line for line in shown.splitlines() if DISCARDED in line]
    assert line.rstrip().endswith(", by grace: reserved by hand")
    assert "closed by    grace" in stack.farandole("deadletters", "show", dead_letter(stack, without)["dead_letter_id"])
    assert_nothing_is_shown(stack, without)


def groups_by_failure(stack: Stack, filter_: str) -> list[JSON]:
    """The groups of the dead letters that match, as the command line tells programs."""
    printed = stack.farandole("deadletters", "list", "--group-by", "failure", "--filter", filter_, "--json")
    found: list[JSON] = json.loads(printed)["groups"]
    return found


def test_what_is_closed_or_not_there_is_not_decided(stockroom: Stockroom) -> None:
    stack, key = stockroom.stack, "closed"
    with stockroom.jammed("reserve"):
        place(stack, key)
        quarantined(stack, key)
    letter = dead_letter(stack, key)
    redrive(stack, letter, "the gate is open")
    when_state(stack, key, "REDRIVEN")
    eventually(lambda: stockroom.done(key) == ["reserve"], "it is reserved")
    for verb in ("redrive", "discard"):
        done = stack.try_farandole("deadletters", verb, letter["dead_letter_id"], "--reason", "again")
        assert (done.returncode, "FAILED_PRECONDITION" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    ask = {"actor": "ada", "reason": "again"}
    for request, code in (
        ({"dead_letter_id": letter["dead_letter_id"]} | ask, FAILED_PRECONDITION),
        ({"dead_letter_id": "stockroom-999999"} | ask, NOT_FOUND),
        (ask, INVALID_ARGUMENT),
        ({"dead_letter_id": letter["dead_letter_id"], "filter": OPEN} | ask, INVALID_ARGUMENT),
        ({"filter": "colour = RED"} | ask, INVALID_ARGUMENT),
        ({"filter": OPEN, "reason": "nobody"}, INVALID_ARGUMENT),
        ({"filter": OPEN, "actor": "ada"}, INVALID_ARGUMENT),
    ):
        for method in ("RedriveDeadLetters", "DiscardDeadLetters"):
            assert stack.refusal(f"{DEAD_LETTERS}/{method}", request).code == code, request
    assert stockroom.done(key) == ["reserve"]


def test_a_dependency_that_is_down_is_seen_and_burns_no_tries(stockroom: Stockroom) -> None:
    stack, key = stockroom.stack, "in-the-dark"
    with stockroom.jammed("power"):
        place(stack, key)
        eventually(
            lambda: queue(stack, "stockroom", key) == [("orders.v1.OrderCreated", "DEPENDENCY_DOWN")], "it waits"
        )
        health = stack.grpcurl("stockroom").health()
        assert health.status == "NOT_SERVING"
        assert "power" in health.reason
        tables = diagnosed(stack, key)
        [[participant, dependency, *_, sagas, why]] = tables["DOWN FOR"]
        assert (participant, dependency, sagas) == ("stockroom", "power", "1")
        assert why == "the lights are out on the way to [REDACTED], paid by '[REDACTED]'"
        [waiting] = tables["IN THE QUEUE OF"]
        assert waiting[3] == "DEPENDENCY_DOWN"
        assert "power is down" in waiting[-1]
        assert_nothing_is_shown(stack, key)
    eventually(lambda: stockroom.done(key) == ["reserve"], "it is reserved")
    eventually(lambda: stack.grpcurl("stockroom").health().status == "SERVING", "the stockroom serves again")
    assert "DOWN FOR" not in diagnosed(stack, key)
    assert stack.dead_letters(f'saga_id = "{key}"') == []


def test_what_is_snoozed_is_seen_with_its_time(stockroom: Stockroom) -> None:
    stack, key = stockroom.stack, "at-night"
    with stockroom.jammed("night"):
        place(stack, key)
        eventually(lambda: queue(stack, "stockroom", key) == [("orders.v1.OrderCreated", "SNOOZED")], "it waits")
        tables = diagnosed(stack, key)
        [[participant, _, event, state, *_, why]] = tables["IN THE QUEUE OF"]
        assert (participant, event, state, why) == ("stockroom", "orders.v1.OrderCreated", "SNOOZED", "it is night")
        assert stack.saga(key)["health"] == "SAGA_HEALTH_ON_TIME"
    eventually(lambda: stockroom.done(key) == ["reserve"], "it is reserved")
    assert {one["attempts"] for one in stockroom.tries(key)} == {0}, "a snooze is no try"


def diagnosed(stack: Stack, key: str) -> dict[str, list[list[str]]]:
    """The tables that `sagas diagnose` prints: by the first word of their head, the cells of each line."""
    tables: dict[str, list[list[str]]] = {}
    for block in stack.farandole("sagas", "diagnose", key).split("\n\n")[1:-1]:
        head, *lines = (re.split("  +", line.strip()) for line in block.strip().splitlines())
        tables[head[0]] = lines
    return tables


def test_a_verb_told_twice_is_done_once_and_one_for_nothing_changes_nothing(stockroom: Stockroom) -> None:
    stack, key = stockroom.stack, "told-twice"
    with stockroom.jammed("reserve"):
        place(stack, key)
        quarantined(stack, key)
        letter = dead_letter(stack, key)
        decide_by_event(
            stack, REDRIVEN, letter | {"sequence": str(int(letter["sequence"]) + 1_000_000)}, "a slip of the pen"
        )
        decide_by_event(stack, REDRIVEN, letter | {"participant": "shop"}, "another participant")
        place(stack, "behind-the-slips")
        eventually(lambda: len(stockroom.tries("behind-the-slips")) == 3, "the stockroom is past them")
        assert dead_letter(stack, key)["attempts"] == 3
        assert stack.saga(key)["health"] == "SAGA_HEALTH_QUARANTINED"
    for _ in range(2):
        decide_by_event(stack, REDRIVEN, letter, "the gate is open")  # the same words: the same event
    place(stack, "behind-the-redrives")
    eventually(lambda: stockroom.done("behind-the-redrives") == ["reserve"], "the stockroom has read both")
    eventually(lambda: queue(stack, "stockroom", key) == [], "nothing waits any more")
    assert stockroom.done(key) == ["reserve"]
    told = [entry["disposition"].removeprefix("DISPOSITION_") for entry in of_type(stack.saga(key), REDRIVEN)]
    assert told == ["LATE", "LATE", "APPLIED", "DUPLICATE"]


def test_many_that_jam_hold_up_nobody_else(stockroom: Stockroom) -> None:
    """While ten sagas are tried and given up on, what does not jam goes through at once."""
    stack = stockroom.stack
    place(stack, "reserved-before")
    eventually(lambda: stockroom.done("reserved-before") == ["reserve"], "its items are reserved")
    keys = [f"crowd-{number}" for number in range(10)]
    with stockroom.jammed("reserve"):
        in_parallel(lambda key: place(stack, key), keys, 4)
        stockroom.shop("payments.v1.PaymentFailed", "reserved-before", reason="nobody pays")
        assert stack.ended("reserved-before")["status"] == "SAGA_STATUS_COMPENSATED"
        for key in keys:
            quarantined(stack, key)
        found = stack.dead_letters("state = OPEN AND reason = RETRIES_EXHAUSTED")
        assert {one["saga_id"] for one in found} >= set(keys)
    done = stack.farandole(
        "deadletters", "redrive", "--filter", "reason = RETRIES_EXHAUSTED", "--reason", "the gate is open", "--yes"
    )
    assert f"{len(found)} dead letters are redriven" in done
    eventually(lambda: all(stockroom.done(key) == ["reserve"] for key in keys), "all are reserved")
    assert CARD not in stack.logs()
