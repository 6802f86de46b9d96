"""A correlator's store in a SQL database, SQLite or PostgreSQL."""

from farandole.correlator.sql_store.store import SqlCorrelatorStore

__all__ = ["SqlCorrelatorStore"]
