"""The inventory service: its steps, its tables, its RPCs."""

from __future__ import annotations

from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from inventory.v1 import inventory_service_pb2
from inventory.v1.inventory_service_pb2_grpc import InventoryServiceServicer, add_InventoryServiceServicer_to_server
from services.inventory import store
from services.inventory.handlers import release, reserve
from services.inventory.queries import InventoryQueries

inventory = Participant(
    "inventory",
    step("reserve-items", reserve, undo=release, saga="order-fulfilment"),
    metadata=store.metadata,
    seed=store.seed,
)


def rpcs(runtime: Runtime) -> list[Rpc[InventoryServiceServicer]]:
    """What the service answers."""
    service = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"]
    return [Rpc(service, add_InventoryServiceServicer_to_server, InventoryQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(inventory, grpc_port=50053, rpcs=rpcs)
