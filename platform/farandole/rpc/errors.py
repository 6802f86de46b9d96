"""Turning what a handler raises into a status that its client can read.

| raised | code | `ErrorInfo.reason` |
|---|---|---|
| `InvalidArgumentError` | INVALID_ARGUMENT, with `BadRequest` | INVALID_ARGUMENT |
| `NotFoundError` | NOT_FOUND | the error's own |
| `AmbiguousSagaError` | FAILED_PRECONDITION | SAGA_AMBIGUOUS |
| `PreconditionError` | FAILED_PRECONDITION | the error's own |
| `UnfinishedError` | UNAVAILABLE | BROKER_UNAVAILABLE |
| `AlreadyExistsError` | ALREADY_EXISTS | ALREADY_EXISTS |
| `InvalidEventError` | INVALID_ARGUMENT | INVALID_EVENT |
| `StoreUnavailableError`, `FencedError` | UNAVAILABLE | STORE_UNAVAILABLE |
| `BrokerUnavailableError` | UNAVAILABLE | BROKER_UNAVAILABLE |
| anything else | INTERNAL, with a reference that the log has too | INTERNAL |
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from farandole.errors import (
    AlreadyExistsError,
    AmbiguousSagaError,
    BrokerUnavailableError,
    FencedError,
    InvalidArgumentError,
    InvalidEventError,
    NotFoundError,
    PreconditionError,
    QueryError,
    StoreUnavailableError,
    UnfinishedError,
)
from farandole.rpc.guarding import GuardInterceptor
from farandole.rpc.status import FieldViolation, status_of

_log = structlog.get_logger(__name__)

_QUERY_CODES: dict[type[QueryError], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AmbiguousSagaError: grpc.StatusCode.FAILED_PRECONDITION,
    PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    UnfinishedError: grpc.StatusCode.UNAVAILABLE,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
}


def error_interceptor() -> grpc.aio.ServerInterceptor:
    """Aborts calls whose handler raised. What was aborted on purpose, and cancellation, pass as they are."""
    return GuardInterceptor(_translated)


@asynccontextmanager
async def _translated(_request: Any, context: grpc.aio.ServicerContext[Any, Any], method: str) -> AsyncIterator[None]:  # noqa: ANN401 - any message
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost frame of a call: nothing may pass it unread
        status = _known_status(error, method) or _internal_status(error, method)
    else:
        return
    await context.abort_with_status(status)


def _known_status(error: Exception, method: str) -> grpc.Status | None:
    match error:
        case QueryError() if (code := _QUERY_CODES.get(type(error))) is not None:
            fields = [FieldViolation(error.field, error.description)] if isinstance(error, InvalidArgumentError) else []
            return status_of(code, str(error), reason=error.reason, metadata=error.metadata, fields=fields)
        case InvalidEventError():
            return status_of(grpc.StatusCode.INVALID_ARGUMENT, str(error), reason="INVALID_EVENT")
        case StoreUnavailableError() | FencedError():
            return _unavailable(error, method, "the store", reason="STORE_UNAVAILABLE")
        case BrokerUnavailableError():
            return _unavailable(error, method, "the broker", reason="BROKER_UNAVAILABLE")
        case _:
            return None


def _unavailable(error: Exception, method: str, what: str, *, reason: str) -> grpc.Status:
    """The client learns what is missing; addresses and paths, which the error may name, stay in the log."""
    _log.warning("a call could not be answered", method=method, reason=reason, error=str(error))
    return status_of(grpc.StatusCode.UNAVAILABLE, f"{what} can't be reached now; try again later", reason=reason)


def _internal_status(error: Exception, method: str) -> grpc.Status:
    reference = uuid.uuid4().hex[:12]
    _log.error("a call failed", method=method, reference=reference, exc_info=error)
    return status_of(
        grpc.StatusCode.INTERNAL,
        f"internal error; the service's log has more under the reference {reference}",
        reason="INTERNAL",
        metadata={"reference": reference},
    )
