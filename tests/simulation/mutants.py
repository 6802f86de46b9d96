"""Farandole with one of its safeguards turned off, for a while and in this process only.

Each mutant is a context: within it the code does without one mechanism, as if nobody had thought of it, and is itself
again afterwards. Production code has no such switches; these reach into it from outside.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from choreography.v1 import lifecycle_pb2
from farandole.broker.connection import Broker
from farandole.broker.delivery_order import DeliveryOrder
from farandole.broker.relay import OutboxRelay
from farandole.correlator import handler as correlator_handler
from farandole.correlator.deadlines_watch import ASK_SECONDS, DeadlinesWatch
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.lifecycle_messages import lifecycle_publication
from farandole.correlator.memory_store import MemoryCorrelatorStore, _Position
from farandole.correlator.store import Claim, Committed, FoldedBatch
from farandole.correlator.time_outs import Races, TimeOut
from farandole.envelope import Event, Publication, StoredMessage
from farandole.errors import BrokerError
from farandole.outbox import Outbox, OutboxRow
from farandole.participant import intake
from farandole.participant.barrier import Barrier, BarrierState, Move, undo_move
from farandole.participant.crashes import Crashes
from farandole.participant.handler import ParticipantBatchHandler
from farandole.participant.intake import Intake
from farandole.participant.participant import Reaction
from farandole.participant.position_table import Claim as ParticipantClaim
from farandole.participant.position_table import PositionTable
from farandole.participant.prerequisites import PrerequisiteTable
from farandole.participant.tables import InboxEntry, ParticipantTables
from farandole.participant.unfinished import Unfinished
from farandole.saga import Disposition
from farandole.worker import Handled, Worker

Mutant = Callable[[], AbstractContextManager[None]]


@contextmanager
def _replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Has other attributes in these places: each an object, a name that it has, and what stands there meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in replacements:
            patch.setattr(where, name, value)
        yield


# the participant


@contextmanager
def no_inbox() -> Iterator[None]:
    """The inbox is written, and nobody looks into it: an event that comes again is a new one."""

    def add(self: ParticipantTables, connection: sa.Connection, entries: Sequence[InboxEntry]) -> None:
        for entry in entries:
            row = {"identity": entry.identity, "sequence": entry.sequence, "disposition": int(entry.disposition)}
            connection.execute(sa.insert(self._inbox).prefix_with("OR REPLACE"), row)

    with _replaced(
        (ParticipantTables, "handled", lambda *_arguments: set()),
        (Intake, "knows", lambda *_arguments: False),
        (ParticipantTables, "add_inbox", add),
    ):
        yield


@contextmanager
def no_barrier() -> Iterator[None]:
    """Whatever triggers a step or its undoing has it run."""

    def forward(barrier: Barrier | None, digest: bytes) -> tuple[Move, Disposition]:
        return Move.RUN, Disposition.APPLIED

    def undo(barrier: Barrier | None, *, has_handler: bool, is_irrevocable: bool) -> tuple[Move, Disposition]:
        return (Move.RUN, Disposition.APPLIED) if has_handler else (Move.NOTHING, Disposition.UNMATCHED)

    with _replaced((intake, "forward_move", forward), (intake, "undo_move", undo)):
        yield


@contextmanager
def undoing_repeated() -> Iterator[None]:
    """What was undone is undone again by the next event that undoes it."""
    real = undo_move

    def undo(barrier: Barrier | None, *, has_handler: bool, is_irrevocable: bool) -> tuple[Move, Disposition]:
        if barrier is not None and barrier.state is BarrierState.UNDONE and has_handler:
            return Move.RUN, Disposition.APPLIED
        return real(barrier, has_handler=has_handler, is_irrevocable=is_irrevocable)

    with _replaced((intake, "undo_move", undo)):
        yield


@contextmanager
def not_voided() -> Iterator[None]:
    """An undoing that comes before its step leaves nothing that keeps the step from running later."""
    real = undo_move

    def undo(barrier: Barrier | None, *, has_handler: bool, is_irrevocable: bool) -> tuple[Move, Disposition]:
        if barrier is None:
            return Move.NOTHING, Disposition.UNMATCHED
        return real(barrier, has_handler=has_handler, is_irrevocable=is_irrevocable)

    with _replaced((intake, "undo_move", undo)):
        yield


@contextmanager
def voided_in_silence() -> Iterator[None]:
    """A step that is voided is not told of: no `StepVoided`."""
    real = Intake._emit

    def emit(self: Intake, event: Event, reaction: Reaction, outcome: Sequence[Any]) -> list[str]:
        told = [one for one in outcome if not isinstance(one, lifecycle_pb2.StepVoided)]
        return real(self, event, reaction, told)

    with _replaced((Intake, "_emit", emit)):
        yield


@contextmanager
def hasty_act() -> Iterator[None]:
    """What can't be undone is done although a time-out came first."""

    def confirm(barrier: Barrier | None, event_id: str) -> tuple[Move, Disposition]:
        is_confirmed = barrier is None or barrier.state is BarrierState.CONFIRMED
        return (Move.NOTHING, Disposition.DUPLICATE) if is_confirmed else (Move.RUN, Disposition.APPLIED)

    with _replaced((intake, "confirm_move", confirm)):
        yield


