"""A step that needs several events: its contract, what each event leads to, and what is told of those that wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from google.protobuf.message import Message

from choreography.v1 import participant_pb2
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import Participant, Step, Transaction, step
from farandole.contract import signature_of
from farandole.envelope import StoredMessage
from farandole.errors import ContractError
from farandole.participant.barrier import (
    Barrier,
    Move,
    after_forward,
    after_undo,
    end_move,
    gathering_move,
)
from farandole.participant.prerequisites import Prerequisite, early_events
from farandole.saga import Disposition
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import OrderShipped, ShippingFailed

START = datetime(2026, 1, 1, tzinfo=UTC)
OWN, OTHER, ANOTHER = (bytes([number]) * 32 for number in range(3))
DONE = after_forward(OTHER + OWN + ANOTHER, failed=False)
RAN = [DONE, after_forward(OTHER + OWN + ANOTHER, failed=True), after_undo(DONE)]


def dispatch(paid: PaymentProcessed, reserved: ItemsReserved, tx: Transaction) -> OrderShipped | ShippingFailed:
    raise NotImplementedError


def undo(event: PaymentRefunded | SagaTimedOut, tx: Transaction) -> None:
    raise NotImplementedError


class TestTheContract:
    """One parameter for each event, read from the annotations."""

    def test_it_consumes_all_in_the_order_of_the_parameters(self) -> None:
        signature = signature_of(dispatch)
        assert signature.needs_all
        assert signature.consumes == (PaymentProcessed, ItemsReserved)
        assert signature.produces == (OrderShipped, ShippingFailed)

    def test_a_handler_of_one_event_needs_any_one(self) -> None:
        assert not signature_of(undo).needs_all

    def test_the_contract_says_so(self) -> None:
        contract = step("dispatch", dispatch, undo=undo, saga="a-saga").contract
        assert contract.needs_all
        assert list(contract.consumes) == ["payments.v1.PaymentProcessed", "inventory.v1.ItemsReserved"]
        assert not step("look", undo, saga="a-saga").contract.needs_all

    def test_it_hears_of_its_sagas_end(self) -> None:
        """Who has no such step need not be told."""
        endings = [f"events.*.choreography.v1.Saga{how}" for how in ("Compensated", "Completed", "Failed")]
        assert set(endings) <= set(Participant("one", step("dispatch", dispatch, saga="a-saga")).filters)
        assert not set(endings) & set(Participant("one", step("look", undo, saga="a-saga")).filters)


def either(_event: ItemsReserved | PaymentProcessed, _other: OrderShipped, _tx: Transaction) -> None: ...


def perhaps(_event: ItemsReserved, _other: OrderShipped | None, _tx: Transaction) -> None: ...


def twice(_event: ItemsReserved, _other: ItemsReserved, _tx: Transaction) -> None: ...


def no_event(_event: ItemsReserved, _number: int, _tx: Transaction) -> None: ...


def no_transaction(_event: ItemsReserved, _other: OrderShipped) -> None: ...


def any_number(*_events: ItemsReserved, _tx: Transaction) -> None: ...


def unannotated(_event: ItemsReserved, other, _tx: Transaction) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (either, "'_event' is .*; where a handler needs several events, each parameter names one generated class"),
        (perhaps, "'_other' is .*each parameter names one generated class"),
        (no_event, "'_number' is .*each parameter names one generated class"),
        (twice, "takes two events of one class"),
        (no_transaction, "the last parameter of a handler is the transaction, not '_other'"),
        (any_number, "'_events' is no plain parameter"),
        (unannotated, "has no annotation for 'other'"),
    ],
)
def test_a_handler_without_a_readable_contract_is_refused(handler: Callable[..., Any], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        signature_of(handler)


def two_undo(_event: PaymentRefunded, _other: SagaTimedOut, _tx: Transaction) -> None: ...


def two_act(_event: OrderShipped, _other: PaymentRefunded, _tx: Transaction) -> None: ...


@pytest.mark.parametrize(
    "handlers", [{"undo": two_undo}, {"undo": undo, "irrevocable": two_act}], ids=["undo", "irrevocable"]
)
def test_what_undoes_or_is_read_back_is_one_event(handlers: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="takes one event"):
        step("dispatch", dispatch, saga="a-saga", **handlers)


def test_what_a_step_needs_does_not_undo_it() -> None:
    def take_back(_event: ItemsReserved, _tx: Transaction) -> None: ...

    with pytest.raises(ContractError, match=r"inventory\.v1\.ItemsReserved can't both trigger and undo it"):
        step("dispatch", dispatch, undo=take_back, saga="a-saga")


class TestTheMoves:
    """Of the second of three events that a step needs."""

    @pytest.mark.parametrize(
        ("first", "third"), [tuple(came) for came in product((None, OTHER), repeat=2) if None in came]
    )
    def test_it_waits_while_any_other_is_missing(self, first: bytes | None, third: bytes | None) -> None:
        moved = gathering_move(None, OWN, place=1, waiting=[first, None, third])
        assert moved == (Move.WAIT, Disposition.EARLY)

    def test_the_last_one_runs_the_step(self) -> None:
        assert gathering_move(None, OWN, place=1, waiting=[OTHER, None, OTHER]) == (Move.RUN, Disposition.APPLIED)

    @pytest.mark.parametrize(
        ("digest", "disposition"), [(OWN, Disposition.DUPLICATE), (ANOTHER, Disposition.UNEXPECTED)]
    )
    @pytest.mark.parametrize("third", [None, OTHER])
    def test_the_first_of_a_type_stays(self, digest: bytes, disposition: Disposition, third: bytes | None) -> None:
        moved = gathering_move(None, digest, place=1, waiting=[OTHER, OWN, third])
        assert moved == (Move.NOTHING, disposition)

    @pytest.mark.parametrize("barrier", RAN, ids=lambda barrier: barrier.state)
    @pytest.mark.parametrize(
        ("digest", "disposition"),
        [(OWN, Disposition.DUPLICATE), (OTHER, Disposition.UNEXPECTED), (ANOTHER, Disposition.UNEXPECTED)],
    )
    def test_after_the_step_each_is_held_against_its_own(
        self, barrier: Barrier, digest: bytes, disposition: Disposition
    ) -> None:
        moved = gathering_move(barrier, digest, place=1, waiting=[None, None, None])
        assert moved == (Move.NOTHING, disposition)

    def test_after_the_step_was_voided_it_is_late(self) -> None:
        moved = gathering_move(after_undo(None), OWN, place=1, waiting=[None, None, None])
        assert moved == (Move.NOTHING, Disposition.LATE)

    def test_the_end_of_the_saga_closes_what_has_not_run(self) -> None:
        assert end_move(None) == (Move.CLOSE, Disposition.APPLIED)
        for barrier in (after_forward(OWN, failed=False), after_forward(OWN, failed=True), after_undo(None)):
            assert end_move(barrier) == (Move.NOTHING, Disposition.APPLIED)


def _prerequisite(message_class: type[Message], sequence: int) -> tuple[str, Prerequisite]:
    name = message_class.DESCRIPTOR.full_name
    return name, Prerequisite(f"id-{sequence}", OWN, StoredMessage(f"events.1.{name}", {}, b"", sequence, START))


def test_what_waits_is_told_with_what_is_missing() -> None:
    """One that two steps need is told once."""

    def deliver(_reserved: ItemsReserved, _shipped: OrderShipped, _tx: Transaction) -> None: ...

    steps: tuple[Step, ...] = (step("dispatch", dispatch, saga="a-saga"), step("deliver", deliver, saga="b-saga"))
    reserved, shipped = _prerequisite(ItemsReserved, 7), _prerequisite(OrderShipped, 3)
    waiting = {("a-saga", "k", "dispatch"): dict([reserved]), ("b-saga", "k", "deliver"): dict([reserved])}
    early = participant_pb2.QUEUED_EVENT_STATE_EARLY
    (event,) = early_events(steps, waiting)
    assert (event.sequence, event.event_type, event.state) == (7, reserved[0], early)
    assert list(event.missing) == ["payments.v1.PaymentProcessed", "shipping.v1.OrderShipped"]
    of_another = {("b-saga", "k", "deliver"): dict([shipped]), ("a-saga", "k", "dispatch"): dict([reserved])}
    assert [event.sequence for event in early_events(steps, of_another)] == [3, 7]
    assert early_events(steps, {}) == []
