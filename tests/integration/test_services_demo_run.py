"""The demo against the sample services and a correlator, as `make demo` runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine, text

from farandole.stack.ports import port_variable
from tests.integration.service_processes import CORRELATOR, PATIENCE_SECONDS, ROOT, SAMPLES, Services, running


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running(tmp_path_factory, *SAMPLES, CORRELATOR) as services:
        yield services


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


def rows(output: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in output.splitlines()]


def test_every_saga_of_every_kind_ends_as_it_must_and_the_books_balance(services: Services) -> None:
    timeout = str(3 * PATIENCE_SECONDS)
    code, output = ended(
        start_demo(services, "--orders", "30", "--parcels", "45", "--failing", "40", "--timeout", timeout)
    )
    assert code == 0, output
    assert "placing 30 orders and 45 parcels, 10 of them as an event published to NATS with no headers" in output
    shown = rows(output)
    for outcome in (
        "ok order-fulfilment fine 18 COMPLETED 18 COMPLETED",
        "ok order-fulfilment unicorn 4 COMPENSATED 4 COMPENSATED",
        "ok order-fulfilment card-declined 4 COMPENSATED 4 COMPENSATED",
        "ok order-fulfilment nowhere 4 COMPENSATED 4 COMPENSATED",
        "ok drone-delivery fine 27 COMPLETED 27 COMPLETED",
        "ok drone-delivery unicorn 6 COMPENSATED 6 COMPENSATED",
        "ok drone-delivery 9000 g 6 COMPENSATED 6 COMPENSATED",
        "ok drone-delivery nowhere 6 COMPENSATED 6 COMPENSATED",
    ):
        assert outcome.split() in shown
    assert ["ok", "drones", "available", "1000000", "999973", "999973"] in shown
    assert ["ok", "books", "taken", "0", "27", "27"] in shown
    assert ["ok", "payments", "given", "back", "4", "4"] in shown
    assert ["ok", "packages", "handed", "over", "27", "27"] in shown
    assert "PASSED: 75 sagas have ended as they must, and everything adds up" in output.splitlines()


def test_a_saga_that_does_not_end_as_it_must_and_books_that_do_not_balance_fail_the_run(services: Services) -> None:
    """The last widgets are gone, so that fine orders fail, and nothing is taken from the stock."""
    services.kill("inventory")
    stock = create_engine(services.database_url("inventory"))
    with stock.begin() as connection:
        connection.execute(text("UPDATE stock SET available = 0 WHERE sku = 'widget'"))
    try:
        services.start("inventory")
        code, output = ended(start_demo(services, "--orders", "3", "--parcels", "0", "--failing", "0"))
    finally:
        services.kill("inventory")
        with stock.begin() as connection:
            connection.execute(text("UPDATE stock SET available = 1000000 WHERE sku = 'widget'"))
        stock.dispose()
        services.start("inventory")
    assert code == 1, output
    shown = rows(output)
    assert ["WRONG", "order-fulfilment", "fine", "3", "COMPLETED", "3", "COMPENSATED"] in shown
    assert ["WRONG", "widgets", "available", "0", "-3", "0"] in shown
    assert ["WRONG", "payments", "that", "stand", "3", "0"] in shown
    assert "FAILED" in output
    assert "PASSED" not in output


def test_a_run_that_is_stuck_is_given_up_in_time_and_says_who_holds_it_up(services: Services) -> None:
    demo = start_demo(services, "--orders", "200", "--parcels", "0", "--failing", "0", "--timeout", "5")
    assert demo.stdout is not None
    assert any("placing" in line for line in demo.stdout), "it has begun"
    services.kill("payments")
    try:
        code, output = ended(demo)
    finally:
        services.start("payments")
    assert code == 1, output
    assert re.search(r"^WRONG +order-fulfilment +fine +200 +COMPLETED +.*\d+ RUNNING", output, re.MULTILINE)
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
