"""What operators decide about dead letters: an event for each, which the participants carry out.

An event's id follows from the dead letter, from the event that opened it, and from the verb. So to call a verb again is
safe: where the stream has the event, it is a duplicate; and a dead letter that was redriven and was given up on again
gets another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

import structlog

from choreography.v1 import dead_letter_events_pb2
from farandole.clock import utc_now
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.events_stream import EventsStream
from farandole.correlator.filters import DEAD_LETTER_FIELDS, Filter, parse_filter
from farandole.correlator.queries import CorrelatorQueries, OpenDeadLetters, find_dead_letter
from farandole.correlator.unreadable import read_again
from farandole.envelope import Publication, encode
from farandole.errors import BrokerError, InvalidArgumentError, PreconditionError, UnfinishedError
from farandole.ids import derived_id
from farandole.lifecycle import CORRELATOR
from farandole.registry import Registry
from farandole.telemetry import NO_TELEMETRY, Telemetry

Verb: TypeAlias = type[dead_letter_events_pb2.DeadLetterRedriven] | type[dead_letter_events_pb2.DeadLetterDiscarded]

REDRIVE: Verb = dead_letter_events_pb2.DeadLetterRedriven
DISCARD: Verb = dead_letter_events_pb2.DeadLetterDiscarded

_AT_ONCE = 500
_REPORT_SECONDS = 0.1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """What an operator has decided, and about which dead letters: the one that is named, or all open ones that match
    the filter."""

    verb: Verb
    actor: str
    reason: str
    dead_letter_id: str = ""
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a decision has been told (`choreography.v1.DeadLetterProgress`)."""

    matched: int
    told: int = 0
    passed_over: int = 0
    dead_letter_id: str = ""
    """The one that came last; empty before the first."""


