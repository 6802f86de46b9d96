"""Where something that a saga waits for is held up, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from choreography.v1 import participant_pb2
from farandole.correlator.awaited import Awaited, Wait, applied
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.wording import at, count, named, sentence
from farandole.lanes import Lanes
from farandole.lifecycle import DEAD_LETTER_DISCARDED
from farandole.partitions import partition_of
from farandole.saga import Saga


@dataclass(frozen=True, slots=True)
class Consumer:
    """A participant's durable consumer, that of the saga's lane, as the broker tells."""

    lag: int
    """How many events for it the stream holds that it has not acknowledged."""
    acknowledged: int
    """The sequence up to which it has acknowledged; 0 for nothing yet."""
    acknowledged_time: datetime | None
    """When it last acknowledged; None where it never has, or where the consumer was made anew since."""
    is_read: bool
    """Whether a process waits for its next events."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a participant stands, as far as could be learnt just now."""

    consumer: Consumer | None = None
    """None where it has none: it has never run."""
    status: participant_pb2.ParticipantStatus | None = None
    """What it answered; None where it did not."""
    trouble: str = ""
    """Why nothing could be learnt; the others then mean nothing."""


ASK_THE_OPERATOR = "Remove its cause; then have it redriven, or discarded to go on without it."


def detail_of(one: Awaited, saga: Saga, standing: Standing, holding: Sequence[DeadLetter]) -> str:
    """What is awaited and where it is held up; `holding` are the saga's open dead letters of participants."""
    if one.wait is Wait.TRIGGER:
        return _what(one)
    return f"{_what(one)} {_where(one, saga, standing, holding)}"


def _what(one: Awaited) -> str:
    name, participant = one.step.name, one.step.participant
    if one.wait is Wait.TRIGGER:
        completion, *triggers = one.event_types
        come = f"none of {', '.join(triggers)} has come" if triggers else "only a time-out of the saga triggers that"
        return (
            f"{name} of {participant} is to be undone, but {come}, and nothing that is under way leads to it. Undo it "
            f"by hand, and publish {completion}."
        )
    if one.wait is Wait.LAST_WORD:
        return f"{participant} has not said yet what became of {name}, which had not ended when the saga was timed out."
    what = f"undo {name}" if one.is_compensation else f"carry out {name}"
    since = f" since {at(one.trigger.stream_time)}" if one.trigger is not None else ""
    due = f"; that {'was' if one.is_overdue else 'is'} due {at(one.deadline)}" if one.deadline is not None else ""
    return f"It waits{since} for {participant} to {what}{due}."


def _where(one: Awaited, saga: Saga, standing: Standing, holding: Sequence[DeadLetter]) -> str:
    """Where it is held up, and what to do about it."""
    participant = one.step.participant
    letter = _holding(one, holding)
    if letter is not None:
        stopped = "" if standing.status is not None or standing.trouble else f" {_silence(one, standing)}"
        return f"{dead_letter_words(letter)} {ASK_THE_OPERATOR}{stopped}"
    if _was_discarded(one, saga):
        return (
            f"The event on which {participant} would have done that was discarded by an operator, so nothing comes of "
            f"it any more. Do it by hand, and publish {one.event_types[0]}."
        )
    if standing.trouble:
        return f"Where {participant} stands could not be learnt: {sentence(standing.trouble)}"
    if standing.status is None:
        return _silence(one, standing)
    return _answered(one, saga, standing, standing.status)


def _holding(one: Awaited, holding: Iterable[DeadLetter]) -> DeadLetter | None:
    """The dead letter behind which a step's participant can't go on with the saga."""
    return min(
        (letter for letter in holding if letter.participant == one.step.participant),
        key=lambda letter: letter.sequence,
        default=None,
    )


def _was_discarded(one: Awaited, saga: Saga) -> bool:
    """Whether an operator has decided to go on without the event on which the participant had to act."""
    return one.trigger is not None and any(
        fact.lifecycle is not None and fact.lifecycle.dead_letter == (one.step.participant, one.trigger.sequence)
        for fact in applied(saga, DEAD_LETTER_DISCARDED)
    )


