"""docs/wire-contract.md says what the code does."""

from __future__ import annotations

import json
import re
import shlex
import uuid

from farandole import Participant, Transaction, step
from farandole.bodies import MAX_BODY_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES, MAX_NESTED_MESSAGES
from farandole.broker.responder import ERROR_CODE_HEADER, ERROR_HEADER, status_subject
from farandole.correlator.time_outs import EXPECTED_ON, EXPECTED_SEQUENCE
from farandole.dead_letter_copy import dead_letter_copy
from farandole.envelope import MAX_ATTRIBUTE_BYTES, Event, StoredMessage, decode, encode
from farandole.participant.barrier import (
    Barrier,
    BarrierState,
    Move,
    after_confirm,
    after_forward,
    after_undo,
    confirm_move,
    forward_move,
    undo_move,
)
from farandole.partitions import PARTITIONS, partition_of
from farandole.reasons import Reason
from inventory.v1.inventory_events_pb2 import ItemsReserved
from tests.contract.vectors import DIRECTORY, ROOT, STREAM_TIME, registry, text_of

PAGE = (ROOT / "docs/wire-contract.md").read_text(encoding="utf-8")
REGISTRY = registry()


def test_the_bare_publication_on_the_page_is_an_event() -> None:
    [command] = re.findall(r"^nats pub (.*)$", PAGE, re.MULTILINE)
    subject, body = shlex.split(command)
    _, key, name = subject.split(".", 2)
    event = decode(REGISTRY, StoredMessage(f"events.{partition_of(key)}.{name}", {}, body.encode(), 1, STREAM_TIME))
    assert isinstance(event, Event), event
    assert (event.key, event.type) == (key, name)


