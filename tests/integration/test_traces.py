"""Traces of real sagas through real services, as a collector receives them."""

from __future__ import annotations

import itertools
import json
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import nats
import pytest

from choreography.v1.dead_letter_service_pb2 import GetDeadLetterRequest, RedriveDeadLettersRequest
from choreography.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from farandole.partitions import partition_of
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker, free_port
from orders.v1.order_pb2 import OrderLine
from orders.v1.order_service_pb2 import GetOrderRequest, Order, OrderStatus, PlaceOrderRequest
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from tests.integration.otlp_receiver import PATH, OtlpReceiver, Received, otlp_receiver
from tests.integration.service_processes import CORRELATOR, ORDER_SERVICES, Services, answered, eventually
from tests.integration.stubborn_shipping import ILLEGIBLE, JAMMED

CARD, ADDRESS = "card-4242-secret", "221B Secret Street"
CREATED, COMPLETED, ENDED = "orders.v1.OrderCreated", "orders.v1.OrderCompleted", "choreography.v1.SagaCompleted"
HAPPY = (
    CREATED,
    "inventory.v1.ItemsReserved",
    "payments.v1.PaymentProcessed",
    "shipping.v1.OrderShipped",
    COMPLETED,
    ENDED,
)
READERS = {
    CREATED: {"orders", "inventory"},
    "inventory.v1.ItemsReserved": {"payments"},
    "payments.v1.PaymentProcessed": {"shipping"},
    "shipping.v1.OrderShipped": {"orders"},
    COMPLETED: set(),
    ENDED: set(),
}
"""By event: which participants make something of it. The correlator folds each."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[Services]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    services = Services(
        tmp_path_factory.mktemp("services"),
        broker.url,
        environment={
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        },
    )
    try:
        provision_broker(broker.url)
        services.start(*ORDER_SERVICES, CORRELATOR)
        yield services
    finally:
        try:
            services.stop()
        finally:
            broker.stop()


@pytest.fixture
async def connection(services: Services) -> AsyncIterator[Any]:
    connection = await nats.connect(services.nats_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def channel_to(services: Services, service: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a service."""
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(services.address(service), options=options) as channel:
        yield channel


async def place(services: Services, **more: Any) -> str:
    """Places an order; returns its id."""
    async with channel_to(services, "orders") as channel:
        order_id = f"trace-{uuid.uuid4().hex[:12]}"
        request = PlaceOrderRequest(
            order_id=order_id,
            customer_id="ada",
            currency="EUR",
            card=CARD,
            address=more.get("address", ADDRESS),
            lines=[OrderLine(sku="widget", quantity=2, unit_price_cents=1250)],
        )
        await OrderServiceStub(channel).PlaceOrder(request, metadata=more.get("metadata"))
        return order_id


async def redrive(services: Services, dead_letter_id: str) -> None:
    """Has a dead letter tried again, once the correlator knows it."""
    async with channel_to(services, CORRELATOR) as channel:
        service = DeadLetterServiceStub(channel)
        await eventually(
            lambda: answered(lambda: service.GetDeadLetter(GetDeadLetterRequest(dead_letter_id=dead_letter_id)))
        )
        request = RedriveDeadLettersRequest(dead_letter_id=dead_letter_id, actor="tests", reason="the label is known")
        async for _ in service.RedriveDeadLetters(request):
            pass


def of_saga(receiver: OtlpReceiver, saga_id: str) -> list[Received]:
    return [span for span in receiver.spans if span.attributes.get("messaging.message.conversation_id") == saga_id]


async def until(receiver: OtlpReceiver, saga_id: str, *, number: int) -> list[Received]:
    """The spans of a saga, once so many have come."""

    async def look() -> list[Received] | None:
        spans = of_saga(receiver, saga_id)
        return spans if len(spans) >= number else None

    return await eventually(look)


def of(spans: list[Received], name: str, service: str | None = None) -> Received:
    (found,) = [span for span in spans if span.name == name and service in (None, span.service)]
    return found


HAPPY_SPANS = len(HAPPY) + sum(len(readers) + 1 for readers in READERS.values())


