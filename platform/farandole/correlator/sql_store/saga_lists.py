"""Lists of sagas, and how many are alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from farandole.correlator.filters import Filter
from farandole.correlator.queries import SagaCount, SagaCursor, SagaOrder, SagaPage, SagaQuery
from farandole.correlator.sql_store.conditions import condition
from farandole.correlator.sql_store.rows import SAGA_COLUMNS, saga_of
from farandole.correlator.sql_store.tables import DUE_LAST, IS_STARTED, SAGA
from farandole.saga import Health, Status

_ORDER_COLUMNS: Mapping[SagaOrder, sa.ColumnElement[int]] = {
    SagaOrder.UPDATE_TIME: SAGA.c.update_time,
    SagaOrder.START_TIME: SAGA.c.start_time,
    SagaOrder.DEADLINE: DUE_LAST,
}
_FILTER_COLUMNS: Mapping[str, sa.Column[Any]] = {
    "saga_id": SAGA.c.key,
    **{
        name: SAGA.c[name]
        for name in (
            "definition", "version", "status", "health", "cause", "start_time", "update_time", "end_time", "deadline",
        )
    },
}  # fmt: skip


def list_sagas(connection: sa.Connection, query: SagaQuery) -> SagaPage:
    """See `CorrelatorQueries.list_sagas`."""
    rows = connection.execute(saga_page_statement(query)).all()
    page = rows[: query.limit]
    return SagaPage(
        tuple(saga_of(columns, ()) for _, _, *columns in page),
        SagaCursor(page[-1][0], page[-1][1]) if len(rows) > len(page) else None,
    )


def saga_page_statement(query: SagaQuery) -> sa.Select[Any]:
    """The statement of a page and one saga more: ordering value, row number, then the record's columns."""
    place = _ORDER_COLUMNS[query.order]
    row = SAGA.c.id
    statement = sa.select(place, row, *SAGA_COLUMNS).where(IS_STARTED).limit(query.limit + 1)
    if query.filter is not None:
        statement = statement.where(condition(query.filter, _FILTER_COLUMNS))
    if query.after is not None:
        here = sa.tuple_(place, row)
        last = sa.tuple_(sa.literal(query.after.value, sa.BigInteger), sa.literal(query.after.row, sa.BigInteger))
        statement = statement.where(here < last if query.descending else here > last)
    if query.descending:
        return statement.order_by(place.desc(), row.desc())
    return statement.order_by(place, row)


def summarize(connection: sa.Connection, filter: Filter | None) -> tuple[SagaCount, ...]:  # noqa: A002 - the API's word
    """See `CorrelatorQueries.summarize`."""
    alike = (SAGA.c.definition, SAGA.c.status, SAGA.c.health)
    statement = sa.select(*alike, sa.func.count()).where(IS_STARTED).group_by(*alike).order_by(*alike)
    if filter is not None:
        statement = statement.where(condition(filter, _FILTER_COLUMNS))
    return tuple(
        SagaCount(definition, Status(status), Health(health), count)
        for definition, status, health, count in connection.execute(statement)
    )
