"""Orders and parcels of every kind, brought in by every way that there is, some of them more than once.

What was acknowledged is noted, and only that: a publication or a call that failed is tried again until it is.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import grpc
import nats
import nats.errors
import nats.js.errors
from google.protobuf import json_format

from orders.v1.order_service_pb2 import PlaceOrderRequest
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from parcels.v1.parcel_service_pb2 import OrderParcelRequest
from parcels.v1.parcel_service_pb2_grpc import ParcelServiceStub
from tests.chaos.checker.choreographies import DRONE_DELIVERY, ORDER_FULFILMENT
from tests.chaos.checker.evidence import GARBAGE
from tests.chaos.stack import CHANNEL_OPTIONS

Body = dict[str, Any]

_RETRY_SECONDS = 0.3
_ANSWER_SECONDS = 3.0
_BURSTS = (1, 1, 1, 2, 5, 12)
"""How many sagas may begin at the same moment."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of order or parcel, and how many of a hundred are of it."""

    changes: Mapping[str, Any]
    share: float


ORDER_KINDS = (
    Kind({}, 64),
    Kind({"card": "card-declined"}, 12),
    Kind({"address": "nowhere"}, 14),
    Kind({"lines": [{"sku": "unicorn", "quantity": 1, "unitPriceCents": 5}]}, 8),
    Kind({"address": "illegible"}, 2),  # nobody can ship it: its time-out ends it
)
PARCEL_KINDS = (
    Kind({}, 64),
    Kind({"item": "unicorn"}, 10),
    Kind({"weightGrams": 9000}, 12),
    Kind({"address": "nowhere"}, 14),
)
_SHARE_OF_ORDERS = 0.55
_SHARE_BY_CALL = 0.3
_SHARE_WITH_HEADERS = 0.35
_SHARE_SAME_AGAIN = 0.12
_SHARE_OTHER_BODY = 0.06
_SHARE_GARBAGE = 0.01
_GARBAGE_TYPES = (
    "inventory.v1.ItemsReserved",
    "payments.v1.PaymentProcessed",
    "drones.v1.DroneProvisioned",
    "chaos.v1.No",
)
"""Types that participants consume, and one that nobody knows."""


@dataclass
class Progress:
    """How far the load is."""

    begun: int = 0
    """Sagas whose first publication or call was acknowledged."""
    repeated: int = 0
    """Acknowledged publications and calls for a saga that had one before."""
    refused: Counter[str] = field(default_factory=Counter)
    """What publications and calls met before they were acknowledged."""


