"""`google.rpc.Status` with `ErrorInfo` and `BadRequest`, made small enough for every client to receive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "farandole"
"""Of every `google.rpc.ErrorInfo`: who defines its reasons."""

_MESSAGE_CHARACTERS = 800
_DESCRIPTION_CHARACTERS = 300
_DETAILS_BYTES = 3 * 1024
"""gRPC clients refuse trailers of more than 8 KiB by default, where a status stands twice and as base64."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong."""

    field: str
    """Its path in proto naming: `lines[0].unit_price_cents`; empty for the request as a whole."""
    description: str


def status_of(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str,
    metadata: Mapping[str, str] | None = None,
    fields: Sequence[FieldViolation] = (),
) -> grpc.Status:
    """The status to abort a call with.

    `reason` is UPPER_SNAKE_CASE and stands, with `metadata`, in `google.rpc.ErrorInfo`; `fields` stand in
    `google.rpc.BadRequest`. What is too long for a trailer is cut, visibly.
    """
    short = _cut(message, _MESSAGE_CHARACTERS)
    info = error_details_pb2.ErrorInfo(
        reason=reason,
        domain=DOMAIN,
        metadata={name: _cut(value, _DESCRIPTION_CHARACTERS) for name, value in (metadata or {}).items()},
    )
    status = status_pb2.Status(code=code.value[0], message=short, details=[_packed(info)])
    if fields:
        room = _DETAILS_BYTES - status.ByteSize()
        status.details.append(_packed(_bad_request(fields, room)))
    return rpc_status.to_status(status)  # type: ignore[no-any-return]


def _bad_request(fields: Sequence[FieldViolation], room: int) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for written, violation in enumerate(fields):
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(violation.field, _DESCRIPTION_CHARACTERS),
            description=_cut(violation.description, _DESCRIPTION_CHARACTERS),
        )
        room -= entry.ByteSize()
        if room < 0:
            bad_request.field_violations.add(description=f"and {len(fields) - written} more")
            break
        bad_request.field_violations.append(entry)
    return bad_request


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
