"""Metrics of real services at work and in trouble, as Prometheus scrapes them."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nats
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from farandole.lanes import Lanes
from farandole.partitions import partition_of
from farandole.process import CHECKS
from farandole.stack.provisioning import provision_broker
from farandole.telemetry.catalogue import METRICS, PROCESS_METRICS, Kind
from farandole.testing.brokers import EmbeddedBroker, free_port
from orders.v1.order_pb2 import OrderLine
from orders.v1.order_service_pb2 import PlaceOrderRequest
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from tests.contract.compose_project import required_program
from tests.contract.metric_labels import strange
from tests.integration import stubborn_shipping
from tests.integration.service_processes import CORRELATOR, ORDER_SERVICES, Services, channels_to, eventually
from tests.integration.stubborn_shipping import DEPENDENCY, ILLEGIBLE, JAMMED, OFFLINE

ROOT = Path(__file__).resolve().parents[2]
ALL = (*ORDER_SERVICES, CORRELATOR)
CREATED = "orders.v1.OrderCreated"
HAPPY = 5
LANES = 2
"""Of each service: what it shows is that of all together, but for what is said of each consumer."""
CARD = "card-4242-secret"


@dataclass
class Scraped:
    """What processes showed at one time."""

    texts: Mapping[str, str]
    """By service."""

    def value(self, name: str, service: str, **labels: str) -> float | None:
        """One sample; None where it is not shown."""
        wanted = {"service": service, **labels}
        for family in text_string_to_metric_families(self.texts[service]):
            for sample in family.samples:
                if sample.name == name and wanted.items() <= sample.labels.items():
                    return sample.value
        return None

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Each sample, with its labels."""
        for text in self.texts.values():
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    yield sample.name, sample.labels, sample.value


class Scraper:
    """Asks services for their metrics."""

    def __init__(self, services: Services, broker: EmbeddedBroker, ports: Mapping[str, int]) -> None:
        self.services = services
        self.broker = broker
        self._ports = ports
        self.fresh = self.scrape()
        """What they showed before they were at work."""

    def scrape(self) -> Scraped:
        """What they show now."""
        return Scraped({service: self._text(port) for service, port in self._ports.items()})

    async def until(self, name: str, service: str, least: float, *, most: float = math.inf, **labels: str) -> None:
        """Waits until a sample is between the two."""

        async def look() -> float | None:
            value = (await asyncio.to_thread(self.scrape)).value(name, service, **labels)
            return value if value is not None and least <= value <= most else None

        await eventually(look)

    def _text(self, port: int) -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text


async def publish(url: str, *orders: tuple[str, str]) -> None:
    """Publishes orders, (id, address), as anybody would."""
    connection = await nats.connect(url)
    for order_id, address in orders:
        lines = [{"sku": "widget", "quantity": 1, "unitPriceCents": 1250}]
        person = {"customerId": "ada", "card": CARD, "address": address}
        body = {"orderId": order_id, "currency": "EUR", "lines": lines, **person}
        await connection.jetstream().publish(f"events.{order_id}.{CREATED}", json.dumps(body).encode())
    await connection.close()


def order_id() -> str:
    return f"metric-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def scraper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraper]:
    """Services that have been at work, and are in every kind of trouble."""
    ports = {service: free_port() for service in ALL}
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    services = Services(
        tmp_path_factory.mktemp("services"),
        broker.url,
        environment={"FARANDOLE_LANES": str(LANES)},
        own_environment={service: {"FARANDOLE_METRICS_ADDRESS": str(port)} for service, port in ports.items()},
        modules={"shipping": stubborn_shipping.__name__},
    )
    try:
        provision_broker(broker.url)
        services.start(*ALL)
        scraper = Scraper(services, broker, ports)
        asyncio.run(_work(broker.url, scraper))
        yield scraper
    finally:
        try:
            services.stop()
        finally:
            broker.stop()


