"""What `sagas diagnose` prints: a saga's diagnosis, what waits where, and the commands that help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from farandole.cli.correlator_client import named_saga
from farandole.cli.dead_letter_commands import decisions

if TYPE_CHECKING:
    from choreography.v1.participant_pb2 import Circuit, ParticipantStatus, QueuedEvent, RefusedPublication
    from choreography.v1.saga_diagnosis_pb2 import AwaitedOutcome, SagaDiagnosis


def print_diagnosis(diagnosis: SagaDiagnosis, definition: str) -> None:
    """`definition` is the one that was asked for, which a next command must then name too."""
    from farandole.cli.output import console, print_next, printable

    out = console()
    for line in diagnosis.summary.splitlines():
        out.print(printable(line), markup=False, soft_wrap=not out.is_terminal)
    for made in _tables(diagnosis):
        out.print("", made, sep="\n")
    print_next(next_commands(diagnosis, definition))


def next_commands(diagnosis: SagaDiagnosis, definition: str = "") -> list[str]:
    """The commands that a diagnosis suggests, the most telling first."""
    from choreography.v1 import participant_pb2, saga_pb2

    commands = []
    for dead_letter in diagnosis.dead_letter_ids:
        commands.append(f"farandole deadletters show {dead_letter}")
        commands.extend(decisions(dead_letter, dead_letter.rpartition("-")[0]))
    for outcome in diagnosis.awaited:
        found = outcome.participant_diagnosis
        if not outcome.HasField("participant_diagnosis"):
            commands.append("farandole status")
        elif not found.is_answering:
            commands.append(f"farandole start {outcome.participant}")
        elif _is_held_up(found.status, diagnosis.saga_id):
            commands.append(f"farandole logs {outcome.participant}")
            commands.extend(
                f"farandole deadletters show {outcome.participant}-{event.sequence}"
                for event in found.status.queue
                if event.state == participant_pb2.QUEUED_EVENT_STATE_DEAD_LETTERED
            )
    ended = (saga_pb2.SAGA_STATUS_COMPLETED, saga_pb2.SAGA_STATUS_COMPENSATED, saga_pb2.SAGA_STATUS_FAILED)
    follow = "show" if diagnosis.status in ended else "watch"
    commands.append(f"farandole sagas {follow} {named_saga(diagnosis.saga_id, definition)}")
    return list(dict.fromkeys(commands))


def _is_held_up(status: ParticipantStatus, saga_id: str) -> bool:
    """Whether a participant's log has more to say: not of what waits as it should."""
    from choreography.v1 import participant_pb2

    as_it_should = (participant_pb2.QUEUED_EVENT_STATE_EARLY, participant_pb2.QUEUED_EVENT_STATE_SNOOZED)
    return bool(
        status.problems
        or any(event.state not in as_it_should for event in status.queue)
        or list(_refused_of(status, saga_id))
    )


def _tables(diagnosis: SagaDiagnosis) -> Iterator[Any]:
    """What is awaited; then what waits at the participants, and what they find to be in the way."""
    if diagnosis.awaited:
        yield _awaited_table(diagnosis.awaited)
    found = {one.participant: one.participant_diagnosis.status for one in diagnosis.awaited}
    statuses = list(found.items())
    if queued := [(name, event) for name, status in statuses for event in status.queue]:
        yield _queue_table(queued)
    if circuits := [(name, circuit) for name, status in statuses for circuit in status.circuits]:
        yield _circuits_table(circuits)
    if refused := [(name, one) for name, status in statuses for one in _refused_of(status, diagnosis.saga_id)]:
        yield _refused_table(refused)


def _refused_of(status: ParticipantStatus, saga_id: str) -> Iterator[RefusedPublication]:
    """Those that hold this saga up; another's are its own."""
    return (refused for refused in status.refused if refused.saga_id == saga_id)


def _awaited_table(awaited: Sequence[AwaitedOutcome]) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    from farandole.cli.output import cell_time, table

    made = table("WAITS FOR", "FROM", "SINCE", "DUE", "TRIGGER", "POSITION", "LAG", "ENDS WITH")
    for outcome in awaited:
        made.add_row(
            f"undoing {outcome.step}" if outcome.compensation else outcome.step,
            outcome.participant,
            cell_time(outcome, "since"),
            cell_time(outcome, "deadline"),
            str(outcome.trigger_sequence or ""),
            *_progress(outcome),
            " or ".join(outcome.event_types),
        )
    return made


def _progress(outcome: AwaitedOutcome) -> tuple[str, str]:
    """How far the participant has come in the stream, and how many events are before it; empty where nobody knows."""
    found = outcome.participant_diagnosis
    if found.is_answering:
        return str(found.status.position), str(found.lag)
    return (str(found.acknowledged_sequence), str(found.lag)) if found.has_consumer else ("", "")


def _queue_table(queued: Iterable[tuple[str, QueuedEvent]]) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    from choreography.v1 import participant_pb2
    from farandole.cli.output import cell_time, colored, table, word

    made = table("IN THE QUEUE OF", "SEQUENCE", "EVENT", "STATE", "TRIES", "NEXT TRY", "WHY")
    for participant, event in queued:
        made.add_row(
            participant,
            str(event.sequence),
            colored(event.event_type),
            colored(word(participant_pb2.QueuedEventState, event.state, "QUEUED_EVENT_STATE_")),
            str(event.attempts or ""),
            cell_time(event, "next_attempt_time"),
            colored(_why(event)),
        )
    return made


def _why(event: QueuedEvent) -> str:
    """What an event in a queue waits for, and what its last try raised."""
    waits = [f"{event.dependency} is down"] if event.dependency else []
    waits += [f"its step still needs {' and '.join(event.missing)}"] if event.missing else []
    return ": ".join((*waits, *([event.error] if event.error else [])))


def _circuits_table(circuits: Iterable[tuple[str, Circuit]]) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    from farandole.cli.output import cell_time, colored, table

    made = table("DOWN FOR", "DEPENDENCY", "SINCE", "NEXT PROBE", "SAGAS", "WHY")
    for participant, circuit in circuits:
        made.add_row(
            participant,
            colored(circuit.dependency),
            cell_time(circuit, "open_time"),
            cell_time(circuit, "next_probe_time"),
            str(circuit.waiting_sagas),
            colored(circuit.error),
        )
    return made


def _refused_table(refused: Iterable[tuple[str, RefusedPublication]]) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    from farandole.cli.output import cell_time, colored, table

    made = table("REFUSED TO", "SUBJECT", "SINCE", "WHY")
    for participant, one in refused:
        made.add_row(participant, colored(one.subject), cell_time(one, "refuse_time"), colored(one.error))
    return made
