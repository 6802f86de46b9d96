"""All that a correlator's store holds, as values, and as a file: what snapshots and replays are made of.

A file is a gzip of lines. The first one says which format it has, the last one how many items stand between, so that
what was cut off is never taken for the whole. An item is `[kind, [field, …]]`, the fields in the order of the class.
"""

from __future__ import annotations

import dataclasses
import enum
import gzip
import json
import types
import typing
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from farandole.correlator.dead_letters import DeadLetter
from farandole.correlator.queries import RecordedSaga, StoredDefinition
from farandole.envelope import Publication
from farandole.errors import SnapshotError
from farandole.private_file import private_file
from farandole.times import microseconds_of, time_of

FORMAT = "farandole.correlator.contents/1"
"""Raised with every change of the fields of an item; a test keeps an example of each kind."""


@dataclass(frozen=True, slots=True)
class PartitionPosition:
    """How far one partition has been folded."""

    partition: int
    position: int
    incarnation: str
    """The stream that the position points into."""
    time: datetime | None = None
    """When the stream stored the event at the position, where that is known."""


Item: TypeAlias = PartitionPosition | StoredDefinition | RecordedSaga | DeadLetter | Publication
"""One thing that a store holds. Publications are those that wait in its outbox."""

Take: TypeAlias = Callable[[Item], None]

_KINDS: Mapping[str, type[Any]] = {
    "position": PartitionPosition,
    "definition": StoredDefinition,
    "saga": RecordedSaga,
    "dead_letter": DeadLetter,
    "publication": Publication,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_COMPRESSION = 1
"""A snapshot of a million sagas is written while a person waits; harder compression costs more than it saves."""


def encode_item(item: Item) -> bytes:
    """One line of a file, without its end."""
    fields = [_plain(getattr(item, field.name)) for field in dataclasses.fields(item)]
    return json.dumps([_NAMES[type(item)], fields], ensure_ascii=False, separators=(",", ":")).encode()


def decode_item(line: bytes) -> Item:
    """The item of a line. Raises `SnapshotError` where it is none."""
    try:
        kind, fields = json.loads(line)
        item: Item = _reader(typing.cast("Hashable", _KINDS[kind]))(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotError(f"holds a line that can't be read: {type(error).__name__}: {error}") from None
    return item


@contextmanager
def writing(path: Path) -> Iterator[Take]:
    """Writes a new file, which only this user can read; the whole of it is there once the block has ended."""
    count = 0

    def take(item: Item) -> None:
        nonlocal count
        count += 1
        file.write(encode_item(item) + b"\n")

    with private_file(path) as raw, gzip.open(raw, "wb", compresslevel=_COMPRESSION) as file:
        file.write(_line({"format": FORMAT}))
        yield take
        file.write(_line({"items": count}))


def reading(path: Path) -> Iterator[Item]:
    """The items of a file, in order. Raises `SnapshotError` where it is damaged, cut off or of another format."""
    count = 0
    try:
        with gzip.open(path, "rb") as file:
            head = file.readline()
            if head != _line({"format": FORMAT}):
                raise SnapshotError(f"is of another format than {FORMAT}: it begins with {head[:80]!r}")
            for line in file:
                if line.startswith(b"{"):
                    if line == _line({"items": count}) and not file.read(1):
                        return
                    break
                count += 1
                yield decode_item(line)
    except (OSError, EOFError, zlib.error) as error:
        raise SnapshotError(f"is damaged: {error}") from None
    raise SnapshotError(f"does not end as it must: it has {count} items")


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _plain(value: Any) -> Any:  # noqa: ANN401 - any field of an item, and what JSON has for it
    match value:
        case None | str() | bool():
            return value
        case enum.IntEnum():
            return value.value
        case int():
            return value
        case datetime():
            return microseconds_of(value)
        case bytes():
            return b64encode(value).decode()
        case Mapping():
            return [[_plain(key), _plain(one)] for key, one in sorted(value.items())]
        case tuple():
            return [_plain(one) for one in value]
        case _:
            return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]


_Reader: TypeAlias = Callable[[Any], Any]


@cache
def _reader(kind: Hashable) -> _Reader:
    """What makes a value of a type, or of what `typing` has for one, out of what `_plain` made of it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = _reader(next(one for one in arguments if one is not type(None)))
        return lambda plain: None if plain is None else inner(plain)
    if origin is tuple and arguments[-1] is Ellipsis:
        return _tuple_reader(_reader(arguments[0]))
    if origin is tuple:
        return _pair_reader([_reader(one) for one in arguments])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping_reader(_reader(arguments[0]), _reader(arguments[1]))
    assert isinstance(kind, type), "the fields of an item are of such types"
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return _class_reader(kind, [_reader(hints[field.name]) for field in dataclasses.fields(kind)])
    if issubclass(kind, enum.IntEnum):
        return kind
    return _PLAIN_READERS[kind]


def _tuple_reader(one: _Reader) -> _Reader:
    return lambda plain: tuple([one(value) for value in plain])


def _pair_reader(each: Sequence[_Reader]) -> _Reader:
    return lambda plain: tuple([read(value) for read, value in zip(each, plain, strict=True)])


def _mapping_reader(key: _Reader, value: _Reader) -> _Reader:
    return lambda plain: {key(name): value(one) for name, one in plain}


def _class_reader(kind: type[Any], fields: Sequence[_Reader]) -> _Reader:
    return lambda plain: kind(*[read(value) for read, value in zip(fields, plain, strict=True)])


def _as_is(plain: Any) -> Any:  # noqa: ANN401 - see `_plain`
    return plain


_PLAIN_READERS: Mapping[type[Any], _Reader] = {
    str: _as_is,
    int: _as_is,
    bool: _as_is,
    bytes: lambda plain: b64decode(plain, validate=True),
    datetime: time_of,
}
