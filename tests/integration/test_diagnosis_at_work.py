"""Diagnoses of real sagas: a real broker, participants as processes of their own that stop, hang, fail and give up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import nats
import nats.errors
import pytest
from nats.aio.client import Client

from choreography.v1 import saga_pb2
from choreography.v1.participant_pb2 import (
    QUEUED_EVENT_STATE_DEAD_LETTERED,
    QUEUED_EVENT_STATE_RETRYING,
    ParticipantStatus,
)
from choreography.v1.participant_service_pb2 import GetStatusRequest, GetStatusResponse
from choreography.v1.participant_service_pb2_grpc import ParticipantServiceStub
from choreography.v1.saga_diagnosis_pb2 import AwaitedOutcome, SagaDiagnosis
from choreography.v1.saga_service_pb2 import DiagnoseSagaRequest
from choreography.v1.saga_service_pb2_grpc import SagaServiceStub
from farandole.broker.responder import ERROR_CODE_HEADER, ERROR_HEADER
from farandole.testing.brokers import free_port
from tests.integration import stubborn_shipping
from tests.integration.service_processes import ROOT, Services, answered, channels_to, eventually, running
from tests.integration.stubborn_shipping import ILLEGIBLE, JAMMED

SUBJECT = "participants.shipping.status"
PROCESSED = "payments.v1.PaymentProcessed"


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """All but shipping, which each test starts as it needs it."""
    with running(tmp_path_factory, "correlator", "orders", "inventory", "payments") as services:
        yield services


class OnCall:
    """What somebody on call does: asks, and has the broker's command line at hand."""

    def __init__(self, services: Services, channel: grpc.aio.Channel, client: Client) -> None:
        self.services = services
        self.client = client
        self._sagas = SagaServiceStub(channel)

    async def order(self, key: str, address: str = "1 Main Street") -> None:
        """Places an order."""
        line = {"sku": "widget", "quantity": 1, "unitPriceCents": 100}
        body: dict[str, object] = {
            "orderId": key,
            "customerId": "ada",
            "currency": "EUR",
            "card": "c",
            "address": address,
            "lines": [line],
        }
        await self.client.jetstream().publish(f"events.{key}.orders.v1.OrderCreated", json.dumps(body).encode())

    async def diagnose(self, key: str) -> SagaDiagnosis:
        return (await self._sagas.DiagnoseSaga(DiagnoseSagaRequest(saga_id=key))).diagnosis

    async def diagnosed(self, key: str, holds: Callable[[SagaDiagnosis], bool]) -> SagaDiagnosis:
        """The diagnosis, as soon as it is so."""

        async def look() -> SagaDiagnosis | None:
            found = await answered(lambda: self.diagnose(key))
            return found if found is not None and holds(found) else None

        return await eventually(look)

    async def waits_for_shipping(self, key: str) -> AwaitedOutcome:
        """What is awaited of shipping, as soon as that is all."""
        diagnosis = await self.diagnosed(key, lambda found: [one.step for one in found.awaited] == ["ship-order"])
        return diagnosis.awaited[0]

    async def is_completed(self, key: str) -> SagaDiagnosis:
        return await self.diagnosed(key, lambda found: found.status == saga_pb2.SAGA_STATUS_COMPLETED)

    async def status(self, saga_id: str = "") -> ParticipantStatus:
        """What shipping answers over NATS."""
        reply = await self.client.request(SUBJECT, GetStatusRequest(saga_id=saga_id).SerializeToString(), timeout=5)
        return GetStatusResponse.FromString(reply.data).status


@asynccontextmanager
async def on_call_for(services: Services) -> AsyncIterator[OnCall]:
    client: Client = await nats.connect(services.nats_url)
    async with channels_to(services, ["correlator"]) as channels:
        yield OnCall(services, channels["correlator"], client)
    await client.close()


@pytest.fixture
async def on_call(services: Services) -> AsyncIterator[OnCall]:
    async with on_call_for(services) as on_call:
        yield on_call


