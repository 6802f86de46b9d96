"""Asking the correlator from the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farandole.errors import AmbiguousSagaError, FarandoleError, InvalidArgumentError, NotFoundError, QueryError

if TYPE_CHECKING:
    import grpc

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The correlator; else FARANDOLE_CORRELATOR_ADDRESS, else the embedded stack's.",
        show_default=False,
    ),
]
FilterOption = Annotated[str, typer.Option("--filter", help="AIP-160, such as 'status = RUNNING'.", show_default=False)]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For programs: ProtoJSON.")]
DEFINITION_OPTION = "--definition"

ANSWER_TIMEOUT_SECONDS = 10.0
PAGE_SIZE = 1000
"""The most that a correlator gives at once."""

_LONGEST_ANSWER_BYTES = 64 * 1024 * 1024
"""A saga with a long history is larger than gRPC's own limit of 4 MiB."""
_THIS_MACHINE = ("127.", "ipv4:127.", "localhost:", "[::1]:")


@contextmanager
def correlator(address: str | None) -> Iterator[grpc.Channel]:
    """A channel to the correlator. What a call raises inside becomes a `FarandoleError` that people can read."""
    import grpc

    from farandole.stack.addresses import default_correlator_address

    target = address or default_correlator_address(os.environ, Path.cwd())
    options = (
        ("grpc.max_receive_message_length", _LONGEST_ANSWER_BYTES),
        # A proxy that the environment names is not meant for this machine itself.
        ("grpc.enable_http_proxy", 0 if target.startswith(_THIS_MACHINE) else 1),
        # A correlator that hangs, or is gone without a word, is noticed also in the middle of a stream.
        ("grpc.keepalive_time_ms", 15_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    )
    with grpc.insecure_channel(target, options=options) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise _readable(error, target) from error


def saga_arguments(channel: grpc.Channel, saga_id: str, definition: str) -> str:
    """How a command names a saga: by its key, and by its definition too where several have a saga under the key."""
    from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc

    request = saga_service_pb2.ListSagasRequest(filter=f'saga_id = "{saga_id}"', page_size=2)
    sagas = saga_service_pb2_grpc.SagaServiceStub(channel).ListSagas(request, timeout=ANSWER_TIMEOUT_SECONDS).sagas
    return named_saga(saga_id, definition if len(sagas) > 1 else "")


def named_saga(saga_id: str, definition: str) -> str:
    """The arguments of `sagas show`, `watch` and `diagnose`; `definition` is empty where it need not be named."""
    return f"{saga_id} {DEFINITION_OPTION} {definition}" if definition else saga_id


def _readable(error: grpc.RpcError, target: str) -> FarandoleError:
    import grpc

    from farandole.rpc.client import read_problem

    problem = read_problem(error)
    places = target.removeprefix("ipv4:").replace(",", " or ")
    match problem.code:
        case grpc.StatusCode.UNAVAILABLE if not problem.reason:
            return QueryError(
                f"no correlator answers at {places}; start it with `farandole up`, or name it by --address"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return QueryError(f"the correlator at {places} did not answer in time")
        case grpc.StatusCode.INVALID_ARGUMENT if problem.fields:
            wrong = problem.fields[0]
            return InvalidArgumentError(wrong.field, "; ".join(field.description for field in problem.fields))
        case grpc.StatusCode.FAILED_PRECONDITION if problem.reason == AmbiguousSagaError.reason:
            saga_id, names = problem.metadata.get("saga_id", ""), problem.metadata.get("definitions", "").split(",")
            return InvalidArgumentError(
                DEFINITION_OPTION, f"several definitions have a saga {saga_id}: {', '.join(names)}; name one of them"
            )
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(str(problem), reason=problem.reason, metadata=problem.metadata)
        case _:
            return QueryError(str(problem), metadata=problem.metadata)
