"""Telemetry in one process: what is off, places in traces, and what an account makes of what it is told."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import generate_latest

from farandole.broker.connection import Broker
from farandole.envelope import Event, Publication, StoredMessage
from farandole.errors import BrokerError, BrokerUnavailableError, ConfigurationError, StoreUnavailableError
from farandole.outbox import OutboxRow
from farandole.participant.circuits import Circuit
from farandole.participant.readings import of_circuits
from farandole.registry import Registry
from farandole.saga import Disposition
from farandole.settings import Settings
from farandole.telemetry import NO_ACCOUNT, NO_TELEMETRY, catalogue, traceparent
from farandole.telemetry.foreseen import Foreseen
from farandole.telemetry.ledger import Ledger
from farandole.telemetry.metrics import Metrics
from farandole.telemetry.readings import Reading, Source, keep_reading
from farandole.telemetry.start import telemetry
from farandole.telemetry.traces import Traces
from farandole.worker_readings import of_lag, of_outbox
from orders.v1.order_events_pb2 import OrderCreated

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
CREATED = OrderCreated.DESCRIPTOR.full_name
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
PLACE = ("order-fulfilment", "place-order", "forward")
REGISTRY = Registry.of_classes([OrderCreated])
FORESEEN = Foreseen(
    event_types=[CREATED], states=["RETRYING", "WAITING"], parts=[PLACE], definitions=["order-fulfilment"]
)


def event(sequence: int = 1, *, trace_of: str = "") -> Event:
    message = StoredMessage(f"events.7.{CREATED}", {}, b"body", sequence, NOW)
    return Event(
        event_type=REGISTRY.types[CREATED],
        body=OrderCreated(order_id="ord-1"),
        key="ord-1",
        partition=7,
        sequence=sequence,
        stream_time=NOW,
        source="orders",
        id=f"event-{sequence}",
        time=NOW,
        causation_id="",
        traceparent=trace_of,
        digest=b"",
        message=message,
    )


def publication(header: str) -> Publication:
    headers = {"ce-id": "id", "ce-time": NOW.isoformat()} | ({"traceparent": header} if header else {})
    return Publication("ord-1", f"events.ord-1.{CREATED}", headers, b"body")


# What is off


def test_what_is_off_is_not_imported() -> None:
    """In a process that has a participant and a correlator, and has found out that nobody wants telemetry."""
    code = """
import asyncio, sys
import farandole.correlator.main, farandole.service, services.orders.service
from farandole.settings import Settings
from farandole.telemetry import NO_TELEMETRY
from farandole.telemetry.foreseen import Foreseen
from farandole.telemetry.start import telemetry

async def main():
    async with telemetry(Settings.load("orders", grpc_port=50052), Foreseen()) as found:
        assert found is NO_TELEMETRY
    print(*sorted(name for name in sys.modules if name.split(".")[0] in {"opentelemetry", "prometheus_client"}))

