"""Filters of lists: the part of AIP-160 that Farandole's lists understand.

    filter     = factor {"AND" factor}
    factor     = term {"OR" term}                  OR binds tighter than AND, as AIP-160 has it
    term       = ["NOT" | "-"] ("(" filter ")" | comparison)
    comparison = field ("=" | "!=" | "<" | "<=" | ">" | ">=" | ":") value
    value      = a bare word, or a text in " or ' with \\ before a quote, a backslash or a *

`field:*` asks whether the field is there at all; `field:value` is `field = value`. Texts and enumerations compare
with `=`, `!=` and `:` only. A field that is absent (the `end_time` of an open saga) satisfies no comparison but `!=`.
"""

from __future__ import annotations

import enum
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn, TypeAlias

from farandole.correlator.dead_letters import DeadLetterState
from farandole.errors import InvalidArgumentError
from farandole.nearest import did_you_mean
from farandole.reasons import Reason
from farandole.saga import Cause, Health, Status

MAX_BYTES = 4096
MAX_DEPTH = 20
"""Of parentheses and negations in each other."""

Value: TypeAlias = str | int | datetime
"""Of a field; enumerations are integers, times are in UTC."""


class Operator(enum.Enum):
    """How a field is compared with a value."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field compared with a value of its own kind."""

    field: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class Present:
    """A field that is there."""

    field: str


@dataclass(frozen=True, slots=True)
class And:
    """Every term holds."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one term holds."""

    terms: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The term does not hold."""

    term: Filter


Filter: TypeAlias = "Comparison | Present | And | Or | Not"


@dataclass(frozen=True, slots=True)
class FilterField:
    """What a field may be compared with."""

    kind: type[str] | type[int] | type[datetime] | type[enum.IntEnum]
    prefix: str = ""
    """Of an enumeration's names in Protobuf; they may be written with it or without."""


SAGA_FIELDS: Mapping[str, FilterField] = {
    "saga_id": FilterField(str),
    "definition": FilterField(str),
    "version": FilterField(int),
    "status": FilterField(Status, "SAGA_STATUS_"),
    "health": FilterField(Health, "SAGA_HEALTH_"),
    "cause": FilterField(Cause, "SAGA_CAUSE_"),
    "start_time": FilterField(datetime),
    "update_time": FilterField(datetime),
    "end_time": FilterField(datetime),
    "deadline": FilterField(datetime),
}

DEAD_LETTER_FIELDS: Mapping[str, FilterField] = {
    "participant": FilterField(str),
    "definition": FilterField(str),
    "step": FilterField(str),
    "event_type": FilterField(str),
    "reason": FilterField(Reason, "DEAD_LETTER_REASON_"),
    "detail": FilterField(str),
    "failure": FilterField(str),
    "state": FilterField(DeadLetterState, "DEAD_LETTER_STATE_"),
    "saga_id": FilterField(str),
    "sequence": FilterField(int),
    "stream_time": FilterField(datetime),
}


