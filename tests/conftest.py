"""What every kind of test shares: a real broker and a real PostgreSQL, chosen by `--broker` and `--database`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from farandole import logs
from farandole.broker.connection import Broker
from farandole.testing.brokers import (
    BrokerUnderTest,
    ContainerBroker,
    EmbeddedBroker,
    connect,
    docker_problem,
    provision_streams,
)
from farandole.testing.databases import ContainerPostgres, DatabaseUnderTest, EmbeddedPostgres, make_empty


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        choices=("embedded", "container"),
        default="embedded",
        help="the broker of messaging tests: the wheel's nats-server, or a container",
    )
    parser.addoption(
        "--database",
        choices=("embedded", "container"),
        default="embedded",
        help="the PostgreSQL of tests: an installed server as a child process, or a container",
    )


@pytest.fixture(autouse=True, scope="session")
def _logs() -> None:
    """Structured logs as in production, and not structlog's default, which shows local variables."""
    logs.configure("test", "warning")


@pytest.fixture(scope="session")
def libfaketime() -> Path:
    """The library by which a process sees another time than the machine's. In CI it must be there."""
    found = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if found is None:
        problem = "libfaketime is not installed; on Debian: apt-get install libfaketime"
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    return found


@pytest.fixture
def nats_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerUnderTest]:
    """A running broker of the test's own, without streams."""
    broker: BrokerUnderTest
    if request.config.getoption("--broker") == "container":
        need_docker()
        broker = ContainerBroker(tmp_path / "broker")
    else:
        broker = EmbeddedBroker(tmp_path / "broker")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def embedded_nats_server(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A running nats-server process, for tests that suspend it or take its data away."""
    broker = EmbeddedBroker(tmp_path / "embedded-broker")
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
async def provisioned(nats_server: BrokerUnderTest) -> BrokerUnderTest:
    """The broker with Farandole's streams."""
    await provision_streams(nats_server.url)
    return nats_server


@pytest.fixture
async def broker(provisioned: BrokerUnderTest) -> AsyncIterator[Broker]:
    """A connection to the provisioned broker."""
    connection = await connect(provisioned.url)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[DatabaseUnderTest]:
    """A running PostgreSQL server, which tests share."""
    with postgres_server(request) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def _postgres_database(postgres: DatabaseUnderTest) -> str:
    return postgres.new_database()


@pytest.fixture
def postgres_url(_postgres_database: str) -> str:
    """The URL of an empty PostgreSQL database."""
    make_empty(_postgres_database)
    return _postgres_database


@pytest.fixture(scope="module")
def new_postgres(request: pytest.FixtureRequest) -> Iterator[DatabaseUnderTest]:
    """A PostgreSQL server, not running yet, for a module whose tests treat it badly."""
    with postgres_server(request) as server:
        yield server


@contextmanager
def postgres_server(request: pytest.FixtureRequest) -> Iterator[DatabaseUnderTest]:
    """The kind of server that was asked for; it is ended after use."""
    server: DatabaseUnderTest
    if request.config.getoption("--database") == "container":
        need_docker()
        server = ContainerPostgres()
    else:
        server = EmbeddedPostgres()
    try:
        yield server
    finally:
        server.stop()


def need_docker() -> None:
    """Skips the test where no Docker engine answers, or fails it where one must."""
    if problem := docker_problem():
        if os.environ.get("FARANDOLE_REQUIRE_DOCKER"):
            pytest.fail(problem)
        pytest.skip(problem)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/made/for/it/store.db"
    return str(request.getfixturevalue("postgres_url"))
