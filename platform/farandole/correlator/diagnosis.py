"""What a saga waits for, from whom, and where that is held up, in words for whoever is on call. Pure.

The record tells what is awaited; the broker and the participants, asked just now (`Standing`), tell where it is held
up. Times in words are UTC; they are those of the stream, but for the time of a next try, which is the participant's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf import timestamp_pb2

from choreography.v1 import participant_pb2, saga_diagnosis_pb2, saga_pb2
from farandole.correlator.dead_letters import DeadLetter
from farandole.definition import Definition, StepDefinition
from farandole.lanes import Lanes
from farandole.lifecycle import CORRELATOR, DEAD_LETTER_DISCARDED, SAGA_TIMED_OUT, STEP_OVERDUE, STEP_VOIDED
from farandole.partitions import partition_of
from farandole.record import commit_event
from farandole.saga import Cause, Disposition, Fact, Health, Saga, Status, StepRecord, StepStatus

_MOST_TOLD = 3
"""Of what may come in any number, this many are told one by one."""


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


class Wait(enum.Enum):
    """What for a saga waits."""

    OUTCOME = enum.auto()
    """The success or a failure of a step that was triggered."""
    COMPENSATION = enum.auto()
    """The completion of a compensation that was triggered."""
    TRIGGER = enum.auto()
    """An event that triggers a compensation, while nothing that is under way leads to it."""
    LAST_WORD = enum.auto()
    """After a time-out: what became of a step that had not ended. The saga ends without it."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """One thing that a saga waits for."""

    wait: Wait
    step: StepDefinition
    event_types: tuple[str, ...]
    """Of which any one ends the wait."""
    trigger: Fact | None
    """The event on which the participant has to act."""
    deadline: datetime | None
    is_overdue: bool
    """Whether the stream knows that the deadline has passed."""

    @property
    def is_compensation(self) -> bool:
        """Whether the step's compensation is awaited, and not the step itself."""
        return self.wait in {Wait.COMPENSATION, Wait.TRIGGER}


_NOT_ASKED = Standing(trouble="it was not asked")


def awaited(definition: Definition, saga: Saga) -> tuple[Awaited, ...]:
    """Everything that a started saga waits for, in the order of its steps; what its end does not need comes last."""
    pairs = list(zip(definition.steps, saga.steps, strict=True))
    under_way = [
        found
        for index, (step, record) in enumerate(pairs)
        if (found := _under_way(definition, saga, index, step, record)) is not None
    ]
    if not under_way and saga.status in {Status.COMPENSATING, Status.COMPENSATION_FAILED}:
        under_way = list(_without_trigger(pairs))
    return (*under_way, *_last_words(saga, pairs))


def diagnose(
    definition: Definition,
    saga: Saga,
    standings: Mapping[str, Standing],
    dead_letters: Iterable[DeadLetter] = (),
) -> saga_diagnosis_pb2.SagaDiagnosis:
    """The diagnosis of a started saga.

    `standings` are those of the participants in `awaited`, by name; `dead_letters` all open ones under the saga's key.
    """
    open_letters = list(dead_letters)
    holding = [one for one in open_letters if one.participant != CORRELATOR and one.definition == saga.definition]
    waits = [
        (one, _detail(one, saga, standings.get(one.step.participant, _NOT_ASKED), holding))
        for one in awaited(definition, saga)
    ]
    told = [one for one in holding if not any(one.id in detail for _, detail in waits)]
    summary = [
        _headline(saga),
        *_standstill(definition, saga, waits),
        *(detail for _, detail in waits),
        *(f"{_dead_letter(one)} {_OPERATOR}" for one in told),
        *_unreadable(open_letters),
        *_early(saga),
        *_outlook(definition, saga, waits),
    ]
    return saga_diagnosis_pb2.SagaDiagnosis(
        saga_id=saga.key,
        definition=saga.definition,
        version=saga.version,
        status=saga_pb2.SagaStatus.ValueType(saga.status),
        cause=saga_pb2.SagaCause.ValueType(saga.cause),
        cause_detail=saga.cause_detail,
        health=saga_pb2.SagaHealth.ValueType(saga.health),
        deadline=_timestamp(saga.deadline),
        summary="\n".join(summary),
        awaited=[_outcome_message(one, detail, standings.get(one.step.participant)) for one, detail in waits],
        dead_letter_ids=[one.id for one in holding],
    )


