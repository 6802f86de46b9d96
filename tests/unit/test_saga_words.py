"""What people read of the platform's own events, and how a screen shows it."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from choreography.v1 import saga_pb2
from farandole.cli.output import cell_time, colored, printable, shell_word, timestamp
from farandole.cli.saga_words import about, held_up_by

GIVEN_UP = {
    "step": "ship-order",
    "participant": "shipping",
    "sequence": "37",
    "eventType": "payments.v1.PaymentProcessed",
    "reason": "DEAD_LETTER_REASON_REJECTED",
    "detail": "nobody can read the address",
    "attempts": 1,
}
UNDOING_GIVEN_UP = {
    "step": "take-payment",
    "participant": "payments",
    "sequence": "45",
    "compensation": True,
    "eventType": "shipping.v1.ShippingFailed",
    "reason": "DEAD_LETTER_REASON_RETRIES_EXHAUSTED",
    "detail": "TimeoutError: the bank",
    "attempts": 6,
}
DECIDED = {"step": "ship-order", "participant": "shipping", "sequence": "37", "actor": "ada", "reason": "it is dry"}
OVERDUE = {"step": "ship-order", "participant": "shipping"}


def entry(kind: str, payload: object, disposition: str = "APPLIED", reason: str = "") -> saga_pb2.HistoryEntry:
    told = {"eventType": f"choreography.v1.{kind}", "disposition": f"DISPOSITION_{disposition}", "reason": reason}
    return ParseDict(told | {"payload": payload}, saga_pb2.HistoryEntry())


def saga(*history: saga_pb2.HistoryEntry, ship_order: str = "RUNNING") -> saga_pb2.Saga:
    step = {
        "name": "ship-order",
        "participant": "shipping",
        "status": f"STEP_STATUS_{ship_order}",
        "deadline": "2026-11-22T10:05:00Z",
    }
    made = ParseDict({"steps": [step]}, saga_pb2.Saga())
    made.history.extend(history)
    return made


@pytest.mark.parametrize(
    ("kind", "payload", "said"),
    [
        ("StepOverdue", OVERDUE, "ship-order of shipping"),
        ("StepOverdue", OVERDUE | {"compensation": True}, "ship-order (undo) of shipping"),
        ("StepVoided", OVERDUE, "ship-order"),
        (
            "DeadLetterRecorded",
            GIVEN_UP,
            "shipping-37: ship-order, REJECTED after 1 try: nobody can read the address",
        ),
        (
            "DeadLetterRecorded",
            UNDOING_GIVEN_UP,
            "payments-45: take-payment (undo), RETRIES_EXHAUSTED after 6 tries: TimeoutError: the bank",
        ),
        ("DeadLetterRedriven", DECIDED, "shipping-37, by ada: it is dry"),
        ("DeadLetterDiscarded", DECIDED | {"reason": ""}, "shipping-37, by ada"),
        ("DeadLetterSuperseded", DECIDED, "shipping-37"),
        ("SagaCompleted", {}, ""),
    ],
)
def test_a_history_says_what_the_platforms_own_events_are_about(kind: str, payload: object, said: str) -> None:
    assert about(entry(kind, payload)) == said


def test_why_an_event_was_not_applied_comes_first() -> None:
    assert about(entry("DeadLetterRedriven", DECIDED, "LATE", "it is not open")) == "it is not open"


def test_another_packages_event_of_the_same_name_is_a_business_event() -> None:
    other = entry("StepVoided", OVERDUE)
    other.event_type = "shop.v1.StepVoided"
    assert about(other) == ""


def test_a_saga_is_held_up_by_its_open_dead_letters() -> None:
    open_ones = saga(entry("DeadLetterRecorded", GIVEN_UP), entry("DeadLetterRecorded", UNDOING_GIVEN_UP))
    assert list(held_up_by(open_ones)) == [
        (
            "dead letter shipping-37: shipping gave up on payments.v1.PaymentProcessed for ship-order, REJECTED after "
            "1 try: nobody can read the address"
        ),
        (
            "dead letter payments-45: payments gave up on shipping.v1.ShippingFailed for undoing take-payment, "
            "RETRIES_EXHAUSTED after 6 tries: TimeoutError: the bank"
        ),
    ]


@pytest.mark.parametrize("kind", ["DeadLetterRedriven", "DeadLetterDiscarded", "DeadLetterSuperseded"])
def test_a_closed_dead_letter_holds_nothing_up_until_it_is_open_again(kind: str) -> None:
    recorded, closed = entry("DeadLetterRecorded", GIVEN_UP), entry(kind, DECIDED)
    assert list(held_up_by(saga(recorded, closed))) == []
    assert len(list(held_up_by(saga(recorded, closed, recorded)))) == 1
    assert len(list(held_up_by(saga(recorded, entry(kind, DECIDED, "LATE"))))) == 1
    assert len(list(held_up_by(saga(recorded, entry(kind, DECIDED | {"sequence": "38"}))))) == 1


def test_a_saga_is_held_up_by_what_is_late_and_has_not_ended() -> None:
    late = entry("StepOverdue", OVERDUE)
    running = saga(late)
    (line,) = held_up_by(running)
    assert line == f"ship-order of shipping, due {timestamp(running.steps[0], 'deadline')}"
    assert list(held_up_by(saga(late, ship_order="SUCCEEDED"))) == []
    assert list(held_up_by(saga(late, ship_order="COMPENSATING"))) == [], "its undoing is not late yet"
    late_undoing = entry("StepOverdue", OVERDUE | {"compensation": True})
    (line,) = held_up_by(saga(late, late_undoing, ship_order="COMPENSATING"))
    assert line.startswith("ship-order (undo) of shipping, due ")
    assert list(held_up_by(saga(entry("StepOverdue", OVERDUE, "DUPLICATE")))) == []


def started(moment: datetime) -> saga_pb2.Saga:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return saga_pb2.Saga(start_time=stamp)


def test_on_a_terminal_a_cell_has_the_time_of_today_and_the_day_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime.now().astimezone().replace(hour=12, minute=34, second=56, microsecond=789_000)
    today, yesterday = started(noon), started(noon - timedelta(days=1))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert cell_time(today, "start_time") == "12:34:56.789"
    assert cell_time(yesterday, "start_time") == f"{(noon - timedelta(days=1)).date()} 12:34"
    assert cell_time(today, "end_time") == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert cell_time(today, "start_time") == timestamp(today, "start_time")
    assert timestamp(today, "start_time").startswith(f"{noon.date()} 12:34:56.789")


def test_a_status_has_its_colour_also_before_its_cause() -> None:
    def painted(text: str) -> list[tuple[str, str]]:
        return [(text[span.start : span.end], str(span.style)) for span in colored(text).spans if span.style]

    assert painted("COMPENSATION_FAILED (STEP_FAILURE: no)") == [("COMPENSATION_FAILED", "red")]
    assert painted("OPEN") == [("OPEN", "red")]
    assert painted("stopped") == [("stopped", "dim")]
    assert painted("stopped by nobody") == []
    assert painted("shipping-37") == []


def test_nothing_that_is_shown_does_anything_to_the_terminal() -> None:
    hostile = "no\x1b[2J\x9b2J\x07 card\r\x7f\nnext\tline"
    assert printable(hostile) == "no\ufffd[2J\ufffd2J\ufffd card\ufffd\ufffd\nnext\tline"
    assert "\x1b" not in colored(hostile).plain


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "state = OPEN",
        "it's $HOME",
        'a "b" \\ c',
        "Zoë 🎈",
        "two\nlines\tand a tab",
        "it's \x1b[2J \\n",
        "\x9b",
        "",
    ],
)
def test_a_text_is_one_word_of_a_command_line_and_does_nothing_to_the_terminal(text: str) -> None:
    word = shell_word(text)
    assert word.isprintable()
    read = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert read.stdout.decode() == text