@contextmanager
def no_fence_of_participants() -> Iterator[None]:
    """Whoever has been displaced writes on: epoch and position are compared with nothing."""

    def move(
        self: PositionTable,
        connection: sa.Connection,
        claim: ParticipantClaim,
        *,
        old: int,
        new: int,
        time: datetime | None = None,
    ) -> None:
        own = self._table.c.partition.in_(list(claim.taken_in))
        connection.execute(sa.update(self._table).where(own).values(position=new))

    with _replaced((PositionTable, "move", move), (PositionTable, "check_owner", lambda *_arguments, **_named: None)):
        yield


@contextmanager
def nobody_looks_for_rows_of_others() -> Iterator[None]:
    """What a remote procedure has written that reached a replica without the saga's lane is told to nobody, and nobody
    looks for it."""

    async def wait_for_ever(_worker: Worker) -> None:
        await asyncio.get_running_loop().create_future()

    with _replaced((Worker, "_look_into_outbox", wait_for_ever)):
        yield


@contextmanager
def time_outs_not_heard_first() -> Iterator[None]:
    """After a stop steps begin, whatever time-outs the stream holds behind them."""

    async def hear(self: ParticipantBatchHandler, pages: AsyncIterator[Sequence[StoredMessage]]) -> Handled:
        return Handled()

    with _replaced((ParticipantBatchHandler, "hear", hear)):
        yield


@contextmanager
def prerequisites_in_memory() -> Iterator[None]:
    """What waits for the other events of its step is known to the process that took it in, and to no other."""
    kept: dict[tuple[int, Any], Any] = {}
    owner = 0
    real = ParticipantBatchHandler._begin

    def begin(self: ParticipantBatchHandler, *arguments: Any, **named: Any) -> Any:
        nonlocal owner
        owner = id(self)
        return real(self, *arguments, **named)

    def waiting(self: PrerequisiteTable, connection: sa.Connection, keys: Collection[str]) -> dict[Any, Any]:
        return {place: found for (of, place), found in kept.items() if of == owner and place[1] in keys}

    def save(
        self: PrerequisiteTable, connection: sa.Connection, before: Mapping[Any, Any], after: Mapping[Any, Any]
    ) -> None:
        for place, found in after.items():
            kept[owner, place] = found

    with _replaced(
        (ParticipantBatchHandler, "_begin", begin),
        (PrerequisiteTable, "waiting", waiting),
        (PrerequisiteTable, "save", save),
    ):
        yield


@contextmanager
def crashes_counted_afterwards() -> Iterator[None]:
    """An event is counted in the transaction that runs it, and no sooner."""

    def check(self: Crashes, sequence: int, key: str, *, doubtful: bool) -> None:
        if doubtful:
            self._counts[sequence] = self.next_count(sequence)

    with _replaced((Crashes, "check", check)):
        yield


