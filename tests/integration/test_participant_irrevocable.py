"""What can't be undone happens once, and only where the stream holds its own success event before any undoing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from delivery.v1.delivery_events_pb2 import DeliveryFailed, PackageDelivered
from drones.v1.drone_events_pb2 import DroneProvisioned
from farandole import Participant, Step, Transaction, step
from farandole.envelope import Event, StoredMessage
from farandole.errors import ContractError
from farandole.participant.barrier import BarrierState
from parcels.v1.parcel_events_pb2 import ParcelOrdered
from tests.integration.participant_bench import Bench, bench_at, redriven, timed_out, types, write_down


def decide(event: DroneProvisioned, tx: Transaction) -> PackageDelivered | DeliveryFailed:
    write_down(tx, "decide")
    if event.address == "nowhere":
        return DeliveryFailed(parcel_id=tx.key, reason="address not found")
    return PackageDelivered(parcel_id=tx.key, delivery_id=tx.step_id, drone_id=event.drone_id)


def answer(event: SagaTimedOut, tx: Transaction) -> DeliveryFailed:
    write_down(tx, "answer")
    return DeliveryFailed(parcel_id=tx.key, reason="too late")


def fly(_event: PackageDelivered, tx: Transaction) -> None:
    write_down(tx, "fly")


def deliver(name: str = "deliver-package", saga: str = "drone-delivery") -> Step:
    return step(name, decide, undo=answer, irrevocable=fly, saga=saga)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_at(f"sqlite:///{tmp_path}/payments.db") as bench:
        bench.with_steps(deliver(), name="delivery")
        await bench.handler.claim("stream-1")
        yield bench


def provisioned(*, drone: str = "d1", address: str = "a street") -> DroneProvisioned:
    return DroneProvisioned(parcel_id="o1", drone_id=drone, package_id="p1", address=address)


def time_out(*steps: str) -> SagaTimedOut:
    return timed_out(definition="drone-delivery", steps=steps or ("deliver-package",))


class Story:
    """Feeds events by name; "own" is the success that the participant has published, read back."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.published: list[Event] = []
        self._own: StoredMessage | None = None

    async def tell(self, name: str) -> None:
        bench = self.bench
        match name:
            case "trigger":
                rows = (await bench.handler.handle([bench.message(provisioned(), event_id="t")], ())).rows
                self.published += bench.decoded(rows)
                for row in rows:
                    if row.publication.subject.endswith("PackageDelivered"):
                        self._own = bench.stored(row.publication)
            case "own":
                if self._own is not None:
                    self.published += await bench.take(self._own)
            case "time-out":
                self.published += await bench.take(bench.message(time_out(), event_id="to"))
            case "heard":
                waiting = len(await bench.handler.waiting())
                self.published += (await bench.hear(bench.message(time_out(), event_id="to")))[waiting:]
            case "foreign":
                body = PackageDelivered(parcel_id="o1", delivery_id="x", drone_id="d1")
                self.published += await bench.take(bench.message(body, source="someone"))
            case "impostor":  # the id of what it published, from somebody else
                assert self._own is not None
                own = self._own.headers["ce-id"]
                body = PackageDelivered(parcel_id="o1", delivery_id="x", drone_id="d1")
                self.published += await bench.take(bench.message(body, source="someone", event_id=own))
            case "copycat":  # its own name, but not the event that it published
                body = PackageDelivered(parcel_id="o1", delivery_id="x", drone_id="d1")
                self.published += await bench.take(bench.message(body, source="delivery", event_id="x"))
            case "restart":
                await bench.restart()


