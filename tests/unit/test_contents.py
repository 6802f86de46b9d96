"""What a store's contents look like in a file: the format is fixed, and what is damaged is refused."""

from __future__ import annotations

import dataclasses
import enum
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from farandole.correlator.contents import (
    FORMAT,
    Item,
    PartitionPosition,
    decode_item,
    encode_item,
    reading,
    writing,
)
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import RecordedSaga, StoredDefinition
from farandole.envelope import Publication
from farandole.errors import SnapshotError
from farandole.reasons import Reason
from farandole.saga import (
    Cause,
    Disposition,
    Fact,
    Health,
    HistoryEntry,
    Lifecycle,
    Saga,
    Status,
    StepRecord,
    StepStatus,
)
from farandole.testing.store_conformance import INCARNATION, at, exported, filled

ITEMS: dict[str, Item] = {
    "position": PartitionPosition(partition=2, position=12, incarnation=INCARNATION, time=at(12)),
    "definition": StoredDefinition(
        name="order-fulfilment", version=3, digest="cd" * 32, message=b"\x0a\x10", is_active=False
    ),
    "saga": RecordedSaga(
        saga=Saga(
            definition="order-fulfilment",
            version=2,
            key="källa",
            revision=9,
            status=Status.COMPENSATED,
            cause=Cause.OPERATOR,
            cause_detail="ada: out of stock",
            health=Health.ON_TIME,
            start_time=at(3),
            update_time=at(9),
            end_time=at(8),
            deadline=at(1800),
            finished_late=True,
            steps=(
                StepRecord(
                    name="take-payment",
                    status=StepStatus.COMPENSATED,
                    deadline=at(60),
                    start_time=at(4),
                    end_time=at(7),
                ),
                StepRecord(name="ship", status=StepStatus.VOIDED, deadline=None, start_time=at(5), end_time=at(6)),
            ),
            history=(
                HistoryEntry(
                    fact=Fact(
                        sequence=3,
                        stream_time=at(3),
                        type="choreography.v1.SagaStepVoided",
                        source="urn:correlator",
                        id="event-3",
                        digest=b"\x03\x00\xff",
                        time=at(2.5),
                        causation_id="event-2",
                        reason="too late",
                        lifecycle=Lifecycle(
                            definition="order-fulfilment",
                            version=1,
                            cause=Cause.DEADLINE,
                            steps=("ship",),
                            compensation=True,
                            dead_letter=("s", 7),
                        ),
                    ),
                    disposition=Disposition.EARLY,
                    reason="it came too soon",
                ),
            ),
            history_omitted=5,
        ),
        payloads={3: b"\x00\xff", 4: b""},
    ),
    "dead_letter": DeadLetter(
        participant="payments",
        sequence=7,
        subject="events.3.orders.v1.OrderCreated",
        event_type="orders.v1.OrderCreated",
        key="källa",
        reason=Reason.CRASHED,
        detail="the process ended: ü",
        stream_time=at(7),
        headers={"ce-source": "käse", "ce-id": "1"},
        body_size=3,
        body_sha256="ab" * 32,
        state_sequence=9,
        payload=b"\x00\xff",
        body_prefix=b"\x00\x01\xff",
        definition="order-fulfilment",
        step="take-payment",
        compensation=True,
        attempts=4,
        state=DeadLetterState.REDRIVEN,
        close_time=at(9),
        close_actor="ada",
        close_reason="mended",
    ),
    "publication": Publication(
        key="b",
        subject="events.b.choreography.v1.SagaCompleted",
        headers={"Nats-Msg-Id": "m/b"},
        data=b"\x00\x80",
    ),
}
"""One of each kind, its fields by name, and no two of a record the same: so that each is seen to stand in its place."""

