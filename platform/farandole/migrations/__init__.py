"""Bringing a database's tables up to date: revisions of Alembic, run at a process's start.

The tables of a participant and of a correlator have revisions of their own, in `participant/` and `correlator/`. Which
one a database has stands in a table in it, `farandole_participant_version` or `farandole_correlator_version`: a
service's own Alembic, whose table is `alembic_version`, does not meet them.

To change a table:

1. `python -m tests.integration.filled_stores` writes down, in `tests/integration/dumps`, stores of the revision before.
2. Change the table where it is declared, and what reads and writes it.
3. Add `rNNNN_what_changes.py` with `revision`, `down_revision` and `upgrade()`, over `alembic.op` and tables that it
   declares itself: what is declared elsewhere will have changed by the time it runs. It runs in one transaction with
   all later ones, on SQLite too, where a table that can't be altered is made anew: create, INSERT … SELECT, drop,
   rename.
4. `tests/integration/test_migrations.py` shows that the migrated tables are those that are declared, on both
   databases, and that the stores that were written down go on without loss.

There is no way down: the way back is a backup, and the version that made it.
"""

from farandole.migrations.migrate import CORRELATOR, FIRST, PARTICIPANT, Schema, migrate, refuse_other_revision

__all__ = ["CORRELATOR", "FIRST", "PARTICIPANT", "Schema", "migrate", "refuse_other_revision"]
