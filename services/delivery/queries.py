"""What the delivery service answers over gRPC."""

from __future__ import annotations

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from delivery.v1.delivery_service_pb2 import Delivery, DeliveryStatus, GetDeliveryRequest, GetDeliveryResponse
from delivery.v1.delivery_service_pb2_grpc import DeliveryServiceServicer
from farandole import Runtime
from farandole.errors import NotFoundError
from services.delivery import store


class DeliveryQueries(DeliveryServiceServicer):
    """`delivery.v1.DeliveryService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def GetDelivery(
        self, request: GetDeliveryRequest, _context: grpc.aio.ServicerContext[GetDeliveryRequest, GetDeliveryResponse]
    ) -> GetDeliveryResponse:
        """The delivery of one parcel."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_DELIVERY, {"parcel": request.parcel_id}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"there is no delivery of the parcel {request.parcel_id}",
                reason="DELIVERY_NOT_FOUND",
                metadata={"parcel_id": request.parcel_id},
            )
        delivery = Delivery(
            delivery_id=row.delivery_id,
            parcel_id=row.parcel_id,
            drone_id=row.drone_id,
            status=DeliveryStatus.Value(f"DELIVERY_STATUS_{row.status}"),
        )
        if row.delivery_time is not None:
            delivery_time = Timestamp()
            delivery_time.FromDatetime(row.delivery_time)
            delivery.delivery_time.CopyFrom(delivery_time)
        return GetDeliveryResponse(delivery=delivery)
