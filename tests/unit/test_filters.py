"""Filters of lists: what they mean, and what a wrong one is told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farandole.correlator.dead_letters import DeadLetterState
from farandole.correlator.filters import (
    DEAD_LETTER_FIELDS,
    MAX_BYTES,
    SAGA_FIELDS,
    And,
    Comparison,
    Filter,
    Not,
    Operator,
    Or,
    Present,
    Value,
    filter_text,
    matches,
    parse_filter,
)
from farandole.errors import InvalidArgumentError
from farandole.reasons import Reason
from farandole.saga import Cause, Health, Status

RUNNING = Comparison("status", Operator.EQUAL, Status.RUNNING)
OVERDUE = Comparison("health", Operator.EQUAL, Health.OVERDUE)
FIRST = Comparison("version", Operator.EQUAL, 1)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("", None),
        (" \t\n ", None),
        ("status = RUNNING", RUNNING),
        ("status=RUNNING", RUNNING),
        ("status:RUNNING", RUNNING),
        ('  status = "RUNNING"  ', RUNNING),
        ("status = 'SAGA_STATUS_RUNNING'", RUNNING),
        ("status != RUNNING", Comparison("status", Operator.NOT_EQUAL, Status.RUNNING)),
        ("cause = UNSPECIFIED", Comparison("cause", Operator.EQUAL, Cause.UNSPECIFIED)),
        ("version >= -2", Comparison("version", Operator.GREATER_OR_EQUAL, -2)),
        ("version<7", Comparison("version", Operator.LESS, 7)),
        ("saga_id = ord-1_x", Comparison("saga_id", Operator.EQUAL, "ord-1_x")),
        ("saga_id = -", Comparison("saga_id", Operator.EQUAL, "-")),
        ("saga_id = ANDROID", Comparison("saga_id", Operator.EQUAL, "ANDROID")),
        ('saga_id = "AND"', Comparison("saga_id", Operator.EQUAL, "AND")),
        (r'saga_id = "a \"b\" \\ c"', Comparison("saga_id", Operator.EQUAL, 'a "b" \\ c')),
        ('saga_id = ""', Comparison("saga_id", Operator.EQUAL, "")),
        ('saga_id = "ü)("', Comparison("saga_id", Operator.EQUAL, "ü)(")),
        ("update_time < 2026-01-31T12:00:00Z", Comparison("update_time", Operator.LESS, NOON)),
        ('update_time > "2026-01-31T14:00:00+02:00"', Comparison("update_time", Operator.GREATER, NOON)),
        ("end_time:*", Present("end_time")),
        ("status = RUNNING AND health = OVERDUE", And((RUNNING, OVERDUE))),
        ("status = RUNNING OR health = OVERDUE", Or((RUNNING, OVERDUE))),
        # AIP-160: OR binds tighter than AND
        ("version = 1 AND status = RUNNING OR health = OVERDUE", And((FIRST, Or((RUNNING, OVERDUE))))),
        ("status = RUNNING OR health = OVERDUE AND version = 1", And((Or((RUNNING, OVERDUE)), FIRST))),
        ("(version = 1 AND status = RUNNING) OR health = OVERDUE", Or((And((FIRST, RUNNING)), OVERDUE))),
        ("NOT status = RUNNING AND version = 1", And((Not(RUNNING), FIRST))),
        ("-status = RUNNING", Not(RUNNING)),
        ("NOT(status = RUNNING)", Not(RUNNING)),
        ("-(status = RUNNING OR version = 1)", Not(Or((RUNNING, FIRST)))),
        ("NOT -status = RUNNING", Not(Not(RUNNING))),
        ("((status = RUNNING))", RUNNING),
    ],
)
def test_a_filter_says_what_it_means(text: str, meaning: Filter | None) -> None:
    assert parse_filter(text, SAGA_FIELDS) == meaning


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("staus = RUNNING", "at position 1: there is no field staus; did you mean status?"),
        ("Status = RUNNING", "did you mean status?"),
        ("version = 1 AND colour = red", "at position 17: there is no field colour; there are saga_id, definition"),
        ("status = RUNING", "at position 10: status can't be 'RUNING'; it is one of RUNNING, COMPLETED, COMPENSATING"),
        ("status = running", "it is one of RUNNING"),
        ("status = 1", "it is one of RUNNING"),
        ("status < RUNNING", "at position 8: status compares with = and != only"),
        ("saga_id > a", "saga_id compares with = and != only"),
        ("saga_id = ord-*", "saga_id is compared as a whole"),
        (r'saga_id = "\\*"', r'a * in quotes is written "\*"'),
        ("status = *", "status can't be '*'"),
        ("version = one", "version takes a whole number, not 'one'"),
        ("version = 1.5", "version takes a whole number"),
        ("version = 9223372036854775808", "version takes a whole number"),
        ("version = \u0661", "version takes a whole number"),
        ("update_time < yesterday", "at position 15: update_time takes an RFC 3339 time"),
        ("update_time < 2026-01-01T00:00:00", "update_time takes an RFC 3339 time"),
        ("update_time < 0001-01-01T00:00:00+23:00", "update_time takes an RFC 3339 time"),
        ("status", "at position 7: expected =, !=, <, <=, >, >= or : after status, found the end"),
        ("status =", "at position 9: expected a value for status, found the end"),
        ("status = AND version = 1", "expected a value for status, found 'AND version = 1'"),
        ("status = RUNNING version = 1", "at position 18: expected AND, OR or the end, found 'version = 1'"),
        ("status = RUNNING and version = 1", "found and; the words are written in capitals"),
        ("status = RUNNING AND", "at position 21: expected a field, found the end"),
        ("AND status = RUNNING", "at position 1: expected a field"),
        ("= RUNNING", "at position 1: expected a field"),
        ("(status = RUNNING", "expected ), found the end"),
        ("status = RUNNING)", "at position 17: a ) without its ("),
        ("()", "at position 2: expected a field, found ')'"),
        ('saga_id = "open', "at position 11: a quote that is not closed"),
        ('saga_id = "a\\', "a quote that is not closed"),
        ("status == RUNNING", "at position 9: status can't be '='"),
        ("(" * 30 + "status = RUNNING" + ")" * 30, "nested deeper than 20"),
        ("-" * 30 + "status = RUNNING", "nested deeper than 20"),
        ("NOT " * 30 + "status = RUNNING", "nested deeper than 20"),
        ("x" * (MAX_BYTES + 1), f"at most {MAX_BYTES}"),
        ("ü" * MAX_BYTES, f"has {2 * MAX_BYTES} bytes"),
    ],
)
def test_a_wrong_filter_is_told_where_and_what_would_be_right(text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_filter(text, SAGA_FIELDS)
    assert refused.value.field == "filter"
    assert complaint in refused.value.description


def test_dead_letters_have_fields_of_their_own() -> None:
    wanted = parse_filter("reason = DEAD_LETTER_REASON_TOO_LARGE AND sequence > 7", DEAD_LETTER_FIELDS)
    too_large = Comparison("reason", Operator.EQUAL, Reason.TOO_LARGE)
    assert wanted == And((too_large, Comparison("sequence", Operator.GREATER, 7)))
    with pytest.raises(InvalidArgumentError, match="there is no field status"):
        parse_filter("status = RUNNING", DEAD_LETTER_FIELDS)
    is_open = Comparison("state", Operator.EQUAL, DeadLetterState.OPEN)
    for text in ("state = OPEN", "state = DEAD_LETTER_STATE_OPEN", "state:OPEN"):
        assert parse_filter(text, DEAD_LETTER_FIELDS) == is_open
    with pytest.raises(InvalidArgumentError, match="it is one of OPEN, REDRIVEN, DISCARDED, SUPERSEDED"):
        parse_filter("state = CLOSED", DEAD_LETTER_FIELDS)


@given(st.text(alphabet=st.sampled_from("()-\"'\\=!<>:* \tANDORTstausvern_1.ü")) | st.text())
def test_any_text_is_a_filter_or_refused_as_one(text: str) -> None:
    try:
        parse_filter(text, SAGA_FIELDS)
    except InvalidArgumentError as refused:
        assert refused.field == "filter"  # noqa: PT017 - not being refused is right too


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("version = 2", True),
        ("version < 2", False),
        ("version <= 2 AND version >= 2", True),
        ("end_time:*", False),
        (f"end_time = {NOON.isoformat()}", False),
        (f"end_time != {NOON.isoformat()}", True),
        (f"NOT end_time > {NOON.isoformat()}", True),
        (f"end_time > {NOON.isoformat()} OR version = 2", True),
    ],
)
def test_what_is_absent_satisfies_no_comparison_but_being_other(text: str, holds: bool) -> None:
    values: dict[str, Value | None] = {"version": 2, "end_time": None}
    wanted = parse_filter(text, SAGA_FIELDS)
    assert wanted is not None
    assert matches(wanted, values.__getitem__) is holds


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "saga_id": TEXTS | st.none(),
            "detail": TEXTS | st.sampled_from(["AND", "NOT", "*", "", '"', "\\", "a\nb"]),
            "reason": st.sampled_from(list(Reason)),
            "sequence": st.integers(0, 2**62),
            "stream_time": st.datetimes(timezones=st.just(UTC)),
        },
    ),
    text=st.sampled_from(["", "  ", "state = OPEN", "state = OPEN OR sequence > 3 AND reason:*"]),
)
def test_a_filter_that_is_written_matches_what_it_was_written_for(values: dict[str, Value | None], text: str) -> None:
    written = parse_filter(filter_text(text, values), DEAD_LETTER_FIELDS)
    narrowed = parse_filter(text, DEAD_LETTER_FIELDS)
    terms = list(narrowed.terms if isinstance(narrowed, And) else [narrowed] if narrowed is not None else [])
    terms += [
        Not(Present(field)) if value is None else Comparison(field, Operator.EQUAL, value)
        for field, value in values.items()
    ]
    assert written == (And(tuple(terms)) if len(terms) > 1 else terms[0] if terms else None)


def test_a_filter_that_would_be_too_long_is_not_written() -> None:
    assert len(filter_text("", {"detail": "x" * (MAX_BYTES - len("detail = "))})) == MAX_BYTES
    assert filter_text("", {"detail": "x" * MAX_BYTES}) == ""
    assert filter_text("", {"detail": "ü" * (MAX_BYTES // 2)}) == ""
