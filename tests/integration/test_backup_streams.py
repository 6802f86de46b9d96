"""One stream in a backup: restored where a cluster's servers hear of each other's subjects a moment later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nats.errors
import pytest

from farandole.backup.streams import backup_stream, restore_stream
from farandole.broker.connection import Broker
from farandole.broker.streams import EVENTS, events_state
from farandole.errors import BrokerUnavailableError
from tests.integration.correlators import tell


@pytest.fixture
async def told(broker: Broker, tmp_path: Path) -> dict[str, Any]:
    """What the backup of a stream in `tmp_path` tells of it; the stream itself is gone."""
    for number in range(50):
        await tell(broker, f"ord-{number}")
    told = await backup_stream(broker, EVENTS, tmp_path / EVENTS, lambda _done, _all: None)
    await broker.request(f"$JS.API.STREAM.DELETE.{EVENTS}")
    return told


def make_unheard(broker: Broker, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """So many requests to where a stream is restored from find nobody there."""
    request, left = broker.client.request, times

    async def unheard(subject: str, *given: Any, **more: Any) -> Any:
        nonlocal left
        if subject.startswith("$JS.SNAPSHOT.RESTORE") and left:
            left -= 1
            raise nats.errors.NoRespondersError
        return await request(subject, *given, **more)

    monkeypatch.setattr(broker.client, "request", unheard)


async def test_a_stream_is_restored_though_nobody_is_there_to_take_it_at_first(
    broker: Broker, told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unheard(broker, monkeypatch, times=3)
    await restore_stream(broker, EVENTS, tmp_path / EVENTS, told, lambda _done, _all: None)
    assert (await events_state(broker)).last_sequence == told["state"]["last_seq"] == 250


async def test_a_restore_that_nobody_ever_takes_ends(
    broker: Broker, told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unheard(broker, monkeypatch, times=1_000_000)
    monkeypatch.setattr("farandole.backup.streams._SILENCE_SECONDS", 0.2)
    with pytest.raises(BrokerUnavailableError, match=r"EVENTS was not restored: .*no responders"):
        await restore_stream(broker, EVENTS, tmp_path / EVENTS, told, lambda _done, _all: None)
