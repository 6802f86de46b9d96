"""Databases of earlier versions are brought up to date, with nothing lost; those of later versions are left alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.sql_store.tables import METADATA
from farandole.database import Database
from farandole.database.columns import KEY_TEXT
from farandole.errors import StoreError, StoreUnavailableError
from farandole.migrations import CORRELATOR, FIRST, PARTICIPANT, Schema, migrate
from farandole.participant.tables import ParticipantTables
from tests.integration.filled_stores import (
    DUMPS,
    fill_correlator,
    fill_participant,
    go_on_as_correlator,
    go_on_as_participant,
)
from tests.integration.participant_bench import bench_at

# SQLAlchemy does not read such indexes back from SQLite; `test_the_indexes_are_those_that_are_declared` does
pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index"),
    pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index"),
]

SCHEMAS = {CORRELATOR.name: (CORRELATOR, METADATA), PARTICIPANT.name: (PARTICIPANT, ParticipantTables().metadata)}

each_schema = pytest.mark.parametrize("kind", SCHEMAS)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


def revision_in(schema: Schema) -> Callable[[sa.Connection], str | None]:
    query = sa.text(f"SELECT version_num FROM {schema.version_table}")
    return lambda connection: connection.execute(query).scalar()


def dumps(kind: str) -> list[str]:
    """The revisions of which a filled store was written down."""
    return sorted(path.stem.rpartition("_")[2] for path in DUMPS.glob(f"{kind}_*.sql"))


async def load(url: str, schema: Schema, revision: str, tmp_path: Path) -> None:
    """Puts a store that was written down into an empty database.

    The dump is SQLite's. PostgreSQL gets the tables of that revision by its migrations, and the same rows.
    """
    dump = (DUMPS / f"{schema.name}_{revision}.sql").read_text()
    path = url.removeprefix("sqlite:///") if url.startswith("sqlite:") else str(tmp_path / "dump.db")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dump)
    if url.startswith("sqlite:"):
        return
    async with opened(url) as database:
        await migrate(database, schema, to=revision)
        await database.write_alone(lambda connection: copy(f"sqlite:///{path}", connection))


def copy(url: str, target: sa.Connection) -> None:
    """Copies every row; makes the tables that are not the platform's."""
    source = sa.create_engine(url)
    with source.connect() as connection:
        there, here = sa.MetaData(), sa.MetaData()
        there.reflect(connection)
        there.create_all(target)
        here.reflect(target)
        for table in there.sorted_tables:
            if table.name.endswith("_version"):
                continue
            rows = [dict(row._mapping) for row in connection.execute(sa.select(table))]
            if rows:
                target.execute(sa.insert(here.tables[table.name]), rows)
            for column in table.primary_key:
                sequence = target.execute(
                    sa.text("SELECT pg_get_serial_sequence(:table, :column)"),
                    {"table": table.name, "column": column.name},
                ).scalar()
                if sequence is not None:
                    highest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
                    target.execute(sa.select(sa.func.setval(sequence, highest, False)))
    source.dispose()


@each_schema
async def test_the_migrated_tables_are_those_that_are_declared(database_url: str, kind: str) -> None:
    schema, declared = SCHEMAS[kind]

    def differences(connection: sa.Connection) -> object:
        kept = {schema.version_table, "farandole_check"}
        options = {
            "include_object": lambda _object, name, kind, *_: not (kind == "table" and name in kept),
            "compare_type": True,
            "compare_server_default": False,
        }
        return compare_metadata(MigrationContext.configure(connection, opts=options), declared)

    async with opened(database_url) as database:
        await migrate(database, schema)
        assert await database.read(differences) == []
        assert await database.read(revision_in(schema)) == schema.revisions.get_current_head()


@each_schema
async def test_the_indexes_are_those_that_are_declared(tmp_path: Path, kind: str) -> None:
    schema, declared = SCHEMAS[kind]

    def indexes(connection: sa.Connection) -> dict[str, str]:
        rows = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        )
        return {str(name): str(sql) for name, sql in rows}

    async with opened(f"sqlite:///{tmp_path}/migrated.db") as migrated, opened(f"sqlite:///{tmp_path}/new.db") as new:
        await migrate(migrated, schema)
        await new.create(declared, if_earlier="")
        assert await migrated.read(indexes) == await new.read(indexes)


@each_schema
async def test_keys_are_compared_as_bytes_whatever_language_the_server_speaks(postgres_url: str, kind: str) -> None:
    """By that order sagas are exported, and so two stores are compared while both are read once."""
    schema, declared = SCHEMAS[kind]
    keys = {
        (table.name, column.name)
        for table in declared.sorted_tables
        for column in table.columns
        if column.type is KEY_TEXT
    }
    collated = sa.text(
        "SELECT table_name, column_name FROM information_schema.columns WHERE collation_name = 'C' "
        "AND table_schema = 'public'"
    )
    async with opened(postgres_url) as database:
        await migrate(database, schema)
        found = await database.read(lambda connection: {tuple(row) for row in connection.execute(collated)})
    assert found == keys
    assert len(keys) > 4


@each_schema
def test_every_earlier_revision_is_written_down_filled(kind: str) -> None:
    schema, _ = SCHEMAS[kind]
    head = schema.revisions.get_current_head()
    earlier = {script.revision for script in schema.revisions.walk_revisions()} - {head}
    assert earlier | {FIRST} <= set(dumps(kind))


