"""`farandole healthy`, the health check of containers, against a real service in good and bad days."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from farandole.cli.health_commands import reachable
from farandole.errors import InvalidArgumentError
from farandole.testing.brokers import EmbeddedBroker, free_port, provision_streams
from tests.integration.service_processes import Services
from tests.integration.stack_under_test import eventually

SERVICE = "inventory"


@pytest.fixture
async def services(embedded_nats_server: EmbeddedBroker, tmp_path: Path) -> Services:
    await provision_streams(embedded_nats_server.url)
    return Services(tmp_path, embedded_nats_server.url)


@pytest.fixture
def service(services: Services) -> Iterator[Services]:
    """One running service."""
    services.start(SERVICE)
    try:
        yield services
    finally:
        services.stop()


def healthy(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")}
    return subprocess.run(
        [sys.executable, "-m", "farandole", "healthy", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=inherited | dict(environment or {}),
    )


async def test_a_service_that_serves_is_healthy(service: Services) -> None:
    done = healthy(service.address(SERVICE))
    assert (done.returncode, done.stdout) == (0, f"{service.address(SERVICE)} SERVING\n"), done.stderr


async def test_the_address_is_the_one_that_the_service_was_told_to_listen_on(service: Services) -> None:
    everywhere = f"0.0.0.0:{service.ports[SERVICE]}"
    done = healthy(environment={"FARANDOLE_GRPC_ADDRESS": everywhere})
    assert (done.returncode, done.stdout) == (0, f"{service.address(SERVICE)} SERVING\n"), done.stderr


async def test_a_service_without_its_broker_says_why_it_is_not_healthy(
    service: Services, embedded_nats_server: EmbeddedBroker
) -> None:
    embedded_nats_server.kill()

    def refusal() -> subprocess.CompletedProcess[str] | None:
        done = healthy(service.address(SERVICE))
        return done if done.returncode else None

    done = eventually(refusal, "not healthy without the broker")
    assert done.returncode == 1
    assert "NOT_SERVING: broker: " in done.stdout

    embedded_nats_server.start()
    eventually(lambda: healthy(service.address(SERVICE)).returncode == 0, "healthy again with the broker")


async def test_a_service_that_hangs_is_unhealthy_within_the_time_limit(service: Services) -> None:
    process = service.processes[SERVICE]
    process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        done = healthy(service.address(SERVICE), "--timeout", "1")
        assert done.returncode == 1
        assert "UNREACHABLE: gave no answer within 1 s" in done.stdout
        assert time.monotonic() - started < 20, "the limit, and the start of a program on a busy machine"
    finally:
        process.send_signal(signal.SIGCONT)


def test_where_nothing_listens_nothing_is_healthy() -> None:
    address = f"127.0.0.1:{free_port()}"
    done = healthy(address)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{address} UNREACHABLE: ")


def test_without_an_address_it_says_which_setting_is_missing() -> None:
    done = healthy()
    assert done.returncode == 2
    assert "FARANDOLE_GRPC_ADDRESS" in done.stderr


@pytest.mark.parametrize(
    ("listens", "ask"),
    [
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        ("[::]:50051", "[::1]:50051"),
        ("orders:50052", "orders:50052"),
        ("[::1]:1", "[::1]:1"),
        ("127.0.0.1:65535", "127.0.0.1:65535"),
    ],
)
def test_a_service_that_listens_everywhere_is_asked_on_this_machine(listens: str, ask: str) -> None:
    assert reachable(listens) == ask


@pytest.mark.parametrize("wrong", ["", "50051", "host", "host:", ":50051", "host:0", "host:65536", "http://host:1"])
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgumentError):
        reachable(wrong)