async def test_a_saga_is_one_trace_from_its_command_to_its_end(services: Services, receiver: OtlpReceiver) -> None:
    order_id = await place(services)
    spans = await until(receiver, order_id, number=HAPPY_SPANS)
    sent = {event: of(spans, f"send events.*.{event}") for event in HAPPY}
    command = next(span for span in receiver.spans if span.span_id == sent[CREATED].parent_id)
    assert (command.service, command.kind, command.name) == ("orders", "SERVER", "orders.v1.OrderService/PlaceOrder")
    assert command.attributes["rpc.response.status_code"] == "OK"
    assert command.parent_id == ""
    assert {span.trace_id for span in spans} == {command.trace_id}
    for event in HAPPY:
        for reader in (*READERS[event], CORRELATOR):
            processed = of(spans, f"process events.*.{event}", reader)
            assert processed.kind == "CONSUMER"
            assert processed.parent_id == sent[event].span_id
            assert processed.links == ((command.trace_id, sent[event].span_id),)
    for cause, event in itertools.pairwise(HAPPY):
        assert sent[event].kind == "PRODUCER"
        assert sent[event].parent_id == of(spans, f"process events.*.{cause}", sent[event].service).span_id
    assert len(spans) == HAPPY_SPANS
    assert receiver.paths == {PATH}


async def test_spans_say_what_the_conventions_ask_for_and_what_became_of_the_event(
    services: Services, receiver: OtlpReceiver
) -> None:
    order_id = await place(services)
    spans = await until(receiver, order_id, number=HAPPY_SPANS)
    sent = of(spans, "send events.*.inventory.v1.ItemsReserved")
    size, message_id = sent.attributes.pop("messaging.message.body.size"), sent.attributes.pop("messaging.message.id")
    assert sent.attributes == {
        "messaging.system": "nats",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": f"events.{order_id}.inventory.v1.ItemsReserved",
        "messaging.destination.template": "events.*.inventory.v1.ItemsReserved",
        "messaging.message.conversation_id": order_id,
    }
    processed = of(spans, "process events.*.inventory.v1.ItemsReserved", "payments").attributes
    partition = partition_of(order_id)
    assert processed.pop("farandole.sequence") > 0
    assert processed == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": f"events.{partition}.inventory.v1.ItemsReserved",
        "messaging.destination.template": "events.*.inventory.v1.ItemsReserved",
        "messaging.destination.partition.id": str(partition),
        "messaging.consumer.group.name": "payments",
        "messaging.message.id": message_id,
        "messaging.message.conversation_id": order_id,
        "messaging.message.body.size": size,
        "farandole.disposition": "APPLIED",
        "farandole.definitions": ("order-fulfilment",),
        "farandole.steps": ("take-payment",),
        "farandole.directions": ("forward",),
    }


HOSTILE = (
    None,
    "",
    "garbage",
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" * 50,
)


@pytest.mark.parametrize("header", HOSTILE)
async def test_an_event_without_a_trace_begins_one_that_all_its_readers_find(
    services: Services, receiver: OtlpReceiver, connection: Any, header: str | None
) -> None:
    """Also where what its publisher wrote is no place in a trace."""
    order_id = f"bare-{uuid.uuid4().hex[:12]}"
    lines = [{"sku": "widget", "quantity": 1, "unitPriceCents": 1250}]
    person = {"customerId": "ada", "card": CARD, "address": ADDRESS}
    body = {"orderId": order_id, "currency": "EUR", "lines": lines, **person}
    headers = None if header is None else {"traceparent": header}
    await connection.jetstream().publish(f"events.{order_id}.{CREATED}", json.dumps(body).encode(), headers=headers)
    spans = await until(receiver, order_id, number=HAPPY_SPANS - 1)
    assert len({span.trace_id for span in spans}) == 1
    begun = {span.service for span in spans if not span.parent_id}
    assert begun == {"orders", "inventory", CORRELATOR}
    assert {span.name for span in spans if not span.parent_id} == {f"process events.*.{CREATED}"}


async def test_a_caller_says_whether_a_trace_is_recorded(services: Services, receiver: OtlpReceiver) -> None:
    unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    sampled = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    not_wanted = await place(services, metadata=[("traceparent", unsampled)])
    wanted = await place(services, metadata=[("traceparent", sampled)])
    spans = await until(receiver, wanted, number=HAPPY_SPANS)
    assert {span.trace_id for span in spans} == {"1af7651916cd43dd8448eb211c80319c"}
    command = next(span for span in receiver.spans if span.parent_id == "b7ad6b7169203331")
    assert command.name == "orders.v1.OrderService/PlaceOrder"
    assert of_saga(receiver, not_wanted) == []


