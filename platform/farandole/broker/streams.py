"""The streams that Farandole needs: what they must look like, making them, and telling drift.

Every setting on which something rests is given, since clients' defaults differ. Provisioning is idempotent and never
deletes data.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from farandole.broker.connection import Broker
from farandole.broker.drift import PARTITIONS_METADATA, drift_of
from farandole.errors import BrokerError, StreamDriftError, StreamIncarnationError, StreamMissingError
from farandole.partitions import PARTITIONS

EVENTS = "EVENTS"
DEADLETTERS = "DEADLETTERS"
SNAPSHOTS = "SNAPSHOTS"
INCARNATION_METADATA = "farandole.made"
"""When the stream was provisioned, and by chance which time of several. A restored backup has it too."""

_STREAM_NOT_FOUND = 10059
_NO_MESSAGE_FOUND = 10037
_STREAM_NAME_IN_USE = 10058
_SECOND = 1_000_000_000
_DUPLICATE_WINDOW_NANOSECONDS = 120 * _SECOND


def _stream(name: str, **settings: object) -> dict[str, Any]:
    return {
        "name": name,
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "max_bytes": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "duplicate_window": _DUPLICATE_WINDOW_NANOSECONDS,
        "allow_direct": True,
        "deny_delete": False,
        "deny_purge": False,
        # what lets a publisher, the broker or another stream erase, refuse, or add to what is stored
        "no_ack": False,
        "sealed": False,
        "discard_new_per_subject": False,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "subject_delete_marker_ttl": 0,
        "allow_msg_counter": False,
        "persist_mode": "default",
        "mirror": None,
        "sources": None,
        "num_replicas": 1,
        **settings,
    }


STREAMS: Mapping[str, Mapping[str, Any]] = {
    EVENTS: _stream(
        EVENTS,
        description="Farandole: every event of every saga, by partition of its correlation key",
        subjects=["events.*.>"],
        subject_transform={"src": "events.*.>", "dest": f"events.{{{{partition({PARTITIONS},1)}}}}.>"},
        metadata={PARTITIONS_METADATA: str(PARTITIONS)},
    ),
    DEADLETTERS: _stream(
        DEADLETTERS,
        description="Farandole: deliveries that were given up on, by participant and event type",
        subjects=["deadletters.>"],
        metadata={},
    ),
}
"""The streams, as the JetStream API has them."""

SNAPSHOTS_STREAM: Mapping[str, Any] = _stream(
    SNAPSHOTS,
    description="Farandole: the correlator's records as of what was pruned from EVENTS",
    subjects=["snapshots.>"],
    metadata={},
)
"""Made by the first `farandole prune`: who never prunes needs none."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream is and how far it reaches."""

    incarnation: str
    """When the stream was made; another value means another stream, into which stored positions do not point.

    What `nats stream restore` makes of a backup is the same stream, though the broker says that it was made just now.
    """
    last_sequence: int
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Provisioned:
    """What provisioning found or did for one stream."""

    stream: str
    outcome: Literal["created", "unchanged"]


async def stream_state(broker: Broker, name: str) -> StreamState:
    """The state of a stream. Raises `StreamMissingError` with the remedy, or `BrokerUnavailableError`."""
    try:
        info = await broker.request(f"$JS.API.STREAM.INFO.{name}")
    except BrokerError as error:
        if error.code == _STREAM_NOT_FOUND:
            raise StreamMissingError(
                f"the stream {name} does not exist; `farandole provision` makes it; "
                "after a loss restore it from its backup",
                code=error.code,
            ) from None
        raise
    made = (info["config"].get("metadata") or {}).get(INCARNATION_METADATA)
    return StreamState(made or info["created"], info["state"]["last_seq"], info["config"])


async def events_state(broker: Broker) -> StreamState:
    """The state of `EVENTS`. Raises `StreamDriftError` too, where it has another number of partitions."""
    state = await stream_state(broker, EVENTS)
    _refuse_unfit(STREAMS[EVENTS], state)
    return state


