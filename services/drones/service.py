"""The drones service: its step, its tables, its RPCs."""

from __future__ import annotations

from drones.v1 import drone_service_pb2
from drones.v1.drone_service_pb2_grpc import DroneServiceServicer, add_DroneServiceServicer_to_server
from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from services.drones import store
from services.drones.handlers import provision, release
from services.drones.queries import DroneQueries

drones = Participant(
    "drones",
    step("provision-drone", provision, undo=release, saga="drone-delivery"),
    metadata=store.metadata,
    seed=store.seed,
)


def rpcs(runtime: Runtime) -> list[Rpc[DroneServiceServicer]]:
    """What the service answers."""
    service = drone_service_pb2.DESCRIPTOR.services_by_name["DroneService"]
    return [Rpc(service, add_DroneServiceServicer_to_server, DroneQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(drones, grpc_port=50058, rpcs=rpcs)
