"""Keys and partitions: which of a stream's partitions holds a saga's events.

The broker computes the same with the subject transform `events.{{partition(16,1)}}.>`.
"""

from __future__ import annotations

import itertools
import re
from functools import cache, lru_cache

PARTITIONS = 16
"""Permanent: a stored event stays in the partition in which it was stored."""

_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_key(text: str) -> bool:
    """Whether the text can be a correlation key, which is also one token of a NATS subject."""
    return _KEY.fullmatch(text) is not None


@lru_cache(maxsize=65536)
def partition_of(key: str) -> int:
    """The partition of a correlation key: FNV-1a-32 of its bytes, modulo 16."""
    hash_ = 0x811C9DC5
    for byte in key.encode():
        hash_ = ((hash_ ^ byte) * 0x01000193) & 0xFFFFFFFF
    return hash_ % PARTITIONS


def key_in(partition: int, key: str) -> str:
    """The key, where it is one of the partition; else, and for an empty one, that of the whole partition."""
    return key if key and partition_of(key) == partition else partition_key(partition)


@cache
def partition_key(partition: int) -> str:
    """The key under which the platform speaks to a whole partition: `partition-<partition>-<n>`, with the first n that
    belongs there."""
    keys = (f"partition-{partition}-{number}" for number in itertools.count())
    return next(key for key in keys if partition_of(key) == partition)
