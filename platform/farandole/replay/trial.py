"""Trying other definitions on old history: which open sagas would stand differently, and how.

An open saga keeps the version under which it started, so a changed definition moves none of them. What is asked here is
another question: how would it stand, had the changed definition been the active one since before it started, with the
very same events? Its events are folded so, and nothing is published: what participants did, they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from farandole.advance import pending_lifecycle
from farandole.broker.connection import Broker
from farandole.broker.pruned import pruned_of
from farandole.correlator.contents import Item, PartitionPosition, reading
from farandole.correlator.queries import RecordedSaga, StoredDefinition
from farandole.correlator.store import CorrelatorStore
from farandole.deadlines import due_lifecycle
from farandole.definition import Definition
from farandole.registry import Registry
from farandole.replay.comparison import Difference, record_differences, standing
from farandole.replay.folding import Folded, Report, TriedDefinitions, empty_store, fold_stream
from farandole.replay.replaying import LiveView
from farandole.saga import Saga

_KEYS_AT_ONCE = 500
_FOLLOWS_FROM_OTHERS = frozenset({"version", "update_time"})
"""What differs only since something else does: nobody decides by it."""


@dataclass(frozen=True, slots=True)
class TriedSaga:
    """An open saga that would stand differently."""

    definition: str
    key: str
    live: Saga | None
    """As it stands; None where it would be there and is not."""
    tried: Saga | None
    """As it would stand; None where it would not be there."""
    differences: tuple[Difference, ...]
    told: tuple[str, ...] = ()
    """What the correlator would publish of it at once, by the stream's time: full event types."""


@dataclass(slots=True)
class Trial:
    """What came of trying definitions."""

    changed: Sequence[Definition]
    """Those that are not as the stream has them last."""
    folded: Folded | None = None
    """None where nothing is changed, and nothing was folded."""
    open_sagas: int = 0
    """Of the changed definitions."""
    differing: list[TriedSaga] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    """Open sagas of which the first events were pruned: they had ended, and were opened again."""


async def try_definitions(
    broker: Broker,
    live: LiveView,
    definitions: Sequence[Definition],
    *,
    registry: Registry,
    report: Report,
) -> Trial:
    """Folds the stream as far as a live view with other definitions in place of those of their names.

    Those that are active now as they are change nothing. Raises what the stores and the broker do.
    """
    stored = [
        item for item in takewhile(_is_before_sagas, reading(live.contents)) if isinstance(item, StoredDefinition)
    ]
    active = {definition.name: definition.digest for definition in stored if definition.is_active}
    newest = {definition.name: definition for definition in sorted(definitions, key=lambda one: one.version)}
    changed = [one for name, one in sorted(newest.items()) if active.get(name) != one.digest]
    trial = Trial(changed)
    if not changed:
        return trial
    async with empty_store() as store:
        tried = TriedDefinitions(changed)
        trial.folded = await fold_stream(
            broker, store, tried, registry=registry, state=live.state, extent=live.extent, report=report
        )
        pruned = pruned_of(live.state)
        judged = _Judged(trial, tried, store, pruned.until if pruned else 0)
        await judged.open_sagas(live)
        await judged.new_sagas(live)
    return trial


class _Judged:
    """Compares how open sagas stand with how they would."""

    def __init__(self, trial: Trial, tried: TriedDefinitions, store: CorrelatorStore, pruned_until: int) -> None:
        self._trial = trial
        self._tried = tried
        self._store = store
        self._pruned_until = pruned_until
        self._names = {definition.name for definition in trial.changed}

    async def open_sagas(self, live: LiveView) -> None:
        """Those that are open now."""
        some: list[Saga] = []
        for item in reading(live.contents):
            if isinstance(item, RecordedSaga) and item.saga.definition in self._names and is_open(item.saga):
                some.append(item.saga)
                if len(some) == _KEYS_AT_ONCE:
                    await self._judge(some)
                    some = []
        await self._judge(some)

    async def _judge(self, sagas: Sequence[Saga]) -> None:
        found = await self._store.load({saga.key for saga in sagas})
        for saga in sagas:
            self._trial.open_sagas += 1
            if saga.history[0].fact.sequence <= self._pruned_until:
                self._trial.untried.append(f"{saga.definition} {saga.key}")
                continue
            self._compare(saga, next((one for one in found[saga.key] if one.definition == saga.definition), None))

    def _compare(self, live: Saga, tried: Saga | None) -> None:
        if tried is None or not tried.is_started:
            difference = Difference("saga", standing(live), "would not have started")
            self._trial.differing.append(TriedSaga(live.definition, live.key, live, None, (difference,)))
            return
        found = [one for one in record_differences(live, tried) if one.what not in _FOLLOWS_FROM_OTHERS]
        if found:
            told = self._told(tried)
            self._trial.differing.append(TriedSaga(live.definition, live.key, live, tried, tuple(found), told))

    async def new_sagas(self, live: LiveView) -> None:
        """Those that would be open and are not: they have ended, or were never there."""
        would_be: dict[tuple[str, str], Saga] = {}

        def take(item: object) -> None:
            if isinstance(item, RecordedSaga) and item.saga.definition in self._names and is_open(item.saga):
                would_be[item.saga.key, item.saga.definition] = item.saga

        await self._store.export(take)
        for item in reading(live.contents):
            if isinstance(item, RecordedSaga):
                now = would_be.pop((item.saga.key, item.saga.definition), None)
                if now is not None and item.saga.is_started and not is_open(item.saga):
                    self._would_be_open(item.saga, now)
        for saga in would_be.values():
            self._would_be_open(None, saga)

    def _would_be_open(self, live: Saga | None, tried: Saga) -> None:
        if any(one is not None and one.history[0].fact.sequence <= self._pruned_until for one in (live, tried)):
            return
        now = "is not there" if live is None else standing(live)
        difference = Difference("saga", now, standing(tried))
        told = self._told(tried)
        self._trial.differing.append(TriedSaga(tried.definition, tried.key, live, tried, (difference,), told))

    def _told(self, tried: Saga) -> tuple[str, ...]:
        definition = self._tried.of(tried)
        pending = list(pending_lifecycle(definition, tried))
        if (folded := self._trial.folded) is not None and folded.last_time is not None:
            pending += due_lifecycle(definition, tried, folded.last_time)
        return tuple(dict.fromkeys(one.type for one in pending))


def _is_before_sagas(item: Item) -> bool:
    return isinstance(item, PartitionPosition | StoredDefinition)


def is_open(saga: Saga) -> bool:
    """Whether a saga has started and not ended."""
    return saga.is_started and not saga.status.is_terminal
