"""A package of plug-ins, installed and found by a real correlator; and plug-ins that go wrong in every way.

`tests/packages/tryout` is the package.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from choreography.v1 import (
    plugin_service_pb2,
    plugin_service_pb2_grpc,
    saga_pb2,
    saga_service_pb2,
    saga_service_pb2_grpc,
)
from farandole.stack.provisioning import provision_broker
from farandole.testing.brokers import EmbeddedBroker, connect, free_port
from tests.integration.correlators import HAPPY, ROOT, tell
from tests.integration.packages import PACKAGES, install
from tests.integration.service_processes import Services
from tests.integration.webhook_receivers import Answer, gigabytes, hang, receiving, status

PATIENCE_SECONDS = 30.0
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def tryout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(PACKAGES / "tryout", tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    provision_broker(broker.url)
    try:
        yield broker.url
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def sagas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The definition of orders, with deadlines of tenths of seconds."""
    directory = tmp_path_factory.mktemp("sagas")
    lines = (ROOT / "services/correlator/sagas/order-fulfilment.yaml").read_text().splitlines()
    short = [f'{line.partition("deadline:")[0]}deadline: "0.4s"' if "deadline:" in line else line for line in lines]
    (directory / "order-fulfilment.yaml").write_text("\n".join(short))
    return directory


@dataclass
class Correlator:
    """One correlator process, and where its plug-ins write."""

    directory: Path
    environment: Mapping[str, str]
    address: str
    process: subprocess.Popen[bytes]

    def book(self, name: str) -> list[Any]:
        path = self.directory / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def plugins(self) -> dict[str, plugin_service_pb2.Plugin]:
        """What the correlator says of its plug-ins, by kind and name."""
        with grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = plugin_service_pb2_grpc.PluginServiceStub(channel)
            answer = stub.ListPlugins(plugin_service_pb2.ListPluginsRequest(), timeout=PATIENCE_SECONDS)
        return {f"{plugin_service_pb2.PluginKind.Name(one.kind)[12:]} {one.name}": one for one in answer.plugins}

    def farandole(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "farandole", *arguments]
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )

    def watch(self, key: str, condition: Callable[[saga_pb2.Saga], bool]) -> saga_pb2.Saga:
        """Waits until something holds of a saga."""
        with grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = saga_service_pb2_grpc.SagaServiceStub(channel)
            request = saga_service_pb2.WatchSagaRequest(saga_id=key)
            for answer in stub.WatchSaga(request, timeout=PATIENCE_SECONDS):
                if condition(answer.saga):
                    return answer.saga
        raise AssertionError(f"{key} ended otherwise")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    @property
    def log(self) -> str:
        return (self.directory / "correlator.log").read_text()


@dataclass
class Place:
    """Where correlators are run."""

    directory: Path
    broker_url: str
    environment: dict[str, str]

    @contextmanager
    def correlator(
        self, settings: Mapping[str, str], *, unguarded: bool = False, waits: bool = True
    ) -> Iterator[Correlator]:
        port = free_port()
        environment = {
            **self.environment,
            "FARANDOLE_DATABASE_URL": f"sqlite:///{self.directory}/correlator.db",
            "FARANDOLE_GRPC_ADDRESS": f"127.0.0.1:{port}",
            **settings,
        }
        module = "tests.integration.unguarded_correlator" if unguarded else "services.correlator"
        with (self.directory / "correlator.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        correlator = Correlator(self.directory, environment, f"127.0.0.1:{port}", process)
        try:
            if waits:
                services = Services(self.directory, self.broker_url, ports={"correlator": port})
                services.wait_until_serving("correlator")
            yield correlator
        finally:
            process.kill()
            process.wait()

    async def tell(self, key: str, count: int = len(HAPPY)) -> None:
        """Publishes the first events of an order's saga."""
        broker = await connect(self.broker_url, service="teller")
        await tell(broker, key, HAPPY[:count])
        await broker.close()


@pytest.fixture
def place(tmp_path: Path, tryout: Path, broker_url: str, sagas: Path) -> Place:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("FARANDOLE_", "PYTEST"))}
    return Place(
        tmp_path,
        broker_url,
        outside
        | {
            "PYTHONPATH": str(tryout),
            "TRYOUT_DIRECTORY": str(tmp_path),
            "FARANDOLE_NATS_URL": broker_url,
            "FARANDOLE_SAGAS": str(sagas),
            "FARANDOLE_WEBHOOK_SECRET_FILE": str(secret),
        },
    )