def dead_letter_words(letter: DeadLetter) -> str:
    """Who gave up on what, and why."""
    tries = f" after {count(letter.attempts, 'try', 'tries')}" if letter.attempts else ""
    what = f"{'undoing ' if letter.compensation else ''}{letter.step}" if letter.step else "an event"
    return (
        f"{letter.participant} gave up on {letter.event_type} (sequence {letter.sequence}) for {what}: dead letter "
        f"{letter.id}, {letter.reason.name}{tries}: {sentence(letter.detail)}"
    )


def _silence(one: Awaited, standing: Standing) -> str:
    """What the broker tells of a participant that does not answer."""
    participant, consumer = one.step.participant, standing.consumer
    which = f" {consumer.name}" if consumer is not None and consumer.name not in {"", participant} else ""
    if consumer is None:
        return (
            f"{participant} has never run: it does not answer, and the broker has no durable consumer of that name. "
            f"Start {participant}."
        )
    if consumer.is_read:
        said = (
            f"{participant} does not answer, though a process reads its durable consumer{which}: it hangs, or it is "
            "one that does not tell its status."
        )
        remedy = f"Look at its log, or restart {participant}."
    else:
        since = f" since {at(consumer.acknowledged_time)}" if consumer.acknowledged_time is not None else ""
        said = (
            f"{participant} is not running, or it is suspended: nobody answers, and its durable consumer{which}, which "
            f"nobody reads, has acknowledged nothing{since}."
        )
        remedy = f"Start {participant}: it goes on where it stopped."
        if one.wait is Wait.LAST_WORD:
            remedy = f"Start {participant}: it voids the step, or undoes it where it was done."
    waiting = f"{count(consumer.lag, 'event', 'events')} for it {'waits' if consumer.lag == 1 else 'wait'}"
    if one.trigger is None:
        reached = f"It has acknowledged up to sequence {consumer.acknowledged}, and {waiting}."
    elif consumer.acknowledged < one.trigger.sequence:
        reached = f"It has not acknowledged {named(one.trigger)} yet (it is at {consumer.acknowledged}), and {waiting}."
    else:
        reached = f"It had taken in {named(one.trigger)}."
    return f"{said} {reached} {remedy}"


def _answered(one: Awaited, saga: Saga, standing: Standing, status: participant_pb2.ParticipantStatus) -> str:
    """What a participant that answers tells."""
    participant = one.step.participant
    worker = _worker(participant, saga, status)
    parts: list[str] = []
    if status.problems:
        parts.append(f"{participant} says what keeps it from working: {sentence('; '.join(status.problems))}")
    event = _queued(one, status)
    refused = next((refused for refused in status.refused if refused.saga_id == saga.key), None)
    if event is not None:
        parts.append(_in_queue(one, status, event))
    elif refused is not None:
        since = at(refused.refuse_time.ToDatetime(tzinfo=UTC))
        parts.append(
            f"{participant} has an event of this saga that the broker has refused since {since}, for "
            f"{refused.subject}: {sentence(refused.error)} It is tried again and again, and later ones wait behind it."
        )
    elif worker is None:
        parts.append(_nobody(participant, saga, status))
    elif one.trigger is not None and status.position < one.trigger.sequence:
        lag = standing.consumer.lag if standing.consumer is not None else 0
        waiting = f", with {count(lag, 'event', 'events')} to go" if lag else ""
        parts.append(
            f"{worker} runs and has not read {named(one.trigger)} yet: it is at sequence {status.position}{waiting}."
        )
    elif one.trigger is not None and not status.problems:
        parts.append(
            f"{worker} runs, has read {named(one.trigger)} and has nothing of this saga left in its queue: its "
            f"answer is on its way, or it gave none. Where this stays so, look for saga_id {saga.key} in its log."
        )
    elif not status.problems:
        parts.append(f"{worker} runs, and has nothing of this saga in its queue.")
    return " ".join(parts)


def _worker(participant: str, saga: Saga, status: participant_pb2.ParticipantStatus) -> str | None:
    """Who of a participant works on the saga's lane: the participant, where it has one lane and one replica; of several
    the replica; None where none of those that answer does."""
    if status.lanes <= 1 and len(status.replicas) <= 1:
        return participant
    lane = _lane(saga, status)
    holder = next((one.replica for one in status.replicas if lane in one.lanes), None)
    if holder is None:
        return None
    where = f"on replica {holder}" if status.lanes == 1 else f"lane {lane}, on replica {holder}"
    return f"{participant} ({where})"


