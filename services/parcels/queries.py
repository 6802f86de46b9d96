"""What the parcels service answers over gRPC."""

from __future__ import annotations

import uuid
from functools import partial

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from farandole import Runtime
from farandole.errors import NotFoundError
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from parcels.v1.parcel_service_pb2 import (
    GetParcelRequest,
    GetParcelResponse,
    OrderParcelRequest,
    OrderParcelResponse,
    Parcel,
    ParcelStatus,
)
from parcels.v1.parcel_service_pb2_grpc import ParcelServiceServicer
from services.parcels import handlers, store


class ParcelQueries(ParcelServiceServicer):
    """`parcels.v1.ParcelService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def OrderParcel(
        self, request: OrderParcelRequest, _context: grpc.aio.ServicerContext[OrderParcelRequest, OrderParcelResponse]
    ) -> OrderParcelResponse:
        """Orders a parcel."""
        parcel = ParcelOrdered(
            parcel_id=request.parcel_id or str(uuid.uuid4()),
            item=request.item,
            weight_grams=request.weight_grams,
            address=request.address,
        )
        await self._runtime.execute(partial(handlers.accept, parcel))
        return OrderParcelResponse(parcel_id=parcel.parcel_id)

    async def GetParcel(
        self, request: GetParcelRequest, _context: grpc.aio.ServicerContext[GetParcelRequest, GetParcelResponse]
    ) -> GetParcelResponse:
        """One parcel."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_PARCEL, {"parcel": request.parcel_id}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"there is no parcel {request.parcel_id}",
                reason="PARCEL_NOT_FOUND",
                metadata={"parcel_id": request.parcel_id},
            )
        create_time = Timestamp()
        create_time.FromDatetime(row.create_time)
        return GetParcelResponse(
            parcel=Parcel(
                parcel_id=row.parcel_id,
                item=row.item,
                weight_grams=row.weight_grams,
                status=ParcelStatus.Value(f"PARCEL_STATUS_{row.status}"),
                delivery_id=row.delivery_id,
                cancel_reason=row.cancel_reason,
                create_time=create_time,
            )
        )
