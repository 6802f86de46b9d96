"""What the correlator finds out about all sagas, for gauges, and what it knows of its labels. Every replica of it shows
the same: their store is one.
"""

from __future__ import annotations

from collections.abc import Sequence

from farandole.correlator.filters import DEAD_LETTER_FIELDS, SAGA_FIELDS, parse_filter
from farandole.correlator.queries import CorrelatorQueries, DeadLetterField, DeadLetterGroupQuery
from farandole.definition import Definition
from farandole.envelope import Reason
from farandole.registry import Registry
from farandole.saga import Status
from farandole.telemetry import catalogue
from farandole.telemetry.foreseen import Foreseen
from farandole.telemetry.readings import Reading, Source

_MOST_GROUPS = 1000
"""Of dead letters: more participants and reasons than a team has."""
_OPEN_SAGAS = parse_filter(" OR ".join(f"status = {one.name}" for one in Status if not one.is_terminal), SAGA_FIELDS)
_OPEN_DEAD_LETTERS = parse_filter("state = OPEN", DEAD_LETTER_FIELDS)


def foreseen_of(registry: Registry, definitions: Sequence[Definition]) -> Foreseen:
    """What the correlator's labels will hold."""
    return Foreseen(
        event_types=registry.types,
        states=(catalogue.GIVEN_UP,),
        definitions={definition.name for definition in definitions},
    )


def of_sagas(queries: CorrelatorQueries) -> Source:
    """Reads how many sagas are open, by definition, status and health."""

    async def read() -> Sequence[Reading]:
        counts = await queries.summarize(_OPEN_SAGAS)
        return [Reading(catalogue.OPEN_SAGAS, (c.definition, c.status.name, c.health.name), c.count) for c in counts]

    return read


def of_dead_letters(queries: CorrelatorQueries) -> Source:
    """Reads how many dead letters are open, by participant and reason."""
    query = DeadLetterGroupQuery(
        group_by=(DeadLetterField.PARTICIPANT, DeadLetterField.REASON), filter=_OPEN_DEAD_LETTERS, limit=_MOST_GROUPS
    )

    async def read() -> Sequence[Reading]:
        page = await queries.group_dead_letters(query)
        readings = []
        for group in page.groups:
            reason = group.values["reason"]
            assert isinstance(reason, Reason), "what groups are made by is of the field's own kind"
            labels = (str(group.values["participant"]), reason.name)
            readings.append(Reading(catalogue.DEAD_LETTERS_OPEN, labels, group.open))
        return readings

    return read