async def test_what_fails_is_told_without_what_it_said(
    services: Services, receiver: OtlpReceiver, connection: Any
) -> None:
    """An event that is tried again, one that is given up on, and the saga that goes on once its cause is removed."""
    services.processes["shipping"].terminate()
    services.processes.pop("shipping").wait()
    services.modules["shipping"] = "tests.integration.stubborn_shipping"
    services.start("shipping")
    try:
        jammed, illegible = await place(services, address=JAMMED), await place(services, address=ILLEGIBLE)
        paid = "process events.*.payments.v1.PaymentProcessed"

        async def failed(order_id: str) -> Received:
            async def look() -> Received | None:
                found = [s for s in of_saga(receiver, order_id) if s.name == paid and s.service == "shipping"]
                return found[0] if found else None

            return await eventually(look)

        retrying, given_up = await failed(jammed), await failed(illegible)
        about = {"error.type": "RuntimeError", "farandole.queue.state": "RETRYING", "farandole.attempts": 1}
        assert retrying.is_error
        assert about.items() <= retrying.attributes.items()
        about = {"error.type": "Reject", "farandole.queue.state": "DEAD_LETTERED", "farandole.attempts": 1}
        assert given_up.is_error
        assert about.items() <= given_up.attributes.items()
        recorded = "send events.*.choreography.v1.DeadLetterRecorded"

        async def told() -> Received | None:
            return next((span for span in of_saga(receiver, illegible) if span.name == recorded), None)

        assert (await eventually(told)).parent_id == given_up.span_id
    finally:
        services.processes["shipping"].terminate()
        services.processes.pop("shipping").wait()
        del services.modules["shipping"]
        services.start("shipping")

    await redrive(services, f"shipping-{given_up.attributes['farandole.sequence']}")

    async def gone_on() -> Received | None:
        found = [s for s in of_saga(receiver, illegible) if s.name == paid and s.service == "shipping"]
        return found[-1] if not found[-1].is_error else None

    again = await eventually(gone_on)
    assert again.attributes["farandole.attempts"] == 2
    assert (again.trace_id, again.parent_id) == (given_up.trace_id, given_up.parent_id)

    redriven = "choreography.v1.DeadLetterRedriven"

    async def verb() -> list[Received] | None:
        """The operator's call, what it published, and who took that in: a trace of its own."""
        found = [s for s in of_saga(receiver, illegible) if s.name.endswith(f".{redriven}")]
        return found if {s.service for s in found} == {CORRELATOR, "shipping"} else None

    spans = await eventually(verb)
    sent = of(spans, f"send events.*.{redriven}", CORRELATOR)
    (call,) = [span for span in receiver.spans if span.span_id == sent.parent_id]
    assert (call.service, call.name) == (CORRELATOR, "choreography.v1.DeadLetterService/RedriveDeadLetters")
    assert of(spans, f"process events.*.{redriven}", "shipping").parent_id == sent.span_id
    assert {span.trace_id for span in spans} == {call.trace_id}


async def test_no_span_holds_what_an_event_says(services: Services, receiver: OtlpReceiver) -> None:
    order_id = await place(services)
    await until(receiver, order_id, number=HAPPY_SPANS)
    for secret in (CARD, ADDRESS, JAMMED, ILLEGIBLE, "printer is jammed", "read the label"):
        assert not [body for body in receiver.bodies if secret.encode() in body]


async def test_a_collector_that_hangs_or_is_away_holds_nothing_up(services: Services) -> None:
    """Neither events nor the stop."""
    hanging = socket.create_server(("127.0.0.1", 0))
    troubled = {"payments": hanging.getsockname()[1], "inventory": free_port()}
    for service in troubled:
        services.processes[service].terminate()
    for service in troubled:
        services.processes.pop(service).wait()
    services.own_environment = {
        service: {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        for service, port in troubled.items()
    }
    services.start(*troubled)
    order_id = await place(services)
    async with channel_to(services, "orders") as channel:
        orders = OrderServiceStub(channel)

        async def completed() -> Order | None:
            answer = await answered(lambda: orders.GetOrder(GetOrderRequest(order_id=order_id)))
            is_completed = answer is not None and answer.order.status == OrderStatus.ORDER_STATUS_COMPLETED
            return answer.order if is_completed and answer is not None else None

        await eventually(completed)

    async def told() -> bool | None:
        logs = [(services.directory / f"{service}.log").read_text() for service in troubled]
        return all("spans are not exported" in log for log in logs) or None

    await eventually(told)
    for service in troubled:
        services.processes[service].terminate()
    for service in troubled:
        assert services.processes.pop(service).wait(timeout=STOP_PATIENCE_SECONDS) == 0
        log = (services.directory / f"{service}.log").read_text()
        assert log.count("spans are not exported") == 1
        assert "trace_exporter" not in log
    hanging.close()


STOP_PATIENCE_SECONDS = 20.0
"""Without bounds the exporter's own patience would make a stop last half a minute."""
