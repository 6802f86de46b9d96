"""The parcels service: its steps, its tables, its RPCs."""

from __future__ import annotations

from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from parcels.v1 import parcel_service_pb2
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from parcels.v1.parcel_service_pb2_grpc import ParcelServiceServicer, add_ParcelServiceServicer_to_server
from services.parcels import store
from services.parcels.handlers import cancel, complete, record
from services.parcels.queries import ParcelQueries

parcels = Participant(
    "parcels",
    step("order-parcel", record, undo=cancel, saga="drone-delivery"),
    step("complete-parcel", complete, saga="drone-delivery"),
    metadata=store.metadata,
    publishes=(ParcelOrdered,),  # by `OrderParcel`, outside any step
)


def rpcs(runtime: Runtime) -> list[Rpc[ParcelServiceServicer]]:
    """What the service answers."""
    service = parcel_service_pb2.DESCRIPTOR.services_by_name["ParcelService"]
    return [Rpc(service, add_ParcelServiceServicer_to_server, ParcelQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(parcels, grpc_port=50056, rpcs=rpcs)
