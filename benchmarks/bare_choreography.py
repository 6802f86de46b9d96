"""The yardstick: the four hops of the order saga with nats-py alone, as a first draft of a choreography would have it.

Each hop is a process that fetches, publishes the next event and acknowledges. No state, no outbox, no barrier, no
record of the saga: what it does not do is what Farandole costs.
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import api

HOPS = ("orders", "inventory", "payments", "shipping", "complete")
"""`bare.<key>.<hop>`; whoever consumes one publishes the next."""
_FETCH = 200


async def make_stream(url: str) -> None:
    """Makes the stream of the bare choreography."""
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="BARE", subjects=["bare.>"])
    await client.close()


async def hop(url: str, number: int) -> None:
    """Consumes one hop's events and publishes the next hop's, for ever."""
    client = await nats.connect(url)
    stream = client.jetstream()
    config = api.ConsumerConfig(max_ack_pending=10_000)
    consumer = await stream.pull_subscribe(f"bare.*.{HOPS[number]}", durable=HOPS[number], config=config)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        try:
            messages = await consumer.fetch(_FETCH, timeout=1)
        except NatsTimeoutError:
            continue
        receipts = []
        for message in messages:
            key = message.subject.split(".")[1]
            body = json.dumps({**json.loads(message.data), "hop": number}).encode()
            receipts.append(await stream.publish_async(f"bare.{key}.{HOPS[number + 1]}", body))
        await asyncio.gather(*receipts)
        for message in messages:
            await message.ack()


if __name__ == "__main__":
    asyncio.run(hop(sys.argv[1], int(sys.argv[2])))
