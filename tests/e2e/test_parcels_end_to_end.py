"""The drone saga: a parcel from a bare `nats pub` to its end, and every way in which it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running_stack import (
    DELIVERY,
    DRONES,
    JSON,
    PACKAGING,
    PARCELS,
    RefusedError,
    Stack,
    Tools,
    assert_no_secrets,
    definitions,
    dispositions,
    eventually,
    parcel,
    parcel_subject,
    running,
)

FLOW = [
    "parcels.v1.ParcelOrdered",
    "packaging.v1.PackagePrepared",
    "drones.v1.DroneProvisioned",
    "delivery.v1.PackageDelivered",
    "parcels.v1.ParcelOrderCompleted",
]


def books(stack: Stack, item: str = "book") -> tuple[int, int, int, int]:
    """Stock and drones: (available, packed, drones available, drones provisioned)."""
    stock = stack.ask(f"{PACKAGING}/GetStock", {"item": item})
    fleet = stack.ask(f"{DRONES}/GetFleet")
    return (
        int(stock.get("available", 0)),
        int(stock.get("packed", 0)),
        int(fleet.get("available", 0)),
        int(fleet.get("provisioned", 0)),
    )


def test_a_parcel_is_delivered(stack: Stack) -> None:
    before = books(stack)
    stack.nats.publish(parcel_subject("parcel-1"), parcel("parcel-1"))
    saga = stack.completed("parcel-1")
    assert (saga["definition"], saga["version"]) == ("drone-delivery", 1)
    assert dispositions(saga) == [(event_type, "APPLIED") for event_type in [*FLOW, "choreography.v1.SagaCompleted"]]
    delivery = stack.ask(f"{DELIVERY}/GetDelivery", {"parcel_id": "parcel-1"})["delivery"]
    assert delivery["status"] == "DELIVERY_STATUS_DELIVERED"
    found = stack.ask(f"{PARCELS}/GetParcel", {"parcel_id": "parcel-1"})["parcel"]
    assert (found["status"], found["delivery_id"]) == ("PARCEL_STATUS_COMPLETED", delivery["delivery_id"])
    assert books(stack) == (before[0] - 1, before[1] + 1, before[2] - 1, before[3] + 1)
    assert_no_secrets(saga, found, delivery, stack.logs())


@pytest.mark.parametrize(
    ("parcel_id", "changes", "failure", "undone"),
    [
        ("parcel-nothing", {"item": "unicorn"}, "packaging.v1.PackagingFailed", set()),
        ("parcel-heavy", {"weightGrams": 9000}, "drones.v1.DroneUnavailable", {"packaging.v1.PackageUnpacked"}),
        (
            "parcel-nowhere",
            {"address": "nowhere"},
            "delivery.v1.DeliveryFailed",
            {"packaging.v1.PackageUnpacked", "drones.v1.DroneReleased"},
        ),
    ],
)
def test_a_parcel_that_fails_leaves_nothing_behind(
    stack: Stack, parcel_id: str, changes: JSON, failure: str, undone: set[str]
) -> None:
    """Everyone undoes their own on the failure, in parallel, in whatever order."""
    before = books(stack)
    stack.nats.publish(parcel_subject(parcel_id), parcel(parcel_id, **changes))
    saga = stack.ended(parcel_id)
    assert (saga["status"], saga["cause"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_CAUSE_STEP_FAILURE")
    types = [entry["event_type"] for entry in saga["history"]]
    assert {entry["disposition"] for entry in saga["history"]} == {"DISPOSITION_APPLIED"}
    failed = types.index(failure)
    assert types[:failed] == FLOW[:failed]
    assert set(types[failed + 1 : -1]) == undone | {"parcels.v1.ParcelOrderCancelled"}
    assert types[-1] == "choreography.v1.SagaCompensated"
    assert books(stack) == before
    assert stack.ask(f"{PARCELS}/GetParcel", {"parcel_id": parcel_id})["parcel"]["status"] == "PARCEL_STATUS_CANCELLED"


@pytest.fixture
def hasty(tools: Tools, tmp_path: Path) -> Iterator[Stack]:
    """A stack whose sagas are due after six seconds."""
    sagas = definitions(tmp_path / "sagas", s1800="6s")
    with running(tmp_path / "home", tools, {"FARANDOLE_SAGAS": str(sagas)}) as stack:
        yield stack


def test_a_delivery_that_timed_out_never_takes_place(hasty: Stack) -> None:
    """Delivery is down past the deadline: it answers that it has not delivered, and does not deliver afterwards."""
    before = books(hasty)
    hasty.farandole("stop", "delivery")
    ids = [f"grounded-{number}" for number in range(5)]
    for parcel_id in ids:
        hasty.nats.store(parcel_subject(parcel_id), parcel(parcel_id))
    for parcel_id in ids:
        saga = hasty.ended(parcel_id)
        assert (saga["status"], saga["cause"]) == ("SAGA_STATUS_COMPENSATED", "SAGA_CAUSE_DEADLINE")
    assert books(hasty) == before
    hasty.farandole("start", "delivery")

    def answered(parcel_id: str) -> bool:
        return ("delivery.v1.DeliveryFailed", "APPLIED") in dispositions(hasty.saga(parcel_id))

    for parcel_id in ids:
        eventually(lambda parcel_id=parcel_id: answered(parcel_id), f"delivery answers for {parcel_id}")  # type: ignore[misc]
    hasty.nats.store(parcel_subject("behind"), parcel("behind"))
    hasty.completed("behind")
    for parcel_id in ids:
        assert not delivered(hasty, parcel_id)
        assert hasty.saga(parcel_id)["status"] == "SAGA_STATUS_COMPENSATED"
    assert books(hasty) == (before[0] - 1, before[1] + 1, before[2] - 1, before[3] + 1), "only the one behind them"


def delivered(stack: Stack, parcel_id: str) -> bool:
    """Whether the drone has handed the parcel over."""
    try:
        delivery = stack.ask(f"{DELIVERY}/GetDelivery", {"parcel_id": parcel_id})["delivery"]
    except RefusedError:
        return False
    return bool(delivery["status"] == "DELIVERY_STATUS_DELIVERED")