# ---- what is awaited


def _under_way(
    definition: Definition, saga: Saga, index: int, step: StepDefinition, record: StepRecord
) -> Awaited | None:
    """What is awaited of a step; None where nothing is that the saga's end needs."""
    if record.status is StepStatus.RUNNING and not _is_timed_out(saga):
        has_turned = saga.status is not Status.RUNNING
        return Awaited(
            Wait.OUTCOME,
            step,
            (step.success, *step.failures, *([STEP_VOIDED] if has_turned else [])),
            _trigger(definition, saga, index, record),
            record.deadline,
            _is_overdue(saga, record),
        )
    if record.status is StepStatus.COMPENSATING:
        may_be_voided = record.end_time is None or step.success == definition.initiating_event
        # An act that can't be undone has no compensation: what of it came too late is taken back with a failure.
        ends = (step.compensation.completion,) if step.compensation is not None else step.failures
        return Awaited(
            Wait.COMPENSATION,
            step,
            (*ends, *([STEP_VOIDED] if may_be_voided else [])),
            _undo_trigger(definition, saga, index),
            record.deadline,
            _is_overdue(saga, record),
        )
    return None


def _without_trigger(pairs: Iterable[tuple[StepDefinition, StepRecord]]) -> Iterator[Awaited]:
    """Steps that are to be undone when nothing is under way that leads to it; not those whose undoing follows."""
    left = [
        (step, step.compensation)
        for step, record in pairs
        if record.status is StepStatus.SUCCEEDED and step.compensation is not None
    ]
    to_come = {compensation.completion for _, compensation in left}
    for step, compensation in left:
        if not to_come.intersection(compensation.triggers):
            types = (compensation.completion, *compensation.triggers)
            yield Awaited(Wait.TRIGGER, step, types, None, None, is_overdue=False)


def _last_words(saga: Saga, pairs: Iterable[tuple[StepDefinition, StepRecord]]) -> Iterator[Awaited]:
    """Steps that had not ended when the saga was timed out, and of which nobody has said what became of them."""
    if not _is_timed_out(saga):
        return
    time_out = next(_applied(saga, SAGA_TIMED_OUT), None)
    for step, record in pairs:
        if record.status in {StepStatus.PENDING, StepStatus.RUNNING}:
            types = (STEP_VOIDED, step.success, *step.failures)
            yield Awaited(Wait.LAST_WORD, step, types, time_out, None, is_overdue=False)


def _is_timed_out(saga: Saga) -> bool:
    return saga.cause in {Cause.DEADLINE, Cause.OPERATOR}


def _trigger(definition: Definition, saga: Saga, index: int, record: StepRecord) -> Fact | None:
    """The event that started a step: of several that it needed, the last."""
    found = None
    for entry in saga.history:
        role = definition.roles.get(entry.fact.type)
        if role is not None and index in role.starts and entry.disposition is Disposition.APPLIED:
            is_later = record.start_time is not None and entry.fact.stream_time > record.start_time
            if found is None or not is_later:
                found = entry.fact
    return found


def _undo_trigger(definition: Definition, saga: Saga, index: int) -> Fact | None:
    """The first event on which a step's participant has to undo it."""
    for entry in saga.history:
        role = definition.roles.get(entry.fact.type)
        undoes = entry.fact.type == SAGA_TIMED_OUT or (role is not None and index in role.undoes)
        if undoes and entry.disposition is Disposition.APPLIED:
            return entry.fact
    return None


def _applied(saga: Saga, event_type: str) -> Iterator[Fact]:
    return (
        entry.fact
        for entry in saga.history
        if entry.fact.type == event_type and entry.disposition is Disposition.APPLIED
    )


def _is_overdue(saga: Saga, record: StepRecord) -> bool:
    is_compensation = record.status is StepStatus.COMPENSATING
    return record.deadline is not None and any(
        fact.lifecycle is not None
        and record.name in fact.lifecycle.steps
        and fact.lifecycle.compensation is is_compensation
        and fact.stream_time >= record.deadline
        for fact in _applied(saga, STEP_OVERDUE)
    )


# ---- the saga as a whole, in words


