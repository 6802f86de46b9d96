"""The definitions and the participants fit: what a definition names, a participant's code says that it does."""

from __future__ import annotations

import pytest

from choreography.v1 import participant_pb2
from farandole.definition import Definition, StepDefinition
from farandole.definition_files import load_definitions
from services.inventory.service import inventory
from services.orders.service import orders
from services.payments.service import payments
from services.shipping.service import shipping
from tests.contract.vectors import ROOT, registry

REGISTRY = registry()
PARTICIPANTS = {participant.name: participant for participant in (orders, inventory, payments, shipping)}
CONTRACTS = {name: participant.contract for name, participant in PARTICIPANTS.items()}
DEFINITIONS = load_definitions(ROOT / "services/correlator/sagas", REGISTRY)
STEPS = [
    pytest.param(definition, step, id=f"{definition.name}-{definition.version}-{step.name}")
    for definition in DEFINITIONS
    for step in definition.steps
]
DECLARED = [
    pytest.param(contract.participant, step, id=f"{contract.participant}-{step.name}")
    for contract in CONTRACTS.values()
    for step in contract.steps
]


def _contract(definition: Definition, step: StepDefinition) -> participant_pb2.StepContract:
    found = [
        declared
        for declared in CONTRACTS[step.participant].steps
        if (declared.saga, declared.name) == (definition.name, step.name)
    ]
    assert len(found) == 1, f"{step.participant} declares {len(found)} steps {step.name!r} of {definition.name}"
    return found[0]


def test_the_order_saga_is_defined() -> None:
    assert "order-fulfilment" in {definition.name for definition in DEFINITIONS}


@pytest.mark.parametrize(("definition", "step"), STEPS)
def test_every_outcome_of_a_step_has_its_producer(definition: Definition, step: StepDefinition) -> None:
    outside = set(CONTRACTS[step.participant].publishes)
    declared = _contract(definition, step)
    outcomes = {step.success, *step.failures}
    # the success of the step that begins a saga is the initiating event, which comes from outside any step
    missing = outcomes - set(declared.produces) - (outside & {definition.initiating_event})
    assert not missing
    if step.compensation is not None:
        assert step.compensation.completion in declared.undo_produces


@pytest.mark.parametrize(("definition", "step"), STEPS)
def test_what_triggers_a_step_is_consumed_by_it(definition: Definition, step: StepDefinition) -> None:
    declared = _contract(definition, step)
    consumes = set(declared.consumes)
    if step.success == definition.initiating_event:
        consumes -= {definition.initiating_event}  # it is the step's own success, which its participant records
    assert consumes == {*step.triggers, *step.all_of}
    if step.compensation is None:
        assert not declared.undo_consumes
    else:
        assert set(step.compensation.triggers) <= set(declared.undo_consumes)


@pytest.mark.parametrize(("participant", "declared"), DECLARED)
def test_what_a_participant_declares_is_in_a_definition(
    participant: str, declared: participant_pb2.StepContract
) -> None:
    """Code that does more than was agreed is found here, and so is a step that no one awaits."""
    [step] = [
        step
        for definition in DEFINITIONS
        if definition.name == declared.saga
        for step in definition.steps
        if step.name == declared.name
    ]
    assert step.participant == participant
    assert set(declared.produces) <= {step.success, *step.failures}
    agreed = step.compensation
    assert set(declared.undo_produces) <= ({agreed.completion} if agreed else set())
    timed_out = "choreography.v1.SagaTimedOut"
    assert set(declared.undo_consumes) - {timed_out} <= set(agreed.triggers if agreed else ())


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


def test_every_event_of_a_sample_service_is_published_by_that_service() -> None:
    packages = {"orders": orders, "inventory": inventory, "payments": payments, "shipping": shipping}
    for package, participant in packages.items():
        contract = participant.contract
        own = {event.name for event in REGISTRY if event.name.startswith(f"{package}.v1.")}
        publishes = {*contract.publishes, *(n for s in contract.steps for n in (*s.produces, *s.undo_produces))}
        assert own == publishes


@pytest.mark.parametrize("definition", DEFINITIONS, ids=str)
def test_the_commit_event_and_the_failures_are_marked_in_their_schema(definition: Definition) -> None:
    commit = REGISTRY.get(definition.commit_event)
    assert commit is not None
    assert commit.is_commit
    for step in definition.steps:
        for name in step.failures:
            failure = REGISTRY.get(name)
            assert failure is not None
            assert failure.is_failure
