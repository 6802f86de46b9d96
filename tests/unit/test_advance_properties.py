"""What holds of every record, whatever happens and in whatever order it arrives."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.advance import PendingLifecycle, advance, pending_lifecycle
from farandole.deadlines import due_lifecycle, next_deadline
from farandole.definition import CompensationDefinition, Definition, StepDefinition, StepKind, validate
from farandole.lifecycle import CORRELATOR, SAGA_TIMED_OUT, open_dead_letters
from farandole.saga import Cause, Disposition, Fact, Health, Lifecycle, Saga, Status, StepStatus
from tests.unit.saga_histories import (
    KEY,
    ORDER_FULFILMENT,
    START,
    Told,
    dead_letter,
    facts_of,
    fold,
    timed_out,
    voided,
)


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    """A small valid definition: layers of parallel steps, a pivot, then retriable steps."""
    durations = st.none() | st.integers(1, 100).map(lambda seconds: timedelta(seconds=seconds))
    is_external = draw(st.booleans())
    initiating = "t.v1.Asked" if is_external else "t.v1.Begun"
    steps: list[StepDefinition] = []
    if not is_external:
        compensation = CompensationDefinition((), "t.v1.BegunUndone", draw(durations))
        steps.append(StepDefinition("begin", "p", StepKind.COMPENSATABLE, (), (), initiating, (), None, compensation))
    layer = [initiating]

    def next_layer(kind: StepKind, names: list[str]) -> list[str]:
        for name in names:
            can_fail = kind is not StepKind.RETRIABLE and draw(st.booleans())
            can_be_undone = kind is not StepKind.RETRIABLE and draw(st.booleans())
            steps.append(
                StepDefinition(
                    name=name,
                    participant="p",
                    kind=kind,
                    triggers=tuple(layer) if len(layer) == 1 else (),
                    all_of=tuple(layer) if len(layer) > 1 else (),
                    success=f"t.v1.{name.title()}Done",
                    failures=(f"t.v1.{name.title()}Failed",) if can_fail else (),
                    deadline=draw(durations),
                    compensation=CompensationDefinition((), f"t.v1.{name.title()}Undone", draw(durations))
                    if can_be_undone
                    else None,
                )
            )
        return [f"t.v1.{name.title()}Done" for name in names]

    for number in range(draw(st.integers(0, 2))):
        width = draw(st.integers(1, 2))
        layer = next_layer(StepKind.COMPENSATABLE, [f"before{number}{letter}" for letter in "ab"[:width]])
    layer = next_layer(StepKind.PIVOT, ["pivot"])
    for number in range(draw(st.integers(0, 2))):
        layer = next_layer(StepKind.RETRIABLE, [f"after{number}"])
    undoing = [
        t for step in steps for t in (*step.failures, *([step.compensation.completion] if step.compensation else []))
    ]
    for index, step in enumerate(steps):
        others = [event_type for event_type in undoing if not event_type.startswith(step.success.removesuffix("Done"))]
        if step.compensation and others:
            triggers = tuple(draw(st.lists(st.sampled_from(others), unique=True, max_size=3)))
            steps[index] = replace(step, compensation=replace(step.compensation, triggers=triggers))
    definition = Definition("random", 1, "", timedelta(seconds=60), initiating, "t.v1.PivotDone", tuple(steps))
    types = (
        {event_type for step in steps for event_type in (step.success, *step.failures)} | set(undoing) | {initiating}
    )
    assert validate(definition.to_message(), types) == []
    return definition


def _business(blank: Fact, event_type: str, body: str = "") -> Fact:
    return replace(blank, type=event_type, digest=f"{event_type}{body}".encode())


def _read_back(pending: PendingLifecycle, blank: Fact) -> Fact:
    """A lifecycle event of the correlator as the stream gives it back."""
    about = Lifecycle(pending.definition, pending.version, pending.cause, pending.steps, pending.compensation)
    digest = f"{pending.type} {about} {pending.deadline}".encode()
    return replace(blank, type=pending.type, source=CORRELATOR, id=pending.id, digest=digest, lifecycle=about)


def _foreseen(definition: Definition, saga: Saga | None, blank: Fact) -> list[Fact]:
    """What may come next where all do as the definition says, late successes and dead letters included."""
    if saga is None or not saga.is_started:
        return [_business(blank, definition.initiating_event)]
    due = due_lifecycle(definition, saga, blank.stream_time)
    facts = [_read_back(pending, blank) for pending in (*pending_lifecycle(definition, saga), *due)]
    is_timed_out = saga.cause in {Cause.DEADLINE, Cause.OPERATOR}
    for step, record in zip(definition.steps, saga.steps, strict=True):
        if record.status is StepStatus.RUNNING:
            facts += [_business(blank, event_type) for event_type in (step.success, *step.failures)]
            facts.append(_about_step(definition, blank, "StepVoided", step.name))
            facts.append(_about_step(definition, blank, "DeadLetterRecorded", step.name, dead_letter=1))
        elif record.status is StepStatus.COMPENSATING:
            facts += [_business(blank, step.compensation.completion)] if step.compensation else []
            facts += [_business(blank, failure) for failure in step.failures if not step.compensation]
            facts.append(
                _about_step(definition, blank, "DeadLetterRecorded", step.name, compensation=True, dead_letter=2)
            )
        elif record.status is StepStatus.PENDING and (is_timed_out or saga.status.is_terminal):
            facts.append(_business(blank, step.success))
            facts.append(_about_step(definition, blank, "StepVoided", step.name))
    for letter in open_dead_letters(saga):
        facts.append(_about_step(definition, blank, "DeadLetterRedriven", letter.step, dead_letter=letter.sequence))
    return facts


def _about_step(
    definition: Definition,
    blank: Fact,
    name: str,
    step: str,
    *,
    compensation: bool = False,
    dead_letter: int | None = None,
) -> Fact:
    letter = (f"participant-of-{step}", dead_letter) if dead_letter is not None else None
    about = Lifecycle(definition.name, 0, Cause.UNSPECIFIED, (step,), compensation, letter)
    return replace(blank, type=f"choreography.v1.{name}", digest=f"{name} {about}".encode(), lifecycle=about)


def _anything(definition: Definition, blank: Fact, number: int) -> Fact:
    """Any event of the definition, with one of two bodies, or one of no definition."""
    types = [*sorted(definition.event_types), "elsewhere.v1.Noise"]
    return _business(blank, types[number % len(types)], "other" if number % 3 == 0 else "")


def _any_lifecycle(definition: Definition, blank: Fact, number: int) -> Fact:
    """Any lifecycle event, justified or not, about this definition or another."""
    names = [
        "SagaTimedOut", "StepVoided", "StepOverdue", "SagaCompleted", "SagaCompensated", "SagaFailed", "SagaStalled",
        "DeadLetterRecorded", "DeadLetterRedriven", "DeadLetterDiscarded", "DeadLetterSuperseded",
    ]  # fmt: skip
    name = names[number % len(names)]
    steps = [step.name for step in definition.steps] + ["no-such-step"]
    first = number % len(steps)
    about = Lifecycle(
        definition="another" if number % 7 == 0 else definition.name,
        version=1,
        cause=Cause.OPERATOR if number % 5 == 0 else Cause.DEADLINE,
        steps=tuple(steps[first : first + (4 if name == "SagaTimedOut" else 1)]),
        compensation=number % 2 == 0,
        dead_letter=(f"participant-of-{steps[first]}", number % 3) if name.startswith("DeadLetter") else None,
    )
    return replace(blank, type=f"choreography.v1.{name}", lifecycle=about, digest=f"{name}{about}".encode())


def _again(fact: Fact, blank: Fact, number: int) -> Fact:
    """A fact that was stored a second time: as it was, under another id, or its id with another body."""
    stored = replace(fact, sequence=blank.sequence, stream_time=blank.stream_time)
    return (stored, replace(stored, id=blank.id), replace(stored, digest=b"other"))[number % 3]


def _history(definition: Definition, choices: list[tuple[int, int]]) -> list[Fact]:
    """Facts in stream order: mostly what the definition foresees, and anything else in between."""
    facts: list[Fact] = []
    saga: Saga | None = None
    now = START
    for sequence, (kind, number) in enumerate(choices, start=1):
        now += timedelta(seconds=(0, 1, 50, 1, 2000, 1, 10)[number % 7])
        blank = Fact(sequence, now, "", "p", f"event-{sequence}", b"", now)
        foreseen = _foreseen(definition, saga, blank)
        if kind < 6 and foreseen:
            fact = foreseen[0 if kind < 2 else number % len(foreseen)]
        elif kind < 7 and facts:
            fact = _again(facts[number % len(facts)], blank, number)
        elif kind < 8:
            fact = _any_lifecycle(definition, blank, number)
        else:
            fact = _anything(definition, blank, number)
        facts.append(fact)
        saga = advance(definition, saga, fact, key=KEY)
    return facts


_CHOICE = st.tuples(st.integers(0, 8), st.integers(0, 1000))
CHOICES = st.lists(_CHOICE, min_size=1, max_size=20) | st.lists(_CHOICE, min_size=10, max_size=24)


@st.composite
def stories(draw: st.DrawFn) -> tuple[Definition, list[Fact]]:
    """A definition and a history of one of its sagas."""
    definition = draw(st.just(ORDER_FULFILMENT) | definitions())
    return definition, _history(definition, draw(CHOICES))


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Definition, list[Fact], list[Fact]]:
    """A story, and the order in which its facts arrive, some of them more than once."""
    definition, facts = draw(stories())
    repeated = draw(st.lists(st.sampled_from(facts), max_size=4))
    return definition, facts, draw(st.permutations(facts + repeated))


@given(arrivals())
def test_any_order_of_arrival_with_duplicates_gives_the_same_record(
    story: tuple[Definition, list[Fact], list[Fact]],
) -> None:
    definition, facts, arriving = story
    assert fold(arriving, definition) == fold(facts, definition)


@given(stories())
def test_folding_again_changes_nothing(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga = fold(facts, definition)
    assert fold(facts, definition, saga) is saga


@given(stories())
def test_every_fact_is_counted_once_and_has_its_entry(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga = fold(facts, definition)
    assert saga.revision == len(facts) == len(saga.history) + saga.history_omitted
    assert [entry.fact for entry in saga.history] == facts
    assert all(bool(entry.reason) == (entry.disposition is not Disposition.APPLIED) for entry in saga.history)


@given(stories())
def test_nothing_waits_in_a_saga_that_has_ended(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga = fold(facts, definition)
    assert (saga.end_time is not None) == saga.status.is_terminal
    if saga.status.is_terminal:
        assert Disposition.EARLY not in {entry.disposition for entry in saga.history}
        assert pending_lifecycle(definition, saga) == ()


@given(stories())
def test_a_status_is_terminal_only_where_the_record_justifies_it(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga = fold(facts, definition)
    steps = {step.status for step in saga.steps}
    undoable = {
        record.status
        for record, step in zip(saga.steps, definition.steps, strict=True)
        if step.compensation is not None
    }
    if saga.status is Status.COMPLETED:
        assert steps == {StepStatus.SUCCEEDED}
    elif saga.status.is_terminal:
        assert StepStatus.COMPENSATING not in steps
        assert StepStatus.RUNNING not in steps or saga.cause in {Cause.DEADLINE, Cause.OPERATOR}
        assert StepStatus.SUCCEEDED not in undoable
        assert (StepStatus.COMPENSATED in steps) == (saga.status is Status.COMPENSATED)


@given(stories())
def test_a_status_is_terminal_only_once_its_event_has_been_read_back(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga = fold(facts, definition)
    if saga.status.is_terminal:
        applied = {entry.fact.type for entry in saga.history if entry.disposition is Disposition.APPLIED}
        assert f"choreography.v1.Saga{saga.status.name.title()}" in applied


@given(stories())
def test_what_succeeded_and_must_be_undone_is_not_lost(story: tuple[Definition, list[Fact]]) -> None:
    """Whatever becomes of time-outs, commit events, voided steps and dead letters in between."""
    definition, facts = story
    saga: Saga | None = None
    for fact in facts:
        saga = advance(definition, saga, fact, key=KEY)
        assert_nothing_is_lost(definition, saga)


def test_in_no_order_of_time_out_commit_void_and_dead_letters_a_success_is_lost() -> None:
    """Every order of them, each time up to the saga's end."""
    given_up = dead_letter("Recorded", "take-payment", 50, compensation=True)
    racing: tuple[str | Told, ...] = (timed_out(), "PaymentProcessed", "OrderShipped", voided("ship-order"), given_up)
    for order in permutations(racing):
        facts = facts_of(("OrderCreated", "ItemsReserved", *order, dead_letter("Redriven", "take-payment", 50)))
        saga = fold(facts)
        assert_nothing_is_lost(ORDER_FULFILMENT, saga)
        assert saga.status is (Status.COMPENSATING if saga.cause else Status.RUNNING)
        answered = _answered(ORDER_FULFILMENT, saga)
        assert_nothing_is_lost(ORDER_FULFILMENT, answered)
        assert answered.status is (Status.COMPENSATED if saga.cause else Status.COMPLETED)


