"""Column types that mean the same in SQLite and in PostgreSQL, and which columns a database has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import sqlalchemy as sa

KEY_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Text that is ordered or looked up by index: compared byte by byte, as SQLite does, whatever the machine's language
is. An index over it outlives an upgrade of the machine's locales."""

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A key that the database counts up by itself, to 2^63: SQLite does so for INTEGER alone."""


def lacking_columns(connection: sa.Connection, tables: Iterable[sa.Table]) -> Iterator[str]:
    """What those of the tables that exist lack, as `table.column`."""
    inspector = sa.inspect(connection)
    existing = set(inspector.get_table_names())
    for table in tables:
        if table.name in existing:
            known = {column["name"] for column in inspector.get_columns(table.name)}
            yield from (f"{table.name}.{column.name}" for column in table.columns if column.name not in known)
