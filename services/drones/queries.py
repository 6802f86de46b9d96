"""What the drones service answers over gRPC."""

from __future__ import annotations

import grpc

from drones.v1.drone_service_pb2 import (
    Drone,
    DroneStatus,
    GetDroneRequest,
    GetDroneResponse,
    GetFleetRequest,
    GetFleetResponse,
)
from drones.v1.drone_service_pb2_grpc import DroneServiceServicer
from farandole import Runtime
from farandole.errors import NotFoundError
from services.drones import store


class DroneQueries(DroneServiceServicer):
    """`drones.v1.DroneService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def GetFleet(
        self, _request: GetFleetRequest, _context: grpc.aio.ServicerContext[GetFleetRequest, GetFleetResponse]
    ) -> GetFleetResponse:
        """How many drones there are."""
        row = await self._runtime.read(lambda connection: connection.execute(store.SELECT_FLEET).one())
        return GetFleetResponse(available=row.available, provisioned=row.provisioned)

    async def GetDrone(
        self, request: GetDroneRequest, _context: grpc.aio.ServicerContext[GetDroneRequest, GetDroneResponse]
    ) -> GetDroneResponse:
        """The drone of one parcel."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_DRONE, {"parcel": request.parcel_id}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"there is no drone for the parcel {request.parcel_id}",
                reason="DRONE_NOT_FOUND",
                metadata={"parcel_id": request.parcel_id},
            )
        return GetDroneResponse(
            drone=Drone(
                drone_id=row.drone_id,
                parcel_id=row.parcel_id,
                status=DroneStatus.Value(f"DRONE_STATUS_{row.status}"),
            )
        )
