"""What a run is checked for: the end of a run in which all went well, and what is said of it once it is spoilt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import timedelta
from random import Random

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from choreography.v1.lifecycle_pb2 import SagaTimedOut
from choreography.v1.saga_pb2 import SAGA_CAUSE_DEADLINE
from farandole.envelope import Event, StoredMessage, decode, encode
from farandole.ids import message_id
from farandole.lifecycle import CORRELATOR
from farandole.participant.barrier import Direction
from farandole.partitions import partition_of
from farandole.saga import Saga, Status
from farandole.testing.simulation import Faults, Scenario, World, run_seed
from farandole.testing.simulation.effects import Effect
from farandole.testing.simulation.invariants import broken
from services import simulation as samples

MOST_SEEDS = 50
ORDERS = samples.ORDER_FULFILMENT


def ended_well() -> World:
    """The end of a run without faults, in which an order was completed and another one was not."""
    worlds: list[World] = []

    def scenario(random: Random) -> Scenario:
        def keep(world: World) -> Iterable[str]:
            worlds.append(world)
            return ()

        plain = samples.scenario(random)
        patient = [dataclasses.replace(one, deadline=timedelta(hours=1)) for one in plain.definitions]
        return dataclasses.replace(plain, definitions=patient, faults=Faults.none(), check=keep)

    for seed in range(MOST_SEEDS):
        run_seed(scenario, seed)
        statuses = {saga.status for (name, _), saga in worlds[-1].sagas.items() if name == ORDERS}
        if statuses >= {Status.COMPLETED, Status.COMPENSATED} and "ship-order" in undone_steps(worlds[-1]):
            return frozen(worlds[-1])
    raise AssertionError("no such run")


def undone_steps(world: World) -> set[str]:
    """The steps behind those that were undone: what failed after somebody had paid."""
    failed = {effect.step for effect in world.effects if effect.failed}
    return failed if any(effect.direction is Direction.UNDO for effect in world.effects) else set()


def frozen(world: World) -> World:
    """The same, when the databases have gone."""
    names = [participant.name for participant in world.scenario.participants]
    left_over = {name: dict(world.left_over(name)) for name in names}
    inboxes = {name: dict(world.inbox(name)) for name in names}
    return dataclasses.replace(world, left_over=left_over.__getitem__, inbox=inboxes.__getitem__)


@pytest.fixture(scope="module")
def world() -> World:
    return ended_well()


def key_of(world: World, status: Status) -> str:
    return next(key for (name, key), saga in world.sagas.items() if (name, saga.status) == (ORDERS, status))


def with_saga(world: World, key: str, change: Callable[[Saga], Saga]) -> World:
    """The same with another record of an order."""
    record = world.records[ORDERS, key]
    changed = dataclasses.replace(record, saga=change(record.saga))
    return dataclasses.replace(world, records={**world.records, (ORDERS, key): changed})


def without(world: World, key: str, step: str, direction: Direction) -> World:
    """The same without one thing that a handler did."""
    kept = [e for e in world.effects if (e.key, e.step, e.direction) != (key, step, direction)]
    assert len(kept) < len(world.effects)
    return dataclasses.replace(world, effects=kept)


def with_effect(world: World, participant: str, key: str, step: str, direction: Direction) -> World:
    effect = Effect(participant, ORDERS, key, step, direction, (), failed=False)
    return dataclasses.replace(world, effects=[*world.effects, effect])


def timed_out(world: World, key: str, *, after: timedelta) -> Event:
    """A time-out of an order that the stream has stored so long after its beginning, behind all else."""
    payments = next(one for one in world.scenario.participants if one.name == "payments")
    start = world.sagas[ORDERS, key].start_time
    assert start is not None
    deadline = Timestamp()
    deadline.FromDatetime(start)
    body = SagaTimedOut(
        saga_id=key,
        definition=ORDERS,
        version=1,
        steps=["take-payment"],
        cause=SAGA_CAUSE_DEADLINE,
        deadline=deadline,
    )
    name = SagaTimedOut.DESCRIPTOR.full_name
    publication = encode(payments.registry.types[name], body, source=CORRELATOR, time=start)
    stored = StoredMessage(
        f"events.{partition_of(key)}.{name}",
        publication.headers,
        publication.data,
        world.events[-1].sequence + 1,
        start + after,
    )
    event = decode(payments.registry, stored)
    assert isinstance(event, Event)
    return event


def test_nothing_is_wrong_where_all_went_well(world: World) -> None:
    assert list(broken(world)) == []


def test_an_acknowledged_start_that_is_no_saga(world: World) -> None:
    spoilt = dataclasses.replace(world, acknowledged=world.acknowledged | {"ord-99"})
    assert list(broken(spoilt)) == ["ord-99: its start was acknowledged, and there is no saga"]


def test_a_saga_that_has_not_ended(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = with_saga(world, key, lambda saga: dataclasses.replace(saga, status=Status.RUNNING))
    assert any(what.startswith(f"{ORDERS} {key}: has not ended; it is RUNNING") for what in broken(spoilt))


def test_a_row_that_is_left(world: World) -> None:
    spoilt = dataclasses.replace(world, left_over=lambda name: {"farandole_outbox": int(name == "payments")})
    assert list(broken(spoilt)) == ["payments: 1 rows are left in farandole_outbox"]


def test_an_event_that_nobody_has_dealt_with(world: World) -> None:
    reserved = next(event for event in world.events if event.type == "inventory.v1.ItemsReserved")
    inbox = {
        identity: disposition
        for identity, disposition in world.inbox("payments").items()
        if identity != message_id(reserved.source, reserved.id)
    }
    spoilt = dataclasses.replace(
        world, inbox=lambda participant: inbox if participant == "payments" else world.inbox(participant)
    )
    what = f"{reserved.key}: payments has not dealt with ItemsReserved ({reserved.sequence})"
    assert what in set(broken(spoilt))


def test_a_step_that_ran_twice(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = with_effect(world, "payments", key, "take-payment", Direction.FORWARD)
    assert f"{ORDERS} {key}: payments ran forward of take-payment 2 times" in set(broken(spoilt))


def test_a_completed_saga_with_a_step_that_nobody_did(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = without(world, key, "take-payment", Direction.FORWARD)
    assert f"{ORDERS} {key}: is COMPLETED, and payments has not done take-payment" in set(broken(spoilt))


def test_a_completed_saga_with_a_step_that_was_undone(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = with_effect(world, "payments", key, "take-payment", Direction.UNDO)
    assert f"{ORDERS} {key}: is COMPLETED, and payments has undone take-payment" in set(broken(spoilt))


def test_a_compensated_saga_with_something_left(world: World) -> None:
    key = next(e.key for e in world.effects if (e.step, e.direction) == ("take-payment", Direction.UNDO))
    spoilt = without(world, key, "take-payment", Direction.UNDO)
    assert f"{ORDERS} {key}: is COMPENSATED, and payments has not undone take-payment" in set(broken(spoilt))


def test_a_compensated_saga_with_something_undone_that_nobody_had_done(world: World) -> None:
    key = next(e.key for e in world.effects if (e.step, e.direction) == ("take-payment", Direction.UNDO))
    spoilt = without(world, key, "take-payment", Direction.FORWARD)
    what = f"{ORDERS} {key}: is COMPENSATED, and payments has undone take-payment, which it had not done"
    assert what in set(broken(spoilt))


def test_a_time_out_behind_a_commit_event(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = dataclasses.replace(world, events=[*world.events, timed_out(world, key, after=timedelta(hours=2))])
    assert any(f"{ORDERS} {key}: timed out" in what and "after its commit event" in what for what in broken(spoilt))


def test_a_time_out_before_its_deadline(world: World) -> None:
    key = key_of(world, Status.COMPENSATED)
    spoilt = dataclasses.replace(world, events=[*world.events, timed_out(world, key, after=timedelta(minutes=59))])
    assert any("60.000 s before its deadline" in what for what in broken(spoilt))


def test_an_event_that_was_published_before_it_was_committed(world: World) -> None:
    effect = next(effect for effect in world.effects if effect.step == "take-payment" and not effect.failed)
    late = world.events[-1].stream_time + timedelta(hours=1)
    spoilt = dataclasses.replace(world, committed_at={**world.committed_at, effect: late})
    assert any("of payments was published before it was committed" in what for what in broken(spoilt))


def test_an_event_that_no_committed_step_returned(world: World) -> None:
    kept = {effect: time for effect, time in world.committed_at.items() if effect.step != "take-payment"}
    spoilt = dataclasses.replace(world, committed_at=kept)
    assert any("and no committed step returned it" in what for what in broken(spoilt))


def test_an_event_that_is_in_no_history(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = with_saga(world, key, lambda saga: dataclasses.replace(saga, history=saga.history[1:]))
    assert any(f"{ORDERS} {key}: OrderCreated" in what and "missing in its history" in what for what in broken(spoilt))


def test_a_record_that_is_no_fold(world: World) -> None:
    key = key_of(world, Status.COMPLETED)
    spoilt = with_saga(world, key, lambda saga: dataclasses.replace(saga, cause_detail="made up"))
    assert list(broken(spoilt)) == [f"{ORDERS} {key}: its record is not what a fold of the stream gives"]
