"""`choreography.v1.DeadLetterService`: what a correlator answers about dead letters."""

from __future__ import annotations

from typing import Any

import grpc

from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from farandole.correlator.dead_letters import parse_dead_letter_id
from farandole.correlator.filters import DEAD_LETTER_FIELDS, parse_filter
from farandole.correlator.messages import dead_letter_message, dead_letter_with_body
from farandole.correlator.pages import page_size, page_token, position_of
from farandole.correlator.queries import CorrelatorQueries, DeadLetterQuery
from farandole.errors import NotFoundError
from farandole.registry import Registry

Context = grpc.aio.ServicerContext[Any, Any]


class DeadLetterService(dead_letter_service_pb2_grpc.DeadLetterServiceServicer):
    """Answers from a store."""

    def __init__(self, queries: CorrelatorQueries, registry: Registry) -> None:
        self._queries = queries
        self._registry = registry

    async def ListDeadLetters(  # noqa: N802 - the RPC's name
        self, request: dead_letter_service_pb2.ListDeadLettersRequest, _context: Context
    ) -> dead_letter_service_pb2.ListDeadLettersResponse:
        """A page of dead letters, newest first."""
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

    async def GetDeadLetter(  # noqa: N802 - the RPC's name
        self, request: dead_letter_service_pb2.GetDeadLetterRequest, _context: Context
    ) -> dead_letter_service_pb2.GetDeadLetterResponse:
        """One dead letter with its headers and what may be shown of its body."""
        identity = parse_dead_letter_id(request.dead_letter_id)
        found = None if identity is None else await self._queries.get_dead_letter(*identity)
        if found is None:
            raise NotFoundError(
                f"there is no dead letter {request.dead_letter_id!r}; an id is <participant>-<sequence>",
                reason="DEAD_LETTER_NOT_FOUND",
                metadata={"dead_letter_id": request.dead_letter_id},
            )
        return dead_letter_service_pb2.GetDeadLetterResponse(dead_letter=dead_letter_with_body(found, self._registry))
