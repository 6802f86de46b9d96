"""An operator who has whatever was given up on tried again, now and then."""

from __future__ import annotations

import asyncio

import grpc

from choreography.v1.dead_letter_service_pb2 import RedriveDeadLettersRequest
from choreography.v1.dead_letter_service_pb2_grpc import DeadLetterServiceStub
from tests.chaos.stack import CHANNEL_OPTIONS

_PAUSE_SECONDS = 4.0
_ANSWER_SECONDS = 5.0
_REQUEST = RedriveDeadLettersRequest(
    filter='state = OPEN AND participant = "shipping"', actor="chaos", reason="perhaps somebody can read it now"
)


async def keep_redriving(correlator: str) -> None:
    """Redrives every open dead letter of shipping each few seconds, for ever; where nobody answers, the next time."""
    async with grpc.aio.insecure_channel(correlator, options=CHANNEL_OPTIONS) as channel:
        service = DeadLetterServiceStub(channel)
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                async for _ in service.RedriveDeadLetters(_REQUEST, timeout=_ANSWER_SECONDS):
                    pass
            except grpc.aio.AioRpcError:
                continue
