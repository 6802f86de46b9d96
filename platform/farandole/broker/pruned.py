"""What was pruned from `EVENTS`: told by the stream's own metadata, so that whoever reads it can't overlook it.

The mark is written before anything is removed. It names the snapshot that stands for what is gone, and how far each
participant had read: one that is not that far any more has lost its database, and must not begin with what is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace

from farandole.broker.connection import Broker
from farandole.broker.streams import EVENTS, StreamState, events_state
from farandole.errors import StreamDriftError, StreamPrunedError
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
    """By participant, and for the correlator: the position that its database has to have at least, since it had taken
    in then all that is gone."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By participant: why an operator had it passed over, or forgotten."""
    removed: int = 0
    """Up to here everything that was to go has gone: less than `until` while a run is under way, or was interrupted."""

    def text(self) -> str:
        """As it stands in the metadata."""
        return json.dumps(asdict(self))

    def needed_by(self, durable: str) -> int:
        """The position that the reader of a durable consumer has to have at least; 0 where it has read nothing of what
        is gone. A lane's consumer, as `payments-3`, counts as its participant's."""
        return self.readers.get(durable, self.readers.get(_LANE.sub("", durable), 0))


def pruned_of(state: StreamState) -> Pruned | None:
    """What was pruned from a stream; None for nothing. Raises `StreamDriftError` where its mark can't be read."""
    text = (state.config.get("metadata") or {}).get(PRUNED_METADATA)
    if text is None:
        return None
    try:
        told = json.loads(text)
        readers = {str(name): int(position) for name, position in told["readers"].items()}
        reasons = {str(name): str(reason) for name, reason in told["reasons"].items()}
        return Pruned(int(told["until"]), str(told["snapshot"]), readers, reasons, int(told.get("removed", 0)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StreamDriftError(
            f"the metadata {PRUNED_METADATA} of the stream {EVENTS} can't be read: {text!r}; restore the stream from "
            "its backup"
        ) from None


def check_not_pruned(state: StreamState, durable: str, position: int) -> None:
    """Raises `StreamPrunedError` where events are gone that the reader of a durable consumer had taken in, and that its
    database does not know any more."""
    pruned = pruned_of(state)
    if pruned is None or position >= pruned.needed_by(durable):
        return
    name = _LANE.sub("", durable)
    remedy = f"`farandole prune --forget {name} --reason …` lets it begin anew"
    if name == CORRELATOR:
        remedy = "it begins from the snapshot with an empty one"
    raise StreamPrunedError(
        f"{durable} had read up to {pruned.needed_by(durable)} when the stream {EVENTS} was pruned up to "
        f"{pruned.until}, and its database has read up to {position}: restore the database from a later backup; or, "
        f"where what it knew is expendable, {remedy}"
    )


async def mark_pruned(broker: Broker, pruned: Pruned) -> None:
    """Writes what is pruned into the stream's metadata. Raises what `Broker.request` does."""
    config = (await events_state(broker)).config
    metadata = {**(config.get("metadata") or {}), PRUNED_METADATA: pruned.text()}
    await broker.request(f"$JS.API.STREAM.UPDATE.{EVENTS}", {**config, "metadata": metadata})


async def forget_reader(broker: Broker, participant: str, reason: str) -> bool:
    """Lets a participant begin anew on what is left of a pruned stream; returns whether it was known."""
    pruned = pruned_of(await events_state(broker))
    if pruned is None or participant not in pruned.readers:
        return False
    readers = {name: position for name, position in pruned.readers.items() if name != participant}
    await mark_pruned(broker, replace(pruned, readers=readers, reasons={**pruned.reasons, participant: reason}))
    return True


async def purge(
    broker: Broker,
    *,
    keep: Collection[str],
    report: Callable[[int, int], None] = lambda _done, _all: None,
) -> int:
    """Removes what `EVENTS` is marked as pruned of, but for the event types to keep; returns how many events went.

    Where a run was interrupted it does that again, and where none was there is nothing to do. Raises what
    `Broker.request` does.
    """
    pruned = pruned_of(await events_state(broker))
    if pruned is None or pruned.removed >= pruned.until:
        return 0
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
    latest = pruned_of(await events_state(broker)) or pruned  # a participant may have been forgotten meanwhile
    await mark_pruned(broker, replace(latest, removed=pruned.until))
    return removed
