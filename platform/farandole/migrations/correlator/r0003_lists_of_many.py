"""Lists of a million sagas: those in bad health, and those of one status by when they began or are due, without walking
all."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_DUE_LAST = sa.text("coalesce(deadline, 253402300799999999)")


def upgrade() -> None:
    op.create_index("saga_by_health", "saga", ["health", "update_time", "id"])
    op.create_index("saga_by_status_and_start", "saga", ["status", "start_time", "id"])
    op.create_index("saga_by_status_and_deadline", "saga", ["status", _DUE_LAST, "id"])
