"""Pages of lists (AIP-158): sizes, orders and opaque tokens."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence

from farandole.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_INT64 = range(-(2**63), 2**63)


def page_size(requested: int) -> int:
    """How many to give where so many are asked for. Raises `InvalidArgumentError` for a negative number."""
    if requested < 0:
        raise InvalidArgumentError("page_size", f"is {requested}; it is 0 for {DEFAULT_PAGE_SIZE}, or more")
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def page_token(position: Sequence[int | str], *, listing: Sequence[str]) -> str:
    """The token of the page after `position`. `listing` is all that must stay the same: which list, filter, order."""
    body = json.dumps([_hash(listing), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(f"{_hash([body])}{body}".encode()).decode().rstrip("=")


def position_of(token: str, *, listing: Sequence[str], shape: Sequence[type[int] | type[str]]) -> tuple[int | str, ...]:
    """The position that a token was made of.

    Raises `InvalidArgumentError` for the field `page_token` where the token is not one of ours, was cut, has not the
    shape, or belongs to another listing.
    """
    made_for, position = _opened(token)
    if made_for != _hash(listing):
        raise InvalidArgumentError(
            "page_token", "belongs to another filter or order; repeat them unchanged, or ask without a token"
        )
    if [type(part) for part in position] != list(shape) or any(
        isinstance(part, int) and part not in _INT64 for part in position
    ):
        raise _not_ours()
    return position


def _opened(token: str) -> tuple[str, tuple[int | str, ...]]:
    """The listing's hash and the position that a token holds."""
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        checksum, body = text[:_HASH_LENGTH], text[_HASH_LENGTH:]
        made_for, *position = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        raise _not_ours() from None
    if checksum != _hash([body]):
        raise _not_ours()
    return made_for, tuple(position)


def _not_ours() -> InvalidArgumentError:
    return InvalidArgumentError("page_token", "is not a token that a list has given; ask without one")


_HASH_LENGTH = 12


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:_HASH_LENGTH]
