"""What the inventory answers over gRPC."""

from __future__ import annotations

import grpc

from farandole import Runtime
from farandole.errors import NotFoundError
from inventory.v1.inventory_service_pb2 import GetStockRequest, GetStockResponse
from inventory.v1.inventory_service_pb2_grpc import InventoryServiceServicer
from services.inventory import store


class InventoryQueries(InventoryServiceServicer):
    """`inventory.v1.InventoryService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def GetStock(
        self, request: GetStockRequest, _context: grpc.aio.ServicerContext[GetStockRequest, GetStockResponse]
    ) -> GetStockResponse:
        """The stock of one article."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_STOCK, {"sku": request.sku}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"{request.sku} is not in the catalogue", reason="SKU_NOT_FOUND", metadata={"sku": request.sku}
            )
        return GetStockResponse(sku=row.sku, available=row.available, reserved=row.reserved)
