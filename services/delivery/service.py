"""The delivery service: its step, its table, its RPCs."""

from __future__ import annotations

from delivery.v1 import delivery_service_pb2
from delivery.v1.delivery_service_pb2_grpc import DeliveryServiceServicer, add_DeliveryServiceServicer_to_server
from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from services.delivery import store
from services.delivery.handlers import call_off, deliver, hand_over
from services.delivery.queries import DeliveryQueries

delivery = Participant(
    "delivery",
    step("deliver-package", deliver, undo=call_off, irrevocable=hand_over, saga="drone-delivery"),
    metadata=store.metadata,
)


def rpcs(runtime: Runtime) -> list[Rpc[DeliveryServiceServicer]]:
    """What the service answers."""
    service = delivery_service_pb2.DESCRIPTOR.services_by_name["DeliveryService"]
    return [Rpc(service, add_DeliveryServiceServicer_to_server, DeliveryQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(delivery, grpc_port=50059, rpcs=rpcs)