DONE = ["PackageDelivered"]
ANSWERED = ["DeliveryFailed"]
ORDERS = {
    # what comes, in order: what is published, what is done, what becomes of the step
    "trigger": (DONE, ["decide"], BarrierState.DONE),
    "trigger own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger restart own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger own own restart own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger own trigger own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger own time-out": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger own restart time-out own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger own heard time-out": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "trigger time-out": (DONE + ANSWERED, ["decide", "answer"], BarrierState.UNDONE),
    "trigger time-out own": (DONE + ANSWERED, ["decide", "answer"], BarrierState.UNDONE),
    "trigger restart time-out restart own": (DONE + ANSWERED, ["decide", "answer"], BarrierState.UNDONE),
    "trigger heard own time-out": (DONE + ANSWERED, ["decide", "answer"], BarrierState.UNDONE),
    "trigger time-out time-out own trigger": (DONE + ANSWERED, ["decide", "answer"], BarrierState.UNDONE),
    "time-out": (ANSWERED, ["answer"], BarrierState.VOID),
    "time-out trigger own": (ANSWERED, ["answer"], BarrierState.VOID),
    "heard trigger time-out own": (ANSWERED, ["answer"], BarrierState.VOID),
    "time-out restart time-out trigger": (ANSWERED, ["answer"], BarrierState.VOID),
    "foreign": ([], [], None),
    "trigger foreign": (DONE, ["decide"], BarrierState.DONE),
    "trigger foreign own foreign": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "foreign trigger time-out own": (DONE + ANSWERED, ["decide", "answer"], BarrierState.UNDONE),
    "trigger impostor": (DONE, ["decide"], BarrierState.DONE),
    "trigger impostor own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
    "copycat trigger": (DONE, ["decide"], BarrierState.DONE),
    "trigger copycat": (DONE, ["decide"], BarrierState.DONE),
    "trigger copycat own": (DONE, ["decide", "fly"], BarrierState.CONFIRMED),
}


@pytest.mark.parametrize("order", ORDERS)
async def test_an_act_that_can_t_be_undone(bench: Bench, order: str) -> None:
    published, done, state = ORDERS[order]
    story = Story(bench)
    for name in order.split():
        await story.tell(name)
    assert types(story.published) == published
    assert await bench.done() == done
    assert await bench.barrier("deliver-package") is state
    assert await bench.queued() == []


async def test_all_in_one_batch(bench: Bench, tmp_path: Path) -> None:
    """As where a database is built anew from the stream: its own event is read back right behind its trigger."""
    story = Story(bench)
    await story.tell("trigger")
    assert story._own is not None
    async with bench_at(f"sqlite:///{tmp_path}/anew.db") as anew:
        anew.with_steps(deliver(), name="delivery")
        await anew.handler.claim("stream-1")
        trigger = anew.message(provisioned(), event_id="t")
        assert types(await anew.take(trigger, story._own, anew.message(time_out()))) == DONE
        assert await anew.done() == ["decide", "fly"]


async def test_a_failed_step_has_no_act(bench: Bench) -> None:
    assert types(await bench.take(bench.message(provisioned(address="nowhere")))) == ANSWERED
    assert await bench.take(bench.message(time_out())) == []
    assert await bench.done() == ["decide"]


async def test_one_definition_s_success_confirms_no_other_definition_s_step(bench: Bench) -> None:
    """Both start on the same event under the same key, and both publish the same type."""
    bench.with_steps(deliver(), deliver("deliver-again", "second-delivery"), name="delivery")
    await bench.handler.claim("stream-1")
    rows = (await bench.handler.handle([bench.message(provisioned())], ())).rows
    first, second = (bench.stored(row.publication) for row in rows)
    await bench.take(first)
    assert await bench.barrier("deliver-package") is BarrierState.CONFIRMED
    assert await bench.barrier("deliver-again") is BarrierState.DONE
    await bench.take(bench.message(timed_out(definition="second-delivery", steps=("deliver-again",))), second)
    assert await bench.barrier("deliver-again") is BarrierState.UNDONE
    assert await bench.done() == ["decide", "decide", "fly", "answer"]


