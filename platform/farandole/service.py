"""Running a participant: its process, from settings to an orderly stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context
from datetime import datetime
from typing import Any, TypeVar

import grpc
import sqlalchemy as sa

from choreography.v1 import participant_pb2, participant_service_pb2
from choreography.v1.participant_service_pb2_grpc import (
    ParticipantServiceServicer,
    add_ParticipantServiceServicer_to_server,
)
from farandole.broker.connection import Broker
from farandole.broker.responder import Answer, replicas_subject, respond, status_subject
from farandole.clock import utc_now
from farandole.database import Database
from farandole.errors import StoreUnavailableError
from farandole.lane_keeper import LaneKeeper
from farandole.lanes import Lanes
from farandole.leases import Replica
from farandole.migrations import PARTICIPANT, migrate
from farandole.outbox import OutboxRow
from farandole.participant.participant import Participant
from farandole.participant.participant_lanes import ParticipantLanes
from farandole.participant.readings import foreseen_of, of_circuits, of_queue
from farandole.participant.status import StatusReader
from farandole.participant.tables import ParticipantTables
from farandole.participant.transaction import CommandTransaction
from farandole.partitions import partition_of
from farandole.process import CHECKS, close_or_exit, run_process, when_available, work_until_stopped
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.settings import Settings
from farandole.sql_leases import SqlLeases
from farandole.telemetry import NO_TELEMETRY, Account, Telemetry
from farandole.telemetry.readings import of_health
from farandole.telemetry.start import telemetry as telemetry_of
from farandole.worker_readings import of_lag, of_outbox

T = TypeVar("T")


class Runtime:
    """What a running participant offers to its remote procedures, whichever replica they reach."""

    def __init__(
        self,
        participant: Participant,
        database: Database,
        tables: ParticipantTables,
        lanes: ParticipantLanes,
        *,
        clock: Callable[[], datetime] = utc_now,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._participant = participant
        self._database = database
        self._tables = tables
        self._lanes = lanes
        self._clock = clock
        self._telemetry = telemetry
        self._committing: set[asyncio.Task[Any]] = set()

    async def execute(self, work: Callable[[CommandTransaction], T]) -> T:
        """Runs `work` in one write transaction; what it publishes goes out once that has committed.

        Raises what `work` raises, with nothing written, and `StoreUnavailableError`.
        """

        # a caller that gives up must not keep what it has committed from being published
        committing = asyncio.create_task(self._commit(work))
        self._committing.add(committing)
        committing.add_done_callback(self._committed)
        return await asyncio.shield(committing)

    async def _commit(self, work: Callable[[CommandTransaction], T]) -> T:
        at_work = self._lanes.at_work
        caller = copy_context()  # with the call's span, which the writer's thread knows nothing of

        def transact(connection: sa.Connection) -> tuple[T, Account, dict[int, list[OutboxRow]], set[int]]:
            account = caller.run(self._telemetry.account)
            outgoing = self._participant.outgoing(self._clock, account)
            result = work(CommandTransaction(connection, outgoing))
            rows: dict[int, list[OutboxRow]] = {}
            for row in self._tables.outbox.add(connection, outgoing.publications):
                rows.setdefault(self._lanes.lanes.of(partition_of(row.publication.key)), []).append(row)
            # whoever takes one over after this finds the rows, and whoever has before is to be told
            own = {lane for lane in rows if lane in at_work and at_work[lane].handler.is_owner(connection)}
            return result, account, rows, own

        try:
            result, account, rows, own = await self._database.write(transact)
        except StoreUnavailableError:
            for lane in self._lanes.lanes.all:  # it may have been committed all the same
                await self._lanes.tell(lane)
            raise
        account.settled()
        for lane, of_lane in rows.items():
            if lane in own:
                at_work[lane].worker.publish_rows(of_lane)
            else:
                await self._lanes.tell(lane)
        return result

    def _committed(self, task: asyncio.Task[Any]) -> None:
        self._committing.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, where there still is one

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` over what has been committed. Raises `StoreUnavailableError`."""
        return await self._database.read(work)


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
    async with telemetry_of(settings, foreseen_of(participant)) as telemetry:
        await _serve_observed(participant, settings, rpcs, telemetry)


async def _serve_observed(participant: Participant, settings: Settings, rpcs: Rpcs, telemetry: Telemetry) -> None:
    monitor = HealthMonitor(CHECKS)
    replica = Replica.begun(settings.replica)
    database = Database(settings.database_url, application_name=replica.application_name(participant.name))
    tables = ParticipantTables()
    try:
        broker = Broker(settings)
        lanes = ParticipantLanes(
            participant,
            database,
            tables,
            lanes=Lanes(settings.lanes),
            broker=broker,
            batch_size=settings.batch_size,
            telemetry=telemetry,
        )
        keeper = LaneKeeper(
            participant.name,
            lanes=lanes.lanes,
            replica=replica,
            leases=SqlLeases(database, tables.leases),
            broker=broker,
            work_of=lanes.work_of,
            report=monitor.set,
        )
        runtime = Runtime(participant, database, tables, lanes, telemetry=telemetry)
        status = StatusReader(
            participant,
            database=database,
            tables=tables,
            lanes=lanes,
            keeper=keeper,
            broker=broker,
            problems=lambda: monitor.problems,
        )
        served = [_participant_rpc(participant, status), *rpcs(runtime)]
        async with serve(settings.grpc_address, served, monitor, guard=telemetry.rpc_guard):
            await when_available(lambda: create_tables(participant, database), monitor)
            await work_until_stopped(
                broker=broker,
                work=keeper,
                monitor=monitor,
                check_store=database.check,
                beside=[
                    lanes.listen,
                    lambda: lanes.remove_left_over_consumers(keeper.joined),
                    lambda: _respond(broker, keeper, status_subject(participant.name), participant.name, status.answer),
                    lambda: _respond(broker, keeper, replicas_subject(participant.name), "", status.answer_for_itself),
                    *telemetry.beside(
                        of_health(CHECKS, lambda: monitor.problems),
                        of_lag(broker, [lanes.lanes.durable(participant.name, lane) for lane in lanes.lanes.all]),
                        of_outbox(lambda: lanes.unpublished, utc_now),
                        of_queue(database, tables.queue),
                        of_circuits(lambda: lanes.circuits),
                    ),
                ],
            )
    finally:
        await close_or_exit(database.close())


async def _respond(broker: Broker, keeper: LaneKeeper, subject: str, queue: str, answer: Answer) -> None:
    """Answers requests whenever it is this process's turn, until it is cancelled."""
    while True:
        await keeper.in_turn()
        await respond(broker, subject, queue=queue, answer=answer)


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
