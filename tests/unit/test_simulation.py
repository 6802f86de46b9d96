"""Simulated runs of the sample sagas: they come through, they are the same each time, and they notice what is wrong."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa

from farandole.participant.participant import Participant
from farandole.participant.transaction import Transaction
from farandole.testing.simulation import (
    Fault,
    Faults,
    Scenario,
    SimulationFailedError,
    Summary,
    World,
    run_seed,
    simulate,
)
from farandole.testing.simulation.campaign import failure_text
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentFailed, PaymentProcessed
from services import simulation as samples
from services.payments import handlers as payments_handlers
from services.payments import store as payments_store
from services.payments.service import payments

ROOT = Path(__file__).resolve().parents[2]
MOST_RUNS = 20
SOME_SEEDS = range(30)


def test_the_sample_sagas_come_through() -> None:
    summary = simulate(samples.scenario, SOME_SEEDS)
    assert summary.runs == len(SOME_SEEDS)
    assert set(summary.sagas) <= {"COMPLETED", "COMPENSATED", "FAILED"}
    assert min(summary.sagas["COMPLETED"], summary.sagas["COMPENSATED"]) > summary.runs / 3


def calm(random: Random) -> Scenario:
    """The sample sagas without any fault, and without a time-out."""
    scenario = samples.scenario(random)
    patient = [dataclasses.replace(one, deadline=timedelta(hours=1)) for one in scenario.definitions]
    return dataclasses.replace(scenario, definitions=patient, faults=Faults.none())


def test_without_faults_nothing_strikes() -> None:
    summary = simulate(calm, range(10))
    assert not summary.strikes
    assert summary.seconds < 10 * 20, "nobody waits for an hour"


def test_a_trace_changes_nothing() -> None:
    for seed in range(2):
        plain, traced = run_seed(samples.scenario, seed), run_seed(samples.scenario, seed, traced=True)
        assert dataclasses.replace(traced, trace=plain.trace) == plain


def test_a_seed_is_the_same_run_after_other_runs() -> None:
    first = run_seed(samples.scenario, 7, traced=True).trace.table()
    run_seed(samples.scenario, 1)
    assert run_seed(samples.scenario, 7, traced=True).trace.table() == first


def replayed(*arguments: str, hash_seed: str = "0", scenario: str = "services.simulation:scenario") -> tuple[int, str]:
    """What the command prints for a seed, in a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "farandole.testing.simulation", scenario, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_seed_is_the_same_run_in_every_python() -> None:
    """Sets of text have another order in each."""
    first, second = replayed("--seed", "2", hash_seed="1"), replayed("--seed", "2", hash_seed="2")
    assert first == second
    assert first[0] == 0
    assert "seed 2 of services.simulation:scenario: all is well" in first[1]


def charge_and_forget(event: ItemsReserved, tx: Transaction) -> PaymentProcessed | PaymentFailed:
    """A charge with a slip: it writes nothing down where the amount is odd."""
    outcome = payments_handlers.charge(event, tx)
    if event.amount_cents % 2:
        tx.execute(sa.delete(payments_store.payments))
    return outcome


careless_payments = Participant(
    "payments",
    dataclasses.replace(payments.steps[0], forward=charge_and_forget),
    metadata=payments_store.metadata,
)


def careless(random: Random) -> Scenario:
    """The orders, with a payments service that has a slip."""
    scenario = samples.scenario(random)
    return dataclasses.replace(
        scenario,
        participants=[careless_payments if one is payments else one for one in scenario.participants],
        faults=Faults.none(),
    )


def test_a_seed_that_fails_tells_what_is_wrong_and_what_happened() -> None:
    with pytest.raises(SimulationFailedError) as failed:
        simulate(careless, range(100))
    text = str(failed.value)
    assert "fails:" in text
    assert "cents were taken and kept" in text or "NoResultFound" in text
    assert "take-payment of order-fulfilment" in text, "the run as a table"


def test_the_command_replays_a_seed_that_fails() -> None:
    scenario = "tests.unit.test_simulation:careless"
    code, told = replayed("--seeds", "50", "--processes", "2", scenario=scenario)
    assert code == 1
    assert told.splitlines()[-1].startswith("  ")
    seed = told.splitlines()[-1].split()[-1]
    assert f"-m farandole.testing.simulation {scenario} --seed {seed}" in told
    again, replay = replayed("--seed", seed, scenario=scenario)
    assert again == 1
    assert f"seed {seed} of {scenario} fails:" in replay
    assert replay.split(" fails:")[1].strip() in told


def unpredictable(random: Random) -> Scenario:
    """A check that no seed decides."""
    scenario = calm(random)

    def check(_world: World) -> Iterable[str]:
        return [f"something else each time: {os.urandom(8).hex()}"]

    return dataclasses.replace(scenario, check=check)


def test_a_run_that_does_not_follow_from_its_seed_is_told() -> None:
    failed = run_seed(unpredictable, 1)
    assert "it went another way" in failure_text(unpredictable, failed)


def test_what_a_check_raises_is_told_as_what_is_wrong() -> None:
    def raising(random: Random) -> Scenario:
        def check(world: World) -> Iterable[str]:
            raise KeyError(len(world.sagas))

        return dataclasses.replace(calm(random), check=check)

    [violation] = run_seed(raising, 1).violations
    assert "KeyError" in violation


def test_a_kind_of_fault_that_never_strikes_is_told() -> None:
    summary = Summary()
    result = run_seed(calm, 1)
    summary.add(dataclasses.replace(result, drawn=Counter({Fault.KILL: 30, Fault.CUT: 3})))
    assert summary.never_struck == [Fault.KILL], "by chance it may well be that the other has not struck yet"


BRINGS_ABOUT = {Fault.BROKER_FULL: {Fault.BROKER_RESTART}}
"""A broker whose disk was full has to be started anew."""


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name.lower())
def test_each_kind_of_fault_strikes_and_is_survived(fault: Fault) -> None:
    def scenario(random: Random) -> Scenario:
        return dataclasses.replace(samples.scenario(random), faults=Faults(rates={fault: 20.0}))

    strikes: set[Fault] = set()
    for seed in range(MOST_RUNS):
        result = run_seed(scenario, seed)
        assert not result.violations, seed
        strikes |= set(result.strikes)
        if fault in strikes:
            break
    assert fault in strikes
    assert strikes <= {fault} | BRINGS_ABOUT.get(fault, set())
