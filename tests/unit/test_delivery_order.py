"""Reading in order over a consumer that others may read too, over connections that break, and around resets."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.broker.delivery_order import DeliveryOrder

STORED = 8

Delivery = tuple[int, int]
"""Stream sequence and consumer sequence."""


@dataclass
class Server:
    """A durable consumer over a stream with the sequences 1 to `STORED`, and one connection to its reader."""

    order: DeliveryOrder = field(default_factory=lambda: DeliveryOrder(after=0))
    admitted: list[int] = field(default_factory=list)
    position: int = 0
    consumer_sequence: int = 0
    on_the_way: list[Delivery] = field(default_factory=list)

    def deliver(self) -> None:
        """Sends the next message to the reader."""
        if (delivery := self._next()) is not None:
            self.on_the_way.append(delivery)

    def steal(self) -> None:
        """Sends the next message to another reader of the same consumer."""
        self._next()

    def redeliver(self) -> None:
        """Sends a message again that nobody acknowledged in time: a stolen one, or one that is not acknowledged yet."""
        if self.position:
            self.consumer_sequence += 1
            self.on_the_way.append((min(self.order.last + 1, self.position), self.consumer_sequence))

    def arrive(self) -> None:
        """The reader gets what was sent first."""
        if self.on_the_way:
            stream_sequence, consumer_sequence = self.on_the_way.pop(0)
            if self.order.admits(stream_sequence, consumer_sequence):
                self.admitted.append(stream_sequence)

    def reset(self) -> None:
        """The reader resets the consumer where it has to, and reads from a new inbox."""
        if self.order.is_lost:
            self.on_the_way.clear()
            self.position, self.consumer_sequence = self.order.last, 0
            self.order.reset()

    def disconnect(self) -> None:
        """The connection breaks, with all that is on the way."""
        self.on_the_way.clear()
        self.order.lose()

    def _next(self) -> Delivery | None:
        if self.position == STORED:
            return None
        self.position += 1
        self.consumer_sequence += 1
        return self.position, self.consumer_sequence


ACTIONS = ("deliver", "steal", "redeliver", "arrive", "reset", "disconnect")


@given(st.lists(st.sampled_from(ACTIONS), max_size=300))
@settings(max_examples=2000, deadline=None)
def test_everything_is_admitted_once_in_order_whatever_happens(actions: list[str]) -> None:
    server = Server()
    for action in actions:
        getattr(server, action)()
        assert server.admitted == list(range(1, len(server.admitted) + 1)), "skipped, doubled or out of order"
    for _ in range(10 * STORED):  # nothing bad happens any more: all that is left comes
        server.reset()
        server.deliver()
        server.redeliver()
        while server.on_the_way:
            server.arrive()
    assert server.admitted == list(range(1, STORED + 1))


def test_a_redelivery_does_not_hide_that_a_message_was_lost_before_it() -> None:
    order = DeliveryOrder(after=0)
    order.reset()
    assert order.admits(1, 1)
    assert not order.admits(1, 3)  # number 2 went to somebody else
    assert order.is_lost


def test_a_redelivery_counts() -> None:
    order = DeliveryOrder(after=0)
    order.reset()
    assert order.admits(1, 1)
    assert not order.admits(1, 2)
    assert order.admits(2, 3)


def test_what_was_delivered_and_has_not_come_is_lost() -> None:
    order = DeliveryOrder(after=0)
    order.reset()
    assert order.admits(1, 1)
    order.hear_of(1)
    assert not order.is_lost
    order.hear_of(2)
    assert order.is_lost
