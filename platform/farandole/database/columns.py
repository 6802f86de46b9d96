"""Column types that mean the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

KEY_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Text that is ordered or looked up by index: compared byte by byte, as SQLite does, whatever the machine's language
is. An index over it outlives an upgrade of the machine's locales."""

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A key that the database counts up by itself, to 2^63: SQLite does so for INTEGER alone."""
