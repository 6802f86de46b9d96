"""What `sagas diagnose` shows of the participants' queues, of what is down and of what the broker refuses."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from google.protobuf.json_format import ParseDict

from choreography.v1 import saga_diagnosis_pb2
from farandole.cli.saga_diagnosis import next_commands, print_diagnosis

AWAITED = {"step": "take-payment", "participant": "payments", "triggerSequence": "12"}
RESERVED = {"sequence": "12", "eventType": "inventory.v1.ItemsReserved"}


def diagnosis(**status: object) -> saga_diagnosis_pb2.SagaDiagnosis:
    """Of a saga that waits for payments, which answers with this status."""
    told = {"participant": "payments", "position": "20", **status}
    found = {"hasConsumer": True, "isAnswering": True, "status": told}
    made = {
        "sagaId": "ord-1",
        "definition": "order-fulfilment",
        "status": "SAGA_STATUS_RUNNING",
        "summary": "order-fulfilment ord-1 is RUNNING.",
        "awaited": [AWAITED | {"participantDiagnosis": found}],
    }
    return ParseDict(made, saga_diagnosis_pb2.SagaDiagnosis())


def queued(state: str, **more: object) -> dict[str, object]:
    return RESERVED | {"state": f"QUEUED_EVENT_STATE_{state}"} | more


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown in the local time zone."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def rows(capsys: pytest.CaptureFixture[str], told: saga_diagnosis_pb2.SagaDiagnosis) -> dict[str, list[list[str]]]:
    """The tables of a diagnosis as it is printed: by the first word of their head, the cells of each line."""
    print_diagnosis(told, "")
    tables: dict[str, list[list[str]]] = {}
    for block in capsys.readouterr().out.split("\n\n")[1:-1]:
        head, *lines = (re.split("  +", line.strip()) for line in block.strip().splitlines())
        tables[head[0]] = lines
    return tables


@pytest.mark.parametrize(
    ("event", "cells"),
    [
        (
            queued("RETRYING", attempts=2, nextAttemptTime="2026-03-01T09:00:01Z", error="OSError: no"),
            ["RETRYING", "2", "2026-03-01 09:00:01.000+00:00", "OSError: no"],
        ),
        (
            queued("SNOOZED", nextAttemptTime="2026-03-02T09:00:00Z", error="the bank sleeps"),
            ["SNOOZED", "2026-03-02 09:00:00.000+00:00", "the bank sleeps"],
        ),
        (
            queued("DEPENDENCY_DOWN", dependency="card-processor", error="503"),
            ["DEPENDENCY_DOWN", "card-processor is down: 503"],
        ),
        (
            queued("EARLY", missing=["orders.v1.OrderCreated", "shipping.v1.OrderShipped"]),
            ["EARLY", "its step still needs orders.v1.OrderCreated and shipping.v1.OrderShipped"],
        ),
        (queued("UNREADABLE", error="no such field"), ["UNREADABLE", "no such field"]),
        (queued("WAITING"), ["WAITING"]),
    ],
    ids=lambda value: value["state"] if isinstance(value, dict) else "",
)
def test_what_waits_at_a_participant_is_shown_with_why(
    capsys: pytest.CaptureFixture[str],
    event: dict[str, object],
    cells: list[str],
) -> None:
    shown = rows(capsys, diagnosis(queue=[event]))
    assert shown["IN THE QUEUE OF"] == [["payments", "12", "inventory.v1.ItemsReserved", *cells]]


def test_what_a_participant_finds_to_be_down_is_shown_with_the_next_probe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    circuit = {
        "dependency": "card-processor",
        "openTime": "2026-03-01T09:00:00Z",
        "nextProbeTime": "2026-03-01T09:00:30Z",
        "error": "503 \x1b[2J",
        "waitingSagas": "7",
    }
    shown = rows(capsys, diagnosis(circuits=[circuit]))
    assert shown["DOWN FOR"] == [
        [
            "payments",
            "card-processor",
            "2026-03-01 09:00:00.000+00:00",
            "2026-03-01 09:00:30.000+00:00",
            "7",
            "503 \ufffd[2J",
        ]
    ]


def test_what_the_broker_refuses_of_the_saga_is_shown_and_of_others_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = {"subject": "events.ord-1.payments.v1.PaymentProcessed", "error": "message size exceeds maximum"}
    mine = {"sagaId": "ord-1", "refuseTime": "2026-03-01T09:00:00Z", **refused}
    told = diagnosis(refused=[mine, {"sagaId": "ord-2", **refused}])
    assert rows(capsys, told)["REFUSED TO"] == [
        ["payments", refused["subject"], "2026-03-01 09:00:00.000+00:00", refused["error"]]
    ]
    assert next_commands(told)[0] == "farandole logs payments"
    assert next_commands(diagnosis(refused=[{"sagaId": "ord-2", **refused}])) == ["farandole sagas watch ord-1"]


@pytest.mark.parametrize(
    ("state", "is_in_the_log"),
    [
        ("RETRYING", True),
        ("WAITING", True),
        ("DEPENDENCY_DOWN", True),
        ("UNREADABLE", True),
        ("SNOOZED", False),
        ("EARLY", False),
    ],
)
def test_a_log_is_suggested_where_it_has_more_to_say(state: str, *, is_in_the_log: bool) -> None:
    suggested = next_commands(diagnosis(queue=[queued(state)]))
    assert ("farandole logs payments" in suggested) == is_in_the_log


def test_where_the_definition_was_named_it_is_named_again() -> None:
    assert next_commands(diagnosis(), "order-fulfilment") == [
        "farandole sagas watch ord-1 --definition order-fulfilment"
    ]


def test_commands_are_not_broken_into_lines(capsys: pytest.CaptureFixture[str]) -> None:
    told = diagnosis()
    told.saga_id = "k" * 128
    print_diagnosis(told, "a-definition-with-a-name-that-is-longer-than-most-and-does-not-fit-into-a-line-with-the-key")
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("  farandole sagas watch kkk")
    assert last.endswith("with-the-key")
