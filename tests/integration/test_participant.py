"""A participant's one transaction: what an event does, exactly once, whatever comes twice, early, late or badly."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from itertools import groupby, permutations
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event as sqlalchemy_event

from choreography.v1.lifecycle_pb2 import SagaTimedOut, StepVoided
from farandole import Participant, Transaction, step
from farandole.errors import ContractError, FencedError, StoreUnavailableError
from farandole.outbox import OutboxRow
from farandole.participant.barrier import BarrierState
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentFailed
from tests.integration.participant_bench import (
    Bench,
    Cashier,
    bench_at,
    charges,
    failed,
    reserved,
    timed_out,
    types,
)


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_at(database_url) as bench:
        yield bench


async def test_an_event_does_its_work_and_publishes_what_follows(bench: Bench) -> None:
    cause = bench.message(reserved(), event_id="cause")
    (event,) = await bench.take(cause)
    assert event.type == "payments.v1.PaymentProcessed"
    assert (event.source, event.causation_id, event.key) == ("payments", "cause", "o1")
    assert await bench.done() == ["charge"]


async def test_the_same_event_again_does_nothing(bench: Bench) -> None:
    await bench.take(bench.message(reserved(), event_id="a"))
    assert await bench.take(bench.message(reserved(), event_id="a")) == []
    assert await bench.done() == ["charge"]


async def test_the_same_event_twice_in_one_batch_does_its_work_once(bench: Bench) -> None:
    events = await bench.take(bench.message(reserved(), event_id="a"), bench.message(reserved(), event_id="a"))
    assert types(events) == ["PaymentProcessed"]
    assert await bench.done() == ["charge"]


@pytest.mark.parametrize("cents", [100, 999])
async def test_another_event_for_a_step_that_has_run_does_nothing(bench: Bench, cents: int) -> None:
    await bench.take(bench.message(reserved(), event_id="a"))
    assert await bench.take(bench.message(reserved(cents=cents), event_id="b")) == []
    assert await bench.done() == ["charge"]


async def test_handling_an_event_again_after_a_crash_gives_the_same_ids(bench: Bench, tmp_path: Path) -> None:
    message = bench.message(reserved(), event_id="a")
    (first,) = await bench.take(message)
    async with bench_at(f"sqlite:///{tmp_path}/other.db") as other:
        other.now += timedelta(hours=5)
        (second,) = await other.take(message)
        assert first.id == second.id


HAZARDS = {
    # order of arrival: what is published, what is done, what becomes of the step
    "step undoing time-out": (["PaymentProcessed", "PaymentRefunded"], ["charge", "refund"], BarrierState.UNDONE),
    "step time-out undoing": (["PaymentProcessed", "PaymentRefunded"], ["charge", "refund"], BarrierState.UNDONE),
    "undoing step time-out": (["StepVoided"], [], BarrierState.VOID),
    "undoing time-out step": (["StepVoided"], [], BarrierState.VOID),
    "time-out step undoing": (["StepVoided"], [], BarrierState.VOID),
    "time-out undoing step": (["StepVoided"], [], BarrierState.VOID),
    "refused-step undoing time-out": (["PaymentFailed"], ["charge"], BarrierState.FAILED),
    "refused-step time-out undoing": (["PaymentFailed"], ["charge"], BarrierState.FAILED),
    "undoing refused-step time-out": (["StepVoided"], [], BarrierState.VOID),
    "undoing time-out refused-step": (["StepVoided"], [], BarrierState.VOID),
    "time-out refused-step undoing": (["StepVoided"], [], BarrierState.VOID),
    "time-out undoing refused-step": (["StepVoided"], [], BarrierState.VOID),
}
BODIES = {
    "step": reserved(),
    "refused-step": reserved(card="card-declined"),
    "undoing": failed(),
    "time-out": timed_out(),
}


def test_the_table_of_hazards_has_every_order() -> None:
    orders = [*permutations(("step", "undoing", "time-out")), *permutations(("refused-step", "undoing", "time-out"))]
    assert set(HAZARDS) == {" ".join(order) for order in orders}


@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted in between"])
@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one batch"])
@pytest.mark.parametrize("order", HAZARDS)
async def test_the_hazards_of_compensation(bench: Bench, order: str, *, together: bool, restarts: bool) -> None:
    """Whatever the order, with each event twice under its id and once more under another one."""
    published, done, state = HAZARDS[order]
    names = order.split()
    messages = [bench.message(BODIES[name], event_id=name) for name in names for _ in range(2)]
    messages += [bench.message(BODIES[name], event_id=f"{name}-again") for name in names]
    events = []
    for batch in [messages] if together else [[message] for message in messages]:
        events += await bench.take(*batch)
        if restarts:
            await bench.restart()
    assert types(events) == published
    assert await bench.done() == done
    assert await bench.barrier() is state


@pytest.mark.parametrize(
    ("order", "published", "done"),
    [(("step", "time-out"), ["PaymentProcessed"], ["charge"]), (("time-out", "step"), ["StepVoided"], [])],
)
async def test_a_step_without_an_undoing_is_voided_by_a_time_out_where_it_has_not_run(
    bench: Bench, order: tuple[str, ...], published: list[str], done: list[str]
) -> None:
    bench.with_steps(step("take-payment", bench.cashier.charge, saga="order-fulfilment"))
    await bench.handler.claim("stream-1")
    assert types(await bench.take(*(bench.message(BODIES[name]) for name in order))) == published
    assert await bench.done() == done


async def test_an_undoing_that_comes_first_voids_the_step_and_says_so(bench: Bench) -> None:
    (event,) = await bench.take(bench.message(failed()))
    assert isinstance(event.body, StepVoided)
    assert (event.body.step, event.body.participant, event.key) == ("take-payment", "payments", "o1")
    assert await bench.take(bench.message(reserved())) == []
    assert await bench.done() == []


@pytest.mark.parametrize(
    "other", [timed_out(definition="another-saga"), timed_out(steps=("reserve-items",))], ids=["definition", "step"]
)
async def test_a_time_out_of_something_else_undoes_nothing(bench: Bench, other: SagaTimedOut) -> None:
    await bench.take(bench.message(reserved()))
    assert await bench.take(bench.message(other)) == []
    assert types(await bench.take(bench.message(timed_out()))) == ["PaymentRefunded"]


async def test_a_batch_without_trouble_takes_the_same_few_statements_however_large_it_is(bench: Bench) -> None:
    """Besides the handlers' own: the position, the inbox and the barriers read and written, and the outbox's rows."""

    def nothing(_event: ItemsReserved, tx: Transaction) -> PaymentFailed:
        return PaymentFailed(order_id=tx.key, reason="declined")

    await bench.handler.release()
    bench.with_steps(step("take-payment", nothing, saga="order-fulfilment"))
    await bench.handler.claim("stream-1")
    statements: list[str] = []

    @sqlalchemy_event.listens_for(bench.database._writer, "before_cursor_execute")
    def _note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        verb = statement.split()[0]
        statements.append(" ".join([verb, *re.findall(r"farandole_[a-z]+", statement if verb != "BEGIN" else "")[:1]]))

    for size in (1, 50):
        statements.clear()
        await bench.take(*(bench.message(reserved(f"o{bench.sequence}")) for _ in range(size)))
        assert [statement for statement, _ in groupby(statements)] == [
            "BEGIN",
            "UPDATE farandole_position",
            "SELECT farandole_inbox",
            "SELECT farandole_barrier",
            "INSERT farandole_inbox",
            "INSERT farandole_barrier",
            "INSERT farandole_outbox",
        ]


async def test_a_batch_commits_as_one(bench: Bench) -> None:
    """State, outbox and position of all its events, or of none."""
    messages = [bench.message(reserved(f"o{n}")) for n in range(20)]
    rows = (await bench.handler.handle(messages, ())).rows
    assert len(rows) == 20
    assert (await bench.new_owner().claim("stream-1")).sequence == 20


async def test_a_second_owner_shuts_the_first_out(bench: Bench) -> None:
    first = bench.handler
    second = bench.new_owner()
    await second.claim("stream-1")
    with pytest.raises(FencedError):
        await first.handle([bench.message(reserved())], ())
    assert await bench.done() == []
    with pytest.raises(FencedError):
        await first.claim("stream-1")
    assert not await bench.database.read(first.is_owner), "it would publish what somebody else is to publish"
    assert await bench.database.read(second.is_owner)
    bench.sequence = 0
    assert len((await second.handle([bench.message(reserved())], ())).rows) == 1


async def test_the_position_keeps_the_stream_that_it_belongs_to(bench: Bench) -> None:
    await bench.take(bench.message(reserved()))
    position = await bench.new_owner().claim("another-stream")
    assert (position.sequence, position.incarnation) == (1, "stream-1")


async def test_outbox_rows_stay_until_they_are_removed(bench: Bench) -> None:
    rows = (await bench.handler.handle([bench.message(reserved("o1")), bench.message(reserved("o2"))], ())).rows
    assert [row.id for row in await bench.handler.waiting()] == [row.id for row in rows]
    await bench.handler.handle([bench.message(reserved("o3"))], [rows[0].id])
    assert [row.publication.key for row in await bench.handler.waiting()] == ["o2", "o3"]


class TestAHandlerThatRaises:
    """What it did is undone; its saga waits in order; all others go on; it is tried again, later and later."""

    async def test_others_go_on_and_its_own_saga_waits_in_order(self, bench: Bench) -> None:
        bench.cashier.fails = lambda key: key == "bad"
        events = await bench.take(
            bench.message(reserved("good-1")),
            bench.message(reserved("bad")),
            bench.message(failed("bad")),
            bench.message(reserved("good-2")),
        )
        assert [event.key for event in events] == ["good-1", "good-2"]
        assert await bench.done("bad") == []

        bench.cashier.fails = lambda _key: False
        bench.now += timedelta(seconds=1)
        assert types(await bench.due()) == ["PaymentProcessed", "PaymentRefunded"]
        assert await bench.done("bad") == ["charge", "refund"]
        assert bench.handler.due_in() is None

    async def test_a_disk_that_is_full_is_not_the_handlers_fault(self, bench: Bench) -> None:
        """SQLite takes the whole transaction back, and the savepoint with it: nothing of the batch may stay."""

        def hoard(_event: ItemsReserved, tx: Transaction) -> None:
            if tx.key == "bad":  # so that each event of the batch has a savepoint
                raise RuntimeError("broken")
            tx.execute(charges.insert(), {"key": tx.key, "what": "x" * 5_000_000})

        await bench.handler.release()
        bench.with_steps(step("hoard", hoard, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        batch = [bench.message(reserved(key)) for key in ("bad", "big", "other")]
        async with bench.no_room():
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="make room"):
                    await bench.handler.handle(batch, ())
                assert await bench.done("big") == []
                assert bench.handler.due_in() is None
        await bench.handler.handle(batch, ())
        assert [len(await bench.done(key)) for key in ("bad", "big", "other")] == [0, 1, 1]

    async def test_what_is_kept_of_a_failure_shows_no_parameters(self, bench: Bench) -> None:
        def clash(event: ItemsReserved, tx: Transaction) -> None:
            for _ in range(2):
                tx.execute(charges.insert(), {"number": 1, "key": tx.key, "what": event.card})

        bench.with_steps(step("clash", clash, saga="order-fulfilment"))
        await bench.handler.claim("stream-1")
        await bench.take(bench.message(reserved(card="4111-2222")))
        query = sa.text("SELECT error FROM farandole_queue")
        (error,) = await bench.database.read(lambda connection: connection.execute(query).scalars().all())
        assert "IntegrityError" in error
        assert "4111" not in error

    async def test_all_of_an_events_steps_are_done_or_none(self, bench: Bench) -> None:
        """The first step's work, its barrier and what it published go too where the second one fails."""
        broken = [True]

        def second(_event: ItemsReserved, tx: Transaction) -> None:
            tx.execute(charges.insert(), {"key": tx.key, "what": "second"})
            if broken:
                raise RuntimeError("broken")

        bench.with_steps(
            step("take-payment", bench.cashier.charge, saga="order-fulfilment"),
            step("second", second, saga="order-fulfilment"),
        )
        await bench.handler.claim("stream-1")
        assert await bench.take(bench.message(reserved())) == []
        assert await bench.done() == []
        broken.clear()
        bench.now += timedelta(seconds=1)
        assert types(await bench.due()) == ["PaymentProcessed"]
        assert await bench.done() == ["charge", "second"]

    async def test_what_waits_survives_a_restart(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        await bench.take(bench.message(reserved()))
        bench.cashier.fails = lambda _key: False
        restarted = bench.new_owner()
        assert (await restarted.claim("stream-1")).sequence == 1
        bench.now += timedelta(seconds=1)
        assert types(bench.decoded((await restarted.due()).rows)) == ["PaymentProcessed"]

    async def test_a_retry_of_an_owner_that_was_shut_out_writes_nothing(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        await bench.take(bench.message(reserved()))
        bench.cashier.fails = lambda _key: False
        await bench.new_owner().claim("stream-1")
        bench.now += timedelta(seconds=1)
        with pytest.raises(FencedError):
            await bench.handler.due()
        assert await bench.done() == []

    async def test_more_waits_than_one_transaction_takes(self, bench: Bench) -> None:
        bench.cashier.fails = lambda _key: True
        keys = [f"o{n}" for n in range(700)]
        await bench.take(*[bench.message(reserved(key)) for key in keys])
        bench.cashier.fails = lambda _key: False
        bench.now += timedelta(seconds=1)
        published: list[OutboxRow] = []
        while bench.handler.due_in() is not None:
            published.extend((await bench.handler.due()).rows)
        assert sorted(row.publication.key for row in published) == sorted(keys)

    async def test_an_event_that_breaks_a_rule_is_the_handlers_fault(self, bench: Bench) -> None:
        def nameless(_event: ItemsReserved, tx: Transaction) -> PaymentFailed:
            tx.execute(charges.insert(), {"key": tx.key, "what": "charge"})
            return PaymentFailed(order_id=tx.key, reason="")

        handler = bench.with_steps(step("take-payment", nameless, saga="order-fulfilment"))
        await handler.claim("stream-1")
        assert (await handler.handle([bench.message(reserved())], ())).rows == []
        assert await bench.done() == []
        assert handler.due_in() is not None

    async def test_what_its_annotation_does_not_say_is_not_published(self, bench: Bench) -> None:
        bench.cashier.misbehaves = True
        assert await bench.take(bench.message(reserved())) == []
        assert await bench.done() == []
        assert bench.handler.due_in() is not None


def test_a_contract_is_read_from_annotations() -> None:
    cashier = Cashier()
    participant = Participant(
        "payments", step("take-payment", cashier.charge, undo=cashier.refund, saga="order-fulfilment")
    )
    (contract,) = participant.contract.steps
    assert list(contract.consumes) == ["inventory.v1.ItemsReserved"]
    assert list(contract.produces) == ["payments.v1.PaymentProcessed", "payments.v1.PaymentFailed"]
    assert list(contract.undo_consumes) == ["shipping.v1.ShippingFailed", "choreography.v1.SagaTimedOut"]
    assert list(contract.undo_produces) == ["payments.v1.PaymentRefunded"]
    assert participant.filters == [
        "events.*.choreography.v1.DeadLetterDiscarded",
        "events.*.choreography.v1.DeadLetterRedriven",
        "events.*.choreography.v1.EventUnreadable",
        "events.*.choreography.v1.SagaTimedOut",
        "events.*.inventory.v1.ItemsReserved",
        "events.*.shipping.v1.ShippingFailed",
    ]


async def asynchronous(_event: ItemsReserved, _tx: Transaction) -> None: ...


def unannotated(event, tx): ...  # type: ignore[no-untyped-def]


def no_event(_event: int, _tx: Transaction) -> None: ...


def one_parameter(_event: ItemsReserved) -> None: ...


@pytest.mark.parametrize("name", ["Payments", "pay_ments", "", "correlator"])
def test_a_name_that_no_participant_can_have_is_refused(name: str) -> None:
    def look(_event: ItemsReserved, _tx: Transaction) -> None: ...

    with pytest.raises(ContractError, match="name"):
        Participant(name, step("a-step", look, saga="a-saga"))


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (asynchronous, "is `async`"),
        (unannotated, "has no annotation for 'event'"),
        (no_event, "is no event class"),
        (one_parameter, "takes 1 parameters"),
    ],
)
def test_a_handler_without_a_readable_contract_is_refused(handler: Callable[..., None], reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        step("a-step", handler, saga="a-saga")  # type: ignore[arg-type]  # what types would not let pass either
