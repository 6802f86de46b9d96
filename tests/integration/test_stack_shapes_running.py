"""A stack in its largest shape, with real servers: a NATS cluster, PostgreSQL, and services in several replicas."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farandole.stack.planning import make_plan
from farandole.testing.brokers import connect, free_port
from tests.integration.stack_under_test import StackUnderTest, eventually

SHAPE = ("--nats", "cluster", "--database", "postgres", "--replicas", "2")
EVERYTHING = ["postgres", "nats-1", "nats-2", "nats-3", "alpha", "alpha-2", "beta"]


@pytest.fixture(scope="module")
def stack() -> Iterator[StackUnderTest]:
    """`alpha` runs twice; the stack file says that `beta` runs once."""
    # not under pytest's own directory: where root runs the tests, PostgreSQL's user has to come through
    directory = Path(tempfile.mkdtemp(prefix="farandole-shapes-"))
    directory.chmod(0o711)
    made = StackUnderTest(directory)
    made.file.write_text(made.file.read_text().replace("grpc_port: 50062", "grpc_port: 50062\n    replicas: 1"))
    servers = [f"NATS{server}{port}" for server in ("", "_2", "_3") for port in ("", "_MONITORING", "_ROUTES")]
    for name in ("ALPHA_2", "POSTGRES", *servers):
        made.environment[f"FARANDOLE_PORT_{name}"] = str(free_port())
    made.environment |= {"FARANDOLE_TEST_SHOWS": "FARANDOLE_REPLICA FARANDOLE_LANES FARANDOLE_DATABASE_URL"}
    try:
        made.printed = made.up(*SHAPE)
        yield made
    finally:
        made.status()
        assert made.farandole("down").returncode == 0
    assert made.leftovers() == []
    shutil.rmtree(directory)


def serving(stack: StackUnderTest) -> list[str]:
    return [name for name, service in stack.status().items() if service.get("health") == "SERVING"]


async def info(stack: StackUnderTest, asset: str) -> dict[str, Any]:
    url = make_plan(stack.file, stack.environment).nats_url
    assert url is not None
    broker = await connect(url)
    try:
        return await broker.request(f"$JS.API.{asset}")
    finally:
        await broker.close()


def test_up_starts_every_server_and_every_replica_and_says_so(stack: StackUnderTest) -> None:
    assert serving(stack) == EVERYTHING
    lines = stack.printed.splitlines()
    assert f"started {', '.join(EVERYTHING)}; made the streams EVENTS, DEADLETTERS" in lines
    assert "it runs as 2 replicas of each service, PostgreSQL, a cluster of three nats-servers" in lines
    first = next(number for number, line in enumerate(lines) if line.startswith("alpha: run"))
    assert {"making the streams", "making the databases"} <= set(lines[:first])


def test_the_streams_are_kept_by_all_three_servers(stack: StackUnderTest) -> None:
    for stream in ("EVENTS", "DEADLETTERS"):
        group = asyncio.run(info(stack, f"STREAM.INFO.{stream}"))["cluster"]
        assert {group["leader"], *(other["name"] for other in group["replicas"])} == {"nats-1", "nats-2", "nats-3"}
    assert stack.farandole("provision", "--replicas", "3").returncode == 0


def test_nobody_joins_the_cluster_without_its_password(stack: StackUnderTest) -> None:
    async def greet() -> bytes:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(stack.environment["FARANDOLE_PORT_NATS_ROUTES"])
        )
        await reader.readline()
        writer.write(b'CONNECT {"verbose":false,"name":"stranger","cluster":"farandole"}\r\nPING\r\n')
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    assert b"Authorization Violation" in asyncio.run(greet())
    assert (stack.home / "run").stat().st_mode & 0o077 == 0, "the password is in the servers' configuration"


def test_replicas_share_one_database_and_have_names_and_lanes(stack: StackUnderTest) -> None:
    url = f"postgresql://alpha@127.0.0.1:{stack.environment['FARANDOLE_PORT_POSTGRES']}/alpha"
    for replica in ("alpha", "alpha-2"):
        log = (stack.home / "logs" / f"{replica}.log").read_text()
        assert f"FARANDOLE_REPLICA={replica} FARANDOLE_LANES=8 FARANDOLE_DATABASE_URL={url}\n" in log
    assert "FARANDOLE_REPLICA=beta FARANDOLE_LANES= " in (stack.home / "logs" / "beta.log").read_text()


@pytest.mark.parametrize("service", ["alpha-2", "nats-2", "postgres"])
def test_what_dies_is_started_again(stack: StackUnderTest, service: str) -> None:
    stack.restarted(service, stack.kill(service))
    eventually(lambda: serving(stack) == EVERYTHING, "everything serves")


def test_one_of_several_stops_and_starts_alone(stack: StackUnderTest) -> None:
    for service, beside in (("nats-2", ""), ("alpha-2", "; its work is done by alpha")):
        assert stack.farandole("stop", service).stdout == f"stopped {service}{beside}\n"
        assert serving(stack) == [name for name in EVERYTHING if name != service]
        assert stack.farandole("start", service).stdout == f"started {service}\n"
        assert service in stack.farandole("logs").stdout
    assert serving(stack) == EVERYTHING


def test_commands_ask_those_servers_of_a_cluster_that_are_there(stack: StackUnderTest) -> None:
    stack.farandole("stop", "nats-1")
    provisioned = stack.farandole("provision", "--replicas", "3")
    assert provisioned.returncode == 0, provisioned.stderr
    order = {"orderId": "ord-1", "customerId": "ada", "currency": "EUR", "card": "c", "address": "1 Main Street"}
    lines = [{"sku": "widget", "quantity": 1, "unitPriceCents": 5}]
    published = stack.farandole("pub", "orders.v1.OrderCreated", json.dumps({**order, "lines": lines}))
    assert "is stored at sequence 1\n" in published.stdout, published.stderr
    forgotten = stack.farandole("prune", "--forget", "payments", "--reason", "its disk is lost")
    assert "there is nothing to forget" in forgotten.stderr
    assert stack.farandole("start", "nats-1").returncode == 0
    assert serving(stack) == EVERYTHING


def test_up_goes_on_with_the_shape_that_the_data_have(stack: StackUnderTest) -> None:
    assert "everything is running already" in stack.up()
    stack.farandole("down")
    assert "it runs as 2 replicas of each service, PostgreSQL, a cluster of three" in stack.up()
    assert serving(stack) == EVERYTHING


def test_another_shape_is_refused_with_the_remedy_while_it_runs_and_after(stack: StackUnderTest) -> None:
    goes_on = "`farandole up --replicas 2 --database postgres --nats cluster` goes on with"
    refused = stack.farandole("up", "--nats", "single")
    assert (refused.returncode, "the stack runs as" in refused.stderr, goes_on in refused.stderr) == (1, True, True)
    stack.farandole("down")
    for options in (("--nats", "single"), ("--database", "sqlite")):
        refused = stack.farandole("up", *options)
        assert (refused.returncode, "the data in" in refused.stderr, goes_on in refused.stderr) == (1, True, True)
    assert "it runs as one process a service, PostgreSQL" in stack.up(environment={"FARANDOLE_STACK_REPLICAS": "1"})
    assert serving(stack) == [name for name in EVERYTHING if name != "alpha-2"]