def _answered(definition: Definition, saga: Saga) -> Saga:
    """The record at the saga's end, once everyone has done what is foreseen of them."""
    while not saga.status.is_terminal:
        blank = replace(_after(saga, saga.update_time), id=f"answer-{saga.revision}")
        saga = advance(definition, saga, _foreseen(definition, saga, blank)[0], key=KEY)
    return saga


def assert_nothing_is_lost(definition: Definition, saga: Saga) -> None:
    """Every success that counts is there still, or is being undone, or has been undone."""
    counted = {
        entry.fact.type
        for entry in saga.history
        if entry.disposition in {Disposition.APPLIED, Disposition.LATE, Disposition.EARLY}
    }
    for step, record in zip(definition.steps, saga.steps, strict=True):
        if step.success not in counted or step.compensation is None:
            continue
        if saga.status in {Status.RUNNING, Status.COMPLETED}:
            held = {StepStatus.PENDING, StepStatus.SUCCEEDED, StepStatus.VOIDED}
        elif saga.status.is_terminal:
            held = {StepStatus.COMPENSATED}
        else:
            held = {StepStatus.SUCCEEDED, StepStatus.COMPENSATING, StepStatus.COMPENSATED}
        if step.success == definition.initiating_event:
            held |= {StepStatus.VOIDED, StepStatus.FAILED}
        assert record.status in held, f"{step.name} of a saga that is {saga.status.name}"


