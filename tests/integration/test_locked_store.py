"""A store whose lock another process holds at start: the service waits, says so, and goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from farandole.rpc.health import REASON_METADATA
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker
from tests.integration.service_processes import CORRELATOR, Services

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def services(embedded_nats_server: EmbeddedBroker, tmp_path: Path) -> Iterator[Services]:
    provision_broker(embedded_nats_server.url)
    processes = Services(tmp_path, embedded_nats_server.url)
    yield processes
    processes.stop()


@pytest.mark.parametrize("service", ["shipping", CORRELATOR])
def test_a_service_waits_for_its_store(services: Services, service: str) -> None:
    """As where a process that was suspended in a transaction is to be replaced."""
    path = services.database_url(service).removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("BEGIN IMMEDIATE")
        services.begin(service)
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(services.address(service), options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reason = ""
            while "locked" not in reason:
                answer, call = stub.Check.with_call(health_pb2.HealthCheckRequest(), timeout=30, wait_for_ready=True)
                assert answer.status == NOT_SERVING
                reason = dict(call.trailing_metadata())[REASON_METADATA]
        assert services.processes[service].poll() is None
        other.execute("ROLLBACK")
    services.wait_until_serving(service)


def test_a_database_of_an_earlier_version_is_refused_with_what_it_lacks(services: Services) -> None:
    """The service ends with a line that says it: waiting would help nobody."""
    services.start("shipping")
    services.kill("shipping")
    path = services.database_url("shipping").removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as earlier:
        earlier.execute("ALTER TABLE farandole_queue DROP COLUMN direction")
        earlier.execute("DROP TABLE farandole_participant_version")
    services.begin("shipping")
    assert services.processes.pop("shipping").wait(30) == 1
    said = (services.directory / "shipping.log").read_text()
    assert f"the database {path} was made by an earlier version, without migrations: it lacks " in said
    assert "farandole_queue.direction" in said
    assert "Traceback" not in said
