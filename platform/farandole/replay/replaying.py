"""Replaying: the stream folded anew beside the live records, which go on meanwhile, and what came of it.

The live store is read once, in one consistent view, into a file; each partition is then folded as far as that view
has it. Where the stream was pruned, the fold begins from its snapshot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from farandole.broker.connection import Broker
from farandole.broker.pruned import check_pruned_no_further
from farandole.broker.streams import StreamState, check_position, events_state
from farandole.correlator.contents import PartitionPosition, reading, writing
from farandole.correlator.snapshots import begin_from_snapshot
from farandole.correlator.store import CorrelatorStore
from farandole.errors import InvalidArgumentError, PreconditionError
from farandole.partitions import PARTITIONS
from farandole.registry import Registry
from farandole.replay.comparison import Comparison, Unchanged, compare, compare_unchanged
from farandole.replay.folding import Extent, Folded, Report, ToldDefinitions, empty_store, fold_stream


@dataclass(frozen=True, slots=True)
class LiveView:
    """What the live store held at one moment."""

    contents: Path
    """All of it, see `farandole.correlator.contents`."""
    extent: Extent
    """How far each partition was folded."""
    state: StreamState
    """Of the stream, a moment later: it reaches at least as far."""

    @property
    def first_position(self) -> int:
        """What stands in the stream up to here has been folded in every partition."""
        return min(self.extent.until.values())


@dataclass(frozen=True, slots=True)
class Verified:
    """The stream folded anew, against the live records as of the same place."""

    folded: Folded
    comparison: Comparison


@asynccontextmanager
async def live_view(broker: Broker, store: CorrelatorStore) -> AsyncIterator[LiveView]:
    """What the live store holds now, in a file that goes after. Raises `PreconditionError` where it has folded nothing,
    and `StreamIncarnationError` where it belongs to another stream."""
    with TemporaryDirectory(prefix="farandole-live-") as directory:
        yield await _take_view(broker, store, Path(directory) / "live")


async def _take_view(broker: Broker, store: CorrelatorStore, path: Path) -> LiveView:
    with writing(path) as take:
        await store.export(take)
    state = await events_state(broker)
    until = dict.fromkeys(range(PARTITIONS), 0)
    for item in reading(path):
        if not isinstance(item, PartitionPosition):
            break
        check_position(state, incarnation=item.incarnation, position=item.position)
        until[item.partition] = item.position
    if not any(until.values()):
        raise PreconditionError(
            "the live store has not folded anything yet: start the correlator, or name its database by --database",
            reason="NOTHING_FOLDED",
        )
    return LiveView(path, Extent(until), state)


async def verify(broker: Broker, live: LiveView, *, registry: Registry, report: Report) -> Verified:
    """Folds the stream as far as a live view, and compares. Raises what the stores and the broker do."""
    async with replayed(broker, live.extent, registry=registry, state=live.state, report=report) as (store, folded):
        return Verified(folded, await compare_with(live, store))


async def compare_with(live: LiveView, store: CorrelatorStore) -> Comparison:
    """Compares a live view with what another store holds."""
    async with _exported(store) as path:
        return compare(reading(live.contents), reading(path))


async def compare_unchanged_with(live: LiveView, store: CorrelatorStore, extent: Extent) -> Unchanged:
    """Compares a live view with a store into which the stream was folded to an earlier place, in what has not changed
    in between. A live view that is behind that place is compared as far as it is."""
    async with _exported(store) as path:
        return compare_unchanged(
            reading(live.contents),
            reading(path),
            is_of_both=lambda saga: extent.has_all_of(saga) and live.extent.has_all_of(saga),
        )


@asynccontextmanager
async def _exported(store: CorrelatorStore) -> AsyncIterator[Path]:
    """All that a store holds, in a file that goes after."""
    with TemporaryDirectory(prefix="farandole-replayed-") as directory:
        path = Path(directory) / "replayed"
        with writing(path) as take:
            await store.export(take)
        yield path


@asynccontextmanager
async def replayed(
    broker: Broker, extent: Extent, *, registry: Registry, state: StreamState, report: Report
) -> AsyncIterator[tuple[CorrelatorStore, Folded]]:
    """A store of its own into which the stream was folded so far, and what was folded; it goes after.

    Raises `PreconditionError` where the stream was pruned, and its snapshot reaches further already; also where it has
    been pruned further since `state`.
    """
    async with empty_store() as store:
        await begin_from_snapshot(broker, store)
        await check_pruned_no_further(broker, state)  # what it began from may reach further than what is asked for
        _refuse_pruned(await store.positions(), extent)
        folded = await fold_stream(
            broker, store, ToldDefinitions(), registry=registry, state=state, extent=extent, report=report
        )
        await check_pruned_no_further(broker, state)  # what was to be folded may have gone before it was
        yield store, folded


def _refuse_pruned(begun: Mapping[int, int], extent: Extent) -> None:
    """A live view that is behind a snapshot is an old one too: its store would not be allowed to go on."""
    if any(position > extent.until[partition] for partition, position in begun.items()):
        raise PreconditionError(
            f"the stream was pruned, and replay starts from its snapshot as of {max(begun.values())}: how sagas stood "
            "before can't be told any more; ask for a later place",
            reason="PRUNED",
        )


def extent_of(state: StreamState, *, sequence: int | None, time: datetime | None) -> Extent:
    """How far to fold for who asks how sagas stood then. Raises `InvalidArgumentError` where that is not to be had."""
    if sequence is not None and sequence > state.last_sequence:
        raise InvalidArgumentError("--until-sequence", f"is {sequence}, and the stream ends at {state.last_sequence}")
    return Extent.of(state.last_sequence if sequence is None else sequence, time)
