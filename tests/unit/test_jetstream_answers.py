"""What the broker's answers mean: which refusals pass by themselves, above all while a cluster has lost a leader."""

from __future__ import annotations

import json

import pytest

from farandole.broker.connection import read_answer
from farandole.broker.streams import StreamState, check_position
from farandole.errors import BrokerError, BrokerUnavailableError, StreamIncarnationError


def answer(code: int, err_code: int) -> bytes:
    """A refusal as nats-server sends it to a publisher: beside the error it names the stream, and a sequence of 0."""
    error = {"code": code, "err_code": err_code, "description": "so it is"}
    return json.dumps({"error": error, "stream": "EVENTS", "seq": 0}).encode()


@pytest.mark.parametrize(
    ("code", "err_code"),
    [(503, 10008), (503, 10077), (400, 10005), (409, 10158)],
    ids=["no leader", "the disk is full", "a server is away", "an earlier try is under way"],
)
def test_what_passes_by_itself_is_tried_again(code: int, err_code: int) -> None:
    with pytest.raises(BrokerUnavailableError, match=r"events\.x: so it is") as refused:
        read_answer(answer(code, err_code), "events.x")
    assert refused.value.code == err_code


def test_a_refusal_is_no_receipt_though_it_has_a_sequence() -> None:
    with pytest.raises(BrokerError) as refused:
        read_answer(answer(400, 10054), "events.x")
    assert not isinstance(refused.value, BrokerUnavailableError)


def test_no_answer_may_be_an_election() -> None:
    with pytest.raises(BrokerUnavailableError, match="its stream is electing a leader"):
        read_answer(b"", "events.x")


@pytest.mark.parametrize(("replicas", "passes"), [(1, False), (3, True)])
def test_a_stream_of_several_copies_that_ends_too_early_may_be_catching_up(replicas: int, passes: bool) -> None:
    state = StreamState("made", 10, {"num_replicas": replicas})
    check_position(state, incarnation="made", position=10)
    with pytest.raises(StreamIncarnationError, match="ends at 10, before the stored position 11") as refused:
        check_position(state, incarnation="made", position=11)
    assert ("may be catching up; if this lasts, restore" in str(refused.value)) is passes
