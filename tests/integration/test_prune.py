"""`farandole prune`: what goes, what holds it back, and that nobody is the worse for it."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from choreography.v1 import participant_pb2, participant_service_pb2
from farandole.backup import backing_up
from farandole.backup.backing_up import Manifest, back_up, read_backup
from farandole.backup.stores import backup_store, find_program
from farandole.broker import pruned as pruned_module
from farandole.broker import pruning_turn as turn_module
from farandole.broker.connection import Broker
from farandole.broker.pruned import Pruned, check_not_pruned, forget_reader, pruned_of, purge
from farandole.broker.pruning_turn import pruning_turn
from farandole.broker.publisher import Publisher
from farandole.broker.responder import respond, status_subject
from farandole.broker.stored import events_behind
from farandole.broker.streams import DEADLETTERS, EVENTS, SNAPSHOTS, events_state
from farandole.cli.prune_commands import prune
from farandole.correlator.contents import Item
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.inquiry import BrokerInquiry
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import RecordedSaga
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore
from farandole.database import Database
from farandole.envelope import Publication
from farandole.errors import (
    BrokerError,
    InvalidArgumentError,
    PreconditionError,
    QueryError,
    SnapshotError,
    StreamPrunedError,
)
from farandole.replay import pruning as pruning_module
from farandole.replay import replaying as replaying_module
from farandole.replay.folding import Extent
from farandole.replay.holds import Holds, find_holds
from farandole.replay.pruning import KEPT_TYPES, Pruning
from farandole.replay.replaying import LiveView, Verified, live_view, verify
from farandole.saga import Disposition, Status
from farandole.testing.brokers import BrokerUnderTest
from farandole.testing.store_conformance import exported
from tests.integration.correlators import (
    HAPPY,
    REGISTRY,
    Correlator,
    correlating,
    dispositions,
    end_deduplication,
    tell,
    unhurried,
)
from tests.integration.farandole_command import Command

PARTICIPANTS = ("orders", "inventory", "payments", "shipping")
RESERVED, SHIPPING_FAILED = "events.*.inventory.v1.ItemsReserved", "events.*.shipping.v1.ShippingFailed"
UNDONE: tuple[tuple[str, dict[str, object]], ...] = (
    HAPPY[0],
    ("inventory.v1.ReservationFailed", {"reason": "OUT_OF_STOCK"}),
    ("orders.v1.OrderCancelled", {"reason": "out of stock"}),
)


@dataclass
class Scene:
    """A correlator at work, participants that tell how far they have read, and the command line."""

    broker: Broker
    correlator: Correlator
    farandole: Command
    positions: dict[str, int | None] = field(default_factory=dict)
    """By participant; None where it does not answer. Missing: it is as far as the stream."""
    lanes: int = 0
    """As every participant tells: 0 where it is of a version that did not tell."""

    @property
    def store(self) -> CorrelatorStore:
        return self.correlator.store

    async def answer(self, name: str, _request: bytes) -> bytes:
        position = self.positions.get(name, await self.end())
        if position is None:
            raise QueryError("nobody is here")
        status = participant_pb2.ParticipantStatus(participant=name, position=position, lanes=self.lanes)
        return participant_service_pb2.GetStatusResponse(status=status).SerializeToString()

    async def end(self) -> int:
        return (await events_state(self.broker)).last_sequence

    async def stored(self) -> list[int]:
        """The sequences of all that the stream holds."""
        return [one.sequence async for page in events_behind(self.broker, 0, await self.end()) for one in page]

    async def left_of_sagas(self) -> list[int]:
        """The same without what tells of definitions, which stays."""
        pages = events_behind(self.broker, 0, await self.end())
        return [one.sequence async for page in pages for one in page if one.type not in KEPT_TYPES]

    async def holds(self, *without: str) -> Holds:
        async with live_view(self.broker, self.store) as live:
            inquiry = BrokerInquiry(self.broker, time_limit_seconds=1)
            return await find_holds(self.broker, live, inquiry=inquiry, without=without)

    async def prune(self, until: int | None = None) -> int:
        """Prunes as far as it may; returns how far that is."""
        async with live_view(self.broker, self.store) as live:
            inquiry = BrokerInquiry(self.broker)
            holds = await find_holds(self.broker, live, inquiry=inquiry, without=())
            pruning = Pruning(self.broker, self.store, REGISTRY, report=lambda _done, _all: None)
            until = until or holds.until
            await pruning.prune(live, holds, until, reasons={})
            return until

    async def remove(self) -> int:
        """Removes what an interrupted run has left."""
        return await Pruning(self.broker, self.store, REGISTRY, report=lambda _done, _all: None).remove()

    async def mark(self) -> Pruned | None:
        return pruned_of(await events_state(self.broker))

    async def replay(self, extent: Extent | None = None) -> Verified:
        """A replay as far as the live records are, or so far."""
        async with live_view(self.broker, self.store) as live:
            wanted = LiveView(live.contents, extent or live.extent, live.state)
            return await verify(self.broker, wanted, registry=REGISTRY, report=lambda _done, _all: None)

    async def settled(self) -> None:
        """Waits until the correlator has folded all that the stream holds."""
        async with asyncio.timeout(20):
            while min((await self.store.positions()).values()) < await self.end():  # noqa: ASYNC110 - no one tells
                await asyncio.sleep(0.02)

    async def consumer(self, durable: str, *filters: str, description: str = "", after: int | None = None) -> None:
        """Makes a durable consumer to which everything behind a sequence is to be given, by default nothing yet."""
        start = (await self.end() if after is None else after) + 1
        await self.broker.request(
            f"$JS.API.CONSUMER.DURABLE.CREATE.EVENTS.{durable}",
            {
                "stream_name": EVENTS,
                "config": {
                    "durable_name": durable,
                    "description": description,
                    "ack_policy": "all",
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": start,
                    "filter_subjects": list(filters),
                },
            },
        )

    async def first_of(self, key: str) -> int:
        [recorded] = await self.store.get_sagas(key)
        return recorded.saga.history[0].fact.sequence


@asynccontextmanager
async def at_work(broker: Broker, url: str, directory: Path, name: str = "correlator") -> AsyncIterator[Scene]:
    url_of_store = f"sqlite:///{directory / name}.db"
    store = SqlCorrelatorStore(Database(url_of_store))
    async with correlating(broker, store, unhurried(directory / "definitions")) as correlator:
        yield Scene(broker, correlator, Command(url, url_of_store))
    await store.close()


@pytest.fixture
async def scene(broker: Broker, nats_server: BrokerUnderTest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with at_work(broker, nats_server.url, tmp_path) as scene:
        answering = [
            asyncio.create_task(respond(broker, status_subject(name), queue=name, answer=partial(scene.answer, name)))
            for name in PARTICIPANTS
        ]
        for number in range(4):
            await tell(broker, f"done-{number}")
        await scene.correlator.until("done-3", Status.COMPLETED)
        await scene.settled()
        yield scene
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


async def killed(*_arguments: object, **_named: object) -> int:
    """In place of a part of a run: the run ends there."""
    raise KeyboardInterrupt


def records(items: Iterable[Item]) -> list[Item]:
    """Without positions and outbox, and without which definitions are active."""
    return [item for item in items if isinstance(item, RecordedSaga | DeadLetter)]


async def test_what_is_over_goes_and_nothing_that_is_open_does(scene: Scene) -> None:
    await tell(scene.broker, "open", HAPPY[:3])
    await tell(scene.broker, "later")
    await scene.correlator.until("later", Status.COMPLETED)
    await scene.settled()
    before = await exported(scene.store)
    first = await scene.first_of("open")
    shown = await asyncio.to_thread(scene.farandole, "prune", "--dry-run")
    assert f"what stands up to {first - 1} may go" in shown
    assert "saga order-fulfilment open" in shown
    assert "farandole sagas diagnose open" in shown
    stored = await scene.left_of_sagas()
    told = await asyncio.to_thread(scene.farandole.json, "prune")
    assert told["until"] == first - 1
    left = await scene.left_of_sagas()
    assert left == [sequence for sequence in stored if sequence >= first]
    assert told["removed"] == len(stored) - len(left) > 0
    assert len(await scene.stored()) == len(left) + 16
    assert records(await exported(scene.store)) == records(before), "records and histories stay in the live store"
    said = await asyncio.to_thread(scene.farandole, "replay")
    assert " events behind the snapshot as of " in said
    assert "\nidentical: 6 sagas" in said
    with pytest.raises(PreconditionError, match="the stream was pruned, and replay starts from its snapshot"):
        await scene.replay(Extent.of(first))


async def test_a_correlator_with_an_empty_database_begins_from_the_snapshot(
    scene: Scene, nats_server: BrokerUnderTest, tmp_path: Path
) -> None:
    await tell(scene.broker, "open", HAPPY[:3])
    await scene.settled()
    await scene.prune()
    await tell(scene.broker, "open", HAPPY[3:])
    await scene.correlator.until("open", Status.COMPLETED)
    await end_deduplication(scene.broker)  # so that the rebuild's silence, and not the broker, is what is seen
    await scene.settled()
    live = records(await exported(scene.store))
    end = await scene.end()
    scene.correlator.running.cancel()
    await asyncio.gather(scene.correlator.running, return_exceptions=True)
    async with at_work(scene.broker, nats_server.url, tmp_path, "rebuilt") as rebuilt:
        await rebuilt.correlator.problems.until_well()
        await rebuilt.settled()
        assert records(await exported(rebuilt.store)) == live
        assert await rebuilt.end() == end, "it published nothing again"
        # what is closed and pruned is known all the same
        await tell(rebuilt.broker, "done-0", [HAPPY[0], ("payments.v1.PaymentFailed", {"reason": "too late"})])
        await tell(rebuilt.broker, "new")
        await rebuilt.correlator.until("new", Status.COMPLETED)
        [done] = await rebuilt.store.get_sagas("done-0")
        assert dispositions(done)[-2:] == [
            ("OrderCreated", Disposition.DUPLICATE),
            ("PaymentFailed", Disposition.LATE),
        ]


async def test_who_has_not_read_so_far_holds_what_it_needs(scene: Scene) -> None:
    end, stored = await scene.end(), await scene.stored()
    second = await scene.first_of("done-1")
    await scene.consumer("payments", RESERVED, SHIPPING_FAILED, description="Farandole participant payments")
    assert (await scene.holds()).until == end
    # its consumer says that it has read everything; its database, restored from a backup, says otherwise
    scene.positions["payments"] = second
    holds = await scene.holds()
    assert (holds.found[0].what, holds.until) == ("participant payments", second)
    assert holds.readers["payments"] == second
    with pytest.raises(PreconditionError, match="participant payments holds what stands behind"):
        await scene.prune(until=end)
    assert await scene.stored() == stored, "nothing went"
    # what it does not read it does not need
    scene.positions["payments"] = second + 1
    third = await scene.first_of("done-2")
    assert (await scene.holds()).until == third
    # a consumer that nobody declared is respected too
    await scene.consumer("audit", "events.>", after=0)
    holds = await scene.holds()
    assert (holds.found[0].what, holds.until) == ("consumer audit", 0)


@pytest.mark.parametrize(
    ("durable", "description"),
    [
        ("orders-2025", ""),
        ("orders-3", "the orders of 2025"),
        ("orders-16", "Farandole participant orders"),
        ("correlator-7", ""),
    ],
)
async def test_a_consumer_that_only_looks_like_a_lane_holds_what_it_has_not_been_given(
    scene: Scene, durable: str, description: str
) -> None:
    await scene.consumer(durable, "events.>", description=description, after=0)
    holds = await scene.holds()
    assert (holds.found[0].what, holds.until) == (f"consumer {durable}", 0)


async def test_while_a_lane_has_no_consumer_nobody_knows_what_it_needs(scene: Scene) -> None:
    scene.lanes = 2
    second = await scene.first_of("done-1")
    scene.positions["payments"] = second
    await scene.consumer("payments-0", SHIPPING_FAILED, description="Farandole participant payments")
    holds = await scene.holds()
    assert (holds.found[0].what, holds.until) == ("participant payments", second)
    await scene.consumer("payments-1", SHIPPING_FAILED, description="Farandole participant payments")
    assert (await scene.holds()).until == await scene.end()


async def test_a_participant_that_no_definition_names_is_a_reader_too(scene: Scene) -> None:
    end = await scene.end()
    await scene.consumer("audit", "events.>", description="Farandole participant audit")
    with pytest.raises(PreconditionError, match="audit did not tell how far it has read"):
        await scene.prune()
    answering = asyncio.create_task(
        respond(scene.broker, status_subject("audit"), queue="audit", answer=partial(scene.answer, "audit"))
    )
    try:
        async with asyncio.timeout(20):
            while (await scene.holds()).silent:  # noqa: ASYNC110 - no one tells
                await asyncio.sleep(0.02)
        scene.positions["audit"] = end - 2
        holds = await scene.holds()
        assert (holds.found[0].what, holds.until) == ("participant audit", end - 2)
        await scene.prune()
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
    state = await events_state(scene.broker)
    check_not_pruned(state, "audit", end - 2)
    with pytest.raises(StreamPrunedError, match="`farandole prune --forget audit "):
        check_not_pruned(state, "audit", end - 3)


async def test_who_does_not_answer_is_passed_over_only_with_a_reason(scene: Scene) -> None:
    scene.positions["shipping"] = None
    with pytest.raises(PreconditionError, match="shipping did not tell how far it has read: start it"):
        await scene.prune()
    with pytest.raises(InvalidArgumentError, match="is needed with --without"):
        prune(without=["shipping"])
    with pytest.raises(InvalidArgumentError, match=r"shiping is no participant; .*did you mean shipping"):
        await scene.holds("shiping")
    told = await asyncio.to_thread(scene.farandole.json, "prune", "--without", "shipping", "--reason", "never deployed")
    state = await events_state(scene.broker)
    pruned = pruned_of(state)
    assert pruned is not None
    assert pruned.until == told["until"]
    assert pruned.reasons == {"shipping": "never deployed"}
    # whoever comes back with less than was known is refused; who is new is not
    for durable in ("payments", "payments-3", "shipping"):
        with pytest.raises(StreamPrunedError, match=f"`farandole prune --forget {durable.partition('-')[0]} "):
            check_not_pruned(state, durable, 0)
        check_not_pruned(state, durable, pruned.until)
    check_not_pruned(state, "loyalty", 0)
    assert await forget_reader(scene.broker, "shipping", "begins anew")
    check_not_pruned(await events_state(scene.broker), "shipping", 0)
    refused = await asyncio.to_thread(scene.farandole, "prune", "--forget", "correlator", "--reason", "lost", code=1)
    assert "correlator is no participant: there is nothing to forget" in refused


async def test_who_was_not_asked_and_is_behind_is_refused_until_it_is_forgotten(scene: Scene) -> None:
    behind = await scene.first_of("done-1")
    until = await scene.prune()
    assert 0 < behind < until
    # neither a definition nor a consumer told of `audit`: its consumer was removed while it was stopped
    state = await events_state(scene.broker)
    for durable in ("audit", "audit-3"):
        check_not_pruned(state, durable, 0)
        check_not_pruned(state, durable, until)
        for position in (1, behind, until - 1):
            with pytest.raises(StreamPrunedError, match="`farandole prune --forget audit "):
                check_not_pruned(state, durable, position)
    said = await asyncio.to_thread(scene.farandole, "prune", "--forget", "audit", "--reason", "a gap does no harm")
    assert "audit may begin anew" in said
    check_not_pruned(await events_state(scene.broker), "audit-3", behind)
    assert await forget_reader(scene.broker, "shipping", "begins anew")
    check_not_pruned(await events_state(scene.broker), "shipping", behind)
    # that was about what had gone then
    await tell(scene.broker, "next")
    await scene.correlator.until("next", Status.COMPLETED)
    await scene.settled()
    further = await scene.prune()
    with pytest.raises(StreamPrunedError, match=f"pruned up to {further}"):
        check_not_pruned(await events_state(scene.broker), "audit", behind)


async def test_who_comes_back_with_all_that_went_is_let_on(scene: Scene) -> None:
    await tell(scene.broker, "open", HAPPY[:3])
    await tell(scene.broker, "later")
    await scene.correlator.until("later", Status.COMPLETED)
    await scene.settled()
    await scene.consumer("shipping", "events.>", description="Farandole participant shipping", after=0)
    scene.positions["shipping"] = None
    told = await asyncio.to_thread(scene.farandole.json, "prune", "--without", "shipping", "--reason", "is away")
    until = told["until"]
    assert until == await scene.first_of("open") - 1 < await scene.end()
    state = await events_state(scene.broker)
    for durable in ("payments", "shipping"):  # the one has read all of the stream, nobody knows how far the other has
        check_not_pruned(state, durable, until)
        with pytest.raises(StreamPrunedError, match=f"needs to have read up to {until}"):
            check_not_pruned(state, durable, until - 1)


async def test_who_was_there_at_the_last_pruning_is_asked_at_the_next(scene: Scene) -> None:
    await scene.consumer("audit", "events.>", description="Farandole participant audit")
    first = (await asyncio.to_thread(scene.farandole.json, "prune", "--without", "audit", "--reason", "is away"))[
        "until"
    ]
    await scene.broker.request(f"$JS.API.CONSUMER.DELETE.{EVENTS}.audit")
    await tell(scene.broker, "next")
    await scene.correlator.until("next", Status.COMPLETED)
    await scene.settled()
    with pytest.raises(PreconditionError, match="audit did not tell how far it has read"):
        await scene.prune()
    check_not_pruned(await events_state(scene.broker), "audit", first)
    assert await forget_reader(scene.broker, "audit", "is no more")
    assert await scene.prune() > first


async def test_dead_letters_that_are_open_hold_and_stray_events_do_not(scene: Scene) -> None:
    await tell(scene.broker, "stray", HAPPY[1:2])
    publisher = Publisher(scene.broker)
    garbage = Publication("garbage", "events.garbage.orders.v1.OrderCreated", {}, b"no order")
    at = (await publisher.publish(garbage)).sequence
    await publisher.stop()
    await tell(scene.broker, "later")
    await scene.correlator.until("later", Status.COMPLETED)
    await scene.settled()
    holds = await scene.holds()
    assert (holds.found[0].what, holds.until) == (f"dead letter correlator-{at}", at - 1)


async def test_records_that_are_not_what_the_stream_makes_of_them_keep_it_whole(scene: Scene) -> None:
    with sqlite3.connect(scene.farandole.database_url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE saga SET status = 6 WHERE key = 'done-1'")
    connection.close()
    before = await scene.stored()
    with pytest.raises(PreconditionError, match="what the stream makes of them: 1 differ, as order-fulfilment done-1"):
        await scene.prune()
    assert await scene.stored() == before
    assert pruned_of(await events_state(scene.broker)) is None


async def test_what_stands_behind_a_sequence_that_is_given_stays(scene: Scene) -> None:
    third = await scene.first_of("done-2")
    stored = await scene.left_of_sagas()
    shown = await asyncio.to_thread(scene.farandole, "prune", "--until-sequence", str(third - 1), "--dry-run")
    assert f"what stands up to {third - 1} may go" in shown
    assert [str(third - 1), "--until-sequence", "was", "given"] in [line.split() for line in shown.splitlines()]
    assert await scene.left_of_sagas() == stored
    told = await asyncio.to_thread(scene.farandole.json, "prune", "--until-sequence", str(third - 1))
    assert told["until"] == third - 1
    assert await scene.left_of_sagas() == [sequence for sequence in stored if sequence >= third]


async def test_a_participant_is_forgotten_with_a_reason_and_nothing_else_is_done(scene: Scene) -> None:
    await scene.prune()
    before = pruned_of(await events_state(scene.broker))
    assert before is not None
    assert "payments" in before.readers
    lost: dict[str, Any] = {"forget": "payments", "reason": "its disk is lost"}
    for option, value in (
        ("--dry-run", {"dry_run": True}),
        ("--until-sequence", {"until_sequence": 5}),
        ("--without", {"without": ["shipping"]}),
        ("--database", {"database": "sqlite:///nowhere"}),
        ("--json", {"as_json": True}),
    ):
        with pytest.raises(InvalidArgumentError, match=f"^{option}: is of no effect with --forget"):
            prune(**lost, **value)
    assert pruned_of(await events_state(scene.broker)) == before
    said = await asyncio.to_thread(scene.farandole, "prune", "--forget", "payments", "--reason", "its disk is lost")
    assert said == "payments may begin anew, with what the stream still holds\n"
    after = pruned_of(await events_state(scene.broker))
    assert after is not None
    assert after.until == before.until
    assert after.readers.keys() == before.readers.keys() - {"payments"}
    assert after.reasons["payments"] == "its disk is lost"
    none = await asyncio.to_thread(
        scene.farandole, "prune", "--forget", "correlator", "--reason", "its disk is lost", code=1
    )
    assert "there is nothing to forget" in none


@pytest.mark.parametrize("damage", ["a byte", "a piece"])
async def test_a_snapshot_that_is_damaged_is_refused_with_the_remedy(scene: Scene, tmp_path: Path, damage: str) -> None:
    await scene.prune()
    pruned = pruned_of(await events_state(scene.broker))
    assert pruned is not None
    subject = f"snapshots.{pruned.snapshot}.0"
    publisher = Publisher(scene.broker)
    piece = await scene.broker.request(f"$JS.API.STREAM.MSG.GET.{SNAPSHOTS}", {"last_by_subj": subject})
    if damage == "a byte":
        data = bytearray(base64.b64decode(piece["message"]["data"]))
        data[len(data) // 2] ^= 1
        await publisher.publish(Publication("damage", subject, {}, bytes(data)))
        says = "its digest differs"
    else:
        await scene.broker.request(f"$JS.API.STREAM.PURGE.{SNAPSHOTS}", {"filter": subject})
        says = "is not there, or not all of it"
    await publisher.stop()
    scene.correlator.running.cancel()
    await asyncio.gather(scene.correlator.running, return_exceptions=True)
    async with correlating(scene.broker, MemoryCorrelatorStore(), unhurried(tmp_path)) as correlator:
        await correlator.problems.until(says)
        await correlator.problems.until("restore the stream SNAPSHOTS from its backup, or the correlator's database")
        assert await correlator.store.positions() == {}, "it has not begun with half of the stream"
    with pytest.raises(SnapshotError, match=says):
        await scene.replay()


async def test_an_old_backup_does_not_go_on_where_events_are_gone(scene: Scene, tmp_path: Path) -> None:
    await scene.prune()
    scene.correlator.running.cancel()
    await asyncio.gather(scene.correlator.running, return_exceptions=True)
    old = MemoryCorrelatorStore()
    await old.claim((await events_state(scene.broker)).incarnation)
    async with correlating(scene.broker, old, unhurried(tmp_path)) as correlator:
        await correlator.problems.until("and its database has read up to 0: restore the database from a later backup")
        assert set((await old.positions()).values()) == {0}


async def test_a_correlator_that_could_fold_otherwise_than_it_did_begins_from_the_snapshot(
    scene: Scene, nats_server: BrokerUnderTest, tmp_path: Path
) -> None:
    await tell(scene.broker, "open", HAPPY[:3])
    await scene.settled()
    at = await scene.end()
    await asyncio.to_thread(backup_store, scene.farandole.database_url, tmp_path / "older.db", find_program)
    await tell(scene.broker, "later")
    await scene.correlator.until("later", Status.COMPLETED)
    await scene.settled()
    assert await scene.prune() < at, "all that is gone it had folded; a redrive since may have had it read that again"
    scene.correlator.running.cancel()
    await asyncio.gather(scene.correlator.running, return_exceptions=True)
    async with at_work(scene.broker, nats_server.url, tmp_path, "older") as older:
        await older.correlator.problems.until("with an empty one it begins from the snapshot")
        assert set((await older.store.positions()).values()) == {at}
    for name in ("new", "correlator", "correlator"):  # an empty one; and the live one, however often it is restarted
        async with at_work(scene.broker, nats_server.url, tmp_path, name) as begun:
            await begun.correlator.problems.until_well()


async def test_what_an_interrupted_run_left_goes_next_time_and_one_snapshot_stays(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning_module, "purge", killed)
    with pytest.raises(KeyboardInterrupt):
        await scene.prune()
    monkeypatch.undo()
    assert await scene.left_of_sagas(), "it was killed behind the mark"
    told = await asyncio.to_thread(scene.farandole.json, "prune")
    assert told["removed"] > 0, "though nothing more may go"
    assert await scene.left_of_sagas() == []
    await tell(scene.broker, "next")
    await scene.correlator.until("next", Status.COMPLETED)
    await scene.settled()
    until = await scene.prune()
    pruned = pruned_of(await events_state(scene.broker))
    assert pruned is not None
    assert pruned.until == until
    info = await scene.broker.request(f"$JS.API.STREAM.INFO.{SNAPSHOTS}", {"subjects_filter": ">"})
    assert {subject.split(".")[1] for subject in info["state"]["subjects"]} == {pruned.snapshot}
    verified = await scene.replay()
    assert verified.comparison.are_identical
    assert (verified.comparison.sagas, verified.folded.after) == (5, until)


async def test_a_run_that_follows_a_whole_one_begins_where_that_ended(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = await scene.prune()
    request = scene.broker.request
    purged: list[int] = []

    async def noting(subject: str, body: Any = None) -> dict[str, Any]:
        if ".PURGE.EVENTS" in subject:
            purged.append(body["seq"])
        return await request(subject, body)

    monkeypatch.setattr(scene.broker, "request", noting)
    monkeypatch.setattr(pruned_module, "_PURGED_AT_ONCE", 5)
    assert await scene.remove() == 0
    assert purged == [], "nothing is asked for where nothing is to be done"
    await tell(scene.broker, "next")
    await scene.correlator.until("next", Status.COMPLETED)
    await scene.settled()
    second = await scene.prune()
    assert await scene.left_of_sagas() == []
    assert until < min(purged) <= until + 6
    assert max(purged) == second + 1


@pytest.mark.parametrize(
    ("module", "before"),
    [
        (pruning_module, "verify"),
        (replaying_module, "fold_stream"),
        (pruning_module, "store_snapshot"),
        (pruning_module, "restore_snapshot"),
        (pruning_module, "compare_with"),
    ],
)
async def test_a_run_that_another_one_overtakes_changes_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, module: ModuleType, before: str
) -> None:
    middle, end = await scene.first_of("done-2"), await scene.end()
    original = getattr(module, before)
    for slower, faster in ((middle + 1, middle), (middle + 2, end)):

        async def overtaken(*arguments: Any, faster: int = faster, **named: Any) -> Any:
            monkeypatch.setattr(module, before, original)
            await scene.prune(until=faster)
            return await original(*arguments, **named)

        monkeypatch.setattr(module, before, overtaken)
        with pytest.raises(PreconditionError) as refused:
            await scene.prune(until=slower)
        assert refused.value.reason == "PRUNED_MEANWHILE"
        mark = await scene.mark()
        assert mark is not None
        assert (mark.until, mark.removed) == (faster, faster)
        assert (await scene.replay()).comparison.are_identical, "its snapshot is there, and nothing else went"
    with pytest.raises(PreconditionError, match="pruned up to"):
        await scene.prune(until=middle)


@pytest.mark.parametrize("before", ["begin_from_snapshot", "fold_stream"])
async def test_a_replay_that_a_prune_overtakes_tells_of_no_difference(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    original = getattr(replaying_module, before)

    async def overtaken(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(replaying_module, before, original)
        await tell(scene.broker, "next")
        await scene.correlator.until("next", Status.COMPLETED)
        await scene.settled()
        await scene.prune()
        return await original(*arguments, **named)

    monkeypatch.setattr(replaying_module, before, overtaken)
    with pytest.raises(PreconditionError, match="meanwhile; run it again"):
        await scene.replay()
    assert (await scene.replay()).comparison.are_identical


async def test_a_run_that_ends_late_leaves_alone_what_came_after_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, end = await scene.first_of("done-2"), await scene.end()

    async def slow(*arguments: Any, **named: Any) -> int:
        monkeypatch.setattr(pruning_module, "purge", purge)
        removed = await purge(*arguments, **named)
        assert await forget_reader(scene.broker, "shipping", "begins anew")
        await scene.prune(until=end)
        return removed

    monkeypatch.setattr(pruning_module, "purge", slow)
    await scene.prune(until=first)
    mark = await scene.mark()
    assert mark is not None
    assert (mark.until, mark.removed) == (end, end)
    assert mark.reasons == {"shipping": "begins anew"}
    assert (await scene.replay()).comparison.are_identical


async def test_the_mark_is_changed_by_one_at_a_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.prune()
    names = [f"reader-{number}" for number in range(5)]
    await asyncio.gather(*(forget_reader(scene.broker, name, "none of them is lost") for name in names))
    mark = await scene.mark()
    assert mark is not None
    assert set(mark.forgotten) == set(names)
    # what a process that died has left is passed over after a while, and only then
    publisher = Publisher(scene.broker)
    await publisher.publish(Publication("turn", "snapshots.turn", {}, b""))
    await publisher.stop()
    waiting = asyncio.create_task(forget_reader(scene.broker, "shipping", "begins anew"))
    asked = asyncio.Event()
    request = scene.broker.request

    async def noting(subject: str, body: Any = None) -> dict[str, Any]:
        if subject == f"$JS.API.STREAM.INFO.{SNAPSHOTS}":
            asked.set()
        return await request(subject, body)

    monkeypatch.setattr(scene.broker, "request", noting)
    async with asyncio.timeout(20):
        for _ in range(3):
            asked.clear()
            await asked.wait()
        assert not waiting.done()
        monkeypatch.setattr(turn_module, "_LONGEST", timedelta(0))
        assert await waiting
    async with pruning_turn(scene.broker):
        pass


async def test_without_its_snapshot_nothing_goes_and_nothing_is_folded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pruning_module, "purge", killed)
    with pytest.raises(KeyboardInterrupt):
        await scene.prune()
    monkeypatch.undo()
    left = await scene.stored()
    await scene.broker.request(f"$JS.API.STREAM.DELETE.{SNAPSHOTS}")
    says = "is not there, or not all of it; restore the stream SNAPSHOTS from its backup"
    assert says in await asyncio.to_thread(scene.farandole, "prune", code=1)
    assert says in await asyncio.to_thread(scene.farandole, "replay", code=1)
    await tell(scene.broker, "next")
    await scene.correlator.until("next", Status.COMPLETED)
    assert says in await asyncio.to_thread(scene.farandole, "prune", code=1)
    assert (await scene.stored())[: len(left)] == left, "nothing went"
    # whoever is passed over can be forgotten all the same, and that makes no stream in place of the one that is lost
    assert await forget_reader(scene.broker, "shipping", "begins anew")
    with pytest.raises(BrokerError, match="stream not found"):
        await scene.broker.request(f"$JS.API.STREAM.INFO.{SNAPSHOTS}")
    scene.correlator.running.cancel()
    await asyncio.gather(scene.correlator.running, return_exceptions=True)
    async with at_work(scene.broker, scene.farandole.nats_url, tmp_path) as restarted:
        await restarted.correlator.problems.until_well()
    async with at_work(scene.broker, scene.farandole.nats_url, tmp_path, "empty") as empty:
        await empty.correlator.problems.until(says)
        assert await empty.store.positions() == {}


async def test_what_was_pruned_is_not_tried_under_a_changed_definition(scene: Scene, tmp_path: Path) -> None:
    await tell(scene.broker, "undone", UNDONE)
    await scene.correlator.until("undone", Status.COMPENSATED)
    await scene.settled()
    await scene.prune()
    await tell(scene.broker, "undone", HAPPY[2:3])  # too late: it has to be undone, so the saga is open again
    await scene.correlator.until("undone", Status.COMPENSATING)
    await tell(scene.broker, "done-0", HAPPY[:1])  # to who knows only what is left it seems to begin here
    await tell(scene.broker, "open", HAPPY[:3])
    await scene.settled()
    changed = changed_definition(tmp_path, ('"1800s"', '"900s"'))
    told = await asyncio.to_thread(scene.farandole.json, "replay", "--sagas", str(changed))
    assert told["untried"] == ["order-fulfilment undone"]
    assert [one["saga"] for one in told["differing"]] == ["open"]
    assert told["open"] == 2
    said = await asyncio.to_thread(scene.farandole, "replay", "--sagas", str(changed))
    assert "not tried, since their first events were pruned: order-fulfilment undone" in said


async def test_of_what_an_interrupted_run_has_left_nothing_is_told_as_new(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pruning_module, "purge", killed)
    with pytest.raises(KeyboardInterrupt):
        await scene.prune()
    await tell(scene.broker, "later")
    await scene.correlator.until("later", Status.COMPLETED)
    await scene.settled()
    never_ends = ("success: orders.v1.OrderCompleted", "success: parcels.v1.ParcelOrderCompleted")
    changed = changed_definition(tmp_path, ("name: order-fulfilment", "name: order-watch"), never_ends)
    told = await asyncio.to_thread(scene.farandole.json, "replay", "--sagas", str(changed))
    assert [(one["saga"], one["stands"]) for one in told["differing"]] == [("later", "-")]


async def test_a_backup_whose_stores_are_older_than_what_was_pruned_meanwhile_is_none(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those stores would need events that the stream of the same backup has no more."""
    url = scene.farandole.database_url

    def copy_and_prune(*given: Any) -> None:
        backup_store(*given)
        scene.farandole("prune")

    async def backed_up(directory: Path) -> Manifest:
        return await back_up(directory, {"correlator": url}, scene.broker, find_program, lambda *_: None)

    monkeypatch.setattr(backing_up, "backup_store", copy_and_prune)
    with pytest.raises(PreconditionError, match=r"pruned while it was backed up.* back up again") as refused:
        await backed_up(tmp_path / "first")
    assert refused.value.reason == "PRUNED_MEANWHILE"
    with pytest.raises(SnapshotError, match="is no whole backup"):
        read_backup(tmp_path / "first")
    monkeypatch.undo()
    made = await backed_up(tmp_path / "second")
    assert [one.name for one in made.streams] == [SNAPSHOTS, DEADLETTERS, EVENTS]
    assert read_backup(tmp_path / "second") == made


def changed_definition(directory: Path, *changes: tuple[str, str]) -> Path:
    """A directory with the active definition's file, changed so."""
    text = (directory / "definitions" / "order-fulfilment.yaml").read_text()
    for was, becomes in changes:
        assert was in text
        text = text.replace(was, becomes)
    changed = directory / "changed"
    changed.mkdir()
    (changed / "order.yaml").write_text(text)
    return changed
