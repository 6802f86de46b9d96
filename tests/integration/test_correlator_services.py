"""The correlator's query services over a real gRPC server, on each store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, json_format

from choreography.v1 import (
    dead_letter_pb2,
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    options_pb2,
    saga_definition_pb2,
    saga_diagnosis_pb2,
    saga_pb2,
    saga_service_pb2,
    saga_service_pb2_grpc,
)
from farandole.correlator.changes import SagaChanges
from farandole.correlator.dead_letter_service import DeadLetterService
from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.held_up import Consumer, Standing
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.saga_service import MOST_REREADS, SagaService, reread_after
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import Claim, CorrelatorStore, FoldedBatch, NewDeadLetter, SagaChange
from farandole.database import Database
from farandole.reasons import Reason
from farandole.redaction import REDACTED
from farandole.registry import Registry
from farandole.rpc import HealthMonitor, Problem, Rpc, read_problem, serve
from farandole.saga import Disposition, Health, Saga, Status
from farandole.testing.store_conformance import (
    INCARNATION,
    at,
    closed,
    dead_letter,
    definition,
    entry,
    given_up,
    new,
    record,
    saga,
)
from orders.v1 import order_events_pb2
from tests.integration.correlators import NoStream
from tests.unit import saga_histories as histories

CREATED = "orders.v1.OrderCreated"
NODE = "deep.v1.Node"


def recursive_events() -> bytes:
    """A descriptor set with an event that holds events of its own type."""
    node = descriptor_pb2.DescriptorProto(name="Node")
    node.options.Extensions[options_pb2.event] = True
    key = node.field.add(name="key", number=1, type=9, label=1, json_name="key")
    key.options.Extensions[options_pb2.correlation_key] = True
    node.field.add(name="child", number=2, type=11, label=1, type_name=f".{NODE}", json_name="child")
    file = descriptor_pb2.FileDescriptorProto(name="deep/v1/node.proto", package="deep.v1", syntax="proto3")
    file.dependency.append(options_pb2.DESCRIPTOR.name)
    file.message_type.append(node)
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()


DEEP = Registry.of_descriptor_set(recursive_events(), where="test")
REGISTRY = Registry({**Registry.of_classes([order_events_pb2.OrderCreated]).types, NODE: DEEP.types[NODE]})


class Standings:
    """An `Inquiry` that learns of every participant that it does not run."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], str]] = []
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        """What happens while the first ones are asked."""

    async def ask(self, participants: Iterable[str], saga_id: str) -> dict[str, Standing]:
        names = sorted(participants)
        self.asked.append((names, saga_id))
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        consumer = Consumer(lag=3, acknowledged=0, acknowledged_time=None, is_read=False)
        return {name: Standing(consumer) for name in names}


