"""The broker on bad days: its disk full, streams and consumers deleted, its storage gone or an older one."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farandole.broker.streams import EVENTS, provision
from farandole.envelope import Publication
from tests.integration.bad_days import BOTH, ORDERS, BadDay, Clients, bad_day, clients_of, told
from tests.integration.service_processes import CORRELATOR
from tests.integration.small_disk import SmallDisk, small_disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "broker", mebibytes=16) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def day(disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadDay]:
    with bad_day(tmp_path_factory.mktemp("day") / "parts", store_of_broker=disk.path / "jetstream") as parts:
        yield parts


@pytest.fixture
async def clients(day: BadDay) -> AsyncIterator[Clients]:
    async with clients_of(day) as found:
        yield found


async def swap_storage(day: BadDay, clients: Clients, other: Path) -> None:
    """Puts another directory in place of the broker's, which comes back under it as after a restore; keeps the one it
    had under the other's name."""
    day.broker.kill()
    aside = other.with_name("aside")
    shutil.copytree(day.broker.store, aside)
    shutil.rmtree(day.broker.store)
    shutil.copytree(other, day.broker.store)
    shutil.rmtree(other)
    aside.rename(other)
    day.broker.start()
    await clients.until_connected()


async def copy_storage(day: BadDay, clients: Clients, to: Path) -> None:
    """A backup of the broker's directory, for which it is stopped for a moment."""
    day.broker.stop()
    shutil.copytree(day.broker.store, to)
    day.broker.start()
    await clients.until_connected()


async def test_consumers_that_are_deleted_are_made_again(day: BadDay, clients: Clients) -> None:
    for service in BOTH:
        await clients.broker.request(f"$JS.API.CONSUMER.DELETE.{EVENTS}.{service}")
    await clients.sell("without-consumers")
    await clients.until_complete("without-consumers")
    await day.until_serving(*BOTH)
    for service in BOTH:
        said = [str(line.get("problem", "")) for line in day.log(service)]
        assert any(told("a consumer was deleted").search(problem) for problem in said)


async def test_a_dead_letter_waits_for_the_stream_of_dead_letters(day: BadDay, clients: Clients) -> None:
    """Meanwhile all that can be read goes on."""
    await clients.broker.request("$JS.API.STREAM.DELETE.DEADLETTERS")
    await clients.publisher.publish(Publication("x", "events.x.nobody.v1.Knows", {}, b"{}"))
    await clients.sell("beside-it")
    await clients.until_complete("beside-it")
    await day.until_told("`DEADLETTERS` was deleted", CORRELATOR)
    await provision(clients.broker)
    await day.until_serving(CORRELATOR)
    info = await clients.broker.request("$JS.API.STREAM.INFO.DEADLETTERS")
    assert info["state"]["messages"] == 1


async def test_events_deleted_made_anew_and_restored(day: BadDay, clients: Clients, tmp_path: Path) -> None:
    """What was accepted meanwhile waits in the outbox, and goes into the right stream only."""
    await clients.sell("before-the-loss")
    await clients.until_complete("before-the-loss")
    with day.suspended():  # else the correlator would go on after the backup, and tell later that it has
        await copy_storage(day, clients, tmp_path / "backup")
        await clients.broker.request(f"$JS.API.STREAM.DELETE.{EVENTS}")
    await day.until_told("`EVENTS` was deleted", *BOTH)
    await clients.place("while-it-was-gone")
    await provision(clients.broker)
    await day.until_told("`EVENTS` was made anew", *BOTH)
    day.stop(CORRELATOR)
    day.services.begin(CORRELATOR)
    await day.until_told("`EVENTS` was made anew", CORRELATOR)
    await clients.place("while-it-was-another")
    assert await clients.stored("orders.v1.OrderCreated") == []
    await swap_storage(day, clients, tmp_path / "backup")
    await day.until_serving(*BOTH)
    both = ("while-it-was-gone", "while-it-was-another")
    await clients.until_stored("orders.v1.OrderCreated", both)
    await clients.ship(*both)
    await clients.until_complete("before-the-loss", *both)


async def test_a_storage_that_is_older_than_the_stores(day: BadDay, clients: Clients, tmp_path: Path) -> None:
    """Nothing is read from it, also once it has grown past the stored positions with other events."""
    await copy_storage(day, clients, tmp_path / "older")
    sold = [f"lost-{number}" for number in range(5)]
    await clients.sell(*sold)
    await clients.until_complete(*sold)
    await swap_storage(day, clients, tmp_path / "older")
    await day.until_told("the broker's storage is an older one", *BOTH)
    others = [f"other-{number}" for number in range(40)]
    await clients.ship(*others)
    await day.until_told("an older storage has grown since", *BOTH)
    for service in BOTH:
        day.stop(service)
        day.services.begin(service)
    await day.until_told("an older storage has grown since", *BOTH)
    await swap_storage(day, clients, tmp_path / "older")
    await day.until_serving(*BOTH)
    await clients.until_complete(*sold)
    assert await clients.stored("orders.v1.OrderCompleted"), "the right one is back"
    await clients.sell("after-it-was-older")
    await clients.until_complete("after-it-was-older")


async def test_a_full_disk_of_the_broker(day: BadDay, disk: SmallDisk, clients: Clients) -> None:
    """nats-server 2.15 answers nothing then, and takes nothing more until it is started again with room on its disk."""
    before = [f"stored-{number}" for number in range(3)]
    await clients.sell(*before)
    disk.fill()
    try:
        number = 0
        accepted: list[str] = []
        while (problem := day.health(ORDERS)).is_serving:
            number += 1
            accepted.append(f"waiting-{number}")
            await clients.place(accepted[-1])
            assert number < 5000, "a disk of a few megabytes is full by now"
        assert told("the broker's disk is full").search(problem.reason)
    finally:
        disk.make_room()
        day.broker.stop()
        day.broker.start()
    await clients.until_connected()
    await day.until_serving(*BOTH)
    await clients.until_stored("orders.v1.OrderCreated", accepted)
    await clients.ship(*accepted[-3:])
    await clients.until_complete(*before, *accepted[-3:])
    created = await clients.stored("orders.v1.OrderCreated")
    assert sorted(key for key in created if key in accepted) == sorted(accepted)


async def test_an_event_that_the_stream_refuses(day: BadDay, clients: Clients) -> None:
    """It parks its saga, is named by health and status, and follows once the stream takes it."""
    info = await clients.broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    await clients.broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_msg_size": 1000})
    await clients.try_to_place("too-large", lines=100)
    await day.until_told("the stream refuses an event", ORDERS)
    await clients.sell("small-enough")
    await clients.until_complete("small-enough")
    [refused] = (await clients.status()).refused
    assert (refused.saga_id, refused.subject) == ("too-large", "events.too-large.orders.v1.OrderCreated")
    assert "message size exceeds maximum allowed" in refused.error
    assert refused.refuse_time.seconds > 0
    await clients.broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**info["config"], "max_msg_size": -1})
    await day.until_serving(ORDERS)
    await clients.ship("too-large")
    await clients.until_complete("too-large")
    assert not (await clients.status()).refused
