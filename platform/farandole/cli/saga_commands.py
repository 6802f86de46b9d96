"""`sagas list`, `show`, `watch` and `diagnose`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.cli.correlator_client import (
    ANSWER_TIMEOUT_SECONDS,
    DEFINITION_OPTION,
    PAGE_SIZE,
    AddressOption,
    FilterOption,
    JsonOption,
    LimitOption,
    correlator,
    named_saga,
)

if TYPE_CHECKING:
    from choreography.v1.saga_pb2 import HistoryEntry, Saga

SagaArgument = Annotated[
    str, typer.Argument(help="The saga's correlation key, such as an order id.", show_default=False)
]
DefinitionOption = Annotated[
    str, typer.Option(DEFINITION_OPTION, help="Needed only where several definitions have a saga under the key.")
]


def list_sagas(
    filter_: FilterOption = "",
    order_by: Annotated[
        str, typer.Option("--order-by", help="update_time, start_time or deadline, each with an optional `desc`.")
    ] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Sagas, stalest first."""
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
    from farandole.cli.output import console, print_json

    found: list[Saga] = []
    token = ""
    with correlator(address) as channel:
        stub = saga_service_pb2_grpc.SagaServiceStub(channel)
        while len(found) < limit:
            request = saga_service_pb2.ListSagasRequest(
                filter=filter_, order_by=order_by, page_size=min(limit - len(found), PAGE_SIZE), page_token=token
            )
            page = stub.ListSagas(request, timeout=ANSWER_TIMEOUT_SECONDS)
            found.extend(page.sagas)
            token = page.next_page_token
            if not token:
                break
    if as_json:
        print_json({"sagas": [MessageToDict(saga) for saga in found], "more": bool(token)})
        return
    if not found:
        typer.echo("no saga matches" if filter_ else "there is no saga yet")
        return
    out = console()
    out.print(saga_table(found))
    if token:
        out.print(f"\nthe first {len(found)}; --limit shows more")


