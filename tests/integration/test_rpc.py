"""The gRPC kit over a real server: what clients see, grpcurl among them."""
# ruff: noqa: N802 - servicers have gRPC's names

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import pytest
import structlog
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from choreography.v1 import saga_pb2, saga_service_pb2, saga_service_pb2_grpc
from farandole import errors
from farandole.rpc import HealthMonitor, Problem, Rpc, RpcServer, describe, read_problem, serve
from farandole.rpc.health import REASON_METADATA
from farandole.rpc.status import DOMAIN
from orders.v1 import order_pb2, order_service_pb2, order_service_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Orders(order_service_pb2_grpc.OrderServiceServicer):
    """Answers, or raises what a test put in."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.placed: list[order_service_pb2.PlaceOrderRequest] = []

    async def PlaceOrder(
        self, request: order_service_pb2.PlaceOrderRequest, context: Any
    ) -> order_service_pb2.PlaceOrderResponse:
        self.placed.append(request)
        if self.error is not None:
            raise self.error
        return order_service_pb2.PlaceOrderResponse(order_id=request.order_id)

    async def GetOrder(
        self, request: order_service_pb2.GetOrderRequest, context: Any
    ) -> order_service_pb2.GetOrderResponse:
        if self.error is not None:
            raise self.error
        if request.order_id == "aborted":
            await context.abort(grpc.StatusCode.DATA_LOSS, "on purpose")
        return order_service_pb2.GetOrderResponse(order=order_service_pb2.Order(order_id=request.order_id))


class Sagas(saga_service_pb2_grpc.SagaServiceServicer):
    """`WatchSaga` tells one change, then raises what a test put in, or waits to be cancelled."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.ended = asyncio.Event()

    async def WatchSaga(
        self, request: saga_service_pb2.WatchSagaRequest, context: Any
    ) -> AsyncIterator[saga_service_pb2.WatchSagaResponse]:
        try:
            yield saga_service_pb2.WatchSagaResponse(saga=saga_pb2.Saga(saga_id=request.saga_id))
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError

    GetSaga = ListSagas = DiagnoseSaga = SummarizeSagas = ListSagaDefinitions = GetSagaDefinition = _unused


@dataclass
class Kit:
    """A running server and a client of it."""

    monitor: HealthMonitor
    server: RpcServer
    channel: grpc.aio.Channel
    orders: Orders
    sagas: Sagas
    health: Any = field(init=False)
    order_stub: Any = field(init=False)
    saga_stub: Any = field(init=False)

    def __post_init__(self) -> None:
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.order_stub = order_service_pb2_grpc.OrderServiceStub(self.channel)
        self.saga_stub = saga_service_pb2_grpc.SagaServiceStub(self.channel)


def _rpcs(orders: Orders, sagas: Sagas) -> list[Rpc[Any]]:
    return [
        Rpc(
            order_service_pb2.DESCRIPTOR.services_by_name["OrderService"],
            order_service_pb2_grpc.add_OrderServiceServicer_to_server,
            orders,
        ),
        Rpc(
            saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"],
            saga_service_pb2_grpc.add_SagaServiceServicer_to_server,
            sagas,
        ),
    ]


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    monitor = HealthMonitor(["broker", "store"])
    orders, sagas = Orders(), Sagas()
    async with (
        serve("127.0.0.1:0", _rpcs(orders, sagas), monitor, grace_seconds=0.2) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Kit(monitor, server, channel, orders, sagas)


@pytest.fixture(scope="session")
def grpcurl() -> str:
    """The real grpcurl. Without one: a skip that says so, and in CI a failure."""
    found = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path(sys.prefix).parent / ".tools/bin")
    if found is None:
        missing = "grpcurl is not installed: put it on PATH or into .tools/bin"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


async def _run(*command: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def _failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def _details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    raw = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad_request)
    return info, bad_request


