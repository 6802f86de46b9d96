"""W3C Trace Context: the header `traceparent`. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 0x01


class TraceParent(NamedTuple):
    """A place in a trace."""

    trace_id: int
    span_id: int
    is_sampled: bool

    @property
    def header(self) -> str:
        """As a header's value."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.is_sampled):02x}"


def read(header: str) -> TraceParent | None:
    """What a header says; None for one that says nothing, and for anything else that anybody may have put there."""
    match = _HEADER.fullmatch(header)
    if match is None:
        return None
    return TraceParent(int(match[1], 16), int(match[2], 16), bool(int(match[3], 16) & _SAMPLED))


def derived(identity: str) -> TraceParent:
    """The place of an event that came without a trace: everyone who reads it finds the same trace, not sampled so far.

    `identity` is that of the event, as `farandole.ids.message_id` gives it.
    """
    digest = hashlib.sha256(identity.encode()).digest()
    return TraceParent(int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1, is_sampled=False)
