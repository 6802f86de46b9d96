"""Keys and their partitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farandole.partitions import PARTITIONS, is_key, partition_of

KEYS = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)

# the FNV authors' own test vectors for the 32-bit FNV-1a (draft-eastlake-fnv, appendix C)
PUBLISHED = {"": 0x811C9DC5, "a": 0xE40C292C, "foobar": 0xBF9CF968}


@pytest.mark.parametrize(("text", "hashed"), PUBLISHED.items())
def test_the_partition_is_fnv_1a(text: str, hashed: int) -> None:
    assert partition_of(text) == hashed % 16


@given(KEYS)
def test_a_key_is_one_and_has_a_partition(key: str) -> None:
    assert is_key(key)
    assert 0 <= partition_of(key) < PARTITIONS


@given(st.text().filter(lambda text: not text.isascii() or not text.replace("-", "a").replace("_", "a").isalnum()))
def test_any_other_text_is_none(text: str) -> None:
    assert not is_key(text)


def test_the_length_is_limited() -> None:
    assert is_key("a" * 128)
    assert not is_key("a" * 129)
    assert not is_key("")
    assert not is_key("ord-1\n")
