"""Which records an event changes: those under its key, by the definitions that they keep or start under. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from farandole.advance import advance
from farandole.correlator.definitions import Definitions
from farandole.definition import Definition
from farandole.envelope import Event
from farandole.lifecycle import is_about_every_saga
from farandole.saga import Saga

Records = Mapping[str, Saga]
"""The sagas under one key, by definition."""


def fold(definitions: Definitions, records: Records, event: Event) -> dict[str, Saga]:
    """The records under the event's key that the event changes.

    An event goes to the sagas whose definitions mention it, a lifecycle event to the one that it names, or, where it is
    about what no one could read, to all that there are. One that no definition mentions is recorded, unmatched, by
    every saga under the key. A record keeps the version under which it started; one that has not started goes over to
    the version that is active at the event.
    """
    fact = event.fact
    starting = definitions.starting(event.partition, event.sequence)
    if fact.lifecycle is not None and is_about_every_saga(fact.lifecycle):
        now = {name: _as_of_now(definitions, starting.active.get(name), record) for name, record in records.items()}
        return {name: advance(definition, saga, fact, key=event.key) for name, (definition, saga) in now.items()}
    if fact.lifecycle is not None:
        name = fact.lifecycle.definition
        if name in records:
            definition, saga = _as_of_now(definitions, starting.active.get(name), records[name])
            return {name: advance(definition, saga, fact, key=event.key)}
        active = starting.active.get(name)
        return {} if active is None else {name: advance(active, None, fact, key=event.key)}
    going_on: list[tuple[Definition, Saga]] = []
    for name, record in records.items():
        active = starting.active.get(name)
        definition, saga = _as_of_now(definitions, active, record)
        if saga.is_started or active is not None or fact.type != definition.initiating_event:
            going_on.append((definition, saga))  # else the definition was retired: nothing starts under it any more
    changed = {
        definition.name: advance(definition, saga, fact, key=event.key)
        for definition, saga in going_on
        if fact.type in definition.event_types
    }
    for definition in starting.that_mention(fact.type):
        if definition.name not in records:
            changed[definition.name] = advance(definition, None, fact, key=event.key)
    return changed or {definition.name: advance(definition, saga, fact, key=event.key) for definition, saga in going_on}


def _as_of_now(definitions: Definitions, active: Definition | None, record: Saga) -> tuple[Definition, Saga]:
    """The definition under which a record goes on, and the record under it."""
    kept = definitions.of(record)
    if record.is_started or active is None or active.digest == kept.digest:
        return kept, record
    saga: Saga | None = None
    for entry in record.history:
        saga = advance(active, saga, entry.fact, key=record.key)
    assert saga is not None, "a record has at least one event"
    omitted = record.history_omitted
    return active, replace(saga, revision=saga.revision + omitted, history_omitted=saga.history_omitted + omitted)
