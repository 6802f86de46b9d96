"""What the sample services do with events, each in a transaction of a real SQLite database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import CommandTransaction, Reject, Transaction
from farandole.errors import AlreadyExistsError
from farandole.participant.outgoing import Outgoing
from farandole.registry import Registry
from inventory.v1.inventory_events_pb2 import ItemsReleased, ItemsReserved, ReservationFailed
from orders.v1.order_events_pb2 import OrderCancelled, OrderCompleted, OrderCreated
from orders.v1.order_pb2 import OrderLine
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentProcessed, PaymentRefunded
from services.inventory import handlers as inventory_handlers
from services.inventory import store as inventory_store
from services.orders import handlers as orders_handlers
from services.orders import store as orders_store
from services.payments import handlers as payments_handlers
from services.payments import store as payments_store
from services.shipping import handlers as shipping_handlers
from services.shipping import store as shipping_store
from shipping.v1.shipping_events_pb2 import OrderShipped, ShipmentCancelled, ShippingFailed
from tests.unit.service_transactions import NOON, opened


def order(key: str = "ord-1", *lines: tuple[str, int, int], **fields: str) -> OrderCreated:
    values = {"customer_id": "cust-1", "currency": "EUR", "card": "card-1", "address": "1 Main Street"} | fields
    return OrderCreated(
        order_id=key,
        lines=[
            OrderLine(sku=sku, quantity=quantity, unit_price_cents=price)
            for sku, quantity, price in lines or [("widget", 2, 1250)]
        ],
        **values,
    )


def timed_out(key: str = "ord-1") -> SagaTimedOut:
    return SagaTimedOut(saga_id=key, definition="order-fulfilment", version=1)


def stock(tx: Transaction, sku: str) -> tuple[int, int]:
    row = tx.execute(inventory_store.SELECT_STOCK, {"sku": sku}).one()
    return row.available, row.reserved


class TestInventory:
    @pytest.fixture
    def begin(self) -> Iterator[Callable[[str], Transaction]]:
        with opened(inventory_store.metadata, inventory_store.seed) as begin:
            yield begin

    def test_every_line_is_set_aside_and_the_event_carries_what_the_next_ones_need(
        self, begin: Callable[[str], Transaction]
    ) -> None:
        tx = begin("ord-1")
        event = order("ord-1", ("widget", 2, 1250), ("gadget", 1, 99), ("widget", 3, 1000))
        assert inventory_handlers.reserve(event, tx) == ItemsReserved(
            order_id="ord-1",
            reservation_id=tx.step_id,
            amount_cents=2 * 1250 + 99 + 3 * 1000,
            currency="EUR",
            card="card-1",
            address="1 Main Street",
        )
        assert stock(tx, "widget") == (999_995, 5)
        assert stock(tx, "gadget") == (999_999, 1)

    @pytest.mark.parametrize(
        ("lines", "reason"),
        [
            ([("widget", 1, 1), ("unicorn", 1, 1)], "unicorn: 1 wanted, 0 left"),
            ([("widget", 1, 1), ("dragon", 2, 1)], "dragon: 2 wanted, 0 left"),
            ([("widget", 600_000, 1), ("widget", 400_001, 1)], "widget: 1000001 wanted, 1000000 left"),
        ],
        ids=["too few", "not in the catalogue", "too few for both lines together"],
    )
    def test_nothing_is_set_aside_where_one_article_is_short(
        self, begin: Callable[[str], Transaction], lines: list[tuple[str, int, int]], reason: str
    ) -> None:
        tx = begin("ord-1")
        assert inventory_handlers.reserve(order("ord-1", *lines), tx) == ReservationFailed(
            order_id="ord-1", reason=reason
        )
        assert stock(tx, "widget") == (1_000_000, 0)
        assert tx.execute(sa.select(inventory_store.reserved_lines)).all() == []

    @pytest.mark.parametrize(
        ("cause", "reason"),
        [
            (PaymentFailed(order_id="ord-1", reason="the card was declined"), "the card was declined"),
            (PaymentRefunded(order_id="ord-1", reason="the address is unknown"), "the address is unknown"),
            (timed_out(), "the order took too long"),
        ],
        ids=["declined", "refunded", "timed out"],
    )
    def test_what_was_set_aside_is_free_again(
        self, begin: Callable[[str], Transaction], cause: Any, reason: str
    ) -> None:
        tx = begin("ord-1")
        inventory_handlers.reserve(order("ord-1", ("widget", 2, 1), ("gadget", 1, 1)), tx)
        other = begin("ord-2")
        inventory_handlers.reserve(order("ord-2", ("widget", 5, 1)), other)
        assert inventory_handlers.release(cause, tx) == ItemsReleased(
            order_id="ord-1", reservation_id=tx.step_id, reason=reason
        )
        assert stock(tx, "widget") == (999_995, 5), "the other order's pieces stay reserved"
        assert stock(tx, "gadget") == (1_000_000, 0)

    def test_seeding_again_leaves_the_stock_as_it_is_and_adds_what_is_new(
        self, begin: Callable[[str], Transaction]
    ) -> None:
        tx = begin("ord-1")
        inventory_handlers.reserve(order("ord-1", ("widget", 2, 1)), tx)
        tx.execute(sa.delete(inventory_store.stock).where(inventory_store.stock.c.sku == "unicorn"))
        inventory_store.seed(tx.connection)
        assert stock(tx, "widget") == (999_998, 2)
        assert stock(tx, "unicorn") == (0, 0)

    @settings(max_examples=50)
    @given(
        st.lists(
            st.tuples(
                st.lists(
                    st.tuples(
                        st.sampled_from(["widget", "gadget", "unicorn", "dragon"]), st.integers(1, 400_000), st.just(1)
                    ),
                    min_size=1,
                    max_size=4,
                ),
                st.booleans(),
            ),
            max_size=8,
        )
    )
    def test_no_piece_is_ever_made_or_lost(self, orders: list[tuple[list[tuple[str, int, int]], bool]]) -> None:
        """Available and reserved add up to the opening stock; what is reserved is what the standing orders hold."""
        with opened(inventory_store.metadata, inventory_store.seed) as begin:
            standing = dict.fromkeys(["widget", "gadget", "unicorn"], 0)
            for number, (lines, released) in enumerate(orders):
                key = f"ord-{number}"
                event = order(key, *lines)
                if isinstance(inventory_handlers.reserve(event, begin(key)), ItemsReserved):
                    if released:
                        inventory_handlers.release(timed_out(key), begin(key))
                    else:
                        for line in event.lines:
                            standing[line.sku] += line.quantity
                for sku, opening in {"widget": 1_000_000, "gadget": 1_000_000, "unicorn": 0}.items():
                    assert stock(begin(key), sku) == (opening - standing[sku], standing[sku])


class TestPayments:
    @pytest.fixture
    def tx(self) -> Iterator[Transaction]:
        with opened(payments_store.metadata) as begin:
            yield begin("ord-1")

    reserved = ItemsReserved(
        order_id="ord-1",
        reservation_id="res-1",
        amount_cents=2500,
        currency="EUR",
        card="card-1",
        address="1 Main Street",
    )

    def payment(self, tx: Transaction) -> sa.RowMapping:
        return tx.execute(payments_store.SELECT_PAYMENT, {"order": "ord-1"}).mappings().one()

    def test_a_card_is_charged(self, tx: Transaction) -> None:
        assert payments_handlers.charge(self.reserved, tx) == PaymentProcessed(
            order_id="ord-1", payment_id=tx.step_id, amount_cents=2500, currency="EUR", address="1 Main Street"
        )
        assert self.payment(tx) == {
            "order_id": "ord-1",
            "payment_id": tx.step_id,
            "amount_cents": 2500,
            "currency": "EUR",
            "status": "PROCESSED",
        }

    def test_a_declined_card_leaves_a_declined_payment_without_an_id(self, tx: Transaction) -> None:
        declined = ItemsReserved()
        declined.CopyFrom(self.reserved)
        declined.card = "card-declined"
        assert payments_handlers.charge(declined, tx) == PaymentFailed(order_id="ord-1", reason="the card was declined")
        assert (self.payment(tx)["status"], self.payment(tx)["payment_id"]) == ("DECLINED", "")

    def test_an_account_that_is_frozen_is_charged_and_takes_nothing_back(self, tx: Transaction) -> None:
        reserved = ItemsReserved()
        reserved.CopyFrom(self.reserved)
        reserved.card = "card-frozen"
        assert isinstance(payments_handlers.charge(reserved, tx), PaymentProcessed)
        with pytest.raises(Reject, match="frozen"):
            payments_handlers.refund(ShippingFailed(order_id="ord-1", reason="the address is unknown"), tx)
        assert self.payment(tx)["status"] == "PROCESSED", "the money has not been given back"

    @pytest.mark.parametrize(
        ("cause", "reason"),
        [
            (ShippingFailed(order_id="ord-1", reason="the address is unknown"), "the address is unknown"),
            (timed_out(), "the order took too long"),
        ],
        ids=["not deliverable", "timed out"],
    )
    def test_all_that_was_charged_is_given_back(self, tx: Transaction, cause: Any, reason: str) -> None:
        payments_handlers.charge(self.reserved, tx)
        assert payments_handlers.refund(cause, tx) == PaymentRefunded(
            order_id="ord-1", payment_id=tx.step_id, amount_cents=2500, reason=reason
        )
        assert self.payment(tx)["status"] == "REFUNDED"


class TestShipping:
    @pytest.fixture
    def tx(self) -> Iterator[Transaction]:
        with opened(shipping_store.metadata) as begin:
            yield begin("ord-1")

    def shipment(self, tx: Transaction) -> sa.RowMapping:
        return tx.execute(shipping_store.SELECT_SHIPMENT, {"order": "ord-1"}).mappings().one()

    def test_a_parcel_is_sent_and_then_called_back(self, tx: Transaction) -> None:
        shipped = shipping_handlers.ship(PaymentProcessed(order_id="ord-1", address="1 Main Street"), tx)
        assert isinstance(shipped, OrderShipped)
        assert self.shipment(tx) == {
            "order_id": "ord-1",
            "tracking_number": shipped.tracking_number,
            "status": "SHIPPED",
        }
        assert shipping_handlers.call_back(timed_out(), tx) == ShipmentCancelled(
            order_id="ord-1", tracking_number=shipped.tracking_number, reason="the order took too long"
        )
        assert self.shipment(tx)["status"] == "CANCELLED"

    def test_nothing_is_sent_to_nowhere(self, tx: Transaction) -> None:
        failed = shipping_handlers.ship(PaymentProcessed(order_id="ord-1", address="nowhere"), tx)
        assert failed == ShippingFailed(order_id="ord-1", reason="the address can't be delivered to")
        assert self.shipment(tx) == {"order_id": "ord-1", "tracking_number": "", "status": "UNDELIVERABLE"}

    def test_nobody_decides_about_an_address_that_nobody_can_read(self, tx: Transaction) -> None:
        with pytest.raises(Reject, match="read"):
            shipping_handlers.ship(PaymentProcessed(order_id="ord-1", address="illegible"), tx)
        assert tx.execute(sa.select(shipping_store.shipments)).all() == []


class TestOrders:
    @pytest.fixture
    def tx(self) -> Iterator[Transaction]:
        with opened(orders_store.metadata) as begin:
            yield begin("ord-1")

    def row(self, tx: Transaction) -> sa.RowMapping:
        return tx.execute(orders_store.SELECT_ORDER, {"order": "ord-1"}).mappings().one()

    @pytest.fixture
    def command(self, tx: Transaction) -> CommandTransaction:
        """What `PlaceOrder` runs in, on the same database."""
        outgoing = Outgoing(
            participant="orders",
            registry=Registry.of_classes([OrderCreated]),
            clock=lambda: NOON,
            publishes={OrderCreated.DESCRIPTOR.full_name},
        )
        return CommandTransaction(tx.connection, outgoing)

    def published(self, command: CommandTransaction) -> list[OrderCreated]:
        return [OrderCreated.FromString(publication.data) for publication in command.outgoing.publications]

    def test_placing_publishes_the_event_and_makes_no_order_yet(
        self, tx: Transaction, command: CommandTransaction
    ) -> None:
        orders_handlers.place(order(), command)
        assert self.published(command) == [order()]
        assert tx.execute(sa.select(orders_store.orders)).all() == []

    def test_the_same_order_placed_again_publishes_nothing(self, tx: Transaction, command: CommandTransaction) -> None:
        orders_handlers.place(order(), command)
        orders_handlers.place(order(), command)
        orders_handlers.record(order(), tx)
        orders_handlers.place(order(), command)
        assert self.published(command) == [order()]

    def test_an_order_that_came_as_a_bare_event_can_be_placed_again_but_no_other_with_its_id(
        self, tx: Transaction, command: CommandTransaction
    ) -> None:
        orders_handlers.record(order(), tx)
        orders_handlers.place(order(), command)
        with pytest.raises(AlreadyExistsError, match="ord-1"):
            orders_handlers.place(order(card="card-2"), command)
        assert self.published(command) == []

    def test_another_order_with_a_known_id_is_refused(self, command: CommandTransaction) -> None:
        orders_handlers.place(order(), command)
        with pytest.raises(AlreadyExistsError) as refused:
            orders_handlers.place(order("ord-1", ("widget", 3, 1250)), command)
        assert refused.value.metadata == {"order_id": "ord-1"}

    def test_the_stream_decides_which_of_two_orders_has_the_id(
        self, tx: Transaction, command: CommandTransaction
    ) -> None:
        """Another order with the id was stored before the one that was accepted here."""
        orders_handlers.place(order(), command)
        orders_handlers.record(order(card="card-2"), tx)
        with pytest.raises(AlreadyExistsError):
            orders_handlers.place(order(), command)
        orders_handlers.place(order(card="card-2"), command)

    def test_an_order_is_recorded_without_card_and_address(self, tx: Transaction) -> None:
        orders_handlers.record(order("ord-1", ("widget", 2, 1250), ("gadget", 1, 99)), tx)
        row = dict(self.row(tx))
        assert row.pop("digest")
        assert row.pop("create_time") == NOON.replace(tzinfo=None)
        assert row == {
            "order_id": "ord-1",
            "customer_id": "cust-1",
            "currency": "EUR",
            "amount_cents": 2599,
            "status": "PLACED",
            "tracking_number": "",
            "cancel_reason": "",
        }
        lines = tx.execute(orders_store.SELECT_LINES, {"order": "ord-1"}).all()
        assert [(line.sku, line.quantity, line.unit_price_cents) for line in lines] == [
            ("widget", 2, 1250),
            ("gadget", 1, 99),
        ]
        dump = "\n".join(cast("sqlite3.Connection", tx.connection.connection.driver_connection).iterdump())
        assert "card-1" not in dump
        assert "Main Street" not in dump

    @pytest.mark.parametrize(
        ("cause", "reason"),
        [
            (ReservationFailed(order_id="ord-1", reason="unicorn: 1 wanted, 0 left"), "unicorn: 1 wanted, 0 left"),
            (ItemsReleased(order_id="ord-1", reason="the card was declined"), "the card was declined"),
            (timed_out(), "the order took too long"),
        ],
        ids=["not in stock", "released", "timed out"],
    )
    def test_an_order_is_called_off_with_the_reason(self, tx: Transaction, cause: Any, reason: str) -> None:
        orders_handlers.record(order(), tx)
        assert orders_handlers.cancel(cause, tx) == OrderCancelled(order_id="ord-1", reason=reason)
        assert (self.row(tx)["status"], self.row(tx)["cancel_reason"]) == ("CANCELLED", reason)

    def test_a_shipped_order_is_complete_and_has_the_tracking_number(self, tx: Transaction) -> None:
        orders_handlers.record(order(), tx)
        shipped = OrderShipped(order_id="ord-1", tracking_number="FD1")
        assert orders_handlers.complete(shipped, tx) == OrderCompleted(order_id="ord-1", tracking_number="FD1")
        assert (self.row(tx)["status"], self.row(tx)["tracking_number"]) == ("COMPLETED", "FD1")

    def test_a_cancelled_order_and_an_unknown_one_are_never_completed(self, tx: Transaction) -> None:
        assert orders_handlers.complete(OrderShipped(order_id="ord-1", tracking_number="FD1"), tx) is None
        orders_handlers.record(order(), tx)
        orders_handlers.cancel(timed_out(), tx)
        assert orders_handlers.complete(OrderShipped(order_id="ord-1", tracking_number="FD1"), tx) is None
        assert self.row(tx)["status"] == "CANCELLED"
