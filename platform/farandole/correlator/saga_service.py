"""`choreography.v1.SagaService`: what a correlator answers about sagas.

Errors leave as `farandole.errors.QueryError`; the server's interceptor turns them into statuses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from choreography.v1 import saga_service_pb2, saga_service_pb2_grpc
from farandole.correlator.awaited import awaited
from farandole.correlator.changes import SagaChanges
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.diagnosis import diagnose
from farandole.correlator.filters import DEAD_LETTER_FIELDS, SAGA_FIELDS, parse_filter
from farandole.correlator.held_up import Standing
from farandole.correlator.inquiry import Inquiry
from farandole.correlator.messages import (
    Definitions,
    count_message,
    definition_message,
    definitions_by_version,
    saga_message,
    saga_with_history,
)
from farandole.correlator.pages import page_size, page_token, position_of
from farandole.correlator.queries import (
    CorrelatorQueries,
    DeadLetterQuery,
    RecordedSaga,
    SagaCursor,
    SagaOrder,
    SagaQuery,
)
from farandole.definition import Definition
from farandole.errors import AmbiguousSagaError, InvalidArgumentError, NotFoundError, StoreError
from farandole.nearest import did_you_mean
from farandole.registry import Registry
from farandole.saga import Saga

REREAD_SECONDS = 1.0
"""How often a watched saga is read again without having been woken: what wakes may get lost on its way from another
process."""
MOST_REREADS = 200.0
"""So many a second are read again without having been woken, of all that are watched; where there are more, each less
often."""

_MOST_DEAD_LETTERS = 100
"""Of one saga in its diagnosis."""

Context = grpc.aio.ServicerContext[Any, Any]


class SagaService(saga_service_pb2_grpc.SagaServiceServicer):
    """Answers from a store."""

    def __init__(
        self,
        queries: CorrelatorQueries,
        registry: Registry,
        changes: SagaChanges,
        inquiry: Inquiry,
        *,
        reread_seconds: float = REREAD_SECONDS,
    ) -> None:
        self._queries = queries
        self._registry = registry
        self._changes = changes
        self._inquiry = inquiry
        self._reread_seconds = reread_seconds

    async def GetSaga(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.GetSagaRequest, _context: Context
    ) -> saga_service_pb2.GetSagaResponse:
        """One saga with its history."""
        saga = await self._found(request)
        message = saga_with_history(saga, await self._definitions(), self._registry)
        return saga_service_pb2.GetSagaResponse(saga=message)

    async def ListSagas(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.ListSagasRequest, _context: Context
    ) -> saga_service_pb2.ListSagasResponse:
        """A page of sagas."""
        order, descending = _order(request.order_by)
        listing = ("sagas", request.filter, order.value, "desc" if descending else "asc")
        query = SagaQuery(
            filter=parse_filter(request.filter, SAGA_FIELDS),
            order=order,
            descending=descending,
            limit=page_size(request.page_size),
            after=_cursor(request.page_token, listing),
        )
        page = await self._queries.list_sagas(query)
        definitions = await self._definitions()
        return saga_service_pb2.ListSagasResponse(
            sagas=[saga_message(saga, definitions) for saga in page.sagas],
            next_page_token=page_token((page.next.value, page.next.row), listing=listing) if page.next else "",
        )

    async def WatchSaga(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.WatchSagaRequest, _context: Context
    ) -> AsyncIterator[saga_service_pb2.WatchSagaResponse]:
        """The saga as it stands now and at each revision that a reading finds, until it is terminal."""
        definition = request.definition or None
        seen = -1
        with self._changes.watch(request.saga_id) as watch:
            while True:
                saga = _the_one(request.saga_id, await self._queries.get_sagas(request.saga_id, definition))
                if saga is not None and saga.saga.revision > seen:
                    seen, definition = saga.saga.revision, saga.saga.definition
                    message = saga_with_history(saga, await self._definitions(), self._registry)
                    yield saga_service_pb2.WatchSagaResponse(saga=message)
                    if saga.saga.status.is_terminal:
                        return
                await watch.wait(reread_after(self._changes.watchers, at_least=self._reread_seconds))

    async def DiagnoseSaga(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.DiagnoseSagaRequest, _context: Context
    ) -> saga_service_pb2.DiagnoseSagaResponse:
        """What the saga waits for, and where that is held up."""
        standings: dict[str, Standing] = {}
        while True:
            # again after each asking: the saga may have gone on, and wait for others now
            saga = (await self._found(request)).saga
            definition = await self._definition_of(saga)
            not_asked = {one.step.participant for one in awaited(definition, saga)} - standings.keys()
            if not not_asked:
                break
            standings |= await self._inquiry.ask(not_asked, saga.key)
        diagnosis = diagnose(definition, saga, standings, await self._open_dead_letters(saga.key))
        return saga_service_pb2.DiagnoseSagaResponse(diagnosis=diagnosis)

    async def SummarizeSagas(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.SummarizeSagasRequest, _context: Context
    ) -> saga_service_pb2.SummarizeSagasResponse:
        """The counts of sagas."""
        counts = await self._queries.summarize(parse_filter(request.filter, SAGA_FIELDS))
        return saga_service_pb2.SummarizeSagasResponse(
            counts=[count_message(count) for count in counts], total=sum(count.count for count in counts)
        )

    async def ListSagaDefinitions(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.ListSagaDefinitionsRequest, _context: Context
    ) -> saga_service_pb2.ListSagaDefinitionsResponse:
        """A page of definitions, by name and falling version."""
        limit = page_size(request.page_size)
        listing = ("definitions",)
        stored = await self._queries.definitions()
        if request.page_token:
            name, version = position_of(request.page_token, listing=listing, shape=(str, int))
            stored = tuple(one for one in stored if (one.name, -one.version) > (str(name), -int(version)))
        page = stored[:limit]
        more = len(stored) > len(page)
        return saga_service_pb2.ListSagaDefinitionsResponse(
            definitions=[definition_message(one) for one in page],
            next_page_token=page_token((page[-1].name, page[-1].version), listing=listing) if more else "",
        )

    async def GetSagaDefinition(  # noqa: N802 - the RPC's name
        self, request: saga_service_pb2.GetSagaDefinitionRequest, _context: Context
    ) -> saga_service_pb2.GetSagaDefinitionResponse:
        """One definition, the newest version where none is named."""
        stored = await self._queries.definitions()
        versions = [one for one in stored if one.name == request.name]
        found = next((one for one in versions if request.version in {0, one.version}), None)
        if found is not None:
            return saga_service_pb2.GetSagaDefinitionResponse(definition=definition_message(found))
        if versions:
            known = ", ".join(str(one.version) for one in versions)
            message = f"the saga definition {request.name} has no version {request.version}; there are {known}"
        else:
            hint = did_you_mean(request.name, (one.name for one in stored))
            message = f"there is no saga definition {request.name!r}{hint}"
        raise NotFoundError(
            message,
            reason="SAGA_DEFINITION_NOT_FOUND",
            metadata={"name": request.name, "version": str(request.version)},
        )

    async def _definitions(self) -> Definitions:
        return definitions_by_version(await self._queries.definitions())

    async def _definition_of(self, saga: Saga) -> Definition:
        """The version of the definition that the saga keeps. Raises `StoreError` where it can't be read."""
        for stored in await self._queries.definitions():
            if (stored.name, stored.version) == (saga.definition, saga.version):
                return stored.definition()
        raise StoreError(f"the store lacks {saga.definition} {saga.version}, which the saga {saga.key} keeps")

    async def _open_dead_letters(self, key: str) -> Sequence[DeadLetter]:
        wanted = parse_filter(f'saga_id = "{key}" AND state = OPEN', DEAD_LETTER_FIELDS)
        page = await self._queries.list_dead_letters(DeadLetterQuery(filter=wanted, limit=_MOST_DEAD_LETTERS))
        return page.dead_letters

    async def _found(
        self, request: saga_service_pb2.GetSagaRequest | saga_service_pb2.DiagnoseSagaRequest
    ) -> RecordedSaga:
        """The saga asked for. Raises `NotFoundError`, or `AmbiguousSagaError`."""
        recorded = await self._queries.get_sagas(request.saga_id, request.definition or None)
        saga = _the_one(request.saga_id, recorded)
        if saga is None:
            raise await self._not_found(request, recorded, await self._definitions())
        return saga

    async def _not_found(
        self,
        request: saga_service_pb2.GetSagaRequest | saga_service_pb2.DiagnoseSagaRequest,
        waiting: Sequence[RecordedSaga],
        definitions: Definitions,
    ) -> NotFoundError:
        """Why there is no such saga, as far as the records tell."""
        key, definition = request.saga_id, request.definition
        said = [f"there is no saga {key!r}" + (f" of the definition {definition}" if definition else "")]
        said.extend(_awaited(one, definitions) for one in waiting)
        if definition:
            names = [name for name, _ in definitions]
            if definition not in names:
                said.append(f"no definition has that name{did_you_mean(definition, names)}")
            others = [one.saga.definition for one in await self._queries.get_sagas(key) if one.saga.is_started]
            if others:
                said.append(f"under that key there is one of {', '.join(others)}")
        metadata = {"saga_id": key} | ({"definition": definition} if definition else {})
        return NotFoundError("; ".join(said), reason="SAGA_NOT_FOUND", metadata=metadata)


