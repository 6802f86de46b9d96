"""What waits in the queue without a try being burned: what was snoozed, and what needs a dependency that is down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from choreography.v1 import participant_pb2
from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_REASON_REJECTED
from choreography.v1.lifecycle_pb2 import SagaTimedOut
from farandole import DependencyDown, Probes, Reject, Retries, Snooze, Step, Transaction, step
from farandole.envelope import Event
from farandole.errors import ContractError
from farandole.participant.barrier import BarrierState
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentProcessed, PaymentRefunded
from shipping.v1.shipping_events_pb2 import OrderShipped, ShippingFailed
from tests.integration.participant_bench import (
    Bench,
    bench_at,
    discarded,
    failed,
    redriven,
    reserved,
    timed_out,
    types,
    write_down,
)

PROCESSOR = "card-processor"


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_at(database_url) as bench:
        yield bench


class Desk:
    """A participant's handlers, which raise what a test asks for."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.raises: dict[tuple[str, str], Exception] = {}
        """By what is done and the key; "" for every key."""
        self.tried: list[tuple[str, str]] = []
        """What was begun, also where it was undone."""

    def charge(self, event: ItemsReserved, tx: Transaction) -> PaymentProcessed:
        self._do("charge", tx)
        return PaymentProcessed(
            order_id=tx.key, payment_id="p", amount_cents=event.amount_cents, currency="EUR", address="a"
        )

    def refund(self, _event: ShippingFailed | SagaTimedOut, tx: Transaction) -> PaymentRefunded:
        self._do("refund", tx)
        return PaymentRefunded(order_id=tx.key, payment_id="p", reason="r")

    def audit(self, _event: OrderShipped, tx: Transaction) -> None:
        self._do("audit", tx)

    def _do(self, what: str, tx: Transaction) -> None:
        self.tried.append((what, tx.key))
        write_down(tx, what)
        if error := self.raises.get((what, tx.key)) or self.raises.get((what, "")):
            raise error

    @property
    def steps(self) -> Sequence[Step]:
        return (
            step("take-payment", self.charge, undo=self.refund, saga="order-fulfilment"),
            step("audit-order", self.audit, saga="order-fulfilment"),
        )

    async def status(self, key: str = "o1") -> participant_pb2.ParticipantStatus:
        """What the participant tells whoever asks."""
        return await self.bench.status(key)

    async def states(self, key: str = "o1") -> list[str]:
        """Why the events of a saga are in the queue."""
        status = await self.status(key)
        names = (participant_pb2.QueuedEventState.Name(event.state) for event in status.queue)
        return [name.removeprefix("QUEUED_EVENT_STATE_") for name in names]

    async def rests(self, seconds: float) -> list[Event]:
        """Lets time pass, and all be done that becomes due by then, at its time; what that published."""
        until = self.bench.now + timedelta(seconds=seconds)
        events: list[Event] = []
        while (due := self.bench.handler.due_in()) is not None and self.bench.now + timedelta(seconds=due) <= until:
            self.bench.now += timedelta(seconds=max(due, 0))
            events += await self.bench.due()
        self.bench.now = until
        return events


@pytest.fixture
async def desk(bench: Bench) -> Desk:
    desk = Desk(bench)
    await bench.handler.release()
    bench.with_steps(*desk.steps)
    await bench.handler.claim("stream-1")
    return desk


