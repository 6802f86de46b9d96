"""What must hold at the end of every run, whatever the choreography and whatever went wrong.

Each function yields a line for each thing that does not hold, and names the saga that it is about. They look at the
end state from outside: at the stream, at the databases and at what the simulation has counted itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from choreography.v1.dead_letter_events_pb2 import DeadLetterSuperseded
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole.correlator.definitions import Definitions
from farandole.correlator.records import fold
from farandole.definition import Definition
from farandole.envelope import Event
from farandole.ids import message_id
from farandole.lifecycle import SAGA_TIMED_OUT
from farandole.participant.barrier import Direction
from farandole.participant.participant import Participant
from farandole.participant.step import Step
from farandole.saga import Disposition, Saga, Status
from farandole.testing.simulation.effects import Effect
from farandole.testing.simulation.world import World

_STORED_BY = timedelta(seconds=0.1)
"""An event is stored within so long of the time that it has."""


def broken(world: World) -> Iterator[str]:
    """Everything that does not hold."""
    for rule in (
        acknowledged_starts_are_sagas,
        every_saga_has_ended,
        nothing_is_left_over,
        every_event_is_dealt_with,
        nothing_runs_twice,
        what_ran_was_applied,
        a_completed_saga_is_done,
        an_undone_saga_is_undone,
        time_outs_are_true,
        time_outs_are_heard_first,
        events_follow_from_commits,
        events_keep_their_order,
        histories_are_complete,
        records_are_a_fold,
    ):
        yield from rule(world)


def acknowledged_starts_are_sagas(world: World) -> Iterator[str]:
    """Whatever was acknowledged has become a saga."""
    started = {key for _, key in world.sagas}
    for key in sorted(world.acknowledged - started):
        yield f"{key}: its start was acknowledged, and there is no saga"


def every_saga_has_ended(world: World) -> Iterator[str]:
    """Every saga has come to a terminal status."""
    for (definition, key), saga in world.sagas.items():
        if not saga.status.is_terminal:
            steps = ", ".join(f"{step.name} {step.status.name}" for step in saga.steps)
            yield f"{definition} {key}: has not ended; it is {saga.status.name} ({steps})"


def nothing_is_left_over(world: World) -> Iterator[str]:
    """Outboxes and queues are empty."""
    for participant in world.scenario.participants:
        for table, count in world.left_over(participant.name).items():
            if count:
                yield f"{participant.name}: {count} rows are left in {table}"


def every_event_is_dealt_with(world: World) -> Iterator[str]:
    """Every event of the stream is in the inbox of each participant that consumes its type, or was a dead letter of its
    that is superseded."""
    superseded = {(one.participant, one.sequence) for one in world.bodies(DeadLetterSuperseded)}
    for participant in world.scenario.participants:
        inbox = world.inbox(participant.name)
        for event in world.events:
            if (participant.name, event.sequence) in superseded:
                continue
            if event.type in participant.reactions and message_id(event.source, event.id) not in inbox:
                yield f"{event.key}: {participant.name} has not dealt with {_short(event)}"


def nothing_runs_twice(world: World) -> Iterator[str]:
    """A part of a step has run once for a saga, at most."""
    runs = Counter((e.participant, e.definition, e.key, e.step, e.direction) for e in world.effects)
    for (participant, definition, key, step, direction), count in runs.items():
        if count > 1:
            yield f"{definition} {key}: {participant} ran {direction.value} of {step} {count} times"


def what_ran_was_applied(world: World) -> Iterator[str]:
    """What made a part of a step run is APPLIED in the inbox, also where it has come again since."""
    for participant in world.scenario.participants:
        inbox = world.inbox(participant.name)
        applied = {
            (event.key, event.type)
            for event in world.events
            if inbox.get(message_id(event.source, event.id)) is Disposition.APPLIED
        }
        consumed = {
            (step.saga, step.name, direction): signature.consumes
            for step in participant.steps
            for direction, signature in (
                (Direction.FORWARD, step.forward_signature),
                (Direction.UNDO, step.undo_signature),
                (Direction.CONFIRM, step.irrevocable_signature),
            )
        }
        for effect in world.effects:
            if effect.participant != participant.name:
                continue
            triggers = consumed[effect.definition, effect.step, effect.direction]
            if not any((effect.key, trigger.DESCRIPTOR.full_name) in applied for trigger in triggers):
                yield (
                    f"{effect.definition} {effect.key}: {participant.name} ran {effect.direction.value} of "
                    f"{effect.step}, and no event is APPLIED in its inbox that makes it do so"
                )


def a_completed_saga_is_done(world: World) -> Iterator[str]:
    """All steps of a completed saga were done, and none undone."""
    for definition, key, saga, done in _ended(world):
        if saga.status is not Status.COMPLETED:
            continue
        for participant, step in _steps_of(world, definition):
            parts = done.get((participant.name, step.name), {})
            forward = parts.get(Direction.FORWARD)
            if forward is None or forward.failed:
                yield f"{definition.name} {key}: is COMPLETED, and {participant.name} has not done {step.name}"
            if Direction.UNDO in parts:
                yield f"{definition.name} {key}: is COMPLETED, and {participant.name} has undone {step.name}"
            if step.irrevocable is not None and Direction.CONFIRM not in parts:
                yield f"{definition.name} {key}: is COMPLETED, and {participant.name} has not confirmed {step.name}"


def an_undone_saga_is_undone(world: World) -> Iterator[str]:
    """Of a saga that did not complete all that was done is undone, and nothing else is."""
    for definition, key, saga, done in _ended(world):
        if saga.status is Status.COMPLETED:
            continue
        for participant, step in _steps_of(world, definition):
            parts = done.get((participant.name, step.name), {})
            forward = parts.get(Direction.FORWARD)
            is_done = forward is not None and not forward.failed
            what = f"{definition.name} {key}: is {saga.status.name}, and {participant.name}"
            if is_done and step.undo is not None and Direction.UNDO not in parts:
                yield f"{what} has not undone {step.name}"
            if not is_done and step.irrevocable is None and Direction.UNDO in parts:
                yield f"{what} has undone {step.name}, which it had not done"
            if Direction.CONFIRM in parts:
                yield f"{what} has done what can't be undone in {step.name}"


def time_outs_are_true(world: World) -> Iterator[str]:
    """A saga is timed out once, not before its deadline in the stream's own time, and never after its commit event."""
    definitions = {definition.name: definition for definition in world.scenario.definitions}
    started: dict[tuple[str, str], datetime] = {}
    committed: set[tuple[str, str]] = set()
    timed_out: dict[tuple[str, str], set[str]] = defaultdict(set)
    for event in world.events:
        for definition in definitions.values():
            if event.type == definition.initiating_event:
                started.setdefault((definition.name, event.key), event.stream_time)
            if event.type == definition.commit_event:
                committed.add((definition.name, event.key))
        if event.type == SAGA_TIMED_OUT and event.fact.lifecycle is not None:
            saga = (event.fact.lifecycle.definition, event.key)
            what = f"{' '.join(saga)}: timed out at {event.sequence}"
            timed_out[saga].add(event.id)
            if saga in committed:
                yield f"{what}, after its commit event"
            if saga not in started:
                yield f"{what}, before it began"
            elif event.stream_time < started[saga] + definitions[saga[0]].deadline:
                early = started[saga] + definitions[saga[0]].deadline - event.stream_time
                yield f"{what}, {early.total_seconds():.3f} s before its deadline"
    for saga, ids in timed_out.items():
        if len(ids) > 1:
            yield f"{' '.join(saga)}: timed out {len(ids)} times"


