"""What PostgreSQL does to a transaction that SQLite does not, and that no handler is to notice."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import sqlalchemy as sa

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded
from farandole import Retries, Transaction, step
from farandole.errors import StoreUnavailableError
from inventory.v1.inventory_events_pb2 import ItemsReserved
from payments.v1.payment_events_pb2 import PaymentFailed
from tests.integration.participant_bench import Bench, bench_at, charges, reserved, types, write_down


@pytest.fixture
async def bench(postgres_url: str) -> AsyncIterator[Bench]:
    async with bench_at(postgres_url) as bench:
        yield bench


async def employ(bench: Bench, handler: object) -> None:
    """Gives the participant one step that is given up on as soon as it fails."""
    await bench.handler.release()
    bench.with_steps(step("take-payment", handler, saga="order-fulfilment"), retries=Retries(tries=1))  # type: ignore[arg-type]
    await bench.handler.claim("stream-1")


@pytest.mark.parametrize("passes_over", [False, True])
@pytest.mark.parametrize("is_isolated", [False, True])
async def test_a_conflict_is_never_a_try(
    bench: Bench, postgres_url: str, *, is_isolated: bool, passes_over: bool
) -> None:
    """Neither without nor with a savepoint for each event, and not where the handler makes something else of it."""
    await bench.database.write(lambda c: c.execute(charges.insert(), {"number": 1, "key": "till", "what": "0"}))
    runs: list[str] = []

    def charge(_event: ItemsReserved, tx: Transaction) -> PaymentFailed:
        if tx.key == "bad":  # so that each event of the batch has a savepoint
            raise RuntimeError("broken")
        found = tx.execute(sa.select(charges.c.what).where(charges.c.number == 1)).scalar_one()
        runs.append(found)
        if runs == (["0", "0"] if is_isolated else ["0"]):
            with psycopg.connect(postgres_url) as other:
                other.execute("UPDATE charges SET what = '10' WHERE number = 1")
        try:
            tx.execute(sa.update(charges).where(charges.c.number == 1).values(what=str(int(found) + 1)))
        except sa.exc.OperationalError:
            if not passes_over:
                raise
            raise RuntimeError("the till is in use") from None
        return PaymentFailed(order_id=tx.key, reason=f"saw {found}")

    await employ(bench, charge)
    keys = ("good", "bad") if is_isolated else ("good",)
    published = await bench.take(*(bench.message(reserved(key)) for key in keys))
    assert types(published) == (["PaymentFailed", "DeadLetterRecorded"] if is_isolated else ["PaymentFailed"])
    assert isinstance(published[0].body, PaymentFailed)
    assert published[0].body.reason == "saw 10"
    assert await bench.queued("good") == []
    assert await bench.done("till") == ["11"]
    assert runs == (["0", "0", "10"] if is_isolated else ["0", "10"])


async def test_a_connection_that_goes_is_never_a_try(bench: Bench) -> None:
    runs: list[str] = []

    def charge(_event: ItemsReserved, tx: Transaction) -> PaymentFailed:
        runs.append(tx.key)
        if len(runs) == 1:
            with pytest.raises(sa.exc.OperationalError):
                tx.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return PaymentFailed(order_id=tx.key, reason="declined")

    await employ(bench, charge)
    message = bench.message(reserved())
    with pytest.raises(StoreUnavailableError, match="lost in the middle"):
        await bench.take(message)
    assert types(await bench.take(message)) == ["PaymentFailed"]


@pytest.mark.parametrize("has_savepoint", [False, True])
async def test_what_may_fail_and_be_passed_over_takes_a_savepoint(bench: Bench, *, has_savepoint: bool) -> None:
    """Without one the transaction is at its end: that event's handler has failed, and no other event's."""

    def charge(_event: ItemsReserved, tx: Transaction) -> PaymentFailed:
        write_down(tx, "charge")
        if tx.key == "twice":
            try:
                if has_savepoint:
                    with tx.connection.begin_nested():
                        tx.execute(charges.insert(), {"number": 1, "key": tx.key, "what": "again"})
                else:
                    tx.execute(charges.insert(), {"number": 1, "key": tx.key, "what": "again"})
            except sa.exc.IntegrityError:
                pass
        return PaymentFailed(order_id=tx.key, reason="declined")

    await employ(bench, charge)
    await bench.take(bench.message(reserved("first")))
    published = await bench.take(*(bench.message(reserved(key)) for key in ("one", "twice", "other")))
    assert [await bench.done(key) for key in ("one", "other")] == [["charge"], ["charge"]]
    if has_savepoint:
        assert await bench.done("twice") == ["charge"]
    else:
        assert await bench.done("twice") == []
        [told] = [event.body for event in published if isinstance(event.body, DeadLetterRecorded)]
        assert "takes a savepoint" in told.detail
