"""How far a participant has come, and what of a saga it has not finished: what it tells whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from choreography.v1 import participant_pb2, participant_service_pb2
from farandole.broker.asking import ask_all
from farandole.broker.connection import Broker
from farandole.broker.relay import Refused
from farandole.broker.responder import replicas_subject
from farandole.clock import utc_now
from farandole.database import Database
from farandole.errors import InvalidArgumentError, QueryError, StoreUnavailableError
from farandole.lane_keeper import LaneKeeper
from farandole.participant.circuits import Circuit
from farandole.participant.participant import Participant
from farandole.participant.participant_lanes import ParticipantLanes
from farandole.participant.prerequisites import early_events
from farandole.participant.queue_table import QueueEntry, QueueState
from farandole.participant.tables import ParticipantTables
from farandole.partitions import PARTITIONS, partition_of
from farandole.rpc.validation import violations_of

MOST_QUEUED_EVENTS = 100
"""Of one saga in one answer. The first of them is what holds the others up."""
MOST_REFUSED = 100
"""Publications in one answer, those refused for longest."""
_ANSWER_SECONDS = 0.25
"""How long the other replicas have to answer: whoever asks does not wait long either."""


class StatusReader:
    """Reads a participant's status from its database, and from what each of its replicas knows alone."""

    def __init__(
        self,
        participant: Participant,
        *,
        database: Database,
        tables: ParticipantTables,
        lanes: ParticipantLanes,
        keeper: LaneKeeper,
        broker: Broker,
        problems: Callable[[], Mapping[str, str]],
    ) -> None:
        """`problems` gives what is wrong with this process now, by check, as `HealthMonitor.problems` does."""
        self._participant = participant
        self._database = database
        self._tables = tables
        self._lanes = lanes
        self._keeper = keeper
        self._broker = broker
        self._problems = problems

    async def read(self, saga_id: str) -> participant_pb2.ParticipantStatus:
        """The status, with what is in the queue of one saga; of none where `saga_id` is empty.

        Raises `FencedError` where another process has taken this one's place: it is the one to ask. While the database
        can't be read that is one of the problems, and what it holds is left out. So is what a replica knows that does
        not answer.
        """
        self._keeper.check_turn()
        others = [name for name in self._keeper.replicas if name != self._keeper.replica]
        asking = asyncio.create_task(self._ask(others)) if others else None
        try:
            status = await self._database.read(
                lambda connection: stored_status(connection, self._participant, self._tables, saga_id)
            )
        except StoreUnavailableError as error:
            status = participant_pb2.ParticipantStatus(
                participant=self._participant.name, position=self._position_in_memory(saga_id)
            )
            store_problem = f"store: {error}"
        else:
            store_problem = ""
        own = self._own(store_problem)
        parts = [own, *(await asking if asking is not None else ())]
        status.lanes = self._lanes.lanes.count
        for part in sorted(parts, key=lambda part: part.replicas[0].replica):
            name = part.replicas[0].replica
            told = part.problems if not others else [f"replica {name}: {problem}" for problem in part.problems]
            status.problems.extend(told)
            status.circuits.extend(part.circuits)
            status.refused.extend(part.refused)
            status.replicas.extend(part.replicas)
        _unite(status)
        return status

    async def answer(self, request: bytes) -> bytes:
        """A serialized `GetStatusResponse` to a serialized `GetStatusRequest`.

        Raises `QueryError` where the request is none, and `FencedError` as `read` does.
        """
        return _response(await self.read(_asked(request).saga_id))

    async def answer_for_itself(self, request: bytes) -> bytes:
        """Like `answer`, with what this replica knows alone."""
        _asked(request)
        self._keeper.check_turn()
        return _response(self._own())

    def _own(self, problem: str = "") -> participant_pb2.ParticipantStatus:
        """What this replica knows alone; `problem` is one that it has just come to know."""
        problems = {f"{check}: {told}" for check, told in self._problems().items()}
        if problem and "store" not in self._problems():
            problems.add(problem)
        replica = participant_pb2.ReplicaStatus(replica=self._keeper.replica, lanes=sorted(self._lanes.at_work))
        return participant_pb2.ParticipantStatus(
            participant=self._participant.name,
            problems=sorted(problems),
            circuits=[circuit_status(circuit, waiting) for circuit, waiting in self._lanes.circuits.items()],
            refused=[_refused_publication(refused, utc_now()) for refused in self._lanes.refused[:MOST_REFUSED]],
            replicas=[replica],
        )

    async def _ask(self, others: Sequence[str]) -> list[participant_pb2.ParticipantStatus]:
        """What each of the other replicas knows alone. Who does not answer in time is told of as silent."""

        def parts(answers: Sequence[bytes]) -> dict[str, participant_pb2.ParticipantStatus]:
            told = [participant_service_pb2.GetStatusResponse.FromString(answer).status for answer in answers]
            return {part.replicas[0].replica: part for part in told if part.replicas}

        answers = await ask_all(
            self._broker,
            replicas_subject(self._participant.name),
            b"",
            is_enough=lambda answers: parts(answers).keys() >= set(others),
            seconds=_ANSWER_SECONDS,
        )
        found = parts(answers)
        return [found.get(name) or _silent(name) for name in others]

    def _position_in_memory(self, saga_id: str) -> int:
        """The position where the database can't be read: as far as this replica knows, 0 where it does not."""
        at_work = self._lanes.at_work
        wanted = [self._lanes.lanes.of(partition_of(saga_id))] if saga_id else self._lanes.lanes.all
        return min(at_work[lane].handler.position if lane in at_work else 0 for lane in wanted)


