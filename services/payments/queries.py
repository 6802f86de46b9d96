"""What payments answers over gRPC."""

from __future__ import annotations

import grpc

from farandole import Runtime
from farandole.errors import NotFoundError
from payments.v1.payment_service_pb2 import GetPaymentRequest, GetPaymentResponse, Payment, PaymentStatus
from payments.v1.payment_service_pb2_grpc import PaymentServiceServicer
from services.payments import store


class PaymentQueries(PaymentServiceServicer):
    """`payments.v1.PaymentService`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def GetPayment(
        self, request: GetPaymentRequest, _context: grpc.aio.ServicerContext[GetPaymentRequest, GetPaymentResponse]
    ) -> GetPaymentResponse:
        """The payment for one order."""
        row = await self._runtime.read(
            lambda connection: connection.execute(store.SELECT_PAYMENT, {"order": request.order_id}).one_or_none()
        )
        if row is None:
            raise NotFoundError(
                f"there is no payment for the order {request.order_id}",
                reason="PAYMENT_NOT_FOUND",
                metadata={"order_id": request.order_id},
            )
        return GetPaymentResponse(
            payment=Payment(
                order_id=row.order_id,
                payment_id=row.payment_id,
                amount_cents=row.amount_cents,
                currency=row.currency,
                status=PaymentStatus.Value(f"PAYMENT_STATUS_{row.status}"),
            )
        )