def _order(**changes: Any) -> order_service_pb2.PlaceOrderRequest:
    fields: dict[str, Any] = {
        "order_id": "ord-1",
        "customer_id": "c-1",
        "lines": [order_pb2.OrderLine(sku="widget", quantity=1, unit_price_cents=5)],
        "currency": "EUR",
        "card": "4111",
        "address": "a street",
    }
    return order_service_pb2.PlaceOrderRequest(**(fields | changes))


# health


async def test_a_process_serves_only_while_every_check_is_well(kit: Kit) -> None:
    async def status() -> Any:
        return (await kit.health.Check(health_pb2.HealthCheckRequest())).status

    assert await status() == NOT_SERVING, "no check has reported yet"
    kit.monitor.set("store", None)
    assert await status() == NOT_SERVING, "the broker has not reported yet"
    kit.monitor.set("broker", None)
    assert await status() == SERVING
    kit.monitor.set("broker", "no answer from nats://127.0.0.1:4222")
    assert await status() == NOT_SERVING
    kit.monitor.set("broker", None)
    assert await status() == SERVING


@pytest.mark.parametrize(
    "service", ["", "orders.v1.OrderService", "choreography.v1.SagaService", "grpc.health.v1.Health"]
)
async def test_every_served_name_has_the_same_health(kit: Kit, service: str) -> None:
    assert (await kit.health.Check(health_pb2.HealthCheckRequest(service=service))).status == NOT_SERVING
    kit.monitor.set("broker", None)
    kit.monitor.set("store", None)
    assert (await kit.health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
    listed = await kit.health.List(health_pb2.HealthListRequest())
    assert listed.statuses[service].status == SERVING


async def test_not_serving_says_why(kit: Kit) -> None:
    kit.monitor.set("store", "100 % full:\ngrüße")
    kit.monitor.set("broker", None)
    call = kit.health.Check(health_pb2.HealthCheckRequest())
    await call
    trailing = dict(await call.trailing_metadata())
    assert trailing[REASON_METADATA].isascii()
    assert unquote(trailing[REASON_METADATA]) == "store: 100 % full:\ngrüße"

    kit.monitor.set("store", None)
    call = kit.health.Check(health_pb2.HealthCheckRequest())
    await call
    assert REASON_METADATA not in dict(await call.trailing_metadata())


async def test_the_health_of_an_unknown_service_is_not_found(kit: Kit) -> None:
    error = await _failure(kit.health.Check(health_pb2.HealthCheckRequest(service="no.Such")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_watch_tells_each_change_at_once(kit: Kit) -> None:
    watch = kit.health.Watch(health_pb2.HealthCheckRequest(service="orders.v1.OrderService"))
    seen = [(await watch.read()).status]
    for problem in (None, "gone", None):
        kit.monitor.set("store", None)
        kit.monitor.set("broker", problem)
        seen.append((await asyncio.wait_for(watch.read(), 5)).status)
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]


async def test_watching_an_unknown_service_says_so_and_stays_open(kit: Kit) -> None:
    watch = kit.health.Watch(health_pb2.HealthCheckRequest(service="no.Such"))
    assert (await watch.read()).status == SERVICE_UNKNOWN
    kit.monitor.set("store", None)
    kit.monitor.set("broker", None)
    next_read = asyncio.ensure_future(watch.read())
    await kit.health.Check(health_pb2.HealthCheckRequest())
    assert not next_read.done(), "an unknown service's watch ended or changed"
    next_read.cancel()


async def test_a_stopping_server_says_not_serving_to_watchers_before_it_goes() -> None:
    monitor = HealthMonitor()
    async with serve("127.0.0.1:0", [], monitor, grace_seconds=60) as server:
        channel = grpc.aio.insecure_channel(server.address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        # with 60 s of grace this ends soon only because the watch itself ends
        stopping = asyncio.ensure_future(server.stop(60))
        assert (await asyncio.wait_for(watch.read(), 5)).status == NOT_SERVING
        error = await _failure(asyncio.wait_for(watch.read(), 5))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(stopping, 5)
        await channel.close()


# the server


async def test_a_call_that_runs_is_answered_during_an_orderly_stop() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    class Slow(Orders):
        async def GetOrder(self, request: Any, context: Any) -> Any:
            entered.set()
            await release.wait()
            return order_service_pb2.GetOrderResponse()

    async with (
        serve("127.0.0.1:0", _rpcs(Slow(), Sagas()), HealthMonitor()) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub: Any = order_service_pb2_grpc.OrderServiceStub(channel)
        call = asyncio.ensure_future(stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))
        await entered.wait()
        stopping = asyncio.ensure_future(server.stop(30))
        release.set()
        await asyncio.wait_for(call, 5)
        await asyncio.wait_for(stopping, 5)


async def test_a_taken_port_is_named_and_not_shared() -> None:
    async with serve("127.0.0.1:0", [], HealthMonitor()) as server:
        with pytest.raises(errors.ConfigurationError, match=server.address):
            async with serve(server.address, [], HealthMonitor()):
                pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.ConfigurationError, match=f"FARANDOLE_GRPC_ADDRESS: {address}"):
            async with serve(address, [], HealthMonitor()):
                pass


async def test_a_request_above_four_mebibytes_is_refused(kit: Kit) -> None:
    just_fits = _order(address="x" * (4 * 1024 * 1024 - 1024))
    assert (await _failure(kit.order_stub.PlaceOrder(just_fits))).code() == grpc.StatusCode.INVALID_ARGUMENT
    too_large = _order(address="x" * (4 * 1024 * 1024))
    assert (await _failure(kit.order_stub.PlaceOrder(too_large))).code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_is_unimplemented(kit: Kit) -> None:
    call: Any = kit.channel.unary_unary(
        "/orders.v1.OrderService/Nothing",
        request_serializer=empty_pb2.Empty.SerializeToString,
        response_deserializer=empty_pb2.Empty.FromString,
    )
    assert (await _failure(call(empty_pb2.Empty()))).code() == grpc.StatusCode.UNIMPLEMENTED


# errors

MAPPED: list[tuple[Exception, grpc.StatusCode, str, dict[str, str]]] = [
    (
        errors.NotFoundError("no saga has the key ord-9", reason="SAGA_NOT_FOUND", metadata={"saga_id": "ord-9"}),
        grpc.StatusCode.NOT_FOUND,
        "SAGA_NOT_FOUND",
        {"saga_id": "ord-9"},
    ),
    (
        errors.InvalidArgumentError("filter", "ends in the middle"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        {"field": "filter"},
    ),
    (
        errors.AmbiguousSagaError("two definitions", metadata={"definitions": "a,b"}),
        grpc.StatusCode.FAILED_PRECONDITION,
        "SAGA_AMBIGUOUS",
        {"definitions": "a,b"},
    ),
    (errors.AlreadyExistsError("ord-1 has another body"), grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", {}),
    (errors.InvalidEventError("has 300000 bytes"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_EVENT", {}),
    (errors.StoreUnavailableError("/secret/path"), grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", {}),
    (errors.FencedError("epoch 7"), grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", {}),
    (errors.BrokerUnavailableError("nats://10.0.0.1"), grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE", {}),
]


@pytest.mark.parametrize(("raised", "code", "reason", "metadata"), MAPPED, ids=lambda value: getattr(value, "name", ""))
async def test_each_error_of_the_tree_has_its_code_and_reason(
    kit: Kit, raised: Exception, code: grpc.StatusCode, reason: str, metadata: dict[str, str]
) -> None:
    kit.orders.error = kit.sagas.error = raised
    unary = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))

    watch = kit.saga_stub.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id="a"))
    assert (await watch.read()).saga.saga_id == "a"
    stream = await _failure(watch.read())

    for error in (unary, stream):
        info, _ = _details(error)
        assert (error.code(), info.domain, info.reason, dict(info.metadata)) == (code, DOMAIN, reason, metadata)


async def test_an_invalid_argument_names_its_field(kit: Kit) -> None:
    kit.orders.error = errors.InvalidArgumentError("page_token", "is not one that this service gave out")
    error = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))
    _, bad_request = _details(error)
    assert [(v.field, v.description) for v in bad_request.field_violations] == [
        ("page_token", "is not one that this service gave out")
    ]


@pytest.mark.parametrize(
    "raised",
    [ValueError("card 4111"), errors.StoreError("card 4111"), KeyError("card 4111")],
)
async def test_anything_else_is_internal_and_tells_only_a_reference_that_the_log_has_too(
    kit: Kit, raised: Exception
) -> None:
    kit.orders.error = raised
    with structlog.testing.capture_logs() as lines:
        error = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))
    info, _ = _details(error)
    assert (error.code(), info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "4111" not in repr(error)
    [line] = [line for line in lines if line["log_level"] == "error"]
    assert line["reference"] == info.metadata["reference"]
    assert line["exc_info"] is raised
    assert line["method"] == "/orders.v1.OrderService/GetOrder"
    assert info.metadata["reference"] in (error.details() or "")


@pytest.mark.parametrize("raised", [MAPPED[5][0], MAPPED[6][0]])
async def test_what_is_unavailable_does_not_tell_addresses_and_paths(kit: Kit, raised: Exception) -> None:
    kit.orders.error = raised
    error = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))
    assert str(raised) not in repr(error)


