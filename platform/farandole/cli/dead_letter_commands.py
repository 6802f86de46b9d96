"""`deadletters list` and `show`."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.cli.correlator_client import (
    ANSWER_TIMEOUT_SECONDS,
    PAGE_SIZE,
    AddressOption,
    FilterOption,
    JsonOption,
    LimitOption,
    correlator,
    saga_arguments,
)

if TYPE_CHECKING:
    import grpc

    from choreography.v1.dead_letter_pb2 import DeadLetter
    from choreography.v1.dead_letter_service_pb2 import DeadLetterField, DeadLetterGroup

MOST_COMMANDS = 10
"""Of groups so many have their command printed."""


class GroupBy(enum.StrEnum):
    """What dead letters can be grouped by (`choreography.v1.DeadLetterField`)."""

    FAILURE = "failure"
    PARTICIPANT = "participant"
    TYPE = "type"
    REASON = "reason"
    SAGA = "saga"
    STEP = "step"


_IN_COMMON = {
    GroupBy.FAILURE: ("PARTICIPANT", "DEFINITION", "STEP", "EVENT TYPE", "REASON", "DETAIL"),
    GroupBy.PARTICIPANT: ("PARTICIPANT",),
    GroupBy.TYPE: ("EVENT TYPE",),
    GroupBy.REASON: ("REASON",),
    GroupBy.SAGA: ("SAGA",),
    GroupBy.STEP: ("DEFINITION", "STEP"),
}
"""What the dead letters of a group have in common, as columns."""


def list_dead_letters(
    filter_: FilterOption = "",
    group_by: Annotated[
        list[GroupBy] | None,
        typer.Option("--group-by", help="Groups of what has this in common; may be given again.", show_default=False),
    ] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Dead letters, newest first, or groups of them, largest first."""
    if group_by:
        _list_groups(filter_, tuple(dict.fromkeys(group_by)), limit, as_json=as_json, address=address)
    else:
        _list(filter_, limit, as_json=as_json, address=address)


def show(
    dead_letter_id: Annotated[str, typer.Argument(help="Such as correlator-17.", show_default=False)],
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """One dead letter with its headers and body, and who closed it and why."""
    from google.protobuf.json_format import MessageToDict

    from farandole.cli.output import console, print_json, print_next

    with correlator(address) as channel:
        letter = get_dead_letter(channel, dead_letter_id)
        commands = () if as_json else tuple(_next_commands(channel, letter))
    if as_json:
        print_json(MessageToDict(letter))
        return
    console().print(_view(letter))
    print_next(commands)


def get_dead_letter(channel: grpc.Channel, dead_letter_id: str) -> DeadLetter:
    """One dead letter."""
    from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc

    stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
    request = dead_letter_service_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter_id)
    letter: DeadLetter = stub.GetDeadLetter(request, timeout=ANSWER_TIMEOUT_SECONDS).dead_letter
    return letter


def groups_of(channel: grpc.Channel, filter_: str, group_by: Sequence[GroupBy]) -> Iterator[DeadLetterGroup]:
    """Groups of the dead letters that match, largest first, page by page."""
    from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc

    stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
    request = dead_letter_service_pb2.ListDeadLettersRequest(
        filter=filter_, page_size=PAGE_SIZE, group_by=[_field(one) for one in group_by]
    )
    while True:
        page = stub.ListDeadLetters(request, timeout=ANSWER_TIMEOUT_SECONDS)
        yield from page.groups
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def groups_table(groups: Iterable[DeadLetterGroup], group_by: Sequence[GroupBy]) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    """A line for each group: how many there are, the newest of them, and what they have in common."""
    from farandole.cli.output import cell_time, colored, table

    shown = list(dict.fromkeys(column for one in group_by for column in _IN_COMMON[one]))
    made = table("COUNT", "OPEN", "NEWEST", *shown)
    for group in groups:
        cells = {
            "PARTICIPANT": group.participant,
            "DEFINITION": group.definition,
            "STEP": group.step,
            "EVENT TYPE": group.event_type,
            "REASON": _reason_word(group.reason),
            "SAGA": group.saga_id,
            "DETAIL": group.detail,
        }
        made.add_row(
            str(group.count),
            str(group.open),
            cell_time(group, "last_time"),
            *(colored(cells[column]) for column in shown),
        )
    return made


def _list(filter_: str, limit: int, *, as_json: bool, address: str | None) -> None:
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
    from farandole.cli.output import cell_time, colored, console, print_json, table

    found: list[DeadLetter] = []
    token = ""
    with correlator(address) as channel:
        stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
        while len(found) < limit:
            request = dead_letter_service_pb2.ListDeadLettersRequest(
                filter=filter_, page_size=min(limit - len(found), PAGE_SIZE), page_token=token
            )
            page = stub.ListDeadLetters(request, timeout=ANSWER_TIMEOUT_SECONDS)
            found.extend(page.dead_letters)
            token = page.next_page_token
            if not token:
                break
    if as_json:
        print_json({"deadLetters": [MessageToDict(letter) for letter in found], "more": bool(token)})
        return
    if not found:
        typer.echo(_nothing(filter_))
        return
    made = table("DEAD LETTER", "STATE", "EVENT TYPE", "SAGA", "STEP", "REASON", "STORED", "DETAIL")
    for letter in found:
        cells = (
            letter.dead_letter_id,
            _state(letter),
            letter.event_type,
            letter.saga_id,
            _step(letter),
            _reason_word(letter.reason),
        )
        made.add_row(*(colored(cell) for cell in cells), cell_time(letter, "stream_time"), colored(letter.detail))
    out = console()
    out.print(made)
    if token:
        out.print(f"\nthe first {len(found)}; --limit shows more")