def stored_status(
    connection: sa.Connection, participant: Participant, tables: ParticipantTables, saga_id: str
) -> participant_pb2.ParticipantStatus:
    """What of a participant's status is in its database, as at one moment."""
    position = tables.positions.lowest(connection, [partition_of(saga_id)] if saga_id else range(PARTITIONS))
    queued, dead = tables.queue.counts(connection)
    entries = tables.queue.of(connection, [saga_id], MOST_QUEUED_EVENTS) if saga_id and queued else []
    queue = [queued_event(entry, is_first=number == 0) for number, entry in enumerate(entries)]
    if saga_id:
        queue += early_events(participant.steps, tables.prerequisites.waiting(connection, [saga_id]))
    return participant_pb2.ParticipantStatus(
        participant=participant.name,
        position=position,
        queued_events=queued,
        dead_letters=dead,
        queue=sorted(queue, key=lambda event: event.sequence),
    )


def _asked(request: bytes) -> participant_service_pb2.GetStatusRequest:
    try:
        asked = participant_service_pb2.GetStatusRequest.FromString(request)
    except DecodeError:
        raise QueryError("the body is no choreography.v1.GetStatusRequest") from None
    for violation in violations_of(asked):
        raise InvalidArgumentError(violation.field, violation.description)
    return asked


def _response(status: participant_pb2.ParticipantStatus) -> bytes:
    return participant_service_pb2.GetStatusResponse(status=status).SerializeToString()


def _silent(replica: str) -> participant_pb2.ParticipantStatus:
    return participant_pb2.ParticipantStatus(
        problems=["does not answer"], replicas=[participant_pb2.ReplicaStatus(replica=replica, silent=True)]
    )


def _unite(status: participant_pb2.ParticipantStatus) -> None:
    """Makes one of the circuits of each dependency, which every lane finds down by itself, and keeps the refused
    publications that have been so for longest."""
    circuits: dict[str, participant_pb2.Circuit] = {}
    for circuit in sorted(status.circuits, key=lambda circuit: circuit.open_time.ToNanoseconds()):
        first = circuits.setdefault(circuit.dependency, circuit)
        if first is not circuit:
            first.waiting_sagas += circuit.waiting_sagas
            if circuit.next_probe_time.ToNanoseconds() < first.next_probe_time.ToNanoseconds():
                first.next_probe_time.CopyFrom(circuit.next_probe_time)
    refused = sorted(status.refused, key=lambda refused: refused.refuse_time.ToNanoseconds())[:MOST_REFUSED]
    del status.circuits[:], status.refused[:]
    status.circuits.extend(circuits.values())
    status.refused.extend(refused)


def _refused_publication(refused: Refused, now: datetime) -> participant_pb2.RefusedPublication:
    publication = participant_pb2.RefusedPublication(saga_id=refused.key, subject=refused.subject, error=refused.error)
    publication.refuse_time.FromDatetime(now - timedelta(seconds=refused.seconds))
    return publication


def circuit_status(circuit: Circuit, waiting: int) -> participant_pb2.Circuit:
    """What is down, and how many sagas wait for it."""
    message = participant_pb2.Circuit(dependency=circuit.dependency, error=circuit.error, waiting_sagas=waiting)
    message.open_time.FromDatetime(circuit.opened)
    message.next_probe_time.FromDatetime(circuit.next_probe)
    return message


def queued_event(entry: QueueEntry, *, is_first: bool) -> participant_pb2.QueuedEvent:
    """One event in a saga's queue; the first one holds up those behind it.

    When one is tried next that waits for a dependency, its circuit tells.
    """
    event = participant_pb2.QueuedEvent(
        sequence=entry.message.sequence,
        event_type=entry.message.type,
        attempts=entry.attempts,
        error=entry.error,
        dependency=entry.dependency,
        state=entry.state.value,  # type: ignore[arg-type]  # the numbers are the same, see queue_table
    )
    if entry.state in _WAIT_FOR_THE_FIRST:
        event.state = (
            participant_pb2.QUEUED_EVENT_STATE_RETRYING if is_first else participant_pb2.QUEUED_EVENT_STATE_WAITING
        )
    if event.state in _TRIED_BY_TIME:
        event.next_attempt_time.FromDatetime(entry.due)
    return event


_WAIT_FOR_THE_FIRST = (QueueState.RETRYING, QueueState.WAITING)
"""Which of the two it is depends on the event's place."""
_TRIED_BY_TIME = (
    participant_pb2.QUEUED_EVENT_STATE_RETRYING,
    participant_pb2.QUEUED_EVENT_STATE_SNOOZED,
    participant_pb2.QUEUED_EVENT_STATE_UNREADABLE,
)
