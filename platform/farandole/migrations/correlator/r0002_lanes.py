"""The correlator in several replicas: who they are, what they hold, with which definitions each started, and to which
partition what is to be published belongs."""

import sqlalchemy as sa
from alembic import op

from farandole.partitions import partition_of

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
    op.create_table(
        "correlator_started",
        sa.Column("replica", _KEY_TEXT, primary_key=True),
        sa.Column("definitions", sa.Text, nullable=False),
    )
    op.add_column("farandole_outbox", sa.Column("partition", sa.SmallInteger))
    _fill_partitions(op.get_bind())
    with op.batch_alter_table("farandole_outbox", table_kwargs={"sqlite_autoincrement": True}) as outbox:
        outbox.alter_column("partition", existing_type=sa.SmallInteger, nullable=False)
    op.create_index("ix_farandole_outbox_partition", "farandole_outbox", ["partition"])


def _fill_partitions(connection: sa.Connection) -> None:
    outbox = sa.table("farandole_outbox", sa.column("id"), sa.column("key"), sa.column("partition"))
    rows = [{"row": row.id, "of_key": partition_of(row.key)} for row in connection.execute(sa.select(outbox))]
    if rows:
        update = sa.update(outbox).where(outbox.c.id == sa.bindparam("row")).values(partition=sa.bindparam("of_key"))
        connection.execute(update, rows)