@dataclass
class Correlator:
    """A server over a store, and clients of it."""

    store: CorrelatorStore
    changes: SagaChanges
    sagas: saga_service_pb2_grpc.SagaServiceAsyncStub
    dead_letters: dead_letter_service_pb2_grpc.DeadLetterServiceAsyncStub
    standings: Standings

    async def get(self, key: str, of: str = "") -> saga_pb2.Saga:
        request = saga_service_pb2.GetSagaRequest(saga_id=key, definition=of)
        return (await self.sagas.GetSaga(request)).saga

    async def diagnose(self, key: str, of: str = "") -> saga_diagnosis_pb2.SagaDiagnosis:
        request = saga_service_pb2.DiagnoseSagaRequest(saga_id=key, definition=of)
        return (await self.sagas.DiagnoseSaga(request)).diagnosis

    async def pages(self, **request: Any) -> list[list[str]]:
        """The keys of every page of a list."""
        pages: list[list[str]] = []
        token = ""
        while True:
            page = await self.sagas.ListSagas(saga_service_pb2.ListSagasRequest(page_token=token, **request))
            pages.append([found.saga_id for found in page.sagas])
            token = page.next_page_token
            if not token:
                return pages

    def watch(self, key: str, of: str = "") -> Any:
        return self.sagas.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id=key, definition=of))


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CorrelatorStore]:
    store: CorrelatorStore = MemoryCorrelatorStore()
    if request.param == "sqlite":
        store = SqlCorrelatorStore(Database(f"sqlite:///{tmp_path}/correlator.db"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def correlator(store: CorrelatorStore) -> AsyncIterator[Correlator]:
    changes = SagaChanges()
    # nothing but a wake-up ends a wait, so that a lost one would show; the re-reading has a test of its own
    standings = Standings()
    service = SagaService(store, REGISTRY, changes, standings, reread_seconds=3600)
    rpcs: list[Rpc[Any]] = [
        Rpc(
            saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"],
            saga_service_pb2_grpc.add_SagaServiceServicer_to_server,
            service,
        ),
        Rpc(
            dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"],
            dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server,
            DeadLetterService(store, REGISTRY, NoStream()),
        ),
    ]
    async with (
        serve("127.0.0.1:0", rpcs, HealthMonitor(), grace_seconds=0.1) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        sagas = saga_service_pb2_grpc.SagaServiceStub(channel)
        dead_letters = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
        yield Correlator(store, changes, sagas, dead_letters, standings)


async def refused(call: Any) -> Problem:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return read_problem(error.value)


async def change(correlator: Correlator, claim: Claim, before: Saga | None, after: Saga) -> Claim:
    """Commits a change and tells the watchers, as the correlator does."""
    batch = FoldedBatch(claim.position + 1, (SagaChange(before, after),))
    claim = (await correlator.store.commit(claim, batch)).claim
    await correlator.changes.changed([after.key])
    return claim


async def watched(correlator: Correlator, keys: int) -> None:
    """Returns once so many keys are watched."""
    async with asyncio.timeout(10):
        while correlator.changes.watched != keys:  # noqa: ASYNC110 - the server's state, which tells nobody
            await asyncio.sleep(0)


def told(*sequences: int, status: Status = Status.RUNNING, key: str = "ord-1", started: bool = True) -> Saga:
    """A saga with these events."""
    return saga(key, status=status, started=0.0 if started else None, history=[entry(n) for n in sequences])


def order(**fields: Any) -> bytes:
    return order_events_pb2.OrderCreated(order_id="ord-1", **fields).SerializeToString()


async def test_a_saga_is_told_whole(correlator: Correlator) -> None:
    await correlator.store.activate([definition()], replica="correlator-1")
    early = entry(2, type_="shipping.v1.OrderShipped", disposition=Disposition.EARLY)
    whole = saga("ord-1", status=Status.COMPENSATING, health=Health.OVERDUE, ended=9, history=[entry(1), early])
    whole = replace(whole, finished_late=True, history_omitted=3, steps=whole.steps)
    line = {"sku": "widget", "quantity": 2, "unit_price_cents": 1250}
    body = order(lines=[line], currency="EUR", card="4111", address=REDACTED)
    claim = await correlator.store.claim(INCARNATION)
    await correlator.store.commit(claim, FoldedBatch(2, new(whole), {1: body, 2: b""}))

    answer = await correlator.get("ord-1")
    assert json_format.MessageToDict(answer) == {
        "sagaId": "ord-1",
        "definition": "order-fulfilment",
        "version": 1,
        "revision": "2",
        "status": "SAGA_STATUS_COMPENSATING",
        "cause": "SAGA_CAUSE_STEP_FAILURE",
        "causeDetail": "take-payment: declined",
        "health": "SAGA_HEALTH_OVERDUE",
        "startTime": "2026-03-01T09:00:00.123456Z",
        "updateTime": "2026-03-01T09:00:00.123456Z",
        "endTime": "2026-03-01T09:00:09.123456Z",
        "deadline": "2026-03-01T09:30:00.123456Z",
        "finishedLate": True,
        "historyOmitted": "3",
        "steps": [
            {
                "name": "create-order",
                "status": "STEP_STATUS_SUCCEEDED",
                "startTime": "2026-03-01T09:00:00.123456Z",
                "endTime": "2026-03-01T09:00:00.123456Z",
            },
            {
                "name": "take-payment",
                "status": "STEP_STATUS_RUNNING",
                "deadline": "2026-03-01T09:01:00.123456Z",
                "startTime": "2026-03-01T09:00:01.123456Z",
            },
            {
                "name": "ship",
                "participant": "shipping",
                "kind": "STEP_KIND_PIVOT",
                "status": "STEP_STATUS_PENDING",
            },
        ],
        "history": [
            {
                "eventType": CREATED,
                "id": "event-1",
                "source": "urn:källa/1",
                "time": "2026-03-01T09:00:00.623456Z",
                "sequence": "1",
                "disposition": "DISPOSITION_APPLIED",
                "causationId": "event-0",
                "streamTime": "2026-03-01T09:00:01.123456Z",
                "payload": {
                    "orderId": "ord-1",
                    "lines": [{"sku": "widget", "quantity": 2.0, "unitPriceCents": "1250"}],
                    "currency": "EUR",
                    "card": REDACTED,  # though it was stored unredacted
                    "address": REDACTED,
                },
            },
            {
                "eventType": "shipping.v1.OrderShipped",  # which the registry does not know
                "id": "event-2",
                "source": "urn:källa/1",
                "time": "2026-03-01T09:00:01.623456Z",
                "sequence": "2",
                "disposition": "DISPOSITION_EARLY",
                "causationId": "event-1",
                "streamTime": "2026-03-01T09:00:02.123456Z",
                "reason": "it came too soon",
            },
        ],
    }


async def test_a_payload_that_can_not_be_told_hides_nothing_else(correlator: Correlator) -> None:
    node: Any = REGISTRY.types[NODE].message_class
    deepest = shallow = node(key="a")
    for _ in range(25):
        shallow = node(key="a", child=shallow)
    for _ in range(80):
        deepest = node(key="a", child=deepest)
    history = [entry(1), entry(2, type_=NODE), entry(3, type_=NODE), entry(4)]
    payloads = {1: b"\xff\xff", 2: deepest.SerializeToString(), 3: shallow.SerializeToString(), 4: order()}
    claim = await correlator.store.claim(INCARNATION)
    await correlator.store.commit(claim, FoldedBatch(4, new(saga("ord-1", history=history)), payloads))
    answer = await correlator.get("ord-1")
    assert [told.HasField("payload") for told in answer.history] == [False, False, True, True]


async def test_a_saga_with_very_large_events_can_still_be_read(correlator: Correlator) -> None:
    large = order(customer_id="x" * 250_000)
    payloads = dict.fromkeys(range(1, 41), large) | {41: order(currency="EUR")}
    claim = await correlator.store.claim(INCARNATION)
    batch = FoldedBatch(41, new(saga("ord-1", history=[entry(n) for n in range(1, 42)])), payloads)
    await correlator.store.commit(claim, batch)
    answer = await correlator.get("ord-1")
    assert len(answer.history) == 41
    assert answer.history[0].HasField("payload")
    assert not answer.history[39].HasField("payload")
    assert answer.history[40].payload["currency"] == "EUR"


async def test_a_saga_with_an_event_that_is_too_large_as_json_can_still_be_read(correlator: Correlator) -> None:
    many = order(lines=[{"quantity": 1, "unit_price_cents": 1}] * 100_000)
    claim = await correlator.store.claim(INCARNATION)
    whole = saga("ord-1", history=[entry(1), entry(2)])
    await correlator.store.commit(claim, FoldedBatch(2, new(whole), {1: many, 2: order()}))
    answer = await correlator.get("ord-1")
    assert [one.HasField("payload") for one in answer.history] == [False, True]


async def test_an_unknown_saga_is_not_found(correlator: Correlator) -> None:
    problem = await refused(correlator.get("ord-9"))
    assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, "SAGA_NOT_FOUND")
    assert problem.metadata == {"saga_id": "ord-9"}
    assert problem.message == "there is no saga 'ord-9'"


async def test_events_that_wait_for_their_initiating_event_are_told(correlator: Correlator) -> None:
    await correlator.store.activate([definition()], replica="correlator-1")
    await record(correlator.store, told(1, 2, started=False), told(3, key="ord-2", started=False))
    problem = await refused(correlator.get("ord-1"))
    assert problem.code is grpc.StatusCode.NOT_FOUND
    waiting = f"2 events with this key wait for the initiating event of order-fulfilment, {CREATED}"
    assert waiting in problem.message
    assert "1 event with this key waits for" in (await refused(correlator.get("ord-2"))).message


async def test_a_key_with_sagas_of_several_definitions_asks_for_one(correlator: Correlator) -> None:
    drones = saga("ord-1", definition="drone-delivery")
    await record(correlator.store, saga("ord-1"), drones, saga("ord-1", definition="unstarted", started=None))
    problem = await refused(correlator.get("ord-1"))
    assert (problem.code, problem.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SAGA_AMBIGUOUS")
    assert problem.metadata == {"saga_id": "ord-1", "definitions": "drone-delivery,order-fulfilment"}
    assert (await correlator.get("ord-1", "drone-delivery")).definition == "drone-delivery"
    assert (await refused(anext(aiter(correlator.watch("ord-1"))))).reason == "SAGA_AMBIGUOUS"


async def test_a_definition_that_has_no_saga_under_the_key_is_told_what_there_is(correlator: Correlator) -> None:
    await correlator.store.activate([definition()], replica="correlator-1")
    await record(correlator.store, saga("ord-1"))
    problem = await refused(correlator.get("ord-1", "order-fulfillment"))
    assert problem.reason == "SAGA_NOT_FOUND"
    assert "did you mean order-fulfilment?" in problem.message
    assert "under that key there is one of order-fulfilment" in problem.message


@pytest.mark.parametrize("key", ["", "a b", "a.b", "x" * 129])
async def test_what_can_be_no_key_is_refused_by_name(correlator: Correlator, key: str) -> None:
    problem = await refused(correlator.get(key))
    assert problem.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [wrong.field for wrong in problem.fields] == ["saga_id"]


# lists


async def test_pages_of_sagas_follow_each_other(correlator: Correlator) -> None:
    await record(correlator.store, *(saga(f"k{n}", updated=n, started=-n, history=[entry(1)]) for n in range(5)))
    assert await correlator.pages(page_size=2) == [["k0", "k1"], ["k2", "k3"], ["k4"]]
    assert await correlator.pages(page_size=2, order_by=" update_time  desc ") == [["k4", "k3"], ["k2", "k1"], ["k0"]]
    assert await correlator.pages(page_size=5, order_by="start_time") == [["k4", "k3", "k2", "k1", "k0"]]
    assert await correlator.pages(filter=f'update_time >= "{at(3).isoformat()}"') == [["k3", "k4"]]
    first = (await correlator.sagas.ListSagas(saga_service_pb2.ListSagasRequest(page_size=1))).sagas[0]
    assert not first.history
    assert len(first.steps) == 3


async def test_a_page_has_fifty_unless_told_and_a_thousand_at_most(correlator: Correlator) -> None:
    await record(correlator.store, *(saga(f"k{n}") for n in range(1001)))
    assert [len(page) for page in await correlator.pages()] == [50] * 20 + [1]
    assert [len(page) for page in await correlator.pages(page_size=5000)] == [1000, 1]


async def test_what_is_wrong_in_a_request_for_a_list_is_named(correlator: Correlator) -> None:
    await record(correlator.store, saga("a"), saga("b"))
    request = saga_service_pb2.ListSagasRequest

    async def field(wrong: saga_service_pb2.ListSagasRequest) -> str:
        problem = await refused(correlator.sagas.ListSagas(wrong))
        assert problem.code is grpc.StatusCode.INVALID_ARGUMENT
        assert problem.reason == "INVALID_ARGUMENT"
        return problem.fields[0].field

    token = (await correlator.sagas.ListSagas(request(page_size=1))).next_page_token
    assert await field(request(filter="status = RUNNING AND")) == "filter"
    assert await field(request(filter="x" * 5000)) == "filter"
    assert await field(request(order_by="saga_id")) == "order_by"
    assert await field(request(order_by="update_time asc")) == "order_by"
    assert await field(request(order_by="update_time, start_time")) == "order_by"
    assert await field(request(page_size=-1)) == "page_size"
    assert await field(request(page_token="garbage")) == "page_token"
    assert await field(request(page_token=token[:-1])) == "page_token"
    assert await field(request(page_token=token, filter="version = 1")) == "page_token"
    assert await field(request(page_token=token, order_by="update_time desc")) == "page_token"
    definitions = saga_service_pb2.ListSagaDefinitionsRequest(page_token=token)
    assert (await refused(correlator.sagas.ListSagaDefinitions(definitions))).fields[0].field == "page_token"
    summary = saga_service_pb2.SummarizeSagasRequest(filter="colour = red")
    assert (await refused(correlator.sagas.SummarizeSagas(summary))).fields[0].field == "filter"


async def test_sagas_are_counted(correlator: Correlator) -> None:
    stalled = saga("c", health=Health.STALLED)
    await record(correlator.store, saga("a"), saga("b"), stalled, saga("d", definition="drone-delivery"))
    all_ = await correlator.sagas.SummarizeSagas(saga_service_pb2.SummarizeSagasRequest())
    running, on_time = saga_pb2.SAGA_STATUS_RUNNING, saga_pb2.SAGA_HEALTH_ON_TIME
    assert [(count.definition, count.status, count.health, count.count) for count in all_.counts] == [
        ("drone-delivery", running, on_time, 1),
        ("order-fulfilment", running, on_time, 2),
        ("order-fulfilment", running, saga_pb2.SAGA_HEALTH_STALLED, 1),
    ]
    assert all_.total == 4
    some = saga_service_pb2.SummarizeSagasRequest(filter="health = STALLED OR definition = drone-delivery")
    assert (await correlator.sagas.SummarizeSagas(some)).total == 2
    none = await correlator.sagas.SummarizeSagas(saga_service_pb2.SummarizeSagasRequest(filter="version = 9"))
    assert (list(none.counts), none.total) == ([], 0)


# definitions


async def test_definitions_are_listed_and_found(correlator: Correlator) -> None:
    await correlator.store.activate([definition(version=2), definition("drone-delivery")], replica="correlator-1")
    await correlator.store.activate([definition(version=10), definition("drone-delivery")], replica="correlator-1")
    found: list[tuple[str, int]] = []
    token = ""
    while True:
        request = saga_service_pb2.ListSagaDefinitionsRequest(page_size=1, page_token=token)
        page = await correlator.sagas.ListSagaDefinitions(request)
        found.extend((one.name, one.version) for one in page.definitions)
        token = page.next_page_token
        if not token:
            break
    assert found == [("drone-delivery", 1), ("order-fulfilment", 10), ("order-fulfilment", 2)]

    async def get(name: str, version: int = 0) -> saga_definition_pb2.SagaDefinition:
        request = saga_service_pb2.GetSagaDefinitionRequest(name=name, version=version)
        return (await correlator.sagas.GetSagaDefinition(request)).definition

    assert await get("order-fulfilment") == definition(version=10).to_message()
    assert await get("order-fulfilment", 2) == definition(version=2).to_message()
    problem = await refused(get("order-fulfilment", 3))
    assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, "SAGA_DEFINITION_NOT_FOUND")
    assert "there are 10, 2" in problem.message
    assert "did you mean order-fulfilment?" in (await refused(get("order-fulfillment"))).message


# watching


async def revisions(stream: Any) -> list[int]:
    return [response.saga.revision async for response in stream]


async def test_a_watch_waits_for_its_saga_and_ends_with_it(correlator: Correlator) -> None:
    claim = await correlator.store.claim(INCARNATION)
    responses = aiter(correlator.watch("ord-1"))
    first = asyncio.ensure_future(anext(responses))
    await watched(correlator, 1)
    claim = await change(correlator, claim, None, told(1, started=False))
    claim = await change(correlator, claim, told(1, started=False), told(1, 2))
    assert (await first).saga.revision == 2
    claim = await change(correlator, claim, told(1, 2), told(1, 2, 3))
    assert (await anext(responses)).saga.revision == 3
    await change(correlator, claim, told(1, 2, 3), told(1, 2, 3, 4, status=Status.COMPLETED))
    last = (await anext(responses)).saga
    assert (last.revision, last.status) == (4, saga_pb2.SAGA_STATUS_COMPLETED)
    assert [told.sequence for told in last.history] == [1, 2, 3, 4]
    with pytest.raises(StopAsyncIteration):
        await anext(responses)
    await watched(correlator, 0)


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.COMPENSATED, Status.FAILED])
async def test_a_watch_of_a_saga_that_has_ended_tells_it_once(correlator: Correlator, status: Status) -> None:
    await record(correlator.store, told(1, 2, status=status))
    assert await revisions(correlator.watch("ord-1")) == [2]