async def test_what_a_handler_aborts_on_purpose_passes_unchanged(kit: Kit) -> None:
    error = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="aborted")))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "on purpose")


async def test_a_cancelled_stream_ends_its_handler_and_logs_no_failure(kit: Kit) -> None:
    with structlog.testing.capture_logs() as lines:
        watch = kit.saga_stub.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id="a"))
        await watch.read()
        watch.cancel()
        await asyncio.wait_for(kit.sagas.ended.wait(), 5)
    assert lines == []


async def test_an_error_with_much_text_still_reaches_the_client(kit: Kit) -> None:
    kit.orders.error = errors.NotFoundError("ü" * 100_000, reason="SAGA_NOT_FOUND", metadata={"saga_id": "x" * 100_000})
    error = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    info, _ = _details(error)
    assert info.metadata["saga_id"].startswith("xxx")


# validation


async def test_every_violation_of_a_request_is_told_with_its_field(kit: Kit) -> None:
    request = _order(currency="euro", lines=[order_pb2.OrderLine(sku="", quantity=1), order_pb2.OrderLine(sku="a")])
    error = await _failure(kit.order_stub.PlaceOrder(request))
    info, bad_request = _details(error)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert (info.domain, info.reason, info.metadata["field"]) == (DOMAIN, "INVALID_ARGUMENT", "lines[0].sku")
    assert [violation.field for violation in bad_request.field_violations] == [
        "lines[0].sku",
        "lines[1].quantity",
        "currency",
    ]
    assert all(violation.description for violation in bad_request.field_violations)
    assert kit.orders.placed == [], "the handler saw a request that breaks a rule"


