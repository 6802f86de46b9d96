"""`farandole deadletters list` and `show`, against a correlator's service."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from farandole.correlator.dead_letter_service import DeadLetterService
from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.store import FoldedBatch
from farandole.registry import Registry
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.testing.store_conformance import INCARNATION, closed, dead_letter, given_up
from orders.v1 import order_events_pb2
from tests.integration.correlators import NoStream
from tests.integration.scripted_correlator import Script, scripted_sagas


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A service that knows one dead letter of the correlator, an open one of payments, and one that is discarded."""
    store = MemoryCorrelatorStore()
    batch = FoldedBatch(
        9,
        dead_letters=(dead_letter(1), given_up(2, at_sequence=7), given_up(3, at_sequence=8, attempts=1)),
        closed_dead_letters=(closed(3, at_sequence=9, state=DeadLetterState.DISCARDED),),
    )
    await store.commit(await store.claim(INCARNATION), batch)
    rpc: Rpc[Any] = Rpc(
        dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"],
        dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server,
        DeadLetterService(store, Registry.of_classes([order_events_pb2.OrderCreated]), NoStream()),
    )
    async with serve("127.0.0.1:0", [rpc, scripted_sagas(Script())], HealthMonitor(), grace_seconds=0.1) as server:
        yield server.address


async def said(*arguments: str) -> str:
    """What the command printed."""
    command = [sys.executable, "-m", "farandole", "deadletters", *arguments]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TZ": "UTC"},
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def test_a_list_says_what_became_of_each_and_whose_step_gave_up(address: str) -> None:
    lines = [line.split() for line in (await said("list", "--address", address)).splitlines()]
    assert lines[0][:7] == ["DEAD", "LETTER", "STATE", "EVENT", "TYPE", "SAGA", "STEP"]
    created = "orders.v1.OrderCreated"
    assert [line[:6] for line in lines[1:3]] == [
        ["payments-3", "DISCARDED", created, "a", "take-payment", "(undo)"],
        ["payments-2", "OPEN", created, "a", "take-payment", "(undo)"],
    ]
    assert lines[3][:4] == ["correlator-1", "OPEN", created, "UNDECODABLE"]


async def test_a_list_shows_those_that_hold_something_up(address: str) -> None:
    wanted = "state = OPEN AND NOT participant = correlator"
    found = json.loads(await said("list", "--filter", wanted, "--json", "--address", address))["deadLetters"]
    assert [one["deadLetterId"] for one in found] == ["payments-2"]


async def test_one_is_shown_with_its_step_its_tries_and_its_end(address: str) -> None:
    lines = (await said("show", "payments-3", "--address", address)).splitlines()
    shown = {line[:12].strip(): line[12:].strip() for line in lines}
    assert shown["state"].startswith("DISCARDED 2026-03-01 ")
    assert (shown["definition"], shown["step"], shown["tried"]) == ("order-fulfilment", "take-payment (undo)", "once")
    assert "body" not in shown
    unread = await said("show", "correlator-1", "--address", address)
    assert "3 bytes" in unread
    assert "tried" not in unread
