"""What the platform's own events say about a saga, in words for people: read from its history, redacted as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from choreography.v1.saga_pb2 import HistoryEntry, Saga, SagaStep

_PACKAGE = "choreography.v1."
_UNDO = " (undo)"
_REASON = "DEAD_LETTER_REASON_"
_OVERDUE, _VOIDED, _RECORDED = "StepOverdue", "StepVoided", "DeadLetterRecorded"
_DECIDED = ("DeadLetterRedriven", "DeadLetterDiscarded")
_CLOSING = (*_DECIDED, "DeadLetterSuperseded")


def about(entry: HistoryEntry) -> str:
    """Why an event was not applied; of one of the platform's that was, what it is about."""
    if entry.reason:
        return entry.reason
    kind, body = _read(entry)
    if kind == _OVERDUE:
        return f"{_step(body)} of {body.get('participant', '')}"
    if kind == _VOIDED:
        return _step(body)
    if kind == _RECORDED:
        return f"{_name(body)}: {_step(body)}, {_given_up(body)}"
    if kind in _DECIDED:
        reason = f": {body['reason']}" if body.get("reason") else ""
        return f"{_name(body)}, by {body.get('actor', '')}{reason}"
    return _name(body) if kind in _CLOSING else ""


def held_up_by(saga: Saga) -> Iterator[str]:
    """The open dead letters of a saga, and the steps that are late, each in a line."""
    from farandole.cli.output import timestamp

    for body in _open_dead_letters(saga):
        what = f"{'undoing ' if body.get('compensation') else ''}{body.get('step', '')}"
        yield (
            f"dead letter {_name(body)}: {body.get('participant', '')} gave up on {body.get('eventType', '')} for "
            f"{what}, {_given_up(body)}"
        )
    for step, is_undone in _late(saga):
        yield f"{step.name}{_UNDO if is_undone else ''} of {step.participant}, due {timestamp(step, 'deadline')}"


def _open_dead_letters(saga: Saga) -> list[Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for kind, body in _applied(saga):
        if kind == _RECORDED:
            found[_name(body)] = body
        elif kind in _CLOSING:
            found.pop(_name(body), None)
    return list(found.values())


def _late(saga: Saga) -> Iterator[tuple[SagaStep, bool]]:
    """The steps that are overdue and have not ended, each with whether it is its undoing that is."""
    from choreography.v1 import saga_pb2

    overdue = {(body.get("step"), body.get("compensation", False)) for kind, body in _applied(saga) if kind == _OVERDUE}
    undoing = {saga_pb2.STEP_STATUS_RUNNING: False, saga_pb2.STEP_STATUS_COMPENSATING: True}
    for step in saga.steps:
        is_undone = undoing.get(step.status)
        if is_undone is not None and (step.name, is_undone) in overdue:
            yield step, is_undone


def _applied(saga: Saga) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from choreography.v1 import saga_pb2

    return (_read(entry) for entry in saga.history if entry.disposition == saga_pb2.DISPOSITION_APPLIED)


def _read(entry: HistoryEntry) -> tuple[str, Mapping[str, Any]]:
    """The event's name and its body in ProtoJSON; no name where it is not the platform's own."""
    from google.protobuf.json_format import MessageToDict

    kind = entry.event_type.removeprefix(_PACKAGE)
    return ("", {}) if kind == entry.event_type else (kind, MessageToDict(entry.payload))


def _name(body: Mapping[str, Any]) -> str:
    return f"{body.get('participant', '')}-{body.get('sequence', '')}"


def _step(body: Mapping[str, Any]) -> str:
    return f"{body.get('step', '')}{_UNDO if body.get('compensation') else ''}"


def _given_up(body: Mapping[str, Any]) -> str:
    attempts = int(body.get("attempts", 0))
    detail = f": {body['detail']}" if body.get("detail") else ""
    tries = f"{attempts} {'try' if attempts == 1 else 'tries'}"
    return f"{str(body.get('reason', '')).removeprefix(_REASON)} after {tries}{detail}"
