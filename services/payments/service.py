"""The payments service: its steps, its tables, its RPCs."""

from __future__ import annotations

from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from payments.v1 import payment_service_pb2
from payments.v1.payment_service_pb2_grpc import PaymentServiceServicer, add_PaymentServiceServicer_to_server
from services.payments import store
from services.payments.handlers import charge, refund
from services.payments.queries import PaymentQueries

payments = Participant(
    "payments",
    step("take-payment", charge, undo=refund, saga="order-fulfilment"),
    metadata=store.metadata,
)


def rpcs(runtime: Runtime) -> list[Rpc[PaymentServiceServicer]]:
    """What the service answers."""
    service = payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"]
    return [Rpc(service, add_PaymentServiceServicer_to_server, PaymentQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(payments, grpc_port=50054, rpcs=rpcs)
