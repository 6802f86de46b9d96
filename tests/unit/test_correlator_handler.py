"""What a batch comes to: lifecycle events called for once, and records that rest on what is stored now."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from farandole.correlator.changes import SagaChanges
from farandole.correlator.definitions import Definitions
from farandole.correlator.handler import CorrelatorBatchHandler
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.envelope import StoredMessage
from farandole.errors import FencedError
from farandole.partitions import partition_of
from farandole.saga import Disposition, Status
from farandole.worker import Handled
from tests.unit.saga_histories import ORDER_FULFILMENT, REGISTRY

START = datetime(2026, 1, 1, tzinfo=UTC)
ADDRESS = {"currency": "EUR", "address": "1 Main Street"}
HAPPY: tuple[tuple[str, dict[str, object]], ...] = (
    ("orders.v1.OrderCreated", {"customerId": "ada", "card": "c", "lines": [{"sku": "w", "quantity": 1}], **ADDRESS}),
    ("inventory.v1.ItemsReserved", {"reservationId": "r", "amountCents": 5, "card": "c", **ADDRESS}),
    ("payments.v1.PaymentProcessed", {"paymentId": "p", "amountCents": 5, **ADDRESS}),
    ("shipping.v1.OrderShipped", {"trackingNumber": "t"}),
    ("orders.v1.OrderCompleted", {"trackingNumber": "t"}),
)


class Stream:
    """Makes stored messages, one sequence after another."""

    def __init__(self) -> None:
        self.sequence = 0

    def store(self, event_type: str, body: dict[str, object], headers: dict[str, str] | None = None) -> StoredMessage:
        self.sequence += 1
        subject = f"events.{partition_of('o1')}.{event_type}"
        data = json.dumps({"orderId": "o1", **body}).encode()
        return StoredMessage(subject, headers or {}, data, self.sequence, START + timedelta(seconds=self.sequence))

    def read_back(self, handled: Handled) -> list[StoredMessage]:
        """The published rows as the stream would store them."""
        messages = []
        for row in handled.rows:
            self.sequence += 1
            publication = row.publication
            subject = f"events.{partition_of('o1')}.{publication.subject.split('.', 2)[2]}"
            time = START + timedelta(seconds=self.sequence)
            messages.append(StoredMessage(subject, publication.headers, publication.data, self.sequence, time))
        return messages


@pytest.fixture
def store() -> MemoryCorrelatorStore:
    return MemoryCorrelatorStore()


async def owner(store: MemoryCorrelatorStore) -> CorrelatorBatchHandler:
    """A correlator's handler that has claimed the store."""
    await store.open()
    await store.activate((ORDER_FULFILMENT,))
    handler = CorrelatorBatchHandler(
        store=store,
        registry=REGISTRY,
        definitions=Definitions((ORDER_FULFILMENT,)),
        changes=SagaChanges(),
        last_stored_on=None,
    )
    await handler.claim("stream-1")
    return handler


def published(handled: Handled) -> list[str]:
    return [row.publication.subject.rpartition(".")[2] for row in handled.rows]


async def test_an_end_is_published_once_however_many_events_follow_before_it_is_read_back(
    store: MemoryCorrelatorStore,
) -> None:
    handler, stream = await owner(store), Stream()
    handled = await handler.handle([stream.store(*event) for event in HAPPY], ())
    assert published(handled) == ["SagaCompleted"]
    assert published(await handler.handle([stream.store(*HAPPY[-1])], ())) == []
    assert published(await handler.handle(stream.read_back(handled), ())) == []
    (recorded,) = await store.get_sagas("o1")
    assert recorded.saga.status is Status.COMPLETED
    assert [entry.disposition for entry in recorded.saga.history] == [
        *[Disposition.APPLIED] * 5,
        Disposition.DUPLICATE,
        Disposition.APPLIED,
    ]


async def test_an_end_that_its_own_batch_holds_already_is_not_published(store: MemoryCorrelatorStore) -> None:
    """As in a rebuild, where the whole history comes in one batch."""
    first, stream = await owner(store), Stream()
    messages = [stream.store(*event) for event in HAPPY]
    messages += stream.read_back(await first.handle(messages, ()))
    rebuilt = MemoryCorrelatorStore()
    handled = await (await owner(rebuilt)).handle(messages, ())
    assert published(handled) == []
    assert len(handled.read_back) == 1
    assert await rebuilt.waiting_publications() == ()


async def test_who_claims_again_starts_from_what_is_stored(store: MemoryCorrelatorStore) -> None:
    """As after trouble of the store, when it is not known what became of the last commit."""
    first, stream = await owner(store), Stream()
    await first.handle([stream.store(*HAPPY[0])], ())
    await first.handle([stream.store(*HAPPY[1])], ())
    await first.claim("stream-1")
    handled = await first.handle([stream.store(*event) for event in HAPPY[2:]], ())
    assert published(handled) == ["SagaCompleted"]
    (recorded,) = await store.get_sagas("o1")
    assert [entry.disposition for entry in recorded.saga.history] == [Disposition.APPLIED] * 5


async def test_who_was_shut_out_does_not_take_the_store_back(store: MemoryCorrelatorStore) -> None:
    first, stream = await owner(store), Stream()
    await first.handle([stream.store(*HAPPY[0])], ())
    second = await owner(store)
    with pytest.raises(FencedError):
        await first.claim("stream-1")
    await second.handle([stream.store(*HAPPY[1])], ())
    (recorded,) = await store.get_sagas("o1")
    assert len(recorded.saga.history) == 2
