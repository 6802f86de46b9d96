"""A process's database, SQLite or PostgreSQL: whole transactions of plain functions over a SQLAlchemy connection."""

from farandole.database.database import Database, end_sessions, is_store_trouble, refuse_aborted, transact

__all__ = ["Database", "end_sessions", "is_store_trouble", "refuse_aborted", "transact"]
