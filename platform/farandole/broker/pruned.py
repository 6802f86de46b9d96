"""What was pruned from `EVENTS`: told by the stream's own metadata, so that whoever reads it can't overlook it.

The mark is written before anything is removed. It names the snapshot that stands for what is gone, and how far each
participant had read of that: one that is not that far any more has lost its database, and must not begin with what is
left. One that it does not name is new, or nobody asked it: that is told by whether it has read anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace

from farandole.broker.connection import Broker
from farandole.broker.pruning_turn import pruning_turn
from farandole.broker.streams import EVENTS, StreamState, events_state
from farandole.errors import PreconditionError, StreamDriftError, StreamPrunedError
from farandole.lifecycle import CORRELATOR

PRUNED_METADATA = "farandole.pruned"
_PURGED_AT_ONCE = 20_000
"""So many sequences: each answer comes well before the broker would seem not to answer."""
_LANE = re.compile(r"-(\d|1[0-5])\Z")


@dataclass(frozen=True, slots=True)
class Pruned:
    """Up to where a stream was pruned, and what that rests on."""

    until: int
    """Nothing is left up to this sequence but what definitions were active."""
    snapshot: str
    """The id of the snapshot in the stream `SNAPSHOTS`, which has every record as of `until` or later."""
    readers: Mapping[str, int] = field(default_factory=dict)
    """By participant that was asked, and for the correlator: the position that its database has to have at least. What
    a participant would read behind `until` is there; the correlator also reads again what stands before."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By participant: why an operator had it passed over, or forgotten."""
    removed: int = 0
    """Up to here everything that was to go has gone: less than `until` while a run is under way, or was interrupted."""
    forgotten: Collection[str] = ()
    """Participants that may go on from wherever they are, though they miss what is gone."""

    def text(self) -> str:
        """As it stands in the metadata."""
        return json.dumps(asdict(self))

    def reader(self, durable: str) -> str:
        """Whose a durable consumer is. A lane's, as `payments-3`, is its participant's."""
        is_named = durable in self.readers or durable in self.forgotten
        return durable if is_named else _LANE.sub("", durable)

    def needed_by(self, reader: str, position: int) -> int:
        """The position that a participant, or the correlator, has to have at least where its database has `position`.

        Who was not asked and has read something had not read all that is gone, unless it is further.
        """
        if reader in self.forgotten:
            return 0
        return self.readers.get(reader, self.until if position else 0)


def pruned_of(state: StreamState) -> Pruned | None:
    """What was pruned from a stream; None for nothing. Raises `StreamDriftError` where its mark can't be read."""
    text = (state.config.get("metadata") or {}).get(PRUNED_METADATA)
    if text is None:
        return None
    try:
        told = json.loads(text)
        readers = {str(name): int(position) for name, position in told["readers"].items()}
        reasons = {str(name): str(reason) for name, reason in told["reasons"].items()}
        forgotten = tuple(str(name) for name in told.get("forgotten", ()))
        return Pruned(
            int(told["until"]), str(told["snapshot"]), readers, reasons, int(told.get("removed", 0)), forgotten
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StreamDriftError(
            f"the metadata {PRUNED_METADATA} of the stream {EVENTS} can't be read: {text!r}; restore the stream from "
            "its backup"
        ) from None


def check_not_pruned(state: StreamState, durable: str, position: int) -> None:
    """Raises `StreamPrunedError` where events are gone that the reader of a durable consumer would miss: it had taken
    them in, and its database does not know of it any more, or it has yet to. `position` is that of its partition that
    has read least.
    """
    pruned = pruned_of(state)
    if pruned is None:
        return
    name = pruned.reader(durable)
    needed = pruned.needed_by(name, position)
    if position >= needed:
        return
    remedy = f"where what it knew is expendable, `farandole prune --forget {name} --reason …` lets it begin anew"
    if name == CORRELATOR:
        remedy = "with an empty one it begins from the snapshot"
    raise StreamPrunedError(
        f"{durable} needs to have read up to {needed}, since the stream {EVENTS} was pruned up to {pruned.until}, and "
        f"its database has read up to {position}: restore the database from a later backup; or, {remedy}"
    )


async def check_pruned_no_further(broker: Broker, since: StreamState) -> None:
    """Raises `PreconditionError` where the stream was pruned further since that state: whoever has read it meanwhile
    has perhaps not read all that stood there then."""
    before, now = pruned_of(since), pruned_of(await events_state(broker))
    if now is not None and (before is None or before.until != now.until):
        raise PreconditionError(
            f"the stream was pruned up to {now.until} meanwhile; run it again", reason="PRUNED_MEANWHILE"
        )


async def mark_pruned(broker: Broker, pruned: Pruned) -> None:
    """Writes what is pruned into the stream's metadata. Only whose turn it is may do so, and has to have read the mark
    within that turn, see `pruning_turn`. Raises what `Broker.request` does."""
    config = (await events_state(broker)).config
    metadata = {**(config.get("metadata") or {}), PRUNED_METADATA: pruned.text()}
    await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**config, "metadata": metadata})


async def forget_reader(broker: Broker, participant: str, reason: str) -> bool:
    """Lets a participant begin anew, or go on, with what is left of a pruned stream; it is not asked any more. Returns
    False where nothing was pruned, and for the correlator, which goes on from the snapshot only."""
    async with pruning_turn(broker):
        pruned = pruned_of(await events_state(broker))
        if pruned is None or participant == CORRELATOR:
            return False
        readers = {name: position for name, position in pruned.readers.items() if name != participant}
        forgotten = sorted({*pruned.forgotten, participant})
        reasons = {**pruned.reasons, participant: reason}
        await mark_pruned(broker, replace(pruned, readers=readers, reasons=reasons, forgotten=forgotten))
    return True


async def purge(
    broker: Broker,
    pruned: Pruned,
    *,
    keep: Collection[str],
    report: Callable[[int, int], None] = lambda _done, _all: None,
) -> int:
    """Removes what `EVENTS` is marked as pruned of, but for the event types to keep; returns how many events went.

    What had gone before, as far as the mark tells, is not asked for again. Raises what `Broker.request` does.
    """
    info = await broker.request(f"$JS.API.STREAM.INFO.{EVENTS}", {"subjects_filter": "events.>"})
    subjects = [one for one in info["state"].get("subjects") or {} if one.split(".", 2)[2] not in keep]
    first = max(info["state"]["first_seq"], pruned.removed + 1)  # what is kept stands first, for ever
    removed = 0
    while first <= pruned.until:
        first = min(first + _PURGED_AT_ONCE, pruned.until + 1)
        for subject in subjects:
            answer = await broker.request(f"$JS.API.STREAM.PURGE.{EVENTS}", {"filter": subject, "seq": first})
            removed += answer["purged"]
        report(first, pruned.until)
    return removed
