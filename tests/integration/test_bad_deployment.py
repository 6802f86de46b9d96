"""A participant that was deployed with older schemas than those that events are published with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from choreography.v1.dead_letter_pb2 import DeadLetter
from choreography.v1.participant_pb2 import QueuedEvent
from choreography.v1.saga_pb2 import SAGA_HEALTH_QUARANTINED
from choreography.v1.saga_service_pb2 import GetSagaRequest
from farandole.envelope import Publication
from tests.integration.bad_days import ORDERS, BadDay, Clients, bad_day, clients_of
from tests.integration.service_processes import CORRELATOR, eventually


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadDay]:
    with bad_day(tmp_path_factory.mktemp("day") / "parts") as parts:
        yield parts


@pytest.fixture
async def clients(day: BadDay) -> AsyncIterator[Clients]:
    async with clients_of(day) as found:
        yield found


async def test_what_an_older_participant_cannot_read_waits_for_the_right_version(day: BadDay, clients: Clients) -> None:
    """Its saga waits, first for another try and then for an operator; nothing is skipped, and all others go on."""
    day.stop(ORDERS)
    day.services.modules[ORDERS] = "tests.integration.older_orders"
    day.services.start(ORDERS)
    await clients.sell("as-before")
    await clients.until_complete("as-before")

    await clients.place("newer")
    await clients.until_stored("orders.v1.OrderCreated", ["newer"])
    await clients.ship("newer", tracking_number="nine-or-more")

    async def waiting() -> QueuedEvent | None:
        return next(iter((await clients.status("newer")).queue), None)

    assert "tracking_number" in (await eventually(waiting)).error

    async def given_up() -> DeadLetter | None:
        return next(iter(await clients.open_dead_letters(ORDERS)), None)

    dead_letter = await eventually(given_up)
    assert (dead_letter.saga_id, dead_letter.event_type) == ("newer", "shipping.v1.OrderShipped")
    recorded = await clients.sagas.GetSaga(GetSagaRequest(saga_id="newer"))
    assert recorded.saga.health == SAGA_HEALTH_QUARANTINED
    await clients.sell("beside-it")
    await clients.until_complete("beside-it")

    day.stop(ORDERS)
    del day.services.modules[ORDERS]
    day.services.start(ORDERS)
    await clients.redrive(dead_letter.dead_letter_id)
    await clients.until_complete("newer")
    assert await clients.open_dead_letters(ORDERS) == []


async def test_what_no_one_can_read_is_no_participants_dead_letter(clients: Clients) -> None:
    garbage = Publication("garbage", "events.garbage.shipping.v1.OrderShipped", {}, b'{"orderId": "garbage", "trac')
    await clients.publisher.publish(garbage)

    async def given_up() -> list[DeadLetter] | None:
        return await clients.open_dead_letters(CORRELATOR) or None

    async def forgotten() -> bool | None:
        return True if (await clients.status()).queued_events == 0 else None

    [dead_letter] = await eventually(given_up)
    assert dead_letter.event_type == "shipping.v1.OrderShipped"
    await eventually(forgotten)
    assert (await clients.status()).dead_letters == 0
    await clients.sell("after-the-garbage")
    await clients.until_complete("after-the-garbage")
