"""Events that end the process: found by counting them before they run, and given up on.

A store is marked as in use while a process works on it. Who finds the mark knows that the process before it did not end
in order, and does not know which event it was at. So what may have been running is run one at a time then, each counted
in a transaction of its own before it runs; the transaction that deals with the event takes the count away. What was
counted as often as it may without having been dealt with is not run any more. What was only beside it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import sqlalchemy as sa

MOST_CRASHES = 3
"""After so many processes that ended while they ran it, alone, an event is given up on."""


class CrashedError(Exception):
    """In place of running an event: the process ended each time it was run."""

    def __init__(self, times: int) -> None:
        super().__init__(f"the process ended {times} times while the handler ran, with no other event beside it")
        self.times = times


class CountFirstError(Exception):
    """Before a handler runs: the transaction is to be rolled back, and the event to be counted and run alone."""

    def __init__(self, sequence: int, key: str) -> None:
        super().__init__(f"the event of sequence {sequence} is counted before it runs")
        self.sequence = sequence
        self.key = key


class StartedTable:
    """The table of events that were begun and have not been dealt with: how many processes have run each."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.table = table = sa.Table(
            "farandole_started",
            metadata,
            sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("partition", sa.SmallInteger, nullable=False),
            sa.Column("times", sa.Integer, nullable=False),
        )
        self._select = sa.select(table).where(table.c.partition.in_(sa.bindparam("partitions", expanding=True)))
        self._insert = sa.insert(table)
        self._update = sa.update(table).where(table.c.sequence == sa.bindparam("of_sequence"))
        self._delete = sa.delete(table).where(table.c.sequence == sa.bindparam("of_sequence"))

    def of(self, connection: sa.Connection, partitions: Collection[int]) -> dict[int, int]:
        """How often each of these partitions has been run, by sequence."""
        found = connection.execute(self._select, {"partitions": sorted(partitions)})
        return {row.sequence: row.times for row in found}

    def put(self, connection: sa.Connection, sequence: int, partition: int, times: int) -> None:
        """Records how often an event has been run, with the time that is about to begin."""
        changed = connection.execute(self._update.values(times=times), {"of_sequence": sequence})
        if changed.rowcount == 0:
            connection.execute(self._insert, {"sequence": sequence, "partition": partition, "times": times})

    def remove(self, connection: sa.Connection, sequences: Collection[int]) -> None:
        """Takes away the counts of events that have been dealt with."""
        if sequences:
            connection.execute(self._delete, [{"of_sequence": sequence} for sequence in sequences])


class Crashes:
    """What this process has to be careful with."""

    def __init__(self, batch_size: int) -> None:
        """`batch_size` is how many events a transaction may have had that was running when a process ended."""
        self._batch_size = batch_size
        self._doubtful_events = 0
        self._doubtful_heard = 0
        self._doubtful_keys: set[str] = set()
        self._counts: dict[int, int] = {}
        self._own: set[int] = set()

    def begin(self, counts: Mapping[int, int], keys: Collection[str], *, is_unclean: bool) -> None:
        """Takes on what the process before left: its counts, and the sagas of which something waits."""
        self._counts = dict(counts)
        if is_unclean:
            self._doubtful_events = self._doubtful_heard = self._batch_size
            self._doubtful_keys = set(keys)

    @property
    def doubts_events(self) -> bool:
        """Whether the next events of the stream may be what ended the process before."""
        return self._doubtful_events > 0

    @property
    def doubts_heard(self) -> bool:
        """Whether the next events that are heard first may be what ended the process before."""
        return self._doubtful_heard > 0

    def doubts(self, key: str) -> bool:
        """Whether what waits of a saga may be what ended the process before."""
        return key in self._doubtful_keys

    def doubt(self, key: str) -> None:
        """Has what waits of a saga run one at a time."""
        self._doubtful_keys.add(key)

    def trust(self, key: str) -> None:
        """What waits of a saga has been looked at."""
        self._doubtful_keys.discard(key)

    def took_in(self, events: int) -> None:
        """So many more events of the stream have been taken in."""
        self._doubtful_events = max(0, self._doubtful_events - events)

    def heard(self, events: int) -> None:
        """So many more events that were heard first have run and been dealt with."""
        self._doubtful_heard = max(0, self._doubtful_heard - events)

    def next_count(self, sequence: int) -> int:
        """How often an event will have been run once it runs now. A process counts it once, however often it tries."""
        return self._counts.get(sequence, 0) + (sequence not in self._own)

    def counted(self, sequence: int, times: int) -> None:
        """The count is in the store."""
        self._counts[sequence] = times
        self._own.add(sequence)

    def dealt_with(self, sequences: Collection[int]) -> None:
        """The store has their counts no more."""
        for sequence in sequences:
            self._counts.pop(sequence, None)
            self._own.discard(sequence)

    def is_counted(self, sequence: int) -> bool:
        """Whether the store has a count of an event, which is to go with the transaction that deals with it."""
        return sequence in self._counts

    def check(self, sequence: int, key: str, *, doubtful: bool) -> None:
        """To be called before a handler runs an event; `doubtful` says that every event is to be counted.

        Raises `CrashedError` where it must not run any more, and `CountFirstError` where it was not counted yet.
        """
        times = self._counts.get(sequence, 0)
        if sequence in self._own or (times == 0 and not doubtful):
            return
        if times >= MOST_CRASHES:
            raise CrashedError(times)
        raise CountFirstError(sequence, key)