@contextmanager
def later_events_do_not_wait() -> Iterator[None]:
    """Where a handler has raised, the saga's later events are dealt with at once."""
    with _replaced((Unfinished, "holds", lambda *_arguments: False)):
        yield


# the outbox


@contextmanager
def published_before_commit() -> Iterator[None]:
    """What a transaction is going to publish is published first; then the transaction is committed."""
    real_init, real_settle = Worker.__init__, ParticipantBatchHandler._settle

    def init(self: Worker, **named: Any) -> None:
        real_init(self, **named)
        named["handler"].mutant_publisher = self._publisher

    class _RolledBackError(Exception):
        pass

    async def settle(self: ParticipantBatchHandler, work: Callable[[sa.Connection], Any]) -> list[OutboxRow]:
        found: list[OutboxRow] = []

        def rehearse(connection: sa.Connection) -> None:
            found[:] = work(connection).rows
            raise _RolledBackError

        try:
            await self._database.write(rehearse)
        except _RolledBackError:
            for row in found:
                try:
                    await self.mutant_publisher.publish(row.publication)  # type: ignore[attr-defined]
                except BrokerError:
                    break
        return await real_settle(self, work)

    with _replaced((Worker, "__init__", init), (ParticipantBatchHandler, "_settle", settle)):
        yield


@contextmanager
def no_outbox() -> Iterator[None]:
    """What is to be published is in the memory of its process only, from the commit to the acknowledgement."""
    numbers = iter(range(1, 1_000_000_000))

    def add(self: Outbox, connection: sa.Connection, publications: Sequence[Publication]) -> list[OutboxRow]:
        return [OutboxRow(next(numbers), publication) for publication in publications]

    with _replaced((Outbox, "add", add)):
        yield


@contextmanager
def publications_overtake() -> Iterator[None]:
    """An event is published although an earlier one of its saga has not been acknowledged."""
    real = OutboxRelay.add

    def add(self: OutboxRelay, rows: Sequence[OutboxRow]) -> asyncio.Future[None]:
        return real(self, [replace(row, publication=_alone(row)) for row in rows])

    with _replaced((OutboxRelay, "add", add)):
        yield


def _alone(row: OutboxRow) -> Publication:
    """The row's publication as one that has no others before it."""
    return replace(row.publication, key=f"{row.publication.key}-{row.id}")


# the correlator


@contextmanager
def no_outbox_of_the_correlator() -> Iterator[None]:
    """What the correlator is to publish is in its memory only."""

    async def kept(self: MemoryCorrelatorStore, claim: Claim, batch: FoldedBatch) -> Committed:
        committed = await real(self, claim, batch)
        self._outbox.clear()
        return committed

    real = MemoryCorrelatorStore.commit
    with _replaced((MemoryCorrelatorStore, "commit", kept)):
        yield


@contextmanager
def time_outs_of_any_id() -> Iterator[None]:
    """A time-out that is attempted again is another event."""
    real = lifecycle_publication

    def publication(*arguments: Any, **named: Any) -> Publication:
        made = real(*arguments, **named)
        drawn = str(uuid.uuid4())
        return replace(made, headers={**made.headers, "ce-id": drawn, "Nats-Msg-Id": drawn})

    with _replaced((correlator_handler, "lifecycle_publication", publication)):
        yield


@contextmanager
def no_fence_of_the_correlator() -> Iterator[None]:
    """A correlator that has been displaced commits all the same."""
    real = MemoryCorrelatorStore.commit

    async def commit(self: MemoryCorrelatorStore, claim: Any, batch: Any) -> Any:
        self._positions |= dict.fromkeys(
            claim.partitions, _Position(claim.epoch, claim.position, claim.incarnation, claim.time)
        )
        return await real(self, claim, batch)

    with _replaced(
        (MemoryCorrelatorStore, "commit", commit), (MemoryCorrelatorStore, "_refuse_stale", lambda *_arguments: None)
    ):
        yield