def time_outs_are_heard_first(world: World) -> Iterator[str]:
    """Who is started begins no step that the stream's time-outs name by then, also where it reads its trigger first.

    One that a handler could not deal with, when it was heard, was left for its place in the stream.
    """
    timed_out: dict[tuple[str, str, str], datetime] = {}
    for event in world.events:
        if isinstance(event.body, SagaTimedOut):
            for step in event.body.steps:
                timed_out.setdefault((event.body.definition, event.key, step), event.stream_time)
    for effect, begun in world.begun_at.items():
        if effect.direction is not Direction.FORWARD or (effect.participant, effect.key) in world.raised:
            continue
        time = timed_out.get((effect.definition, effect.key, effect.step))
        if time is not None and time + _STORED_BY < begun:
            yield (
                f"{effect.definition} {effect.key}: {effect.participant} was started after the time-out, and began "
                f"{effect.step}"
            )


def events_follow_from_commits(world: World) -> Iterator[str]:
    """What a handler returned is in the stream only after its transaction was committed; what was rolled back never."""
    first: dict[tuple[str, str, str], datetime] = {}
    published_by_steps: dict[tuple[str, str], bool] = {}
    for participant in world.scenario.participants:
        for step in participant.steps:
            for signature in (step.forward_signature, step.undo_signature, step.irrevocable_signature):
                for produced in signature.produces:
                    published_by_steps[participant.name, produced.DESCRIPTOR.full_name] = True
    for effect, time in world.committed_at.items():
        for event_type in effect.published:
            at = (effect.participant, effect.key, event_type)
            first[at] = min(first.get(at, time), time)
    for event in world.events:
        if (event.source, event.type) not in published_by_steps:
            continue
        committed = first.get((event.source, event.key, event.type))
        if committed is None:
            yield f"{event.key}: {_short(event)} of {event.source} was published, and no committed step returned it"
        elif event.stream_time < committed:
            yield f"{event.key}: {_short(event)} of {event.source} was published before it was committed"


