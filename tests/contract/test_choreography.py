"""The definitions and the participants fit: what a definition says of a step, its participant's code does, and no more.

A participant's contract is what it answers to `GetContract`, read from the annotations of its handlers.
"""

from __future__ import annotations

import pytest

from choreography.v1 import participant_pb2
from farandole.definition import Definition, StepDefinition
from farandole.definition_files import load_definitions
from services.delivery.service import delivery
from services.drones.service import drones
from services.inventory.service import inventory
from services.orders.service import orders
from services.packaging.service import packaging
from services.parcels.service import parcels
from services.payments.service import payments
from services.shipping.service import shipping
from tests.contract.vectors import ROOT, registry

REGISTRY = registry()
PARTICIPANTS = {
    participant.name: participant
    for participant in (orders, inventory, payments, shipping, parcels, packaging, drones, delivery)
}
CONTRACTS = {name: participant.contract for name, participant in PARTICIPANTS.items()}
DEFINITIONS = load_definitions(ROOT / "services/correlator/sagas", REGISTRY)
STEPS = [
    pytest.param(definition, step, id=f"{definition.name}-{definition.version}-{step.name}")
    for definition in DEFINITIONS
    for step in definition.steps
]
TIMED_OUT = "choreography.v1.SagaTimedOut"


def _contract(definition: Definition, step: StepDefinition) -> participant_pb2.StepContract:
    found = [
        declared
        for declared in CONTRACTS[step.participant].steps
        if (declared.saga, declared.name) == (definition.name, step.name)
    ]
    assert len(found) == 1, f"{step.participant} declares {len(found)} steps {step.name!r} of {definition.name}"
    return found[0]


def test_both_sagas_are_defined() -> None:
    assert {definition.name for definition in DEFINITIONS} == {"order-fulfilment", "drone-delivery"}


def test_participants_declare_the_steps_of_the_definitions_and_no_others() -> None:
    """Code that does more than was agreed is found here, and so is a step that no one carries out."""
    agreed = {(d.name, step.name, step.participant) for d in DEFINITIONS for step in d.steps}
    declared = {(step.saga, step.name, name) for name, contract in CONTRACTS.items() for step in contract.steps}
    assert agreed == declared


@pytest.mark.parametrize(("definition", "step"), STEPS)
def test_a_step_is_triggered_by_what_the_definition_says(definition: Definition, step: StepDefinition) -> None:
    # the step that begins a saga has no trigger but the initiating event, its own success, which comes from outside
    begins = {definition.initiating_event} & {step.success}
    assert set(_contract(definition, step).consumes) == {*step.triggers, *step.all_of, *begins}
    assert _contract(definition, step).needs_all is bool(step.all_of)


@pytest.mark.parametrize(("definition", "step"), STEPS)
def test_a_step_ends_with_what_the_definition_says(definition: Definition, step: StepDefinition) -> None:
    outside = {definition.initiating_event} & set(CONTRACTS[step.participant].publishes)
    assert set(_contract(definition, step).produces) == {step.success, *step.failures} - outside


@pytest.mark.parametrize(("definition", "step"), STEPS)
def test_a_step_is_undone_as_the_definition_says(definition: Definition, step: StepDefinition) -> None:
    """A definition does not name the time-out, which undoes whatever can be undone."""
    declared = _contract(definition, step)
    undone_by, undone_with = set(declared.undo_consumes), set(declared.undo_produces)
    if step.compensation is not None:
        assert undone_by == {*step.compensation.triggers, TIMED_OUT}
        assert undone_with == {step.compensation.completion}
    elif declared.reads_back:
        assert undone_by == {TIMED_OUT}
        assert undone_with, "an act that is called off is answered with a failure event"
        assert undone_with <= set(step.failures)
    else:
        assert (undone_by, undone_with) == (set(), set())


@pytest.mark.parametrize(("definition", "step"), STEPS)
def test_an_act_that_cannot_be_undone_waits_for_the_commit_event(definition: Definition, step: StepDefinition) -> None:
    read_back = set(_contract(definition, step).reads_back)
    assert read_back in (set(), {step.success})
    if read_back:
        assert step.success == definition.commit_event, "only behind the commit event no time-out can come"


def test_the_delivery_is_the_act_that_cannot_be_undone() -> None:
    acts = {(step.saga, step.name) for contract in CONTRACTS.values() for step in contract.steps if step.reads_back}
    [deliver] = [s for d in DEFINITIONS if d.name == "drone-delivery" for s in d.steps if s.participant == "delivery"]
    assert acts == {("drone-delivery", deliver.name)}


def test_every_consumed_event_exists_and_someone_publishes_it() -> None:
    published = {
        name
        for contract in CONTRACTS.values()
        for names in (contract.publishes, *((*s.produces, *s.undo_produces) for s in contract.steps))
        for name in names
    }
    for contract in CONTRACTS.values():
        for step in contract.steps:
            for name in (*step.consumes, *step.undo_consumes):
                assert REGISTRY.get(name) is not None, f"{contract.participant} consumes {name}, which is no event"
                by_the_correlator = name.startswith("choreography.v1.")
                assert by_the_correlator or name in published, f"no one publishes {name}"


@pytest.mark.parametrize("name", PARTICIPANTS)
def test_every_event_of_a_sample_service_is_published_by_that_service(name: str) -> None:
    contract = CONTRACTS[name]
    own = {event.name for event in REGISTRY if event.name.startswith(f"{name}.v1.")}
    publishes = {*contract.publishes, *(n for s in contract.steps for n in (*s.produces, *s.undo_produces))}
    assert own == publishes


@pytest.mark.parametrize("definition", DEFINITIONS, ids=str)
def test_the_commit_event_and_the_failures_are_marked_in_their_schema(definition: Definition) -> None:
    commit = REGISTRY.get(definition.commit_event)
    assert commit is not None
    assert commit.is_commit
    for step in definition.steps:
        success = REGISTRY.get(step.success)
        assert success is not None
        assert not success.is_failure
        for name in step.failures:
            failure = REGISTRY.get(name)
            assert failure is not None
            assert failure.is_failure


def test_nothing_but_the_events_of_definitions_is_marked() -> None:
    """A participant reads from the mark whether its step failed; the correlator reads it from the definition."""
    failures = {name for d in DEFINITIONS for step in d.steps for name in step.failures}
    commits = {d.commit_event for d in DEFINITIONS}
    assert {event.name for event in REGISTRY if event.is_failure} == failures
    assert {event.name for event in REGISTRY if event.is_commit} == commits


@pytest.mark.parametrize("definition", DEFINITIONS, ids=str)
def test_a_definition_names_known_events_only(definition: Definition) -> None:
    assert set(definition.event_types) <= set(REGISTRY.types)