def eventually(look: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < until, what
        time.sleep(0.02)
    return found


def timed_out(saga: saga_pb2.Saga) -> bool:
    return any(entry.event_type == "choreography.v1.SagaTimedOut" for entry in saga.history)


def completed(saga: saga_pb2.Saga) -> bool:
    return saga.status == saga_pb2.SAGA_STATUS_COMPLETED


async def test_an_installed_package_of_every_kind_is_found_and_used(place: Place, tryout: Path) -> None:
    async with receiving(status("204 No Content")) as receiver:
        settings = {
            "FARANDOLE_DATABASE_URL": f"journal:///{str(place.directory)[1:]}/journal",
            "FARANDOLE_DEADLINE_ACTIONS": "notebook, webhook",
            "FARANDOLE_WEBHOOK_URL": receiver.url,
            "FARANDOLE_OBSERVERS": "diary",
        }
        with place.correlator(settings) as correlator:
            await place.tell("used-good")
            await place.tell("used-late", 1)
            await asyncio.to_thread(correlator.watch, "used-good", completed)
            saga = await asyncio.to_thread(correlator.watch, "used-late", timed_out)
            stored = {entry.id: entry.event_type for entry in saga.history if entry.source == "correlator"}
            assert set(stored.values()) == {"choreography.v1.StepOverdue", "choreography.v1.SagaTimedOut"}

            def told() -> bool:
                of_late = [entry for entry in correlator.book("notebook") if entry[1] == "used-late"]
                return {entry[2] for entry in of_late} >= set(stored)

            await asyncio.to_thread(eventually, told, "the notebook has both deadlines")
            await receiver.until(lambda requests: {one.headers["webhook-id"] for one in requests} >= set(stored))
            asked = ("plugins", "--running", "--address", correlator.address)
            shown = (await asyncio.to_thread(correlator.farandole, *asked)).stdout
            rows = [line.split() for line in shown.splitlines()]
            assert rows[0][:7] == ["KIND", "NAME", "PACKAGE", "DONE", "FAILED", "MISSED", "WAITING"]
            assert rows[1] == ["store", "journal", "farandole-tryout", "0.3.0"]
            assert [row[2] for row in rows[2:4]] == ["notebook", "webhook"]
            assert rows[4][:4] == ["observer", "diary", "farandole-tryout", "0.3.0"]
            assert min(int(row[place]) for row, place in ((rows[2], 5), (rows[3], 5), (rows[4], 4))) > 0, "DONE"
            assert await asyncio.to_thread(correlator.stop) == 0, correlator.log
    of_good = [entry for entry in correlator.book("diary") if entry != "closed" and entry["saga"] == "used-good"]
    assert [entry["from"] for entry in of_good] == [None, *(entry["to"] for entry in of_good[:-1])]
    assert of_good[-1]["to"] == [6, "COMPLETED"]
    assert [entry["sequence"] for entry in of_good] == sorted(entry["sequence"] for entry in of_good)
    assert correlator.book("diary")[-1] == correlator.book("notebook")[-1] == "closed"
    positions = [int(line) for line in (place.directory / "journal").read_text().splitlines()]
    assert positions == sorted(positions)
    assert positions[-1] > 0

    for command in ("replay", "prune"):
        said = correlator.farandole(command).stderr
        assert "journal only says how far its correlator is: it can't be read beside that" in said

    done = correlator.farandole("plugins", "--json")
    assert done.returncode == 0, "what is broken is not in use"
    found = {(row["kind"], row["name"]): row for row in json.loads(done.stdout)["plugins"]}
    assert [name for (_, name), row in found.items() if row["in_use"]] == ["journal", "notebook", "webhook", "diary"]
    assert found["store", "journal"]["package"] == "farandole-tryout 0.3.0"
    assert "SystemExit: this module ends whoever imports it" in found["deadline action", "broken"]["problem"]


def test_what_cannot_be_loaded_keeps_the_correlator_only_where_it_was_asked_for(place: Place) -> None:
    asked = {
        "FARANDOLE_DATABASE_URL": "unfinished:",
        "FARANDOLE_DEADLINE_ACTIONS": "broken, webhook",
        "FARANDOLE_OBSERVERS": "nothing, diary",
        "TRYOUT_DIRECTORY": "",
    }
    with place.correlator(asked, waits=False) as correlator:
        assert correlator.process.wait(PATIENCE_SECONDS) == 1
        said = correlator.log.splitlines()
        assert len([line for line in said if "this module ends whoever imports it" in line]) == 2
        assert any("can't be called" in line for line in said)
        assert "FARANDOLE_WEBHOOK_URL: must be set" in said
        assert "TRYOUT_DIRECTORY: must be set" in said
        done = correlator.farandole("plugins")
        assert done.returncode == 1


WAYWARD = {"FARANDOLE_DEADLINE_ACTIONS": "wayward, webhook", "FARANDOLE_OBSERVERS": "wayward"}


@pytest.mark.parametrize(
    ("wayward", "answer"),
    [
        ("raise make", gigabytes),
        ("exit observe, hang act, raise close", hang),
        ("hang observe, raise act, hang close", status("500 Internal Server Error")),
    ],
)
async def test_plugins_that_go_wrong_harm_no_saga(place: Place, wayward: str, answer: Answer) -> None:
    names = [f"{key}-{wayward.replace(' ', '-').replace(',', '')}" for key in ("good", "late")]
    async with receiving(answer) as receiver:
        settings = {**WAYWARD, "FARANDOLE_WEBHOOK_URL": receiver.url, "TRYOUT_WAYWARD": wayward}
        with place.correlator(settings) as correlator:
            await place.tell(names[1], 1)
            await asyncio.to_thread(correlator.watch, names[1], timed_out)
            await receiver.until(bool)
            went_wrong = {one.split()[1] for one in wayward.split(",")} - {"close"}
            await asyncio.to_thread(eventually, lambda: went_wrong <= set(correlator.book("wayward")), "it goes wrong")
            await place.tell(names[0])
            await asyncio.to_thread(correlator.watch, names[0], completed)
            running = await asyncio.to_thread(correlator.plugins)
            assert len(running) == 4
            for kind, hangs in (("DEADLINE_ACTION", "hang act"), ("OBSERVER", "hang observe")):
                if hangs in wayward:  # which is a problem once it has lasted
                    assert running[f"{kind} wayward"].waiting
                else:
                    assert running[f"{kind} wayward"].problem
            assert await asyncio.to_thread(correlator.stop) == 0, correlator.log


@pytest.mark.parametrize("wrong", ["hang observe", "hang act", "raise observe"])
async def test_without_the_guard_they_would_stop_or_end_the_correlator(place: Place, wrong: str) -> None:
    how, where = wrong.split()
    kind = "FARANDOLE_OBSERVERS" if where == "observe" else "FARANDOLE_DEADLINE_ACTIONS"
    settings = {kind: "wayward", "TRYOUT_WAYWARD": wrong}
    with place.correlator(settings, unguarded=True, waits=False) as correlator:
        await asyncio.to_thread(eventually, lambda: "make" in correlator.book("wayward"), "it begins")
        await place.tell(f"unguarded-{how}-{where}", 1)
        await asyncio.to_thread(eventually, lambda: where in correlator.book("wayward"), "it is told")
        if how == "raise":
            assert await asyncio.to_thread(correlator.process.wait, PATIENCE_SECONDS) != 0
        else:
            with pytest.raises(grpc.RpcError) as refused:
                await asyncio.to_thread(ask, correlator.address)
            assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def ask(address: str) -> None:
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = saga_service_pb2_grpc.SagaServiceStub(channel)
        stub.ListSagas(saga_service_pb2.ListSagasRequest(), timeout=2)