def _headline(saga: Saga) -> str:
    name = f"{saga.definition} {saga.key}"
    match saga.status:
        case Status.COMPLETED:
            late = ", after its deadline" if saga.finished_late else ""
            said = f"{name} is COMPLETED since {_at(saga.end_time)}{late}"
        case Status.COMPENSATED:
            said = f"{name} is COMPENSATED since {_at(saga.end_time)}: what it did has been undone"
        case Status.FAILED:
            said = f"{name} is FAILED since {_at(saga.end_time)}: it failed with nothing to undo"
        case Status.COMPENSATION_FAILED:
            said = f"{name} is COMPENSATION_FAILED: undoing it was given up on, and an operator must decide"
        case Status.COMPENSATING:
            said = f"{name} is COMPENSATING: what it did is being undone"
        case _:
            said = f"{name} is RUNNING"
    cause = f" ({saga.cause.name}: {saga.cause_detail})" if saga.cause else ""
    return f"{said}{cause}.{_health(saga)}"


def _health(saga: Saga) -> str:
    match saga.health:
        case Health.OVERDUE:
            return " It is OVERDUE: a deadline of a step or of a compensation has passed."
        case Health.STALLED if _is_timed_out(saga):
            return " It is STALLED: it was timed out, and undoing it is late too."
        case Health.STALLED:
            why = "it has committed" if saga.status is Status.RUNNING else "it is being undone already"
            due = _due(saga.deadline)
            return f" It is STALLED: it has not ended by its deadline{due}, and since {why} it is not timed out."
        case Health.QUARANTINED:
            return " It is QUARANTINED: an event of it is a dead letter, and later events wait behind that."
        case _:
            return ""


def _standstill(definition: Definition, saga: Saga, waits: Sequence[tuple[Awaited, str]]) -> Iterator[str]:
    """What is said of a saga that has not ended and of which nothing is under way."""
    if saga.status.is_terminal:
        return
    voided = [step.name for step in saga.steps if step.status is StepStatus.VOIDED]
    if saga.status is Status.RUNNING and voided:
        names = ", ".join(voided)
        yield (
            f"{names} {'was' if len(voided) == 1 else 'were'} voided: no work is done there any more, so the saga "
            f"can't complete. {_time_out_outlook(definition, saga)}"
        )
    elif saga.status is Status.RUNNING and not waits:
        pending = [step.name for step in saga.steps if step.status is not StepStatus.SUCCEEDED]
        if pending:
            yield f"Nothing is under way, and {', '.join(pending)} can't start. {_time_out_outlook(definition, saga)}"
        else:
            yield "Every step has succeeded; only the correlator's own SagaCompleted has not been read back yet."
    elif not any(one.wait is not Wait.LAST_WORD for one, _ in waits):
        yield "Nothing is left to undo; only the correlator's own event that ends the saga has not been read back yet."


def _time_out_outlook(definition: Definition, saga: Saga) -> str:
    commit = commit_event(definition, saga.history)
    if commit is not None:
        return f"It is not timed out either, since {_named(commit.fact)} has come: it stays as it is."
    return f"It will be timed out at its deadline{_due(saga.deadline)}, and what it did is undone then."


def _outlook(definition: Definition, saga: Saga, waits: Sequence[tuple[Awaited, str]]) -> Iterator[str]:
    """What comes after what is awaited now."""
    under_way = [one for one, _ in waits if one.wait in {Wait.OUTCOME, Wait.COMPENSATION}]
    if not under_way:
        return
    if saga.status is Status.RUNNING:
        is_voided = any(step.status is StepStatus.VOIDED for step in saga.steps)
        commit = definition.commit_event
        if next(_applied(saga, commit), None) is not None:
            yield f"The saga has committed with {commit}: it is not undone any more, it can only be late."
        elif saga.deadline is not None and not is_voided:
            yield f"Where {commit} has not come by {_at(saga.deadline)}, the saga is timed out and undone."
        return
    later = [
        step.name
        for step, record in zip(definition.steps, saga.steps, strict=True)
        if record.status is StepStatus.SUCCEEDED and step.compensation is not None
    ]
    if later:
        yield f"Still to be undone after that: {', '.join(reversed(later))}."