class OperatorVerbs:
    """Carries operators' decisions into the stream."""

    def __init__(
        self,
        queries: CorrelatorQueries,
        registry: Registry,
        stream: EventsStream,
        *,
        clock: Callable[[], datetime] = utc_now,
        at_once: int = _AT_ONCE,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        """`clock` only says when something was decided, for people. `at_once` is how many are under way together."""
        self._queries = queries
        self._registry = registry
        self._stream = stream
        self._clock = clock
        self._at_once = at_once
        self._telemetry = telemetry

    async def tell(self, decision: Decision) -> AsyncGenerator[Progress, None]:
        """Publishes the events of a decision; tells at once how many there seem to be, then how far it has come, at
        most ten times a second, and at last the whole.

        A dead letter counts as told once the broker has its event. Raises `InvalidArgumentError`; of one that is named
        `NotFoundError` and `PreconditionError`; and `UnfinishedError` where the broker went away.
        """
        matched, pages = await self._found(decision)
        progress = Progress(matched)
        yield progress
        loop = asyncio.get_running_loop()
        due = loop.time() + _REPORT_SECONDS
        async for page in pages:
            telling = {asyncio.create_task(self._tell_one(decision, one)): one for one in page}
            waiting = set(telling)
            try:
                while waiting:
                    done, waiting = await asyncio.wait(waiting, timeout=max(due - loop.time(), 0))
                    told = [telling[task] for task in done if task.exception() is None and task.result()]
                    if told:
                        last = max(told, key=lambda one: one.sequence)
                        count = progress.told + len(told)
                        # several replicas record dead letters: one that was about to be may have been missed at first
                        matched = max(progress.matched, count)
                        progress = replace(progress, matched=matched, told=count, dead_letter_id=last.id)
                    if waiting and loop.time() >= due:
                        yield progress
                        due = loop.time() + _REPORT_SECONDS
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*telling, return_exceptions=True)
            _raise_trouble(telling, progress)
            if loop.time() >= due:
                yield progress
                due = loop.time() + _REPORT_SECONDS
        whole = replace(progress, passed_over=progress.matched - progress.told)
        _log.info(
            "dead letters decided",
            type=decision.verb.DESCRIPTOR.full_name,
            actor=decision.actor,
            reason=decision.reason,
            told=whole.told,
            passed_over=whole.passed_over,
        )
        if whole.matched:
            yield whole

    async def _found(self, decision: Decision) -> tuple[int, AsyncIterator[Sequence[DeadLetter]]]:
        """How many dead letters a decision is about, and those, page by page."""
        wanted = decision.filter.strip()
        if bool(decision.dead_letter_id) == bool(wanted):
            raise InvalidArgumentError("dead_letter_id", "is given, or filter is: one of the two")
        if decision.dead_letter_id:
            return 1, _alone(await self._named(decision))
        filter_ = parse_filter(wanted, DEAD_LETTER_FIELDS)
        counted = await self._queries.count_open_dead_letters(filter_)
        return counted.count, self._counted(counted, filter_)

    async def _named(self, decision: Decision) -> DeadLetter:
        """The one that is named. Raises `PreconditionError` where it is closed, or can't be redriven."""
        found = await find_dead_letter(self._queries, decision.dead_letter_id)
        if found.state is not DeadLetterState.OPEN:
            by = f" by {found.close_actor}" if found.close_actor else ""
            raise PreconditionError(
                f"the dead letter {found.id} is {found.state.name}{by}: it is not open any more",
                reason="DEAD_LETTER_CLOSED",
                metadata={"dead_letter_id": found.id, "state": found.state.name},
            )
        try:
            hindrance = await self._hindrance(decision, found)
        except BrokerError as error:
            raise _unfinished(Progress(1), error) from None
        if hindrance:
            raise PreconditionError(
                f"the event of the dead letter {found.id} still can't be read: {hindrance}. Start the correlator with "
                "descriptors by which it can, or discard the dead letter and publish the event anew",
                reason="DEAD_LETTER_UNREADABLE",
                metadata={"dead_letter_id": found.id},
            )
        return found

    async def _counted(self, counted: OpenDeadLetters, filter_: Filter | None) -> AsyncIterator[Sequence[DeadLetter]]:
        after: int | None = 0
        while after is not None:
            page = await self._queries.open_dead_letters(counted, filter_, after=after, limit=self._at_once)
            after = page.next
            yield page.dead_letters

    async def _tell_one(self, decision: Decision, dead_letter: DeadLetter) -> bool:
        """Returns whether it is told: what still can't be read is not redriven."""
        if await self._hindrance(decision, dead_letter):
            return False
        account = self._telemetry.account()
        publication = self._publication(decision, dead_letter, account.traceparent(None))
        account.settled()
        await self._stream.publish(publication)
        return True

    async def _hindrance(self, decision: Decision, dead_letter: DeadLetter) -> str:
        """Why a decision can't be carried out, in words; empty where it can."""
        if decision.verb is not REDRIVE or dead_letter.participant != CORRELATOR:
            return ""
        found = await read_again(dead_letter, self._registry, self._stream.stored_at)
        return found if isinstance(found, str) else ""

    def _publication(self, decision: Decision, dead_letter: DeadLetter, traceparent: str) -> Publication:
        body = decision.verb(
            saga_id=dead_letter.address,
            definition=dead_letter.definition,
            step=dead_letter.step,
            participant=dead_letter.participant,
            sequence=dead_letter.sequence,
            actor=decision.actor,
            reason=decision.reason,
        )
        event_type = self._registry.types[body.DESCRIPTOR.full_name]
        event_id = derived_id((CORRELATOR, event_type.name, dead_letter.id, str(dead_letter.state_sequence)))
        return encode(
            event_type, body, source=CORRELATOR, event_id=event_id, time=self._clock(), traceparent=traceparent
        )


async def _alone(dead_letter: DeadLetter) -> AsyncIterator[Sequence[DeadLetter]]:
    yield [dead_letter]


def _raise_trouble(tasks: Iterable[asyncio.Task[bool]], progress: Progress) -> None:
    """Raises what kept any of these from being told."""
    errors = [error for task in tasks if (error := task.exception()) is not None]
    if not errors:
        return
    for error in errors:
        if not isinstance(error, BrokerError):
            raise error
    raise _unfinished(progress, errors[0])


def _unfinished(progress: Progress, error: BaseException) -> UnfinishedError:
    _log.warning("dead letters decided in part", told=progress.told, matched=progress.matched, error=str(error))
    return UnfinishedError(
        f"the broker took {progress.told} of {progress.matched} events, and then no more: {error}. Call it again when "
        "`farandole status` shows the correlator serving: none counts twice",
        metadata={"told": str(progress.told), "matched": str(progress.matched)},
    )
