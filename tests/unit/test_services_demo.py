"""The demo's plan, progress, outcomes and books."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import protovalidate
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from choreography.v1.saga_pb2 import Saga, SagaStatus, SagaStep, StepStatus
from delivery.v1.delivery_service_pb2 import Delivery, DeliveryStatus
from drones.v1.drone_service_pb2 import Drone, DroneStatus
from farandole.partitions import is_key
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_service_pb2 import Order, OrderStatus
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from parcels.v1.parcel_service_pb2 import Parcel, ParcelStatus
from payments.v1.payment_service_pb2 import Payment, PaymentStatus
from services.demo.books import Entry, Level, OrderTraces, ParcelTraces, Traces, balance
from services.demo.outcomes import Outcome, outcomes
from services.demo.plan import (
    DECLINED_ORDER,
    FINE_ORDER,
    FINE_PARCEL,
    HEAVY_PARCEL,
    KINDS,
    NOWHERE_ORDER,
    NOWHERE_PARCEL,
    UNICORN_ORDER,
    UNICORN_PARCEL,
    Channel,
    Kind,
    Placement,
    amount_cents,
    plan,
    taken,
)
from services.demo.progress import Progress
from services.demo.run import in_parallel
from services.demo.screen import Screen, show_books, show_outcomes
from shipping.v1.shipping_service_pb2 import Shipment, ShipmentStatus

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


ROUND = plan("demo-abc", orders=150, parcels=150, failing_percent=20)


def test_everything_in_a_plan_is_valid_and_has_an_id_of_its_own() -> None:
    for placement in ROUND:
        protovalidate.validate(placement.event)
    ids = {placement.saga_id for placement in ROUND}
    assert len(ids) == 300
    assert all(is_key(saga_id) for saga_id in ids)


def test_a_plan_has_every_kind_of_both_sagas_as_many_as_it_is_told() -> None:
    assert Counter((placement.kind.definition, placement.kind.name) for placement in ROUND) == {
        ("order-fulfilment", "fine"): 120,
        ("order-fulfilment", "unicorn"): 10,
        ("order-fulfilment", "card-declined"): 10,
        ("order-fulfilment", "nowhere"): 10,
        ("drone-delivery", "fine"): 120,
        ("drone-delivery", "unicorn"): 10,
        ("drone-delivery", "9000 g"): 10,
        ("drone-delivery", "nowhere"): 10,
    }


def ways(event: OrderCreated | ParcelOrdered) -> Mapping[str, bool]:
    """The ways to fail, and whether an order or a parcel will."""
    if isinstance(event, OrderCreated):
        return {
            "unicorn": any(line.sku == "unicorn" for line in event.lines),
            "card-declined": event.card == "card-declined",
            "nowhere": event.address == "nowhere",
        }
    return {
        "unicorn": event.item == "unicorn",
        "9000 g": event.weight_grams == 9000,
        "nowhere": event.address == "nowhere",
    }


def test_what_is_ordered_fails_in_the_way_that_its_kind_says_and_in_no_other() -> None:
    for placement in ROUND:
        failing = [way for way, fails in ways(placement.event).items() if fails]
        assert failing == ([] if placement.kind.succeeds else [placement.kind.name])


def test_orders_and_parcels_take_turns_and_the_failing_ones_are_spread() -> None:
    assert [placement.kind.name for placement in ROUND if isinstance(placement.event, OrderCreated)][:10] == [
        *["fine"] * 4, "unicorn", *["fine"] * 4, "card-declined",
    ]  # fmt: skip
    assert [isinstance(placement.event, OrderCreated) for placement in ROUND] == [True, False] * 150


def test_some_of_every_kind_are_bare_events_and_most_are_not() -> None:
    bare = Counter(placement.kind for placement in ROUND if placement.channel is Channel.BARE_EVENT)
    assert set(bare) == set(KINDS)
    assert bare.total() == 2 * (150 // 7)


@pytest.mark.parametrize(("percent", "failing"), [(0, 0), (100, 10), (33, 3)])
def test_so_many_of_a_hundred_fail(percent: int, failing: int) -> None:
    placements = plan("demo-abc", orders=10, parcels=0, failing_percent=percent)
    assert [placement.kind.succeeds for placement in placements].count(False) == failing
    assert len(placements) == 10


def test_what_succeeds_takes_a_widget_an_order_two_gadgets_every_fourth_time_and_a_book_and_a_drone_a_parcel() -> None:
    assert taken(plan("demo-abc", orders=300, parcels=40, failing_percent=0)) == {
        "widget": 300,
        "gadget": 150,
        "book": 40,
        "drone": 40,
    }


def test_what_fails_takes_nothing() -> None:
    assert set(taken(plan("demo-abc", orders=30, parcels=30, failing_percent=100)).values()) == {0}


def followed(saga_ids: str) -> Progress:
    """The progress of sagas with one-letter ids."""
    return Progress(dict.fromkeys(saga_ids, "order-fulfilment"))


def record(
    order_id: str,
    status: SagaStatus.ValueType,
    *steps: SagaStep,
    revision: int = 1,
    seconds: int = 0,
    definition: str = "order-fulfilment",
) -> Saga:
    update_time = Timestamp()
    update_time.FromDatetime(NOON + timedelta(seconds=seconds))
    return Saga(
        saga_id=order_id,
        definition=definition,
        status=status,
        revision=revision,
        steps=steps,
        update_time=update_time,
    )


class TestProgress:
    def test_an_order_that_the_correlator_has_not_seen_counts_as_unseen(self) -> None:
        progress = followed("ab")
        progress.see([record("a", SagaStatus.SAGA_STATUS_RUNNING)])
        assert progress.counts == {"RUNNING": 1, "UNSEEN": 1}
        assert not progress.is_over

    def test_a_run_is_over_when_every_saga_of_it_has_ended(self) -> None:
        progress = followed("ab")
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED), record("b", SagaStatus.SAGA_STATUS_COMPENSATING)])
        assert not progress.is_over
        progress.see([record("b", SagaStatus.SAGA_STATUS_COMPENSATED, revision=2)])
        assert progress.is_over
        assert progress.ended == 2

    def test_sagas_of_other_runs_and_older_records_change_nothing(self) -> None:
        progress = followed("a")
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED, revision=5)])
        progress.see(
            [record("a", SagaStatus.SAGA_STATUS_RUNNING, revision=4), record("z", SagaStatus.SAGA_STATUS_RUNNING)]
        )
        assert progress.counts == {"COMPLETED": 1}
        assert (progress.status("a"), progress.is_over) == ("COMPLETED", True)

    def test_a_record_of_another_definition_under_the_same_key_changes_nothing(self) -> None:
        progress = followed("a")
        progress.see([record("a", SagaStatus.SAGA_STATUS_FAILED, revision=9, definition="order-promise")])
        assert progress.status("a") == "UNSEEN"
        assert not progress.is_over

    def test_what_is_still_to_end_is_asked_for_since_its_own_last_change(self) -> None:
        """One lane of the correlator may be behind another: what ended later elsewhere is no reason to ask for less."""
        progress = followed("ab")
        progress.see([record("a", SagaStatus.SAGA_STATUS_RUNNING, seconds=4)])
        assert progress.oldest_open is None, "b has not been seen"
        progress.see([record("b", SagaStatus.SAGA_STATUS_COMPLETED, seconds=9)])
        assert progress.oldest_open == NOON.replace(tzinfo=None) + timedelta(seconds=4)
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED, seconds=5, revision=2)])
        assert progress.oldest_open is None

    def test_what_is_stuck_is_named_with_who_holds_it_up_the_commonest_first(self) -> None:
        paying = SagaStep(name="take-payment", participant="payments", status=StepStatus.STEP_STATUS_RUNNING)
        releasing = SagaStep(name="reserve-items", participant="inventory", status=StepStatus.STEP_STATUS_COMPENSATING)
        progress = followed("abcdefg")
        progress.see(
            [
                *(record(order_id, SagaStatus.SAGA_STATUS_RUNNING, paying) for order_id in "abcd"),
                record("e", SagaStatus.SAGA_STATUS_COMPENSATING, releasing),
                record("f", SagaStatus.SAGA_STATUS_COMPLETED),
            ]
        )
        assert progress.obstacles() == [
            "4 sagas wait for payments (take-payment): a, b, c, …",
            "1 sagas wait for inventory (undoing reserve-items): e",
            "1 sagas wait for the correlator to see their first event: g",
        ]


class TestOutcomes:
    placements = plan("demo-abc", orders=30, parcels=30, failing_percent=20)

    def wrong(self, **statuses: str) -> set[str]:
        """The kinds that have not ended as they must, where these sagas have another status than they must have."""
        expected = {placement.saga_id: placement.kind.expected for placement in self.placements}
        found = outcomes(self.placements, (expected | statuses).__getitem__)
        assert [outcome.kind for outcome in found] == list(KINDS)
        assert sum(outcome.sagas for outcome in found) == 60
        return {f"{outcome.kind.definition} {outcome.kind.name}" for outcome in found if not outcome.is_expected}

    def test_everything_has_ended_as_it_must(self) -> None:
        assert self.wrong() == set()

    @pytest.mark.parametrize(
        ("number", "status"),
        [(0, "COMPENSATED"), (0, "FAILED"), (0, "UNSEEN"), (8, "COMPLETED"), (8, "COMPENSATING"), (9, "COMPLETED")],
    )
    def test_one_saga_that_has_not_shows_in_its_kind(self, number: int, status: str) -> None:
        kind = self.placements[number].kind
        assert self.wrong(**{self.placements[number].saga_id: status}) == {f"{kind.definition} {kind.name}"}

    def test_what_was_not_placed_has_no_outcome(self) -> None:
        orders = plan("demo-abc", orders=3, parcels=0, failing_percent=0)
        assert [outcome.kind for outcome in outcomes(orders, lambda _: "COMPLETED")] == [FINE_ORDER]


def order_as_it_must_be(placement: Placement, order: OrderCreated) -> OrderTraces:
    if placement.kind.succeeds:
        number = f"FD-{order.order_id}"
        return OrderTraces(
            Order(status=OrderStatus.ORDER_STATUS_COMPLETED, tracking_number=number),
            Payment(status=PaymentStatus.PAYMENT_STATUS_PROCESSED, amount_cents=amount_cents(order)),
            Shipment(status=ShipmentStatus.SHIPMENT_STATUS_SHIPPED, tracking_number=number),
        )
    payment, shipment = {
        UNICORN_ORDER: (None, None),
        DECLINED_ORDER: (PaymentStatus.PAYMENT_STATUS_DECLINED, None),
        NOWHERE_ORDER: (PaymentStatus.PAYMENT_STATUS_REFUNDED, ShipmentStatus.SHIPMENT_STATUS_UNDELIVERABLE),
    }[placement.kind]
    return OrderTraces(
        Order(status=OrderStatus.ORDER_STATUS_CANCELLED),
        Payment(status=payment, amount_cents=amount_cents(order)) if payment else None,
        Shipment(status=shipment) if shipment else None,
    )


def parcel_as_it_must_be(placement: Placement, parcel: ParcelOrdered) -> ParcelTraces:
    if placement.kind.succeeds:
        delivery_id = f"delivery-{parcel.parcel_id}"
        delivery = Delivery(status=DeliveryStatus.DELIVERY_STATUS_DELIVERED, delivery_id=delivery_id)
        delivery.delivery_time.FromDatetime(NOON)
        return ParcelTraces(
            Parcel(status=ParcelStatus.PARCEL_STATUS_COMPLETED, delivery_id=delivery_id),
            Drone(status=DroneStatus.DRONE_STATUS_PROVISIONED),
            delivery,
        )
    drone, delivery_status = {
        UNICORN_PARCEL: (None, None),
        HEAVY_PARCEL: (DroneStatus.DRONE_STATUS_UNAVAILABLE, None),
        NOWHERE_PARCEL: (DroneStatus.DRONE_STATUS_RELEASED, DeliveryStatus.DELIVERY_STATUS_UNDELIVERABLE),
    }[placement.kind]
    return ParcelTraces(
        Parcel(status=ParcelStatus.PARCEL_STATUS_CANCELLED),
        Drone(status=drone) if drone else None,
        Delivery(status=delivery_status) if delivery_status else None,
    )


def as_it_must_be(placement: Placement) -> Traces:
    match placement.event:
        case OrderCreated() as order:
            return order_as_it_must_be(placement, order)
        case ParcelOrdered() as parcel:
            return parcel_as_it_must_be(placement, parcel)


BEFORE = {thing: Level(available=1000, taken=50) for thing in ("widget", "gadget", "book", "drone")}


class TestBooks:
    placements = plan("demo-abc", orders=15, parcels=15, failing_percent=20)

    def after(self) -> dict[str, Level]:
        used = taken(self.placements)
        return {thing: Level(1000 - used[thing], 50 + used[thing]) for thing in BEFORE}

    def wrong(self, traces: Sequence[Traces], after: Mapping[str, Level]) -> set[str]:
        return {entry.name for entry in balance(self.placements, traces, BEFORE, after) if not entry.balances}

    def damaged(self, kind: Kind, **changes: object) -> set[str]:
        """The lines that are wrong where the traces of one saga of a kind have other values than they must have."""
        traces = [as_it_must_be(placement) for placement in self.placements]
        at = next(number for number, placement in enumerate(self.placements) if placement.kind is kind)
        damaged: Any = traces[at]  # one of two dataclasses, of which each has its own changes
        traces[at] = replace(damaged, **changes)
        return self.wrong(traces, self.after())

    def test_they_balance_where_everything_is_as_it_must_be(self) -> None:
        traces = [as_it_must_be(placement) for placement in self.placements]
        entries = balance(self.placements, traces, BEFORE, self.after())
        assert [entry.name for entry in entries if not entry.balances] == []
        found = {entry.name: (entry.before, entry.found) for entry in entries}
        assert found["drones available"] == (1000, 988)
        assert found["drones taken"] == (50, 62)
        assert found["payments given back"] == (None, 1)
        assert found["packages handed over"] == (None, 12)

    @pytest.mark.parametrize(
        ("kind", "changes", "lines"),
        [
            (FINE_ORDER, {"order": None}, {"orders completed", "tracking numbers, each in its order"}),
            (FINE_ORDER, {"payment": None}, {"payments that stand", "cents that they add up to"}),
            (FINE_ORDER, {"shipment": None}, {"orders on their way", "tracking numbers, each in its order"}),
            (
                FINE_ORDER,
                {"payment": Payment(status=PaymentStatus.PAYMENT_STATUS_PROCESSED, amount_cents=1)},
                {"cents that they add up to"},
            ),
            (
                FINE_ORDER,
                {"shipment": Shipment(status=ShipmentStatus.SHIPMENT_STATUS_SHIPPED, tracking_number="other")},
                {"tracking numbers, each in its order"},
            ),
            (DECLINED_ORDER, {"order": None}, {"orders cancelled"}),
            (NOWHERE_ORDER, {"payment": None}, {"payments given back", "cents given back"}),
            (
                NOWHERE_ORDER,
                {"payment": Payment(status=PaymentStatus.PAYMENT_STATUS_REFUNDED, amount_cents=1)},
                {"cents given back"},
            ),
            (
                UNICORN_ORDER,
                {"payment": Payment(status=PaymentStatus.PAYMENT_STATUS_PROCESSED, amount_cents=1)},
                {"payments that stand", "cents that they add up to"},
            ),
            (FINE_PARCEL, {"parcel": None}, {"parcels completed", "deliveries, each in its parcel"}),
            (FINE_PARCEL, {"drone": None}, {"drones with a parcel"}),
            (FINE_PARCEL, {"delivery": None}, {"packages handed over", "deliveries, each in its parcel"}),
            (
                FINE_PARCEL,
                {"delivery": Delivery(status=DeliveryStatus.DELIVERY_STATUS_DELIVERED, delivery_id="no time")},
                {"packages handed over", "deliveries, each in its parcel"},
            ),
            (
                FINE_PARCEL,
                {"parcel": Parcel(status=ParcelStatus.PARCEL_STATUS_COMPLETED, delivery_id="other")},
                {"deliveries, each in its parcel"},
            ),
            (HEAVY_PARCEL, {"parcel": None}, {"parcels cancelled"}),
            (NOWHERE_PARCEL, {"drone": None}, {"drones released"}),
        ],
    )
    def test_one_saga_that_has_left_something_else_shows(
        self, kind: Kind, changes: Mapping[str, object], lines: set[str]
    ) -> None:
        assert self.damaged(kind, **changes) == lines

    @pytest.mark.parametrize("thing", list(BEFORE))
    @pytest.mark.parametrize("difference", [-1, 1])
    def test_one_piece_too_many_or_too_few_shows(self, thing: str, difference: int) -> None:
        traces = [as_it_must_be(placement) for placement in self.placements]
        level = self.after()[thing]
        more = self.after() | {thing: replace(level, available=level.available + difference)}
        assert self.wrong(traces, more) == {f"{thing}s available"}
        more = self.after() | {thing: replace(level, taken=level.taken + difference)}
        assert self.wrong(traces, more) == {f"{thing}s taken"}


class TestScreen:
    def test_without_a_terminal_it_writes_plain_lines_at_most_one_a_second_and_the_last(self) -> None:
        output = io.StringIO()
        progress = followed("a")
        with Screen(Console(file=output, width=200), total=1) as screen:
            screen.show(progress, 0.1)
            screen.show(progress, 0.4)
            screen.show(progress, 1.2)
            progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED)])
            screen.show(progress, 1.3)
        assert [line.strip() for line in output.getvalue().splitlines()] == [
            "0.1 s  0/1 ended: 1 UNSEEN",
            "1.2 s  0/1 ended: 1 UNSEEN",
            "1.3 s  1/1 ended: 1 COMPLETED",
        ]

    def test_on_a_terminal_it_shows_a_table(self) -> None:
        output = io.StringIO()
        progress = followed("a")
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED)])
        console = Console(file=output, width=200, force_terminal=True, _environ={"TERM": "xterm"})
        with Screen(console, total=1) as screen:
            screen.show(progress, 2.0)
        assert "COMPLETED" in output.getvalue()
        assert "1 of 1 ended" in output.getvalue()

    def test_a_line_of_the_books_says_what_was_there_what_must_be_and_what_is(self) -> None:
        output = io.StringIO()
        show_books(
            Console(file=output, width=200),
            [Entry("drones taken", expected=3, found=3, before=1), Entry("payments", expected=3, found=2)],
        )
        assert [line.split() for line in output.getvalue().splitlines()] == [
            ["BOOK", "BEFORE", "EXPECTED", "FOUND"],
            ["ok", "drones", "taken", "1", "3", "3"],
            ["WRONG", "payments", "3", "2"],
        ]

    def test_a_line_of_the_outcomes_says_how_many_were_placed_what_must_become_of_them_and_what_has(self) -> None:
        output = io.StringIO()
        found = [Outcome(FINE_ORDER, {"COMPLETED": 3}), Outcome(HEAVY_PARCEL, {"COMPENSATED": 1, "RUNNING": 2})]
        show_outcomes(Console(file=output, width=200), found)
        assert [line.split() for line in output.getvalue().splitlines()] == [
            ["SAGA", "KIND", "PLACED", "EXPECTED", "FOUND"],
            ["ok", "order-fulfilment", "fine", "3", "COMPLETED", "3", "COMPLETED"],
            ["WRONG", "drone-delivery", "9000", "g", "3", "COMPENSATED", "1", "COMPENSATED,", "2", "RUNNING"],
        ]


async def test_work_in_parallel_stops_at_the_first_error_and_raises_it() -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        if item == 40:
            raise LookupError("item 40")
        done.append(item)

    with pytest.raises(LookupError, match="item 40"):
        await in_parallel(work, range(1000))
    assert len(done) < 1000


async def test_work_in_parallel_does_each_item_once() -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        done.append(item)

    await in_parallel(work, range(100))
    assert sorted(done) == list(range(100))