@pytest.mark.parametrize("dump", sorted(DUMPS.glob("*.sql")), ids=lambda dump: dump.stem)
def test_in_what_is_written_down_no_table_is_empty(dump: Path) -> None:
    """A migration of what is not there shows nothing."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(dump.read_text())
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        empty = [name for name in tables if not connection.execute(f'SELECT 1 FROM "{name}"').fetchone()]
    assert len(tables) > 5
    assert empty == []


@pytest.mark.parametrize("revision", dumps(PARTICIPANT.name))
async def test_a_participant_goes_on_with_a_store_of_an_earlier_version(
    database_url: str, revision: str, tmp_path: Path
) -> None:
    await load(database_url, PARTICIPANT, revision, tmp_path)
    async with bench_at(database_url) as bench:
        await go_on_as_participant(bench)


@pytest.mark.parametrize("revision", dumps(CORRELATOR.name))
async def test_a_correlator_goes_on_with_a_store_of_an_earlier_version(
    database_url: str, revision: str, tmp_path: Path
) -> None:
    await load(database_url, CORRELATOR, revision, tmp_path)
    store = SqlCorrelatorStore(Database(database_url))
    await store.open()
    await go_on_as_correlator(store)
    await store.close()


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        (None, "its tables are not made yet, .* start the correlator"),
        ("0002", "its tables are of revision 0002, .* start the correlator"),
        ("9999", "made by a newer version: its tables are of revision 9999"),
    ],
)
async def test_who_only_reads_a_store_of_another_version_is_told_and_changes_nothing(
    database_url: str, revision: str | None, said: str, tmp_path: Path
) -> None:
    def found(connection: sa.Connection) -> tuple[list[str], str | None]:
        tables = sorted(sa.inspect(connection).get_table_names())
        has_revision = CORRELATOR.version_table in tables
        return tables, revision_in(CORRELATOR)(connection) if has_revision else None

    if revision is not None:
        await load(database_url, CORRELATOR, "0002", tmp_path)
    async with opened(database_url) as database:
        await database.write_alone(lambda _connection: None)  # makes the place of a file
        if revision is not None:
            stamp = sa.text(f"UPDATE {CORRELATOR.version_table} SET version_num = '{revision}'")
            await database.write(lambda connection: connection.execute(stamp))
        before = await database.read(found)
        store = SqlCorrelatorStore(Database(database_url))
        with pytest.raises(StoreError, match=said) as refused:
            await store.open(to_read=True)
        await store.close()
        assert not isinstance(refused.value, StoreUnavailableError)
        assert await database.read(found) == before


async def test_who_only_reads_a_store_of_this_version_reads_it(database_url: str) -> None:
    writer, reader = (SqlCorrelatorStore(Database(database_url)) for _ in range(2))
    await writer.open()
    await fill_correlator(writer)
    await reader.open(to_read=True)
    assert (await reader.positions())[0] == 40
    for store in (writer, reader):
        await store.close()


async def test_what_is_expected_of_a_participants_earlier_store_holds_of_a_new_one(database_url: str) -> None:
    """Else what the dumps are tried with would be out of date."""
    async with bench_at(database_url) as bench:
        await fill_participant(bench)
    async with bench_at(database_url) as bench:
        await go_on_as_participant(bench)


async def test_what_is_expected_of_a_correlators_earlier_store_holds_of_a_new_one(database_url: str) -> None:
    for use in (fill_correlator, go_on_as_correlator):
        store = SqlCorrelatorStore(Database(database_url))
        await store.open()
        await use(store)
        await store.close()


@each_schema
async def test_migrating_again_changes_nothing(database_url: str, kind: str) -> None:
    schema, _ = SCHEMAS[kind]
    async with opened(database_url) as database:
        await migrate(database, schema)
        await migrate(database, schema)
        assert await database.read(revision_in(schema)) == schema.revisions.get_current_head()


@each_schema
async def test_a_database_of_a_newer_version_is_left_alone(database_url: str, kind: str) -> None:
    schema, _ = SCHEMAS[kind]
    async with opened(database_url) as database:
        await migrate(database, schema)
        newer = sa.text(f"UPDATE {schema.version_table} SET version_num = '9999'")
        await database.write(lambda connection: connection.execute(newer))
        with pytest.raises(StoreError, match=r"made by a newer version: its tables are of revision 9999") as refused:
            await migrate(database, schema)
        assert not isinstance(refused.value, StoreUnavailableError)  # which would be tried again
        assert await database.read(revision_in(schema)) == "9999"


@pytest.mark.parametrize(
    ("schema", "change", "lacking", "remedy"),
    [
        (PARTICIPANT, "ALTER TABLE farandole_queue DROP COLUMN dependency", "farandole_queue.dependency", "it holds"),
        (PARTICIPANT, "DROP TABLE farandole_inbox", "farandole_inbox", "it holds the service's own state"),
        (
            CORRELATOR,
            "ALTER TABLE dead_letter DROP COLUMN attempts",
            "dead_letter.attempts",
            "all .* an empty database",
        ),
    ],
)
async def test_a_database_that_is_older_than_migrations_is_refused(
    database_url: str, schema: Schema, change: str, lacking: str, remedy: str
) -> None:
    async with opened(database_url) as database:
        await migrate(database, schema, to=FIRST)
        for statement in (change, f"DROP TABLE {schema.version_table}"):
            await database.write_alone(partial(sa.Connection.exec_driver_sql, statement=statement))
        with pytest.raises(StoreError, match=rf"it lacks {lacking}; {remedy}") as refused:
            await migrate(database, schema)
        assert not isinstance(refused.value, StoreUnavailableError)


async def test_of_several_replicas_one_migrates(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(1 if "sqlite" in database_url else 4)]
    await asyncio.gather(*(migrate(database, PARTICIPANT) for database in databases))
    rows = sa.text(f"SELECT count(*) FROM {PARTICIPANT.version_table}")
    assert await databases[0].read(lambda connection: connection.execute(rows).scalar()) == 1
    for database in databases:
        await database.close()
