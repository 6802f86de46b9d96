"""Pruning: what is over goes from the stream, once a snapshot stands for it that was proven to.

In this order, so that a crash at any point leaves either the whole stream, or a mark and a snapshot that are whole:
the live records are compared with a replay; they are stored as a snapshot; the snapshot is read back, the rest of the
stream folded on it, and that compared with the live records again; the mark is written; the events go.
What tells which definitions were active stays for ever: it is little, and everyone who folds a partition needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from farandole.broker.connection import Broker
from farandole.broker.pruned import Pruned, mark_pruned, pruned_of, purge
from farandole.broker.pruning_turn import pruning_turn
from farandole.broker.streams import StreamState, events_state
from farandole.correlator.definitions import ACTIVATED, RETIRED
from farandole.correlator.snapshots import (
    Snapshot,
    check_snapshot,
    remove_other_snapshots,
    restore_snapshot,
    store_snapshot,
)
from farandole.correlator.store import CorrelatorStore
from farandole.errors import PreconditionError, SnapshotError
from farandole.lifecycle import CORRELATOR
from farandole.registry import Registry
from farandole.replay.comparison import Comparison
from farandole.replay.folding import Report, ToldDefinitions, empty_store, fold_stream
from farandole.replay.holds import Holds
from farandole.replay.replaying import LiveView, compare_with, live_view, verify

KEPT_TYPES = frozenset({ACTIVATED, RETIRED})


@dataclass(frozen=True, slots=True)
class PrunedStream:
    """What pruning did."""

    until: int
    snapshot: Snapshot
    removed: int
    """Events."""


class Pruning:
    """Prunes one stream beside the correlator that folds it. Raises what the broker and the stores do."""

    def __init__(self, broker: Broker, store: CorrelatorStore, registry: Registry, *, report: Report) -> None:
        self._broker = broker
        self._store = store
        self._registry = registry
        self._report = report

    async def prune(self, live: LiveView, holds: Holds, until: int, *, reasons: Mapping[str, str]) -> PrunedStream:
        """Removes everything up to a sequence, which nothing of `holds` needs.

        `reasons` tells, by participant, why it was passed over. Raises `PreconditionError`, with nothing removed, where
        a participant did not answer, something holds back, the live records are not what the stream makes of them, or
        another run has changed the mark since the live view was taken.
        """
        refuse_silent(holds)
        if until > holds.until:
            tightest = holds.found[0]
            raise PreconditionError(f"{tightest.what} holds what stands behind {tightest.until}", reason="HELD")
        began = pruned_of(live.state)
        if began is not None and until <= began.until:
            raise PreconditionError(f"the stream was pruned up to {began.until} before", reason="PRUNED")
        try:
            snapshot = await self._store_proven(live, until)
        except (PreconditionError, SnapshotError):
            _refuse_overtaken(began, await events_state(self._broker))  # where that is why
            raise
        told, gone = (began.reasons, began.removed) if began else ({}, 0)
        readers = {name: min(position, until) for name, position in holds.readers.items()}
        # a verb that an operator gave behind `until` may have it read again an event from before that
        readers[CORRELATOR] = live.first_position
        mark = Pruned(until, snapshot.id, readers, {**told, **reasons}, gone)
        async with pruning_turn(self._broker):
            _refuse_overtaken(began, await events_state(self._broker))
            await mark_pruned(self._broker, mark)
        return PrunedStream(until, snapshot, await self._remove(mark))

    async def remove(self) -> int:
        """Removes what a run that was interrupted behind the mark has left; returns how many events.

        Raises `SnapshotError`, with nothing removed, where what stands for them is not there any more.
        """
        pruned = pruned_of(await events_state(self._broker))
        if pruned is None or pruned.removed >= pruned.until:
            return 0
        await check_snapshot(self._broker, pruned.snapshot)
        return await self._remove(pruned)

    async def _remove(self, pruned: Pruned) -> int:
        removed = await purge(self._broker, pruned, keep=KEPT_TYPES, report=self._report)
        async with pruning_turn(self._broker):
            latest = pruned_of(await events_state(self._broker))
            if latest is not None and latest.snapshot == pruned.snapshot:  # else it is for the next run to tidy up
                await mark_pruned(self._broker, replace(latest, removed=pruned.until))
                await remove_other_snapshots(self._broker, pruned.snapshot)
        return removed

    async def _store_proven(self, live: LiveView, until: int) -> Snapshot:
        """Stores the live records as a snapshot, where they and it are what the stream makes of them."""
        verified = await verify(self._broker, live, registry=self._registry, report=self._report)
        _refuse_different(verified.comparison, "the live records are not what the stream makes of them")
        snapshot = await store_snapshot(self._broker, live.contents, state=live.state, position=live.first_position)
        await self._prove(snapshot, needed=until)
        return snapshot

    async def _prove(self, snapshot: Snapshot, *, needed: int) -> None:
        """That whoever begins from the snapshot, as the stream has it, comes to the live records."""
        async with live_view(self._broker, self._store) as live, empty_store() as store:
            await restore_snapshot(self._broker, snapshot.id, store, state=live.state, needed=needed)
            await fold_stream(
                self._broker,
                store,
                ToldDefinitions(),
                registry=self._registry,
                state=live.state,
                extent=live.extent,
                report=self._report,
            )
            _refuse_different(
                await compare_with(live, store), f"the snapshot {snapshot.id} does not lead to the live records"
            )


def _refuse_overtaken(began: Pruned | None, state: StreamState) -> None:
    if pruned_of(state) != began:
        raise PreconditionError(
            "another `farandole prune` has marked the stream meanwhile; this one has removed nothing; run it again",
            reason="PRUNED_MEANWHILE",
        )


def refuse_silent(holds: Holds) -> None:
    """Raises `PreconditionError` where a participant did not tell its position."""
    if holds.silent:
        raise PreconditionError(
            f"{', '.join(holds.silent)} did not tell how far it has read: start it; or, where it is to be passed over, "
            f"`farandole prune --without {holds.silent[0]} --reason …`",
            reason="PARTICIPANT_SILENT",
            metadata={"participants": ",".join(holds.silent)},
        )


def _refuse_different(comparison: Comparison, what: str) -> None:
    """What was only read otherwise, with another descriptor set, is no reason: no record follows from it."""
    if comparison.differing_records:
        raise PreconditionError(
            f"{what}: {comparison.differing_records} differ, as {comparison.detailed[0].name}; nothing was removed; "
            "`farandole replay` shows them all",
            reason="RECORDS_DIFFER",
        )
