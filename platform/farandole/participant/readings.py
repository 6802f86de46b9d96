"""What a participant finds out about its own queue and circuits, for gauges, and what it knows of its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from farandole.database import Database
from farandole.participant.circuits import Circuit
from farandole.participant.participant import Participant
from farandole.participant.queue_table import QueueState, QueueTable
from farandole.telemetry import catalogue
from farandole.telemetry.foreseen import Foreseen
from farandole.telemetry.readings import Reading, Source

_MOST_DEPENDENCIES = 50
_OTHERS = "other"


def foreseen_of(participant: Participant) -> Foreseen:
    """What a participant's labels will hold."""
    return Foreseen(
        event_types=participant.registry.types,
        states=[state.name for state in QueueState],
        parts={
            reaction.place
            for reactions in participant.reactions.values()
            for reaction in reactions
            if reaction.handler is not None
        },
    )


def of_queue(database: Database, queue: QueueTable) -> Source:
    """Reads how many events are in the queue, by why they are."""

    async def read() -> Sequence[Reading]:
        counts = await database.read(queue.counts_by_state)
        return [Reading(catalogue.QUEUED_EVENTS, (state.name,), counts.get(state, 0)) for state in QueueState]

    return read


def of_circuits(circuits: Callable[[], Mapping[Circuit, int]]) -> Source:
    """Reads what is found to be down and how many sagas wait for it, as `ParticipantBatchHandler.circuits` tells.

    What was down once is shown as up from then on. Names are what handlers say, so beyond the first fifty they are
    counted as `other`.
    """
    known: dict[str, None] = {}

    async def read() -> Sequence[Reading]:
        waiting: dict[str, int] = {}
        for circuit, sagas in circuits().items():
            if circuit.dependency not in known and len(known) < _MOST_DEPENDENCIES:
                known[circuit.dependency] = None
            name = circuit.dependency if circuit.dependency in known else _OTHERS
            waiting[name] = waiting.get(name, 0) + sagas
        names = dict.fromkeys((*known, *waiting))
        return [
            reading
            for name in names
            for reading in (
                Reading(catalogue.CIRCUIT_OPEN, (name,), float(name in waiting)),
                Reading(catalogue.CIRCUIT_SAGAS, (name,), waiting.get(name, 0)),
            )
        ]

    return read
