"""`deadletters list` and `show`."""

from __future__ import annotations

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
)

if TYPE_CHECKING:
    from choreography.v1.dead_letter_pb2 import DeadLetter


def list_dead_letters(
    filter_: FilterOption = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Dead letters, newest first."""
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
        typer.echo("no dead letter matches" if filter_ else "there is no dead letter")
        return
    made = table("DEAD LETTER", "STATE", "EVENT TYPE", "SAGA", "STEP", "REASON", "STORED", "DETAIL")
    for letter in found:
        cells = (
            letter.dead_letter_id,
            _state(letter),
            letter.event_type,
            letter.saga_id,
            _step(letter),
            _reason(letter),
        )
        made.add_row(*(colored(cell) for cell in cells), cell_time(letter, "stream_time"), colored(letter.detail))
    out = console()
    out.print(made)
    if token:
        out.print(f"\nthe first {len(found)}; --limit shows more")


def show(
    dead_letter_id: Annotated[str, typer.Argument(help="Such as correlator-17.", show_default=False)],
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """One dead letter with its headers and body."""
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
    from farandole.cli.output import console, print_json

    with correlator(address) as channel:
        stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
        request = dead_letter_service_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter_id)
        letter = stub.GetDeadLetter(request, timeout=ANSWER_TIMEOUT_SECONDS).dead_letter
    if as_json:
        print_json(MessageToDict(letter))
    else:
        console().print(_view(letter))


def _view(letter: DeadLetter) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    import json

    from google.protobuf.json_format import MessageToDict
    from rich.console import Group
    from rich.text import Text

    from choreography.v1 import dead_letter_pb2
    from farandole.cli.output import colored, table, timestamp

    made = table("", "")
    made.show_header = False
    for name, value in (
        ("dead letter", letter.dead_letter_id),
        ("state", " ".join(filter(None, (_state(letter), timestamp(letter, "close_time"))))),
        ("given up by", letter.participant),
        ("definition", letter.definition),
        ("step", _step(letter)),
        ("tried", _times(letter.attempts)),
        ("reason", _reason(letter)),
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
    if letter.state != dead_letter_pb2.DEAD_LETTER_STATE_OPEN or not letter.step:
        return made
    return Group(made, "", "Try next:", Text(f"  farandole sagas diagnose {letter.saga_id}"))


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


def _reason(letter: DeadLetter) -> str:
    from choreography.v1 import dead_letter_pb2
    from farandole.cli.output import word

    return word(dead_letter_pb2.DeadLetterReason, letter.reason, "DEAD_LETTER_REASON_")
