"""Storing time-outs by compare-and-set: the stream decides whether a saga committed or was timed out first.

The comparison is with the last commit event of the whole partition, so that other sagas' commits refuse time-outs too.
Where they come all the time, two things keep time-outs from being put off for as long: what has not been folded yet is
looked through for commit events of the very sagas, and who was refused is decided again at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from farandole.envelope import Publication
from farandole.errors import BrokerError
from farandole.partitions import partition_of

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_ON = "Nats-Expected-Last-Subject-Sequence-Subject"

_log = structlog.get_logger(__name__)

LastStoredOn = Callable[[str], Awaitable[int]]
"""The sequence of the last event stored on one exact subject, 0 for none. Raises `BrokerError`."""

StoredBehind = Callable[[str, int], Awaitable[Sequence[tuple[int, str]]]]
"""The events stored on one exact subject behind a sequence, in stream order: the sequence of each, and its correlation
key. Raises `BrokerError`."""

AGAIN_SECONDS = 0.05
"""Refused time-outs of a partition are decided again no more often."""


@dataclass(frozen=True, slots=True)
class TimeOut:
    """A `SagaTimedOut` to publish, unless a commit event comes first."""

    publication: Publication
    commit_subject: str
    """`events.<partition>.<commit event>`, where the stream stores the commit events of the saga's partition."""


async def guarded(
    time_outs: Sequence[TimeOut], *, position: int, last_stored_on: LastStoredOn, stored_behind: StoredBehind
) -> list[Publication]:
    """The time-outs so that the stream refuses them once another commit event has been stored.

    `position` is how far the stream has been folded into the records that call for them. Where a saga's own commit
    event stands behind it already, or where the broker does not say, the time-out is left out: it is decided again.
    """
    subjects = sorted({time_out.commit_subject for time_out in time_outs})
    answers = await asyncio.gather(*(_stored(subject, position, last_stored_on, stored_behind) for subject in subjects))
    stored = dict(zip(subjects, answers, strict=True))
    publications: list[Publication] = []
    for time_out in time_outs:
        commits, publication = stored[time_out.commit_subject], time_out.publication
        if commits is not None and publication.key not in commits.unfolded_keys:
            guard = {EXPECTED_SEQUENCE: str(commits.last), EXPECTED_ON: time_out.commit_subject}
            publications.append(replace(publication, headers={**publication.headers, **guard}))
    return publications


@dataclass(frozen=True, slots=True)
class _Commits:
    """The commit events stored on one subject."""

    last: int
    """The sequence of the last one, 0 for none."""
    unfolded_keys: Collection[str] = ()
    """The sagas of those behind the position."""


async def _stored(
    subject: str, position: int, last_stored_on: LastStoredOn, stored_behind: StoredBehind
) -> _Commits | None:
    """What is stored on a subject; None where that can't be learnt now."""
    try:
        last = await last_stored_on(subject)
        if last <= position:
            return _Commits(last)
        unfolded = await stored_behind(subject, position)
    except BrokerError as error:
        _log.info("can't decide time-outs now", subject=subject, error=str(error))
        return None
    # who answers may be behind: the comparison is then refused
    return _Commits(unfolded[-1][0], {key for _, key in unfolded}) if unfolded else None


class Races:
    """Time-outs against the commit events of their partitions: where time-outs have certainly been refused.

    A commit event that is read behind the one with which they were compared refused all that have not been read before
    it: the stream has their order.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """`monotonic` gives seconds, as `time.monotonic` does."""
        self._monotonic = monotonic
        self._compared: dict[str, tuple[int, int]] = {}
        """By commit subject: its partition, and the sequence with which time-outs are compared that may still come."""
        self._began: dict[int, tuple[datetime, float]] = {}
        """By partition: the stream's time by which time-outs were last decided, and the monotonic time."""
        self._lost: set[int] = set()
        """The partitions in which time-outs have been refused and have not been decided again."""

    def begin(self, partition: int, now: datetime) -> None:
        """Time-outs of a partition are decided. `now` is the stream's time: up to it deadlines have passed."""
        self._began[partition] = now, self._monotonic()
        self._lost.discard(partition)

    def attempt(self, time_outs: Sequence[Publication]) -> None:
        """Time-outs are published, as `guarded` gave them."""
        for time_out in time_outs:
            subject = time_out.headers[EXPECTED_ON]
            self._compared[subject] = partition_of(time_out.key), int(time_out.headers[EXPECTED_SEQUENCE])

    def read(self, subject: str, sequence: int) -> None:
        """An event was read, and what it comes to has been committed."""
        compared = self._compared.get(subject)
        if compared is not None and compared[1] < sequence:
            del self._compared[subject]
            self._lost.add(compared[0])

    def lost(self) -> dict[int, datetime]:
        """The partitions in which time-outs are to be decided again now, each with the stream's time to do it by."""
        return {partition: self._began[partition][0] for partition in self._lost if self._wait(partition) <= 0}

    def due_in(self) -> float | None:
        """In how many seconds time-outs are to be decided again; None where none have been refused."""
        return min((max(self._wait(partition), 0.0) for partition in self._lost), default=None)

    def _wait(self, partition: int) -> float:
        return self._began[partition][1] + AGAIN_SECONDS - self._monotonic()