@contextmanager
def shipping(services: Services, module: str = "services.shipping", *, port: int = 0) -> Iterator[int]:
    """A process of shipping; ends with it. Its process id."""
    own = replace(services, processes={}, ports={**services.ports, "shipping": port or services.ports["shipping"]})
    environment = os.environ | {
        "FARANDOLE_NATS_URL": services.nats_url,
        "FARANDOLE_DATABASE_URL": services.database_url("shipping"),
        "FARANDOLE_GRPC_ADDRESS": own.address("shipping"),
    }
    with (services.directory / "shipping.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        own.wait_until_serving("shipping")
        yield process.pid
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert process.wait(timeout=30) == 0, "an orderly stop"


def stubborn(services: Services) -> Any:
    """Shipping that can't ship everything, on a new database."""
    services.directory.joinpath("shipping.db").unlink(missing_ok=True)
    return shipping(services, stubborn_shipping.__name__)


async def over_grpc(services: Services, saga_id: str = "", *, port: int = 0) -> ParticipantStatus:
    """What shipping answers over gRPC."""
    address = f"127.0.0.1:{port or services.ports['shipping']}"
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        response = await ParticipantServiceStub(channel).GetStatus(GetStatusRequest(saga_id=saga_id))
        return response.status


async def test_a_participant_that_never_ran_was_stopped_and_came_back(on_call: OnCall) -> None:
    await on_call.order("ord-never")
    never = await on_call.waits_for_shipping("ord-never")
    assert not never.participant_diagnosis.has_consumer
    assert "shipping has never run: " in never.detail
    assert never.event_types == ["shipping.v1.OrderShipped", "shipping.v1.ShippingFailed"]

    with shipping(on_call.services):
        ended = await on_call.is_completed("ord-never")
        assert not ended.awaited
        assert (await on_call.status()).position >= never.trigger_sequence
    await on_call.order("ord-stopped")
    stopped = await on_call.waits_for_shipping("ord-stopped")
    found = stopped.participant_diagnosis
    assert (found.has_consumer, found.is_answering, found.lag) == (True, False, 1)
    assert never.trigger_sequence <= found.acknowledged_sequence < stopped.trigger_sequence
    assert f"has not acknowledged {PROCESSED} (sequence {stopped.trigger_sequence}) yet" in stopped.detail
    assert (
        "shipping is not running, or it is suspended: nobody answers, and its durable consumer, which nobody reads,"
        in stopped.detail
    )
    assert (stopped.deadline.seconds - stopped.since.seconds, stopped.overdue) == (60, False)

    with shipping(on_call.services):
        await on_call.is_completed("ord-stopped")


async def test_a_participant_that_retries(on_call: OnCall) -> None:
    with stubborn(on_call.services):
        await on_call.order("ord-jammed", JAMMED)
        retrying = await on_call.diagnosed("ord-jammed", lambda found: "is retrying it" in found.summary)
        (outcome,) = retrying.awaited
        status = outcome.participant_diagnosis.status
        (event,) = status.queue
        assert (event.sequence, event.event_type) == (outcome.trigger_sequence, PROCESSED)
        assert (event.state, event.attempts) == (QUEUED_EVENT_STATE_RETRYING, 1)
        assert event.next_attempt_time.seconds > outcome.since.seconds + 500
        assert "The last try raised RuntimeError: the label printer is jammed." in outcome.detail
        assert (status.queued_events, status.dead_letters, list(status.problems)) == (1, 0, [])
        assert status.position >= outcome.trigger_sequence
        assert await over_grpc(on_call.services, "ord-jammed") == await on_call.status("ord-jammed") == status
        assert list((await on_call.status()).queue) == [], "no saga was asked about"

        await on_call.order("ord-beside")
        await on_call.is_completed("ord-beside")


async def test_a_participant_that_gave_up(on_call: OnCall) -> None:
    with stubborn(on_call.services):
        await on_call.order("ord-illegible", ILLEGIBLE)
        diagnosis = await on_call.diagnosed(
            "ord-illegible", lambda found: found.health == saga_pb2.SAGA_HEALTH_QUARANTINED
        )
        (outcome,) = diagnosis.awaited
        dead_letter = f"shipping-{outcome.trigger_sequence}"
        assert list(diagnosis.dead_letter_ids) == [dead_letter]
        assert f"dead letter {dead_letter}, REJECTED after 1 try: " in outcome.detail
        assert "nobody can read the label" in outcome.detail
        (event,) = outcome.participant_diagnosis.status.queue
        assert (event.state, event.attempts) == (QUEUED_EVENT_STATE_DEAD_LETTERED, 1)
        assert not event.HasField("next_attempt_time")


async def test_a_participant_that_hangs_holds_nobody_up(on_call: OnCall) -> None:
    with shipping(on_call.services) as pid:
        await on_call.status()
        os.kill(pid, signal.SIGSTOP)
        await on_call.order("ord-hangs")
        await on_call.waits_for_shipping("ord-hangs")
        began = time.monotonic()
        diagnosis = await on_call.diagnose("ord-hangs")
        assert time.monotonic() - began < 2.5
        assert "shipping does not answer, though a process reads its durable consumer: it hangs" in diagnosis.summary
        os.kill(pid, signal.SIGCONT)
        await on_call.is_completed("ord-hangs")


async def test_who_was_displaced_answers_for_nobody(on_call: OnCall) -> None:
    second = free_port()
    with shipping(on_call.services), shipping(on_call.services, port=second):

        async def first_is_silent() -> bool | None:
            return None if await answered(lambda: over_grpc(on_call.services)) is not None else True

        await eventually(first_is_silent)

        async def second_answers() -> bool | None:
            # the broker may still hand a request to the first, which is about to leave: nobody answers that one
            try:
                statuses = [await on_call.status() for _ in range(20)]
            except nats.errors.TimeoutError:
                return None
            return [list(status.problems) for status in statuses] == [[]] * 20

        assert await eventually(second_answers)
        assert list((await over_grpc(on_call.services, port=second)).problems) == []


async def test_a_bad_request_is_refused_and_breaks_nothing(on_call: OnCall) -> None:
    with shipping(on_call.services):
        for body, reason in ((b"\xff\xff", "no choreography.v1.GetStatusRequest"), (b"\n\x03a.b", "saga_id")):
            reply = await on_call.client.request(SUBJECT, body, timeout=5)
            assert reply.data == b""
            assert reply.headers is not None
            assert reply.headers[ERROR_CODE_HEADER] == "400"
            assert reason in reply.headers[ERROR_HEADER]
        elsewhere = await on_call.client.subscribe("elsewhere")
        await on_call.client.publish(SUBJECT, b"", reply="elsewhere")
        assert (await on_call.status()).participant == "shipping"
        with pytest.raises(nats.errors.TimeoutError):
            await elsewhere.next_msg(timeout=0.2)


@pytest.fixture
def hurried(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """All but shipping, with a correlator of short deadlines."""
    monkeypatch.setenv("FARANDOLE_SAGAS", str(_shortened(tmp_path_factory.mktemp("sagas"))))
    with running(tmp_path_factory, "correlator", "orders", "inventory", "payments") as services:
        yield services


async def test_a_saga_that_is_overdue_then_timed_out_with_a_last_word_to_come(hurried: Services) -> None:
    async with on_call_for(hurried) as on_call:
        await on_call.order("ord-late")
        overdue = await on_call.diagnosed("ord-late", lambda found: found.health == saga_pb2.SAGA_HEALTH_OVERDUE)
        (outcome,) = overdue.awaited
        assert (outcome.step, outcome.overdue) == ("ship-order", True)
        assert "to carry out ship-order; that was due " in outcome.detail

        ended = await on_call.diagnosed(
            "ord-late", lambda found: found.status == saga_pb2.SAGA_STATUS_COMPENSATED and len(found.awaited) == 1
        )
        assert ended.cause == saga_pb2.SAGA_CAUSE_DEADLINE
        (last,) = ended.awaited
        assert (last.step, last.participant, last.compensation) == ("ship-order", "shipping", False)
        assert last.event_types[0] == "choreography.v1.StepVoided"
        assert "shipping has not said yet what became of ship-order" in ended.summary

        with shipping(hurried):
            voided = await on_call.diagnosed("ord-late", lambda found: not found.awaited)
            assert voided.status == saga_pb2.SAGA_STATUS_COMPENSATED


def _shortened(directory: Path) -> Path:
    """The definition of orders with a step's deadline of two seconds, and five seconds for the whole."""
    definition = (ROOT / "services/correlator/sagas/order-fulfilment.yaml").read_text()
    assert 'deadline: "1800s"' in definition
    shortened = definition.replace('deadline: "1800s"', 'deadline: "5s"').replace('deadline: "60s"', 'deadline: "2s"')
    (directory / "order-fulfilment.yaml").write_text(shortened)
    return directory


async def test_grpcurl_prints_the_diagnosis(on_call: OnCall, grpcurl: str) -> None:
    await on_call.order("ord-curl")
    outcome = await on_call.waits_for_shipping("ord-curl")
    request, method = '{"saga_id": "ord-curl"}', "choreography.v1.SagaService/DiagnoseSaga"
    address = on_call.services.address("correlator")
    printed = await _printed(grpcurl, "-plaintext", "-d", request, address, method)
    diagnosis = json.loads(printed)["diagnosis"]
    assert (diagnosis["status"], diagnosis["health"]) == ("SAGA_STATUS_RUNNING", "SAGA_HEALTH_ON_TIME")
    (awaited,) = diagnosis["awaited"]
    assert (awaited["step"], awaited["participant"]) == ("ship-order", "shipping")
    assert awaited["trigger_sequence"] == str(outcome.trigger_sequence)
    assert awaited["detail"] in diagnosis["summary"]


@pytest.fixture
def grpcurl() -> str:
    """The real grpcurl. Without one: a skip that says so, and in CI a failure."""
    found = shutil.which("grpcurl") or shutil.which("grpcurl", path=Path(sys.prefix).parent / ".tools/bin")
    if found is None:
        missing = "grpcurl is not installed: put it on PATH or into .tools/bin"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


async def _printed(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
