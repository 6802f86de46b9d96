"""The shipping service: its steps, its tables, its RPCs."""

from __future__ import annotations

from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from services.shipping import store
from services.shipping.handlers import call_back, ship
from services.shipping.queries import ShippingQueries
from shipping.v1 import shipping_service_pb2
from shipping.v1.shipping_service_pb2_grpc import ShippingServiceServicer, add_ShippingServiceServicer_to_server

shipping = Participant(
    "shipping",
    step("ship-order", ship, undo=call_back, saga="order-fulfilment"),
    metadata=store.metadata,
)


def rpcs(runtime: Runtime) -> list[Rpc[ShippingServiceServicer]]:
    """What the service answers."""
    service = shipping_service_pb2.DESCRIPTOR.services_by_name["ShippingService"]
    return [Rpc(service, add_ShippingServiceServicer_to_server, ShippingQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(shipping, grpc_port=50055, rpcs=rpcs)