async def test_a_watch_stays_with_the_saga_that_it_began_with(correlator: Correlator) -> None:
    claim = await record(correlator.store, told(1))
    responses = aiter(correlator.watch("ord-1"))
    assert (await anext(responses)).saga.revision == 1
    claim = await change(correlator, claim, None, replace(told(1), definition="drone-delivery"))
    await change(correlator, claim, told(1), told(1, 2, status=Status.FAILED))
    assert await revisions(responses) == [2]


async def test_many_watchers_miss_no_end_and_see_no_revision_twice(correlator: Correlator) -> None:
    claim = await correlator.store.claim(INCARNATION)
    keys = [f"k{number}" for number in range(10)]
    watchers = [asyncio.ensure_future(revisions(correlator.watch(key))) for key in keys for _ in range(5)]
    before: dict[str, Saga] = {}
    for revision in range(1, 21):
        status = Status.COMPLETED if revision == 20 else Status.RUNNING
        after = {key: told(*range(1, revision + 1), key=key, status=status) for key in keys}
        changes = [SagaChange(before.get(key), after[key]) for key in keys]
        claim = (await correlator.store.commit(claim, FoldedBatch(revision, changes))).claim
        await correlator.changes.changed(keys)
        before = after
    async with asyncio.timeout(30):
        seen: Sequence[list[int]] = await asyncio.gather(*watchers)
    assert all(one[-1] == 20 and one == sorted(set(one)) for one in seen)
    await watched(correlator, 0)


