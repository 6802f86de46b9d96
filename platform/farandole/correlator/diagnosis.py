"""What a saga waits for, from whom, and where that is held up, in words for whoever is on call. Pure.

The record tells what is awaited; the broker and the participants, asked just now (`Standing`), tell where it is held
up. Times in words are UTC; they are those of the stream, but for the time of a next try, which is the participant's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from google.protobuf import timestamp_pb2

from choreography.v1 import saga_diagnosis_pb2, saga_pb2
from farandole.correlator.awaited import Awaited, Wait, applied, awaited, is_timed_out
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.held_up import ASK_THE_OPERATOR, Standing, dead_letter_words, detail_of
from farandole.correlator.wording import at, due, named, sentence
from farandole.definition import Definition
from farandole.lifecycle import CORRELATOR
from farandole.record import commit_event
from farandole.saga import Disposition, Health, Saga, Status, StepStatus

_MOST_TOLD = 3
"""Of what may come in any number, this many are told one by one."""
_NOT_ASKED = Standing(trouble="it was not asked")


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
        (one, detail_of(one, saga, standings.get(one.step.participant, _NOT_ASKED), holding))
        for one in awaited(definition, saga)
    ]
    told = [one for one in holding if not any(one.id in detail for _, detail in waits)]
    summary = [
        _headline(saga),
        *_standstill(definition, saga, waits),
        *(detail for _, detail in waits),
        *(f"{dead_letter_words(one)} {ASK_THE_OPERATOR}" for one in told),
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


def _headline(saga: Saga) -> str:
    name = f"{saga.definition} {saga.key}"
    match saga.status:
        case Status.COMPLETED:
            late = ", after its deadline" if saga.finished_late else ""
            said = f"{name} is COMPLETED since {at(saga.end_time)}{late}"
        case Status.COMPENSATED:
            said = f"{name} is COMPENSATED since {at(saga.end_time)}: what it did has been undone"
        case Status.FAILED:
            said = f"{name} is FAILED since {at(saga.end_time)}: it failed with nothing to undo"
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
        case Health.STALLED if is_timed_out(saga):
            return " It is STALLED: it was timed out, and undoing it is late too."
        case Health.STALLED:
            why = "it has committed" if saga.status is Status.RUNNING else "it is being undone already"
            deadline = f"its deadline{due(saga.deadline)}"
            return f" It is STALLED: it has not ended by {deadline}, and since {why} it is not timed out."
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
        return f"It is not timed out either, since {named(commit.fact)} has come: it stays as it is."
    return f"It will be timed out at its deadline{due(saga.deadline)}, and what it did is undone then."


def _outlook(definition: Definition, saga: Saga, waits: Sequence[tuple[Awaited, str]]) -> Iterator[str]:
    """What comes after what is awaited now."""
    under_way = [one for one, _ in waits if one.wait in {Wait.OUTCOME, Wait.COMPENSATION}]
    if not under_way:
        return
    if saga.status is Status.RUNNING:
        is_voided = any(step.status is StepStatus.VOIDED for step in saga.steps)
        commit = definition.commit_event
        if next(applied(saga, commit), None) is not None:
            yield f"The saga has committed with {commit}: it is not undone any more, it can only be late."
        elif saga.deadline is not None and not is_voided:
            yield f"Where {commit} has not come by {at(saga.deadline)}, the saga is timed out and undone."
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
            f"nothing: dead letter {one.id}, {one.reason.name}: {sentence(one.detail)}"
        )
    if len(found) > _MOST_TOLD:
        yield f"{len(found) - _MOST_TOLD} more events with this key can't be read by anyone."


def _early(saga: Saga) -> Iterator[str]:
    found = [entry for entry in saga.history if entry.disposition is Disposition.EARLY]
    for entry in found[:_MOST_TOLD]:
        yield f"{named(entry.fact)} came early and {sentence(entry.reason)}"
    if len(found) > _MOST_TOLD:
        yield f"{len(found) - _MOST_TOLD} more events came early and wait."


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


def _timestamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
