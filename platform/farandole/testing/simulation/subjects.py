"""NATS subjects: what a pattern matches, and what a stream's subject transform makes of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

_FUNCTION = re.compile(r"\{\{\s*(partition|wildcard)\(([0-9,\s]+)\)\s*\}\}")


def matches(pattern: Sequence[str], subject: Sequence[str]) -> bool:
    """Whether a pattern (its tokens, `*` and `>` among them) matches a subject (its tokens)."""
    for at, part in enumerate(pattern):
        if part == ">":
            return len(subject) > at
        if at >= len(subject) or part not in {"*", subject[at]}:
            return False
    return len(pattern) == len(subject)


@lru_cache(maxsize=4096)
def _partition(text: str, partitions: int) -> int:
    """FNV-1a-32 of the text, modulo the number of partitions: what the server's `partition(…)` computes."""
    hashed = 2166136261
    for byte in text.encode():
        hashed = ((hashed ^ byte) * 16777619) % (1 << 32)
    return hashed % partitions


def transform(source: str, destination: str) -> Callable[[Sequence[str]], str]:
    """What a stream's subject transform does to the tokens of a subject that its source matches.

    Of the server's functions `partition(N, wildcard…)` and `wildcard(N)` are known, wildcards being counted from 1.
    Raises `ValueError` for others.
    """
    wildcards = [at for at, part in enumerate(source.split(".")) if part == "*"]
    makers = [_maker(part, wildcards, source) for part in destination.split(".")]
    return lambda subject: ".".join([maker(subject) for maker in makers])


def _maker(part: str, wildcards: Sequence[int], source: str) -> Callable[[Sequence[str]], str]:
    if part == ">":
        fixed = len(source.split(".")) - 1
        return lambda subject: ".".join(subject[fixed:])
    if "{{" not in part:
        return lambda _subject: part
    function = _FUNCTION.fullmatch(part)
    if function is None:
        raise ValueError(f"the subject transform {part!r} is not simulated")
    numbers = [int(number) for number in function[2].split(",")]
    if function[1] == "wildcard":
        (at,) = (wildcards[number - 1] for number in numbers)
        return lambda subject: subject[at]
    partitions, places = numbers[0], [wildcards[number - 1] for number in numbers[1:]]
    return lambda subject: str(_partition("".join(subject[place] for place in places), partitions))