async def test_a_watch_that_is_given_up_leaves_nothing_behind(correlator: Correlator) -> None:
    calls = [correlator.watch("none"), correlator.watch("none"), correlator.watch("other")]
    for call in calls:
        asyncio.ensure_future(refused(anext(aiter(call)))).add_done_callback(lambda done: done.exception())
    await watched(correlator, 2)
    for call in calls:
        call.cancel()
    await watched(correlator, 0)


@pytest.mark.parametrize(("watchers", "seconds"), [(1, 1.0), (200, 1.0), (1000, 5.0)])
def test_many_watchers_look_less_often_each(watchers: int, seconds: float) -> None:
    assert reread_after(watchers, at_least=1.0) == seconds
    assert watchers / seconds <= MOST_REREADS


async def test_watchers_are_counted_and_not_what_they_watch(correlator: Correlator) -> None:
    with correlator.changes.watch("a"), correlator.changes.watch("a"), correlator.changes.watch("b"):
        assert (correlator.changes.watchers, correlator.changes.watched) == (3, 2)
    assert correlator.changes.watchers == 0


async def test_a_change_that_another_process_made_is_seen_too(store: CorrelatorStore) -> None:
    claim = await record(store, told(1))
    service = SagaService(store, REGISTRY, SagaChanges(), Standings(), reread_seconds=0.01)
    rpc = Rpc(
        saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"],
        saga_service_pb2_grpc.add_SagaServiceServicer_to_server,
        service,
    )
    async with (
        serve("127.0.0.1:0", [rpc], HealthMonitor(), grace_seconds=0.1) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = saga_service_pb2_grpc.SagaServiceStub(channel)
        responses = aiter(stub.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id="ord-1")))
        assert (await anext(responses)).saga.revision == 1
        changed = SagaChange(told(1), told(1, 2, status=Status.COMPLETED))
        await store.commit(claim, FoldedBatch(2, (changed,)))
        assert await revisions(responses) == [2]


