"""How far each partition has been folded, and whose it is."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from farandole.correlator.contents import PartitionPosition
from farandole.correlator.sql_store.tables import POSITION
from farandole.correlator.store import (
    Claim,
    FoldedBatch,
    claim_after,
    refuse_other_incarnation,
    refuse_outdated,
    taken_in_beyond,
)
from farandole.errors import FencedError
from farandole.times import maybe_microseconds_of, maybe_time_of

_SELECT_POSITIONS = (
    sa.select(POSITION).where(POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True))).with_for_update()
)
_INSERT_POSITION = sa.insert(POSITION)
_TAKE_OVER = (
    sa.update(POSITION)
    .where(POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True)))
    .values(epoch=sa.bindparam("new_epoch"))
)
_NEW_POSITION = sa.bindparam("new_position", type_=sa.BigInteger)
_MOVES = POSITION.c.position < _NEW_POSITION
_NEW_TIME = sa.bindparam("new_time", type_=sa.BigInteger)
_ADVANCE = (
    sa.update(POSITION)
    .where(
        POSITION.c.partition.in_(sa.bindparam("partitions", expanding=True)),
        POSITION.c.epoch == sa.bindparam("old_epoch"),
        POSITION.c.position == sa.bindparam("old_position"),
    )
    .values(
        position=sa.case((_MOVES, _NEW_POSITION), else_=POSITION.c.position),
        position_time=sa.case((_MOVES, _NEW_TIME), else_=POSITION.c.position_time),
    )
)
"""Moves partitions that stand at one position, unless they are further."""
_SELECT_ALL_POSITIONS = sa.select(POSITION).order_by(POSITION.c.partition)


def claim_partitions(connection: sa.Connection, incarnation: str, owned: frozenset[int], held: Claim | None) -> Claim:
    """See `CorrelatorStore.claim`."""
    if held is not None:
        rows = connection.execute(_SELECT_POSITIONS, {"partitions": sorted(held.partitions)})
        refuse_outdated(held, {row.partition: row.epoch for row in rows})
    stored = connection.execute(_SELECT_POSITIONS, {"partitions": sorted(owned)}).all()
    for row in stored:
        if row.incarnation != incarnation:
            raise refuse_other_incarnation(row.incarnation, incarnation)
    known = {row.partition for row in stored}
    lowest = min(stored, key=lambda row: row.position) if known == owned and stored else None
    position = 0 if lowest is None else lowest.position
    claim = Claim(
        incarnation=incarnation,
        epoch=1 + max((row.epoch for row in stored), default=0),
        position=position,
        time=None if lowest is None else maybe_time_of(lowest.position_time),
        partitions=owned,
        taken_in=taken_in_beyond(position, {row.partition: row.position for row in stored}),
    )
    connection.execute(_TAKE_OVER, {"partitions": sorted(known), "new_epoch": claim.epoch})
    if owned - known:
        new = {"epoch": claim.epoch, "position": 0, "position_time": None, "incarnation": incarnation}
        connection.execute(_INSERT_POSITION, [{"partition": partition, **new} for partition in sorted(owned - known)])
    return claim


def move_claim(connection: sa.Connection, claim: Claim, batch: FoldedBatch) -> Claim:
    """Moves the claim's partitions to the batch's position by compare-and-set; those that are further stay there.

    Raises `FencedError` where another owner has claimed any of them.
    """
    after = claim_after(claim, batch)
    standing: dict[int, list[int]] = {}
    for partition in sorted(claim.partitions):
        standing.setdefault(claim.position_of(partition), []).append(partition)
    for position, partitions in standing.items():
        advanced = connection.execute(
            _ADVANCE,
            {
                "partitions": partitions,
                "old_epoch": claim.epoch,
                "old_position": position,
                "new_position": batch.position,
                "new_time": maybe_microseconds_of(after.time),
            },
        )
        if advanced.rowcount != len(partitions):
            raise FencedError("another correlator has claimed these partitions")
    return after


def stored_positions(connection: sa.Connection) -> list[PartitionPosition]:
    """How far each partition is folded, by partition; empty where nobody has claimed any."""
    return [
        PartitionPosition(row.partition, row.position, row.incarnation, maybe_time_of(row.position_time))
        for row in connection.execute(_SELECT_ALL_POSITIONS)
    ]


def insert_positions(connection: sa.Connection, positions: Sequence[PartitionPosition]) -> None:
    """Puts positions into a store that has none."""
    connection.execute(
        _INSERT_POSITION,
        [
            {
                "partition": one.partition,
                "epoch": 1,
                "position": one.position,
                "position_time": maybe_microseconds_of(one.time),
                "incarnation": one.incarnation,
            }
            for one in positions
        ],
    )
