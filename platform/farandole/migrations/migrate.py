"""From whatever revision a database has to the present one, in one transaction and with no other process beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa
import structlog
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import Script, ScriptDirectory

from farandole.database import Database
from farandole.database.columns import lacking_columns
from farandole.errors import StoreError

FIRST = "0001"
"""The revision of databases that were made before there were migrations, and say nothing of it."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Schema:
    """The platform's tables in one kind of database."""

    name: str
    """Also of the directory that its revisions are in."""
    if_older: str
    """What to do about a database that was made before the first revision."""

    @property
    def version_table(self) -> str:
        """Where a database says which revision its tables have."""
        return f"farandole_{self.name}_version"

    @property
    def revisions(self) -> ScriptDirectory:
        """Every revision that there is."""
        directory = str(Path(__file__).parent / self.name)
        return ScriptDirectory(directory, version_locations=[directory])


CORRELATOR = Schema(
    "correlator",
    "all that a correlator keeps follows from the stream: start it with an empty database, and it folds the stream "
    "from its beginning",
)
PARTICIPANT = Schema(
    "participant",
    "it holds the service's own state, so go on with the version that made it, or bring the tables up to date; where "
    "that state is expendable, start with an empty database (`make clean` removes all of a checkout's data)",
)


async def migrate(database: Database, schema: Schema, *, to: str = "head") -> None:
    """Makes the platform's tables, or brings them up to date. Where they are, does nothing.

    Raises `StoreError`, with nothing changed, where a newer version of Farandole has had the database, or one that is
    older than the first revision; and `StoreUnavailableError`.
    """
    await database.write_alone(partial(_migrate, schema=schema, to=to, name=database.name))


async def refuse_other_revision(database: Database, schema: Schema) -> None:
    """Raises `StoreError` where the tables are not those of the present revision; changes nothing."""
    await database.read(partial(_refuse_other_revision, schema=schema, name=database.name))


def _refuse_other_revision(connection: sa.Connection, *, schema: Schema, name: str) -> None:
    found = MigrationContext.configure(connection, opts={"version_table": schema.version_table}).get_current_revision()
    _refuse_newer(found, schema.revisions, name)
    head = schema.revisions.get_current_head()
    if found != head:
        tables = "not made yet" if found is None else f"of revision {found}"
        raise StoreError(
            f"the database {name} can't be read by this version: its tables are {tables}, and this version reads those "
            f"of {head}; start the {schema.name} of this version, which brings them up to date"
        )


def _migrate(connection: sa.Connection, *, schema: Schema, to: str, name: str) -> None:
    script = schema.revisions
    context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
    before = context.get_current_revision()
    _refuse_newer(before, script, name)
    if before is None:
        first = _first_tables(script)
        missing = {table.name for table in first} - set(sa.inspect(connection).get_table_names())
        if len(missing) < len(first):
            _refuse_older(connection, first, missing, schema, name)
            context.stamp(script, FIRST)
            before = FIRST
    steps = list(script.iterate_revisions(to, before or "base"))
    if not steps:
        return
    with Operations.context(context):
        for revision in reversed(steps):
            revision.module.upgrade()
    context.stamp(script, to)
    _log.info("the tables are up to date", schema=schema.name, before=before, revision=steps[0].revision)


def _refuse_newer(found: str | None, script: ScriptDirectory, name: str) -> None:
    if found is not None and found not in {one.revision for one in script.walk_revisions()}:
        raise StoreError(
            f"the database {name} was made by a newer version: its tables are of revision {found}, and this version "
            f"knows those up to {script.get_current_head()}; start the newer one, or restore a backup from before it"
        )


def _first_tables(script: ScriptDirectory) -> list[sa.Table]:
    first = script.get_revision(FIRST)
    assert isinstance(first, Script), "it is shipped"
    metadata: sa.MetaData = first.module.metadata
    return metadata.sorted_tables


def _refuse_older(
    connection: sa.Connection, tables: list[sa.Table], missing: set[str], schema: Schema, name: str
) -> None:
    lacking = [*sorted(missing), *lacking_columns(connection, tables)]
    if lacking:
        raise StoreError(
            f"the database {name} was made by an earlier version, without migrations: it lacks {', '.join(lacking)}; "
            f"{schema.if_older}"
        )