class TestSnooze:
    """The event waits as long as its handler says, and its saga's later events behind it; no try is burned."""

    async def test_it_is_run_again_when_it_said_and_not_before(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(minutes=10), "the bank opens at ten")
        assert types(await bench.take(bench.message(reserved()), bench.message(reserved("o2")))) == ["PaymentProcessed"]
        assert await desk.states() == ["SNOOZED"]
        (event,) = (await desk.status()).queue
        assert (event.attempts, event.error) == (0, "the bank opens at ten")
        assert event.next_attempt_time.ToDatetime(tzinfo=bench.now.tzinfo) == bench.now + timedelta(minutes=10)
        desk.raises.clear()
        assert await desk.rests(599) == []
        assert types(await desk.rests(1)) == ["PaymentProcessed"]
        assert await bench.done() == ["charge"]

    async def test_later_events_of_its_saga_wait_in_order(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(seconds=5))
        await bench.take(bench.message(reserved()), bench.message(failed()))
        assert await desk.states() == ["SNOOZED", "WAITING"]
        desk.raises.clear()
        assert types(await bench.finish()) == ["PaymentProcessed", "PaymentRefunded"]

    async def test_it_burns_no_try_however_often(self, desk: Desk) -> None:
        """Neither before nor after a real failure."""
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(seconds=1))
        await bench.take(bench.message(reserved()))
        await desk.rests(20)
        desk.raises["charge", "o1"] = RuntimeError("closed")
        await desk.rests(1)
        desk.raises["charge", "o1"] = Snooze(timedelta(seconds=1))
        await desk.rests(20)
        (event,) = (await desk.status()).queue
        assert event.attempts == 1
        desk.raises["charge", "o1"] = RuntimeError("closed")
        events = await bench.finish()
        assert [event.body.attempts for event in events if isinstance(event.body, DeadLetterRecorded)] == [3]

    async def test_it_outlasts_a_restart(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(days=30))
        await bench.take(bench.message(reserved()))
        desk.raises.clear()
        await bench.restart()
        assert await desk.rests(30 * 86400 - 1) == []
        assert types(await desk.rests(1)) == ["PaymentProcessed"]

    @pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted"])
    async def test_a_clock_that_is_set_back_makes_nobody_wait_longer_than_it_asked_for(
        self, desk: Desk, *, restarts: bool
    ) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(minutes=10))
        desk.raises["charge", "o2"] = RuntimeError("closed")
        await bench.take(bench.message(reserved()), bench.message(reserved("o2")))
        bench.now -= timedelta(days=400)
        if restarts:
            await bench.restart()
        desk.raises.clear()
        desk.tried.clear()
        await desk.rests(0.5)
        assert desk.tried == [("charge", "o2")], "each entry has its own pause"
        assert await desk.rests(599) == []
        assert types(await desk.rests(1)) == ["PaymentProcessed"]

    @pytest.mark.parametrize(
        "delay", [timedelta(0), timedelta(seconds=-1), timedelta(days=30, microseconds=1)], ids=str
    )
    async def test_a_delay_that_makes_no_sense_is_a_failure_that_says_so(self, bench: Bench, delay: timedelta) -> None:
        def snooze(_event: ItemsReserved, _tx: Transaction) -> None:
            raise Snooze(delay)

        bench.with_steps(step("take-payment", snooze, saga="order-fulfilment"), retries=Retries(tries=1))
        await bench.handler.claim("stream-1")
        (event,) = await bench.take(bench.message(reserved()))
        assert isinstance(event.body, DeadLetterRecorded)
        assert event.body.detail == (f"ContractError: Snooze: a delay is above 0 and at most 30 days, not {delay}")

    async def test_a_compensation_that_passes_may_be_snoozed(self, desk: Desk) -> None:
        """It waits its time, also where the dead letter before it is discarded meanwhile."""
        bench = desk.bench
        desk.raises["charge", "o1"] = Reject("no")
        desk.raises["audit", "o1"] = Reject("no")

        def undo(_event: ShippingFailed, tx: Transaction) -> PaymentRefunded:
            desk._do("undo", tx)
            return PaymentRefunded(order_id=tx.key, payment_id="p", reason="r")

        def note(_event: OrderShipped, tx: Transaction) -> None:
            desk._do("note", tx)

        bench.with_steps(
            step("take-payment", desk.charge, undo=desk.refund, saga="order-fulfilment"),
            step("note", note, undo=undo, saga="order-fulfilment"),
        )
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(OrderShipped(order_id="o1", tracking_number="t")))
        dead = bench.message(reserved())
        await bench.take(dead)
        desk.raises["undo", "o1"] = Snooze(timedelta(minutes=1))
        await bench.take(bench.message(failed()))
        await bench.due()
        assert await desk.states() == ["DEAD_LETTERED", "SNOOZED"]
        desk.raises.clear()
        await bench.take(bench.message(discarded(dead.sequence)))
        assert await desk.rests(59) == []
        assert types(await desk.rests(1)) == ["StepVoided", "PaymentRefunded"]


