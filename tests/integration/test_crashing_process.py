"""A real process that an event ends, started again each time as a supervisor would: it finds that event, and serves."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from choreography.v1.dead_letter_events_pb2 import DeadLetterRecorded
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_REASON_CRASHED
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import EVENTS
from farandole.envelope import encode
from farandole.partitions import partition_of
from farandole.registry import Registry
from farandole.testing.brokers import BrokerUnderTest, free_port, nats_py
from payments.v1.payment_events_pb2 import PaymentProcessed
from tests.integration import crashing_shipping
from tests.integration.crashing_shipping import DEADLY, EXIT_CODE
from tests.integration.service_processes import ROOT
from tests.integration.stored_events import keys_of_stored

KEYS = [f"o{number}" for number in range(30)]
POISON = KEYS[12]
REGISTRY = Registry.of_classes([PaymentProcessed])
CRASHES = 4
"""Once in the batch, three times alone."""


async def pay(broker: Broker) -> None:
    """Publishes what has the service ship, with one parcel among them that ends it."""
    publisher = Publisher(broker)
    for key in KEYS:
        body = PaymentProcessed(
            order_id=key,
            payment_id="p",
            amount_cents=1,
            currency="EUR",
            address=DEADLY if key == POISON else "a street",
        )
        event_type = REGISTRY.types[body.DESCRIPTOR.full_name]
        await publisher.publish(encode(event_type, body, source="payments", time=datetime.now(UTC)))
    await publisher.stop()


async def test_the_process_is_ended_by_one_event_a_few_times_and_by_no_other(
    broker: Broker, nats_server: BrokerUnderTest, tmp_path: Path
) -> None:
    await pay(broker)
    environment = os.environ | {
        "FARANDOLE_NATS_URL": nats_server.url,
        "FARANDOLE_DATABASE_URL": f"sqlite:///{tmp_path}/shipping.db",
        "FARANDOLE_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    crashes = 0
    with (tmp_path / "shipping.log").open("ab") as log:
        while True:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", crashing_shipping.__name__, cwd=ROOT, env=environment, stdout=log, stderr=log
            )
            ended = asyncio.create_task(process.wait())
            served = asyncio.create_task(until_all_is_told(broker))
            await asyncio.wait({ended, served}, return_when=asyncio.FIRST_COMPLETED)
            if served.done():
                break
            served.cancel()
            assert ended.result() == EXIT_CODE
            crashes += 1
            assert crashes <= CRASHES
        process.terminate()
        assert await ended == 0
    assert crashes == CRASHES
    stored = (
        await nats_py(broker)
        .jetstream()
        .get_last_msg(EVENTS, f"events.{partition_of(POISON)}.{DeadLetterRecorded.DESCRIPTOR.full_name}")
    )
    assert stored.data is not None
    body = DeadLetterRecorded.FromString(stored.data)
    assert (body.saga_id, body.reason, body.attempts) == (POISON, DEAD_LETTER_REASON_CRASHED, 3)


async def until_all_is_told(broker: Broker) -> None:
    """Waits until every other parcel is shipped, and a dead letter recorded."""
    async with asyncio.timeout(60):
        while not await is_all_told(broker):  # noqa: ASYNC110 - a stream is polled
            await asyncio.sleep(0.1)


async def is_all_told(broker: Broker) -> bool:
    shipped = await keys_of_stored(broker, "OrderShipped")
    return sorted(shipped) == sorted(set(KEYS) - {POISON}) and await keys_of_stored(broker, "DeadLetterRecorded") == [
        POISON
    ]