asyncio.run(main())
"""
    environment = {"PATH": "", "PYTHONPATH": f"{ROOT}/platform:{ROOT}/generated/python:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == ""


def test_what_is_off_carries_a_trace_on_as_it_came() -> None:
    assert NO_TELEMETRY.account() is NO_ACCOUNT
    assert NO_ACCOUNT.traceparent(event(trace_of=SAMPLED)) == SAMPLED
    assert NO_ACCOUNT.traceparent(event()) == ""
    assert NO_ACCOUNT.traceparent(None) == ""
    with NO_ACCOUNT.running(PLACE, [event()]):
        NO_ACCOUNT.noted(event(), Disposition.APPLIED)
    assert NO_TELEMETRY.beside() == ()
    assert NO_TELEMETRY.rpc_guard is None


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
async def test_the_standard_variables_turn_traces_off(off: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    for name, value in off.items():
        monkeypatch.setenv(name, value)
    async with telemetry(Settings.load("orders", grpc_port=50052), Foreseen()) as found:
        assert found is NO_TELEMETRY


async def test_what_can_not_be_turned_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = Settings.load("orders", grpc_port=50052, metrics_address=address)
        with pytest.raises(ConfigurationError, match=f"FARANDOLE_METRICS_ADDRESS: {address} can't be bound"):
            async with telemetry(settings, Foreseen()):
                pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf"):
        async with telemetry(Settings.load("orders", grpc_port=50052), Foreseen()):
            pass


def test_an_address_for_metrics_may_be_a_port_of_this_machine() -> None:
    def address(text: str) -> str | None:
        return Settings.load("orders", grpc_port=50052, metrics_address=text).metrics_address

    assert address("9464") == "127.0.0.1:9464"
    assert address("0.0.0.0:9464") == "0.0.0.0:9464"
    with pytest.raises(ConfigurationError, match="METRICS_ADDRESS"):
        address("70000")


# Places in traces


def test_a_place_is_read_as_it_is_written() -> None:
    place = traceparent.read(SAMPLED)
    assert place is not None
    assert place.header == SAMPLED
    assert traceparent.read(SAMPLED[:-2] + "03") == place, "other flags say nothing about it"
    assert traceparent.read(NOT_SAMPLED) == place._replace(is_sampled=False)
    assert traceparent.read("cc" + SAMPLED[2:]) == place, "of a later version"


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True))
def test_whatever_else_a_header_holds_is_no_place_or_a_valid_one(header: str) -> None:
    place = traceparent.read(header)
    if place is not None:
        assert 0 < place.trace_id < 2**128
        assert 0 < place.span_id < 2**64
        assert traceparent.read(place.header) == place


def test_a_place_that_is_derived_is_the_same_for_all_and_another_for_each_event() -> None:
    assert traceparent.derived("orders/1") == traceparent.derived("orders/1")
    assert traceparent.derived("orders/1").trace_id != traceparent.derived("orders/2").trace_id


# What an account makes of what it is told


class Exported(SpanExporter):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


@pytest.fixture
def exported() -> Exported:
    return Exported()


@pytest.fixture
def traces(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Traces of `orders`, with the sampler that there is where nothing else is said."""
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda _provider: None)  # a process has one for good
    return Traces("orders", "orders-1", exported)


def test_what_is_rolled_back_is_told_nowhere(traces: Traces, exported: Exported) -> None:
    metrics = Metrics("orders", FORESEEN)
    rolled_back = Ledger(traces, metrics)
    rolled_back.begin(event(trace_of=SAMPLED))
    header = rolled_back.traceparent(event(trace_of=SAMPLED))
    rolled_back.noted(event(trace_of=SAMPLED), Disposition.APPLIED)
    traces.published(publication(header))
    traces.stop()
    assert exported.spans == []
    assert set(counted(metrics).values()) == {0}


def test_what_a_failed_handler_had_published_is_not_told(traces: Traces, exported: Exported) -> None:
    ledger = Ledger(traces, None)
    failing = event(trace_of=SAMPLED)
    ledger.begin(failing)
    with ledger.running(PLACE, [failing]):
        header = ledger.traceparent(failing)
    ledger.put_off(failing, "RETRYING", attempts=1, error=RuntimeError("secret"))
    told = ledger.traceparent(failing)
    ledger.settled()
    traces.published(publication(header))
    traces.published(publication(told))
    traces.stop()
    processed, sent = sorted(exported.spans, key=lambda span: span.name)
    assert (processed.name, sent.name) == (f"process events.*.{CREATED}", f"send events.*.{CREATED}")
    assert sent.context is not None
    assert f"{sent.context.span_id:016x}" in told
    assert not processed.status.is_ok
    assert "secret" not in processed.to_json()


def test_without_traces_a_trace_goes_on_as_it_came() -> None:
    ledger = Ledger(None, Metrics("orders", Foreseen()))
    assert ledger.traceparent(event(trace_of=SAMPLED)) == SAMPLED
    assert ledger.traceparent(None) == ""


def test_what_is_not_sampled_goes_on_as_it_came(traces: Traces, exported: Exported) -> None:
    ledger = Ledger(traces, None)
    for came in (NOT_SAMPLED, NOT_SAMPLED[:-2] + "02"):
        ledger.begin(event(trace_of=came))
        assert ledger.traceparent(event(trace_of=came)) == came
        ledger = Ledger(traces, None)
    traces.stop()
    assert exported.spans == []