class TestCircuits:
    """What needs a dependency that is down waits, and is tried one at a time, now and then, until it is back."""

    async def test_nothing_that_needs_it_is_run_and_all_else_is(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR, "connection refused")
        keys = [f"o{number}" for number in range(20)]
        with capture_logs() as logs:
            await bench.take(*(bench.message(reserved(key)) for key in keys[:10]))
        assert [entry["event"] for entry in logs].count("circuit opened") == 1
        desk.tried.clear()
        await bench.take(*(bench.message(reserved(key)) for key in keys[10:]))
        await bench.take(bench.message(OrderShipped(order_id="p1", tracking_number="t")))
        assert desk.tried == [("audit", "p1")]
        assert [await desk.states(key) for key in keys] == [["DEPENDENCY_DOWN"]] * 20
        (event,) = (await desk.status()).queue
        assert (event.dependency, event.attempts, event.error) == (PROCESSOR, 0, "connection refused")
        (circuit,) = (await desk.status()).circuits
        assert (circuit.dependency, circuit.error, circuit.waiting_sagas) == (PROCESSOR, "connection refused", 20)
        assert bench.handler.dependencies_problem == (
            "card-processor has been down since 2026-01-01T00:00:00Z: connection refused"
        )

    async def test_one_event_at_a_time_is_tried_at_growing_pauses(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        await bench.take(*(bench.message(reserved(f"o{number}")) for number in range(3)))
        desk.tried.clear()
        pauses = []
        for _ in range(8):
            pauses.append(bench.handler.due_in())
            await desk.rests(pauses[-1] or 0)
        assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
        assert [key for _, key in desk.tried] == ["o0", "o1", "o2", "o0", "o1", "o2", "o0", "o1"]
        assert {event.attempts for event in (await desk.status()).queue} == {0}

    @pytest.mark.parametrize("outcome", [None, RuntimeError("x"), Reject("x"), Snooze(timedelta(hours=1))], ids=repr)
    async def test_whatever_else_a_probe_comes_to_lets_all_go_on_in_order(
        self, desk: Desk, outcome: Exception | None
    ) -> None:
        bench = desk.bench
        keys = [f"o{number}" for number in range(9, 0, -1)]
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        await bench.take(*(bench.message(reserved(key)) for key in keys))
        del desk.raises["charge", ""]
        if outcome is not None:
            desk.raises["charge", keys[0]] = outcome
        desk.tried.clear()
        with capture_logs() as logs:
            await bench.take(bench.message(reserved("late")))
            assert desk.tried == [], "it is not known yet that it is back"
            await desk.rests(1.5)
        closed = [entry["dependency"] for entry in logs if entry["event"] == "circuit closed"]
        assert closed == [PROCESSOR]
        retried = [keys[0]] if isinstance(outcome, RuntimeError) else []
        assert [key for _, key in desk.tried] == [*keys, "late", *retried]
        for key in [*keys[1:], "late"]:
            assert await bench.done(key) == ["charge"]

    async def test_the_whole_of_a_saga_waits_in_order(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        await bench.take(bench.message(reserved()), bench.message(failed()))
        assert await desk.states() == ["DEPENDENCY_DOWN", "WAITING"]
        desk.raises.clear()
        assert types(await desk.rests(1)) == ["PaymentProcessed", "PaymentRefunded"]

    async def test_only_what_was_found_to_need_it_waits(self, desk: Desk) -> None:
        """The undoing of the step is another matter, until it says so itself."""
        bench = desk.bench
        await bench.take(bench.message(reserved()), bench.message(reserved("o2")))
        desk.raises["charge", ""] = desk.raises["refund", "o2"] = DependencyDown(PROCESSOR)
        await bench.take(bench.message(reserved("o3")))
        assert types(await bench.take(bench.message(failed()))) == ["PaymentRefunded"]
        desk.tried.clear()
        await bench.take(bench.message(failed("o2")))
        assert desk.tried[-1] == ("refund", "o2")
        desk.tried.clear()
        await bench.take(bench.message(reserved("o4")))
        await bench.take(bench.message(failed("o4")))
        assert desk.tried == []

    async def test_two_dependencies_are_told_apart(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        desk.raises["audit", ""] = DependencyDown("ledger", "full")
        await bench.take(bench.message(reserved()), bench.message(OrderShipped(order_id="p1", tracking_number="t")))
        assert bench.handler.dependencies_problem == (
            "card-processor has been down since 2026-01-01T00:00:00Z; ledger has been down since 2026-01-01T00:00:00Z: "
            "full"
        )
        del desk.raises["charge", ""]
        await desk.rests(1)
        assert [circuit.dependency for circuit in (await desk.status()).circuits] == ["ledger"]
        assert (await bench.done(), await bench.done("p1")) == (["charge"], [])

    async def test_an_event_goes_from_one_dependency_to_the_other(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        await bench.take(*(bench.message(reserved(f"o{number}")) for number in range(3)))
        desk.raises["charge", ""] = DependencyDown("ledger")
        await desk.rests(1)
        assert [(c.dependency, c.waiting_sagas) for c in (await desk.status()).circuits] == [("ledger", 3)]
        desk.raises.clear()
        assert types(await desk.rests(2)) == ["PaymentProcessed"] * 3
        assert bench.handler.dependencies_problem is None

    async def test_probes_that_find_each_other_s_dependency_down_find_both_up_again(self, desk: Desk) -> None:
        """Each dependency is then known to be needed for the steps that wait for the other one."""
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        desk.raises["audit", ""] = DependencyDown("archive")
        orders = ("o1", "o2", "o3")
        await bench.take(*(bench.message(reserved(key)) for key in orders))
        await bench.take(*(bench.message(OrderShipped(order_id=key, tracking_number="t")) for key in ("p1", "p2")))
        desk.raises["charge", ""] = DependencyDown("archive")
        desk.raises["audit", ""] = DependencyDown(PROCESSOR)
        await desk.rests(1)
        desk.raises.clear()
        assert types(await desk.rests(120)) == ["PaymentProcessed"] * 3
        assert [await bench.done(key) for key in (*orders, "p1", "p2")] == [["charge"]] * 3 + [["audit"]] * 2

    async def test_a_probe_has_its_turn_however_much_else_is_due(
        self, desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("farandole.participant.handler._DUE_MESSAGES", 2)
        bench = desk.bench
        desk.raises["charge", ""] = RuntimeError("closed")
        desk.raises["audit", ""] = DependencyDown("archive")
        await bench.take(
            *(bench.message(reserved(f"o{number}")) for number in range(4)),
            bench.message(OrderShipped(order_id="p1", tracking_number="t")),
        )
        desk.tried.clear()
        bench.now += timedelta(seconds=1)
        with capture_logs() as logs:
            while (due_in := bench.handler.due_in()) is not None and due_in <= 0:
                await bench.due()
        assert sorted(desk.tried) == [("audit", "p1"), *(("charge", f"o{number}") for number in range(4))]
        assert [log for log in logs if log["event"].startswith("circuit")] == []

    async def test_a_restart_keeps_what_waits_and_tries_at_once(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR, "refused")
        await bench.take(*(bench.message(reserved(f"o{number}")) for number in range(3)))
        await desk.rests(100)
        await bench.restart()
        desk.tried.clear()
        assert bench.handler.dependencies_problem == (
            "card-processor has been down since 2026-01-01T00:00:00Z: refused"
        )
        await bench.take(bench.message(reserved("o3")))
        assert desk.tried == []
        assert bench.handler.due_in() == 0
        await bench.due()
        assert desk.tried == [("charge", "o0")]
        desk.raises.clear()
        assert len(await desk.rests(2)) == 4
        assert bench.handler.due_in() is None

    async def test_a_circuit_that_nothing_waits_for_any_more_is_closed(self, desk: Desk) -> None:
        """There is nothing to try it with; what comes next finds out."""
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        await bench.take(bench.message(reserved()), bench.message(timed_out()))
        assert types(await bench.due()) == ["StepVoided"]
        await bench.due()
        assert (bench.handler.dependencies_problem, bench.handler.due_in()) == (None, None)
        desk.tried.clear()
        await bench.take(bench.message(reserved("o2")))
        assert desk.tried[-1] == ("charge", "o2")
        assert bench.handler.dependencies_problem

    async def test_a_clock_that_is_set_back_does_not_put_the_probe_off(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        await bench.take(bench.message(reserved()))
        bench.now -= timedelta(days=1)
        desk.raises.clear()
        assert types(await desk.rests(1.5)) == ["PaymentProcessed"]

    async def test_a_compensation_that_passes_a_dead_letter_may_wait_for_it(self, desk: Desk) -> None:
        bench = desk.bench

        def note(_event: OrderShipped, tx: Transaction) -> None:
            desk._do("note", tx)

        def undo(_event: ShippingFailed, tx: Transaction) -> None:
            desk._do("undo", tx)

        bench.with_steps(
            step("take-payment", desk.charge, undo=desk.refund, saga="order-fulfilment"),
            step("note", note, undo=undo, saga="order-fulfilment"),
        )
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(OrderShipped(order_id="o1", tracking_number="t")))
        desk.raises["charge", "o1"] = Reject("no")
        await bench.take(bench.message(reserved()))
        desk.raises["undo", "o1"] = DependencyDown("ledger")
        await bench.take(bench.message(failed()))
        await bench.due()
        assert await desk.states() == ["DEAD_LETTERED", "DEPENDENCY_DOWN"]
        await bench.restart()
        await desk.rests(10)
        assert await desk.states() == ["DEAD_LETTERED", "DEPENDENCY_DOWN"]
        desk.raises.clear()
        assert types(await desk.rests(30)) == ["StepVoided", "DeadLetterSuperseded"]
        assert await bench.done() == ["note", "undo"]

    async def test_an_operator_s_verb_for_what_only_waits_changes_nothing(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR)
        waiting = bench.message(reserved())
        await bench.take(waiting, bench.message(redriven(1)), bench.message(discarded(1)))
        assert await desk.states() == ["DEPENDENCY_DOWN"]

    async def test_tries_that_were_burned_before_stay_counted(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = RuntimeError("x")
        await bench.take(bench.message(reserved()))
        desk.raises["charge", "o1"] = DependencyDown(PROCESSOR)
        await desk.rests(20)
        desk.raises["charge", "o1"] = Reject("x")
        events = await bench.finish()
        (body,) = (event.body for event in events if isinstance(event.body, DeadLetterRecorded))
        assert (body.reason, body.attempts) == (DEAD_LETTER_REASON_REJECTED, 2)

    async def test_what_a_handler_says_is_wrong_shows_no_secret(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", ""] = DependencyDown(PROCESSOR, "refused 4111-2222")
        with capture_logs() as logs:
            await bench.take(bench.message(reserved(card="4111-2222")))
        query = sa.text("SELECT error FROM farandole_queue")
        kept = await bench.database.read(lambda connection: connection.execute(query).scalars().all())
        assert kept == ["refused [REDACTED]"]
        assert "4111" not in f"{logs}{bench.handler.dependencies_problem}{await desk.status()}"


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_a_dependency_has_a_name(name: str) -> None:
    with pytest.raises(ContractError, match="a dependency's name"):
        DependencyDown(name)


@pytest.mark.parametrize(("first", "longest"), [(0, 1), (2, 1), (-1, 1)])
def test_probes_that_make_no_sense_are_refused(first: int, longest: int) -> None:
    with pytest.raises(ContractError, match="Probes"):
        Probes(timedelta(seconds=first), timedelta(seconds=longest))


class TestATimeOutPasses:
    """Whatever forward event of its own steps stands first in the queue: the step is void, and was never run."""

    WAITS = (
        RuntimeError("closed"),
        Snooze(timedelta(days=1)),
        DependencyDown(PROCESSOR),
        Reject("no"),
    )

    @pytest.mark.parametrize("why", WAITS, ids=lambda why: type(why).__name__)
    @pytest.mark.parametrize("way", ["comes", "is heard", "came before a restart"])
    async def test_the_step_is_void_at_once(self, desk: Desk, why: Exception, way: str) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = why
        await bench.take(bench.message(reserved()))
        desk.raises.clear()
        desk.tried.clear()
        time_out = bench.message(timed_out())
        if way == "is heard":
            await bench.restart()
            events = (await bench.hear(time_out))[-2:]
            assert await bench.take(time_out) == []
        else:
            events = await bench.take(time_out)
        if way == "came before a restart":
            await bench.restart()
        events += await desk.rests(0)
        assert [kind for kind in types(events) if kind != "DeadLetterRecorded"][-2:] in (
            ["StepVoided"], ["StepVoided", "DeadLetterSuperseded"],
        )  # fmt: skip
        assert (types(events).count("DeadLetterSuperseded") == 1) == isinstance(why, Reject)
        assert (await desk.states(), desk.tried) == ([], [])
        assert await bench.barrier() is BarrierState.VOID
        assert await bench.finish() == []
        assert (await bench.done(), bench.handler.due_in()) == ([], None)

    @pytest.mark.parametrize("why", WAITS[:3], ids=lambda why: type(why).__name__)
    async def test_no_other_compensation_does(self, desk: Desk, why: Exception) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = why
        await bench.take(bench.message(reserved()), bench.message(failed()))
        assert await bench.due() == []
        desk.raises.clear()
        assert types(await bench.finish()) == ["PaymentProcessed", "PaymentRefunded"]

    @pytest.mark.parametrize("other", [timed_out(definition="another-saga"), timed_out(steps=("audit-order",))])
    async def test_one_of_another_step_or_saga_does_not(self, desk: Desk, other: SagaTimedOut) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(days=1))
        await bench.take(bench.message(reserved()), bench.message(other))
        assert await desk.rests(3600) == []
        assert await desk.states() == ["SNOOZED", "WAITING"]
        desk.raises.clear()
        assert types(await bench.finish())[0] == "PaymentProcessed"

    async def test_what_waits_behind_follows_in_order(self, desk: Desk) -> None:
        bench = desk.bench
        desk.raises["charge", "o1"] = Snooze(timedelta(days=1))
        await bench.take(
            bench.message(reserved()),
            bench.message(OrderShipped(order_id="o1", tracking_number="t")),
            bench.message(timed_out()),
            bench.message(failed()),
        )
        assert types(await desk.rests(0)) == ["StepVoided"]
        assert (await bench.done(), await desk.states()) == (["audit"], [])

    async def test_a_step_does_not_begin_while_the_time_out_is_tried_again(self, desk: Desk) -> None:
        """The same time-out undoes another step too, and that fails."""
        bench = desk.bench

        def note(_event: OrderShipped, tx: Transaction) -> None:
            desk._do("note", tx)

        def undo(_event: SagaTimedOut, tx: Transaction) -> None:
            desk._do("undo", tx)

        bench.with_steps(
            step("take-payment", desk.charge, undo=desk.refund, saga="order-fulfilment"),
            step("note", note, undo=undo, saga="order-fulfilment"),
            retries=Retries(tries=50),
        )
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(OrderShipped(order_id="o1", tracking_number="t")))
        desk.raises["charge", "o1"] = Snooze(timedelta(seconds=5))
        desk.raises["undo", "o1"] = RuntimeError("stuck")
        await bench.take(bench.message(reserved()), bench.message(timed_out(steps=("take-payment", "note"))))
        del desk.raises["charge", "o1"]
        desk.tried.clear()
        await desk.rests(60)
        assert set(desk.tried) == {("undo", "o1")}
        desk.raises.clear()
        assert types(await desk.rests(60)) == ["StepVoided"]
        assert await bench.done() == ["note", "undo"]
