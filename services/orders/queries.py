"""What the orders service answers over gRPC."""

from __future__ import annotations

import uuid
from functools import partial

import grpc
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from farandole import Runtime
from farandole.errors import NotFoundError
from orders.v1.order_events_pb2 import OrderCreated
from orders.v1.order_pb2 import OrderLine
from orders.v1.order_service_pb2 import (
    GetOrderRequest,
    GetOrderResponse,
    Order,
    OrderStatus,
    PlaceOrderRequest,
    PlaceOrderResponse,
)
from orders.v1.order_service_pb2_grpc import OrderServiceServicer
from services.orders import handlers, store


class OrderQueries(OrderServiceServicer):
    """`orders.v1.OrderService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def PlaceOrder(
        self, request: PlaceOrderRequest, _context: grpc.aio.ServicerContext[PlaceOrderRequest, PlaceOrderResponse]
    ) -> PlaceOrderResponse:
        """Places an order."""
        order = OrderCreated(
            order_id=request.order_id or str(uuid.uuid4()),
            customer_id=request.customer_id,
            lines=request.lines,
            currency=request.currency,
            card=request.card,
            address=request.address,
        )
        await self._runtime.execute(partial(handlers.place, order))
        return PlaceOrderResponse(order_id=order.order_id)

    async def GetOrder(
        self, request: GetOrderRequest, _context: grpc.aio.ServicerContext[GetOrderRequest, GetOrderResponse]
    ) -> GetOrderResponse:
        """One order."""
        order = await self._runtime.read(partial(_order, request.order_id))
        if order is None:
            raise NotFoundError(
                f"there is no order {request.order_id}",
                reason="ORDER_NOT_FOUND",
                metadata={"order_id": request.order_id},
            )
        return GetOrderResponse(order=order)


def _order(order_id: str, connection: sa.Connection) -> Order | None:
    row = connection.execute(store.SELECT_ORDER, {"order": order_id}).one_or_none()
    if row is None:
        return None
    create_time = Timestamp()
    create_time.FromDatetime(row.create_time)
    return Order(
        order_id=row.order_id,
        customer_id=row.customer_id,
        lines=[
            OrderLine(sku=line.sku, quantity=line.quantity, unit_price_cents=line.unit_price_cents)
            for line in connection.execute(store.SELECT_LINES, {"order": order_id})
        ],
        currency=row.currency,
        amount_cents=row.amount_cents,
        status=OrderStatus.Value(f"ORDER_STATUS_{row.status}"),
        tracking_number=row.tracking_number,
        cancel_reason=row.cancel_reason,
        create_time=create_time,
    )
