"""Running a participant: its process, from settings to an orderly stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grpc
import sqlalchemy as sa

from choreography.v1 import participant_pb2, participant_service_pb2
from choreography.v1.participant_service_pb2_grpc import (
    ParticipantServiceServicer,
    add_ParticipantServiceServicer_to_server,
)
from farandole.broker.connection import Broker
from farandole.broker.responder import respond, status_subject
from farandole.database import Database
from farandole.errors import StoreUnavailableError
from farandole.migrations import PARTICIPANT, migrate
from farandole.outbox import OutboxRow
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.participant import Participant
from farandole.participant.status import StatusReader
from farandole.participant.tables import ParticipantTables
from farandole.participant.transaction import CommandTransaction
from farandole.process import CHECKS, close_or_exit, run_process, when_available, work_until_stopped
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.settings import Settings
from farandole.worker import Worker

T = TypeVar("T")


class Runtime:
    """What a running participant offers to its remote procedures."""

    def __init__(
        self, database: Database, tables: ParticipantTables, handler: ParticipantBatchHandler, worker: Worker
    ) -> None:
        self._database = database
        self._tables = tables
        self._handler = handler
        self._worker = worker
        self._committing: set[asyncio.Task[Any]] = set()

    async def execute(self, work: Callable[[CommandTransaction], T]) -> T:
        """Runs `work` in one write transaction; what it publishes goes out once that has committed.

        Raises what `work` raises, with nothing written; `StoreUnavailableError`; and `FencedError` where another
        process has taken over this participant.
        """

        # a caller that gives up must not keep what it has committed from being published
        committing = asyncio.create_task(self._commit(work))
        self._committing.add(committing)
        committing.add_done_callback(self._committed)
        return await asyncio.shield(committing)

    async def _commit(self, work: Callable[[CommandTransaction], T]) -> T:
        def transact(connection: sa.Connection) -> tuple[T, list[OutboxRow]]:
            self._handler.check_owner(connection)
            outgoing = self._handler.outgoing()
            result = work(CommandTransaction(connection, outgoing))
            return result, self._tables.outbox.add(connection, outgoing.publications)

        async with self._handler.ownership:
            try:
                result, rows = await self._database.write(transact)
            except StoreUnavailableError:
                self._worker.look_into_outbox()  # it may have been committed all the same
                raise
        self._worker.publish_rows(rows)
        return result

    def _committed(self, task: asyncio.Task[Any]) -> None:
        self._committing.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, where there still is one

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` over what has been committed. Raises `StoreUnavailableError`."""
        return await self._database.read(work)


def participant_worker(
    participant: Participant,
    handler: ParticipantBatchHandler,
    *,
    broker: Broker,
    batch_size: int,
    report: Callable[[str, str | None], None],
) -> Worker:
    """What drives a participant's handler over the stream. `report` takes what health should know, see `Worker`."""
    return Worker(
        broker=broker,
        durable=participant.name,
        description=f"Farandole participant {participant.name}",
        filters=participant.filters,
        handler=handler,
        batch_size=batch_size,
        report=report,
        hold_until_caught_up=False,
    )


Rpcs = Callable[[Runtime], Sequence[Rpc[Any]]]


def run(participant: Participant, *, grpc_port: int, rpcs: Rpcs = lambda _runtime: ()) -> None:
    """Runs a participant until SIGTERM: consumes, publishes, and serves `rpcs` with health and its contract.

    `grpc_port` is the port where `FARANDOLE_GRPC_ADDRESS` is not set. Exits with a line that says what is wrong where
    a setting is.
    """
    run_process(
        lambda: Settings.load(participant.name, grpc_port=grpc_port),
        lambda settings: _serve(participant, settings, rpcs),
    )


async def _serve(participant: Participant, settings: Settings, rpcs: Rpcs) -> None:
    monitor = HealthMonitor(CHECKS)
    database = Database(settings.database_url, application_name=settings.service)
    tables = ParticipantTables()
    try:
        broker = Broker(settings)
        handler = ParticipantBatchHandler(participant, database, tables, batch_size=settings.batch_size)
        worker = participant_worker(
            participant, handler, broker=broker, batch_size=settings.batch_size, report=monitor.set
        )
        runtime = Runtime(database, tables, handler, worker)
        status = StatusReader(
            participant.name,
            database=database,
            tables=tables,
            handler=handler,
            problems=lambda: monitor.problems,
            refused=lambda: worker.refused,
        )
        subject = status_subject(participant.name)
        async with serve(settings.grpc_address, [_participant_rpc(participant, status), *rpcs(runtime)], monitor):
            await when_available(lambda: create_tables(participant, database), monitor)
            await work_until_stopped(
                broker=broker,
                worker=worker,
                monitor=monitor,
                check_store=database.check,
                beside=[lambda: respond(broker, subject, queue=participant.name, answer=status.answer)],
            )
    finally:
        await close_or_exit(database.close())


async def create_tables(participant: Participant, database: Database) -> None:
    """Brings the platform's tables up to date, makes the service's own where they are missing, and puts in what they
    begin with.

    Raises `StoreError` where the database does not fit this version, and `StoreUnavailableError`.
    """
    await migrate(database, PARTICIPANT)
    await database.create(participant.metadata, if_earlier=PARTICIPANT.if_older)
    if participant.seed is not None:
        await database.write_alone(participant.seed)


class _ParticipantService(ParticipantServiceServicer):
    """`choreography.v1.ParticipantService`."""

    def __init__(self, contract: participant_pb2.ParticipantContract, status: StatusReader) -> None:
        self._contract = contract
        self._status = status

    async def GetContract(  # noqa: N802 - the name in the contract
        self,
        _request: participant_service_pb2.GetContractRequest,
        _context: grpc.aio.ServicerContext[
            participant_service_pb2.GetContractRequest, participant_service_pb2.GetContractResponse
        ],
    ) -> participant_service_pb2.GetContractResponse:
        """What the participant consumes and produces."""
        return participant_service_pb2.GetContractResponse(contract=self._contract)

    async def GetStatus(  # noqa: N802 - the name in the contract
        self,
        request: participant_service_pb2.GetStatusRequest,
        _context: grpc.aio.ServicerContext[
            participant_service_pb2.GetStatusRequest, participant_service_pb2.GetStatusResponse
        ],
    ) -> participant_service_pb2.GetStatusResponse:
        """How far the participant has come. UNAVAILABLE where another process has taken over."""
        return participant_service_pb2.GetStatusResponse(status=await self._status.read(request.saga_id))


def _participant_rpc(participant: Participant, status: StatusReader) -> Rpc[_ParticipantService]:
    service = participant_service_pb2.DESCRIPTOR.services_by_name["ParticipantService"]
    servicer = _ParticipantService(participant.contract, status)
    return Rpc(service, add_ParticipantServiceServicer_to_server, servicer)
