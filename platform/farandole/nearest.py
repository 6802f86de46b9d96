"""What somebody may have meant who named something that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the known name that is nearest, or nothing where none is near.

    Of names with dots the last part is enough, in any case: `orderCreated` is near `orders.v1.OrderCreated`.
    """
    names = list(dict.fromkeys(known))
    nearest = difflib.get_close_matches(name, names, n=1) or [full for full in names if _last(full) == _last(name)]
    return f"; did you mean {nearest[0]}?" if nearest else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()
