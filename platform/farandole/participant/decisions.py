"""What others decide about events in the queue: an operator about a dead letter, the correlator about what no one can
read."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import structlog

from choreography.v1 import correlator_events_pb2, dead_letter_events_pb2
from farandole.envelope import Event, Unreadable
from farandole.lifecycle import CORRELATOR
from farandole.participant.giving_up import tell_superseded
from farandole.participant.queue_table import QueueEntry, QueueState
from farandole.participant.schedule import Wait
from farandole.participant.unfinished import key_of
from farandole.participant.work import Work
from farandole.partitions import partition_key
from farandole.saga import Disposition

_log = structlog.get_logger(__name__)


def decide(work: Work, event: Event) -> None:
    """Does what an operator has decided about a dead letter of this participant, or of the correlator, once.

    What it is about is in the queue's table, also where it has just come, or set aside.
    """
    body = event.body
    assert isinstance(body, dead_letter_events_pb2.DeadLetterRedriven | dead_letter_events_pb2.DeadLetterDiscarded), (
        "the type of the event is an operator's verb"
    )
    if work.intake.knows(event):
        return
    if body.participant == CORRELATOR:
        _decide_set_aside(work, event, body)
        return
    if body.participant != work.participant.name:
        return
    work.intake.note(event, Disposition.APPLIED)
    entry = work.queue.at(work.connection, body.sequence)
    log = _log.bind(saga_id=event.key, event_id=event.id, sequence=body.sequence, actor=body.actor)
    if entry is None or entry.key != event.key or not entry.attempts:
        log.warning("no such dead letter", type=event.type)
    elif (entry.definition, entry.step) != (body.definition, body.step):
        # who decides about another step than the one that holds the saga up has something else in mind
        log.warning("the dead letter is of another step", type=event.type, definition=entry.definition, step=entry.step)
    elif isinstance(body, dead_letter_events_pb2.DeadLetterDiscarded):
        _discard(work, entry)
        log.info("dead letter discarded", reason=body.reason)
    elif entry.given_up:
        _redrive(work, entry)
        log.info("dead letter redriven", reason=body.reason)
    else:
        log.warning("not a dead letter any more", type=event.type)


def forget(work: Work, event: Event) -> None:
    """Takes an event out of the queue of which the correlator says that no one can read it, and sets it aside.

    Where the correlator's schemas were too old as well, an operator has its dead letter redriven later, and so this.
    What this participant can read stays; so does everything where it is not the correlator that says so.
    """
    body = event.body
    assert isinstance(body, correlator_events_pb2.EventUnreadable), "the type of the event says so"
    if event.source != CORRELATOR or work.intake.knows(event):
        return
    entry = work.queue.at(work.connection, body.sequence)
    if entry is None or event.key != partition_key(entry.message.partition or 0):
        return
    unreadable = work.decode(entry.message)
    if not isinstance(unreadable, Unreadable):
        return
    work.intake.note(event, Disposition.APPLIED)
    work.queue.remove(work.connection, [body.sequence])
    work.set_aside.add(work.connection, entry)
    work.changes.held[entry.key] = Wait(work.now)
    _log.info("no one can read an event", sequence=body.sequence, type=body.event_type, saga_id=entry.key)
    if entry.given_up:
        tell_superseded(entry, unreadable, event, work.intake.outgoing)


def _decide_set_aside(
    work: Work,
    event: Event,
    body: dead_letter_events_pb2.DeadLetterRedriven | dead_letter_events_pb2.DeadLetterDiscarded,
) -> None:
    """Does what an operator has decided about a dead letter of the correlator, where its event is set aside here.

    Redriven, it is in the queue again, at its place in that of its saga, whose key may be known only now.
    """
    entry = work.set_aside.at(work.connection, body.sequence)
    if entry is None or (entry.message.partition or 0) != event.partition or body.definition or body.step:
        return  # most participants have nothing to do with it
    work.intake.note(event, Disposition.APPLIED)
    work.set_aside.remove(work.connection, body.sequence)
    log = _log.bind(sequence=body.sequence, type=entry.message.type, event_id=event.id, actor=body.actor)
    if isinstance(body, dead_letter_events_pb2.DeadLetterDiscarded):
        log.info("event that was set aside discarded", reason=body.reason)
        return
    entry = replace(entry, key=key_of(work.decode(entry.message)), due=work.now)
    work.queue.add(work.connection, [entry])
    work.changes.held[entry.key] = Wait(work.now)
    log.info("event that was set aside is read again", saga_id=entry.key, reason=body.reason)


def _redrive(work: Work, entry: QueueEntry) -> None:
    redriven = replace(
        entry,
        state=QueueState.RETRYING,
        due=work.now,
        pause=timedelta(0),
        attempts_before=entry.attempts,
    )
    work.queue.update(work.connection, redriven)
    work.changes.held[entry.key] = Wait(work.now)


def _discard(work: Work, entry: QueueEntry) -> None:
    work.queue.remove(work.connection, [entry.message.sequence])
    event = work.decode(entry.message)
    if isinstance(event, Event):
        work.intake.add(event)
        if not work.intake.knows(event):
            work.intake.note(event, Disposition.UNMATCHED)
    work.changes.held[entry.key] = Wait(work.now)
