"""What `farandole provision` finds, changes and never does, against a real broker."""

from __future__ import annotations

from typing import Any

import pytest

from farandole.broker.connection import Broker
from farandole.broker.drift import Drift
from farandole.broker.provisioning import survey
from farandole.broker.streams import (
    DEADLETTERS,
    EVENTS,
    SNAPSHOTS,
    SNAPSHOTS_STREAM,
    STREAMS,
    events_state,
    make_stream,
    provision,
)
from farandole.broker.subscription import Subscription
from farandole.errors import StreamDriftError
from farandole.testing.brokers import BrokerUnderTest, connect

HOUR = 3600 * 1_000_000_000
EIGHT_PARTITIONS = {"src": "events.*.>", "dest": "events.{{partition(8,1)}}.>"}


@pytest.fixture
async def empty(nats_server: BrokerUnderTest) -> Any:
    """A connection to a broker without streams."""
    connection = await connect(nats_server.url)
    yield connection
    await connection.close()


async def make(broker: Broker, **settings: object) -> None:
    """Makes `EVENTS` otherwise than Farandole does, with an event in it."""
    await broker.request(f"$JS.API.STREAM.CREATE.{EVENTS}", {**STREAMS[EVENTS], **settings})
    await broker.client.request("events.ord-1.orders.v1.OrderCreated", b"{}", timeout=2)


async def config_of(broker: Broker, stream: str = EVENTS) -> dict[str, Any]:
    info = await broker.request(f"$JS.API.STREAM.INFO.{stream}")
    config: dict[str, Any] = info["config"]
    return config


async def events(broker: Broker) -> int:
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}")
    count: int = info["state"]["messages"]
    return count


def settings_of(drift: list[Drift]) -> list[str]:
    return [one.setting for one in drift]


async def test_doing_it_again_finds_everything_as_it_should_be(empty: Broker) -> None:
    first = await survey(empty)
    before = {stream: await config_of(empty, stream) for stream in STREAMS}
    for apply in (False, True):
        again = await survey(empty, replicas=1, apply=apply)
        assert (again.made, again.changed, again.drift) == ([], [], [])
    assert first.streams == first.made == [EVENTS, DEADLETTERS]
    assert {stream: await config_of(empty, stream) for stream in STREAMS} == before


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("description", "ours"),
        ("discard", "old"),
        ("max_age", HOUR),
        ("max_msgs", 1000),
        ("max_msgs_per_subject", 10),
        ("allow_direct", False),
        ("subjects", ["events.*.orders.>"]),
        ("retention", "interest"),
        ("allow_rollup_hdrs", True),
    ],
)
async def test_what_loses_nothing_is_changed_in_place_where_that_is_asked_for(
    empty: Broker, setting: str, value: object
) -> None:
    await make(empty, **{setting: value})
    before = await events(empty)
    shown = await survey(empty)
    assert [(one.setting, one.obstacle) for one in shown.drift] == [(setting, "")]
    assert (await config_of(empty)).get(setting, False) == value, "showing it changes nothing"
    changed = await survey(empty, apply=True)
    assert (settings_of([*changed.changed]), settings_of([*changed.drift])) == ([setting], [])
    assert await events(empty) == before
    assert (await survey(empty)).drift == []


async def test_what_keeps_publishers_waiting_or_refuses_them_is_taken_away(empty: Broker) -> None:
    limits = {"no_ack": True, "discard_new_per_subject": True, "max_msgs_per_subject": 3}
    await empty.request(f"$JS.API.STREAM.CREATE.{EVENTS}", {**STREAMS[EVENTS], **limits})
    changed = await survey(empty, apply=True)
    assert set(settings_of([*changed.changed])) == limits.keys()
    assert changed.drift == []
    assert (await survey(empty)).drift == []


async def test_what_lets_events_run_out_is_shown_though_only_half_of_it_goes(empty: Broker) -> None:
    await make(empty, subject_delete_marker_ttl=2_000_000_000)
    changed = await survey(empty, apply=True)
    assert set(settings_of([*changed.changed])) == {"allow_rollup_hdrs", "subject_delete_marker_ttl"}
    assert settings_of([*changed.drift]) == ["allow_msg_ttl"]


