"""The packaging service: its step, its tables, its RPCs."""

from __future__ import annotations

from farandole import Participant, Runtime, run, step
from farandole.rpc import Rpc
from packaging_contracts.v1 import packaging_service_pb2
from packaging_contracts.v1.packaging_service_pb2_grpc import (
    PackagingServiceServicer,
    add_PackagingServiceServicer_to_server,
)
from services.packaging import store
from services.packaging.handlers import prepare, unpack
from services.packaging.queries import PackagingQueries

packaging = Participant(
    "packaging",
    step("prepare-package", prepare, undo=unpack, saga="drone-delivery"),
    metadata=store.metadata,
    seed=store.seed,
)


def rpcs(runtime: Runtime) -> list[Rpc[PackagingServiceServicer]]:
    """What the service answers."""
    service = packaging_service_pb2.DESCRIPTOR.services_by_name["PackagingService"]
    return [Rpc(service, add_PackagingServiceServicer_to_server, PackagingQueries(runtime))]


def main() -> None:
    """Runs the service until it is told to stop."""
    run(packaging, grpc_port=50057, rpcs=rpcs)
