"""What the checker is given of a run on PostgreSQL is what it would have been given on SQLite."""

from __future__ import annotations

import importlib
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from farandole.participant.tables import ParticipantTables
from tests.chaos.checker.choreographies import PARTICIPANTS
from tests.chaos.checker.effects import TABLE, WATCHES, Watch, postgres_statements, statements
from tests.chaos.databases import copy


@pytest.mark.parametrize("service", sorted(PARTICIPANTS))
def test_the_same_changes_leave_the_same_file(postgres_url: str, tmp_path: Path, service: str) -> None:
    here, copied = tmp_path / "here.db", tmp_path / "copied.db"
    _change_everything(f"sqlite:///{here}", service, statements(service))
    there = postgres_url.replace("postgresql:", "postgresql+psycopg:")
    _change_everything(there, service, postgres_statements(service))
    with psycopg.connect(postgres_url) as connection:
        copy(connection, copied)
    content = _content(copied)
    assert content == _content(here)
    counted = {(step, direction) for _, step, direction, _, _ in content[TABLE]}
    assert counted == {(watch.step, watch.direction) for watch in WATCHES[service]}


def _change_everything(url: str, service: str, counting: Iterable[str]) -> None:
    """Makes a service's tables, and brings about every change that counts as an effect, in a row of its own."""
    own: sa.MetaData = importlib.import_module(f"services.{service}.store").metadata
    engine = sa.create_engine(url)
    for metadata in (ParticipantTables().metadata, own):
        metadata.create_all(engine)
    with engine.begin() as connection:
        for statement in counting:
            connection.exec_driver_sql(statement)
        for number, watch in enumerate(WATCHES[service], 1):
            _change(connection, own.tables[watch.table], watch, number)
    engine.dispose()


def _change(connection: sa.Connection, table: sa.Table, watch: Watch, number: int) -> None:
    for key in table.foreign_keys:
        connection.execute(key.column.table.insert().values(_row(key.column.table, number)))
    row = _row(table, number)
    is_insert = watch.change == "INSERT"
    connection.execute(table.insert().values(row | ({"status": watch.status} if is_insert and watch.status else {})))
    this_row = [column == row[column.name] for column in table.primary_key]
    if watch.change == "DELETE":
        connection.execute(table.delete().where(*this_row))
    elif not is_insert:
        connection.execute(table.update().where(*this_row).values(status=watch.status))


def _row(table: sa.Table, number: int) -> dict[str, object]:
    return {column.name: _value(column, number) for column in table.columns}


def _value(column: sa.Column[Any], number: int) -> object:
    if isinstance(column.type, sa.Boolean):
        return True
    if isinstance(column.type, sa.DateTime):
        return datetime(2026, 1, 2, 3, 4, number)  # noqa: DTZ001 - as the column has it, in UTC without an offset
    text = f"{column.name} {number}"
    if isinstance(column.type, sa.LargeBinary):
        return text.encode()
    return number if isinstance(column.type, sa.Integer) else text


def _content(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        return {
            name: sorted(connection.execute(f'SELECT * FROM "{name}"').fetchall())
            for (name,) in names
            if not name.startswith("sqlite_")
        }