async def test_a_stream_is_refused_for_the_same_reasons(kit: Kit) -> None:
    watch = kit.saga_stub.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id="no key!"))
    error = await _failure(watch.read())
    _, bad_request = _details(error)
    assert (error.code(), bad_request.field_violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, "saga_id")


async def test_a_request_with_many_violations_is_answered_within_what_a_client_receives(kit: Kit) -> None:
    request = _order(lines=[order_pb2.OrderLine()] * 1000)
    _, bad_request = _details(await _failure(kit.order_stub.PlaceOrder(request)))
    assert len(bad_request.field_violations) > 10
    assert "more" in bad_request.field_violations[-1].description


async def test_a_large_hostile_request_is_refused_at_once(kit: Kit) -> None:
    request = _order(lines=[order_pb2.OrderLine()] * 500_000)
    clock = asyncio.get_running_loop().time
    began = clock()
    error = await _failure(kit.order_stub.PlaceOrder(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert clock() - began < 2.0, "collecting every violation takes tens of seconds"


# the reading side


async def test_a_problem_reads_as_text(kit: Kit) -> None:
    kit.orders.error = MAPPED[0][0]
    error = await _failure(kit.order_stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a")))
    assert describe(error) == "NOT_FOUND (SAGA_NOT_FOUND): no saga has the key ord-9\n  saga_id = ord-9"
    error = await _failure(kit.order_stub.PlaceOrder(_order(currency="euro", customer_id="")))
    assert describe(error) == (
        "INVALID_ARGUMENT: customer_id: must be at least 1 characters (and 1 more)\n"
        "  customer_id: must be at least 1 characters\n"
        "  currency: does not match regex pattern `^[A-Z]{3}$`"
    )


async def test_a_problem_without_details_reads_as_text_too() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = order_service_pb2_grpc.OrderServiceStub(channel)
        problem = read_problem(await _failure(stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a"))))
    assert problem.code == grpc.StatusCode.UNAVAILABLE
    assert address in str(problem)
    assert str(Problem(grpc.StatusCode.UNKNOWN, "")) == "UNKNOWN: the server gave no reason"


async def test_the_synchronous_client_reads_the_same(kit: Kit) -> None:
    kit.orders.error = MAPPED[0][0]

    def call() -> Problem:
        with grpc.insecure_channel(kit.server.address) as channel:
            stub = order_service_pb2_grpc.OrderServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetOrder(order_service_pb2.GetOrderRequest(order_id="a"))
            return read_problem(caught.value)

    problem = await asyncio.to_thread(call)
    assert (problem.reason, problem.metadata) == ("SAGA_NOT_FOUND", {"saga_id": "ord-9"})


# grpcurl

Grpcurl = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def curl(grpcurl: str, kit: Kit) -> Grpcurl:
    async def run(*arguments: str) -> tuple[int, str, str]:
        *options, what = arguments
        return await _run(grpcurl, "-plaintext", *options, kit.server.address, *what.split())

    return run


async def test_grpcurl_lists_and_describes_by_reflection(curl: Grpcurl) -> None:
    code, out, err = await curl("list")
    assert (code, err) == (0, "")
    assert set(out.split()) >= {"orders.v1.OrderService", "choreography.v1.SagaService", "grpc.health.v1.Health"}
    code, out, _ = await curl("describe orders.v1.PlaceOrderRequest")
    assert code == 0
    assert "customer_id" in out


async def test_grpcurl_calls_and_reads_error_details(kit: Kit, curl: Grpcurl) -> None:
    code, out, _ = await curl("-d", '{"order_id":"ord-1"}', "orders.v1.OrderService/GetOrder")
    assert code == 0
    assert json.loads(out) == {"order": {"order_id": "ord-1"}}

    kit.orders.error = MAPPED[0][0]
    code, out, err = await curl("-d", '{"order_id":"ord-9"}', "orders.v1.OrderService/GetOrder")
    assert code == 64 + grpc.StatusCode.NOT_FOUND.value[0]
    assert "Code: NotFound" in err
    assert "no saga has the key ord-9" in err
    for detail in ("google.rpc.ErrorInfo", "SAGA_NOT_FOUND", '"saga_id"'):
        assert detail in err

    kit.orders.error = None
    code, out, err = await curl("-d", '{"currency":"euro"}', "orders.v1.OrderService/PlaceOrder")
    assert code == 64 + grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for detail in ("google.rpc.BadRequest", '"currency"', '"customer_id"'):
        assert detail in err


async def test_grpcurl_reads_health_and_its_reason(kit: Kit, curl: Grpcurl) -> None:
    kit.monitor.set("store", None)
    kit.monitor.set("broker", "is down")
    code, out, _ = await curl("-v", "grpc.health.v1.Health/Check")
    assert code == 0
    assert '"NOT_SERVING"' in out
    assert f"{REASON_METADATA}: broker: is down" in out
    kit.monitor.set("broker", None)
    code, out, _ = await curl("-d", '{"service":"orders.v1.OrderService"}', "grpc.health.v1.Health/Check")
    assert '"SERVING"' in out
    code, _, err = await curl("-d", '{"service":"no.Such"}', "grpc.health.v1.Health/Check")
    assert code == 64 + grpc.StatusCode.NOT_FOUND.value[0], err
