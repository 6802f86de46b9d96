"""What a store's contents look like in a file: the format is fixed, and what is damaged is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from farandole.correlator.contents import FORMAT, Item, decode_item, encode_item, reading, writing
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.errors import SnapshotError
from farandole.testing.store_conformance import exported, filled

EXAMPLES = {
    "position": '["position",[2,12,"2026-03-01T08:00:00Z",1772355612123456]]',
    "saga": (
        '["saga",[["order-fulfilment",1,"B",1,2,0,"",1,1772355600123456,1772355600123456,1772355605123456,'
        '1772357400123456,false,[["create-order",3,null,1772355600123456,1772355600123456],'
        '["take-payment",2,1772355660123456,1772355601123456,null],["ship",1,null,null,null]],'
        '[[[2,1772355602123456,"orders.v1.OrderCreated","urn:källa/1","event-2","AgD/",1772355601623456,"event-1",'
        '"out of stock",null],1,""]],0],[]]]'
    ),
    "dead_letter": (
        '["dead_letter",["correlator",8,"events.3.orders.v1.OrderCreated","orders.v1.OrderCreated","",7,'
        '"the body is not JSON: ü",1772355608123456,[["ce-id","1"],["ce-source","käse"]],3,'
        '"abababababababababababababababababababababababababababababababab",8,null,"AAH/","","",false,0,1,null,"",""]]'
    ),
    "publication": ('["publication",["b","events.b.choreography.v1.SagaCompleted",[["Nats-Msg-Id","m/b"]],"AIA="]]'),
}
"""Lines of `FORMAT`. Where this has to change, so has its number."""


@pytest.fixture
async def items() -> list[Item]:
    store = MemoryCorrelatorStore()
    await filled(store)
    return await exported(store)


def test_a_file_gives_back_what_was_written(items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "contents"
    with writing(path) as take:
        for item in items:
            take(item)
    assert list(reading(path)) == items
    assert path.stat().st_mode & 0o077 == 0, "nobody else may read it"


def test_the_format_is_the_one_that_its_number_says(items: list[Item]) -> None:
    lines = [encode_item(item).decode() for item in items]
    assert FORMAT == "farandole.correlator.contents/1"
    for kind, example in EXAMPLES.items():
        assert example in [line for line in lines if line.startswith(f'["{kind}"')]
        assert encode_item(decode_item(example.encode())).decode() == example


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
