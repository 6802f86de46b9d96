"""Texts with the character U+0000, which PostgreSQL's text does not hold and SQLite's and Protobuf's do.

It stands there as `␀0`, and `␀` itself as `␀.`, so that every text comes back as it went in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import Dumper, Loader

if TYPE_CHECKING:
    from psycopg.abc import Buffer

_NUL = "\0"
_MARK = "\N{SYMBOL FOR NULL}"


def keep_nul(connection: psycopg.Connection[Any]) -> None:
    """Has a connection write and read such texts."""
    connection.adapters.register_dumper(str, _TextDumper)
    for type_name in ("text", "varchar", "bpchar"):
        connection.adapters.register_loader(type_name, _TextLoader)


class _TextDumper(Dumper):
    """Of no type, as the driver's own: the server sees from the place of a value what it is."""

    def dump(self, obj: str) -> bytes:
        if _NUL in obj or _MARK in obj:
            obj = obj.replace(_MARK, f"{_MARK}.").replace(_NUL, f"{_MARK}0")
        return obj.encode()


class _TextLoader(Loader):
    def load(self, data: Buffer) -> str:
        text = str(data, "utf-8")
        if _MARK in text:
            text = text.replace(f"{_MARK}0", _NUL).replace(f"{_MARK}.", _MARK)
        return text