class Load:
    """Begins sagas at an even rate over a time."""

    def __init__(
        self, *, nats_url: str, orders: str, parcels: str, ledger: Path, seed: int, sagas: int, seconds: float
    ) -> None:
        """`orders` and `parcels` are addresses of the services; `ledger` is written line by line."""
        self.progress = Progress()
        self._nats_url = nats_url
        self._addresses = {"orders": orders, "parcels": parcels}
        self._ledger_path = ledger
        self._random = random.Random(seed)
        self._sagas = sagas
        self._seconds = seconds
        self._noted: set[str] = set()

    async def run(self) -> None:
        """Begins all sagas, and returns once everything was acknowledged."""
        begun_at = time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        self._client = await nats.connect(
            self._nats_url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,
            ping_interval=1,
            max_outstanding_pings=2,
            pending_size=0,
            error_cb=self._ignore,
        )
        try:
            async with (
                grpc.aio.insecure_channel(self._addresses["orders"], options=CHANNEL_OPTIONS) as orders,
                grpc.aio.insecure_channel(self._addresses["parcels"], options=CHANNEL_OPTIONS) as parcels,
            ):
                self._orders, self._parcels = OrderServiceStub(orders), ParcelServiceStub(parcels)
                with self._ledger_path.open("w", encoding="utf-8") as self._ledger:
                    number = 0
                    while number < self._sagas:
                        for _ in range(min(self._random.choice(_BURSTS), self._sagas - number)):
                            number += 1
                            tasks.add(asyncio.create_task(self._saga(number)))
                        due = begun_at + self._seconds * number / self._sagas
                        await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await self._client.close()

    _ledger: TextIO
    _orders: Any
    _parcels: Any
    _client: Any

    async def _ignore(self, _error: Exception) -> None:
        """Connections are cut on purpose; what that means for a publication its own future says."""

    async def _saga(self, number: int) -> None:
        # Drawn before the first await, so that a seed gives the same sagas whatever the timing.
        draw = self._random
        is_order = draw.random() < _SHARE_OF_ORDERS
        body = self._order(number) if is_order else self._parcel(number)
        other = body | ({"customerId": "mallory"} if is_order else {"weightGrams": 77})
        by_call = draw.random() < _SHARE_BY_CALL
        headers = self._headers(body, is_order=is_order) if draw.random() < _SHARE_WITH_HEADERS else {}
        again = draw.random() < _SHARE_SAME_AGAIN
        again_by_call = draw.random() < _SHARE_BY_CALL
        with_other_body = draw.random() < _SHARE_OTHER_BODY
        garbage = draw.choice(_GARBAGE_TYPES) if draw.random() < _SHARE_GARBAGE else ""
        pauses = [draw.choice((0.0, 0.2, 3.0)) for _ in range(2)]

        await (self._call(body) if by_call else self._publish(body, headers))
        if again:
            await asyncio.sleep(pauses[0])
            await (self._call(body) if again_by_call else self._publish(body, {}))
        if garbage:
            await self._publish_garbage(_key(body), garbage)
        if with_other_body:
            await asyncio.sleep(pauses[1])
            await (self._call(other) if again_by_call else self._publish(other, headers))

    def _order(self, number: int) -> Body:
        draw = self._random
        return {
            "orderId": f"ord-{number}",
            "customerId": draw.choice(("ada", "grace", "edsger")),
            "currency": "EUR",
            "card": "card-1",
            "address": "1 Main Street",
            "lines": [
                {"sku": sku, "quantity": draw.randint(1, 4), "unitPriceCents": str(draw.randint(1, 5000))}
                for sku in draw.sample(("widget", "gadget"), draw.randint(1, 2))
            ],
        } | dict(self._kind(ORDER_KINDS))

    def _parcel(self, number: int) -> Body:
        return {
            "parcelId": f"par-{number}",
            "item": "book",
            "weightGrams": self._random.randint(100, 5000),
            "address": "1 Main Street",
        } | dict(self._kind(PARCEL_KINDS))

    def _kind(self, kinds: tuple[Kind, ...]) -> Mapping[str, Any]:
        return self._random.choices(kinds, [kind.share for kind in kinds])[0].changes

    def _headers(self, body: Body, *, is_order: bool) -> dict[str, str]:
        identity = f"id-{body['orderId' if is_order else 'parcelId']}"
        headers = {"ce-id": identity, "ce-source": "shop"}
        return headers | {"Nats-Msg-Id": f"shop/{identity}"} if self._random.random() < 0.5 else headers

    # The ways in

    async def _publish(self, body: Body, headers: Mapping[str, str]) -> None:
        """Publishes until the stream has acknowledged; a try that seemed to fail may have been stored all the same."""
        answer = await self._store(f"events.{_key(body)}.{_type(body)}", json.dumps(body).encode(), headers)
        self._note(body, "publish", answer)

    async def _publish_garbage(self, key: str, event_type: str) -> None:
        answer = await self._store(f"events.{key}.{event_type}", GARBAGE, {})
        self._write({"key": key, "type": event_type, "how": "garbage", "body": {}, **answer})

    async def _store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Mapping[str, Any]:
        """What the stream answered, of a ledger's line."""

        async def attempt() -> Mapping[str, Any]:
            answer = await self._client.request(subject, data, timeout=_ANSWER_SECONDS, headers=dict(headers) or None)
            acknowledged: dict[str, Any] = json.loads(answer.data)
            if "error" in acknowledged:  # beside a sequence of 0
                raise nats.js.errors.Error(str(acknowledged.get("error")))
            return {"sequence": acknowledged["seq"], "duplicate": acknowledged.get("duplicate", False)}

        stored: Mapping[str, Any] = await self._until_done(attempt)
        return stored

    async def _call(self, body: Body) -> None:
        """Calls the service until it has accepted; a refusal for another body under the same id is an end, too."""

        async def attempt() -> Mapping[str, Any] | None:
            try:
                if "orderId" in body:
                    order = json_format.ParseDict(body, PlaceOrderRequest())
                    await self._orders.PlaceOrder(order, timeout=_ANSWER_SECONDS)
                else:
                    parcel = json_format.ParseDict(body, OrderParcelRequest())
                    await self._parcels.OrderParcel(parcel, timeout=_ANSWER_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                return None
            return {"sequence": None}

        accepted = await self._until_done(attempt)
        if accepted is not None:
            self._note(body, "call", accepted)

    async def _until_done(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await attempt()
            except grpc.aio.AioRpcError as error:
                self.progress.refused[error.code().name] += 1
            except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                self.progress.refused[type(error).__name__] += 1
            await asyncio.sleep(_RETRY_SECONDS)

    def _note(self, body: Body, how: str, answer: Mapping[str, Any]) -> None:
        key = _key(body)
        if key in self._noted:
            self.progress.repeated += 1
        else:
            self._noted.add(key)
            self.progress.begun += 1
        self._write({"key": key, "type": _type(body), "how": how, "body": body, **answer})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._ledger.write(json.dumps(line) + "\n")
        self._ledger.flush()


def _key(body: Body) -> str:
    key: str = body["orderId"] if "orderId" in body else body["parcelId"]
    return key


def _type(body: Body) -> str:
    return (ORDER_FULFILMENT if "orderId" in body else DRONE_DELIVERY).start
