"""`choreography.v1.DeadLetterService`: what a correlator answers about dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from farandole.correlator.events_stream import EventsStream
from farandole.correlator.filters import DEAD_LETTER_FIELDS, parse_filter
from farandole.correlator.messages import dead_letter_message, dead_letter_with_body, group_message
from farandole.correlator.operator_verbs import DISCARD, REDRIVE, Decision, OperatorVerbs, Progress
from farandole.correlator.pages import page_size, page_token, position_of
from farandole.correlator.queries import (
    CorrelatorQueries,
    DeadLetterField,
    DeadLetterGroupQuery,
    DeadLetterQuery,
    GroupCursor,
    find_dead_letter,
)
from farandole.registry import Registry
from farandole.telemetry import NO_TELEMETRY, Telemetry

Context = grpc.aio.ServicerContext[Any, Any]


class DeadLetterService(dead_letter_service_pb2_grpc.DeadLetterServiceServicer):
    """Answers from a store, and tells the stream what operators decide."""

    def __init__(
        self,
        queries: CorrelatorQueries,
        registry: Registry,
        stream: EventsStream,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._queries = queries
        self._registry = registry
        self._verbs = OperatorVerbs(queries, registry, stream, telemetry=telemetry)

    async def ListDeadLetters(  # noqa: N802 - the RPC's name
        self, request: dead_letter_service_pb2.ListDeadLettersRequest, _context: Context
    ) -> dead_letter_service_pb2.ListDeadLettersResponse:
        """A page of dead letters, newest first, or of groups of them, the largest first."""
        if request.group_by:
            return await self._groups(request)
        listing = ("dead_letters", request.filter)
        before = None
        if request.page_token:
            before = int(position_of(request.page_token, listing=listing, shape=(int,))[0])
        filter_ = parse_filter(request.filter, DEAD_LETTER_FIELDS)
        query = DeadLetterQuery(filter=filter_, limit=page_size(request.page_size), before=before)
        page = await self._queries.list_dead_letters(query)
        return dead_letter_service_pb2.ListDeadLettersResponse(
            dead_letters=[dead_letter_message(one) for one in page.dead_letters],
            next_page_token="" if page.next is None else page_token((page.next,), listing=listing),
        )

    async def _groups(
        self, request: dead_letter_service_pb2.ListDeadLettersRequest
    ) -> dead_letter_service_pb2.ListDeadLettersResponse:
        group_by = tuple(DeadLetterField(field) for field in request.group_by)
        listing = ("dead_letter_groups", request.filter, *(field.name for field in group_by))
        after = None
        if request.page_token:
            count, row = position_of(request.page_token, listing=listing, shape=(int, int))
            after = GroupCursor(int(count), int(row))
        filter_ = parse_filter(request.filter, DEAD_LETTER_FIELDS)
        page = await self._queries.group_dead_letters(
            DeadLetterGroupQuery(group_by, filter_, page_size(request.page_size), after)
        )
        return dead_letter_service_pb2.ListDeadLettersResponse(
            groups=[group_message(one, request.filter) for one in page.groups],
            next_page_token=page_token((page.next.count, page.next.row), listing=listing) if page.next else "",
        )

    async def GetDeadLetter(  # noqa: N802 - the RPC's name
        self, request: dead_letter_service_pb2.GetDeadLetterRequest, _context: Context
    ) -> dead_letter_service_pb2.GetDeadLetterResponse:
        """One dead letter with its headers and what may be shown of its body."""
        found = await find_dead_letter(self._queries, request.dead_letter_id)
        return dead_letter_service_pb2.GetDeadLetterResponse(dead_letter=dead_letter_with_body(found, self._registry))

    async def RedriveDeadLetters(  # noqa: N802 - the RPC's name
        self, request: dead_letter_service_pb2.RedriveDeadLettersRequest, _context: Context
    ) -> AsyncIterator[dead_letter_service_pb2.RedriveDeadLettersResponse]:
        """The progress of having dead letters tried again."""
        decision = Decision(REDRIVE, request.actor, request.reason, request.dead_letter_id, request.filter)
        async with aclosing(self._verbs.tell(decision)) as told:
            async for progress in told:
                yield dead_letter_service_pb2.RedriveDeadLettersResponse(progress=_progress_message(progress))

    async def DiscardDeadLetters(  # noqa: N802 - the RPC's name
        self, request: dead_letter_service_pb2.DiscardDeadLettersRequest, _context: Context
    ) -> AsyncIterator[dead_letter_service_pb2.DiscardDeadLettersResponse]:
        """The progress of going on without dead letters."""
        decision = Decision(DISCARD, request.actor, request.reason, request.dead_letter_id, request.filter)
        async with aclosing(self._verbs.tell(decision)) as told:
            async for progress in told:
                yield dead_letter_service_pb2.DiscardDeadLettersResponse(progress=_progress_message(progress))


def _progress_message(progress: Progress) -> dead_letter_service_pb2.DeadLetterProgress:
    return dead_letter_service_pb2.DeadLetterProgress(
        matched=progress.matched,
        told=progress.told,
        passed_over=progress.passed_over,
        dead_letter_id=progress.dead_letter_id,
    )
