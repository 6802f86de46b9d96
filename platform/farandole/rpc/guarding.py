"""Putting a guard around RPC handlers of any kind: unary or streaming, coroutine or asynchronous generator."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc

Guard = Callable[[Any, grpc.aio.ServicerContext[Any, Any], str], AbstractAsyncContextManager[None]]
"""Makes the context manager in which one call runs, from its request (an iterator where requests stream), its
context, and the full method name."""

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]]


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call of a server inside a guard."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call, guarded; None where the server has no such method."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _guarded(handler, self._guard, handler_call_details.method)


def _guarded(handler: grpc.RpcMethodHandler[Any, Any], guard: Guard, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    behaviour: Any
    make: Any
    if handler.request_streaming:
        if handler.response_streaming:
            behaviour, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
        else:
            behaviour, make = handler.stream_unary, grpc.stream_unary_rpc_method_handler
    elif handler.response_streaming:
        behaviour, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
    else:
        behaviour, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler

    # gRPC tells generators from coroutines by looking at the function, so each gets a wrapper of its own kind
    if inspect.isasyncgenfunction(behaviour):

        async def generate(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:  # noqa: ANN401 - any message
            async with guard(request, context, method), aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        wrapped: Any = generate
    else:

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: ANN401 - any message
            async with guard(request, context, method):
                return await behaviour(request, context)

        wrapped = call
    guarded: grpc.RpcMethodHandler[Any, Any] = make(wrapped, handler.request_deserializer, handler.response_serializer)
    return guarded
