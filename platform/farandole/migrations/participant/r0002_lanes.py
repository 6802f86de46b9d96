"""A participant in several replicas: who they are and what they hold, and to which partition each thing belongs."""

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

from farandole.partitions import PARTITIONS, partition_of

revision = "0002"
down_revision = "0001"

_KEY_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "farandole_replica",
        sa.Column("name", _KEY_TEXT, primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("lanes", sa.SmallInteger, nullable=False),
        sa.Column("is_able", sa.Boolean, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "farandole_lease",
        sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.Text, nullable=False),
    )
    connection = op.get_bind()
    _share_out_the_position(connection)
    _add_partitions(
        connection, "farandole_outbox", "id", lambda row: partition_of(row["key"]), sqlite_autoincrement=True
    )
    _add_partitions(connection, "farandole_queue", "sequence", lambda row: _partition_in(row["subject"]))
    op.create_index("ix_farandole_outbox_partition", "farandole_outbox", ["partition"])
    _give_counts_their_partition(connection)


def _add_partitions(
    connection: sa.Connection,
    table: str,
    key: str,
    partition: Callable[[sa.RowMapping], int],
    **kwargs: bool,
) -> None:
    """Adds the column, and fills it in every row; `key` is the column that tells rows from each other."""
    op.add_column(table, sa.Column("partition", sa.SmallInteger))
    stored = sa.Table(table, sa.MetaData(), autoload_with=connection)
    found = connection.execute(sa.select(stored)).mappings().all()
    if found:
        update = sa.update(stored).where(stored.c[key] == sa.bindparam("of_row"))
        rows = [{"of_row": row[key], "found": partition(row)} for row in found]
        connection.execute(update.values(partition=sa.bindparam("found")), rows)
    with op.batch_alter_table(table, table_kwargs=kwargs) as altered:
        altered.alter_column("partition", existing_type=sa.SmallInteger, nullable=False)


def _share_out_the_position(connection: sa.Connection) -> None:
    """Every partition stands where all of them stood."""
    before = connection.execute(sa.text("SELECT * FROM farandole_position")).mappings().all()
    op.drop_table("farandole_position")
    positions = op.create_table(
        "farandole_position",
        sa.Column("partition", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("position_time", sa.BigInteger),
        sa.Column("in_use", sa.Boolean, nullable=False),
    )
    assert positions is not None, "it was made"
    for row in before:
        kept = {name: value for name, value in row.items() if name != "lane"} | {"in_use": bool(row["in_use"])}
        connection.execute(sa.insert(positions), [{**kept, "partition": place} for place in range(PARTITIONS)])


def _give_counts_their_partition(connection: sa.Connection) -> None:
    """That of the event where it is in the queue. Of one that is yet to be read again it is not known: it is counted
    anew."""
    counted = connection.execute(
        sa.text(
            "SELECT s.sequence, q.partition, s.times FROM farandole_started s JOIN farandole_queue q USING (sequence)"
        )
    )
    rows = [dict(row) for row in counted.mappings()]
    op.drop_table("farandole_started")
    started = op.create_table(
        "farandole_started",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("partition", sa.SmallInteger, nullable=False),
        sa.Column("times", sa.Integer, nullable=False),
    )
    assert started is not None, "it was made"
    if rows:
        connection.execute(sa.insert(started), rows)


def _partition_in(subject: str) -> int:
    """That of a stored subject, `events.<partition>.<type>`."""
    partition = subject.split(".", 2)[1]
    return int(partition) if partition.isdigit() else 0
