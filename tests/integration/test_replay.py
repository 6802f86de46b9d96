"""`farandole replay` beside a correlator at work: what is identical is told so, and what is not, in what."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.streams import events_state
from farandole.cli.replay_commands import replay
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.database import Database
from farandole.envelope import Publication
from farandole.errors import InvalidArgumentError
from farandole.replay.replaying import extent_of
from farandole.saga import Status
from farandole.testing.brokers import BrokerUnderTest
from tests.integration.correlators import HAPPY, Correlator, correlating, tell, unhurried
from tests.integration.farandole_command import Command

Told = tuple[str, dict[str, object]]
SHIPPING_FAILED: Told = ("shipping.v1.ShippingFailed", {"reason": "lost"})
REFUNDED: Told = (
    "payments.v1.PaymentRefunded",
    {"paymentId": "p", "amountCents": 5, "currency": "EUR", "reason": "lost"},
)

ACTIVE = "active-definitions"
OPEN = ("paid", "undone", "early", "again")


@dataclass
class Scene:
    """A correlator at work on sagas of many kinds, and the command line."""

    correlator: Correlator
    broker: Broker
    farandole: Command

    def alter(self, *statements: str) -> None:
        """Changes the live store by hand."""
        with sqlite3.connect(self.farandole.database_url.removeprefix("sqlite:///")) as connection:
            for statement in statements:
                assert connection.execute(statement).rowcount == 1, statement
        connection.close()


@pytest.fixture
async def scene(broker: Broker, nats_server: BrokerUnderTest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene_on(f"sqlite:///{tmp_path}/correlator.db", broker, nats_server, tmp_path) as on_sqlite:
        yield on_sqlite


@pytest.fixture
async def scene_on_each(
    broker: Broker, nats_server: BrokerUnderTest, database_url: str, tmp_path: Path
) -> AsyncIterator[Scene]:
    """The same on SQLite and on PostgreSQL."""
    async with scene_on(database_url, broker, nats_server, tmp_path) as on_each:
        yield on_each


@asynccontextmanager
async def scene_on(
    database_url: str, broker: Broker, nats_server: BrokerUnderTest, directory: Path
) -> AsyncIterator[Scene]:
    store = SqlCorrelatorStore(Database(database_url))
    async with correlating(broker, store, unhurried(directory / ACTIVE)) as correlator:
        await tell(broker, "done")
        await tell(broker, "paid", HAPPY[:3])
        await tell(broker, "undone", [*HAPPY[:3], SHIPPING_FAILED, REFUNDED])
        await tell(broker, "early", [HAPPY[2], *HAPPY[:2]])
        await tell(broker, "unstarted", HAPPY[1:2])
        await tell(broker, "again", [*HAPPY[:2], *HAPPY[:2], HAPPY[3]])
        publisher = Publisher(broker)
        garbage = Publication("garbage", "events.garbage.orders.v1.OrderCreated", {}, b"no order")
        await publisher.publish(garbage)
        await publisher.stop()
        await tell(broker, "last")
        await correlator.until("done", Status.COMPLETED)
        await correlator.until("last", Status.COMPLETED)
        yield Scene(correlator, broker, Command(nats_server.url, database_url))
    await store.close()


async def run(command: Command, *arguments: str, code: int = 0) -> str:
    """Runs a command while the correlator goes on in this process."""
    return await asyncio.to_thread(command, *arguments, code=code)


async def test_a_replay_of_a_correlator_that_goes_on_is_identical(scene_on_each: Scene) -> None:
    scene = scene_on_each

    async def go_on() -> None:
        for number in range(1_000):
            await tell(scene.broker, f"more-{number}", HAPPY[:3])

    going_on = asyncio.create_task(go_on())
    try:
        told = await asyncio.to_thread(scene.farandole.json, "replay")
    finally:
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
    assert told["identical"]
    assert told["sagas"] >= 7
    assert told["deadLetters"] == 1
    assert told["differing"] == []


async def test_what_was_changed_by_hand_is_told(scene: Scene) -> None:
    scene.alter(
        "UPDATE saga SET status = 2 WHERE key = 'paid'",
        "UPDATE saga SET steps = replace(steps, '[\"ship-order\",2', '[\"ship-order\",3') WHERE key = 'early'",
        "UPDATE saga_history SET disposition = 4 WHERE type LIKE '%PaymentRefunded'",
        "UPDATE dead_letter SET state = 3, close_actor = 'mallory'",
        "UPDATE saga_history SET payload = x'00' WHERE type LIKE '%ItemsReserved' "
        "AND saga = (SELECT id FROM saga WHERE key = 'last')",
        "DELETE FROM saga_history WHERE saga = (SELECT id FROM saga WHERE key = 'unstarted')",
        "DELETE FROM saga WHERE key = 'unstarted'",
        "INSERT INTO saga SELECT id + 1000, 'made-up', definition, partition, version, revision, status, cause, "
        "cause_detail, health, start_time, update_time, end_time, deadline, next_deadline, finished_late, steps, "
        "history_omitted FROM saga WHERE key = 'done'",
    )
    told = await asyncio.to_thread(scene.farandole.json, "replay", code=1)
    assert not told["identical"]
    found = {
        (differing["record"], one["what"]): (one["live"], one["replayed"])
        for differing in told["differing"]
        for one in differing["differences"]
    }
    assert found["order-fulfilment paid", "status"] == ("COMPLETED", "RUNNING")
    assert found["order-fulfilment early", "step ship-order: status"] == ("SUCCEEDED", "RUNNING")
    [refunded] = [what for record, what in found if record == "order-fulfilment undone"]
    assert refunded.endswith(": disposition")
    assert found["order-fulfilment undone", refunded] == ("LATE", "APPLIED")
    [letter] = {record for record, _ in found if record.startswith("dead letter correlator-")}
    assert found[letter, "state"] == ("DISCARDED", "OPEN")
    assert found[letter, "close_actor"] == ("mallory", "-")
    assert found["order-fulfilment unstarted", "saga"] == ("-", "not started, 1 events")
    assert found["order-fulfilment made-up", "saga"] == ("COMPLETED, 6 events", "-")
    assert (told["differingRecords"], told["differingReadings"]) == (6, 1)
    said = await run(scene.farandole, "replay", code=1)
    assert "DIFFERENT: 6 records are not what the stream makes of them" in said
    assert "READ OTHERWISE: of 1 records" in said


async def test_how_sagas_stood_is_told_by_sequence_and_by_time(scene: Scene) -> None:
    [paid] = await scene.correlator.store.get_sagas("paid")
    second = paid.saga.history[1]
    said = await run(scene.farandole, "replay", "--until-sequence", str(second.fact.sequence), "--saga", "paid")
    assert "take-payment    payments     COMPENSATABLE  RUNNING" in said
    assert "revision    2" in said
    by_time = second.fact.stream_time.isoformat()
    told = await asyncio.to_thread(scene.farandole.json, "replay", "--until-time", by_time, "--saga", "paid")
    assert told["lastSequence"] == second.fact.sequence
    assert [entry["sequence"] for entry in told["sagas"][0]["history"]] == [
        str(entry.fact.sequence) for entry in paid.saga.history[:2]
    ]
    told = await asyncio.to_thread(scene.farandole.json, "replay", "--until-sequence", str(second.fact.sequence))
    assert "paid" in [saga["sagaId"] for saga in told["open"]]
    assert sum(count["count"] for count in told["counts"]) == 2, "nothing of the later ones had been published"
    assert (told["identical"], told["sagas"], told["changedSince"], told["differing"]) == (True, 0, 7, [])


async def test_what_has_not_changed_since_is_compared(scene: Scene) -> None:
    keys = ("done", "last", "unstarted", *OPEN)
    recorded = {key: (await scene.correlator.store.get_sagas(key))[0].saga for key in keys}
    ends = {key: saga.history[-1].fact for key, saga in recorded.items()}
    unchanged = sorted(keys, key=lambda key: ends[key].sequence)[:4]
    changed = next(key for key in keys if key not in unchanged)
    place = ends[unchanged[-1]]
    identical = "\nidentical: 4 sagas that have not changed since; 3 have\n"
    assert identical in await run(scene.farandole, "replay", "--until-sequence", str(place.sequence))
    assert identical in await run(scene.farandole, "replay", "--until-time", place.stream_time.isoformat())
    scene.alter(f"UPDATE saga SET cause_detail = 'altered' WHERE key = '{changed}'")
    assert identical in await run(scene.farandole, "replay", "--until-sequence", str(place.sequence))
    scene.alter(
        f"UPDATE saga SET cause_detail = 'altered' WHERE key = '{unchanged[0]}'",
        f"DELETE FROM saga_history WHERE sequence = {ends[unchanged[1]].sequence}",
        "INSERT INTO saga SELECT id + 1000, 'made-up', definition, partition, version, revision, status, cause, "
        "cause_detail, health, start_time, update_time, end_time, deadline, next_deadline, finished_late, steps, "
        f"history_omitted FROM saga WHERE key = '{unchanged[2]}'",
    )
    earlier = ("replay", "--until-sequence", str(place.sequence))
    told = await asyncio.to_thread(scene.farandole.json, *earlier, code=1)
    assert {one["record"].split()[1] for one in told["differing"]} == {*unchanged[:2], "made-up"}
    assert (told["identical"], told["changedSince"], told["differingRecords"]) == (False, 3, 3)
    assert "compared: 5 sagas that have not changed since; 3 have" in await run(scene.farandole, *earlier, code=1)


async def test_a_live_store_that_is_behind_is_compared_as_far_as_it_is(scene: Scene, tmp_path: Path) -> None:
    older = tmp_path / "older.db"
    with sqlite3.connect(scene.farandole.database_url.removeprefix("sqlite:///")) as live:
        live.execute("VACUUM INTO ?", (str(older),))
    live.close()
    await tell(scene.broker, "paid", HAPPY[3:])
    await tell(scene.broker, "newer")
    await scene.correlator.until("newer", Status.COMPLETED)
    end = (await events_state(scene.broker)).last_sequence
    said = await run(scene.farandole, "replay", "--until-sequence", str(end), "--database", f"sqlite:///{older}")
    assert "\nidentical: 6 sagas that have not changed since; 2 have\n" in said


async def test_what_is_shown_stands_where_there_is_no_live_store(scene: Scene) -> None:
    said = await run(
        scene.farandole, "replay", "--until-sequence", "40", "--database", "sqlite:///nowhere/at.db", code=2
    )
    assert "open then:" in said
    assert "there is no database nowhere/at.db" in said


async def test_what_can_not_be_replayed_is_said(scene: Scene, tmp_path: Path) -> None:
    for wrong, says in (
        ({"until_time": "yesterday"}, "--until-time: is no time such as"),
        ({"saga_id": "paid"}, "now: farandole sagas show"),
        ({"saga_id": "paid", "until_sequence": 5, "database": "sqlite:///x"}, "--database: is not read for --saga"),
        ({"sagas": tmp_path, "until_sequence": 5}, "leave --until-… away"),
    ):
        with pytest.raises(InvalidArgumentError, match=says):
            replay(**wrong)
    state = await events_state(scene.broker)
    with pytest.raises(InvalidArgumentError, match="--until-sequence: is 99999, and the stream ends at"):
        extent_of(state, sequence=99_999, time=None)
    missing = await run(scene.farandole, "replay", "--database", "sqlite:///nowhere/at.db", code=2)
    assert "there is no database nowhere/at.db" in missing


async def test_a_changed_definition_is_tried_on_open_sagas(scene: Scene, tmp_path: Path) -> None:
    before = await scene.correlator.store.load(OPEN)
    changed = tmp_path / "sagas"
    changed.mkdir()
    text = (tmp_path / ACTIVE / "order-fulfilment.yaml").read_text()
    tried = text.replace('"1800s"', '"1s"').replace("version: 1", "version: 2")
    assert tried != text
    (changed / "order-fulfilment.yaml").write_text(tried)
    told = await asyncio.to_thread(scene.farandole.json, "replay", "--sagas", str(changed))
    assert told["tried"] == [{"definition": "order-fulfilment", "version": 2}]
    differing = {one["saga"]: one for one in told["differing"]}
    assert differing.keys() == set(OPEN), "those that are open, and no others"
    assert told["open"] == 4
    assert [one["what"] for one in differing["paid"]["differences"]] == ["deadline"]
    await tell(scene.broker, "later")  # the stream's time goes on past the shorter deadline
    await scene.correlator.until("later", Status.COMPLETED)
    said = await run(scene.farandole, "replay", "--sagas", str(changed))
    assert "4 sagas would stand differently" in said
    assert "as if they had been active since before every saga: order-fulfilment v2" in said
    assert await scene.correlator.store.load(OPEN) == before, "nothing was published"


async def test_a_definition_with_another_flow_is_tried(scene: Scene, tmp_path: Path) -> None:
    """One that completes an order once it is shipped: what is open would be over, and `done` has one event too many."""
    changed = tmp_path / "sagas"
    changed.mkdir()
    text = (tmp_path / ACTIVE / "order-fulfilment.yaml").read_text()
    begin = text.index("- name: complete-order")
    (changed / "order-fulfilment.yaml").write_text(text[:begin].rstrip() + "\n")
    await tell(scene.broker, "shipped", HAPPY[:4])
    await tell(scene.broker, "marker")
    await scene.correlator.until("marker", Status.COMPLETED)
    told = await asyncio.to_thread(scene.farandole.json, "replay", "--sagas", str(changed))
    differing = {one["saga"]: one for one in told["differing"]}
    assert differing["shipped"]["published"] == ["choreography.v1.SagaCompleted"]
    assert ("step complete-order", "RUNNING", "-") in [
        (one["what"], one["live"], one["replayed"]) for one in differing["shipped"]["differences"]
    ]
