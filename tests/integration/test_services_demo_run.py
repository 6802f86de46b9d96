"""The demo against the sample services and a correlator, as `make demo` runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from farandole.stack.ports import port_variable
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker
from tests.integration.service_processes import CORRELATOR, PATIENCE_SECONDS, ROOT, SAMPLES, Services


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    running = Services(tmp_path_factory.mktemp("services"), broker.url)
    try:
        provision_broker(broker.url)
        running.start(*SAMPLES, CORRELATOR)
        yield running
    finally:
        running.stop()
        broker.stop()


def start_demo(services: Services, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {port_variable(service): str(port) for service, port in services.ports.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "services.demo", *arguments],
        cwd=ROOT,
        env=environment | {"FARANDOLE_NATS_URL": services.nats_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(demo: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what it wrote."""
    output, _ = demo.communicate(timeout=3 * PATIENCE_SECONDS)
    return demo.returncode, output


def test_every_order_ends_and_the_books_balance(services: Services) -> None:
    code, output = ended(start_demo(services, "--orders", "60", "--timeout", str(PATIENCE_SECONDS)))
    assert code == 0, output
    lines = output.splitlines()
    assert "placing 60 orders, 6 of them as an event published to NATS with no headers" in lines
    assert any(line.endswith("60/60 ended: 60 COMPLETED") for line in lines)
    assert "ok    widgets taken from stock: 60" in lines
    assert "ok    payments that stand: 60" in lines
    assert "ok    parcels on their way: 60" in lines
    assert "PASSED: 60 sagas have ended, and everything adds up" in lines


def test_a_run_that_is_stuck_is_given_up_in_time_and_says_who_holds_it_up(services: Services) -> None:
    demo = start_demo(services, "--orders", "200", "--timeout", "5")
    assert demo.stdout is not None
    assert any("placing" in line for line in demo.stdout), "it has begun"
    services.kill("payments")
    try:
        code, output = ended(demo)
    finally:
        services.start("payments")
    assert code == 1, output
    assert re.search(r"^\d+ sagas wait for payments \(take-payment\): demo-", output, re.MULTILINE)
    assert re.search(r"^payments does not answer at 127.0.0.1:\d+", output, re.MULTILINE)
    assert "make status" in output


def test_without_the_whole_stack_it_says_what_is_missing_and_places_nothing(services: Services) -> None:
    services.kill("payments")
    try:
        code, output = ended(start_demo(services))
    finally:
        services.start("payments")
    assert code == 2, output
    assert re.search(r"^payments does not answer at 127.0.0.1:\d+", output, re.MULTILINE)
    assert "make up" in output
    assert "placing" not in output
