"""A machine's clock that jumps while sagas run: deadlines are judged by the stream's time, and by nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from choreography.v1 import saga_pb2, saga_service_pb2, saga_service_pb2_grpc
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker
from orders.v1 import order_pb2, order_service_pb2, order_service_pb2_grpc
from tests.integration.service_processes import CORRELATOR, ROOT, Services

SAGA_SECONDS = 8
STEP_SECONDS = 3
OVERDUE = "choreography.v1.StepOverdue"
TIMED_OUT = "choreography.v1.SagaTimedOut"
NO_PROXY = [("grpc.enable_http_proxy", 0)]


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """By how much the services' clock is off."""
    file = tmp_path / "clock"
    file.write_text("+0")
    return file


@pytest.fixture
def services(
    embedded_nats_server: EmbeddedBroker, libfaketime: Path, clock: Path, tmp_path: Path
) -> Iterator[Services]:
    """All that an order needs but shipping, under that clock. The broker has the machine's own."""
    provision_broker(embedded_nats_server.url)
    sagas = tmp_path / "sagas"
    sagas.mkdir()
    definition = (ROOT / "services/correlator/sagas/order-fulfilment.yaml").read_text()
    seconds = {"1800": SAGA_SECONDS, "60": STEP_SECONDS, "300": 60}
    (sagas / "order-fulfilment.yaml").write_text(
        re.sub(r'"(\d+)s"', lambda duration: f'"{seconds[duration[1]]}s"', definition)
    )
    processes = Services(
        tmp_path,
        embedded_nats_server.url,
        environment={
            "FARANDOLE_SAGAS": str(sagas),
            "LD_PRELOAD": str(libfaketime),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    processes.start(CORRELATOR, "orders", "inventory", "payments")
    yield processes
    processes.stop()


@pytest.mark.parametrize("moved", ["+1h", "-1h"])
def test_nobody_is_timed_out_early_or_late(services: Services, clock: Path, moved: str) -> None:
    with (
        grpc.insecure_channel(services.address("orders"), options=NO_PROXY) as orders,
        grpc.insecure_channel(services.address(CORRELATOR), options=NO_PROXY) as correlator,
    ):
        line = order_pb2.OrderLine(sku="widget", quantity=2, unit_price_cents=1250)
        order_service_pb2_grpc.OrderServiceStub(orders).PlaceOrder(
            order_service_pb2.PlaceOrderRequest(
                order_id="in-time", customer_id="ada", lines=[line], currency="EUR", card="card-1", address="here"
            ),
            timeout=30,
        )
        saga = saga_pb2.Saga()
        for answer in saga_service_pb2_grpc.SagaServiceStub(correlator).WatchSaga(
            saga_service_pb2.WatchSagaRequest(saga_id="in-time"), timeout=60
        ):
            saga = answer.saga
            if any(step.name == "ship-order" and step.status == saga_pb2.STEP_STATUS_RUNNING for step in saga.steps):
                clock.write_text(moved)
    assert (saga.status, saga.cause) == (saga_pb2.SAGA_STATUS_COMPENSATED, saga_pb2.SAGA_CAUSE_DEADLINE)
    [overdue] = [entry for entry in saga.history if entry.event_type == OVERDUE]
    [timed_out] = [entry for entry in saga.history if entry.event_type == TIMED_OUT]
    ship = next(step for step in saga.steps if step.name == "ship-order")
    after_start = timed_out.stream_time.ToDatetime() - saga.start_time.ToDatetime()
    after_trigger = overdue.stream_time.ToDatetime() - ship.start_time.ToDatetime()
    assert SAGA_SECONDS <= after_start.total_seconds() < 2 * SAGA_SECONDS
    assert STEP_SECONDS <= after_trigger.total_seconds() < 2 * STEP_SECONDS