def parse_filter(text: str, fields: Mapping[str, FilterField]) -> Filter | None:
    """The filter that a text says; None for an empty one.

    Raises `InvalidArgumentError` for the field `filter`, naming the position (from 1) and what would be right.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise InvalidArgumentError("filter", f"has {size} bytes; a filter has at most {MAX_BYTES}")
    return _Parser(text, fields).whole()


def filter_text(text: str, values: Mapping[str, Value | None]) -> str:
    """The filter `text`, narrowed to what has these values; None stands for a field that is absent.

    Empty where no filter may be as long.
    """
    terms = [text.strip()] if text.strip() else []
    for name, value in values.items():
        terms.append(f"NOT {name}:*" if value is None else f"{name} = {_written(value)}")
    written = " AND ".join(terms)  # binds loosest of all: nothing needs parentheses
    return written if len(written.encode()) <= MAX_BYTES else ""


def _written(value: Value) -> str:
    """A value as a filter has it."""
    match value:
        case enum.IntEnum():
            return value.name
        case int():
            return str(value)
        case datetime():
            return f'"{value.isoformat()}"'
        case str() if _PLAIN_VALUE.fullmatch(value) and value not in _KEYWORDS:
            return value
        case str():
            return '"' + _TO_ESCAPE.sub(r"\\\g<0>", value) + '"'


def matches(filter: Filter, value_of: Callable[[str], Value | None]) -> bool:  # noqa: A002 - the API's word
    """Whether something matches; `value_of` gives the value of a field, None where it is absent."""
    match filter:
        case And(terms):
            return all(matches(term, value_of) for term in terms)
        case Or(terms):
            return any(matches(term, value_of) for term in terms)
        case Not(term):
            return not matches(term, value_of)
        case Present(field):
            return value_of(field) is not None
        case Comparison(field, how, wanted):
            value = value_of(field)
            if value is None:
                return how is Operator.NOT_EQUAL
            return bool(COMPARE[how](value, wanted))


COMPARE: Mapping[Operator, Callable[..., object]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.LESS_OR_EQUAL: operator.le,
    Operator.GREATER: operator.gt,
    Operator.GREATER_OR_EQUAL: operator.ge,
}

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_OPERATOR = re.compile(r"<=|>=|!=|[=<>:]")
_BARE_VALUE = re.compile(r"[^\s()\"']+")
_QUOTED_VALUE = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.-]+")
_TO_ESCAPE = re.compile(r"[\"\\*]")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_KEYWORDS = frozenset({"AND", "OR", "NOT"})
_INT64 = range(-(2**63), 2**63)


class _Parser:
    """Reads a filter from left to right; `_at` is where it stands, always before something that is no space."""

    def __init__(self, text: str, fields: Mapping[str, FilterField]) -> None:
        self._text = text
        self._fields = fields
        self._at = 0
        self._depth = 0
        self._skip_space()

    def whole(self) -> Filter | None:
        if self._at == len(self._text):
            return None
        found = self._conjunction()
        if self._at < len(self._text):
            if self._peek(")"):
                self._refuse("a ) without its (")
            word = _WORD.match(self._text, self._at)
            if word and word[0].upper() in _KEYWORDS:
                self._refuse(f"expected AND, OR or the end, found {word[0]}; the words are written in capitals")
            self._refuse(f"expected AND, OR or the end, found {self._rest()}")
        return found

    def _conjunction(self) -> Filter:
        terms = [self._disjunction()]
        while self._take_keyword("AND"):
            terms.append(self._disjunction())
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def _disjunction(self) -> Filter:
        terms = [self._term()]
        while self._take_keyword("OR"):
            terms.append(self._term())
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _term(self) -> Filter:
        if self._take("-") or self._take_keyword("NOT"):
            with _Deeper(self):
                return Not(self._term())
        if self._take("("):
            with _Deeper(self):
                inner = self._conjunction()
            if not self._take(")"):
                self._refuse(f"expected ), found {self._rest()}")
            return inner
        return self._comparison()

    def _comparison(self) -> Filter:
        word = _WORD.match(self._text, self._at)
        if word is None or word[0] in _KEYWORDS:
            self._refuse(f"expected a field, found {self._rest()}")
        name = word[0]
        field = self._fields.get(name)
        if field is None:
            hint = did_you_mean(name, self._fields) or f"; there are {', '.join(self._fields)}"
            self._refuse(f"there is no field {name}{hint}")
        self._move(word.end())
        sign = _OPERATOR.match(self._text, self._at)
        if sign is None:
            self._refuse(f"expected =, !=, <, <=, >, >= or : after {name}, found {self._rest()}")
        if sign[0] in {"<", "<=", ">", ">="} and field.kind not in {int, datetime}:
            self._refuse(f"{name} compares with = and != only")
        self._move(sign.end())
        at = self._at
        text, is_bare, has_star = self._value(name)
        if text == "*" and is_bare and sign[0] == ":":
            return Present(name)
        if has_star and field.kind is str:
            self._refuse(f'{name} is compared as a whole; a * in quotes is written "\\*"', at)
        how = Operator.EQUAL if sign[0] == ":" else Operator(sign[0])
        return Comparison(name, how, self._converted(name, field, text, at))

    def _value(self, name: str) -> tuple[str, bool, bool]:
        """The text of a value, whether it stood without quotes, and whether it has a * that nothing escapes."""
        if self._peek('"') or self._peek("'"):
            quoted = _QUOTED_VALUE.match(self._text, self._at)
            if quoted is None:
                self._refuse("a quote that is not closed")
            self._move(quoted.end())
            inside = quoted[1] if quoted[1] is not None else quoted[2]
            return _ESCAPE.sub(r"\1", inside), False, "*" in _ESCAPE.sub("", inside)
        bare = _BARE_VALUE.match(self._text, self._at)
        if bare is None or bare[0] in _KEYWORDS:
            self._refuse(f"expected a value for {name}, found {self._rest()}")
        self._move(bare.end())
        return bare[0], True, "*" in bare[0]

    def _converted(self, name: str, field: FilterField, text: str, at: int) -> Value:
        kind = field.kind
        if issubclass(kind, enum.IntEnum):
            member = kind.__members__.get(text.removeprefix(field.prefix))
            if member is None:
                self._refuse(f"{name} can't be {text!r}; it is one of {', '.join(kind.__members__)}", at)
            return member
        if issubclass(kind, datetime):
            try:
                time = datetime.fromisoformat(text)
                if time.tzinfo is not None:
                    return time.astimezone(UTC)
            except (ValueError, OverflowError):
                pass
            self._refuse(f'{name} takes an RFC 3339 time such as "2026-01-31T12:00:00Z", not {text!r}', at)
        if issubclass(kind, int):
            if not _INTEGER.fullmatch(text) or int(text) not in _INT64:
                self._refuse(f"{name} takes a whole number, not {text!r}", at)
            return int(text)
        return text

    def _peek(self, sign: str) -> bool:
        return self._text.startswith(sign, self._at)

    def _take(self, sign: str) -> bool:
        if self._peek(sign):
            self._move(self._at + len(sign))
            return True
        return False

    def _take_keyword(self, keyword: str) -> bool:
        word = _WORD.match(self._text, self._at)
        return word is not None and word[0] == keyword and self._take(keyword)

    def _move(self, to: int) -> None:
        self._at = to
        self._skip_space()

    def _skip_space(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _rest(self) -> str:
        return repr(self._text[self._at : self._at + 20]) if self._at < len(self._text) else "the end"

    def _refuse(self, what: str, at: int | None = None) -> NoReturn:
        raise InvalidArgumentError("filter", f"at position {(self._at if at is None else at) + 1}: {what}")

    def deepen(self, by: int) -> None:
        self._depth += by
        if self._depth > MAX_DEPTH:
            self._refuse(f"nested deeper than {MAX_DEPTH}")


class _Deeper:
    def __init__(self, parser: _Parser) -> None:
        self._parser = parser

    def __enter__(self) -> None:
        self._parser.deepen(1)

    def __exit__(self, *_: object) -> None:
        self._parser.deepen(-1)
