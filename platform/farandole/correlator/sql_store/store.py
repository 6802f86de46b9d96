"""The `CorrelatorStore` over one database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime

import sqlalchemy as sa

from farandole.correlator.contents import Item, Take
from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.filters import Filter
from farandole.correlator.queries import (
    DeadLetterGroupPage,
    DeadLetterGroupQuery,
    DeadLetterPage,
    DeadLetterQuery,
    DueSaga,
    OpenDeadLetters,
    RecordedSaga,
    SagaCount,
    SagaPage,
    SagaQuery,
    StoredDefinition,
)
from farandole.correlator.sql_store.claims import claim_partitions, move_claim, stored_positions
from farandole.correlator.sql_store.contents import export_contents, restore_contents
from farandole.correlator.sql_store.dead_letter_lists import (
    count_open_dead_letters,
    group_dead_letters,
    list_dead_letters,
    open_dead_letters,
)
from farandole.correlator.sql_store.dead_letters import get_dead_letter, write_dead_letters
from farandole.correlator.sql_store.definitions import activate, forget_start, remember, stored_definitions
from farandole.correlator.sql_store.due import due_sagas, next_deadlines
from farandole.correlator.sql_store.records import load_sagas, recorded_sagas, write_history, write_sagas
from farandole.correlator.sql_store.saga_lists import list_sagas, summarize
from farandole.correlator.sql_store.tables import LEASES, OUTBOX
from farandole.correlator.store import ALL_PARTITIONS, Claim, Committed, FoldedBatch, refuse_step_back
from farandole.database import Database
from farandole.definition import Definition
from farandole.leases import Leases
from farandole.migrations import CORRELATOR, migrate, refuse_other_revision
from farandole.outbox import OutboxRow
from farandole.saga import Saga
from farandole.sql_leases import SqlLeases


class SqlCorrelatorStore:
    """A `CorrelatorStore` in one database, which it owns: `close` closes it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.leases: Leases = SqlLeases(database, LEASES)

    async def open(self, *, to_read: bool = False) -> None:
        """See `CorrelatorStore.open`. Raises `StoreError` with the remedy where another version made the tables."""
        await (refuse_other_revision if to_read else migrate)(self._database, CORRELATOR)

    async def close(self) -> None:
        """See `CorrelatorStore.close`."""
        await self._database.close()

    async def check(self) -> None:
        """See `CorrelatorStore.check`."""
        await self._database.check()

    async def claim(
        self, incarnation: str, partitions: Iterable[int] = ALL_PARTITIONS, *, held: Claim | None = None
    ) -> Claim:
        """See `CorrelatorStore.claim`."""
        owned = frozenset(partitions)
        return await self._database.write(lambda connection: claim_partitions(connection, incarnation, owned, held))

    async def load(self, keys: Collection[str]) -> dict[str, tuple[Saga, ...]]:
        """See `CorrelatorStore.load`."""
        return await self._database.read(lambda connection: load_sagas(connection, keys))

    async def commit(self, claim: Claim, batch: FoldedBatch) -> Committed:
        """See `CorrelatorStore.commit`."""
        refuse_step_back(claim, batch)
        return await self._database.write(lambda connection: _commit(connection, claim, batch))

    async def waiting_publications(self, partitions: Collection[int] = ALL_PARTITIONS) -> tuple[OutboxRow, ...]:
        """See `CorrelatorStore.waiting_publications`."""
        return tuple(await self._database.read(lambda connection: OUTBOX.waiting(connection, partitions)))

    async def remove_publications(self, ids: Collection[int]) -> None:
        """See `CorrelatorStore.remove_publications`."""
        await self._database.write(lambda connection: OUTBOX.remove(connection, ids))

    async def activate(self, definitions: Collection[Definition], *, replica: str) -> bool:
        """See `CorrelatorStore.activate`."""
        return await self._database.write(lambda connection: activate(connection, definitions, replica))

    async def leave(self, replica: str) -> None:
        """See `CorrelatorStore.leave`."""
        await self._database.write(lambda connection: forget_start(connection, replica))

    async def remember(self, definitions: Collection[Definition]) -> None:
        """See `CorrelatorStore.remember`."""
        await self._database.write(lambda connection: remember(connection, definitions))

    async def due(self, until: datetime, limit: int, partition: int) -> tuple[DueSaga, ...]:
        """See `CorrelatorStore.due`."""
        return await self._database.read(lambda connection: due_sagas(connection, until, limit, partition))

    async def next_deadlines(self, partitions: Collection[int] = ALL_PARTITIONS) -> dict[int, datetime]:
        """See `CorrelatorStore.next_deadlines`."""
        return await self._database.read(lambda connection: next_deadlines(connection, frozenset(partitions)))

    async def positions(self) -> dict[int, int]:
        """See `CorrelatorStore.positions`."""
        return {one.partition: one.position for one in await self._database.read(stored_positions)}

    async def export(self, take: Take) -> None:
        """See `CorrelatorStore.export`."""
        await self._database.read(lambda connection: export_contents(connection, take))

    async def restore(self, contents: Callable[[], Iterable[Item]]) -> bool:
        """See `CorrelatorStore.restore`."""
        return await self._database.write(lambda connection: restore_contents(connection, contents))

    async def get_sagas(self, key: str, definition: str | None = None) -> tuple[RecordedSaga, ...]:
        """See `CorrelatorQueries.get_sagas`."""
        found = await self._database.read(lambda connection: recorded_sagas(connection, key))
        return tuple(recorded for recorded in found if definition in {None, recorded.saga.definition})

    async def list_sagas(self, query: SagaQuery) -> SagaPage:
        """See `CorrelatorQueries.list_sagas`."""
        return await self._database.read(lambda connection: list_sagas(connection, query))

    async def summarize(self, filter: Filter | None = None) -> tuple[SagaCount, ...]:  # noqa: A002 - the API's word
        """See `CorrelatorQueries.summarize`."""
        return await self._database.read(lambda connection: summarize(connection, filter))

    async def list_dead_letters(self, query: DeadLetterQuery) -> DeadLetterPage:
        """See `CorrelatorQueries.list_dead_letters`."""
        return await self._database.read(lambda connection: list_dead_letters(connection, query))

    async def group_dead_letters(self, query: DeadLetterGroupQuery) -> DeadLetterGroupPage:
        """See `CorrelatorQueries.group_dead_letters`."""
        return await self._database.read(lambda connection: group_dead_letters(connection, query))

    async def count_open_dead_letters(self, filter: Filter | None = None) -> OpenDeadLetters:  # noqa: A002
        """See `CorrelatorQueries.count_open_dead_letters`."""
        return await self._database.read(lambda connection: count_open_dead_letters(connection, filter))

    async def open_dead_letters(
        self,
        counted: OpenDeadLetters,
        filter: Filter | None = None,  # noqa: A002 - the API's word
        *,
        after: int = 0,
        limit: int = 500,
    ) -> DeadLetterPage:
        """See `CorrelatorQueries.open_dead_letters`."""
        return await self._database.read(
            lambda connection: open_dead_letters(connection, counted, filter, after, limit)
        )

    async def get_dead_letter(self, participant: str, sequence: int) -> DeadLetter | None:
        """See `CorrelatorQueries.get_dead_letter`."""
        return await self._database.read(lambda connection: get_dead_letter(connection, participant, sequence))

    async def definitions(self) -> tuple[StoredDefinition, ...]:
        """See `CorrelatorQueries.definitions`."""
        return await self._database.read(stored_definitions)


def _commit(connection: sa.Connection, claim: Claim, batch: FoldedBatch) -> Committed:
    after = move_claim(connection, claim, batch)
    write_sagas(connection, batch.changes)
    write_history(connection, batch.changes, batch.payloads)
    publications = [*batch.publications, *write_dead_letters(connection, batch)]
    OUTBOX.remove(connection, batch.acknowledged)
    rows = OUTBOX.add(connection, publications)
    return Committed(after, tuple(rows))