def _nobody(participant: str, saga: Saga, status: participant_pb2.ParticipantStatus) -> str:
    """Where nobody works on the saga's lane."""
    lane = f"lane {_lane(saga, status)}, which this saga is in" if status.lanes > 1 else "its events"
    silent = [one.replica for one in status.replicas if one.silent]
    said = f"No replica of {participant} that answers works on {lane}."
    if not silent:
        return f"{said} One takes it over within seconds, where any is able to."
    names = ", ".join(silent)
    return f"{said} Of replica {names} nothing is heard: look at the log there, or restart it."


def _lane(saga: Saga, status: participant_pb2.ParticipantStatus) -> int:
    return Lanes(max(status.lanes, 1)).of(partition_of(saga.key))


def _queued(one: Awaited, status: participant_pb2.ParticipantStatus) -> participant_pb2.QueuedEvent | None:
    """What is in the participant's queue of the event to act on, or else what holds the saga up there."""
    sequence = one.trigger.sequence if one.trigger is not None else 0
    mine = next((event for event in status.queue if event.sequence == sequence), None)
    return mine or next(_holding_up(status), None)


def _holding_up(status: participant_pb2.ParticipantStatus) -> Iterator[participant_pb2.QueuedEvent]:
    """What is in the participant's queue in its order, without what only waits for other events of its step."""
    return (event for event in status.queue if event.state != participant_pb2.QUEUED_EVENT_STATE_EARLY)


def _in_queue(one: Awaited, status: participant_pb2.ParticipantStatus, event: participant_pb2.QueuedEvent) -> str:
    participant = one.step.participant
    what = f"{event.event_type} (sequence {event.sequence})"
    match event.state:
        case participant_pb2.QUEUED_EVENT_STATE_RETRYING:
            next_try = event.next_attempt_time.ToDatetime(tzinfo=UTC)
            error = f" The last try raised {sentence(event.error)}" if event.error else ""
            return (
                f"{participant} has read {what} and is retrying it: {count(event.attempts, 'try', 'tries')} so far, "
                f"the next one at {at(next_try)}.{error}"
            )
        case participant_pb2.QUEUED_EVENT_STATE_DEAD_LETTERED:
            error = f": {sentence(event.error)}" if event.error else "."
            return (
                f"{participant} gave up on {what}: dead letter {participant}-{event.sequence} after "
                f"{count(event.attempts, 'try', 'tries')}{error} {ASK_THE_OPERATOR}"
            )
        case participant_pb2.QUEUED_EVENT_STATE_SNOOZED:
            until = event.next_attempt_time.ToDatetime(tzinfo=UTC)
            reason = f": {sentence(event.error)}" if event.error else "."
            return f"{participant} has read {what}, and its handler wants it again at {at(until)}{reason}"
        case participant_pb2.QUEUED_EVENT_STATE_DEPENDENCY_DOWN:
            return f"{participant} has read {what}, and it waits for {event.dependency}.{_probe(event, status)}"
        case participant_pb2.QUEUED_EVENT_STATE_UNREADABLE:
            next_try = event.next_attempt_time.ToDatetime(tzinfo=UTC)
            return (
                f"{participant} can't read {what}: {sentence(event.error)} It was deployed with other schemas than "
                f"the correlator has: deploy it with those. It tries again at {at(next_try)}."
            )
        case participant_pb2.QUEUED_EVENT_STATE_EARLY:
            return f"{participant} has read {what}, and its step still needs {' and '.join(event.missing)}."
        case _:
            first = next(_holding_up(status))
            if first.sequence == event.sequence:
                return f"{participant} has read {what}, and it waits in its queue."
            return (
                f"{participant} has read {what}; it waits behind {first.event_type} (sequence {first.sequence}). "
                f"{_in_queue(one, status, first)}"
            )


def _probe(event: participant_pb2.QueuedEvent, status: participant_pb2.ParticipantStatus) -> str:
    """Since when what an event waits for has been down, and when it is tried again; empty where it is up by now."""
    circuit = next((circuit for circuit in status.circuits if circuit.dependency == event.dependency), None)
    if circuit is None:
        return ""
    since, probe = (time.ToDatetime(tzinfo=UTC) for time in (circuit.open_time, circuit.next_probe_time))
    error = f": {sentence(circuit.error)}" if circuit.error else "."
    return f" That has been down since {at(since)}, and is tried again at {at(probe)}{error}"