def show(
    saga_id: SagaArgument,
    definition: DefinitionOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """One saga: its steps, and its history with what was made of each event."""
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
    from farandole.cli.output import console, print_json

    with correlator(address) as channel:
        request = saga_service_pb2.GetSagaRequest(saga_id=saga_id, definition=definition)
        saga = saga_service_pb2_grpc.SagaServiceStub(channel).GetSaga(request, timeout=ANSWER_TIMEOUT_SECONDS).saga
    if as_json:
        print_json(MessageToDict(saga))
    else:
        console().print(saga_view(saga, definition))


def watch(
    saga_id: SagaArgument,
    definition: DefinitionOption = "",
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.1, help="Give up after so many seconds; else never.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Follow one saga until it has ended; also one that has not started yet."""
    from google.protobuf.json_format import MessageToDict
    from rich.live import Live

    from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
    from farandole.cli.output import console, print_json_line

    request = saga_service_pb2.WatchSagaRequest(saga_id=saga_id, definition=definition)
    with correlator(address) as channel:
        changes = saga_service_pb2_grpc.SagaServiceStub(channel).WatchSaga(request, timeout=timeout)
        if as_json:
            for change in changes:
                print_json_line(MessageToDict(change.saga))
        elif sys.stdout.isatty():
            with Live(f"waiting for the saga {saga_id} to start", console=console(), refresh_per_second=8) as live:
                for change in changes:
                    live.update(saga_view(change.saga, definition))
        else:
            _print_changes(changes)


def diagnose(
    saga_id: SagaArgument,
    definition: DefinitionOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """What one saga waits for, from whom, where that is held up, and what to do next."""
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
    from farandole.cli.output import print_json
    from farandole.cli.saga_diagnosis import print_diagnosis

    with correlator(address) as channel:
        request = saga_service_pb2.DiagnoseSagaRequest(saga_id=saga_id, definition=definition)
        stub = saga_service_pb2_grpc.SagaServiceStub(channel)
        diagnosis = stub.DiagnoseSaga(request, timeout=ANSWER_TIMEOUT_SECONDS).diagnosis
    if as_json:
        print_json(MessageToDict(diagnosis))
        return
    print_diagnosis(diagnosis, definition)


def _print_changes(changes: Any) -> None:  # noqa: ANN401 - a gRPC call, which has no type
    """A line for each event that was added, and one for each change of the saga's status or health."""
    from farandole.cli.output import printable

    told, standing = 0, ""
    for change in changes:
        saga = change.saga
        for entry in saga.history:
            if entry.sequence > told:
                told = entry.sequence
                typer.echo(printable("  ".join(cell for cell in _history_row(entry) if cell)))
        if standing != (standing := f"{_standing(saga)}{_unwell(saga)}"):
            typer.echo(printable(f"{saga.definition} {saga.saga_id} is {standing}"))


def _standing(saga: Saga) -> str:
    from choreography.v1 import saga_pb2
    from farandole.cli.output import word

    status = word(saga_pb2.SagaStatus, saga.status, "SAGA_STATUS_")
    cause = word(saga_pb2.SagaCause, saga.cause, "SAGA_CAUSE_")
    detail = f": {saga.cause_detail}" if saga.cause_detail else ""
    late = ", after its deadline" if saga.finished_late else ""
    return f"{status} ({cause}{detail}){late}" if cause else f"{status}{late}"


def _unwell(saga: Saga) -> str:
    """` and OVERDUE`; empty for a saga that is on time."""
    from choreography.v1 import saga_pb2
    from farandole.cli.output import word

    well = (saga_pb2.SAGA_HEALTH_UNSPECIFIED, saga_pb2.SAGA_HEALTH_ON_TIME)
    return "" if saga.health in well else f" and {word(saga_pb2.SagaHealth, saga.health, 'SAGA_HEALTH_')}"


def saga_table(sagas: list[Saga]) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    """Sagas, one in a line."""
    from choreography.v1 import saga_pb2
    from farandole.cli.output import cell_time, colored, table, word

    made = table("SAGA", "DEFINITION", "STATUS", "HEALTH", "UPDATED", "WAITS FOR OR ENDED BY")
    for saga in sagas:
        made.add_row(
            saga.saga_id,
            f"{saga.definition} v{saga.version}",
            colored(word(saga_pb2.SagaStatus, saga.status, "SAGA_STATUS_")),
            colored(word(saga_pb2.SagaHealth, saga.health, "SAGA_HEALTH_")),
            cell_time(saga, "update_time"),
            colored(_current(saga)),
        )
    return made


def _current(saga: Saga) -> str:
    """The steps that are under way, or, of a saga that ended otherwise than well, why."""
    from choreography.v1 import saga_pb2

    if saga.HasField("end_time"):
        return saga.cause_detail
    busy = (saga_pb2.STEP_STATUS_RUNNING, saga_pb2.STEP_STATUS_COMPENSATING)
    return ", ".join(f"{step.name} ({step.participant})" for step in saga.steps if step.status in busy)


def saga_view(saga: Saga, definition: str) -> Any:  # noqa: ANN401 - rich's own type, loaded when used
    """One saga with its steps and its history. `definition` is the one that was asked for, which a next command must
    then name too."""
    from rich.console import Group
    from rich.text import Text

    from choreography.v1 import saga_definition_pb2, saga_pb2
    from farandole.cli.output import cell_time, colored, table, timestamp, word
    from farandole.cli.saga_words import held_up_by

    head = table("", "")
    head.show_header = False
    for name, value in (
        ("saga", saga.saga_id),
        ("definition", f"{saga.definition} v{saga.version}"),
        ("status", _standing(saga)),
        ("health", word(saga_pb2.SagaHealth, saga.health, "SAGA_HEALTH_")),
        ("held up by", "\n".join(held_up_by(saga))),
        ("started", timestamp(saga, "start_time")),
        ("ended", timestamp(saga, "end_time")),
        ("due", timestamp(saga, "deadline")),
        ("revision", str(saga.revision)),
    ):
        if value:
            head.add_row(Text(name, style="bold"), colored(value))
    steps = table("STEP", "PARTICIPANT", "KIND", "STATUS", "STARTED", "ENDED", "DUE")
    for step in saga.steps:
        steps.add_row(
            step.name,
            step.participant,
            word(saga_definition_pb2.StepKind, step.kind, "STEP_KIND_"),
            colored(word(saga_pb2.StepStatus, step.status, "STEP_STATUS_")),
            cell_time(step, "start_time"),
            cell_time(step, "end_time"),
            cell_time(step, "deadline"),
        )
    history = table("SEQUENCE", "STORED", "EVENT", "SOURCE", "DISPOSITION", "REASON")
    for entry in saga.history:
        history.add_row(*(colored(cell) for cell in _history_row(entry)))
    parts: list[Any] = [head, "", steps, "", history]
    if saga.history_omitted:
        parts.append(f"and {saga.history_omitted} more events, counted but not kept")
    if _unwell(saga):
        parts += ["", "Try next:", Text(f"  farandole sagas diagnose {named_saga(saga.saga_id, definition)}")]
    return Group(*parts)


def _history_row(entry: HistoryEntry) -> tuple[str, str, str, str, str, str]:
    from choreography.v1 import saga_pb2
    from farandole.cli.output import cell_time, word
    from farandole.cli.saga_words import about

    return (
        str(entry.sequence),
        cell_time(entry, "stream_time"),
        entry.event_type,
        entry.source,
        word(saga_pb2.Disposition, entry.disposition, "DISPOSITION_"),
        about(entry),
    )