def _list_groups(filter_: str, group_by: Sequence[GroupBy], limit: int, *, as_json: bool, address: str | None) -> None:
    import itertools

    from google.protobuf.json_format import MessageToDict

    from farandole.cli.output import console, print_json, print_next

    with correlator(address) as channel:
        found = list(itertools.islice(groups_of(channel, filter_, group_by), limit + 1))
    groups, has_more = found[:limit], len(found) > limit
    if as_json:
        print_json({"groups": [MessageToDict(group) for group in groups], "more": has_more})
        return
    if not groups:
        typer.echo(_nothing(filter_))
        return
    out = console()
    out.print(groups_table(groups, group_by))
    if has_more:
        out.print(f"\nthe first {len(groups)}; --limit shows more")
    with_open = [group for group in groups if group.open]
    print_next(redrive_group(group.filter) for group in with_open[:MOST_COMMANDS])
    if len(with_open) > MOST_COMMANDS:
        out.print(f"and so on: --json has the filters of all {len(with_open)}")


def redrive_group(filter_: str) -> str:
    """The command that redrives all open dead letters that match."""
    from farandole.cli.output import shell_word

    return f"farandole deadletters redrive --reason WHY --filter {shell_word(filter_)}"


def decisions(dead_letter_id: str, participant: str) -> Iterator[str]:
    """The commands with which an operator closes an open dead letter."""
    from farandole.lifecycle import CORRELATOR

    discard = f"farandole deadletters discard {dead_letter_id} --reason WHY"
    redrive = f"farandole deadletters redrive {dead_letter_id} --reason WHY"
    # What no one can read stays so until the schemas are others: to redrive it is the exception.
    yield from (discard, redrive) if participant == CORRELATOR else (redrive, discard)


def _next_commands(channel: grpc.Channel, letter: DeadLetter) -> Iterator[str]:
    from choreography.v1 import dead_letter_pb2

    if letter.definition:
        yield f"farandole sagas diagnose {saga_arguments(channel, letter.saga_id, letter.definition)}"
    if letter.state == dead_letter_pb2.DEAD_LETTER_STATE_OPEN:
        yield from decisions(letter.dead_letter_id, letter.participant)


def _view(letter: DeadLetter) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    import json

    from google.protobuf.json_format import MessageToDict
    from rich.text import Text

    from farandole.cli.output import colored, table, timestamp

    made = table("", "")
    made.show_header = False
    for name, value in (
        ("dead letter", letter.dead_letter_id),
        ("state", " ".join(filter(None, (_state(letter), timestamp(letter, "close_time"))))),
        ("closed by", letter.close_actor),
        ("because", letter.close_reason),
        ("given up by", letter.participant),
        ("definition", letter.definition),
        ("step", _step(letter)),
        ("tried", _times(letter.attempts)),
        ("reason", _reason_word(letter.reason)),
        ("detail", letter.detail),
        ("subject", letter.subject),
        ("sequence", str(letter.sequence)),
        ("event type", letter.event_type),
        ("saga", letter.saga_id),
        ("stored", timestamp(letter, "stream_time")),
        ("headers", "\n".join(f"{header}: {text}" for header, text in sorted(letter.headers.items()))),
        ("body", f"{letter.body_size} bytes, SHA-256 {letter.body_sha256}" if letter.body_sha256 else ""),
        (
            "payload",
            json.dumps(MessageToDict(letter.payload), indent=2, ensure_ascii=False)
            if letter.HasField("payload")
            else "",
        ),
        ("begins with", repr(letter.body_prefix) if letter.body_prefix else ""),
    ):
        if value:
            made.add_row(Text(name, style="bold"), colored(value))
    return made


def _field(group_by: GroupBy) -> DeadLetterField.ValueType:
    from choreography.v1 import dead_letter_service_pb2

    fields = {
        GroupBy.FAILURE: dead_letter_service_pb2.DEAD_LETTER_FIELD_FAILURE,
        GroupBy.PARTICIPANT: dead_letter_service_pb2.DEAD_LETTER_FIELD_PARTICIPANT,
        GroupBy.TYPE: dead_letter_service_pb2.DEAD_LETTER_FIELD_EVENT_TYPE,
        GroupBy.REASON: dead_letter_service_pb2.DEAD_LETTER_FIELD_REASON,
        GroupBy.SAGA: dead_letter_service_pb2.DEAD_LETTER_FIELD_SAGA,
        GroupBy.STEP: dead_letter_service_pb2.DEAD_LETTER_FIELD_STEP,
    }
    return fields[group_by]


def _nothing(filter_: str) -> str:
    return "no dead letter matches" if filter_ else "there is no dead letter"


def _state(letter: DeadLetter) -> str:
    from choreography.v1 import dead_letter_pb2
    from farandole.cli.output import word

    return word(dead_letter_pb2.DeadLetterState, letter.state, "DEAD_LETTER_STATE_")


def _step(letter: DeadLetter) -> str:
    """The step that could not deal with it, and whether it was to be undone; empty for what no one can read."""
    return f"{letter.step} (undo)" if letter.compensation else letter.step


def _times(attempts: int) -> str:
    """`once`, `3 times`; empty for none."""
    if attempts == 0:
        return ""
    return "once" if attempts == 1 else f"{attempts} times"


def _reason_word(reason: int) -> str:
    from choreography.v1 import dead_letter_pb2
    from farandole.cli.output import word

    return word(dead_letter_pb2.DeadLetterReason, reason, "DEAD_LETTER_REASON_")
