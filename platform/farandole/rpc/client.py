"""The reading side: what a failed call says, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from farandole.rpc.status import FieldViolation

_DETAILS_METADATA = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a call failed."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """`ErrorInfo.reason`; empty where the server sent none."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """`ErrorInfo.metadata`."""
    fields: tuple[FieldViolation, ...] = ()
    """`BadRequest.field_violations`."""

    def __str__(self) -> str:
        """Several lines: code, reason and message, then each field that is wrong, then what else is known."""
        title = f"{self.code.name} ({self.reason})" if self.reason not in ("", self.code.name) else self.code.name
        lines = [f"{title}: {self.message or 'the server gave no reason'}"]
        lines += [
            f"  {wrong.field}: {wrong.description}" if wrong.field else f"  {wrong.description}"
            for wrong in self.fields
        ]
        lines += [f"  {name} = {value}" for name, value in sorted(self.metadata.items()) if not self.fields]
        return "\n".join(lines)


def read_problem(error: grpc.RpcError) -> Problem:
    """What a failed call of `grpc` or `grpc.aio` says, its error details included."""
    call: Any = error  # grpc.RpcError is typed without the methods that every one has
    code = call.code() if hasattr(call, "code") else grpc.StatusCode.UNKNOWN
    message = (call.details() if hasattr(call, "details") else str(error)) or ""
    reason, metadata, fields = "", {}, []
    for detail in _details(call):
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            fields += [FieldViolation(wrong.field, wrong.description) for wrong in bad_request.field_violations]
    return Problem(code, message, reason, metadata, tuple(fields))


def describe(error: grpc.RpcError) -> str:
    """What a failed call says, as text of one or more lines."""
    return str(read_problem(error))


def _details(call: Any) -> list[Any]:  # noqa: ANN401 - see read_problem
    trailing = call.trailing_metadata() if hasattr(call, "trailing_metadata") else None
    for name, value in trailing or ():
        if name == _DETAILS_METADATA:
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return []  # another server's own format: code and message are still worth showing
    return []
