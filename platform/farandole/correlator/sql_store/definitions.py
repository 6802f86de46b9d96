"""The definitions that a correlator has, and with which its replicas started."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from farandole.correlator.queries import StoredDefinition
from farandole.correlator.sql_store.tables import DEFINITION, LEASES, SAGA, STARTED
from farandole.correlator.store import changed_definitions, digest_of, outdated_starts, refuse_changed_definitions
from farandole.definition import Definition

_SELECT_DEFINITIONS = sa.select(DEFINITION).order_by(DEFINITION.c.name, DEFINITION.c.version.desc())
_NAMED = ("of_name", "of_version")
_SELECT_KEPT = (
    sa.select(SAGA.c.id)
    .where(SAGA.c.definition == sa.bindparam("of_name"), SAGA.c.version == sa.bindparam("of_version"))
    .limit(1)
)
_INSERT_DEFINITION = sa.insert(DEFINITION)
_UPDATE_DEFINITION = (
    sa.update(DEFINITION)
    .where(DEFINITION.c.name == sa.bindparam("of_name"), DEFINITION.c.version == sa.bindparam("of_version"))
    .values(digest=sa.bindparam("new_digest"), message=sa.bindparam("new_message"), is_active=True)
)
_DEACTIVATE = sa.update(DEFINITION).values(is_active=False)
_SELECT_STARTED = sa.select(STARTED)
_FORGET_START = sa.delete(STARTED).where(STARTED.c.replica == sa.bindparam("by"))
_INSERT_START = sa.insert(STARTED)


def activate(connection: sa.Connection, definitions: Collection[Definition], replica: str) -> bool:
    """See `CorrelatorStore.activate`."""
    stored = stored_definitions(connection)
    started = {row.replica: row.definitions for row in connection.execute(_SELECT_STARTED)}
    digest, active = digest_of(definitions), digest_of(one for one in stored if one.is_active)
    if started.get(replica) == digest:
        return digest == active
    living = LEASES.living(connection)
    changed = changed_definitions(definitions, stored)
    refuse_changed_definitions(
        changed,
        kept={one for one in changed if connection.execute(_SELECT_KEPT, dict(zip(_NAMED, one, strict=True))).first()},
        is_alone=living <= {replica},
    )
    for outdated in {replica, *outdated_starts(started, active=active, activated=digest, living=living)}:
        forget_start(connection, outdated)
    connection.execute(_INSERT_START, {"replica": replica, "definitions": digest})
    known = {(old.name, old.version) for old in stored}
    connection.execute(_DEACTIVATE)
    for new in map(StoredDefinition.of, definitions):
        content = {"digest": new.digest, "message": new.message}
        if (new.name, new.version) in known:
            of = {"of_name": new.name, "of_version": new.version}
            connection.execute(_UPDATE_DEFINITION, of | {f"new_{name}": value for name, value in content.items()})
        else:
            row = {"name": new.name, "version": new.version, "is_active": True}
            connection.execute(_INSERT_DEFINITION, row | content)
    return True


def forget_start(connection: sa.Connection, replica: str) -> None:
    """See `CorrelatorStore.leave`."""
    connection.execute(_FORGET_START, {"by": replica})


def remember(connection: sa.Connection, definitions: Collection[Definition]) -> None:
    """See `CorrelatorStore.remember`."""
    stored = {(old.name, old.version) for old in stored_definitions(connection)}
    missing = {(new.name, new.version): new for new in definitions if (new.name, new.version) not in stored}
    for new in map(StoredDefinition.of, missing.values()):
        row = {"name": new.name, "version": new.version, "digest": new.digest, "message": new.message}
        connection.execute(_INSERT_DEFINITION, row | {"is_active": False})


def stored_definitions(connection: sa.Connection) -> tuple[StoredDefinition, ...]:
    """See `CorrelatorQueries.definitions`."""
    return tuple(
        StoredDefinition(row.name, row.version, row.digest, row.message, row.is_active)
        for row in connection.execute(_SELECT_DEFINITIONS)
    )