def _refuse_unfit(wanted: Mapping[str, Any], state: StreamState) -> None:
    """Raises `StreamDriftError` where services can't work with a stream."""
    needed = [str(drift) for drift in drift_of(wanted, state.config) if drift.is_needed]
    if needed:
        raise StreamDriftError(f"the stream {wanted['name']} is not as Farandole needs it: {'; '.join(needed)}")


async def last_stored(broker: Broker, subjects: Iterable[str]) -> int:
    """The sequence of the last event that `EVENTS` holds on subjects, which may have wildcards; 0 where it holds none.

    It may be lower than where the stream ends: operators can delete events, and pruning does.
    """
    return max(await asyncio.gather(*(_last_stored_on(broker, subject) for subject in subjects)), default=0)


async def _last_stored_on(broker: Broker, subject: str) -> int:
    try:
        answer = await broker.request(f"$JS.API.STREAM.MSG.GET.{EVENTS}", {"last_by_subj": subject})
    except BrokerError as error:
        if error.code == _NO_MESSAGE_FOUND:
            return 0
        raise
    sequence: int = answer["message"]["seq"]
    return sequence


def check_position(state: StreamState, *, incarnation: str, position: int) -> None:
    """Raises `StreamIncarnationError` where a stored position does not point into this stream."""
    if state.incarnation != incarnation:
        raise StreamIncarnationError(
            f"the stream {EVENTS} was made at {state.incarnation}, but the stored position {position} belongs to the "
            f"one made at {incarnation}: {INCARNATION_REMEDY}"
        )
    if position > state.last_sequence:
        perhaps = "a server that was away may be catching up; if this lasts, "
        raise StreamIncarnationError(
            f"the stream {EVENTS} ends at {state.last_sequence}, before the stored position {position}: "
            f"{perhaps if state.config.get('num_replicas', 1) > 1 else ''}{INCARNATION_REMEDY}"
        )


INCARNATION_REMEDY = (
    "restore the stream from its backup; or, where its events are expendable, remove the stores too (`make clean`)"
)


async def provision(broker: Broker, *, replicas: int = 1) -> list[Provisioned]:
    """Makes the streams that do not exist yet, in order, with so many replicas.

    Raises `StreamDriftError`, after everything else is made, where an existing one is not as Farandole needs it.
    """
    outcomes: list[Provisioned] = []
    faults: list[str] = []
    for name, wanted in STREAMS.items():
        try:
            is_new = await fit_stream(broker, wanted, replicas=replicas)
        except StreamDriftError as error:
            faults.append(str(error))
        else:
            outcomes.append(Provisioned(name, "created" if is_new else "unchanged"))
    if faults:
        raise StreamDriftError("\n".join(faults))
    return outcomes


async def fit_stream(broker: Broker, wanted: Mapping[str, Any], *, replicas: int) -> bool:
    """Makes a stream as `make_stream` does. Raises `StreamDriftError` where it is not as Farandole needs it."""
    is_new = await make_stream(broker, wanted, replicas=replicas)
    _refuse_unfit(wanted, await stream_state(broker, wanted["name"]))
    return is_new


async def make_stream(broker: Broker, wanted: Mapping[str, Any], *, replicas: int) -> bool:
    """Makes a stream where it does not exist; returns whether it did not. One that exists is never changed."""
    try:
        await stream_state(broker, wanted["name"])
    except StreamMissingError:
        return await _create(broker, wanted, replicas)
    return False


async def _create(broker: Broker, wanted: Mapping[str, Any], replicas: int) -> bool:
    """Makes a stream. Returns False where there is one already: another one who provisions may have just made it."""
    made = f"{datetime.now(UTC).isoformat()} ({uuid.uuid4().hex[:8]})"
    metadata = {**wanted["metadata"], INCARNATION_METADATA: made}
    try:
        await broker.request(
            f"$JS.API.STREAM.CREATE.{wanted['name']}", {**wanted, "num_replicas": replicas, "metadata": metadata}
        )
    except BrokerError as error:
        if error.code != _STREAM_NAME_IN_USE:
            raise
        return False
    return True
