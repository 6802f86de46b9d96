"""Orders that come in all the time, of which every third is to be undone; and what has become of them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from farandole.broker.publisher import Publisher
from farandole.envelope import Publication
from farandole.testing.brokers import connect
from tests.e2e.running_stack import Stack, order, order_subject

ADDRESSES = ("1 Main Street", "1 Main Street", "nowhere")
"""Every third order fails at its last step, so that all of it is to be undone."""


@contextmanager
def busy(stack: Stack, prefix: str = "ord") -> Iterator[None]:
    """Orders `<prefix>-0`, `<prefix>-1`, … come in all the time."""
    stop = threading.Event()

    async def publish() -> None:
        broker = await connect(stack.nats.url)
        publisher = Publisher(broker)
        number = 0
        while not stop.is_set():
            key = f"{prefix}-{number}"
            body = json.dumps(order(key, address=ADDRESSES[number % 3])).encode()
            await publisher.publish(Publication(key, order_subject(key), {}, body))
            number += 1
            await asyncio.sleep(0.02)
        await publisher.stop()
        await broker.close()

    thread = threading.Thread(target=lambda: asyncio.run(publish()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def counts(stack: Stack) -> dict[str, int]:
    """How many sagas have each status."""
    told: dict[str, int] = {}
    for saga in stack.sagas():
        told[saga["status"]] = told.get(saga["status"], 0) + 1
    return told
