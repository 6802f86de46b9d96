"""The orders service as it was built with older schemas, for tests: run as `python -m tests.integration.older_orders`.

They let a tracking number have eight characters at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from buf.validate import validate_pb2
from farandole import Participant, Transaction, run, step
from farandole.registry import Registry
from orders.v1.order_events_pb2 import OrderCompleted, OrderCreated
from services.orders import handlers, store
from services.orders.service import rpcs
from tests.integration.service_processes import ROOT

TYPE = "shipping.v1.OrderShipped"


def older_schemas() -> bytes:
    """The present descriptor set, with the older rule."""
    files = FileDescriptorSet.FromString((ROOT / "generated" / "descriptors.binpb").read_bytes())
    for file in files.file:
        for message in file.message_type:
            for field in message.field:
                if f"{file.package}.{message.name}.{field.name}" == f"{TYPE}.tracking_number":
                    field.options.Extensions[validate_pb2.field].string.max_len = 8
    return files.SerializeToString()


if TYPE_CHECKING:
    from shipping.v1.shipping_events_pb2 import OrderShipped
else:
    OrderShipped = Registry.of_descriptor_set(older_schemas(), where="older schemas").types[TYPE].message_class


def complete(event: OrderShipped, tx: Transaction) -> OrderCompleted | None:
    """See `services.orders.handlers.complete`."""
    return handlers.complete(event, tx)


if __name__ == "__main__":
    run(
        Participant(
            "orders",
            step("place-order", handlers.record, undo=handlers.cancel, saga="order-fulfilment"),
            step("complete-order", complete, saga="order-fulfilment"),
            metadata=store.metadata,
            publishes=(OrderCreated,),
        ),
        grpc_port=50052,
        rpcs=rpcs,
    )