def test_one_trace_in_a_hundred_is_recorded_and_all_of_it(traces: Traces, exported: Exported) -> None:
    recorded = 0
    for number in range(1, 3001):
        first, second = Ledger(traces, None), Ledger(traces, None)
        first.begin(event(number))
        header = first.traceparent(event(number))
        second.begin(event(number, trace_of=header))
        followed = second.traceparent(event(number, trace_of=header))
        assert header[-2:] == followed[-2:]
        assert header[3:35] == followed[3:35] == f"{traceparent.derived(f'orders/event-{number}').trace_id:032x}"
        recorded += header.endswith(("-01", "-03"))
    assert 10 < recorded < 60


def test_a_step_that_needs_several_events_has_links_to_all(traces: Traces, exported: Exported) -> None:
    other = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"
    last, earlier = event(2, trace_of=SAMPLED), event(1, trace_of=other)
    ledger = Ledger(traces, None)
    ledger.begin(last)
    with ledger.running(PLACE, [earlier, last]):
        assert trace.get_current_span().get_span_context().trace_id == int(SAMPLED[3:35], 16)
    ledger.noted(last, Disposition.APPLIED)
    ledger.settled()
    traces.stop()
    (span,) = exported.spans
    assert {f"{link.context.span_id:016x}" for link in span.links} == {SAMPLED[36:52], other[36:52]}


def counted(metrics: Metrics) -> dict[str, float]:
    """What is counted, by series."""
    lines = (line.rpartition(" ") for line in generate_latest(metrics.registry).decode().splitlines())
    return {series: float(value) for series, _, value in lines if re.match(r"farandole_\w+_(total|count)\{", series)}


def test_what_is_foreseen_is_shown_at_0_until_it_happens() -> None:
    """A series that began with a number would not have grown, for all that Prometheus can tell."""
    place = 'definition="order-fulfilment",direction="forward",outcome="{}",service="orders",step="place-order"'
    of_type = f'service="orders",type="{CREATED}"'
    assert counted(Metrics("orders", FORESEEN)) == dict.fromkeys(
        [
            *(
                f'farandole_events_handled_total{{disposition="{disposition.name}",{of_type}}}'
                for disposition in Disposition
            ),
            *(
                f'farandole_events_put_off_total{{service="orders",state="{state}",type="{event_type}"}}'
                for state in ("RETRYING", "WAITING")
                for event_type in (CREATED, "unknown")
            ),
            f"farandole_events_published_total{{{of_type}}}",
            'farandole_events_published_total{service="orders",type="unknown"}',
            *(
                f'farandole_publish_failures_total{{reason="{reason}",service="orders"}}'
                for reason in ("conflict", "refused", "unavailable")
            ),
            'farandole_sagas_started_total{definition="order-fulfilment",service="orders"}',
            *(
                f'farandole_saga_duration_seconds_count{{definition="order-fulfilment",service="orders",status="{status}"}}'
                for status in ("COMPLETED", "COMPENSATED", "FAILED")
            ),
            *(
                f"farandole_handler_duration_seconds_count{{{place.format(outcome)}}}"
                for outcome in ("returned", "raised")
            ),
            'farandole_batch_events_count{service="orders"}',
            'farandole_transaction_duration_seconds_count{service="orders"}',
            'farandole_publish_duration_seconds_count{service="orders"}',
        ],
        0.0,
    )


def test_labels_hold_the_types_that_are_known() -> None:
    metrics = Metrics("orders", Foreseen())
    ledger = Ledger(None, metrics)
    ledger.noted(event(), Disposition.DUPLICATE)
    ledger.settled()
    metrics.published(publication(""), 0.1)
    shown = generate_latest(metrics.registry).decode()
    assert CREATED not in shown
    assert 'farandole_events_handled_total{disposition="DUPLICATE",service="orders",type="unknown"} 1.0' in shown


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokerError("wrong last sequence", code=10071), "conflict"),
        (BrokerError("maximum bytes exceeded", code=10077), "refused"),
        (BrokerUnavailableError("no answer"), "unavailable"),
    ],
)
def test_publications_fail_by_their_reasons(error: BrokerError, reason: str) -> None:
    metrics = Metrics("orders", Foreseen())
    metrics.not_published(error)
    line = f'farandole_publish_failures_total{{reason="{reason}",service="orders"}} 1.0'
    assert line in generate_latest(metrics.registry).decode()


