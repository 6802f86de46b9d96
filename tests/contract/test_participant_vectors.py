"""The golden vectors of participants: histories played to the library's own code, and the copies of dead letters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from google.protobuf import json_format

from farandole.dead_letter_copy import dead_letter_copy
from farandole.envelope import Event, StoredMessage, decode
from farandole.participant.barrier import BarrierState
from farandole.partitions import partition_of
from farandole.reasons import Reason
from farandole.saga import Disposition
from tests.contract import vectors
from tests.contract.participant_histories import RETRIES, Script, Stage, participants, stored_event
from tests.contract.vectors import DIRECTORY, STREAM_TIME, body_of

VECTORS: dict[str, Any] = json.loads((DIRECTORY / "participants.json").read_text())
HISTORIES = VECTORS["histories"]
DEAD_LETTERS = json.loads((DIRECTORY / "dead_letters.json").read_text())
REGISTRY = vectors.registry()


def test_the_participants_are_those_of_the_vectors() -> None:
    made = participants(Script())
    assert [json_format.MessageToDict(participant.contract) for participant in made.values()] == VECTORS["contracts"]
    assert VECTORS["tries"] == RETRIES.tries
    assert {history["participant"] for history in HISTORIES} == set(made), "each is in a history"


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history["name"])
async def test_a_history_goes_as_the_vectors_say(history: Mapping[str, Any], tmp_path: Path) -> None:
    stage = Stage(history["participant"], tmp_path / "participant.db")
    await stage.open()
    try:
        for move in history["moves"]:
            came_of_it = await stage.play(move)
            done = [{"step": run["step"], "run": run["run"]} for run in move["runs"] if "returns" in run]
            assert came_of_it == {**move["expect"], "runs": done}
    finally:
        await stage.close()


def test_what_comes_and_goes_in_the_histories_are_events() -> None:
    """Nothing in the vectors is unreadable, and nothing that is published would be."""
    came = [event for history in HISTORIES for move in history["moves"] for kind in ("takes", "hears")
            for event in move.get(kind, ())]  # fmt: skip
    for event in came:
        assert isinstance(decode(REGISTRY, stored_event(event)), Event)
    published = [p for history in HISTORIES for move in history["moves"] for p in move["expect"]["publishes"]]
    for publication in (p for p in published if "protojson" in p):
        _, key, name = publication["subject"].split(".", 2)
        event_type = REGISTRY.types[name]
        body = json_format.ParseDict(publication["protojson"], event_type.message_class())
        stored = StoredMessage(
            f"events.{partition_of(key)}.{name}",
            publication["headers"],
            body.SerializeToString(),
            1,
            STREAM_TIME,
        )
        decoded = decode(REGISTRY, stored)
        assert isinstance(decoded, Event), decoded
        assert decoded.key == key


def test_every_state_and_every_disposition_of_a_participant_is_in_a_history() -> None:
    expected = [move["expect"] for history in HISTORIES for move in history["moves"]]
    assert {state for e in expected for state in e["barriers"].values()} == set(BarrierState)
    dispositions = {name for e in expected for name in e["dispositions"].values()}
    # an event that is early waits in the queue, and has its disposition when it is dealt with
    assert dispositions == {disposition.name for disposition in Disposition} - {"EARLY"}
    assert {entry["state"] for e in expected for entry in e["queue"]} == {"RETRYING", "WAITING", "DEAD_LETTERED"}


@pytest.mark.parametrize("vector", DEAD_LETTERS, ids=lambda vector: vector["name"])
def test_a_dead_letter_s_copy_is_as_the_vectors_say(vector: Mapping[str, Any]) -> None:
    message, expected = vector["message"], vector["copy"]
    data = body_of(message)
    copy = dead_letter_copy(
        StoredMessage(message["stored_subject"], message["headers"], data, vector["sequence"], STREAM_TIME),
        participant=vector["participant"],
        key="",
        reason=Reason[vector["reason"]],
        detail=vector["detail"],
    )
    assert (copy.subject, dict(copy.headers)) == (expected["subject"], expected["headers"])
    if "body_json" in expected:
        assert json.loads(copy.data) == expected["body_json"]
    else:
        assert copy.data == data, "the body is the original's"


@pytest.mark.parametrize("vector", DEAD_LETTERS, ids=lambda vector: vector["name"])
def test_a_copy_s_headers_can_be_read(vector: Mapping[str, Any]) -> None:
    """What is cut is cut between characters, so that every reader can decode it."""
    headers = vector["copy"]["headers"]
    for header, whole in (
        ("farandole-detail", vector["detail"]),
        ("farandole-subject", vector["message"]["stored_subject"]),
    ):
        text = unquote_to_bytes(headers[header]).decode()
        assert whole.startswith(text)
        longest_character = len("%F0%9F%8D%B0")
        assert text == whole or 1024 - longest_character < len(headers[header]) <= 1024