async def test_an_undoing_without_anything_to_say_still_says_that_the_step_is_void(bench: Bench) -> None:
    def silent(_event: SagaTimedOut, tx: Transaction) -> None:
        write_down(tx, "silent")

    bench.with_steps(step("deliver-package", decide, undo=silent, irrevocable=fly, saga="drone-delivery"))
    await bench.handler.claim("stream-1")
    assert types(await bench.take(bench.message(time_out()))) == ["StepVoided"]


async def test_an_act_that_fails_is_tried_again_and_what_comes_later_waits_behind_it(bench: Bench) -> None:
    """Stream order decides: its own event stood before the undoing, so that comes too late."""
    broken = [True]

    def stall(_event: PackageDelivered, tx: Transaction) -> ParcelOrdered:
        write_down(tx, "fly")
        if broken:
            raise RuntimeError("no wind")
        return ParcelOrdered(parcel_id=tx.key, item="return-trip", weight_grams=1, address="home")

    bench.with_steps(
        step("deliver-package", decide, undo=answer, irrevocable=stall, saga="drone-delivery"), name="delivery"
    )
    await bench.handler.claim("stream-1")
    story = Story(bench)
    for name in ("trigger", "own", "time-out"):
        await story.tell(name)
    assert await bench.done() == ["decide"]
    (event,) = await bench.finish()
    assert isinstance(event.body, DeadLetterRecorded)
    assert (event.body.step, event.body.compensation) == ("deliver-package", False)
    assert [given_up for _, given_up in await bench.queued()] == [True, False]
    broken.clear()
    about = {"participant": "delivery", "definition": "drone-delivery", "step_name": "deliver-package"}
    await bench.take(bench.message(redriven(event.body.sequence, **about)))
    assert types(await bench.finish()) == ["ParcelOrdered"]
    assert await bench.done() == ["decide", "fly"]
    assert await bench.barrier("deliver-package") is BarrierState.CONFIRMED


async def test_a_compensation_that_passes_its_dead_letter_is_answered(bench: Bench) -> None:
    """The step never ran; nobody else will say that nothing was delivered."""

    def broken(_event: DroneProvisioned, tx: Transaction) -> PackageDelivered:
        raise RuntimeError("no map")

    bench.with_steps(
        step("deliver-package", broken, undo=answer, irrevocable=fly, saga="drone-delivery"), name="delivery"
    )
    await bench.handler.claim("stream-1")
    await bench.take(bench.message(provisioned()))
    assert types(await bench.finish()) == ["DeadLetterRecorded"]
    await bench.take(bench.message(time_out()))
    assert types(await bench.finish()) == ["DeliveryFailed", "DeadLetterSuperseded"]
    bench.now += timedelta(seconds=60)
    assert await bench.queued() == []


def test_its_contract_says_what_it_reads_back() -> None:
    participant = Participant("delivery", deliver())
    (contract,) = participant.contract.steps
    assert list(contract.reads_back) == ["delivery.v1.PackageDelivered"]
    assert list(contract.produces) == ["delivery.v1.PackageDelivered", "delivery.v1.DeliveryFailed"]
    assert "events.*.delivery.v1.PackageDelivered" in participant.filters


def read_failure(_event: DeliveryFailed, _tx: Transaction) -> None: ...


def read_other(_event: ParcelOrdered, _tx: Transaction) -> None: ...


def undo_on_failure(_event: DeliveryFailed, _tx: Transaction) -> None: ...


def test_an_act_that_does_not_fit_its_step_is_refused() -> None:
    for act in (read_failure, read_other):
        with pytest.raises(ContractError, match="is no success event of its own"):
            step("deliver-package", decide, undo=answer, irrevocable=act, saga="drone-delivery")
    with pytest.raises(ContractError, match="needs an undo that takes SagaTimedOut"):
        step("deliver-package", decide, irrevocable=fly, saga="drone-delivery")
    with pytest.raises(ContractError, match="needs an undo that takes SagaTimedOut"):
        step("deliver-package", decide, undo=undo_on_failure, irrevocable=fly, saga="drone-delivery")