# Readings


class Display:
    """Waits until these readings have been taken three times."""

    def __init__(self, *values: float) -> None:
        self._values = values
        self._times = 0
        self.came = asyncio.Event()

    def read(self, readings: Sequence[Reading]) -> None:
        self._times += sorted(reading.value for reading in readings) == list(self._values)
        if self._times == 3:
            self.came.set()


async def test_what_can_not_be_read_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farandole.telemetry.readings.READ_SECONDS", 0.0)

    def source(number: int) -> Source:
        async def read() -> Sequence[Reading]:
            return [Reading(catalogue.OUTBOX_DEPTH, (), number)]

        return read

    async def away() -> Sequence[Reading]:
        raise StoreUnavailableError("the database is locked")

    async def hanging() -> Sequence[Reading]:
        await asyncio.Event().wait()
        return ()

    display = Display(1, 2)
    reading = asyncio.create_task(keep_reading([source(1), away, hanging, source(2)], display))
    came = asyncio.create_task(display.came.wait())
    await asyncio.wait({came, reading}, return_when=asyncio.FIRST_COMPLETED)
    assert not reading.done()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


class Consumers(Broker):
    """What a broker says of durable consumers."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[int, int, int]] = {}
        """Of each: how many wait, and the last that was delivered and acknowledged."""

    async def request(self, subject: str, _payload: dict[str, Any] | None = None) -> dict[str, Any]:
        waiting, delivered, acknowledged = self.told[subject.rpartition(".")[2]]
        return {
            "num_pending": waiting,
            "num_ack_pending": 0,
            "delivered": {"stream_seq": delivered},
            "ack_floor": {"stream_seq": acknowledged},
        }


async def test_one_lane_that_stands_still_among_others_that_move_is_seen() -> None:
    """It is delivered the same events again and again, as where its database refuses them."""
    consumers = Consumers()
    now = 1000.0
    read = of_lag(consumers, ["orders-0", "orders-1", "orders-2"], monotonic=lambda: now)
    for minute in range(6):
        consumers.told = {
            "orders-0": (0, 40, 40),
            "orders-1": (7, 41 - minute % 2, 40),
            "orders-2": (7, 50 + minute, 50),
        }
        now = 1000.0 + 60 * minute
        shown = {(one.metric, *one.labels): one.value for one in await read()}
        assert shown[catalogue.CONSUMER_LAG, "orders-1"] == 7
        assert shown[catalogue.CONSUMER_LAG, "orders-0"] == 0
        assert shown[catalogue.POSITION_AGE,] == 60 * minute
    consumers.told["orders-1"] = (6, 41, 41)
    assert (await read())[-1] == Reading(catalogue.POSITION_AGE, (), 0)


async def test_the_outbox_is_as_old_as_the_first_event_that_waits() -> None:
    event_row = OutboxRow(2, publication(""))
    copy = OutboxRow(1, replace(event_row.publication, subject=f"deadletters.orders.{CREATED}"))

    async def read(*rows: OutboxRow) -> list[float]:
        return [reading.value for reading in await of_outbox(lambda: rows, lambda: NOW + timedelta(seconds=7))()]

    assert await read() == [0, 0]
    assert await read(copy, event_row) == [2, 7], "a copy has the times of its original"
    assert await read(copy) == [1, 0]


async def test_a_circuit_that_closes_is_shown_as_closed_and_names_are_bounded() -> None:
    def circuit(name: str) -> Circuit:
        return Circuit(name, NOW, "", timedelta(seconds=1), NOW, frozenset())

    down = {circuit(f"bank-{number}"): 2 for number in range(60)}
    source = of_circuits(lambda: down)
    shown = {(one.metric.name, one.labels): one.value for one in await source()}
    assert len({labels for _, labels in shown}) == 51
    assert shown["farandole_circuit_waiting_sagas", ("other",)] == 20
    down.clear()
    shown = {(one.metric.name, one.labels): one.value for one in await source()}
    assert shown["farandole_circuit_open", ("bank-1",)] == 0
