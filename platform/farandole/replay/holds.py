"""What holds pruning back: everything that may still be read, or asked about, from the stream itself.

The rule is section 6 of the design: pruned is only what stands below every declared reader's position, and below the
first event of whatever is open. A participant's position is the one in *its* database, which it tells itself: its
durable consumer says what was acknowledged once, and a restored database is behind that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Any

from choreography.v1 import participant_pb2, saga_definition_pb2
from farandole.broker.connection import Broker
from farandole.broker.consumers import durable_consumers, service_of
from farandole.broker.pruned import pruned_of
from farandole.broker.stored import next_stored
from farandole.broker.streams import StreamState
from farandole.correlator.contents import reading
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.inquiry import Inquiry
from farandole.correlator.queries import RecordedSaga, StoredDefinition
from farandole.errors import InvalidArgumentError
from farandole.lanes import Lanes
from farandole.lifecycle import CORRELATOR
from farandole.nearest import did_you_mean
from farandole.replay.replaying import LiveView
from farandole.replay.trial import is_open

_MOST_OF_A_KIND = 20
"""So many sagas and dead letters are named, those that hold back most."""


@dataclass(frozen=True, slots=True)
class Hold:
    """One thing below which pruning stays."""

    what: str
    """`participant payments`, `saga order-fulfilment ord-1`, `dead letter payments-37`, `consumer audit`."""
    until: int
    """Up to here it lets events go."""
    why: str


@dataclass(slots=True)
class Holds:
    """All that holds pruning back."""

    found: list[Hold] = field(default_factory=list)
    """The tightest first."""
    open_sagas: int = 0
    open_dead_letters: int = 0
    readers: dict[str, int] = field(default_factory=dict)
    """By participant: the position that its database has, or has to come back with."""
    silent: list[str] = field(default_factory=list)
    """Participants that did not tell their position, and were not passed over."""

    @property
    def until(self) -> int:
        """Up to here everything may go."""
        return min(hold.until for hold in self.found)


@dataclass(frozen=True, slots=True)
class _Consumer:
    """A durable consumer, as the broker tells."""

    name: str
    service: str | None
    """Whose it is: a participant's, or the correlator's; None where another program made it."""
    filters: Sequence[str]
    acknowledged: int
    """Everything that it was to get up to here was acknowledged."""
    is_done: bool
    """Whether there is nothing that it has yet to get or to acknowledge."""


async def find_holds(broker: Broker, live: LiveView, *, inquiry: Inquiry, without: Collection[str]) -> Holds:
    """What holds pruning back now; `without` names the participants that need not answer.

    Raises `InvalidArgumentError` where it names one that nobody knows, and what the broker does.
    """
    state = live.state  # older than what consumers and participants tell now: what came since is not let go
    holds = Holds()
    holds.found.append(Hold(CORRELATOR, live.first_position, "has folded so far"))
    by_participant: dict[str, list[_Consumer]] = {
        name: [] for name in _hold_records(holds, live) | _asked_before(state)
    }
    for consumer in map(_consumer, await durable_consumers(broker)):
        if consumer.service is None:
            until = state.last_sequence if consumer.is_done else consumer.acknowledged
            holds.found.append(Hold(f"consumer {consumer.name}", until, "nobody else knows how far its reader is"))
        elif consumer.service != CORRELATOR:
            by_participant.setdefault(consumer.service, []).append(consumer)
    if unknown := sorted(set(without) - by_participant.keys()):
        raise InvalidArgumentError("--without", _unknown(unknown[0], by_participant))
    standings = await inquiry.ask(by_participant, "")
    for name, own in sorted(by_participant.items()):
        status = standings[name].status
        if status is not None:
            holds.readers[name] = status.position
            holds.found.append(await _participant_hold(broker, status, own, state))
        elif name in without:
            holds.readers[name] = _last_known(own, state)
        else:
            holds.silent.append(name)
    holds.found.sort(key=lambda hold: (hold.until, hold.what))
    return holds


def _unknown(name: str, participants: Collection[str]) -> str:
    known = ", ".join(sorted(participants)) or "none"
    return f"{name} is no participant; those that are known are {known}{did_you_mean(name, participants)}"


def _asked_before(state: StreamState) -> set[str]:
    """The participants that were there when the stream was pruned last: a consumer that was removed, or was not there
    again after a restore, is no sign that nobody reads any more."""
    pruned = pruned_of(state)
    return set(pruned.readers) - {CORRELATOR} if pruned else set()


def _last_known(consumers: Sequence[_Consumer], state: StreamState) -> int:
    """The position that a participant which does not answer has to come back with, as far as its consumers tell: what
    they have not given to it, it will never read."""
    if not consumers or not all(consumer.is_done for consumer in consumers):
        return state.last_sequence
    return min((consumer.acknowledged for consumer in consumers if consumer.acknowledged), default=0)


async def _participant_hold(
    broker: Broker, status: participant_pb2.ParticipantStatus, consumers: Sequence[_Consumer], state: StreamState
) -> Hold:
    """A participant's position moves with the events that it reads: up to the next such one it needs nothing.

    What it reads its lanes' consumers tell. Where one is not there, as between two owners of a lane, nobody knows. The
    position is the lowest of its lanes: that is what it may come back with, as the mark has it.
    """
    what, position, lanes = f"participant {status.participant}", status.position, Lanes(status.lanes or 1)
    durables = {lanes.durable(status.participant, lane) for lane in lanes.all}
    if not durables <= {consumer.name for consumer in consumers}:
        return Hold(what, position, "has read so far")
    filters = {subject for consumer in consumers for subject in consumer.filters}
    behind = [await next_stored(broker, subject, position) for subject in sorted(filters)]
    following = min((sequence for sequence in behind if sequence is not None), default=None)
    if following is None:
        return Hold(what, state.last_sequence, f"has read up to {position}; nothing is left for it")
    return Hold(what, min(following - 1, state.last_sequence), f"has read up to {position}")


def _hold_records(holds: Holds, live: LiveView) -> set[str]:
    """Holds for what is open; returns the participants of active definitions.

    What waits for an initiating event that never came holds nothing: its record has all that it will ever be folded
    from, and a stray event must not keep a stream for ever.
    """
    active: set[str] = set()
    sagas: list[Hold] = []
    letters: list[Hold] = []
    for item in reading(live.contents):
        match item:
            case StoredDefinition() if item.is_active:
                message = saga_definition_pb2.SagaDefinition.FromString(item.message)
                active |= {step.participant for step in message.steps}
            case RecordedSaga() if is_open(item.saga):
                holds.open_sagas += 1
                sagas.append(_saga_hold(item))
            case DeadLetter() if item.state is DeadLetterState.OPEN:
                holds.open_dead_letters += 1
                letters.append(Hold(f"dead letter {item.id}", item.sequence - 1, "is open"))
        if len(sagas) > 2 * _MOST_OF_A_KIND:
            sagas = _tightest(sagas)
        if len(letters) > 2 * _MOST_OF_A_KIND:
            letters = _tightest(letters)
    holds.found += _tightest(sagas) + _tightest(letters)
    return active


def _saga_hold(recorded: RecordedSaga) -> Hold:
    saga = recorded.saga
    first = saga.history[0].fact
    why = f"is {saga.status.name} since {first.stream_time.isoformat(sep=' ', timespec='seconds')}"
    return Hold(f"saga {saga.definition} {saga.key}", first.sequence - 1, why)


def _tightest(holds: Iterable[Hold]) -> list[Hold]:
    return nsmallest(_MOST_OF_A_KIND, holds, key=lambda hold: hold.until)


def _consumer(info: Mapping[str, Any]) -> _Consumer:
    config = info["config"]
    filters = config.get("filter_subjects") or [config.get("filter_subject") or "events.>"]
    acknowledges = config.get("ack_policy") != "none"
    place = info.get("ack_floor" if acknowledges else "delivered") or {}
    return _Consumer(
        name=info["name"],
        service=service_of(info["name"], config.get("description") or ""),
        filters=filters,
        acknowledged=place.get("stream_seq", 0),
        is_done=not info.get("num_pending", 0) and not (acknowledges and info.get("num_ack_pending", 0)),
    )
