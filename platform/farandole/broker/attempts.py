"""Publishing what may be lost: once each, all at the same time, without an outbox behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from farandole.broker.publisher import Publisher
from farandole.envelope import Publication
from farandole.errors import BrokerError, BrokerUnavailableError

_PATIENCE_SECONDS = 5.0
"""How long what is tried again and again may fail before that is a problem to be told."""
_FRESH_SECONDS = 2.0
"""What could not be sent for so long is not sent any more, as after the process was suspended: who wants it asks again,
if nobody has taken over meanwhile."""
_FORGET_SECONDS = 10.0
"""Who wants an attempt to succeed tries again sooner; after so long nobody wants it any more."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Failing:
    since: float
    last: float
    why: str


class Attempts:
    """Publishes each attempt once. What is refused or lost is logged, and told as a problem where it lasts."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._tasks: set[asyncio.Task[None]] = set()
        self._failing: dict[str, _Failing] = {}
        """By subject: the same attempt is made again under the same one."""

    @property
    def problem(self) -> str | None:
        """What attempts have failed of for seconds, though they were made again; None for nothing."""
        now = asyncio.get_running_loop().time()
        for subject in [s for s, failing in self._failing.items() if now - failing.last > _FORGET_SECONDS]:
            del self._failing[subject]
        lasting = [(f.since, f.why) for f in self._failing.values() if f.last - f.since >= _PATIENCE_SECONDS]
        if not lasting:
            return None
        since, why = min(lasting)
        return f"{len(lasting)} attempts to publish fail, the first for {now - since:.0f} s: {why}"

    def begin(self, publications: Sequence[Publication]) -> None:
        """Publishes them; what comes first in the sequence is sent first."""
        before = asyncio.get_running_loop().time() + _FRESH_SECONDS
        for publication in publications:
            task = asyncio.create_task(self._attempt(publication, before), name=f"attempt-{publication.subject}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Gives up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attempt(self, publication: Publication, before: float) -> None:
        subject = publication.subject
        try:
            await self._publisher.publish(publication, before=before)
        except BrokerError as error:
            if error.is_conflict:
                _log.info("another event came first", saga_id=publication.key, subject=subject, error=str(error))
                self._failing.pop(subject, None)
            else:
                self._note(publication, error)
        else:
            self._failing.pop(subject, None)

    def _note(self, publication: Publication, error: BrokerError) -> None:
        now = asyncio.get_running_loop().time()
        known = self._failing.get(publication.subject)
        if known is None or now - known.last > _FORGET_SECONDS:
            known = self._failing[publication.subject] = _Failing(now, now, str(error))
            # where the broker is away, or more is attempted at once than it takes, `problem` says so once for all
            log = _log.debug if isinstance(error, BrokerUnavailableError) else _log.warning
            log(
                "attempt not published",
                saga_id=publication.key,
                subject=publication.subject,
                error=str(error),
                code=error.code,
            )
        known.last, known.why = now, str(error)