EXAMPLES = {
    "position": '["position",[2,12,"2026-03-01T08:00:00Z",1772355612123456]]',
    "definition": (
        '["definition",["order-fulfilment",3,"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","ChA=",'
        "false]]"
    ),
    "saga": (
        '["saga",[["order-fulfilment",2,"källa",9,4,3,"ada: out of stock",1,1772355603123456,1772355609123456,'
        '1772355608123456,1772357400123456,true,[["take-payment",6,1772355660123456,1772355604123456,'
        '1772355607123456],["ship",7,null,1772355605123456,1772355606123456]],[[[3,1772355603123456,'
        '"choreography.v1.SagaStepVoided","urn:correlator","event-3","AwD/",1772355602623456,"event-2","too late",'
        '["order-fulfilment",1,2,["ship"],true,["s",7]]],3,"it came too soon"]],5],[[3,"AP8="],[4,""]]]]'
    ),
    "dead_letter": (
        '["dead_letter",["payments",7,"events.3.orders.v1.OrderCreated","orders.v1.OrderCreated","källa",13,'
        '"the process ended: ü",1772355607123456,[["ce-id","1"],["ce-source","käse"]],3,'
        '"abababababababababababababababababababababababababababababababab",9,"AP8=","AAH/","order-fulfilment",'
        '"take-payment",true,4,2,1772355609123456,"ada","mended"]]'
    ),
    "publication": '["publication",["b","events.b.choreography.v1.SagaCompleted",[["Nats-Msg-Id","m/b"]],"AIA="]]',
}
"""Lines of `FORMAT`. Where this has to change, so has its number."""


@pytest.fixture
async def items() -> list[Item]:
    store = MemoryCorrelatorStore()
    await filled(store)
    return await exported(store)


def records_in(value: object) -> Iterator[Any]:
    """The records that a value is made of, whose fields stand in a line one after the other."""
    if isinstance(value, tuple):
        for one in value:
            yield from records_in(one)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from records_in(getattr(value, field.name))


def test_a_file_gives_back_what_was_written(items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "contents"
    with writing(path) as take:
        for item in items:
            take(item)
    assert list(reading(path)) == items
    assert path.stat().st_mode & 0o077 == 0, "nobody else may read it"


def test_the_format_is_the_one_that_its_number_says() -> None:
    assert FORMAT == "farandole.correlator.contents/1"
    assert {type(item) for item in ITEMS.values()} == set(get_args(Item)), "one of each kind"
    assert ITEMS.keys() == EXAMPLES.keys()
    for kind, item in ITEMS.items():
        assert encode_item(item).decode() == EXAMPLES[kind]
        assert decode_item(EXAMPLES[kind].encode()) == item


@pytest.mark.parametrize("kind", ITEMS)
def test_no_field_of_an_example_could_stand_in_another_s_place(kind: str) -> None:
    for record in records_in(ITEMS[kind]):
        values = [getattr(record, field.name) for field in dataclasses.fields(record)]
        values = [repr(int(value) if isinstance(value, enum.IntEnum) else value) for value in values]
        assert len(set(values)) == len(values), record


def test_what_is_damaged_or_cut_off_is_refused(items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "contents"
    with writing(path) as take:
        for item in items:
            take(item)
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    variants = {
        "a byte is another one": whole[: len(whole) // 2]
        + bytes([whole[len(whole) // 2] ^ 1])
        + whole[len(whole) // 2 + 1 :],
        "its end is missing": whole[:-20],
        "a line is missing": gzip.compress(b"".join(lines[:3] + lines[4:])),
        "its last line is missing": gzip.compress(b"".join(lines[:-1])),
        "something comes behind its end": gzip.compress(b"".join([*lines, lines[1]])),
        "it is of another format": gzip.compress(b"".join([lines[0].replace(b"/1", b"/2"), *lines[1:]])),
        "it is none": b"something else",
        "it is empty": b"",
        "a field is missing": gzip.compress(b"".join([lines[0], b'["position",[1,2]]\n', *lines[2:]])),
    }
    for data in variants.values():
        path.write_bytes(data)
        with pytest.raises(SnapshotError):
            list(reading(path))
