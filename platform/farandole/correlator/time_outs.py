"""Storing time-outs by compare-and-set: the stream decides whether a saga committed or was timed out first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from farandole.envelope import Publication
from farandole.errors import BrokerError

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_ON = "Nats-Expected-Last-Subject-Sequence-Subject"

_log = structlog.get_logger(__name__)

LastStoredOn = Callable[[str], Awaitable[int]]
"""The sequence of the last event stored on one exact subject, 0 for none. Raises `BrokerError`."""


@dataclass(frozen=True, slots=True)
class TimeOut:
    """A `SagaTimedOut` to publish, unless a commit event comes first."""

    publication: Publication
    commit_subject: str
    """`events.<partition>.<commit event>`, where the stream stores the commit events of the saga's partition."""


async def guarded(time_outs: Sequence[TimeOut], *, position: int, last_stored_on: LastStoredOn) -> list[Publication]:
    """The time-outs so that the stream refuses them once another commit event has been stored.

    `position` is how far the stream has been folded into the records that call for them. Where a commit event stands
    behind it already, or where the broker does not say, the time-outs are left out: they are decided again.
    """
    subjects = sorted({time_out.commit_subject for time_out in time_outs})
    answers = await asyncio.gather(*(_last_folded(subject, position, last_stored_on) for subject in subjects))
    expected = dict(zip(subjects, answers, strict=True))
    publications: list[Publication] = []
    for time_out in time_outs:
        sequence = expected[time_out.commit_subject]
        if sequence is not None:
            guard = {EXPECTED_SEQUENCE: str(sequence), EXPECTED_ON: time_out.commit_subject}
            publication = time_out.publication
            publications.append(replace(publication, headers={**publication.headers, **guard}))
    return publications


async def _last_folded(subject: str, position: int, last_stored_on: LastStoredOn) -> int | None:
    """The sequence of the last commit event; None where it has not been folded, or is not known."""
    try:
        sequence = await last_stored_on(subject)
    except BrokerError as error:
        _log.info("can't decide time-outs now", subject=subject, error=str(error))
        return None
    if sequence > position:
        _log.info("time-outs wait for a commit event to be folded", subject=subject, sequence=sequence)
        return None
    return sequence
