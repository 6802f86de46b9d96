"""What holds of every record, whatever happens and in whatever order it arrives."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.advance import advance, pending_lifecycle
from farandole.definition import CompensationDefinition, Definition, StepDefinition, StepKind, validate
from farandole.saga import Cause, Disposition, Fact, Lifecycle, Saga, Status, StepStatus
from tests.unit.saga_histories import KEY, ORDER_FULFILMENT, START, fold


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


def _foreseen(definition: Definition, saga: Saga | None, blank: Fact) -> list[Fact]:
    """What may come next where all participants do as the definition says, one late success included."""
    if saga is None or not saga.is_started:
        return [_business(blank, definition.initiating_event)]
    facts = [
        replace(blank, type=pending.type, id=pending.id, lifecycle=Lifecycle(definition.name, 1, pending.cause))
        for pending in pending_lifecycle(definition, saga)
    ]
    for step, record in zip(definition.steps, saga.steps, strict=True):
        if record.status is StepStatus.RUNNING:
            facts += [_business(blank, event_type) for event_type in (step.success, *step.failures)]
        elif record.status is StepStatus.COMPENSATING and step.compensation:
            facts.append(_business(blank, step.compensation.completion))
        elif saga.status.is_terminal and record.status is StepStatus.PENDING and step.compensation:
            facts.append(_business(blank, step.success))
    return facts


def _anything(definition: Definition, blank: Fact, number: int) -> Fact:
    """Any event of the definition, with one of two bodies, or one of no definition."""
    types = [*sorted(definition.event_types), "elsewhere.v1.Noise"]
    return _business(blank, types[number % len(types)], "other" if number % 3 == 0 else "")


def _any_lifecycle(definition: Definition, blank: Fact, number: int) -> Fact:
    """Any lifecycle event, justified or not, about this definition or another."""
    names = ["SagaTimedOut", "StepVoided", "StepOverdue", "SagaCompleted", "SagaCompensated", "SagaFailed"]
    name = names[number % len(names)]
    steps = [step.name for step in definition.steps] + ["no-such-step"]
    first = number % len(steps)
    about = Lifecycle(
        definition="another" if number % 7 == 0 else definition.name,
        version=1,
        cause=Cause.OPERATOR if number % 5 == 0 else Cause.DEADLINE,
        steps=tuple(steps[first : first + (4 if name == "SagaTimedOut" else 1)]),
        compensation=number % 2 == 0,
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
        now += timedelta(seconds=(0, 1, 50)[number % 3])
        blank = Fact(sequence, now, "", "p", f"event-{sequence}", b"", now)
        foreseen = _foreseen(definition, saga, blank)
        if kind < 6 and foreseen:
            fact = foreseen[number % len(foreseen)]
        elif kind < 7 and facts:
            fact = _again(facts[number % len(facts)], blank, number)
        elif kind < 8:
            fact = _any_lifecycle(definition, blank, number)
        else:
            fact = _anything(definition, blank, number)
        facts.append(fact)
        saga = advance(definition, saga, fact, key=KEY)
    return facts


CHOICES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1000)), min_size=1, max_size=20)


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
        assert not steps & {StepStatus.RUNNING, StepStatus.COMPENSATING}
        assert StepStatus.SUCCEEDED not in undoable
        assert (StepStatus.COMPENSATED in steps) == (saga.status is Status.COMPENSATED)


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
        fact = replace(
            facts[-1],
            sequence=facts[-1].sequence + 1,
            type=pending.type,
            source="correlator",
            id=pending.id,
            lifecycle=Lifecycle(pending.definition, pending.version, pending.cause),
        )
        ended = advance(definition, saga, fact, key=KEY)
        assert ended.status.is_terminal
        assert ended.history[-1].disposition is Disposition.APPLIED


def test_the_stories_reach_every_end() -> None:
    """The properties above say little where the stories never get that far."""
    seen: set[Status] = set()
    reopened = 0

    @settings(derandomize=True, max_examples=300)
    @given(stories())
    def look(story: tuple[Definition, list[Fact]]) -> None:
        nonlocal reopened
        definition, facts = story
        saga: Saga | None = None
        for fact in facts:
            before = saga
            saga = advance(definition, before, fact, key=KEY)
            seen.add(saga.status)
            reopened += before is not None and before.status.is_terminal and not saga.status.is_terminal

    look()
    assert seen == {Status.RUNNING, Status.COMPLETED, Status.COMPENSATING, Status.COMPENSATED, Status.FAILED}
    assert reopened
