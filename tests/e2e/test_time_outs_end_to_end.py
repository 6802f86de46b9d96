"""Deadlines of real stacks: who is late is told, who is really stuck is timed out exactly once, and nobody else is."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.e2e.running_stack import (
    JSON,
    ROOT,
    SAGAS,
    RefusedError,
    Stack,
    Tools,
    definitions,
    dispositions,
    eventually,
    order,
    order_subject,
    running,
)

TIMED_OUT = "choreography.v1.SagaTimedOut"
FAILED_PRECONDITION = 9
SAGA_SECONDS = 10


@pytest.fixture(scope="module")
def hasty(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose sagas are due after ten seconds, and their steps after three. Each test leaves all running."""
    place = tmp_path_factory.mktemp("hasty")
    sagas = definitions(place / "sagas", s1800=f"{SAGA_SECONDS}s", s60="3s", s300="60s")
    with running(place / "home", tools, {"FARANDOLE_SAGAS": str(sagas)}) as stack:
        yield stack


class Since:
    """How many events of each type the stream has stored since this was made."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before = self._all()

    def __getitem__(self, event_type: str) -> int:
        return self._all()[event_type] - self._before[event_type]

    def _all(self) -> Counter[str]:
        """By type; the stored subjects are `events.<partition>.<type>`."""
        counts: Counter[str] = Counter()
        for subject, count in json.loads(self._stack.nats("stream", "subjects", "EVENTS", "--json") or "{}").items():
            counts[subject.split(".", 2)[2]] += count
        return counts


def place(stack: Stack, prefix: str, count: int) -> list[str]:
    """So many orders by one `nats pub`, each acknowledged by the stream."""
    template = json.dumps(order(f"{prefix}-COUNT")).replace("COUNT", "{{Count}}")
    stack.nats("pub", "--jetstream", "--count", str(count), order_subject(f"{prefix}-{{{{Count}}}}"), template)
    return [f"{prefix}-{number}" for number in range(1, count + 1)]


def steps(saga: JSON) -> dict[str, str]:
    """The status of each step."""
    return {step["name"]: step["status"].removeprefix("STEP_STATUS_") for step in saga["steps"]}


def deadline_of(saga: JSON) -> datetime:
    return datetime.fromisoformat(saga["deadline"])


def of_type(saga: JSON, event_type: str) -> list[JSON]:
    return [entry for entry in saga["history"] if entry["event_type"] == event_type]


def assert_timed_out_and_undone(stack: Stack, ids: list[str]) -> None:
    """Each was timed out once and undone: its order cancelled, its payment refunded."""
    for saga_id in ids:
        saga = stack.saga(saga_id)
        assert (saga["status"], saga["cause"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_CAUSE_DEADLINE"), saga
        [timed_out] = of_type(saga, TIMED_OUT)
        assert timed_out["disposition"] == "DISPOSITION_APPLIED"
        assert datetime.fromisoformat(timed_out["stream_time"]) >= deadline_of(saga)
        assert stack.order(saga_id)["status"] == "ORDER_STATUS_CANCELLED"
        assert stack.payment(saga_id)["status"] == "PAYMENT_STATUS_REFUNDED"


def test_a_participant_that_is_down_past_the_deadline(hasty: Stack) -> None:
    """Its step is overdue, the saga is timed out once and undone; when it is back, nothing is done or undone again."""
    since = Since(hasty)
    before = hasty.stock()
    hasty.farandole("stop", "shipping")
    ids = place(hasty, "late", 10)

    def overdue() -> bool:
        found = hasty.sagas("health = OVERDUE")
        return {saga["saga_id"] for saga in found} >= set(ids)

    eventually(overdue, "all ten are overdue")
    one = hasty.saga(ids[0])
    [told] = of_type(one, "choreography.v1.StepOverdue")
    assert (told["payload"]["step"], told["payload"]["participant"]) == ("ship-order", "shipping")
    assert one["status"] == "SAGA_STATUS_RUNNING"
    diagnosis = hasty.ask(f"{SAGAS}/DiagnoseSaga", {"saga_id": ids[0]})["diagnosis"]
    [awaited] = diagnosis["awaited"]
    assert (awaited["step"], awaited["participant"], awaited["overdue"]) == ("ship-order", "shipping", True)
    assert not awaited["participant_diagnosis"].get("is_answering", False)
    assert int(awaited["participant_diagnosis"]["lag"]) >= 10
    assert "shipping" in diagnosis["summary"]

    for saga_id in ids:
        hasty.ended(saga_id)
    assert_timed_out_and_undone(hasty, ids)
    assert hasty.stock() == before
    assert since[TIMED_OUT] == 10
    undone = Counter(
        {"payments.v1.PaymentRefunded": 10, "inventory.v1.ItemsReleased": 10, "orders.v1.OrderCancelled": 10}
    )
    assert {event_type: since[event_type] for event_type in undone} == undone

    hasty.farandole("start", "shipping")
    eventually(lambda: since["choreography.v1.StepVoided"] >= 10, "shipping has voided its steps")

    def voided() -> bool:
        return all(steps(hasty.saga(saga_id))["ship-order"] == "VOIDED" for saga_id in ids)

    eventually(voided, "each saga says so")
    hasty.all_taken_in("behind-the-backlog")  # shipping is past the ten that it missed
    for saga_id in ids:
        with pytest.raises(RefusedError):
            hasty.shipment(saga_id)
    assert_timed_out_and_undone(hasty, ids)
    assert since[TIMED_OUT] == 10
    assert {event_type: since[event_type] for event_type in undone} == undone
    assert since["shipping.v1.OrderShipped"] == 1
    available, reserved = before
    assert hasty.stock() == (available - 2, reserved + 2), "the one behind them"


def test_a_correlator_that_was_down_past_the_deadlines_times_out_nobody_who_finished(hasty: Stack) -> None:
    since = Since(hasty)
    hasty.farandole("stop", "correlator")
    ids = place(hasty, "unseen", 50)
    eventually(lambda: since["orders.v1.OrderCompleted"] >= 50, "all fifty finished")
    passed = datetime.now(UTC).timestamp() + SAGA_SECONDS
    eventually(lambda: datetime.now(UTC).timestamp() > passed, "every deadline has passed")
    hasty.farandole("start", "correlator")
    for saga_id in ids:
        assert not hasty.completed(saga_id).get("finished_late")
    assert since[TIMED_OUT] == 0
    assert since["choreography.v1.StepOverdue"] == 0


def test_a_correlator_that_was_down_past_the_deadlines_times_out_each_stuck_saga_once(hasty: Stack) -> None:
    since = Since(hasty)
    before = hasty.stock()
    hasty.farandole("stop", "correlator")
    hasty.farandole("stop", "shipping")
    ids = place(hasty, "stuck", 50)
    eventually(lambda: since["payments.v1.PaymentProcessed"] >= 50, "all fifty wait for shipping")
    passed = datetime.now(UTC).timestamp() + SAGA_SECONDS
    eventually(lambda: datetime.now(UTC).timestamp() > passed, "every deadline has passed")
    hasty.farandole("start", "correlator")
    for saga_id in ids:
        hasty.ended(saga_id)
    assert_timed_out_and_undone(hasty, ids)
    assert since[TIMED_OUT] == 50
    assert hasty.stock() == before
    hasty.farandole("start", "shipping")


@contextmanager
def second_correlator(stack: Stack, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another correlator on the same store, started by hand; its gRPC port is the monitoring port plus one."""
    environment = {
        **stack.environment,
        "FARANDOLE_DATABASE_URL": f"sqlite:///{stack.home}/data/correlator.db",
        "FARANDOLE_NATS_URL": stack.nats.url,
        "FARANDOLE_GRPC_ADDRESS": f"127.0.0.1:{stack.ports['nats_monitoring'] + 1}",
        "FARANDOLE_REPLICA": "correlator",  # in the first one's place, and not a replica beside it
        "FARANDOLE_DESCRIPTORS": str(ROOT / "generated/descriptors.binpb"),
    }
    farandole = Path(sys.executable).with_name("farandole")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [farandole, "correlator"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def suspend_between_transactions(stack: Stack, pid: int) -> None:
    """SIGSTOP where the process holds no lock of its database: SQLite knows of no other way to take one over."""

    def suspended() -> bool:
        os.kill(pid, signal.SIGSTOP)
        connection = sqlite3.connect(stack.home / "data/correlator.db", timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False
        finally:
            connection.close()
        return True

    eventually(suspended, "the process stands between two transactions")


def test_a_suspended_correlator_and_its_successor(hasty: Stack, tmp_path: Path) -> None:
    """No record is lost or doubled, and no saga is timed out twice, when the first goes on where it was stopped."""
    since = Since(hasty)
    hasty.farandole("stop", "shipping")
    ids = place(hasty, "handed-over", 20)
    eventually(lambda: len(hasty.sagas("status = RUNNING")) == 20, "the first has all twenty")
    pid = hasty.pid("correlator")
    suspend_between_transactions(hasty, pid)
    try:
        more = place(hasty, "handed-over-too", 5)
        passed = datetime.now(UTC).timestamp() + SAGA_SECONDS
        eventually(lambda: datetime.now(UTC).timestamp() > passed, "every deadline has passed")
        with second_correlator(hasty, tmp_path / "second.log"):
            eventually(lambda: since[TIMED_OUT] == 25, "each is timed out", 60)
            os.kill(pid, signal.SIGCONT)
            hasty.farandole("start", "shipping")
            eventually(
                lambda: hasty.grpcurl("correlator").health().status == "NOT_SERVING",
                "the first says that it was displaced",
            )
            assert "another process" in hasty.grpcurl("correlator").health().reason
            eventually(
                lambda: since["choreography.v1.SagaCompensated"] >= 25,
                "the second sees them to their end",
                60,
            )
    finally:
        os.kill(pid, signal.SIGCONT)
    hasty.farandole("stop", "correlator")
    hasty.farandole("start", "correlator")
    for saga_id in [*ids, *more]:
        saga = hasty.ended(saga_id)
        assert saga["status"] == "SAGA_STATUS_COMPENSATED"
        assert int(saga["revision"]) == len(saga["history"])
        sequences = [entry["sequence"] for entry in saga["history"]]
        assert len(set(sequences)) == len(sequences)
        assert len(of_type(saga, TIMED_OUT)) == 1
    assert sum(saga["saga_id"].startswith("handed-over") for saga in hasty.sagas()) == len([*ids, *more])
    assert since[TIMED_OUT] == 25


def test_two_definitions_that_start_on_the_same_event(tools: Tools, tmp_path: Path) -> None:
    """Each keeps a record of its own under the same key, and the time-out of one undoes nothing of the other."""
    sagas = definitions(tmp_path / "sagas")
    (sagas / "order-promise.yaml").write_text(
        """\
name: order-promise
version: 1
description: An order is shipped soon, or somebody hears of it.
deadline: "3s"
initiating_event: orders.v1.OrderCreated
commit_event: shipping.v1.OrderShipped
steps:
  - name: accept
    participant: orders
    kind: COMPENSATABLE
    success: orders.v1.OrderCreated
  - name: ship-order
    participant: shipping
    kind: PIVOT
    triggers: [orders.v1.OrderCreated]
    success: shipping.v1.OrderShipped
"""
    )
    with running(tmp_path / "home", tools, {"FARANDOLE_SAGAS": str(sagas)}) as stack:
        since = Since(stack)
        stack.farandole("stop", "shipping")
        [key] = place(stack, "twice-followed", 1)

        def of(definition: str) -> JSON:
            found: JSON = stack.ask(f"{SAGAS}/GetSaga", {"saga_id": key, "definition": definition})["saga"]
            return found

        eventually(
            lambda: stack.refusal(f"{SAGAS}/GetSaga", {"saga_id": key}).code == FAILED_PRECONDITION,
            "both have a record, so that one must be named",
        )
        refused = stack.refusal(f"{SAGAS}/GetSaga", {"saga_id": key})
        assert "order-fulfilment" in refused.message
        assert "order-promise" in refused.message
        eventually(lambda: of("order-promise")["status"] == "SAGA_STATUS_FAILED", "the promise is broken")
        assert of("order-promise")["cause"] == "SAGA_CAUSE_DEADLINE"
        other = of("order-fulfilment")
        assert (other["status"], other["health"]) == ("SAGA_STATUS_RUNNING", "SAGA_HEALTH_ON_TIME")
        assert of_type(other, TIMED_OUT) == []
        stack.farandole("start", "shipping")
        eventually(lambda: of("order-fulfilment")["status"] == "SAGA_STATUS_COMPLETED", "the order is carried out")
        assert stack.order(key)["status"] == "ORDER_STATUS_COMPLETED"
        assert since[TIMED_OUT] == 1


def test_a_compensation_that_comes_before_its_step(stack: Stack) -> None:
    """The step does no work, and the saga says so."""
    before = stack.stock()
    key = "undone-first"
    failed = {"orderId": key, "reservationId": "none", "reason": "published by hand"}
    stack.nats.store(f"events.{key}.payments.v1.PaymentFailed", failed)
    stack.nats.store(order_subject(key), order(key))

    def voided() -> JSON | None:
        try:
            saga = stack.saga(key)
        except RefusedError:
            return None
        return saga if steps(saga)["reserve-items"] == "VOIDED" else None

    saga = eventually(voided, "the saga says that reserve-items is void")
    assert ("choreography.v1.StepVoided", "APPLIED") in dispositions(saga)
    stack.all_taken_in("behind-the-void")
    assert of_type(stack.saga(key), "inventory.v1.ItemsReserved") == []
    available, reserved = before
    assert stack.stock() == (available - 2, reserved + 2), "only the one behind it"
    words = stack.ask(f"{SAGAS}/DiagnoseSaga", {"saga_id": key})["diagnosis"]["summary"]
    assert "reserve-items" in words