def _unreadable(dead_letters: Iterable[DeadLetter]) -> Iterator[str]:
    found = [one for one in dead_letters if one.participant == CORRELATOR]
    for one in found[:_MOST_TOLD]:
        yield (
            f"A {one.event_type} with this key (sequence {one.sequence}) can't be read by anyone, and so moved "
            f"nothing: dead letter {one.id}, {one.reason.name}: {_sentence(one.detail)}"
        )
    if len(found) > _MOST_TOLD:
        yield f"{len(found) - _MOST_TOLD} more events with this key can't be read by anyone."


def _early(saga: Saga) -> Iterator[str]:
    found = [entry for entry in saga.history if entry.disposition is Disposition.EARLY]
    for entry in found[:_MOST_TOLD]:
        yield f"{_named(entry.fact)} came early and {_sentence(entry.reason)}"
    if len(found) > _MOST_TOLD:
        yield f"{len(found) - _MOST_TOLD} more events came early and wait."


# ---- one wait, in words

_OPERATOR = "Remove its cause; then have it redriven, or discarded to go on without it."


def _detail(one: Awaited, saga: Saga, standing: Standing, holding: Sequence[DeadLetter]) -> str:
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
    since = f" since {_at(one.trigger.stream_time)}" if one.trigger is not None else ""
    due = f"; that {'was' if one.is_overdue else 'is'} due {_at(one.deadline)}" if one.deadline is not None else ""
    return f"It waits{since} for {participant} to {what}{due}."


def _where(one: Awaited, saga: Saga, standing: Standing, holding: Sequence[DeadLetter]) -> str:
    """Where it is held up, and what to do about it."""
    participant = one.step.participant
    letter = _holding(one, holding)
    if letter is not None:
        stopped = "" if standing.status is not None or standing.trouble else f" {_silence(one, standing)}"
        return f"{_dead_letter(letter)} {_OPERATOR}{stopped}"
    if _was_discarded(one, saga):
        return (
            f"The event on which {participant} would have done that was discarded by an operator, so nothing comes of "
            f"it any more. Do it by hand, and publish {one.event_types[0]}."
        )
    if standing.trouble:
        return f"Where {participant} stands could not be learnt: {_sentence(standing.trouble)}"
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
        for fact in _applied(saga, DEAD_LETTER_DISCARDED)
    )