# diagnoses


PAID = ("OrderCreated", "ItemsReserved", "PaymentProcessed")


async def test_a_diagnosis_asks_those_for_whom_the_saga_waits(correlator: Correlator) -> None:
    await correlator.store.activate([histories.ORDER_FULFILMENT], replica="correlator-1")
    await record(correlator.store, histories.told(*PAID))
    diagnosis = await correlator.diagnose("ord-1")
    assert correlator.standings.asked == [(["shipping"], "ord-1")]
    assert (diagnosis.saga_id, diagnosis.definition, diagnosis.version) == ("ord-1", "order-fulfilment", 1)
    assert diagnosis.deadline.ToDatetime(tzinfo=UTC) == histories.START + histories.ORDER_FULFILMENT.deadline
    (awaited,) = diagnosis.awaited
    assert (awaited.step, awaited.compensation) == ("ship-order", False)
    assert (awaited.trigger_sequence, awaited.overdue) == (30, False)
    found = awaited.participant_diagnosis
    assert (found.has_consumer, found.is_answering, found.lag) == (True, False, 3)


async def test_a_diagnosis_names_the_open_dead_letters_of_the_saga(correlator: Correlator) -> None:
    await correlator.store.activate([histories.ORDER_FULFILMENT], replica="correlator-1")
    claim = await record(correlator.store, histories.told(*PAID))
    held = replace(given_up(30, at_sequence=40, participant="shipping").dead_letter, key="ord-1", compensation=False)
    letters = (
        NewDeadLetter(held),
        NewDeadLetter(replace(held, sequence=20, participant="payments")),
        NewDeadLetter(replace(held, key="ord-2", sequence=31)),
        dead_letter(15, key="ord-1"),
    )
    closing = closed(20, at_sequence=41)
    batch = FoldedBatch(claim.position + 1, dead_letters=letters, closed_dead_letters=(closing,))
    await correlator.store.commit(claim, batch)
    diagnosis = await correlator.diagnose("ord-1")
    assert diagnosis.dead_letter_ids == ["shipping-30"]
    (awaited,) = diagnosis.awaited
    assert "dead letter shipping-30, RETRIES_EXHAUSTED after 3 tries: tried 3 times." in awaited.detail
    assert "dead letter correlator-15, UNDECODABLE: the body is not JSON: ü." in diagnosis.summary


