"""Lists and groups of dead letters, and those of them that are open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.filters import Filter
from farandole.correlator.queries import (
    DeadLetterGroup,
    DeadLetterGroupPage,
    DeadLetterGroupQuery,
    DeadLetterPage,
    DeadLetterQuery,
    GroupCursor,
    OpenDeadLetters,
)
from farandole.correlator.sql_store.conditions import condition
from farandole.correlator.sql_store.rows import Row, dead_letter_of
from farandole.correlator.sql_store.tables import DEAD_LETTER
from farandole.reasons import Reason
from farandole.times import time_of

_FILTER_COLUMNS: Mapping[str, sa.Column[Any]] = {
    "saga_id": DEAD_LETTER.c.key,
    **{
        name: DEAD_LETTER.c[name]
        for name in (
            "participant", "definition", "step", "event_type", "reason", "detail", "failure", "state", "sequence",
            "stream_time",
        )
    },
}  # fmt: skip


def list_dead_letters(connection: sa.Connection, query: DeadLetterQuery) -> DeadLetterPage:
    """See `CorrelatorQueries.list_dead_letters`."""
    statement = sa.select(DEAD_LETTER).order_by(DEAD_LETTER.c.id.desc())
    if query.before is not None:
        statement = statement.where(DEAD_LETTER.c.id < query.before)
    if query.filter is not None:
        statement = statement.where(condition(query.filter, _FILTER_COLUMNS))
    return _page(connection, statement, query.limit)


def open_dead_letters(
    connection: sa.Connection,
    counted: OpenDeadLetters,
    filter: Filter | None,  # noqa: A002 - the API's word
    after: int,
    limit: int,
) -> DeadLetterPage:
    """See `CorrelatorQueries.open_dead_letters`."""
    columns = DEAD_LETTER.c
    statement = (
        sa.select(DEAD_LETTER)
        .where(
            *_open_and(filter),
            columns.id > after,
            columns.id <= counted.last_row,
            columns.state_sequence <= counted.last_state_sequence,
        )
        .order_by(columns.id)
    )
    return _page(connection, statement, limit)


def _page(connection: sa.Connection, statement: sa.Select[Any], limit: int) -> DeadLetterPage:
    rows = connection.execute(statement.limit(limit + 1)).all()
    page = rows[:limit]
    return DeadLetterPage(tuple(dead_letter_of(row) for row in page), page[-1].id if len(rows) > len(page) else None)


def count_open_dead_letters(connection: sa.Connection, filter: Filter | None) -> OpenDeadLetters:  # noqa: A002
    """See `CorrelatorQueries.count_open_dead_letters`."""
    columns = DEAD_LETTER.c
    statement = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.max(columns.id), 0),
        sa.func.coalesce(sa.func.max(columns.state_sequence), 0),
    ).where(*_open_and(filter))
    return OpenDeadLetters(*connection.execute(statement).one())


def _open_and(filter: Filter | None) -> list[sa.ColumnElement[bool]]:  # noqa: A002 - the API's word
    """The conditions of an open dead letter that matches."""
    is_open = DEAD_LETTER.c.state == DeadLetterState.OPEN.value
    return [is_open] if filter is None else [is_open, condition(filter, _FILTER_COLUMNS)]


def group_dead_letters(connection: sa.Connection, query: DeadLetterGroupQuery) -> DeadLetterGroupPage:
    """See `CorrelatorQueries.group_dead_letters`."""
    rows = connection.execute(_groups_statement(query)).all()
    page = tuple(_group_of(query, row) for row in rows[: query.limit])
    more = len(rows) > len(page)
    return DeadLetterGroupPage(page, GroupCursor(page[-1].count, page[-1].row) if more else None)


def _groups_statement(query: DeadLetterGroupQuery) -> sa.Select[Any]:
    """The statement of a page and one group more: the groups' own columns, then what their dead letters share."""
    columns = _FILTER_COLUMNS
    keys = [columns[key] for key in query.keys]
    alike = dict.fromkeys((*query.fields, *query.keys))
    groups = (
        sa.select(
            sa.func.count().label("group_count"),
            sa.func.min(DEAD_LETTER.c.id).label("group_row"),
            sa.func.sum(sa.case((DEAD_LETTER.c.state == DeadLetterState.OPEN.value, 1), else_=0)).label("group_open"),
            sa.func.min(DEAD_LETTER.c.stream_time).label("group_first"),
            sa.func.max(DEAD_LETTER.c.stream_time).label("group_last"),
            *(sa.func.min(columns[name]).label(f"alike_{name}") for name in alike),
        )
        .where(*([] if query.filter is None else [condition(query.filter, columns)]))
        .group_by(*keys)
        .subquery()
    )
    count, row = groups.c.group_count, groups.c.group_row
    statement = sa.select(groups).order_by(count.desc(), row).limit(query.limit + 1)
    if query.after is not None:
        after = query.after
        statement = statement.where(sa.or_(count < after.count, sa.and_(count == after.count, row > after.row)))
    return statement


def _group_of(query: DeadLetterGroupQuery, row: Row) -> DeadLetterGroup:
    values = {name: getattr(row, f"alike_{name}") for name in dict.fromkeys((*query.fields, *query.keys))}
    if "reason" in values:
        values["reason"] = Reason(values["reason"])
    return DeadLetterGroup(
        values=values,
        count=row.group_count,
        open=row.group_open,
        first_time=time_of(row.group_first),
        last_time=time_of(row.group_last),
        row=row.group_row,
    )
