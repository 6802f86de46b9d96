"""What the stream holds, for tests to look at."""

from __future__ import annotations

from farandole.broker.connection import Broker
from farandole.broker.streams import EVENTS
from farandole.testing.brokers import nats_py


async def keys_of_stored(broker: Broker, event_type: str) -> list[str]:
    """The correlation keys of all stored events of a type, in stream order."""
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    stream = nats_py(broker).jetstream()
    found = []
    for sequence in range(1, info["state"]["last_seq"] + 1):
        message = await stream.get_msg(EVENTS, sequence)
        if message.subject is not None and message.subject.endswith(event_type):
            assert message.headers is not None
            found.append(message.headers["ce-correlationid"])
    return found