async def test_a_saga_that_goes_on_while_its_participants_are_asked(correlator: Correlator) -> None:
    await correlator.store.activate([histories.ORDER_FULFILMENT], replica="correlator-1")
    before, after = histories.told(*PAID), histories.told(*PAID, "OrderShipped")
    claim = await record(correlator.store, before)
    correlator.standings.meanwhile = lambda: change(correlator, claim, before, after)
    diagnosis = await correlator.diagnose("ord-1")
    assert correlator.standings.asked == [(["shipping"], "ord-1"), (["orders"], "ord-1")]
    assert [one.step for one in diagnosis.awaited] == ["complete-order"]
    assert "orders is not running" in diagnosis.summary


async def test_a_diagnosis_is_refused_as_the_saga_is(correlator: Correlator) -> None:
    await correlator.store.activate([histories.ORDER_FULFILMENT], replica="correlator-1")
    another = replace(histories.told("OrderCreated"), definition="drone-delivery")
    waiting = told(1, 2, key="ord-2", started=False)
    await record(correlator.store, histories.told(*PAID), another, waiting)
    ambiguous = await refused(correlator.diagnose("ord-1"))
    assert (ambiguous.code, ambiguous.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SAGA_AMBIGUOUS")
    assert ambiguous.metadata == {"saga_id": "ord-1", "definitions": "drone-delivery,order-fulfilment"}
    assert (await correlator.diagnose("ord-1", "order-fulfilment")).definition == "order-fulfilment"
    unstarted = await refused(correlator.diagnose("ord-2"))
    assert (unstarted.code, unstarted.reason) == (grpc.StatusCode.NOT_FOUND, "SAGA_NOT_FOUND")
    assert "2 events with this key wait for the initiating event of order-fulfilment" in unstarted.message
    assert (await refused(correlator.diagnose("ord-9"))).reason == "SAGA_NOT_FOUND"
    assert (await refused(correlator.diagnose("a b"))).code is grpc.StatusCode.INVALID_ARGUMENT


# dead letters


async def test_dead_letters_are_listed_without_what_is_large(correlator: Correlator) -> None:
    claim = await correlator.store.claim(INCARNATION)
    letters = [dead_letter(1), dead_letter(2, key="ord-1", reason=Reason.RULE_VIOLATION), dead_letter(3)]
    await correlator.store.commit(claim, FoldedBatch(3, dead_letters=letters))
    request = dead_letter_service_pb2.ListDeadLettersRequest
    first = await correlator.dead_letters.ListDeadLetters(request(page_size=2))
    rest = await correlator.dead_letters.ListDeadLetters(request(page_size=2, page_token=first.next_page_token))
    assert [one.dead_letter_id for one in first.dead_letters] == ["correlator-3", "correlator-2"]
    assert [one.dead_letter_id for one in rest.dead_letters] == ["correlator-1"]
    assert rest.next_page_token == ""
    second = first.dead_letters[1]
    assert json_format.MessageToDict(second) == {
        "deadLetterId": "correlator-2",
        "participant": "correlator",
        "sequence": "2",
        "subject": "events.3.orders.v1.OrderCreated",
        "eventType": CREATED,
        "sagaId": "ord-1",
        "reason": "DEAD_LETTER_REASON_RULE_VIOLATION",
        "detail": "the body is not JSON: ü",
        "streamTime": "2026-03-01T09:00:02.123456Z",
        "bodySize": "3",
        "bodySha256": "ab" * 32,
        "state": "DEAD_LETTER_STATE_OPEN",
    }
    found = await correlator.dead_letters.ListDeadLetters(request(filter="reason = RULE_VIOLATION"))
    assert [one.sequence for one in found.dead_letters] == [2]
    for wrong, field in (
        (request(filter="status = RUNNING"), "filter"),
        (request(page_token=first.next_page_token, filter="sequence > 1"), "page_token"),
        (request(page_size=-1), "page_size"),
    ):
        problem = await refused(correlator.dead_letters.ListDeadLetters(wrong))
        assert (problem.code, problem.fields[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_groups_of_dead_letters_come_with_the_filter_that_lists_them(correlator: Correlator) -> None:
    claim = await correlator.store.claim(INCARNATION)
    long = 'the "card" \\ of ü\n' * 100  # of itself longer than a filter may be
    letters = [
        *(given_up(n, at_sequence=n) for n in range(1, 6)),
        dead_letter(6),
        *(NewDeadLetter(replace(given_up(n, at_sequence=n).dead_letter, detail=long * 3)) for n in (7, 8)),
    ]
    ends = [closed(2, at_sequence=9)]
    await correlator.store.commit(claim, FoldedBatch(9, dead_letters=letters, closed_dead_letters=ends))
    request = dead_letter_service_pb2.ListDeadLettersRequest
    by_failure = dead_letter_service_pb2.DEAD_LETTER_FIELD_FAILURE
    asked = request(group_by=[by_failure], filter="sequence < 9 OR state = OPEN", page_size=2)
    first = await correlator.dead_letters.ListDeadLetters(asked)
    asked.page_token = first.next_page_token
    rest = await correlator.dead_letters.ListDeadLetters(asked)
    assert (list(first.dead_letters), rest.next_page_token) == ([], "")
    largest, longest, smallest = (*first.groups, *rest.groups)
    assert json_format.MessageToDict(largest) == {
        "filter": "sequence < 9 OR state = OPEN AND participant = payments AND definition = order-fulfilment AND "
        "step = take-payment AND event_type = orders.v1.OrderCreated AND reason = RETRIES_EXHAUSTED AND "
        'detail = "tried 3 times"',
        "count": "5",
        "open": "4",
        "participant": "payments",
        "eventType": CREATED,
        "reason": "DEAD_LETTER_REASON_RETRIES_EXHAUSTED",
        "detail": "tried 3 times",
        "definition": "order-fulfilment",
        "step": "take-payment",
        "firstTime": "2026-03-01T09:00:01.123456Z",
        "lastTime": "2026-03-01T09:00:05.123456Z",
    }
    assert "NOT definition:* AND NOT step:* AND" in smallest.filter
    for group, sequences in ((largest, [5, 4, 3, 2, 1]), (longest, [8, 7]), (smallest, [6])):
        listed = await correlator.dead_letters.ListDeadLetters(request(filter=group.filter))
        assert [one.sequence for one in listed.dead_letters] == sequences
    by_saga = dead_letter_service_pb2.DEAD_LETTER_FIELD_SAGA
    groups = (await correlator.dead_letters.ListDeadLetters(request(group_by=[by_saga]))).groups
    assert [(group.filter, group.saga_id, group.count) for group in groups] == [
        ("saga_id = a", "a", 7),
        ("NOT saga_id:*", "", 1),
    ]
    for wrong, field in (
        (request(group_by=[by_saga], page_token=first.next_page_token), "page_token"),
        (request(group_by=[by_saga, by_saga]), "group_by"),
        (request(group_by=[dead_letter_service_pb2.DEAD_LETTER_FIELD_UNSPECIFIED]), "group_by[0]"),
    ):
        problem = await refused(correlator.dead_letters.ListDeadLetters(wrong))
        assert (problem.code, problem.fields[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_a_dead_letter_is_told_whole(correlator: Correlator) -> None:
    readable = dead_letter(2, key="ord-1")
    body = order(card="4111", currency="EUR")
    readable = replace(readable, dead_letter=replace(readable.dead_letter, payload=body))
    claim = await correlator.store.claim(INCARNATION)
    await correlator.store.commit(claim, FoldedBatch(3, dead_letters=[dead_letter(1), readable]))

    async def get(id_: str) -> dead_letter_pb2.DeadLetter:
        request = dead_letter_service_pb2.GetDeadLetterRequest(dead_letter_id=id_)
        return (await correlator.dead_letters.GetDeadLetter(request)).dead_letter

    unread, read = await get("correlator-1"), await get("correlator-2")
    assert dict(unread.headers) == {"ce-id": "1", "ce-source": "käse"}
    assert unread.body_prefix == b"\x00\x01\xff"
    assert not unread.HasField("payload")
    assert json_format.MessageToDict(read.payload) == {"orderId": "ord-1", "currency": "EUR", "card": REDACTED}
    for unknown in ("correlator-3", "payments-1", "nonsense", "correlator-99999999999999999999"):
        problem = await refused(get(unknown))
        assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND")
        assert problem.metadata == {"dead_letter_id": unknown}
    assert (await refused(get(""))).code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_participants_dead_letter_is_told_with_what_its_history_keeps(correlator: Correlator) -> None:
    claim = await correlator.store.claim(INCARNATION)
    letters = [given_up(2, at_sequence=4), given_up(3, at_sequence=5)]
    batch = FoldedBatch(
        6,
        new(saga("a", history=[entry(1), entry(2)])),
        {2: order(card="4111", currency="EUR")},
        dead_letters=[*letters, dead_letter(1)],
        closed_dead_letters=[closed(3, at_sequence=6, state=DeadLetterState.SUPERSEDED)],
    )
    await correlator.store.commit(claim, batch)
    request = dead_letter_service_pb2.GetDeadLetterRequest(dead_letter_id="payments-2")
    told = json_format.MessageToDict((await correlator.dead_letters.GetDeadLetter(request)).dead_letter)
    assert told["payload"] == {"orderId": "ord-1", "currency": "EUR", "card": REDACTED}
    assert told["headers"] == {"ce-id": "event-2", "ce-source": "orders", "ce-type": CREATED}
    assert (told["definition"], told["step"], told["compensation"], told["attempts"], told["state"]) == (
        ("order-fulfilment", "take-payment", True, 3, "DEAD_LETTER_STATE_OPEN")
    )
    listing = dead_letter_service_pb2.ListDeadLettersRequest(filter="state = SUPERSEDED")
    (found,) = (await correlator.dead_letters.ListDeadLetters(listing)).dead_letters
    assert (found.dead_letter_id, found.state) == ("payments-3", dead_letter_pb2.DEAD_LETTER_STATE_SUPERSEDED)
    assert json_format.MessageToDict(found)["closeTime"] == "2026-03-01T09:00:06.123456Z"