def events_keep_their_order(world: World) -> Iterator[str]:
    """What a participant has to say of one saga is in the stream in the order in which it was committed."""
    stored: dict[tuple[str, str, str], Event] = {}
    for event in world.events:
        stored.setdefault((event.source, event.key, event.type), event)
    returned = Counter((e.participant, e.key, event_type) for e in world.effects for event_type in e.published)
    last: dict[tuple[str, str], Event] = {}
    for effect in world.effects:
        of_saga = (effect.participant, effect.key)
        for event_type in effect.published:
            told = stored.get((*of_saga, event_type))
            if told is None or returned[*of_saga, event_type] > 1:
                continue  # it can't be told which of several it is
            before = last.get(of_saga)
            if before is not None and before.sequence > told.sequence:
                yield f"{effect.key}: {_short(told)} of {effect.participant} was committed after {_short(before)}"
            last[of_saga] = told


def histories_are_complete(world: World) -> Iterator[str]:
    """Every event under the key of a saga that concerns it is in its history."""
    definitions = {definition.name: definition for definition in world.scenario.definitions}
    listed = {
        identity: {entry.fact.sequence for entry in record.saga.history} for identity, record in world.records.items()
    }
    for event in world.events:
        lifecycle = event.fact.lifecycle
        for name, definition in definitions.items():
            concerns = lifecycle.definition == name if lifecycle is not None else event.type in definition.event_types
            if concerns and event.sequence not in listed.get((name, event.key), ()):
                yield f"{name} {event.key}: {_short(event)} is missing in its history"


def records_are_a_fold(world: World) -> Iterator[str]:
    """The records are what a fold of the whole stream from its beginning gives."""
    definitions = Definitions(world.scenario.definitions)
    folded: dict[str, dict[str, Saga]] = defaultdict(dict)
    for event in world.events:
        folded[event.key] |= fold(definitions, folded[event.key], event)
    again = {(name, key): saga for key, sagas in folded.items() for name, saga in sagas.items()}
    for identity in sorted(again.keys() | world.records.keys()):
        record = world.records.get(identity)
        if record is None or record.saga != again.get(identity):
            yield f"{' '.join(identity)}: its record is not what a fold of the stream gives"


def _ended(
    world: World,
) -> Iterator[tuple[Definition, str, Saga, Mapping[tuple[str, str], Mapping[Direction, Effect]]]]:
    """The sagas that have ended, each with what was done for it: by (participant, step)."""
    definitions = {definition.name: definition for definition in world.scenario.definitions}
    done: dict[tuple[str, str], dict[tuple[str, str], dict[Direction, Effect]]] = defaultdict(lambda: defaultdict(dict))
    for effect in world.effects:
        done[effect.definition, effect.key][effect.participant, effect.step][effect.direction] = effect
    for (name, key), saga in world.sagas.items():
        if saga.status.is_terminal:
            yield definitions[name], key, saga, done[name, key]


def _steps_of(world: World, definition: Definition) -> Iterator[tuple[Participant, Step]]:
    for participant in world.scenario.participants:
        for step in participant.steps:
            if step.saga == definition.name and step.name in definition.index:
                yield participant, step


def _short(event: Event) -> str:
    return f"{event.type.rpartition('.')[2]} ({event.sequence})"
