"""What shipping answers over gRPC."""

from __future__ import annotations

import grpc

from farandole import Runtime
from farandole.errors import NotFoundError
from services.shipping import store
from shipping.v1.shipping_service_pb2 import GetShipmentRequest, GetShipmentResponse, Shipment, ShipmentStatus
from shipping.v1.shipping_service_pb2_grpc import ShippingServiceServicer


class ShippingQueries(ShippingServiceServicer):
    """`shipping.v1.ShippingService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def GetShipment(
        self, request: GetShipmentRequest, _context: grpc.aio.ServicerContext[GetShipmentRequest, GetShipmentResponse]
    ) -> GetShipmentResponse:
        """The shipment of one order."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_SHIPMENT, {"order": request.order_id}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"there is no shipment of the order {request.order_id}",
                reason="SHIPMENT_NOT_FOUND",
                metadata={"order_id": request.order_id},
            )
        return GetShipmentResponse(
            shipment=Shipment(
                order_id=row.order_id,
                tracking_number=row.tracking_number,
                status=ShipmentStatus.Value(f"SHIPMENT_STATUS_{row.status}"),
            )
        )
