"""The orders service: its steps, its tables, its RPCs."""

from __future__ import annotations

from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from orders.v1 import order_service_pb2
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_service_pb2_grpc import OrderServiceServicer, add_OrderServiceServicer_to_server
from services.orders import store
from services.orders.handlers import cancel, complete, record
from services.orders.queries import OrderQueries

orders = Participant(
    "orders",
    step("place-order", record, undo=cancel, saga="order-fulfilment"),
    step("complete-order", complete, saga="order-fulfilment"),
    metadata=store.metadata,
    publishes=(OrderCreated,),  # by `PlaceOrder`, outside any step
)


def rpcs(runtime: Runtime) -> list[Rpc[OrderServiceServicer]]:
    """What the service answers."""
    service = order_service_pb2.DESCRIPTOR.services_by_name["OrderService"]
    return [Rpc(service, add_OrderServiceServicer_to_server, OrderQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(orders, grpc_port=50052, rpcs=rpcs)
