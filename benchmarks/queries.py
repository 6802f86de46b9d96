"""Asking a correlator that knows a thousand sagas, and one that knows a million: over gRPC, one question at a time."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import grpc
from rich.table import Table

from benchmarks.correlator_process import correlating
from benchmarks.many_sagas import fill, key_of
from benchmarks.workbench import ROOT, NewDatabase, Workbench
from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
from farandole.correlator.main import read_registry
from farandole.correlator.pages import page_token
from farandole.correlator.stores import sql_store
from farandole.definition_files import load_definitions
from farandole.testing.brokers import EmbeddedBroker, provision_streams

_SECONDS = 2.0
"""How long one kind of question is asked at most."""
_MOST_CALLS = 300
_MILLION = 1_000_000

Call = Callable[[], object]
Prepare = Callable[[saga_service_pb2_grpc.SagaServiceStub, random.Random, int], Call]
"""Makes one call ready, of a saga or a place that it chooses among so many."""


def _get(stub: saga_service_pb2_grpc.SagaServiceStub, chance: random.Random, sagas: int) -> Call:
    request = saga_service_pb2.GetSagaRequest(saga_id=key_of(chance.randrange(sagas)))
    return lambda: stub.GetSaga(request)


def _list(wanted: str = "", order: str = "") -> Prepare:
    request = saga_service_pb2.ListSagasRequest(filter=wanted, order_by=order)
    return lambda stub, _chance, _sagas: lambda: stub.ListSagas(request)


def _summarize(stub: saga_service_pb2_grpc.SagaServiceStub, _chance: random.Random, _sagas: int) -> Call:
    return lambda: stub.SummarizeSagas(saga_service_pb2.SummarizeSagasRequest())


def _deep(stub: saga_service_pb2_grpc.SagaServiceStub, chance: random.Random, sagas: int) -> Call:
    """A page somewhere in the middle of all, behind the token to which people come by going on and on."""
    number = chance.randrange(sagas // 4, sagas * 3 // 4)
    began = stub.GetSaga(saga_service_pb2.GetSagaRequest(saga_id=key_of(number))).saga.start_time
    place = began.seconds * _MILLION + began.nanos // 1000, number + 1
    token = page_token(place, listing=("sagas", "", "start_time", "desc"))
    return lambda: stub.ListSagas(saga_service_pb2.ListSagasRequest(order_by="start_time desc", page_token=token))


QUESTIONS: Mapping[str, Prepare] = {
    "GetSaga": _get,
    "ListSagas": _list(),
    "ListSagas, start_time desc": _list(order="start_time desc"),
    "ListSagas, start_time desc, deep": _deep,
    "ListSagas, status = RUNNING": _list("status = RUNNING"),
    "ListSagas, status = RUNNING, by deadline": _list("status = RUNNING", "deadline"),
    "ListSagas, health != ON_TIME": _list("health != ON_TIME"),
    "ListSagas, status = COMPLETED, start_time desc": _list("status = COMPLETED", "start_time desc"),
    "ListSagas, nothing matches": _list('status = FAILED AND definition = "order-fulfilment"'),
    "SummarizeSagas": _summarize,
}


async def run(bench: Workbench) -> Table:
    """Asks each kind of question of each database and size."""
    sizes = (300,) if bench.quick else (1_000, 1_000_000)
    databases = [bench.postgresql] if bench.quick else [bench.sqlite, bench.postgresql]
    broker = EmbeddedBroker(bench.place("broker"))
    broker.start()
    try:
        await provision_streams(broker.url)
        columns: list[str] = []
        cells: dict[str, list[str]] = {question: [] for question in QUESTIONS}
        for sagas in sizes:
            for new_database in databases:
                database = new_database()
                columns.append(f"{database.kind}, {sagas:,}")
                bench.say(f"queries: making {sagas:,} sagas in {database.kind}")
                await _fill(database, sagas)
                bench.settle(database)
                bench.say(f"queries: asking {database.kind} with {sagas:,} sagas")
                place = bench.place("correlator")
                async with correlating(place, nats_url=broker.url, database_url=database.url) as correlator:
                    for question, seconds in (
                        await asyncio.to_thread(_ask_all, bench, correlator.address, sagas)
                    ).items():
                        cells[question].append(_shown(seconds))
    finally:
        broker.stop()
    table = Table("p50 / p99 ms", *columns, title="queries over gRPC, one at a time, pages of 50")
    for question, row in cells.items():
        table.add_row(question, *row)
    return table


async def _fill(database: NewDatabase, sagas: int) -> None:
    registry = read_registry(ROOT / "generated/descriptors.binpb")
    definitions = load_definitions(ROOT / "services/correlator/sagas", registry)
    definition = next(one for one in definitions if one.name == "order-fulfilment")
    store = sql_store(database.url, application_name="bench")
    try:
        await fill(store, database.url, sagas, registry=registry, definition=definition)
    finally:
        await store.close()


def _ask_all(bench: Workbench, address: str, sagas: int) -> Mapping[str, Sequence[float]]:
    """How many seconds each call took, by question."""
    taken: dict[str, list[float]] = {}
    most_seconds, most_calls = (0.02, 3) if bench.quick else (_SECONDS, _MOST_CALLS)
    chance = random.Random(1)
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = saga_service_pb2_grpc.SagaServiceStub(channel)
        for question, prepare in QUESTIONS.items():
            prepare(stub, chance, sagas)()  # the first one reads what the later ones find read
            calls: list[float] = []
            until = time.perf_counter() + most_seconds
            while not calls or (len(calls) < most_calls and time.perf_counter() < until):
                call = prepare(stub, chance, sagas)
                began = time.perf_counter()
                call()
                calls.append(time.perf_counter() - began)
            taken[question] = calls
    return taken


def _shown(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]
    return f"{statistics.median(ordered) * 1000:.1f} / {p99 * 1000:.1f}"
