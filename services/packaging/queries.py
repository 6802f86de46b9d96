"""What packaging answers over gRPC."""

from __future__ import annotations

import grpc

from farandole import Runtime
from farandole.errors import NotFoundError
from packaging_contracts.v1.packaging_service_pb2 import GetStockRequest, GetStockResponse
from packaging_contracts.v1.packaging_service_pb2_grpc import PackagingServiceServicer
from services.packaging import store


class PackagingQueries(PackagingServiceServicer):
    """`packaging.v1.PackagingService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def GetStock(
        self, request: GetStockRequest, _context: grpc.aio.ServicerContext[GetStockRequest, GetStockResponse]
    ) -> GetStockResponse:
        """The stock of one item."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_STOCK, {"item": request.item}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"there is no item {request.item} in the catalogue",
                reason="ITEM_NOT_FOUND",
                metadata={"item": request.item},
            )
        return GetStockResponse(item=row.item, available=row.available, packed=row.packed)