def _section(title: str) -> str:
    """The text under a heading, up to the next of its level or above."""
    level, _, _ = title.partition(" ")
    [found] = re.findall(rf"^{title}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def _first_column(title: str) -> list[str]:
    """What stands in code in the first column of a section's tables."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", _section(title), re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_names_every_reason() -> None:
    by_participants = set(re.findall(r"\(`([A-Z_]+)`\)", _section("### Retries and dead letters")))
    assert [Reason[name] for name in _first_column("## What is refused")]
    assert {*_first_column("## What is refused"), *by_participants} == set(Reason.__members__)
    for name in by_participants:
        assert f"`{name}`" in _section("### Retries and dead letters")


def test_the_page_names_every_header_that_is_published() -> None:
    rows = set(_first_column("## Headers"))
    event_type = REGISTRY.types["shipping.v1.OrderShipped"]
    body = event_type.message_class(order_id="a", tracking_number="T")
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    published = encode(
        event_type, body, source="s", causation_id="c", traceparent=traceparent, time=STREAM_TIME
    ).headers
    assert rows == set(published)


def test_the_page_has_the_limits_and_the_namespace() -> None:
    for fact in (
        f"{MAX_BODY_BYTES:,} bytes",
        f"{MAX_NESTED_MESSAGES:,} messages",
        f"{MAX_JSON_VALUES:,} values",
        f"most {MAX_JSON_DEPTH} deep",
        f"{MAX_ATTRIBUTE_BYTES} bytes",
        f"mod {PARTITIONS}",
        str(uuid.uuid5(uuid.NAMESPACE_DNS, "choreography.v1")),
        text_of(STREAM_TIME),
    ):
        assert fact in " ".join(PAGE.split()), fact


def test_the_page_names_the_headers_of_a_copy() -> None:
    copy = dead_letter_copy(
        StoredMessage("events.1.a.v1.A", {}, b"x" * (MAX_BODY_BYTES + 1), 1, STREAM_TIME),
        participant="payments",
        key="a",
        reason=Reason.REJECTED,
        detail="d",
    )
    assert set(_first_column("## Dead letters")) == set(copy.headers)
    assert set(json.loads(copy.data)) <= set(re.findall(r"`([a-z0-9]+)`", _section("## Dead letters")))


def test_the_page_says_who_publishes_each_event_of_the_platform() -> None:
    own = {name.removeprefix("choreography.v1.") for name in REGISTRY.types if name.startswith("choreography.v1.")}
    rows = _first_column("## The platform's own events")
    assert sorted(rows) == sorted([*own, EXPECTED_SEQUENCE, EXPECTED_ON])


def test_every_participant_consumes_what_the_page_says() -> None:
    participant = Participant("payments", step("take-payment", _charge, saga="order-fulfilment"))
    implied = {name.split(".", 2)[2] for name in participant.filters} - {"inventory.v1.ItemsReserved"}
    [sentence] = re.findall(r"Every participant consumes (.*?)\.\n", _section("## Participants"), re.DOTALL)
    assert implied == set(re.findall(r"`([A-Za-z0-9.]+)`", sentence))


def _charge(_event: ItemsReserved, _tx: Transaction) -> None:
    """A step that consumes one event."""


def test_the_barrier_s_table_is_the_code_s() -> None:
    said = _table(_section("### Steps and their barriers"))
    assert set(said) == {"NONE", *BarrierState} - {BarrierState.CONFIRMED}
    for state in (None, *(BarrierState[name] for name in said if name != "NONE")):
        barrier = Barrier(state, b"digest") if state else None
        trigger, undoing = said[state.value if state else "NONE"]
        assert ("nothing" not in trigger) == (forward_move(barrier, b"other")[0] is Move.RUN)
        move, _ = undo_move(barrier, has_handler=True, is_irrevocable=False)
        assert ("runs" in undoing, "StepVoided" in undoing) == (move is Move.RUN, move is Move.VOID)
        if move is not Move.NOTHING:
            assert f"→ `{after_undo(barrier).state}`" in undoing
    assert f"→ `{after_forward(b'', failed=False).state}`" in said["NONE"][0]
    assert f"→ `{after_forward(b'', failed=True).state}`" in said["NONE"][0]


def test_the_table_of_acts_that_can_t_be_undone_is_the_code_s() -> None:
    said = _table(_section("### Acts that can't be undone"))
    for name, (undoing, read_back) in said.items():
        barrier = Barrier(BarrierState[name], b"digest", awaited_id="id") if name != "NONE" else None
        move, _ = undo_move(barrier, has_handler=True, is_irrevocable=True)
        assert ("runs" in undoing) == (move is Move.RUN)
        if move is Move.RUN:
            assert f"→ `{after_undo(barrier).state}`" in undoing
        move, _ = confirm_move(barrier, "id")
        assert ("nothing" not in read_back) == (move is Move.RUN)
        if barrier is not None and move is Move.RUN:
            assert f"→ `{after_confirm(barrier).state}`" in read_back
        assert confirm_move(barrier, "another id")[0] is Move.NOTHING
    assert set(said) == {"NONE", *BarrierState}


def _table(section: str) -> dict[str, tuple[str, ...]]:
    """The other columns of a table's rows, by each state in the first."""
    rows = re.findall(r"^\| ((?:`[A-Z]+`(?:, )?)+)[^|]*\| (.*) \|$", section, re.MULTILINE)
    cells = [(states, tuple(cell.strip() for cell in rest.split(" | "))) for states, rest in rows]
    return {state: rest for states, rest in cells for state in re.findall(r"[A-Z]+", states)}


def test_the_status_s_subject_is_on_the_page() -> None:
    assert f"`{status_subject('<name>')}`" in _section("### Status")
    for header in (ERROR_HEADER, ERROR_CODE_HEADER):
        assert f"`{header}`" in _section("### Status")


def test_the_page_names_the_files_of_vectors() -> None:
    named = set(re.findall(r"^\| `([a-z_]+\.json)` \|", PAGE, re.MULTILINE))
    assert named == {path.name for path in DIRECTORY.glob("*.json") if path.stem not in REGISTRY.types}
