"""How far a participant has come, and what of a saga it has not finished: what it tells whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa
from google.protobuf.message import DecodeError

from choreography.v1 import participant_pb2, participant_service_pb2
from farandole.broker.relay import Refused
from farandole.database import Database
from farandole.errors import InvalidArgumentError, QueryError, StoreUnavailableError
from farandole.participant.circuits import Circuit
from farandole.participant.handler import ParticipantBatchHandler, utc_now
from farandole.participant.queue_table import QueueEntry, QueueState
from farandole.participant.tables import ParticipantTables
from farandole.rpc.validation import violations_of

MOST_QUEUED_EVENTS = 100
"""Of one saga in one answer. The first of them is what holds the others up."""
MOST_REFUSED = 100
"""Publications in one answer, those refused for longest."""


class StatusReader:
    """Reads a participant's status from its own database and health."""

    def __init__(
        self,
        participant: str,
        *,
        database: Database,
        tables: ParticipantTables,
        handler: ParticipantBatchHandler,
        problems: Callable[[], Mapping[str, str]],
        refused: Callable[[], Sequence[Refused]] = tuple,
    ) -> None:
        """`problems` gives what is wrong with the process now, by check, as `HealthMonitor.problems` does; `refused`
        the outbox rows that the broker refuses, as `Worker.refused` does."""
        self._participant = participant
        self._database = database
        self._tables = tables
        self._handler = handler
        self._problems = problems
        self._refused = refused

    async def read(self, saga_id: str) -> participant_pb2.ParticipantStatus:
        """The status, with what is in the queue of one saga; of none where `saga_id` is empty.

        Raises `FencedError` where another process has taken over this participant: it is the one to ask. While the
        database can't be read that is one of the problems, and the queue is left out.
        """
        # before the queue: an event taken in between is then in the queue and behind the position, never in neither
        position = self._handler.position
        try:
            queued, dead, queue = await self._database.read(lambda connection: self._queue(connection, saga_id))
        except StoreUnavailableError as error:
            queued, dead, queue = 0, 0, []
            problems = {"store": str(error), **self._problems()}
        else:
            problems = dict(self._problems())
        return participant_pb2.ParticipantStatus(
            participant=self._participant,
            position=position,
            problems=[f"{check}: {problem}" for check, problem in sorted(problems.items())],
            queued_events=queued,
            dead_letters=dead,
            queue=queue,
            circuits=[_circuit(circuit, waiting) for circuit, waiting in self._handler.circuits.items()],
            refused=[_refused_publication(refused, utc_now()) for refused in self._refused()[:MOST_REFUSED]],
        )

    async def answer(self, request: bytes) -> bytes:
        """A serialized `GetStatusResponse` to a serialized `GetStatusRequest`.

        Raises `QueryError` where the request is none, and `FencedError` as `read` does.
        """
        try:
            asked = participant_service_pb2.GetStatusRequest.FromString(request)
        except DecodeError:
            raise QueryError("the body is no choreography.v1.GetStatusRequest") from None
        for violation in violations_of(asked):
            raise InvalidArgumentError(violation.field, violation.description)
        status = await self.read(asked.saga_id)
        return participant_service_pb2.GetStatusResponse(status=status).SerializeToString()

    def _queue(self, connection: sa.Connection, saga_id: str) -> tuple[int, int, Sequence[participant_pb2.QueuedEvent]]:
        self._handler.check_owner(connection)
        queued, dead = self._tables.queue.counts(connection)
        entries = self._tables.queue.of(connection, [saga_id], MOST_QUEUED_EVENTS) if saga_id and queued else []
        queue = [queued_event(entry, is_first=number == 0) for number, entry in enumerate(entries)]
        if saga_id:
            queue += self._handler.early(connection, saga_id)
        return queued, dead, sorted(queue, key=lambda event: event.sequence)


def _refused_publication(refused: Refused, now: datetime) -> participant_pb2.RefusedPublication:
    publication = participant_pb2.RefusedPublication(saga_id=refused.key, subject=refused.subject, error=refused.error)
    publication.refuse_time.FromDatetime(now - timedelta(seconds=refused.seconds))
    return publication


def _circuit(circuit: Circuit, waiting: int) -> participant_pb2.Circuit:
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