def _dead_letter(letter: DeadLetter) -> str:
    tries = f" after {_count(letter.attempts, 'try', 'tries')}" if letter.attempts else ""
    what = f"{'undoing ' if letter.compensation else ''}{letter.step}" if letter.step else "an event"
    return (
        f"{letter.participant} gave up on {letter.event_type} (sequence {letter.sequence}) for {what}: dead letter "
        f"{letter.id}, {letter.reason.name}{tries}: {_sentence(letter.detail)}"
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
        since = f" since {_at(consumer.acknowledged_time)}" if consumer.acknowledged_time is not None else ""
        said = (
            f"{participant} is not running, or it is suspended: nobody answers, and its durable consumer{which}, which "
            f"nobody reads, has acknowledged nothing{since}."
        )
        remedy = f"Start {participant}: it goes on where it stopped."
        if one.wait is Wait.LAST_WORD:
            remedy = f"Start {participant}: it voids the step, or undoes it where it was done."
    waiting = f"{_count(consumer.lag, 'event', 'events')} for it {'waits' if consumer.lag == 1 else 'wait'}"
    if one.trigger is None:
        reached = f"It has acknowledged up to sequence {consumer.acknowledged}, and {waiting}."
    elif consumer.acknowledged < one.trigger.sequence:
        reached = (
            f"It has not acknowledged {_named(one.trigger)} yet (it is at {consumer.acknowledged}), and {waiting}."
        )
    else:
        reached = f"It had taken in {_named(one.trigger)}."
    return f"{said} {reached} {remedy}"


def _answered(one: Awaited, saga: Saga, standing: Standing, status: participant_pb2.ParticipantStatus) -> str:
    """What a participant that answers tells."""
    participant = one.step.participant
    worker = _worker(participant, saga, status)
    parts: list[str] = []
    if status.problems:
        parts.append(f"{participant} says what keeps it from working: {_sentence('; '.join(status.problems))}")
    event = _queued(one, status)
    refused = next((refused for refused in status.refused if refused.saga_id == saga.key), None)
    if event is not None:
        parts.append(_in_queue(one, status, event))
    elif refused is not None:
        since = _at(refused.refuse_time.ToDatetime(tzinfo=UTC))
        parts.append(
            f"{participant} has an event of this saga that the broker has refused since {since}, for "
            f"{refused.subject}: {_sentence(refused.error)} It is tried again and again, and later ones wait behind it."
        )
    elif worker is None:
        parts.append(_nobody(participant, saga, status))
    elif one.trigger is not None and status.position < one.trigger.sequence:
        lag = standing.consumer.lag if standing.consumer is not None else 0
        waiting = f", with {_count(lag, 'event', 'events')} to go" if lag else ""
        parts.append(
            f"{worker} runs and has not read {_named(one.trigger)} yet: it is at sequence {status.position}{waiting}."
        )
    elif one.trigger is not None and not status.problems:
        parts.append(
            f"{worker} runs, has read {_named(one.trigger)} and has nothing of this saga left in its queue: its "
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
            error = f" The last try raised {_sentence(event.error)}" if event.error else ""
            return (
                f"{participant} has read {what} and is retrying it: {_count(event.attempts, 'try', 'tries')} so far, "
                f"the next one at {_at(next_try)}.{error}"
            )
        case participant_pb2.QUEUED_EVENT_STATE_DEAD_LETTERED:
            error = f": {_sentence(event.error)}" if event.error else "."
            return (
                f"{participant} gave up on {what}: dead letter {participant}-{event.sequence} after "
                f"{_count(event.attempts, 'try', 'tries')}{error} {_OPERATOR}"
            )
        case participant_pb2.QUEUED_EVENT_STATE_SNOOZED:
            until = event.next_attempt_time.ToDatetime(tzinfo=UTC)
            reason = f": {_sentence(event.error)}" if event.error else "."
            return f"{participant} has read {what}, and its handler wants it again at {_at(until)}{reason}"
        case participant_pb2.QUEUED_EVENT_STATE_DEPENDENCY_DOWN:
            return f"{participant} has read {what}, and it waits for {event.dependency}.{_probe(event, status)}"
        case participant_pb2.QUEUED_EVENT_STATE_UNREADABLE:
            next_try = event.next_attempt_time.ToDatetime(tzinfo=UTC)
            return (
                f"{participant} can't read {what}: {_sentence(event.error)} It was deployed with other schemas than "
                f"the correlator has: deploy it with those. It tries again at {_at(next_try)}."
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
    error = f": {_sentence(circuit.error)}" if circuit.error else "."
    return f" That has been down since {_at(since)}, and is tried again at {_at(probe)}{error}"


# ---- messages and single words


def _outcome_message(one: Awaited, detail: str, standing: Standing | None) -> saga_diagnosis_pb2.AwaitedOutcome:
    message = saga_diagnosis_pb2.AwaitedOutcome(
        step=one.step.name,
        compensation=one.is_compensation,
        participant=one.step.participant,
        event_types=one.event_types,
        since=_timestamp(one.trigger.stream_time if one.trigger is not None else None),
        deadline=_timestamp(one.deadline),
        overdue=one.is_overdue,
        trigger_sequence=one.trigger.sequence if one.trigger is not None else 0,
        detail=detail,
    )
    if standing is not None and not standing.trouble:
        consumer = standing.consumer
        message.participant_diagnosis.has_consumer = consumer is not None
        message.participant_diagnosis.is_answering = standing.status is not None
        if consumer is not None:
            message.participant_diagnosis.consumer = consumer.name
            message.participant_diagnosis.lag = consumer.lag
            message.participant_diagnosis.acknowledged_sequence = consumer.acknowledged
        if standing.status is not None:
            message.participant_diagnosis.status.CopyFrom(standing.status)
    return message


def _named(fact: Fact) -> str:
    return f"{fact.type} (sequence {fact.sequence})"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _sentence(text: str) -> str:
    """A text on one line that ends like a sentence."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _due(time: datetime | None) -> str:
    return f" ({_at(time)})" if time is not None else ""


def _at(time: datetime | None) -> str:
    """`2026-11-22T12:00:01.500Z`."""
    if time is None:
        return "an unknown time"
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
