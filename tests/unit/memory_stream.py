"""A stream in memory, with a clock of its own, for tests of what is folded from one: it stores in order, in partitions,
once each message id, and refuses what another event of the same subject came before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from farandole.envelope import Publication, StoredMessage
from farandole.errors import BrokerUnavailableError
from farandole.partitions import partition_of
from farandole.worker import Handled

START = datetime(2026, 1, 1, tzinfo=UTC)
ADDRESS = {"currency": "EUR", "address": "1 Main Street"}
HAPPY: tuple[tuple[str, dict[str, object]], ...] = (
    ("orders.v1.OrderCreated", {"customerId": "ada", "card": "c", "lines": [{"sku": "w", "quantity": 1}], **ADDRESS}),
    ("inventory.v1.ItemsReserved", {"reservationId": "r", "amountCents": 5, "card": "c", **ADDRESS}),
    ("payments.v1.PaymentProcessed", {"paymentId": "p", "amountCents": 5, **ADDRESS}),
    ("shipping.v1.OrderShipped", {"trackingNumber": "t"}),
    ("orders.v1.OrderCompleted", {"trackingNumber": "t"}),
)


@dataclass
class MemoryStream:
    """What is stored, and the time at which the next message is."""

    messages: list[StoredMessage] = field(default_factory=list)
    seconds: float = 0.0
    """Since `START`; also the monotonic time of whoever reads it."""
    refusals: int = 0
    """How often it does not answer to `stored_at`."""

    def tell(self, key: str, *events: tuple[str, dict[str, object]]) -> list[StoredMessage]:
        """Stores events of a saga with no headers, as anyone may publish them, a millisecond apart."""
        return [self._store(key, name, {}, json.dumps({"orderId": key, **body}).encode()) for name, body in events]

    def publish(self, publication: Publication) -> StoredMessage | None:
        """Stores a publication; None where it is stored already, where its condition does not hold, and where it is for
        another stream."""
        headers = publication.headers
        if not publication.subject.startswith("events."):
            return None
        message_id = headers.get("Nats-Msg-Id")
        if message_id is not None and any(m.headers.get("Nats-Msg-Id") == message_id for m in self.messages):
            return None
        if "Nats-Expected-Last-Subject-Sequence" in headers:
            last = self.last_stored_on(headers["Nats-Expected-Last-Subject-Sequence-Subject"])
            if last != int(headers["Nats-Expected-Last-Subject-Sequence"]):
                return None
        return self._store(publication.key, publication.subject.split(".", 2)[2], headers, publication.data)

    def publish_all(self, handled: Handled) -> list[StoredMessage]:
        """Stores what came of a batch: the rows, then the attempts; returns what was stored."""
        publications = [*(row.publication for row in handled.rows), *handled.attempts]
        return [message for publication in publications if (message := self.publish(publication))]

    def last_stored_on(self, subject: str) -> int:
        """The sequence of the last message on a stored subject; 0 for none."""
        return max((message.sequence for message in self.messages if message.subject == subject), default=0)

    def stored_at(self, sequence: int) -> StoredMessage | None:
        """The message at a sequence; None for none."""
        if self.refusals:
            self.refusals -= 1
            raise BrokerUnavailableError("no answer")
        return next((message for message in self.messages if message.sequence == sequence), None)

    def types(self, after: int = 0) -> list[str]:
        """The short types of what is stored behind a sequence."""
        return [message.type.rpartition(".")[2] for message in self.messages if message.sequence > after]

    def of_type(self, *names: str) -> Sequence[StoredMessage]:
        """What is stored of some short types."""
        return [message for message in self.messages if message.type.rpartition(".")[2] in names]

    def _store(self, key: str, event_type: str, headers: object, data: bytes) -> StoredMessage:
        assert isinstance(headers, dict)
        self.seconds += 0.001
        message = StoredMessage(
            f"events.{partition_of(key)}.{event_type}",
            dict(headers),
            data,
            len(self.messages) + 1,
            START + timedelta(seconds=self.seconds),
        )
        self.messages.append(message)
        return message