@pytest.mark.parametrize(
    ("setting", "value", "obstacle"),
    [
        ("storage", "memory", "the broker never changes it"),
        ("retention", "workqueue", "the broker never changes it"),
        ("deny_delete", True, "the broker never takes it back"),
        ("deny_purge", True, "the broker never takes it back"),
        ("subject_transform", EIGHT_PARTITIONS, "what is stored stays in the partitions that it is in"),
        ("metadata", {"farandole.partitions": "8"}, "the number of partitions is permanent"),
        ("allow_msg_ttl", True, "the broker never takes it back"),
        ("persist_mode", "async", "the broker never changes it"),
        ("sources", [{"name": "OTHER"}], "what comes from there would be stored no longer"),
        ("subjects", ["events.*.>", "others"], "others would be stored no longer; if that is meant: `nats stream edit"),
    ],
)
async def test_what_can_not_be_changed_is_shown_with_why_and_left(
    empty: Broker, setting: str, value: object, obstacle: str
) -> None:
    await make(empty, **{setting: value})
    before = await config_of(empty)
    found = await survey(empty, apply=True)
    (drift,) = found.drift
    assert drift.obstacle.startswith(obstacle)
    assert await config_of(empty) == before
    assert await events(empty) == 1


async def test_a_mirror_is_shown_as_one_and_left(empty: Broker) -> None:
    mirror = {"mirror": {"name": "OTHER"}, "subjects": None, "subject_transform": None}
    await empty.request(f"$JS.API.STREAM.CREATE.{EVENTS}", {**STREAMS[EVENTS], **mirror})
    before = await config_of(empty)
    (drift,) = (await survey(empty, apply=True)).drift
    assert drift.setting == "mirror"
    assert drift.obstacle.endswith("if that is meant: `nats stream edit EVENTS --no-mirror`")
    assert await config_of(empty) == before


async def test_a_stream_that_is_sealed_is_shown_as_that(empty: Broker) -> None:
    await make(empty)
    await empty.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**await config_of(empty), "sealed": True})
    drift = {one.setting: one.obstacle for one in (await survey(empty, apply=True)).drift}
    assert drift == dict.fromkeys(("sealed", "deny_delete", "deny_purge"), "the broker never takes it back")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("duplicate_window", 1_000_000_000),
        ("max_bytes", 1_000_000_000),
        ("max_msg_size", 1_000_000_000),
        ("max_consumers", 1_000_000_000),
        ("compression", "s2"),
        ("republish", {"src": ">", "dest": "copy.>"}),
        ("allow_atomic", True),
    ],
)
async def test_what_operators_may_choose_is_no_drift(empty: Broker, setting: str, value: object) -> None:
    await make(empty, **{setting: value})
    assert (await survey(empty, apply=True)).drift == []
    assert (await config_of(empty))[setting] == value


async def test_the_stream_that_pruning_makes_is_looked_at_where_it_is(empty: Broker) -> None:
    await survey(empty)
    assert await make_stream(empty, {**SNAPSHOTS_STREAM, "max_age": HOUR, "allow_direct": False}, replicas=1)
    assert settings_of([*(await survey(empty)).drift]) == ["max_age", "allow_direct"]
    assert settings_of([*(await survey(empty, apply=True)).changed]) == ["max_age", "allow_direct"]
    assert (await survey(empty)).streams == [EVENTS, DEADLETTERS, SNAPSHOTS]
    assert (await config_of(empty, SNAPSHOTS))["max_age"] == 0


async def test_services_mind_only_what_a_guarantee_rests_on(empty: Broker) -> None:
    await make(empty, description="ours")
    await provision(empty)
    await events_state(empty)
    await empty.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**await config_of(empty), "max_age": HOUR})
    for look in (provision(empty), events_state(empty)):
        with pytest.raises(StreamDriftError, match=f"max_age is {HOUR}, not 0"):
            await look
    await survey(empty, apply=True)
    await empty.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**await config_of(empty), "allow_rollup_hdrs": True})
    with pytest.raises(StreamDriftError, match="allow_rollup_hdrs is True, not False"):
        await events_state(empty)


async def test_consumers_that_nobody_reads_are_shown_and_stay(empty: Broker) -> None:
    await make(empty)
    await empty.request(
        f"$JS.API.CONSUMER.CREATE.{EVENTS}.payments-7",
        {
            "stream_name": EVENTS,
            "config": {
                "name": "payments-7",
                "durable_name": "payments-7",
                "description": "Farandole participant payments",
                "ack_policy": "all",
            },
        },
    )
    reading = Subscription(empty, "orders", ["events.>"])
    await reading.start(after=0, incarnation=(await events_state(empty)).incarnation)
    assert (await reading.next_batch(1)).last_sequence == 1
    found = await survey(empty, apply=True)
    assert [(idle.name, idle.description, idle.pending) for idle in found.idle] == [
        ("payments-7", "Farandole participant payments", 1)
    ]
    await empty.request(f"$JS.API.CONSUMER.INFO.{EVENTS}.payments-7")
    await reading.stop()
