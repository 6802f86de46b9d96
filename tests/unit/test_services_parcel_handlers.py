"""What the services of the drone saga do with events, each in a transaction of a real SQLite database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed, PackageDelivered
from drones.v1.drone_events_pb2 import DroneProvisioned, DroneReleased, DroneUnavailable
from farandole import CommandTransaction, Transaction
from farandole.errors import AlreadyExistsError
from farandole.participant.outgoing import Outgoing
from farandole.registry import Registry
from packaging_contracts.v1.packaging_events_pb2 import PackagePrepared, PackageUnpacked, PackagingFailed
from parcels.v1.parcel_events_pb2 import ParcelOrderCancelled, ParcelOrderCompleted, ParcelOrdered
from services.delivery import handlers as delivery_handlers
from services.delivery import store as delivery_store
from services.drones import handlers as drones_handlers
from services.drones import store as drones_store
from services.packaging import handlers as packaging_handlers
from services.packaging import store as packaging_store
from services.parcels import handlers as parcels_handlers
from services.parcels import store as parcels_store
from tests.unit.service_transactions import NOON, opened

MILLION = 1_000_000
ADDRESS = "1 Main Street"
LATE = "the parcel took too long"

Begin = Callable[[str], Transaction]


def parcel(key: str = "par-1", *, item: str = "book", weight_grams: int = 500, address: str = ADDRESS) -> ParcelOrdered:
    return ParcelOrdered(parcel_id=key, item=item, weight_grams=weight_grams, address=address)


def prepared(key: str = "par-1", *, weight_grams: int = 500) -> PackagePrepared:
    return PackagePrepared(parcel_id=key, package_id="package-1", weight_grams=weight_grams, address=ADDRESS)


def provisioned(key: str = "par-1", *, address: str = ADDRESS) -> DroneProvisioned:
    return DroneProvisioned(parcel_id=key, drone_id="drone-1", package_id="package-1", address=address)


def timed_out(key: str = "par-1") -> SagaTimedOut:
    return SagaTimedOut(saga_id=key, definition="drone-delivery", version=1)


def dumped(tx: Transaction) -> str:
    """Everything in the database, as SQL."""
    return "\n".join(cast("sqlite3.Connection", tx.connection.connection.driver_connection).iterdump())


class TestPackaging:
    @pytest.fixture
    def begin(self) -> Iterator[Begin]:
        with opened(packaging_store.metadata, packaging_store.seed) as begin:
            yield begin

    def stock(self, tx: Transaction, item: str = "book") -> tuple[int, int]:
        row = tx.execute(packaging_store.SELECT_STOCK, {"item": item}).one()
        return row.available, row.packed

    def test_an_item_is_packed_and_the_event_carries_what_the_next_ones_need(self, begin: Begin) -> None:
        tx = begin("par-1")
        assert packaging_handlers.prepare(parcel(), tx) == PackagePrepared(
            parcel_id="par-1", package_id=tx.step_id, weight_grams=500, address=ADDRESS
        )
        assert self.stock(tx) == (MILLION - 1, 1)
        assert ADDRESS not in dumped(tx)

    @pytest.mark.parametrize(
        ("item", "reason"), [("unicorn", "unicorn: none left"), ("dragon", "dragon: not in the catalogue")]
    )
    def test_what_is_not_there_is_not_packed(self, begin: Begin, item: str, reason: str) -> None:
        tx = begin("par-1")
        failed = packaging_handlers.prepare(parcel(item=item), tx)
        assert failed == PackagingFailed(parcel_id="par-1", reason=reason)
        assert tx.execute(sa.select(packaging_store.packages)).all() == []
        assert self.stock(tx) == (MILLION, 0)

    @pytest.mark.parametrize(
        ("cause", "reason"),
        [
            (DroneUnavailable(parcel_id="par-1", reason="too heavy"), "too heavy"),
            (DeliveryFailed(parcel_id="par-1", reason="not found"), "not found"),
            (timed_out(), LATE),
        ],
        ids=["no drone", "not delivered", "timed out"],
    )
    def test_what_was_packed_is_in_stock_again(self, begin: Begin, cause: Any, reason: str) -> None:
        tx = begin("par-1")
        packaging_handlers.prepare(parcel(), tx)
        packaging_handlers.prepare(parcel("par-2"), begin("par-2"))
        assert packaging_handlers.unpack(cause, tx) == PackageUnpacked(
            parcel_id="par-1", package_id=tx.step_id, reason=reason
        )
        assert self.stock(tx) == (MILLION - 1, 1), "the other package stays packed"

    def test_seeding_again_leaves_the_stock_as_it_is_and_adds_what_is_new(self, begin: Begin) -> None:
        tx = begin("par-1")
        packaging_handlers.prepare(parcel(), tx)
        tx.execute(sa.delete(packaging_store.stock).where(packaging_store.stock.c.item == "unicorn"))
        packaging_store.seed(tx.connection)
        assert self.stock(tx) == (MILLION - 1, 1)
        assert self.stock(tx, "unicorn") == (0, 0)


class TestDrones:
    @pytest.fixture
    def begin(self) -> Iterator[Begin]:
        with opened(drones_store.metadata, drones_store.seed) as begin:
            yield begin

    def fleet(self, tx: Transaction) -> tuple[int, int]:
        row = tx.execute(drones_store.SELECT_FLEET).one()
        return row.available, row.provisioned

    def drone(self, tx: Transaction) -> tuple[str, str]:
        row = tx.execute(drones_store.SELECT_DRONE, {"parcel": tx.key}).one()
        return row.drone_id, row.status

    def test_a_drone_stands_by(self, begin: Begin) -> None:
        tx = begin("par-1")
        assert drones_handlers.provision(prepared(weight_grams=5000), tx) == DroneProvisioned(
            parcel_id="par-1", drone_id=tx.step_id, package_id="package-1", address=ADDRESS
        )
        assert self.drone(tx) == (tx.step_id, "PROVISIONED")
        assert self.fleet(tx) == (MILLION - 1, 1)
        assert ADDRESS not in dumped(tx)

    def test_no_drone_carries_more_than_five_kilograms(self, begin: Begin) -> None:
        tx = begin("par-1")
        assert drones_handlers.provision(prepared(weight_grams=5001), tx) == DroneUnavailable(
            parcel_id="par-1", reason="the package weighs 5001 g, and a drone carries 5000 g"
        )
        assert self.drone(tx) == ("", "UNAVAILABLE")
        assert self.fleet(tx) == (MILLION, 0)

    def test_the_last_drone_is_given_once(self, begin: Begin) -> None:
        tx = begin("par-1")
        tx.execute(sa.update(drones_store.fleet).values(available=1, provisioned=MILLION - 1))
        assert isinstance(drones_handlers.provision(prepared(), tx), DroneProvisioned)
        other = drones_handlers.provision(prepared("par-2"), begin("par-2"))
        assert other == DroneUnavailable(parcel_id="par-2", reason="no drone stands idle")
        assert self.fleet(tx) == (0, MILLION)

    @pytest.mark.parametrize(
        ("cause", "reason"),
        [(DeliveryFailed(parcel_id="par-1", reason="not found"), "not found"), (timed_out(), LATE)],
        ids=["not delivered", "timed out"],
    )
    def test_a_drone_is_released(self, begin: Begin, cause: Any, reason: str) -> None:
        tx = begin("par-1")
        drones_handlers.provision(prepared(), tx)
        drones_handlers.provision(prepared("par-2"), begin("par-2"))
        assert drones_handlers.release(cause, tx) == DroneReleased(
            parcel_id="par-1", drone_id=tx.step_id, reason=reason
        )
        assert self.drone(tx) == (tx.step_id, "RELEASED")
        assert self.drone(begin("par-2"))[1] == "PROVISIONED"
        assert self.fleet(tx) == (MILLION - 1, 1), "the other drone still stands by"

    def test_seeding_again_leaves_the_fleet_as_it_is(self, begin: Begin) -> None:
        tx = begin("par-1")
        drones_handlers.provision(prepared(), tx)
        drones_store.seed(tx.connection)
        assert self.fleet(tx) == (MILLION - 1, 1)

    @settings(max_examples=50)
    @given(st.lists(st.tuples(st.integers(1, 10_000), st.booleans()), max_size=10))
    def test_no_drone_is_ever_made_or_lost(self, packages: list[tuple[int, bool]]) -> None:
        """Idle and provisioned add up to the fleet; what is provisioned is what stands by for a parcel."""
        with opened(drones_store.metadata, drones_store.seed) as begin:
            standing_by = 0
            for number, (weight_grams, released) in enumerate(packages):
                tx = begin(f"par-{number}")
                outcome = drones_handlers.provision(prepared(tx.key, weight_grams=weight_grams), tx)
                if isinstance(outcome, DroneProvisioned):
                    standing_by += 1
                    if released:
                        drones_handlers.release(timed_out(tx.key), tx)
                        standing_by -= 1
                assert self.fleet(tx) == (MILLION - standing_by, standing_by)


class TestDelivery:
    @pytest.fixture
    def tx(self) -> Iterator[Transaction]:
        with opened(delivery_store.metadata) as begin:
            yield begin("par-1")

    def delivery(self, tx: Transaction) -> sa.Row[Any]:
        return tx.execute(delivery_store.SELECT_DELIVERY, {"parcel": "par-1"}).one()

    def test_a_delivery_is_planned_and_the_drone_has_not_left(self, tx: Transaction) -> None:
        assert delivery_handlers.deliver(provisioned(), tx) == PackageDelivered(
            parcel_id="par-1", delivery_id=tx.step_id, drone_id="drone-1"
        )
        assert self.delivery(tx) == ("par-1", tx.step_id, "drone-1", "PLANNED", None)
        assert ADDRESS not in dumped(tx)

    def test_the_package_is_handed_over_when_the_event_has_come_back(self, tx: Transaction) -> None:
        decided = delivery_handlers.deliver(provisioned(), tx)
        assert isinstance(decided, PackageDelivered)
        later = Transaction(tx.connection, tx.key, tx.step_id, NOON + timedelta(seconds=1))
        delivery_handlers.hand_over(decided, later)
        row = self.delivery(tx)
        assert (row.status, row.delivery_time) == ("DELIVERED", later.time.replace(tzinfo=None))

    def test_nothing_is_delivered_to_nowhere(self, tx: Transaction) -> None:
        failed = delivery_handlers.deliver(provisioned(address="nowhere"), tx)
        assert failed == DeliveryFailed(parcel_id="par-1", reason="the address is not found")
        assert self.delivery(tx) == ("par-1", "", "drone-1", "UNDELIVERABLE", None)

    def test_a_planned_delivery_is_called_off(self, tx: Transaction) -> None:
        delivery_handlers.deliver(provisioned(), tx)
        assert delivery_handlers.call_off(timed_out(), tx) == DeliveryFailed(parcel_id="par-1", reason=LATE)
        row = self.delivery(tx)
        assert (row.status, row.delivery_time) == ("CALLED_OFF", None)

    def test_one_that_was_not_even_planned_is_answered_for_too(self, tx: Transaction) -> None:
        assert delivery_handlers.call_off(timed_out(), tx) == DeliveryFailed(parcel_id="par-1", reason=LATE)
        assert tx.execute(sa.select(delivery_store.deliveries)).all() == []


class TestParcels:
    @pytest.fixture
    def tx(self) -> Iterator[Transaction]:
        with opened(parcels_store.metadata) as begin:
            yield begin("par-1")

    @pytest.fixture
    def command(self, tx: Transaction) -> CommandTransaction:
        """What `OrderParcel` runs in, on the same database."""
        outgoing = Outgoing(
            participant="parcels",
            registry=Registry.of_classes([ParcelOrdered]),
            clock=lambda: NOON,
            publishes={ParcelOrdered.DESCRIPTOR.full_name},
        )
        return CommandTransaction(tx.connection, outgoing)

    def published(self, command: CommandTransaction) -> list[ParcelOrdered]:
        return [ParcelOrdered.FromString(publication.data) for publication in command.outgoing.publications]

    def row(self, tx: Transaction) -> sa.RowMapping:
        return tx.execute(parcels_store.SELECT_PARCEL, {"parcel": "par-1"}).mappings().one()

    def test_ordering_publishes_the_event_and_makes_no_parcel_yet(
        self, tx: Transaction, command: CommandTransaction
    ) -> None:
        parcels_handlers.accept(parcel(), command)
        assert self.published(command) == [parcel()]
        assert tx.execute(sa.select(parcels_store.parcels)).all() == []

    def test_the_same_parcel_again_publishes_nothing(self, tx: Transaction, command: CommandTransaction) -> None:
        parcels_handlers.accept(parcel(), command)
        parcels_handlers.accept(parcel(), command)
        parcels_handlers.record(parcel(), tx)
        parcels_handlers.accept(parcel(), command)
        assert self.published(command) == [parcel()]

    def test_another_parcel_with_a_known_id_is_refused(self, command: CommandTransaction) -> None:
        parcels_handlers.accept(parcel(), command)
        with pytest.raises(AlreadyExistsError) as refused:
            parcels_handlers.accept(parcel(weight_grams=501), command)
        assert refused.value.metadata == {"parcel_id": "par-1"}

    def test_the_stream_decides_which_of_two_parcels_has_the_id(
        self, tx: Transaction, command: CommandTransaction
    ) -> None:
        """Another parcel with the id was stored before the one that was accepted here."""
        parcels_handlers.accept(parcel(), command)
        parcels_handlers.record(parcel(item="unicorn"), tx)
        with pytest.raises(AlreadyExistsError):
            parcels_handlers.accept(parcel(), command)
        parcels_handlers.accept(parcel(item="unicorn"), command)

    def test_a_parcel_is_recorded_without_its_address(self, tx: Transaction) -> None:
        parcels_handlers.record(parcel(), tx)
        row = dict(self.row(tx))
        assert row.pop("digest")
        assert row.pop("create_time") == NOON.replace(tzinfo=None)
        assert row == {
            "parcel_id": "par-1",
            "item": "book",
            "weight_grams": 500,
            "status": "ORDERED",
            "delivery_id": "",
            "cancel_reason": "",
        }
        assert ADDRESS not in dumped(tx)

    @pytest.mark.parametrize(
        ("cause", "reason"),
        [
            (PackagingFailed(parcel_id="par-1", reason="none left"), "none left"),
            (DroneUnavailable(parcel_id="par-1", reason="too heavy"), "too heavy"),
            (DeliveryFailed(parcel_id="par-1", reason="not found"), "not found"),
            (timed_out(), LATE),
        ],
        ids=["not packed", "no drone", "not delivered", "timed out"],
    )
    def test_a_parcel_is_called_off_with_the_reason(self, tx: Transaction, cause: Any, reason: str) -> None:
        parcels_handlers.record(parcel(), tx)
        assert parcels_handlers.cancel(cause, tx) == ParcelOrderCancelled(parcel_id="par-1", reason=reason)
        assert (self.row(tx)["status"], self.row(tx)["cancel_reason"]) == ("CANCELLED", reason)

    def test_a_delivered_parcel_is_complete_and_has_its_delivery(self, tx: Transaction) -> None:
        parcels_handlers.record(parcel(), tx)
        delivered = PackageDelivered(parcel_id="par-1", delivery_id="delivery-1", drone_id="drone-1")
        assert parcels_handlers.complete(delivered, tx) == ParcelOrderCompleted(
            parcel_id="par-1", delivery_id="delivery-1"
        )
        assert (self.row(tx)["status"], self.row(tx)["delivery_id"]) == ("COMPLETED", "delivery-1")

    def test_a_cancelled_parcel_and_an_unknown_one_are_never_completed(self, tx: Transaction) -> None:
        delivered = PackageDelivered(parcel_id="par-1", delivery_id="delivery-1", drone_id="drone-1")
        assert parcels_handlers.complete(delivered, tx) is None
        parcels_handlers.record(parcel(), tx)
        parcels_handlers.cancel(timed_out(), tx)
        assert parcels_handlers.complete(delivered, tx) is None
        assert self.row(tx)["status"] == "CANCELLED"
