"""Statements over many rows, or about many keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

import sqlalchemy as sa

T = TypeVar("T")

_AT_ONCE = 1000
"""A statement takes a limited number of parameters: 32,766 in SQLite, 65,535 in PostgreSQL."""


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """The items in lists as long as one statement takes them, in order."""
    rest = iter(items)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


class Prepared:
    """A statement to execute for many rows of parameters. Compiled once; each row is a tuple in the order of `names`.

    SQLAlchemy would take a dictionary a row and copy it twice, which costs more than the database's work.
    """

    def __init__(self, statement: sa.Executable, names: Sequence[str]) -> None:
        self._statement = statement
        self._names = tuple(names)
        self._compiled: tuple[str, str, Callable[[Sequence[Any]], Any]] | None = None

    def execute(self, connection: sa.Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Executes it for every row; returns how many rows of the table it touched in all."""
        if not rows:
            return 0
        dialect, text, arrange = self._compiled or self._compile(connection.dialect)
        if dialect != connection.dialect.name:
            dialect, text, arrange = self._compile(connection.dialect)
        return connection.exec_driver_sql(text, [arrange(row) for row in rows]).rowcount

    def _compile(self, dialect: sa.Dialect) -> tuple[str, str, Callable[[Sequence[Any]], Any]]:
        compiled: Any = self._statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        names = self._names
        if sorted(compiled.params) != sorted(names):
            raise TypeError(f"the statement takes {sorted(compiled.params)}, not {sorted(names)}")
        arrange: Callable[[Sequence[Any]], Any]
        if compiled.positional:
            arrange = itemgetter(*(names.index(name) for name in compiled.positiontup))
        else:
            arrange = lambda row: dict(zip(names, row, strict=True))  # noqa: E731 - as short as the other branch
        self._compiled = (dialect.name, str(compiled), arrange)
        return self._compiled
