"""What the correlator publishes for operators, and reads for them, at once: a port to the stream `EVENTS`."""

from __future__ import annotations

from typing import Protocol

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import stored_at
from farandole.envelope import Publication, StoredMessage
from farandole.errors import BrokerUnavailableError
from farandole.telemetry import NO_TELEMETRY, Telemetry


class EventsStream(Protocol):
    """The stream `EVENTS`, for who waits for its answer."""

    async def publish(self, publication: Publication) -> None:
        """Returns once the stream has it, now or from before.

        Raises `BrokerUnavailableError` where it is not known whether the stream has it, `BrokerError` where the stream
        refused it.
        """
        ...

    async def stored_at(self, sequence: int) -> StoredMessage | None:
        """The event stored at a sequence; None where the stream has none there.

        Raises `BrokerUnavailableError` where the broker does not answer, `BrokerError` where it refuses.
        """
        ...


class BrokerEventsStream:
    """An `EventsStream` over a broker. What is published at the same time is pipelined."""

    def __init__(self, broker: Broker, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self._broker = broker
        self._publisher = Publisher(broker, telemetry)

    async def publish(self, publication: Publication) -> None:
        """See `EventsStream.publish`. Answers within seconds, also where there is no connection."""
        if self._broker.problem is not None:
            raise BrokerUnavailableError(self._broker.problem)
        await self._publisher.publish(publication)

    async def stored_at(self, sequence: int) -> StoredMessage | None:
        """See `EventsStream.stored_at`."""
        return await stored_at(self._broker, sequence)

    async def stop(self) -> None:
        """Gives up on what is under way."""
        await self._publisher.stop()