def reread_after(watchers: int, *, at_least: float) -> float:
    """After how many seconds each of so many watchers reads its saga again, where nothing wakes it."""
    return max(at_least, watchers / MOST_REREADS)


def _the_one(key: str, recorded: Sequence[RecordedSaga]) -> RecordedSaga | None:
    """The only started saga; None where there is none. Raises `AmbiguousSagaError` where there are several."""
    started = [one for one in recorded if one.saga.is_started]
    if len(started) > 1:
        names = [one.saga.definition for one in started]
        raise AmbiguousSagaError(
            f"several definitions have a saga {key!r}: {', '.join(names)}; name one of them as `definition`",
            metadata={"saga_id": key, "definitions": ",".join(names)},
        )
    return started[0] if started else None


def _awaited(waiting: RecordedSaga, definitions: Definitions) -> str:
    """What waits for an initiating event, in words."""
    saga = waiting.saga
    count = len(saga.history) + saga.history_omitted
    events = "1 event with this key waits" if count == 1 else f"{count} events with this key wait"
    definition = definitions.get((saga.definition, saga.version))
    if definition is None:
        return f"{events} for the initiating event of {saga.definition}"
    return f"{events} for the initiating event of {saga.definition}, {definition.initiating_event}"


def _order(text: str) -> tuple[SagaOrder, bool]:
    """By what to list, and whether falling."""
    words = text.split()
    if not words:
        return SagaOrder.UPDATE_TIME, False
    orders = {order.value: order for order in SagaOrder}
    if words[0] in orders and words[1:] in ([], ["desc"]):
        return orders[words[0]], len(words) == 2
    raise InvalidArgumentError("order_by", f"{text!r} is not one of {', '.join(orders)}, with or without desc")


def _cursor(token: str, listing: Sequence[str]) -> SagaCursor | None:
    if not token:
        return None
    value, row = position_of(token, listing=listing, shape=(int, int))
    return SagaCursor(int(value), int(row))
