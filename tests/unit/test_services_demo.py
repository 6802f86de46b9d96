"""The demo's plan, progress and books."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import protovalidate
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from choreography.v1.saga_pb2 import Saga, SagaStatus, SagaStep, StepStatus
from farandole.partitions import is_key
from orders.v1.order_service_pb2 import Order, OrderStatus
from payments.v1.payment_service_pb2 import Payment, PaymentStatus
from services.demo.books import Entry, Traces, balance
from services.demo.plan import Channel, Placement, amount_cents, pieces_taken, plan
from services.demo.progress import Progress
from services.demo.run import in_parallel
from services.demo.screen import Screen, show_books
from shipping.v1.shipping_service_pb2 import Shipment, ShipmentStatus

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def test_every_order_of_a_plan_is_valid_and_has_its_own_id() -> None:
    placements = plan("demo-abc", 300, failing=30)
    for placement in placements:
        protovalidate.validate(placement.order)
    ids = {placement.order.order_id for placement in placements}
    assert len(ids) == 300
    assert all(is_key(order_id) for order_id in ids)


def test_some_orders_are_bare_events_and_most_are_placed() -> None:
    channels = [placement.channel for placement in plan("demo-abc", 300, failing=0)]
    assert channels.count(Channel.BARE_EVENT) == 30
    assert channels.count(Channel.RPC) == 270


def test_the_last_orders_fail_each_in_a_way_that_the_services_know() -> None:
    placements = plan("demo-abc", 100, failing=9)
    assert [placement.succeeds for placement in placements] == [True] * 91 + [False] * 9
    ways = [
        (
            any(line.sku == "unicorn" for line in placement.order.lines),
            placement.order.card == "card-declined",
            placement.order.address == "nowhere",
        )
        for placement in placements
    ]
    assert ways[:91] == [(False, False, False)] * 91
    assert all(sum(way) == 1 for way in ways[91:])
    assert set(ways[91:]) == {(True, False, False), (False, True, False), (False, False, True)}


def test_a_plan_takes_one_widget_an_order_and_two_gadgets_every_third_time() -> None:
    assert pieces_taken(plan("demo-abc", 300, failing=0)) == {"widget": 300, "gadget": 200}


def record(order_id: str, status: SagaStatus.ValueType, *steps: SagaStep, revision: int = 1, seconds: int = 0) -> Saga:
    update_time = Timestamp()
    update_time.FromDatetime(NOON + timedelta(seconds=seconds))
    return Saga(saga_id=order_id, status=status, revision=revision, steps=steps, update_time=update_time)


class TestProgress:
    def test_an_order_that_the_correlator_has_not_seen_counts_as_unseen(self) -> None:
        progress = Progress(["a", "b"])
        progress.see([record("a", SagaStatus.SAGA_STATUS_RUNNING)])
        assert progress.counts == {"RUNNING": 1, "UNSEEN": 1}
        assert not progress.is_over

    def test_a_run_is_over_when_every_saga_of_it_has_ended(self) -> None:
        progress = Progress(["a", "b"])
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED), record("b", SagaStatus.SAGA_STATUS_COMPENSATING)])
        assert not progress.is_over
        progress.see([record("b", SagaStatus.SAGA_STATUS_COMPENSATED, revision=2)])
        assert progress.is_over
        assert progress.ended == 2

    def test_sagas_of_other_runs_and_older_records_change_nothing(self) -> None:
        progress = Progress(["a"])
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED, revision=5)])
        progress.see(
            [record("a", SagaStatus.SAGA_STATUS_RUNNING, revision=4), record("z", SagaStatus.SAGA_STATUS_RUNNING)]
        )
        assert progress.counts == {"COMPLETED": 1, "UNSEEN": 0}

    def test_the_latest_update_only_goes_forward(self) -> None:
        progress = Progress(["a"])
        assert progress.latest_update is None
        progress.see([record("z", SagaStatus.SAGA_STATUS_RUNNING, seconds=9)])
        progress.see([record("a", SagaStatus.SAGA_STATUS_RUNNING, seconds=4)])
        assert progress.latest_update == NOON.replace(tzinfo=None) + timedelta(seconds=9)

    def test_what_is_stuck_is_named_with_who_holds_it_up_the_commonest_first(self) -> None:
        paying = SagaStep(name="take-payment", participant="payments", status=StepStatus.STEP_STATUS_RUNNING)
        releasing = SagaStep(name="reserve-items", participant="inventory", status=StepStatus.STEP_STATUS_COMPENSATING)
        progress = Progress(["a", "b", "c", "d", "e", "f", "g"])
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


def as_they_must_be(placements: list[Placement]) -> list[Traces]:
    return [
        Traces(
            Order(
                status=OrderStatus.ORDER_STATUS_COMPLETED if p.succeeds else OrderStatus.ORDER_STATUS_CANCELLED,
                tracking_number=f"FD-{p.order.order_id}" if p.succeeds else "",
            ),
            Payment(
                status=PaymentStatus.PAYMENT_STATUS_PROCESSED if p.succeeds else PaymentStatus.PAYMENT_STATUS_REFUNDED,
                amount_cents=amount_cents(p.order),
            ),
            Shipment(
                status=ShipmentStatus.SHIPMENT_STATUS_SHIPPED
                if p.succeeds
                else ShipmentStatus.SHIPMENT_STATUS_UNDELIVERABLE,
                tracking_number=f"FD-{p.order.order_id}" if p.succeeds else "",
            ),
        )
        for p in placements
    ]


class TestBooks:
    placements = plan("demo-abc", 10, failing=2)

    def wrong(self, traces: list[Traces], *, widgets_left: int = 92, gadgets_left: int = 94) -> set[str]:
        books = balance(
            self.placements,
            traces,
            {"widget": 100, "gadget": 100},
            {"widget": widgets_left, "gadget": gadgets_left},
        )
        return {entry.name for entry in books if not entry.balances}

    def test_they_balance_where_everything_is_as_it_must_be(self) -> None:
        assert self.wrong(as_they_must_be(self.placements)) == set()

    @pytest.mark.parametrize(
        ("damage", "lines"),
        [
            (
                lambda t: Traces(None, t.payment, t.shipment),
                {"orders completed", "tracking numbers, each in its order"},
            ),
            (lambda t: Traces(t.order, None, t.shipment), {"payments that stand", "cents that they add up to"}),
            (
                lambda t: Traces(t.order, t.payment, None),
                {"parcels on their way", "tracking numbers, each in its order"},
            ),
            (
                lambda t: Traces(
                    t.order, Payment(status=t.payment.status, amount_cents=t.payment.amount_cents + 1), t.shipment
                ),
                {"cents that they add up to"},
            ),
            (
                lambda t: Traces(t.order, t.payment, Shipment(status=t.shipment.status, tracking_number="other")),
                {"tracking numbers, each in its order"},
            ),
        ],
        ids=["no order", "no payment", "no shipment", "a cent too much", "another tracking number"],
    )
    def test_one_order_that_is_not_as_it_must_be_shows(
        self, damage: Callable[[Traces], Traces], lines: set[str]
    ) -> None:
        traces = as_they_must_be(self.placements)
        traces[3] = damage(traces[3])
        assert self.wrong(traces) == lines

    @pytest.mark.parametrize(("widgets", "gadgets"), [(91, 94), (93, 94), (92, 93), (92, 95)])
    def test_one_piece_too_many_or_too_few_shows(self, widgets: int, gadgets: int) -> None:
        assert len(self.wrong(as_they_must_be(self.placements), widgets_left=widgets, gadgets_left=gadgets)) == 1


class TestScreen:
    def test_without_a_terminal_it_writes_plain_lines_at_most_one_a_second_and_the_last(self) -> None:
        output = io.StringIO()
        progress = Progress(["a"])
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
        progress = Progress(["a"])
        progress.see([record("a", SagaStatus.SAGA_STATUS_COMPLETED)])
        console = Console(file=output, width=200, force_terminal=True, _environ={"TERM": "xterm"})
        with Screen(console, total=1) as screen:
            screen.show(progress, 2.0)
        assert "COMPLETED" in output.getvalue()
        assert "1 of 1 ended" in output.getvalue()

    def test_a_line_of_the_books_says_what_was_found_and_what_must_be(self) -> None:
        output = io.StringIO()
        show_books(Console(file=output, width=200), [Entry("parcels", 3, 3), Entry("payments", 3, 2)])
        assert output.getvalue().splitlines() == ["ok    parcels: 3", "WRONG payments: 2, where 3 must be"]


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