@given(stories())
def test_a_saga_that_completed_stays_completed(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga: Saga | None = None
    has_completed = False
    for fact in facts:
        saga = advance(definition, saga, fact, key=KEY)
        has_completed = has_completed or saga.status is Status.COMPLETED
        assert not has_completed or saga.status is Status.COMPLETED


@given(stories())
def test_a_saga_that_committed_is_never_undone(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga: Saga | None = None
    for fact in facts:
        before = saga
        saga = advance(definition, before, fact, key=KEY)
        if before is None or before.status is not Status.RUNNING:
            continue
        if before.steps[definition.pivot].status is StepStatus.SUCCEEDED:
            assert saga.status in {Status.RUNNING, Status.COMPLETED}
            assert saga.cause is Cause.UNSPECIFIED


@given(stories())
def test_a_pending_end_is_accepted_when_it_is_read_back(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga = fold(facts, definition)
    for pending in pending_lifecycle(definition, saga):
        ended = advance(definition, saga, _read_back(pending, _after(saga, saga.update_time)), key=KEY)
        assert ended.status.is_terminal
        assert ended.history[-1].disposition is Disposition.APPLIED


@given(stories(), st.integers(0, 5000))
def test_something_is_due_exactly_where_the_next_deadline_has_passed(
    story: tuple[Definition, list[Fact]], seconds: int
) -> None:
    definition, facts = story
    saga: Saga | None = None
    for fact in facts:
        saga = advance(definition, saga, fact, key=KEY)
        deadline = next_deadline(saga)
        for now in (START + timedelta(seconds=seconds), *([deadline] if deadline is not None else [])):
            due = due_lifecycle(definition, saga, now)
            assert bool(due) == (deadline is not None and deadline <= now)
            assert [one.deadline for one in due] == sorted(one.deadline for one in due if one.deadline is not None)
            assert len({one.id for one in due}) == len(due)


@given(stories(), st.integers(0, 5000))
def test_what_was_due_and_has_been_read_back_is_not_due_again(
    story: tuple[Definition, list[Fact]], seconds: int
) -> None:
    """Else the correlator would publish for ever."""
    definition, facts = story
    saga = fold(facts, definition)
    now = saga.update_time + timedelta(seconds=seconds)
    told: list[str] = []
    while due := due_lifecycle(definition, saga, now):
        told += [one.id for one in due]
        assert len(set(told)) == len(told) <= 2 * len(definition.steps) + 2
        for one in due:
            saga = advance(definition, saga, _read_back(one, _after(saga, now)), key=KEY)
    deadline = next_deadline(saga)
    assert deadline is None or deadline > now


@given(stories())
def test_a_saga_is_timed_out_once_and_never_after_its_commit_event(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga: Saga | None = None
    ids: set[str] = set()
    for fact in facts:
        saga = advance(definition, saga, fact, key=KEY)
        due = due_lifecycle(definition, saga, saga.update_time + timedelta(days=1))
        time_outs = [one for one in due if one.type == SAGA_TIMED_OUT]
        ids |= {one.id for one in time_outs}
        entries = [entry for entry in saga.history if entry.disposition is not Disposition.UNMATCHED]
        has_commit = any(
            entry.fact.type == definition.commit_event and entry.disposition is not Disposition.DUPLICATE
            for entry in entries
        )
        applied = [
            entry for entry in entries if entry.fact.type == SAGA_TIMED_OUT and entry.disposition is Disposition.APPLIED
        ]
        assert len(applied) <= 1
        assert len(time_outs) <= (0 if has_commit or applied or saga.status is not Status.RUNNING else 1)
        assert all(one.steps == tuple(step.name for step in definition.steps) for one in time_outs)
    assert len(ids) <= 1


@given(stories())
def test_a_saga_is_quarantined_exactly_while_a_dead_letter_of_it_is_open(story: tuple[Definition, list[Fact]]) -> None:
    definition, facts = story
    saga: Saga | None = None
    for fact in facts:
        saga = advance(definition, saga, fact, key=KEY)
        letters = open_dead_letters(saga)
        assert (saga.health is Health.QUARANTINED) == bool(letters)
        assert saga.status is not Status.COMPENSATION_FAILED or any(letter.compensation for letter in letters)
        assert not saga.status.is_terminal or saga.health in {Health.ON_TIME, Health.QUARANTINED}


def _after(saga: Saga, now: datetime) -> Fact:
    """The next fact after a record's last."""
    return Fact(saga.history[-1].fact.sequence + 1, now, "", "p", "", b"", now)


def test_the_stories_reach_everything() -> None:
    """The properties above say little where the stories never get that far."""
    statuses: set[Status] = set()
    healths: set[Health] = set()
    reopened: set[Cause] = set()
    ended_while_running = 0
    awaited_act = 0

    @settings(derandomize=True, max_examples=300)
    @given(stories())
    def look(story: tuple[Definition, list[Fact]]) -> None:
        nonlocal ended_while_running, awaited_act
        definition, facts = story
        saga: Saga | None = None
        for fact in facts:
            before = saga
            saga = advance(definition, before, fact, key=KEY)
            statuses.add(saga.status)
            healths.add(saga.health)
            if before is not None and before.status.is_terminal and not saga.status.is_terminal:
                reopened.add(saga.cause)
            steps = {step.status for step in saga.steps}
            ended_while_running += saga.status.is_terminal and StepStatus.RUNNING in steps
            awaited_act += any(
                record.status is StepStatus.COMPENSATING and step.compensation is None
                for record, step in zip(saga.steps, definition.steps, strict=True)
            )

    look()
    assert (statuses, healths) == (set(Status), set(Health))
    assert {Cause.STEP_FAILURE, Cause.DEADLINE} <= reopened
    assert ended_while_running
    assert awaited_act
