"""Filters as conditions of statements."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from farandole.correlator.filters import COMPARE, And, Comparison, Filter, Not, Operator, Or, Present, Value
from farandole.times import microseconds_of


def condition(filter: Filter, columns: Mapping[str, sa.Column[Any]]) -> sa.ColumnElement[bool]:  # noqa: A002
    """A filter as a condition that is always true or false, never NULL, so that NOT means the same everywhere."""
    match filter:
        case And(terms):
            return sa.and_(*(condition(term, columns) for term in terms))
        case Or(terms):
            return sa.or_(*(condition(term, columns) for term in terms))
        case Not(term):
            return sa.not_(condition(term, columns))
        case Present(field):
            return columns[field].is_not(None)
        case Comparison(field, how, value):
            column = columns[field]
            compared: sa.ColumnElement[bool] = COMPARE[how](column, _literal(value))  # type: ignore[assignment]
            if not column.nullable:
                return compared
            if how is Operator.NOT_EQUAL:
                return sa.or_(column.is_(None), compared)
            return sa.and_(column.is_not(None), compared)


def _literal(value: Value) -> sa.ColumnElement[Any]:
    match value:
        case datetime():
            return sa.literal(microseconds_of(value), sa.BigInteger)
        case int():
            return sa.literal(int(value), sa.BigInteger)  # the column may be a smaller integer than what is asked for
        case str():
            return sa.literal(value, sa.Text)