async def _work(url: str, scraper: Scraper) -> None:
    happy = [order_id() for _ in range(HAPPY)]
    await publish(url, *((one, "1 Main Street") for one in happy), (happy[0], "1 Main Street"))
    ended = "farandole_saga_duration_seconds_count"
    await scraper.until(ended, CORRELATOR, HAPPY, definition="order-fulfilment", status="COMPLETED")
    await publish(url, (order_id(), ILLEGIBLE), (order_id(), JAMMED), (order_id(), OFFLINE))
    connection = await nats.connect(url)
    await connection.jetstream().publish("events.anything.nobody.v1.Knows", b"{}")
    await connection.close()
    await scraper.until("farandole_circuit_open", "shipping", 1, dependency=DEPENDENCY)
    await scraper.until("farandole_queued_events", "shipping", 1, state="RETRYING")
    await scraper.until("farandole_dead_letters_open", CORRELATOR, 1, participant="shipping", reason="REJECTED")
    await scraper.until("farandole_dead_letters_open", CORRELATOR, 1, participant=CORRELATOR, reason="UNKNOWN_TYPE")
    await scraper.until("farandole_open_sagas", CORRELATOR, 1, status="RUNNING", health="QUARANTINED")
    await scraper.until("farandole_open_sagas", CORRELATOR, 2, status="RUNNING", health="ON_TIME")
    await scraper.until("farandole_health", "shipping", 0, most=0, check="dependencies")
    for service in ALL:
        for check in CHECKS:
            if (service, check) != ("shipping", "dependencies"):
                await scraper.until("farandole_health", service, 1, check=check)


def test_what_is_shown_is_the_table_and_nothing_else(scraper: Scraper) -> None:
    """Both ways: names with their kinds, and, of what has any sample, the labels."""
    shown: dict[str, str] = {}
    labels: dict[str, set[str]] = {}
    for text in scraper.scrape().texts.values():
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            shown[name] = family.type
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    labels.setdefault(name, set()).update(set(sample.labels) - {"le"})
    of_process = {name for name in shown if name.startswith("process_")}
    assert of_process == set(PROCESS_METRICS)
    assert {name: kind for name, kind in shown.items() if name not in of_process} == {
        metric.name: metric.kind.value for metric in METRICS.values()
    }
    assert set(labels) - of_process == set(METRICS)
    for name in set(labels) - of_process:
        assert labels[name] == {"service", *METRICS[name].labels}, name


def test_labels_hold_the_values_that_are_known(scraper: Scraper) -> None:
    """By which the alert rules, their tests and the dashboard are checked."""
    for name, labels, _ in scraper.scrape().samples():
        metric = METRICS.get(name) or METRICS.get(name.removesuffix("_count"))
        if metric is not None:
            own = [label for label in metric.labels if strange(metric, label, labels[label])]
            assert not own, (name, labels)


def test_nothing_that_is_counted_begins_with_a_number(scraper: Scraper) -> None:
    """Of a series that does, Prometheus can't tell how much it grew, and no alert that rests on it fires."""

    def counted(scraped: Scraped) -> set[str]:
        return {_series(name, labels) for name, labels, _ in scraped.samples() if name.endswith(("_total", "_count"))}

    assert counted(scraper.scrape()) == counted(scraper.fresh)
    timed_out = {"type": "choreography.v1.SagaTimedOut", "disposition": "APPLIED"}
    assert scraper.fresh.value("farandole_events_handled_total", CORRELATOR, **timed_out) == 0
    for service in ALL:
        assert scraper.fresh.value("farandole_publish_failures_total", service, reason="refused") == 0
    for status in ("COMPLETED", "COMPENSATED", "FAILED"):
        ended = {"definition": "order-fulfilment", "status": status}
        assert scraper.fresh.value("farandole_saga_duration_seconds_count", CORRELATOR, **ended) == 0


def test_no_label_holds_an_id_or_a_text(scraper: Scraper) -> None:
    values = {value for _, labels, _ in scraper.scrape().samples() for value in labels.values()}
    assert not [value for value in values if "metric-" in value or " " in value or "nobody" in value or CARD in value]


def test_events_are_counted_by_what_became_of_them(scraper: Scraper) -> None:
    scraped = scraper.scrape()
    handled = "farandole_events_handled_total"
    for service in ("orders", "inventory"):
        assert scraped.value(handled, service, type=CREATED, disposition="APPLIED") == HAPPY + 3
        assert scraped.value(handled, service, type=CREATED, disposition="DUPLICATE") == 1
    assert scraped.value(handled, CORRELATOR, type="choreography.v1.SagaCompleted", disposition="APPLIED") == HAPPY
    assert scraped.value("farandole_sagas_started_total", CORRELATOR, definition="order-fulfilment") == HAPPY + 3
    assert (
        scraped.value("farandole_events_published_total", "payments", type="payments.v1.PaymentProcessed") == HAPPY + 3
    )
    put_off = "farandole_events_put_off_total"
    assert scraped.value(put_off, CORRELATOR, type="unknown", state="DEAD_LETTERED") == 1
    for state in ("DEAD_LETTERED", "RETRYING"):
        assert scraped.value(put_off, "shipping", type="payments.v1.PaymentProcessed", state=state) == 1
    shipping = {"definition": "order-fulfilment", "step": "ship-order", "direction": "forward"}
    ran = "farandole_handler_duration_seconds_count"
    assert scraped.value(ran, "shipping", outcome="returned", **shipping) == HAPPY
    assert (scraped.value(ran, "shipping", outcome="raised", **shipping) or 0) >= 3