class _LocalClockWatch(DeadlinesWatch):
    """Deadlines pass when the clock of this machine says so, and nobody asks the stream."""

    def __init__(self, monotonic: Callable[[], float], clock: Callable[[], datetime]) -> None:
        super().__init__(monotonic)
        self._local = clock
        self._looked: dict[int, float] = {}

    def ask(self) -> dict[int, str]:
        return {}

    def take_answers(self) -> dict[int, datetime]:
        now = self._local()
        passed = [partition for partition in self._deadlines if self._wait(partition) <= 0]
        self._looked |= dict.fromkeys(passed, self._monotonic())
        return dict.fromkeys(passed, now)

    def due_in(self) -> float | None:
        waits = [self._wait(partition) for partition in self._deadlines]
        if self._is_outdated:
            waits.append(self._refresh_in())
        return max(min(waits), 0.0) if waits else None

    def _wait(self, partition: int) -> float:
        until = (self._deadlines[partition] - self._local()).total_seconds()
        return max(until, self._looked.get(partition, -ASK_SECONDS) + ASK_SECONDS - self._monotonic())


@contextmanager
def no_tick() -> Iterator[None]:
    """The correlator goes by its own clock."""
    real = CorrelatorBatchHandler.__init__

    def init(self: CorrelatorBatchHandler, **named: Any) -> None:
        real(self, **named)
        self._watch = _LocalClockWatch(self._monotonic, self._clock)

    with _replaced((CorrelatorBatchHandler, "__init__", init)):
        yield


@contextmanager
def no_compare_and_set_of_time_outs() -> Iterator[None]:
    """A time-out is stored whatever commit event came before it."""

    async def unguarded(time_outs: Sequence[TimeOut], **_given: Any) -> list[Publication]:
        return [time_out.publication for time_out in time_outs]

    with _replaced(
        (correlator_handler, "guarded", unguarded),
        (Races, "attempt", lambda *_arguments: None),
    ):
        yield


# reading


class _AnyOrder(DeliveryOrder):
    def admits(self, stream_sequence: int, consumer_sequence: int) -> bool:
        self.last = stream_sequence
        return True


@contextmanager
def no_order_on_takeover() -> Iterator[None]:
    """Whoever takes over reads what the consumer delivers, from where it stands: nobody sets it back, and gaps and
    what came before are taken as they come."""
    real = Broker.request

    async def request(self: Broker, subject: str, *arguments: Any, **named: Any) -> Any:
        if subject.startswith(("$JS.API.CONSUMER.RESET.", "$JS.API.CONSUMER.DELETE.")):
            return {}
        return await real(self, subject, *arguments, **named)

    with _replaced(
        (Broker, "request", request),
        (DeliveryOrder, "admits", _AnyOrder.admits),
    ):
        yield


@contextmanager
def gaps_admitted() -> Iterator[None]:
    """What is missing between two deliveries is not noticed."""

    def admits(self: DeliveryOrder, stream_sequence: int, consumer_sequence: int) -> bool:
        if self.is_lost or stream_sequence <= self.last:
            return False
        self.last = stream_sequence
        return True

    with _replaced((DeliveryOrder, "admits", admits)):
        yield


@contextmanager
def lost_connections_unnoticed() -> Iterator[None]:
    """After a lost connection a reader goes on with what comes next, from wherever the consumer stands."""
    real = Broker.request

    async def request(self: Broker, subject: str, *arguments: Any, **named: Any) -> Any:
        if subject.startswith("$JS.API.CONSUMER.RESET."):
            return {}
        return await real(self, subject, *arguments, **named)

    def admits(self: DeliveryOrder, stream_sequence: int, consumer_sequence: int) -> bool:
        if stream_sequence <= self.last:
            return False
        self.last = stream_sequence
        return True

    with _replaced((Broker, "request", request), (DeliveryOrder, "admits", admits)):
        yield