def test_readings_say_how_things_stand(scraper: Scraper) -> None:
    scraped = scraper.scrape()
    for lane in range(LANES):
        assert scraped.value("farandole_consumer_lag_events", "orders", consumer=f"orders-{lane}") == 0
    assert scraped.value("farandole_position_age_seconds", "orders") == 0
    assert scraped.value("farandole_outbox_depth", "payments") == 0
    assert scraped.value("farandole_outbox_oldest_seconds", "payments") == 0
    assert scraped.value("farandole_circuit_waiting_sagas", "shipping", dependency=DEPENDENCY) == 1
    assert scraped.value("farandole_queued_events", "shipping", state="DEAD_LETTERED") == 1
    assert scraped.value("farandole_health", "shipping", check="dependencies") == 0
    assert scraped.value("farandole_health", "shipping", check="broker") == 1


def test_alerts_fire_on_what_services_in_trouble_really_show(scraper: Scraper, tmp_path: Path) -> None:
    """The series are what was scraped, going on as it stands for an hour."""
    scraped = scraper.scrape()
    series = [
        {"series": _series(name, labels), "values": f"{value}x120"}
        for name, labels, value in scraped.samples()
        if name in METRICS and METRICS[name].kind is not Kind.HISTOGRAM
    ]
    up = [{"series": f'up{{job="farandole", instance="{service}"}}', "values": "1x120"} for service in ALL]
    firing = {
        "FarandoleCircuitOpen": 1,
        "FarandoleDeadLettersOpen": 2,
        "FarandoleNotServing": 1,
        "FarandoleSagasQuarantined": 1,
    }
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": count} for alert, count in firing.items()]
    test = {
        "interval": "30s",
        "input_series": series + up,
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "30m",
                "exp_samples": expected,
            }
        ],
    }
    rules = ROOT / "deploy" / "telemetry" / "alerts.yaml"
    file = tmp_path / "recorded.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "30s", "tests": [test]}))
    promtool = required_program("promtool", "`make tools` builds it")
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _series(name: str, labels: Mapping[str, Any]) -> str:
    return f"{name}{{{', '.join(f'{label}={json.dumps(value)}' for label, value in labels.items())}}}"


# What makes more of everything comes last


async def test_a_participant_that_takes_nothing_in_shows_that_it_stands_still(scraper: Scraper) -> None:
    """Its database is locked by another process, so that it tries the same again and again."""
    lag, age = "farandole_consumer_lag_events", "farandole_position_age_seconds"
    path = scraper.services.database_url("orders").removeprefix("sqlite:///")
    one = order_id()
    lane = Lanes(LANES).of(partition_of(one))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await publish(scraper.services.nats_url, (one, "1 Main Street"))
        await scraper.until(lag, "orders", 1, consumer=f"orders-{lane}")
        await scraper.until(age, "orders", 6)
        other.execute("ROLLBACK")
    await scraper.until(lag, "orders", 0, most=0, consumer=f"orders-{lane}")
    await scraper.until(age, "orders", 0, most=0)


async def test_a_participant_whose_broker_answers_nothing_shows_what_it_has_yet_to_publish(scraper: Scraper) -> None:
    depth, oldest = "farandole_outbox_depth", "farandole_outbox_oldest_seconds"
    request = PlaceOrderRequest(
        order_id=order_id(),
        customer_id="ada",
        currency="EUR",
        card=CARD,
        address="1 Main Street",
        lines=[OrderLine(sku="widget", quantity=1, unit_price_cents=1250)],
    )
    scraper.broker.suspend()
    try:
        async with channels_to(scraper.services, ["orders"]) as channels:
            await OrderServiceStub(channels["orders"]).PlaceOrder(request, timeout=10)
        await scraper.until(depth, "orders", 1, most=1)
        await scraper.until(oldest, "orders", 1)
    finally:
        scraper.broker.resume()
    await scraper.until(depth, "orders", 0, most=0)
    await scraper.until(oldest, "orders", 0, most=0)
